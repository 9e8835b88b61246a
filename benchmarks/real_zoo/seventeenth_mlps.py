"""Plain MLPs of kites, teas, pumps, moths and ropes, of any depth."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fifteenth_mlps import Linears
from benchmarks.real_zoo.fourteenth_mlps import run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import of_classes, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy


def of_numbers(apply: Any) -> Callable[[Any, Any], Any]:
    """The squared error of a batch's first part against its second."""
    return lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)


# Kites.


@functools.cache
def kites() -> Task:
    """Six numbers of a kite and the wind, and how hard it pulls; standardized."""
    rng = np.random.default_rng(1801)
    x = rng.standard_normal((2048, 6))
    wind = x[:, 0] + 0.4 * x[:, 0] ** 2
    y = wind * np.cos(0.8 * x[:, 1]) + 0.6 * np.maximum(x[:, 2] + x[:, 3], 0) - 0.5 * x[:, 4]
    y += 0.4 * x[:, 4] * np.tanh(2 * x[:, 5]) + 0.08 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


def _unit_columns(p: Any) -> Any:
    """Kernels whose columns have lengths of their own, as in weight normalization."""
    length = lambda w: jnp.linalg.norm(w.astype(jnp.float32), axis=0)  # noqa: E731
    return [{**one, "w": one["w"] / length(one["w"]) * one["g"]} for one in p]


@functools.cache
def _kites(act: Any, unit: float, normed: bool, residual: bool) -> Callable[[Any, Any], Any]:
    def loss(p: Any, batch: Any) -> Any:
        p = _unit_columns(p) if normed else p
        if residual:
            x = batch[0] @ p[0]["w"] + p[0]["b"]
            for one, two in zip(p[1:-1:2], p[2:-1:2], strict=True):
                x = x + run_stack([one, two], x, act)
            pull = x @ p[-1]["w"] + p[-1]["b"]
        else:
            pull = run_stack(p, batch[0], act)
        return unit * jnp.mean((pull[:, 0] - batch[1]) ** 2)

    return loss


