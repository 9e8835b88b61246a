"""Courses of time: buoys by recurrent networks, skates by a neural ODE, canals by a PINN."""

import functools
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import lecun, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, regression
from benchmarks.real_zoo.sequences import of_equinox, of_nnx

WAVES = 40

# Buoys.


@functools.cache
def buoys() -> Task:
    """Wind and current at forty times, and how far a buoy has drifted then; standardized."""
    rng = np.random.default_rng(1831)
    x = rng.standard_normal((1536, WAVES, 2))
    drift = (x[..., 0] + 0.5 * np.abs(x[..., 1])) @ (0.96 ** np.arange(WAVES)[::-1])
    train, test = parted(x, standard(drift))
    return Task(train, test, (float(np.var(test[1])),))


class Buoys(eqx.Module):
    """A GRU, and the drift from its last state."""

    cell: eqx.nn.GRUCell
    drift: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.cell, self.drift = eqx.nn.GRUCell(2, 24, key=one), eqx.nn.Linear(24, 1, key=two)

    def __call__(self, x: Any) -> Any:
        """How far a buoy has drifted."""
        state = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(24), x)[0]
        return self.drift(state)[0]


@functools.cache
def drifted(name: str) -> Network:
    """The drift of a buoy by a GRU."""
    init, apply = of_equinox(Buoys)
    own = {"kind": "GRU of buoys", "library": "Equinox", "task": buoys, "steps": 250}
    return regression(name, init, apply, **own, rates=(5e-3, 1.5e-2))


@functools.cache
def swept(name: str) -> Network:
    """The drift of a buoy by a plain recurrent network of ReLU that starts as the identity."""

    def forward(x: Any) -> Any:
        states = hk.get_parameter("states", (24, 24), init=hk.initializers.Identity(0.97))
        x = hk.Linear(24, w_init=hk.initializers.RandomNormal(0.1), name="inputs")(x)
        step = lambda h, x: (jax.nn.relu(x + h @ states), None)  # noqa: E731
        state = jax.lax.scan(step, jnp.zeros((len(x), 24)), x.swapaxes(0, 1))[0]
        return hk.Linear(1, name="drift")(state)[:, 0]

    net = hk.without_apply_rng(hk.transform(forward))
    init = lambda key: net.init(key, jnp.zeros((2, WAVES, 2)))  # noqa: E731
    own = {"kind": "RNN of buoys", "library": "Haiku", "task": buoys, "steps": 250}
    return regression(name, init, net.apply, **own, rates=(2e-3, 6e-3))


@functools.cache
def summed(name: str) -> Network:
    """The drift of a buoy by two layers of linear recurrences with decays that are learned."""

    def init(key: Any) -> Any:
        one, two, *keys = jax.random.split(key, 4)
        into, out = stack(one, (2, 24))[0], stack(two, (24, 1))[0]
        blocks = [
            {
                "decay": jnp.linspace(1.0, 5.0, 24),
                "inputs": lecun()(k, (24, 24)),
                "outputs": lecun()(jax.random.fold_in(k, 1), (24, 24)),
            }
            for k in keys
        ]
        return {"into": into, "blocks": blocks, "drift": out}

    def mixed(p: Any, x: Any) -> Any:
        decay = jax.nn.sigmoid(p["decay"])
        inputs = (1 - decay) * (x @ p["inputs"])
        steps = (jnp.broadcast_to(decay, inputs.shape), inputs)
        join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])  # noqa: E731
        states = jax.lax.associative_scan(join, steps, axis=1)[1]
        return x + jax.nn.gelu(states) @ p["outputs"]

    def apply(p: Any, x: Any) -> Any:
        x = jax.nn.gelu(x @ p["into"]["w"] + p["into"]["b"])
        for block in p["blocks"]:
            x = mixed(block, x)
        return (x[:, -1] @ p["drift"]["w"] + p["drift"]["b"])[:, 0]

    own = {"kind": "linear recurrence of buoys", "library": "plain", "task": buoys, "steps": 250}
    return regression(name, init, apply, **own, rates=(5e-3, 1.5e-2))


# Skates.


@functools.cache
def skates() -> Task:
    """Where a skater is in a curved rink and how fast, and both a while later."""
    rng = np.random.default_rng(1832)
    start = rng.uniform(-1.2, 1.2, (1536, 4))
    x, v = start[:, :2], start[:, 2:]
    for _ in range(200):
        bowl = -x * (0.5 + (x**2).sum(1, keepdims=True)) - 0.2 * v
        x, v = x + 0.01 * v, v + 0.01 * (bowl + 0.5 * np.stack([v[:, 1], -v[:, 0]], 1))
    train, test = parted(standard(start), standard(np.concatenate([x, v], 1)))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def skated(name: str) -> Network:
    """Where a skater will be by a neural ODE of ten steps of Heun."""

    class Rink(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first, self.second = nnx.Linear(4, 32, rngs=rngs), nnx.Linear(32, 32, rngs=rngs)
            self.speed = nnx.Linear(32, 4, rngs=rngs)

        def field(self, x: Any) -> Any:
            return self.speed(nnx.softplus(self.second(nnx.tanh(self.first(x)))))

        def __call__(self, x: Any) -> Any:
            for _ in range(10):
                one = 0.1 * self.field(x)
                x = x + (one + 0.1 * self.field(x + one)) / 2
            return x

    init, apply = of_nnx(Rink)
    own = {"kind": "neural ODE of skates", "library": "nnx", "task": skates, "steps": 250}
    return regression(name, init, apply, **own, rates=(3e-3, 8e-3))


# Canals.


def _level(x: Any, of: Any = jnp) -> Any:
    return of.sin(3 * x) + 0.5 * x**2


@functools.cache
def canals() -> Task:
    """Places along a canal, for u'' = 1 - 9 sin 3x with u known at both ends."""
    train, test = parted(np.random.default_rng(1833).uniform(-1, 1, (1536, 1)))
    return Task(train, test, (float(np.var(_level(test[0], np))),))


@functools.cache
def dug(name: str) -> Network:
    """The level of a canal by a physics-informed network."""
    init, apply = of_equinox(
        lambda key: eqx.nn.MLP(1, "scalar", 24, 3, activation=jnp.tanh, key=key)
    )

    def loss(p: Any, batch: Any) -> Any:
        level = lambda x: apply(p, x[None, None])[0]  # noqa: E731
        bend = jax.vmap(jax.grad(jax.grad(level)))(batch[0][:, 0])
        ends = jnp.array([-1.0, 1.0])
        off = jax.vmap(level)(ends) - _level(ends)
        return jnp.mean((bend - 1 + 9 * jnp.sin(3 * batch[0][:, 0])) ** 2) + 20 * jnp.mean(off**2)

    def parts(p: Any, batch: Any) -> Any:
        return (jnp.mean((apply(p, batch[0]) - _level(batch[0][:, 0])) ** 2),)

    own = {"kind": "PINN of canals", "library": "Equinox", "task": canals, "steps": 500}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(3e-3, 8e-3), **own)
