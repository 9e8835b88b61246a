"""Spots on ladybirds counted by convolutions, ResNets and vision transformers."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import of_classes, of_equinox, of_linen
from benchmarks.real_zoo.text import entropy


@functools.cache
def ladybirds() -> Task:
    """Pictures, 8 x 8, of one to four spots in noise, and how many there are."""
    rng = np.random.default_rng(1821)
    count = rng.integers(0, 4, 2560)
    rows, columns = np.mgrid[0:8, 0:8]
    x = 0.25 * rng.standard_normal((2560, 8, 8))
    for picture, number in zip(x, count, strict=True):
        # One spot at most in each quarter.
        for place in rng.permutation(4)[: number + 1]:
            row, column = 4 * np.array(divmod(place, 2)) + rng.uniform(1, 2.5, 2)
            distance = (rows - row) ** 2 + (columns - column) ** 2
            picture += rng.uniform(0.7, 1.5) * np.exp(-distance / 0.9)
    train, test = parted(standard(x, None)[..., None], count.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Spots(nn.Module):
    """Convolutions, half as many places after the first, and logits of their mean."""

    depth: int
    act: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of counts."""
        for number in range(self.depth):
            x = self.act(nn.Conv(12, (3, 3), name=f"filters_{number}")(x))
            x = nn.avg_pool(x, (2, 2), (2, 2)) if number == 0 else x
        return nn.Dense(4, name="count")(x.mean((1, 2)))


@functools.cache
def spotted(name: str, *, depth: int = 3, act: Callable[[Any], Any] = nn.relu) -> Network:
    """How many spots there are by plain convolutions."""
    init, apply = of_linen(Spots(depth, act), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "convolutions of ladybirds", "library": "linen", "task": ladybirds}
    own |= {"steps": 200, "rates": (2e-3, 6e-3), "batched": False}
    return network(name, of_classes(apply), init, **own)


class Pair(eqx.Module):
    """Two convolutions, maybe with group norms, beside what goes into them."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    norms: list[eqx.nn.GroupNorm]

    def __init__(self, norm: bool, key: Any) -> None:
        one, two = jax.random.split(key)
        self.first = eqx.nn.Conv2d(12, 12, 3, padding=1, key=one)
        self.second = eqx.nn.Conv2d(12, 12, 3, padding=1, key=two)
        self.norms = [eqx.nn.GroupNorm(3, 12), eqx.nn.GroupNorm(3, 12)] if norm else []

    def __call__(self, x: Any) -> Any:
        """`[channels, rows, columns]`."""
        one, two = self.norms or (lambda y: y, lambda y: y)
        return jax.nn.relu(x + two(self.second(jax.nn.relu(one(self.first(x))))))


class Pairs(eqx.Module):
    """A stem with a stride, pairs of convolutions, and logits of their mean."""

    stem: eqx.nn.Conv2d
    blocks: list[Pair]
    count: eqx.nn.Linear

    def __init__(self, blocks: int, norm: bool, key: Any) -> None:
        one, two, *rest = jax.random.split(key, 2 + blocks)
        self.stem = eqx.nn.Conv2d(1, 12, 3, 2, padding=1, key=one)
        self.blocks = [Pair(norm, k) for k in rest]
        self.count = eqx.nn.Linear(12, 4, key=two)

    def __call__(self, x: Any) -> Any:
        """Logits of counts."""
        x = jax.nn.relu(self.stem(jnp.moveaxis(x, -1, 0)))
        for block in self.blocks:
            x = block(x)
        return self.count(x.mean((1, 2)))


@functools.cache
def paired(name: str, *, blocks: int = 2, norm: bool = True) -> Network:
    """How many spots there are by a ResNet of group norms."""
    init, apply = of_equinox(lambda key: Pairs(blocks, norm, key))
    own = {"kind": "ResNet of ladybirds", "library": "Equinox", "task": ladybirds}
    own |= {"steps": 200, "rates": (2e-3, 6e-3), "batched": False}
    return network(name, of_classes(apply), init, **own)


@functools.cache
def patched(name: str, *, depth: int = 2, **rest: Any) -> Network:
    """How many spots there are by a vision transformer with LayerScale."""

    def forward(x: Any) -> Any:
        small, scale = hk.initializers.RandomNormal(0.3), hk.initializers.Constant(1.0)
        norm = lambda y: hk.LayerNorm(-1, create_scale=True, create_offset=True)(y)  # noqa: E731
        x = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
        x = hk.Linear(24, name="patch")(x) + hk.get_parameter("places", (16, 24), init=small)
        for number in range(depth):
            gains = hk.get_parameter(f"gains_{number}", (2, 24), init=scale)
            variance = hk.initializers.VarianceScaling()
            attention = hk.MultiHeadAttention(2, 12, w_init=variance, name=f"attention_{number}")
            y = norm(x)
            x = x + gains[0] * attention(y, y, y)
            x = x + gains[1] * hk.nets.MLP([48, 24], activation=jax.nn.gelu)(norm(x))
        return hk.Linear(4, name="count")(norm(x).mean(1))

    net = hk.without_apply_rng(hk.transform(forward))
    init = lambda key: net.init(key, jnp.zeros((2, 8, 8, 1)))  # noqa: E731
    own = {"kind": "ViT of ladybirds", "library": "Haiku", "task": ladybirds, "steps": 300}
    return network(name, of_classes(net.apply), init, **own | {"rates": (2e-3, 5e-3)} | rest)
