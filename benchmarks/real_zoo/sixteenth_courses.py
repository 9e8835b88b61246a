"""Granaries by recurrent networks, membranes by a PINN, swings by a neural ODE."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, regression
from benchmarks.real_zoo.sequences import of_equinox, of_linen

CARTS = 30

# Granaries.


@functools.cache
def granaries() -> Task:
    """Loads of thirty carts and whether each stops here, and how much grain there is then."""
    rng = np.random.default_rng(1631)
    loads, stops = rng.standard_normal((1536, CARTS)), rng.uniform(size=(1536, CARTS)) < 0.4
    grain = (loads * stops) @ (0.97 ** np.arange(CARTS)[::-1])
    x = np.stack([loads, 2.0 * stops - 1], -1)
    train, test = parted(x, standard(grain))
    return Task(train, test, (float(np.var(test[1])),))


class Granaries(nn.Module):
    """An LSTM, and the grain from its last outputs."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Grain in granaries."""
        x = nn.RNN(nn.LSTMCell(24, name="cell"))(x)
        return nn.Dense(1, name="grain")(x[:, -1])[:, 0]


@functools.cache
def stored(name: str) -> Network:
    """The grain of a granary by an LSTM."""
    init, apply = of_linen(Granaries(), jnp.zeros((2, CARTS, 2)))
    own = {"kind": "LSTM of granaries", "library": "linen", "task": granaries, "steps": 300}
    return regression(name, init, apply, **own, rates=(5e-3, 1.5e-2))


@functools.cache
def carted(name: str) -> Network:
    """The grain of a granary by a plain recurrent network of ReLU."""

    def forward(x: Any) -> Any:
        core = hk.VanillaRNN(32, name="cell")
        outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
        return hk.Linear(1, name="grain")(outputs[:, -1])[:, 0]

    net = hk.without_apply_rng(hk.transform(forward))
    init = lambda key: net.init(key, jnp.zeros((2, CARTS, 2)))  # noqa: E731
    own = {"kind": "RNN of granaries", "library": "Haiku", "task": granaries, "steps": 300}
    return regression(name, init, net.apply, **own, rates=(1e-3, 3e-3))


# Membranes.


def _height(x: Any, y: Any, of: Any = jnp) -> Any:
    return of.sin(np.pi * x) * of.sin(np.pi * y)


@functools.cache
def membranes() -> Task:
    """Places of a membrane that is held at its edges; how it bends obeys Poisson's equation."""
    train, test = parted(np.random.default_rng(1632).uniform(0, 1, (1536, 2)))
    return Task(train, test, (float(np.var(_height(*test[0].T, np))),))


class Membranes(nn.Module):
    """Layers of tanh, and a height."""

    depth: int

    @nn.compact
    def __call__(self, place: Any) -> Any:
        """The height at a place."""
        x = 2 * place - 1
        for number in range(self.depth):
            x = jnp.tanh(nn.Dense(24, name=f"layer_{number}")(x))
        return nn.Dense(1, name="height")(x)[0]


@functools.cache
def pressed(name: str, *, depth: int = 3) -> Network:
    """The heights of a membrane by a physics-informed network."""
    init, apply = of_linen(Membranes(depth), jnp.zeros(2))

    def loss(p: Any, batch: Any) -> Any:
        def lost(place: Any) -> Any:
            bends = jax.hessian(lambda at: apply(p, at))(place)
            load = 2 * _height(*place)
            edges = [apply(p, place.at[axis].set(end)) for axis in (0, 1) for end in (0.0, 1.0)]
            return (jnp.trace(bends) / np.pi**2 + load) ** 2 + 3 * jnp.sum(jnp.stack(edges) ** 2)

        return jax.vmap(lost)(batch[0]).mean()

    def parts(p: Any, batch: Any) -> Any:
        heights = jax.vmap(lambda at: apply(p, at))(batch[0])
        return (jnp.mean((heights - _height(*batch[0].T)) ** 2),)

    own = {"kind": "PINN of membranes", "library": "linen", "task": membranes, "steps": 300}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(4e-3, 1e-2), **own)


# Swings.


@functools.cache
def swings() -> Task:
    """The angle and the speed of a swing with friction, and those 1.5 seconds later."""
    rng = np.random.default_rng(1633)
    start = rng.uniform(-1.7, 1.7, (1536, 2))
    x = start
    for _ in range(150):
        x = x + 0.01 * np.stack([x[:, 1], -1.5 * np.sin(x[:, 0]) - 0.2 * x[:, 1]], 1)
    train, test = parted(start, x)
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


class Swings(eqx.Module):
    """Ten steps of Runge-Kutta along a field of two hidden layers."""

    field: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.field = eqx.nn.MLP(2, 2, 32, 2, jnp.tanh, key=key)

    def __call__(self, x: Any) -> Any:
        """The angle and the speed."""
        size = 0.15

        def step(x: Any, _: Any) -> Any:
            one = self.field(x)
            two = self.field(x + size / 2 * one)
            three = self.field(x + size / 2 * two)
            four = self.field(x + size * three)
            return x + size / 6 * (one + 2 * two + 2 * three + four), None

        return jax.lax.scan(step, x, None, length=10)[0]


@functools.cache
def swung(name: str) -> Network:
    """Where a swing will be by a neural ODE."""
    init, apply = of_equinox(Swings)
    own = {"kind": "neural ODE of swings", "library": "Equinox", "task": swings, "steps": 300}
    return regression(name, init, apply, **own, rates=(2e-3, 6e-3))
