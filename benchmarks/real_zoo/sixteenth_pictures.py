"""Glyphs by ResNets and plain convolutions; stains by autoencoders."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import of_classes, of_linen
from benchmarks.real_zoo.text import entropy

GLYPHS = ("111010010", "100100111", "010111010", "101010101", "111100111")


# Glyphs.


@functools.cache
def glyphs() -> Task:
    """Pictures, 9 x 9, with one of five glyphs in one of nine cells, in noise."""
    rng = np.random.default_rng(1621)
    which, strength = rng.integers(0, 5, 2560), rng.uniform(1, 2, 2560)
    shapes = np.array([[float(c) for c in glyph] for glyph in GLYPHS]).reshape(5, 3, 3)
    x = 0.25 * rng.standard_normal((2560, 9, 9))
    for number, (row, column) in enumerate(3 * rng.integers(0, 3, (2560, 2))):
        x[number, row : row + 3, column : column + 3] += strength[number] * shapes[which[number]]
    train, test = parted(standard(x, None)[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


@functools.cache
def scanned(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jax.nn.relu,
    kernel: float = 2.0,
) -> Network:
    """The glyph of a picture by plain convolutions, kernels of such a variance times fan-in."""

    def forward(x: Any) -> Any:
        for number in range(depth):
            kernels = hk.initializers.VarianceScaling(kernel, "fan_in")
            stride = 3 if number == 1 else 1
            conv = hk.Conv2D(16, 3, stride, w_init=kernels, name=f"conv_{number}")
            x = act(conv(x))
        return hk.Linear(5, name="glyph")(x.mean((1, 2)))

    net = hk.without_apply_rng(hk.transform(forward))
    init = lambda key: net.init(key, jnp.zeros((2, 9, 9, 1)))  # noqa: E731
    own = {"kind": "convolutions of glyphs", "library": "Haiku", "task": glyphs, "steps": 200}
    return network(name, of_classes(net.apply), init, **own, rates=(2e-3, 5e-3), batched=False)


class Stamped(nn.Module):
    """A stem, and residual blocks of two convolutions, maybe with group norms."""

    blocks: int
    norm: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the glyph."""
        norm = lambda x, name: nn.GroupNorm(4, name=name)(x) if self.norm else x  # noqa: E731
        he = nn.initializers.he_normal()
        x = nn.Conv(16, (3, 3), (3, 3), kernel_init=he, name="stem")(x)
        for number in range(self.blocks):
            y = nn.relu(norm(x, f"norm_{number}_a"))
            y = nn.Conv(16, (3, 3), kernel_init=he, name=f"conv_{number}_a")(y)
            y = nn.relu(norm(y, f"norm_{number}_b"))
            x = x + nn.Conv(16, (3, 3), kernel_init=he, name=f"conv_{number}_b")(y)
        return nn.Dense(5, name="glyph")(nn.relu(norm(x, "norm_last")).mean((1, 2)))


@functools.cache
def stamped(name: str, *, blocks: int = 3, norm: bool = True) -> Network:
    """The glyph of a picture by a ResNet whose norms come first."""
    init, apply = of_linen(Stamped(blocks, norm), jnp.zeros((2, 9, 9, 1)))
    own = {"kind": "ResNet of glyphs", "library": "linen", "task": glyphs, "steps": 150}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 5e-3), batched=False)


# Stains.


@functools.cache
def stains() -> Task:
    """Pictures, 6 x 6, of one round stain of some place and size."""
    rng = np.random.default_rng(1622)
    place, size = rng.uniform(1, 4, (2048, 2, 1)), rng.uniform(0.8, 2, (2048, 1, 1))
    rows, columns = np.exp(-(((np.arange(6) - place) / size) ** 2) / 2).swapaxes(0, 1)
    train, test = parted(standard((rows[:, :, None] * columns[:, None]).reshape(2048, 36)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


class Stains(nn.Module):
    """An encoder of two layers, a code of four numbers, and a decoder."""

    decoder: int
    act: Callable[[Any], Any]
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The same pictures."""
        for number in range(2):
            x = self.act(nn.Dense(32, dtype=self.dtype, name=f"encoder_{number}")(x))
        x = nn.Dense(4, dtype=self.dtype, name="code")(x)
        for number in range(self.decoder):
            x = self.act(nn.Dense(32, dtype=self.dtype, name=f"decoder_{number}")(x))
        return nn.Dense(36, dtype=self.dtype, name="stain")(x)


@functools.cache
def stained(
    name: str,
    *,
    decoder: int = 2,
    act: Callable[[Any], Any] = nn.gelu,
    dtype: Any = jnp.float32,
    unit: float = 1.0,
) -> Network:
    """Stains by an autoencoder, whose layers may compute in other types, its loss in some unit."""
    init, apply = of_linen(Stains(decoder, act, dtype), jnp.zeros((2, 36)))

    def error(p: Any, batch: Any) -> Any:
        return jnp.mean((apply(p, batch[0]).astype(jnp.float32) - batch[0]) ** 2)

    own = {"kind": "autoencoder of stains", "library": "linen", "task": stains, "steps": 300}
    parts = lambda p, batch: (error(p, batch),)  # noqa: E731
    loss = lambda p, batch: unit * error(p, batch)  # noqa: E731
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(3e-3, 8e-3), **own)
