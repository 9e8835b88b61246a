"""Plain MLPs of harvests, kilns, currents, trains and violins, of any depth."""

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

# Harvests.


@functools.cache
def harvests() -> Task:
    """Seven numbers of a field and its summer, and what it yields; standardized."""
    rng = np.random.default_rng(1601)
    x = rng.standard_normal((2048, 7))
    rain, heat = x[:, 0], x[:, 1]
    y = rain - 0.4 * rain**2 + 0.6 * np.tanh(heat + x[:, 2]) + 0.5 * np.maximum(x[:, 3], -0.5)
    y += 0.4 * x[:, 4] * x[:, 5] - 0.3 * np.abs(x[:, 6]) + 0.08 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Harvests(nn.Module):
    """Hidden layers of 40 units and a number."""

    depth: int
    act: Callable[[Any], Any]
    draw: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The yield."""
        for number in range(self.depth):
            x = self.act(nn.Dense(40, kernel_init=self.draw, name=f"hidden_{number}")(x))
        return nn.Dense(1, name="yield")(x)[:, 0]


HE, LECUN = nn.initializers.he_normal(), nn.initializers.lecun_normal()


@functools.cache
def _harvests(depth: int, act: Any, draw: Any) -> tuple[Any, Any]:
    init, apply = of_linen(Harvests(depth, act, draw), jnp.zeros((2, 7)))
    return init, lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)


def reaped(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nn.relu,
    draw: Any = LECUN,
    **rest: Any,
) -> Network:
    """The yield of a field."""
    init, loss = _harvests(depth, act, draw)
    own = {"kind": "harvests MLP", "library": "linen", "task": harvests, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Kilns.


@functools.cache
def kilns() -> Task:
    """Eight readings of a kiln, and which of four flaws its bricks have."""
    rng = np.random.default_rng(1602)
    x = rng.standard_normal((2560, 8))
    heat = x[:, 0] + 0.6 * np.abs(x[:, 1]) + 0.5 * x[:, 2] * x[:, 3]
    soak = x[:, 4] - 0.7 * np.maximum(x[:, 5], 0) + 0.5 * np.sin(1.5 * x[:, 6]) + 0.3 * x[:, 7]
    flaw = 2 * (heat > np.median(heat)) + (soak > np.median(soak))
    train, test = parted(x, flaw.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


@functools.cache
def _kilns(depth: int, act: Any, norm: bool) -> tuple[Any, Any]:
    class Kilns(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = itertools.pairwise((8, *[44] * depth))
            self.bricks = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in sizes)
            count = depth if norm else 0
            self.norms = nnx.List(nnx.LayerNorm(44, rngs=rngs) for _ in range(count))
            self.flaw = nnx.Linear(44, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for number, layer in enumerate(self.bricks):
                x = layer(x)
                x = act(self.norms[number](x) if norm else x)
            return self.flaw(x)

    init, apply = of_nnx(Kilns)
    return init, of_classes(apply)


def baked(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jnp.tanh,
    norm: bool = False,
    **rest: Any,
) -> Network:
    """The flaw of a kiln's bricks, maybe with norms before units are activated."""
    init, loss = _kilns(depth, act, norm)
    own = {"kind": "kilns MLP", "library": "nnx", "task": kilns, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Currents.


@functools.cache
def currents() -> Task:
    """Six numbers of wind, tide and shore, and two parts of a current; standardized."""
    rng = np.random.default_rng(1603)
    x = rng.standard_normal((2048, 6))
    drive = x[:, 0] + 0.5 * np.tanh(2 * x[:, 1])
    shore = 0.6 * x[:, 2] - 0.5 * np.abs(x[:, 3])
    y = np.stack([drive + shore * x[:, 4], shore + 0.6 * np.sin(drive) - 0.4 * x[:, 5]], 1)
    train, test = parted(x, standard(y + 0.05 * rng.standard_normal(y.shape)))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def _currents(depth: int, act: Any) -> tuple[Any, Any]:
    init, apply = of_equinox(lambda key: Linears((6, *[40] * depth, 2), act, key))
    return init, lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)


def drifted(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jax.nn.silu,
    **rest: Any,
) -> Network:
    """A current, by layers whose kernels and biases are uniform, as in PyTorch."""
    init, loss = _currents(depth, act)
    own = {"kind": "currents MLP", "library": "Equinox", "task": currents, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Trains.


@functools.cache
def trains() -> Task:
    """Ten numbers of a train and its line, and in which of three ways it's late."""
    rng = np.random.default_rng(1604)
    x = rng.standard_normal((2560, 10))
    wait = x[:, 0] + 0.8 * x[:, 1] * (x[:, 2] > 0) - 0.6 * x[:, 3] + 0.5 * np.abs(x[:, 4])
    wait += 0.4 * np.tanh(2 * x[:, 5]) + 0.3 * x[:, 6] * x[:, 7] + 0.3 * x[:, 8] - 0.2 * x[:, 9]
    way = np.digitize(wait, np.quantile(wait, [1 / 3, 2 / 3]))
    train, test = parted(x, way.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


@functools.cache
def _trains(depth: int, act: Any) -> tuple[Any, Any]:
    net = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([*[32] * depth, 3], activation=act, name="train")(x))
    )
    return lambda key: net.init(key, jnp.zeros((2, 10))), of_classes(net.apply)


def delayed(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jax.nn.elu,
    **rest: Any,
) -> Network:
    """The way in which a train is late."""
    init, loss = _trains(depth, act)
    own = {"kind": "trains MLP", "library": "Haiku", "task": trains, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Violins.


@functools.cache
def violins() -> Task:
    """Five numbers of a violin and its bow, and how loud a tone is; standardized."""
    rng = np.random.default_rng(1605)
    x = rng.standard_normal((2048, 5))
    y = np.tanh(1.5 * x[:, 0]) + 0.6 * x[:, 1] * x[:, 2] + 0.5 * np.cos(2 * x[:, 3])
    y += 0.5 * x[:, 4] - 0.3 * x[:, 0] * x[:, 4] + 0.08 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


@functools.cache
def _violins(act: Any, unit: float, dtype: Any) -> Callable[[Any, Any], Any]:
    def loss(p: Any, batch: Any) -> Any:
        p, x = jax.tree.map(lambda a: a.astype(dtype), (p, batch[0]))
        loud = run_stack(p, x, act)[:, 0].astype(jnp.float32)
        return unit * jnp.mean((loud - batch[1]) ** 2)

    return loss


def bowed(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jnp.tanh,
    unit: float = 1.0,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """The loudness of a tone, computed in a type; its loss is in some unit."""

    def init(key: Any) -> Any:
        return stack(key, (5, *[36] * depth, 1))

    loss = _violins(act, unit, dtype)
    own = {"kind": "violins MLP", "library": "plain", "task": violins, "steps": 300}
    own = own | {"parts": lambda p, b: (loss(p, b) / unit,), "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, loss=loss, **own | rest)
