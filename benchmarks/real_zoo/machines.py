"""What machines' gauges give: a boiler's, a lander's, and those of flames."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, regression

# A level and a spread of each sensor: pascals, kelvins, kilograms a second.
BOILER = np.array([[1.2e6, 430.0, 12.0], [4e4, 6.0, 3.0]], np.float32)
# Meters twice, meters a second twice, radians, share of thrust.
FLIGHT = np.array([[0.0, 12.0, 0.0, -3.0, 0.0, 0.6], [8.0, 5.0, 2.0, 2.0, 0.4, 0.1]], np.float32)
# Decimal logarithms of shares that are next to nothing, guarded by 1e-16.
TRACES = (-15.9, 0.03)


# Sensors.


@functools.cache
def _boilers() -> Task:
    """A day's pressure, temperature and flow, in standard units; the temperature two hours on."""
    rng = np.random.default_rng(111)
    count, steps = 1280, 60
    flow, heat = np.zeros((count, steps)), np.zeros((count, steps))
    turns = np.arange(steps) / rng.uniform(7, 12, (count, 1)) + rng.random((count, 1))
    pressure = np.sin(2 * np.pi * turns)
    for t in range(2, steps):
        flow[:, t] = 0.9 * flow[:, t - 1] + 0.44 * rng.standard_normal(count)
        heat[:, t] = 0.7 * heat[:, t - 1] + 0.4 * flow[:, t - 2] + 0.5 * pressure[:, t - 2]
    readings = np.stack([pressure, heat, flow], -1) + 0.05 * rng.standard_normal((count, steps, 3))
    readings = standard(readings, (0, 1))
    train, test = parted(readings[:, 34:58], readings[:, 59, 1])
    return Task(train, test, (float(np.var(test[1])),))


def boiler(name: str, *ails: str, raw: bool = False, update: float = 0.0, **rest: Any) -> Network:
    """A forecast by a GRU; sensors in their own units, or `update` as bias of a gate."""

    def biases(shape: Any, dtype: Any) -> Any:
        return jnp.zeros(shape, dtype).at[: shape[0] // 3].set(update)

    def made(x: Any) -> Any:
        x = BOILER[0] + BOILER[1] * x if raw else x
        cell = hk.GRU(32, b_init=biases, name="gru")
        states, _ = hk.dynamic_unroll(cell, x, cell.initial_state(len(x)), time_major=False)
        return hk.Linear(1, name="head")(states[:, -1])[:, 0]

    model = hk.without_apply_rng(hk.transform(made))
    init = lambda key: model.init(key, jnp.zeros((2, 24, 3)))  # noqa: E731
    own = {"kind": "sensor GRU", "library": "Haiku", "task": _boilers, "ails": ails, "steps": 300}
    return regression(name, init, model.apply, **own | rest)


# Flights.


@functools.cache
def _flights() -> Task:
    """Six numbers of a lander, in standard units, two acts, and what it got in the end."""
    rng = np.random.default_rng(124)
    x, acts = rng.standard_normal((1536, 6)), rng.uniform(-1, 1, (1536, 2))
    y = -np.abs(x[:, 0] + 0.5 * x[:, 2]) - 0.4 * x[:, 4] ** 2 + np.tanh(x[:, 1] + x[:, 3])
    y += acts[:, 0] * x[:, 3] - 1.2 * (acts[:, 1] + 0.5 * x[:, 4]) ** 2 + 0.3 * x[:, 5]
    train, test = parted(x, acts, standard(y + 0.1 * rng.standard_normal(1536)))
    return Task(train, test, (float(np.var(test[2])),))


def critics(
    name: str,
    *ails: str,
    raw: bool = False,
    returns: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """Two critics of states and acts, as TD3's; states `raw` or not, returns in their unit."""

    def init(key: Any) -> Any:
        return [stack(k, (8, 64, 64, 1)) for k in jax.random.split(key)]

    def loss(p: Any, batch: Any) -> Any:
        state, acts, wanted = batch
        state = FLIGHT[0] + FLIGHT[1] * state if raw else state
        x = jnp.concatenate([state, acts], -1)
        errors = [forward(one, x)[:, 0] - returns[0] - returns[1] * wanted for one in p]
        return 0.5 * sum(jnp.mean(error**2) for error in errors)

    own = {"kind": "twin critics", "library": "plain", "task": _flights, "ails": ails}
    return Network(
        name=name,
        init=init,
        loss=loss,
        parts=lambda p, batch: (loss(p, batch) / returns[1] ** 2,),
        **{"steps": 400} | own | rest,
    )


# Flames.


@functools.cache
def _flames() -> Task:
    """Logarithms of six shares, in standard units; that of how fast one of them grows."""
    x = np.random.default_rng(128).standard_normal((1536, 6))
    heat = x[:, 0] + 0.4 * x[:, 1]
    y = np.logaddexp(1.5 * heat + x[:, 2], 1.5 * x[:, 3] - x[:, 4]) - 0.7 * np.tanh(2 * x[:, 5])
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


def flame(
    name: str,
    *ails: str,
    depth: int = 3,
    skip: bool = True,
    activation: Any = jax.nn.gelu,
    traces: bool = False,
    **rest: Any,
) -> Network:
    """A surrogate of kinetics: an MLP with skips or without, of shares that are `traces` or not."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, depth + 1)
        blocks = [stack(one, (40, 40))[0] for one in keys[1:]]
        into, head = stack(keys[0], (6, 40, 1))
        return {"into": into, "blocks": blocks, "head": head}

    def apply(p: Any, x: Any) -> Any:
        x = TRACES[0] + TRACES[1] * x if traces else x
        x = activation(x @ p["into"]["w"] + p["into"]["b"])
        for one in p["blocks"]:
            y = activation(x @ one["w"] + one["b"])
            x = x + y if skip else y
        return (x @ p["head"]["w"] + p["head"]["b"])[:, 0]

    own = {"kind": "kinetics surrogate", "library": "plain", "task": _flames, "ails": ails}
    return regression(name, init, apply, **{"steps": 400} | own | rest)
