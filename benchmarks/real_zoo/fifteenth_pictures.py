"""Mosaics by vision transformers, mixers and ResNets; the ringing of bells by convolutions."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import of_classes, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

# Mosaics.


@functools.cache
def mosaics() -> Task:
    """Pictures, 8 x 8, with one of four patterns of tiles somewhere, in either sign, in noise."""
    rng = np.random.default_rng(1521)
    which, sign = rng.integers(0, 4, 2560), rng.choice([-1.0, 1.0], 2560)
    rows, columns = np.mgrid[0:4, 0:4]
    patterns = np.stack([rows % 2, columns % 2, (rows + columns) % 2, 0 * rows]) * 2.0 - 1
    x = 0.4 * rng.standard_normal((2560, 8, 8))
    for number, (row, column) in enumerate(2 * rng.integers(0, 3, (2560, 2))):
        x[number, row : row + 4, column : column + 4] += sign[number] * patterns[which[number]]
    train, test = parted(standard(x, None)[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def _patches(x: Any) -> Any:
    return x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)


class Tiles(nn.Module):
    """Patches and a class token, blocks of attention and GELU, and logits of that token."""

    depth: int
    norm: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the pattern."""
        normal = nn.initializers.normal(0.3)
        x = nn.Dense(24, name="patch")(_patches(x))
        token = jnp.broadcast_to(self.param("token", normal, (1, 24)), (len(x), 1, 24))
        x = jnp.concatenate([token, x], 1) + self.param("places", normal, (17, 24))
        norm = lambda y, name: nn.LayerNorm(name=name)(y) if self.norm else y  # noqa: E731
        for number in range(self.depth):
            attend = nn.MultiHeadDotProductAttention(2, name=f"attention_{number}")
            x = x + attend(norm(x, f"norm_{number}_a"))
            y = nn.gelu(nn.Dense(48, name=f"up_{number}")(norm(x, f"norm_{number}_b")))
            x = x + nn.Dense(24, name=f"down_{number}")(y)
        return nn.Dense(4, name="pattern")(norm(x, "norm_last")[:, 0])


@functools.cache
def tiled(name: str, *, depth: int = 2, norm: bool = True) -> Network:
    """The pattern of a mosaic by a vision transformer."""
    init, apply = of_linen(Tiles(depth, norm), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "ViT of mosaics", "library": "linen", "task": mosaics, "steps": 300}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 5e-3))


@functools.cache
def laid(name: str, *, depth: int = 3) -> Network:
    """The pattern of a mosaic by an MLP-Mixer of ReLU."""

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.tokens = nnx.Linear(16, 32, rngs=rngs)
            self.tokens_back = nnx.Linear(32, 16, rngs=rngs)
            self.channels = nnx.Linear(24, 48, rngs=rngs)
            self.channels_back = nnx.Linear(48, 24, rngs=rngs)
            self.norm_a, self.norm_b = nnx.LayerNorm(24, rngs=rngs), nnx.LayerNorm(24, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = nnx.relu(self.tokens(self.norm_a(x).swapaxes(1, 2)))
            x = x + self.tokens_back(y).swapaxes(1, 2)
            return x + self.channels_back(nnx.relu(self.channels(self.norm_b(x))))

    class Mosaics(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.patch = nnx.Linear(4, 24, rngs=rngs)
            self.blocks = nnx.List(Block(rngs) for _ in range(depth))
            self.pattern = nnx.Linear(24, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.patch(_patches(x))
            for block in self.blocks:
                x = block(x)
            return self.pattern(x.mean(1))

    init, apply = of_nnx(Mosaics)
    own = {"kind": "mixer of mosaics", "library": "nnx", "task": mosaics, "steps": 300}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 5e-3))


class Residual(nn.Module):
    """A stem, and residual blocks of two convolutions, maybe with batch norms."""

    blocks: int
    norm: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the pattern."""

        def conv(x: Any, name: str) -> Any:
            he = nn.initializers.he_normal()
            x = nn.Conv(12, (3, 3), use_bias=not self.norm, kernel_init=he, name=f"conv_{name}")(x)
            batch = nn.BatchNorm(use_running_average=False, name=f"norm_{name}")
            return batch(x) if self.norm else x

        x = nn.relu(conv(x, "stem"))[:, ::2, ::2]
        for number in range(self.blocks):
            y = conv(nn.relu(conv(x, f"{number}_a")), f"{number}_b")
            x = nn.relu(x + y)
        return nn.Dense(4, name="pattern")(x.mean((1, 2)))


@functools.cache
def residual(name: str, *, blocks: int = 2, norm: bool = True) -> Network:
    """The pattern of a mosaic by a ResNet."""
    init, apply = of_linen(Residual(blocks, norm), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "ResNet of mosaics", "library": "linen", "task": mosaics, "steps": 150}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 6e-3), batched=False)


# Bells.


@functools.cache
def bells() -> Task:
    """Thirty-two moments of a bell's ringing in noise, and which of four bells it is."""
    rng = np.random.default_rng(1522)
    which, time = rng.integers(0, 4, 2048), np.arange(32)
    pitch = np.array([0.5, 0.8, 1.2, 1.7])[which, None] + rng.uniform(-0.08, 0.08, (2048, 1))
    ring = np.sin(pitch * time + rng.uniform(0, 2 * np.pi, (2048, 1)))
    x = ring * np.exp(-time / rng.uniform(15, 40, (2048, 1))) + 0.3 * rng.standard_normal(
        (2048, 32)
    )
    train, test = parted(standard(x, None)[:, None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Bells(eqx.Module):
    """Convolutions along time, the first with a stride, and logits of their mean."""

    filters: list[eqx.nn.Conv1d]
    bell: eqx.nn.Linear
    act: Callable[[Any], Any] = eqx.field(static=True)
    skip: bool = eqx.field(static=True)

    def __init__(self, depth: int, act: Any, skip: bool, key: Any) -> None:
        first, last, *rest = jax.random.split(key, depth + 1)
        self.filters = [
            eqx.nn.Conv1d(1, 16, 5, 2, padding=2, key=first),
            *(eqx.nn.Conv1d(16, 16, 5, padding=2, key=k) for k in rest),
        ]
        self.bell, self.act, self.skip = eqx.nn.Linear(16, 4, key=last), act, skip

    def __call__(self, x: Any) -> Any:
        """Logits of the bells."""
        x = self.act(self.filters[0](x))
        for conv in self.filters[1:]:
            y = self.act(conv(x))
            x = x + y if self.skip else y
        return self.bell(x.mean(1))


@functools.cache
def rung(
    name: str,
    *,
    depth: int = 4,
    act: Callable[[Any], Any] = jax.nn.relu,
    skip: bool = False,
) -> Network:
    """Which bell rings by a 1-D convolutional network."""
    init, apply = of_equinox(lambda key: Bells(depth, act, skip, key))
    own = {"kind": "1-D convolutions of bells", "library": "Equinox", "task": bells, "steps": 200}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 6e-3), batched=False)
