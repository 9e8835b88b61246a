"""Plain MLPs of tides, leaves, fuel, clouds and bearings, of any depth."""

import functools
import itertools
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


def lecun(size: float = 1.0) -> Callable[[Any, Any], Any]:
    """Draws of so many times LeCun's size."""
    return lambda key, shape: size * jax.random.normal(key, shape) / shape[0] ** 0.5


def glorot(key: Any, shape: Any) -> Any:
    """Draws of Glorot's uniform kernels."""
    most = (6 / sum(shape)) ** 0.5
    return jax.random.uniform(key, shape, minval=-most, maxval=most)


def orthogonal(size: float = 1.0) -> Callable[[Any, Any], Any]:
    """Draws of orthogonal kernels times some factor."""
    return jax.nn.initializers.orthogonal(size)


def stack(key: Any, sizes: tuple[int, ...], draw: Any = None) -> list[dict[str, Any]]:
    """Layers with kernels that are drawn so, and biases of 0."""
    pairs = list(itertools.pairwise(sizes))
    keys, draw = jax.random.split(key, len(pairs)), draw or lecun()
    return [
        {"w": draw(k, pair), "b": jnp.zeros(pair[1])} for k, pair in zip(keys, pairs, strict=True)
    ]


def run_stack(p: list[dict[str, Any]], x: Any, act: Any = jnp.tanh) -> Any:
    """The outputs of such layers; the last isn't activated."""
    for layer in p[:-1]:
        x = act(x @ layer["w"] + layer["b"])
    return x @ p[-1]["w"] + p[-1]["b"]


# Tides.


@functools.cache
def tides() -> Task:
    """Phases of moon and sun, wind and pressure, and the height of water; standardized."""
    rng = np.random.default_rng(1401)
    moon, sun = rng.uniform(-np.pi, np.pi, (2, 2048))
    wind, weight = rng.standard_normal((2, 2048))
    y = np.cos(moon) + 0.45 * np.cos(sun) + 0.3 * np.cos(moon - sun) * np.tanh(wind)
    y += 0.4 * wind - 0.3 * weight + 0.2 * wind * weight + 0.05 * rng.standard_normal(2048)
    train, test = parted(np.stack([moon / 1.8, sun / 1.8, wind, weight], 1), standard(y))
    return Task(train, test, (float(np.var(test[1])),))


@functools.cache
def _tides(act: Any, unit: float, over: bool) -> Callable[[Any, Any], Any]:
    def loss(p: Any, batch: Any) -> Any:
        p = [{**one, "w": one["w"] / len(one["w"]) ** 0.5} for one in p] if over else p
        return unit * jnp.mean((run_stack(p, batch[0], act)[:, 0] - batch[1]) ** 2)

    return loss


