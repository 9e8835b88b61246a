"""Courses of time: glaciers by recurrent networks, foxes by a neural ODE, heat by a PINN."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, regression
from benchmarks.real_zoo.sequences import of_linen

WEEKS = 60

# Glaciers.


@functools.cache
def glaciers() -> Task:
    """Snow and warmth of sixty weeks, and how thick a glacier is then; standardized."""
    rng = np.random.default_rng(1531)
    x = rng.standard_normal((1536, WEEKS, 2))
    kept = 0.95 ** np.arange(WEEKS)[::-1]
    ice = x[..., 0] @ kept - 0.6 * np.maximum(x[..., 1], 0) @ kept
    train, test = parted(x, standard(ice))
    return Task(train, test, (float(np.var(test[1])),))


class Glaciers(nn.Module):
    """An LSTM, and the thickness from its last outputs."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Thicknesses of glaciers."""
        x = nn.RNN(nn.OptimizedLSTMCell(20, name="cell"))(x)
        return nn.Dense(1, name="thick")(x[:, -1])[:, 0]


@functools.cache
def frozen(name: str) -> Network:
    """The thickness of a glacier by an LSTM."""
    init, apply = of_linen(Glaciers(), jnp.zeros((2, WEEKS, 2)))
    own = {"kind": "LSTM of glaciers", "library": "linen", "task": glaciers, "steps": 250}
    return regression(name, init, apply, **own, rates=(5e-3, 1.5e-2))


@functools.cache
def thawed(name: str) -> Network:
    """The thickness of a glacier by a GRU."""

    def forward(x: Any) -> Any:
        core = hk.GRU(20, name="cell")
        outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
        return hk.Linear(1, name="thick")(outputs[:, -1])[:, 0]

    net = hk.without_apply_rng(hk.transform(forward))
    init = lambda key: net.init(key, jnp.zeros((2, WEEKS, 2)))  # noqa: E731
    own = {"kind": "GRU of glaciers", "library": "Haiku", "task": glaciers, "steps": 250}
    return regression(name, init, net.apply, **own, rates=(5e-3, 1.5e-2))


