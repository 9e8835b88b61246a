"""Estimates beside their doubt: functions from a few points, times, quantiles, actions, forces."""

import functools
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.network import Network, Task, network


def parted(*arrays: Any) -> Any:
    """Three quarters to train on, a quarter to judge by; floats of 32 bits."""
    cut = 3 * len(arrays[0]) // 4
    arrays = tuple(x.astype(np.float32) if x.dtype == np.float64 else x for x in arrays)
    return tuple(x[:cut] for x in arrays), tuple(x[cut:] for x in arrays)


# Neural processes.


@functools.cache
def _waves() -> Task:
    """Sines of which some points are known, in one of ten none; what they are elsewhere."""
    rng = np.random.default_rng(51)
    count, points = 1280, 12
    size, phase = rng.uniform(0.5, 1.5, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    known, asked = rng.uniform(-2, 2, (2, count, points))
    there = np.arange(points) < rng.integers(3, points + 1, (count, 1))
    there[rng.random(count) < 0.1] = False
    heights, answers = (size * np.sin(2 * x + phase) for x in (known, asked))
    train, test = parted(known, heights, there.astype(np.float32), asked, answers)
    return Task(train, test, (float(0.5 * np.log(2 * np.pi * np.e * np.var(test[-1]))),))


class NeuralProcess(nn.Module):
    """Every known point by itself, their mean, and what that says of another point."""

    depth: int = 2
    guarded: bool = True
    code: int = 48

    @nn.compact
    def __call__(self, known: Any, heights: Any, there: Any, asked: Any) -> Any:
        """Means, and what says how far off they may be."""
        kernel = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        x = jnp.stack([known, heights], -1)
        for number in range(self.depth):
            dense = nn.Dense(64, kernel_init=kernel, name=f"encoder_{number}")
            x = nn.relu(dense(x))
        x = nn.Dense(self.code, name="code")(x) * there[..., None]
        total = there.sum(-1)[:, None]
        code = x.sum(1) / (jnp.maximum(total, 1) if self.guarded else total)
        code = jnp.broadcast_to(code[:, None], (*asked.shape, self.code))
        x = jnp.concatenate([code, asked[..., None]], -1)
        for number in range(2):
            x = nn.relu(nn.Dense(64, name=f"decoder_{number}")(x))
        x = nn.Dense(2, name="head")(x)
        return x[..., 0], x[..., 1]


def neural_process(name: str, *ails: str, **settings: Any) -> Network:
    """A conditional neural process; `settings` of `NeuralProcess` or `Network`."""
    fields = ("depth", "guarded", "code")
    module = NeuralProcess(**{k: settings.pop(k) for k in fields if k in settings})

    def loss(p: Any, batch: Any) -> Any:
        mean, raw = module.apply({"params": p}, *batch[:-1])
        log_width = jnp.log(0.1 + 0.9 * jax.nn.softplus(raw))
        z = (batch[-1] - mean) * jnp.exp(-log_width)
        return jnp.mean(0.5 * z**2 + log_width) + 0.5 * np.log(2 * np.pi)

    own = {"kind": "neural process", "library": "linen", "task": _waves, "ails": ails}
    init = lambda key: module.init(key, *[jnp.ones((2, 12))] * 4)["params"]  # noqa: E731
    return network(name, loss, init, **{"steps": 400, "rates": (2e-3, 6e-3)} | own | settings)


# Times until something happens.

SPANS = 8


@functools.cache
def _times() -> Task:
    """Ten numbers, the span in which something happens, and whether it was seen to happen."""
    rng = np.random.default_rng(52)
    x = rng.standard_normal((2560, 10))
    risk = np.tanh(x[:, 0] + x[:, 1] * x[:, 2]) + 0.7 * x[:, 3] - 0.5 * np.abs(x[:, 4])
    place = 3.0 - 2.2 * risk + 0.4 * rng.standard_normal(len(x))
    spans = np.clip(place, 0, SPANS - 1).astype(np.int32)
    ends = rng.integers(2, 3 * SPANS, len(x))
    seen = (spans <= ends).astype(np.float32)
    spans = np.minimum(spans, ends).astype(np.int32)
    train, test = parted(x, spans, seen)
    spans, seen = test[1:]
    chance = 0.0
    for span in range(SPANS):
        there = spans >= span
        met = np.sum((spans == span) * seen)
        share = met / there.sum()
        for part, value in ((share, met), (1 - share, there.sum() - met)):
            chance -= value * np.log(part) / len(spans) if value else 0.0
    return Task(train, test, (float(chance),))


def survival(
    name: str,
    *ails: str,
    depth: int = 2,
    width: int = 48,
    scale: float = 1.4,
    activation: Any = jax.nn.relu,
    last: float = 1.0,
    score: bool = False,
    rare: float = -1.0,
    unit: Any = 1.0,
    stable: bool = True,
    **rest: Any,
) -> Network:
    """Hazards of eight spans by an MLP, or all by one score."""

    def init(key: Any) -> Any:
        ends = 1 if score else SPANS
        layers = stack(key, (10,) + (width,) * depth + (ends,), scale)
        made = {"risk": layers, "spans": jnp.full(SPANS, rare)}
        layers[-1]["w"] *= last
        return made | ({"slopes": jnp.ones(SPANS)} if score else {})

    def loss(p: Any, batch: Any) -> Any:
        x, spans, seen = batch
        logits = forward(p["risk"], jnp.asarray(unit) * x, activation)
        logits = (logits * p["slopes"] if score else logits) + p["spans"]
        places = jnp.arange(SPANS)
        met = (places == spans[:, None]) * seen[:, None]
        past = (places < spans[:, None]) + (places == spans[:, None]) * (1 - seen[:, None])
        if stable:
            losses = met * jax.nn.softplus(-logits) + past * jax.nn.softplus(logits)
        else:
            hazard = jax.nn.sigmoid(logits)
            losses = -met * jnp.log(hazard) - past * jnp.log(1 - hazard)
        return losses.sum(-1).mean()

    own = {"kind": "survival", "library": "plain", "task": _times, "ails": ails}
    return network(name, loss, init, **{"steps": 400, "rates": (4e-3, 1.2e-2)} | own | rest)


# Quantiles.

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95], np.float32)