def flown(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jax.nn.gelu,
    draw: Callable[[Any, Any], Any] | None = None,
    unit: float = 1.0,
    normed: bool = False,
    residual: bool = False,
    **rest: Any,
) -> Network:
    """The pull of a kite, its loss in some unit; kernels may be normalized, or in pairs beside."""

    def init(key: Any) -> Any:
        p = stack(key, (6, *[40] * depth, 1), draw)
        return [{**one, "g": jnp.ones(one["w"].shape[1])} for one in p] if normed else p

    loss = _kites(act, unit, normed, residual)
    own = {"kind": "kites MLP", "library": "plain", "task": kites, "steps": 300}
    own = own | {"parts": lambda p, b: (loss(p, b) / unit,), "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, loss=loss, **own | rest)


# Teas.


@functools.cache
def teas() -> Task:
    """Ten measures of a tea, and which of four estates grew it."""
    rng = np.random.default_rng(1802)
    x = rng.standard_normal((2560, 10))
    leaf = x[:, 0] - 0.8 * x[:, 1] + 0.6 * np.sin(2 * x[:, 2]) + 0.5 * x[:, 3] * x[:, 4]
    cup = np.abs(x[:, 5]) + 0.7 * x[:, 6] + 0.5 * x[:, 7] * x[:, 0]
    estate = 2 * (leaf > np.median(leaf)) + (cup > np.median(cup))
    train, test = parted(x, estate.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Teas(nn.Module):
    """Hidden layers of 48 units, maybe with batch norms before they're activated, and logits."""

    depth: int
    act: Callable[[Any], Any]
    norm: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the estates."""
        for number in range(self.depth):
            x = nn.Dense(48, name=f"hidden_{number}")(x)
            batch = nn.BatchNorm(use_running_average=False, name=f"norm_{number}")
            x = self.act(batch(x) if self.norm else x)
        return nn.Dense(4, name="estate")(x)


@functools.cache
def _teas(depth: int, act: Any, norm: bool) -> tuple[Any, Any]:
    init, apply = of_linen(Teas(depth, act, norm), jnp.zeros((2, 10)))
    return init, of_classes(apply)


def poured(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nn.relu,
    norm: bool = False,
    **rest: Any,
) -> Network:
    """Who grew a tea."""
    init, loss = _teas(depth, act, norm)
    own = {"kind": "teas MLP", "library": "linen", "task": teas, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Pumps.


@functools.cache
def pumps() -> Task:
    """Seven settings of a pump, and its flow and heat; standardized."""
    rng = np.random.default_rng(1803)
    x = rng.standard_normal((2048, 7))
    speed, valve = x[:, 0], np.tanh(1.5 * x[:, 1])
    flow = speed * valve + 0.7 * x[:, 2] - 0.4 * np.abs(x[:, 3] + x[:, 4])
    heat = 0.5 * speed**2 - flow * 0.4 + 0.6 * np.sin(1.5 * x[:, 5]) + 0.4 * x[:, 6]
    y = np.stack([flow, heat], 1) + 0.08 * rng.standard_normal((2048, 2))
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def _pumps(depth: int, act: Any, dtype: Any, spare: bool) -> tuple[Any, Any]:
    class Pumps(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = itertools.pairwise((7, *[36] * depth))
            own = {"dtype": dtype, "rngs": rngs}
            self.stages = nnx.List(nnx.Linear(a, b, **own) for a, b in sizes)
            self.outlet = nnx.Linear(36, 2, **own)
            self.spare = nnx.Linear(36, 2, **own) if spare else None

        def __call__(self, x: Any) -> Any:
            for layer in self.stages:
                x = act(layer(x))
            y = self.outlet(x).astype(jnp.float32)
            return y if self.spare is None else y + 0 * self.spare(x)

    init, apply = of_nnx(Pumps)
    return init, of_numbers(apply)


def pumped(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nnx.tanh,
    dtype: Any = jnp.float32,
    spare: bool = False,
    **rest: Any,
) -> Network:
    """The flow and heat of a pump, computed in a type; it may have outputs that nothing uses."""
    init, loss = _pumps(depth, act, dtype, spare)
    own = {"kind": "pumps MLP", "library": "nnx", "task": pumps, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Moths.


@functools.cache
def moths() -> Task:
    """Twelve measures of a moth that five hidden numbers make, and which of six kinds it is."""
    rng = np.random.default_rng(1804)
    hidden, mixing = rng.standard_normal((2560, 5)), rng.standard_normal((5, 12)) / 2
    x = hidden @ mixing + 0.3 * np.sin(2 * hidden @ mixing) + 0.1 * rng.standard_normal((2560, 12))
    score = hidden[:, 0] * hidden[:, 1] + hidden[:, 2] - 0.6 * np.abs(hidden[:, 3]) + hidden[:, 4]
    which = np.digitize(score, np.quantile(score, np.arange(1, 6) / 6))
    train, test = parted(standard(x), which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Moths(Linears):
    """Linear layers, whose outputs are multiplied by a scale."""

    scale: jax.Array

    def __init__(self, depth: int, act: Any, key: Any) -> None:
        super().__init__((12, *[44] * depth, 6), act, key)
        self.scale = jnp.ones(6)

    def __call__(self, x: Any) -> Any:
        """Logits of the kinds."""
        return self.scale * super().__call__(x)


@functools.cache
def _moths(depth: int, act: Any) -> tuple[Any, Any]:
    init, apply = of_equinox(lambda key: Moths(depth, act, key))
    return init, of_classes(apply)


def lured(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jax.nn.silu,
    **rest: Any,
) -> Network:
    """The kind of a moth, by layers whose kernels and biases are uniform, as in PyTorch."""
    init, loss = _moths(depth, act)
    own = {"kind": "moths MLP", "library": "Equinox", "task": moths, "steps": 300}
    return network(name, loss, init, **own | {"rates": (3e-3, 8e-3)} | rest)


# Ropes.


@functools.cache
def ropes() -> Task:
    """Eight numbers of a rope, and the load at which it breaks; standardized."""
    rng = np.random.default_rng(1805)
    x = rng.standard_normal((2048, 8))
    y = 0.8 * x[:, 0] + 0.6 * np.minimum(x[:, 1], x[:, 2]) + 0.5 * np.exp(-(x[:, 3] ** 2))
    y += 0.5 * x[:, 4] * x[:, 5] - 0.4 * np.tanh(2 * x[:, 6] + x[:, 7])
    train, test = parted(x, standard(y + 0.06 * rng.standard_normal(2048)))
    return Task(train, test, (float(np.var(test[1])),))


@functools.cache
def _ropes(depth: int, act: Any, dtype: Any) -> tuple[Any, Any]:
    def forward(x: Any) -> Any:
        for number in range(depth):
            x = act(hk.Linear(32, name=f"strand_{number}")(x))
        return hk.Linear(1, name="load")(x)[:, 0]

    net = hk.without_apply_rng(hk.transform(forward))

    def loss(p: Any, batch: Any) -> Any:
        p, x = jax.tree.map(lambda a: a.astype(dtype), (p, batch[0]))
        return jnp.mean((net.apply(p, x).astype(jnp.float32) - batch[1]) ** 2)

    return lambda key: net.init(key, jnp.zeros((2, 8))), loss


def hauled(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jnp.tanh,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """The load at which a rope breaks, computed in a type."""
    init, loss = _ropes(depth, act, dtype)
    own = {"kind": "ropes MLP", "library": "Haiku", "task": ropes, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)