def tidal(
    name: str,
    *,
    depth: int = 3,
    width: int = 40,
    act: Callable[[Any], Any] = jnp.tanh,
    draw: Callable[[Any, Any], Any] | None = None,
    unit: float = 1.0,
    over: bool = False,
    **rest: Any,
) -> Network:
    """The height of a tide, its loss in some unit; kernels may be divided by roots of widths."""

    def init(key: Any) -> Any:
        return stack(key, (4, *[width] * depth, 1), draw)

    loss = _tides(act, unit, over)
    own = {"kind": "tides MLP", "library": "plain", "task": tides, "steps": 400}
    own = own | {"parts": lambda p, b: (loss(p, b) / unit,), "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, loss=loss, **own | rest)


# Leaves.


@functools.cache
def leaves() -> Task:
    """Fourteen measures of a leaf, and which of five trees it fell from."""
    rng = np.random.default_rng(1402)
    hidden, mixing = rng.standard_normal((2560, 4)), rng.standard_normal((4, 14)) / 2
    x = np.tanh(hidden @ mixing) + 0.15 * rng.standard_normal((2560, 14))
    score = hidden[:, 0] + 0.6 * hidden[:, 1] * hidden[:, 2] + 0.5 * np.sin(2 * hidden[:, 3])
    tree = np.digitize(score, np.quantile(score, [0.2, 0.4, 0.6, 0.8]))
    train, test = parted(standard(x), tree.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Leaves(nn.Module):
    """Hidden layers of 48 units, and logits."""

    depth: int
    act: Callable[[Any], Any]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the trees."""
        for number in range(self.depth):
            x = self.act(nn.Dense(48, dtype=self.dtype, name=f"hidden_{number}")(x))
        return nn.Dense(5, dtype=self.dtype, name="tree")(x)


@functools.cache
def _leaves(depth: int, act: Any, dtype: Any) -> tuple[Any, Any]:
    init, apply = of_linen(Leaves(depth, act, dtype), jnp.zeros((2, 14)))
    return init, of_classes(apply)


def fallen(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nn.relu,
    dtype: Any = None,
    **rest: Any,
) -> Network:
    """Which tree a leaf fell from, computed in a type."""
    init, loss = _leaves(depth, act, dtype)
    own = {"kind": "leaves MLP", "library": "linen", "task": leaves, "steps": 400}
    return network(name, loss, init, **own | rest)


# Fuel.


@functools.cache
def fuel() -> Task:
    """Seven numbers of a car and a trip, and the fuel it took; standardized."""
    rng = np.random.default_rng(1403)
    x = rng.standard_normal((2048, 7))
    y = 0.7 * x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.6 * np.maximum(x[:, 3], 0)
    y += 0.4 * np.sin(2 * x[:, 4]) - 0.3 * x[:, 5] * np.tanh(x[:, 6])
    train, test = parted(x, standard(y + 0.08 * rng.standard_normal(2048)))
    return Task(train, test, (float(np.var(test[1])),))


@functools.cache
def _fuel(depth: int, act: Any, dtype: Any, unit: float, frozen: bool) -> tuple[Any, Any]:
    class Fuel(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = (7, *[36] * depth)
            self.layers = nnx.List(
                nnx.Linear(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(sizes)
            )
            self.liters = nnx.Linear(36, 1, dtype=dtype, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for number, layer in enumerate(self.layers):
                x = act(layer(x))
                x = jax.lax.stop_gradient(x) if frozen and not number else x
            return self.liters(x)[:, 0]

    init, apply = of_nnx(Fuel)

    def loss(p: Any, batch: Any) -> Any:
        return unit * jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)

    return init, loss


def burned(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nnx.gelu,
    dtype: Any = None,
    unit: float = 1.0,
    frozen: bool = False,
    **rest: Any,
) -> Network:
    """The fuel of a trip, its loss in some unit; the first layer may be frozen."""
    init, loss = _fuel(depth, act, dtype, unit, frozen)
    own = {"kind": "fuel MLP", "library": "nnx", "task": fuel, "steps": 400}
    own = own | {"parts": lambda p, b: (loss(p, b) / unit,), "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, loss=loss, **own | rest)


# Clouds.


@functools.cache
def clouds() -> Task:
    """Ten soundings of the air, and which of four kinds of cloud there is."""
    rng = np.random.default_rng(1404)
    x = rng.standard_normal((2560, 10))
    one = x[:, 0] + 0.8 * np.abs(x[:, 1]) - 0.7 * x[:, 2] + 0.4 * x[:, 3] * x[:, 4]
    two = x[:, 5] - 0.6 * x[:, 6] ** 2 + 0.8 * x[:, 7]
    which = 2 * (one > np.median(one)) + (two > np.median(two))
    train, test = parted(x, which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


@functools.cache
def _clouds(depth: int, act: Any) -> tuple[Any, Any]:
    init, apply = of_equinox(lambda key: eqx.nn.MLP(10, 4, 40, depth, act, key=key))
    return init, of_classes(apply)


def seen(
    name: str, *, depth: int = 3, act: Callable[[Any], Any] = jax.nn.relu, **rest: Any
) -> Network:
    """Which cloud there is, by layers whose kernels and biases are uniform, as in PyTorch."""
    init, loss = _clouds(depth, act)
    own = {"kind": "clouds MLP", "library": "Equinox", "task": clouds, "steps": 400}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Bearings.


@functools.cache
def bearings() -> Task:
    """Twelve bands of a bearing's noise, and how worn two of its parts are; standardized."""
    rng = np.random.default_rng(1405)
    worn, mixing = rng.uniform(-1.5, 1.5, (2048, 2)), rng.standard_normal((2, 12))
    x = np.sin(worn @ mixing + rng.uniform(-1, 1, 12)) + 0.5 * worn @ rng.standard_normal((2, 12))
    x = standard(x + 0.1 * rng.standard_normal(x.shape))
    train, test = parted(x, standard(np.stack([worn[:, 0] * worn[:, 1], worn[:, 1]], 1)))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def _bearings(act: Any, dtype: Any) -> Callable[[Any, Any], Any]:
    def apply(p: Any, x: Any) -> Any:
        p, x = jax.tree.map(lambda a: a.astype(dtype), (p, x))
        return run_stack([*p["part"], p["wear"]], x, act).astype(jnp.float32)

    return lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)


def worn_down(
    name: str,
    *,
    depth: int = 4,
    act: Callable[[Any], Any] = jax.nn.sigmoid,
    draw: Callable[[Any, Any], Any] | None = None,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """How worn bearings are, computed in a type."""

    def init(key: Any) -> Any:
        *part, wear = stack(key, (12, *[32] * depth, 2), draw or glorot)
        return {"part": part, "wear": wear}

    own = {"kind": "bearings MLP", "library": "plain", "task": bearings, "steps": 400}
    return network(name, _bearings(act, dtype), init, **own | {"rates": (3e-3, 8e-3)} | rest)