@functools.cache
def rolled(name: str) -> Network:
    """The thickness of a glacier by a plain recurrent network of tanh."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {
            "inputs": 0.1 * jax.random.normal(one, (2, 24)),
            "states": 0.95 * jnp.eye(24),
            "bias": jnp.zeros(24),
            "thick": stack(two, (24, 1))[0],
        }

    def apply(p: Any, x: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            return jnp.tanh(x @ p["inputs"] + state @ p["states"] + p["bias"]), None

        state, _ = jax.lax.scan(step, jnp.zeros((len(x), 24)), x.swapaxes(0, 1))
        return (state @ p["thick"]["w"] + p["thick"]["b"])[:, 0]

    own = {"kind": "RNN of glaciers", "library": "plain", "task": glaciers, "steps": 250}
    return regression(name, init, apply, **own, rates=(1e-3, 3e-3))


# Foxes.


@functools.cache
def foxes() -> Task:
    """Logarithms of how many hares and foxes there are, and those two years later."""
    rng = np.random.default_rng(1532)
    start = rng.uniform(-1, 1, (1536, 2))
    x = start
    for _ in range(200):
        x = x + 0.01 * np.stack([1 - np.exp(x[:, 1]), np.exp(x[:, 0]) - 1], 1)
    train, test = parted(start, x)
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def hunted(name: str, *, act: Callable[[Any], Any] = jax.nn.relu) -> Network:
    """How many hares and foxes there will be, by a neural ODE of twelve steps of Runge-Kutta."""

    def init(key: Any) -> Any:
        return {"field": stack(key, (2, 32, 32, 2))}

    def apply(p: Any, x: Any) -> Any:
        field = lambda x: run_stack(p["field"], x, act)  # noqa: E731
        size = 1 / 6

        def step(x: Any, _: Any) -> Any:
            one = field(x)
            two = field(x + size / 2 * one)
            three = field(x + size / 2 * two)
            four = field(x + size * three)
            return x + size / 6 * (one + 2 * two + 2 * three + four), None

        return jax.lax.scan(step, x, None, length=12)[0]

    own = {"kind": "neural ODE of foxes", "library": "plain", "task": foxes, "steps": 250}
    return regression(name, init, apply, **own, rates=(2e-3, 6e-3))


# Kettles.


def _warmth(x: Any, time: Any, of: Any = jnp) -> Any:
    return of.exp(-time) * of.sin(np.pi * x) + 0.5 * of.exp(-4 * time) * of.sin(2 * np.pi * x)


@functools.cache
def kettles() -> Task:
    """Places and times in a wall whose ends are cold; how warm it is obeys the heat equation."""
    train, test = parted(np.random.default_rng(1533).uniform(0, 1, (1536, 2)))
    return Task(train, test, (float(np.var(_warmth(test[0][:, 0], test[0][:, 1], np))),))


@functools.cache
def heated(name: str, *, depth: int = 3) -> Network:
    """The warmth of a wall by a physics-informed network."""

    def warm(p: Any, x: Any, time: Any) -> Any:
        return run_stack(p["wall"], jnp.stack([2 * x - 1, 2 * time - 1])[None])[0, 0]

    def loss(p: Any, batch: Any) -> Any:
        def lost(x: Any, time: Any) -> Any:
            rise = jax.grad(warm, 2)(p, x, time)
            bend = jax.grad(jax.grad(warm, 1), 1)(p, x, time)
            start = warm(p, x, 0.0) - _warmth(x, 0.0)
            ends = warm(p, 0.0, time) ** 2 + warm(p, 1.0, time) ** 2
            return (rise - bend / jnp.pi**2) ** 2 + 10 * start**2 + 5 * ends

        return jax.vmap(lost)(batch[0][:, 0], batch[0][:, 1]).mean()

    def parts(p: Any, batch: Any) -> Any:
        x, time = batch[0].T
        return (jnp.mean((jax.vmap(lambda x, t: warm(p, x, t))(x, time) - _warmth(x, time)) ** 2),)

    def init(key: Any) -> Any:
        return {"wall": stack(key, (2, *[24] * depth, 1))}

    own = {"kind": "PINN of heat", "library": "plain", "task": kettles, "steps": 300}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(4e-3, 1e-2), **own)


# Looms.


@functools.cache
def looms() -> Task:
    """Six settings of a loom, and the tensions of three threads that hold each other."""
    rng = np.random.default_rng(1534)
    x, mixing = rng.standard_normal((1536, 6)), rng.standard_normal((6, 3)) / 2
    among, pull = 0.6 * rng.standard_normal((3, 3)), np.zeros((1536, 3))
    for _ in range(80):
        pull = 0.5 * pull + 0.5 * np.tanh(pull @ among + x @ mixing)
    train, test = parted(x, standard(pull))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def wound(name: str) -> Network:
    """Tensions from an equilibrium that is found without gradients; one more step has them."""

    def init(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        return {
            "inputs": stack(one, (6, 32))[0],
            "states": 0.4 * jax.random.normal(two, (32, 32)) / 32**0.5,
            "pull": stack(three, (32, 3))[0],
        }

    def layer(p: Any, x: Any, z: Any) -> Any:
        return jnp.tanh(x @ p["inputs"]["w"] + p["inputs"]["b"] + z @ p["states"])

    def apply(p: Any, x: Any) -> Any:
        fixed, start = jax.lax.stop_gradient(p), jnp.zeros((len(x), 32))
        z = jax.lax.fori_loop(0, 20, lambda _, z: layer(fixed, x, z), start)
        z = layer(p, x, jax.lax.stop_gradient(z))
        return z @ p["pull"]["w"] + p["pull"]["b"]

    own = {"kind": "DEQ of looms", "library": "plain", "task": looms, "steps": 300}
    return regression(name, init, apply, **own, rates=(2e-3, 6e-3))