def _pinball(above: Any) -> Any:
    return jnp.maximum(LEVELS * above, (LEVELS - 1) * above).mean()


@functools.cache
def _prices() -> Task:
    """Six numbers and a price whose spread depends on them, standardized."""
    rng = np.random.default_rng(53)
    x = rng.standard_normal((2560, 6))
    y = 1.5 * np.sin(x[:, 0]) + x[:, 1] * (x[:, 2] > 0) + 0.6 * x[:, 3]
    y += 0.3 * np.exp(0.5 * x[:, 4]) * rng.standard_normal(len(x))
    train, test = parted(x, (y - y.mean()) / y.std())
    best = np.quantile(test[1], LEVELS).astype(np.float32)
    return Task(train, test, (float(_pinball(test[1][:, None] - best)),))


def quantiles(
    name: str,
    *ails: str,
    ordered: bool = False,
    spare: bool = False,
    positive: bool = False,
    bias: float = 0.0,
    price: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """Five quantiles of a price, in units of `price`: what is added, and the spread."""

    def made(x: Any) -> Any:
        kernel = hk.initializers.VarianceScaling(2.0, "fan_in", "normal")
        for number in range(2):
            x = jax.nn.relu(hk.Linear(64, w_init=kernel, name=f"hidden_{number}")(x))
        b_init = hk.initializers.Constant(bias)
        if spare:
            hk.Linear(3, name="spare")(x)
        y = hk.Linear(len(LEVELS), b_init=b_init, name="head")(x)
        if ordered:
            y = jnp.cumsum(jnp.concatenate([y[:, :1], jax.nn.softplus(y[:, 1:])], -1), -1)
        return jax.nn.relu(y) if positive else y

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        target = price[0] + price[1] * batch[1][:, None]
        return _pinball(target - model.apply(p, batch[0]))

    own = {"kind": "quantiles", "library": "Haiku", "task": _prices, "ails": ails, "steps": 300}
    return Network(
        name=name,
        init=lambda key: model.init(key, jnp.zeros((2, 6))),
        loss=loss,
        parts=lambda p, batch: (loss(p, batch) / price[1],),
        **own | rest,
    )


# Actions between two bounds.


@functools.cache
def _actions() -> Task:
    """What is observed, and an expert's two actions; where it would go too far, they are 1."""
    rng = np.random.default_rng(54)
    x = rng.standard_normal((1920, 8))
    kernels = rng.standard_normal((2, 8, 2)) / 8**0.5
    drive = np.tanh(x @ kernels[0]) - np.abs(x @ kernels[1]) + 0.6
    actions = np.clip(np.tanh(drive) + 0.05 * rng.standard_normal(drive.shape), -1, 1)
    train, test = parted(x, actions)
    return Task(train, test, (float(np.mean(np.var(test[1], axis=0))),))


def squashed_policy(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.4,
    activation: Any = jax.nn.relu,
    last: float = 1.0,
    imitated: bool = True,
    **rest: Any,
) -> Network:
    """A Gaussian squashed by tanh, by likelihood of an expert's actions; judged by its center.

    If not `imitated` by likelihood, the center's squared error is what is trained.
    """

    def init(key: Any) -> Any:
        first, second = jax.random.split(key)
        layers = stack(first, (8,) + (48,) * depth, scale)
        head = stack(second, (48, 2))[0]
        return {
            "trunk": layers,
            "center": head | {"w": last * head["w"]},
            "log_width": jnp.full(2, -0.5),
        }

    def center(p: Any, x: Any) -> Any:
        h = activation(forward(p["trunk"], x, activation))
        return h @ p["center"]["w"] + p["center"]["b"]

    def error(p: Any, batch: Any) -> Any:
        return jnp.mean((jnp.tanh(center(p, batch[0])) - batch[1]) ** 2)

    def loss(p: Any, batch: Any) -> Any:
        if not imitated:
            return error(p, batch)
        actions = jnp.clip(batch[1], -0.99, 0.99)
        z = (jnp.arctanh(actions) - center(p, batch[0])) * jnp.exp(-p["log_width"])
        volume = jnp.log(1 - actions**2)
        return jnp.mean(0.5 * z**2 + p["log_width"] + volume) + 0.5 * np.log(2 * np.pi)

    own = {"kind": "squashed policy", "library": "plain", "task": _actions, "ails": ails}
    parts = lambda p, batch: (error(p, batch),)  # noqa: E731
    return Network(name=name, init=init, loss=loss, parts=parts, **{"steps": 300} | own | rest)


# Forces between particles.


@functools.cache
def _forces() -> Task:
    """Places and charges of five particles, and the forces between them."""
    rng = np.random.default_rng(55)
    places = rng.standard_normal((1280, 5, 3))
    charges = rng.choice([-1.0, 1.0], (1280, 5))
    apart = places[:, :, None] - places[:, None]
    strength = charges[:, :, None] * charges[:, None] / ((apart**2).sum(-1) + 1)
    forces = (apart * strength[..., None]).sum(2)
    train, test = parted(places, charges, forces)
    return Task(train, test, (float(np.mean(np.var(test[2], axis=0))),))


def equivariant(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.0,
    last: float = 0.01,
    activation: Any = jax.nn.silu,
    unit: float = 1.0,
    directed: str = "",
    **rest: Any,
) -> Network:
    """An E(n) equivariant graph network; what moves its particles is the force.

    `directed` differences of places have length one: "guarded", or "unguarded" at length zero.
    """
    width = 24

    def init(key: Any) -> Any:
        made = {"charge": stack(jax.random.fold_in(key, 99), (1, width))[0]}
        for number in range(depth):
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            moves = stack(keys[1], (width, width, 1), scale)
            moves[-1]["w"] *= last
            made[f"layer_{number}"] = {
                "edges": stack(keys[0], (2 * width + 1, width, width), scale),
                "moves": moves,
                "nodes": stack(keys[2], (2 * width, width, width), scale),
            }
        return made

    def moved(p: Any, places: Any, charges: Any) -> Any:
        start = places
        h = charges[..., None] @ p["charge"]["w"] + p["charge"]["b"]
        for number in range(depth):
            own = p[f"layer_{number}"]
            apart = places[:, :, None] - places[:, None]
            square = jnp.sum(apart**2, -1, keepdims=True)
            pairs = jnp.broadcast_to(h[:, :, None], (*apart.shape[:3], width))
            x = jnp.concatenate([pairs, pairs.swapaxes(1, 2), square], -1)
            edges = activation(forward(own["edges"], x, activation))
            if directed:
                apart = apart / jnp.sqrt(square + (1e-4 if directed == "guarded" else 0.0))
            places = places + jnp.sum(apart * forward(own["moves"], edges, activation), 2)
            x = jnp.concatenate([h, edges.sum(2)], -1)
            h = h + forward(own["nodes"], x, activation)
        return places - start

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((moved(p, unit * batch[0], batch[1]) - unit * batch[2]) ** 2)

    own = {"kind": "equivariant", "library": "plain", "task": _forces, "ails": ails, "steps": 300}
    parts = lambda p, batch: (loss(p, batch) / unit**2,)  # noqa: E731
    return Network(name=name, init=init, loss=loss, parts=parts, **own | rest)
