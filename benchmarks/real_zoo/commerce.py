"""What is bought, searched, steered and consumed: houses, results, baskets, cars, power."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

HOUSES = (12, 5, 4)
ITEMS, GROUPS = 40, 5
HOURS, AHEAD = 24, 6


# Houses.


@functools.cache
def _houses() -> Task:
    """A place, a kind, a condition, six numbers in standard units, and the price."""
    rng = np.random.default_rng(901)
    codes = np.stack([rng.integers(0, n, 1536) for n in HOUSES], 1)
    x = rng.standard_normal((1536, 6))
    place, kind, state = (rng.standard_normal(n)[codes[:, i]] for i, n in enumerate(HOUSES))
    y = 0.9 * place + 0.6 * kind + 0.5 * state + 0.9 * x[:, 0] - 0.4 * np.abs(x[:, 1])
    y += 0.5 * x[:, 2] * (kind > 0) + 0.4 * np.tanh(2 * x[:, 3])
    train, test = parted(codes.astype(np.int32), x, standard(y + 0.1 * rng.standard_normal(1536)))
    return Task(train, test, (float(np.var(test[2])),))


class Houses(nn.Module):
    """Embedded codes beside the numbers, two hidden layers, `[rows, 1]` prices."""

    @nn.compact
    def __call__(self, codes: Any, x: Any) -> Any:
        """Prices of rows."""
        parts = [nn.Embed(n, 4, name=f"code_{i}")(codes[:, i]) for i, n in enumerate(HOUSES)]
        x = jnp.concatenate([*parts, x], -1)
        for number in range(2):
            x = nn.relu(nn.Dense(64, name=f"hidden_{number}")(x))
        return nn.Dense(1, name="price")(x)


def houses(
    name: str,
    *ails: str,
    flat: bool = True,
    unit: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """Prices in some unit; not `flat`, `[rows, 1]` are compared with `[rows]`."""
    init, apply = of_linen(Houses(), jnp.zeros((2, 3), int), jnp.zeros((2, 6)))

    def loss(p: Any, batch: Any) -> Any:
        guess = apply(p, *batch[:2])
        guess = guess[:, 0] if flat else guess
        return jnp.mean((guess - unit[0] - unit[1] * batch[2]) ** 2)

    def judged(p: Any, batch: Any) -> Any:
        guess = (apply(p, *batch[:2])[:, 0] - unit[0]) / unit[1]
        return (jnp.mean((guess - batch[2]) ** 2),)

    own = {"kind": "house prices", "library": "linen", "task": _houses, "ails": ails}
    return Network(name=name, init=init, loss=loss, parts=judged, **{"steps": 300} | own | rest)


# Search.


@functools.cache
def _searches() -> Task:
    """A query of four numbers, eight results of six, and which of them was clicked."""
    rng = np.random.default_rng(902)
    query, results = rng.standard_normal((1536, 4)), rng.standard_normal((1536, 8, 6))
    score = 0.8 * (results[..., :4] * query[:, None]).sum(-1) + 1.5 * results[..., 4]
    score = score - np.abs(results[..., 5]) + 0.2 * rng.gumbel(size=score.shape)
    train, test = parted(query, results, score.argmax(1).astype(np.int32))
    return Task(train, test, (float(np.log(8.0)),))


def ranker(
    name: str,
    *ails: str,
    depth: int = 1,
    activation: Any = jax.nn.gelu,
    last: Any = lambda x: x,
    **rest: Any,
) -> Network:
    """Scores of a query's results, through `last`, a softmax, and what was clicked; as ListNet."""

    class Ranker(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.query, self.result = nnx.Linear(4, 48, rngs=rngs), nnx.Linear(6, 48, rngs=rngs)
            self.hidden = nnx.List(nnx.Linear(48, 48, rngs=rngs) for _ in range(depth))
            self.score = nnx.Linear(48, 1, rngs=rngs)

        def __call__(self, query: Any, results: Any) -> Any:
            x = activation(self.query(query)[:, None] + self.result(results))
            for layer in self.hidden:
                x = activation(layer(x))
            return last(self.score(x)[..., 0])

    init, apply = of_nnx(Ranker)

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(apply(p, *batch[:2]), batch[2])

    own = {"kind": "ranker", "library": "nnx", "task": _searches, "ails": ails}
    return network(name, loss, init, **{"steps": 400} | own | rest)


# Baskets.


@functools.cache
def _baskets() -> Task:
    """Two items, and whether they were bought together, which those of a group mostly are."""
    rng = np.random.default_rng(903)
    group = rng.integers(0, GROUPS, ITEMS)
    first, other = rng.integers(0, ITEMS, 4096), rng.integers(0, ITEMS, 4096)
    together = rng.random(4096) < 0.5
    for row in np.flatnonzero(together):
        other[row] = rng.choice(np.flatnonzero(group == group[first[row]]))
    train, test = parted(*(x.astype(np.int32) for x in (first, other, together)))
    return Task(train, test, (entropy(test[2]),))


def baskets(name: str, *ails: str, spread: float = 0.3, other: float = 0.3, **rest: Any) -> Network:
    """Vectors of items, vectors of what is beside them, and samples that are not; as word2vec."""

    def init(key: Any) -> Any:
        one, two = (jax.random.normal(k, (ITEMS, 16)) for k in jax.random.split(key))
        return {"items": spread * one, "beside": other * two}

    def loss(p: Any, batch: Any) -> Any:
        logits = jnp.sum(p["items"][batch[0]] * p["beside"][batch[1]], -1)
        return optax.sigmoid_binary_cross_entropy(logits, batch[2]).mean()

    own = {"kind": "item vectors", "library": "plain", "task": _baskets, "ails": ails}
    settings = {"steps": 400, "rates": (1e-2, 4e-2), "batch": 64}
    return network(name, loss, init, **settings | own | rest)


# Steering.


@functools.cache
def _drives() -> Task:
    """Eight numbers of a lane and a car, and how far the wheel was turned, in spreads."""
    rng = np.random.default_rng(904)
    x = rng.standard_normal((1536, 8))
    turn = 1.2 * x[:, 0] + 0.6 * np.tanh(2 * x[:, 1]) + 0.5 * x[:, 2] * x[:, 3]
    train, test = parted(x, standard(turn + 0.15 * rng.standard_normal(1536)))
    return Task(train, test, (float(0.5 * np.log(2 * np.pi * np.e * np.var(test[1]))),))


def steering(
    name: str,
    *ails: str,
    degrees: float = 1.0,
    bound: Any = lambda x: x,
    spread: float = 0.0,
    **rest: Any,
) -> Network:
    """A normal policy cloned from drivers; angles in `degrees`, log spread from `spread`.

    `bound` is what its mean goes through.
    """

    class Driver(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List(nnx.Linear(a, 48, rngs=rngs) for a in (8, 48))
            self.mean = nnx.Linear(48, 1, rngs=rngs)
            self.log_spread = nnx.Param(jnp.full((), spread))

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = nnx.silu(layer(x))
            return bound(self.mean(x)[:, 0]), self.log_spread[...]

    init, apply = of_nnx(Driver)

    def loss(p: Any, batch: Any) -> Any:
        mean, log_spread = apply(p, batch[0])
        far = (degrees * batch[1] - mean) * jnp.exp(-log_spread)
        return jnp.mean(0.5 * far**2 + log_spread + 0.5 * jnp.log(2 * jnp.pi))

    own = {"kind": "cloned driver", "library": "nnx", "task": _drives, "ails": ails}
    return Network(
        name=name,
        init=init,
        loss=loss,
        parts=lambda p, batch: (loss(p, batch) - jnp.log(degrees),),
        **{"steps": 400} | own | rest,
    )


# Power.


@functools.cache
def _loads() -> Task:
    """A day's hours of load, in standard units, and six hours more."""
    rng = np.random.default_rng(905)
    hours = np.arange(HOURS + AHEAD) + rng.integers(0, 24, (1280, 1))
    size, drift = rng.uniform(0.5, 1.5, (1280, 1)), 0.03 * rng.standard_normal((1280, 1))
    x = size * (np.sin(hours * np.pi / 12) + 0.5 * np.sin(hours * np.pi / 6 + 1))
    x = x + drift * np.arange(HOURS + AHEAD) + 0.05 * rng.standard_normal(x.shape)
    x = standard(x, None)
    train, test = parted(x[:, :HOURS], x[:, HOURS:])
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def beats(
    name: str,
    *ails: str,
    unit: tuple[float, float] = (0.0, 1.0),
    dtype: Any = jnp.float32,
    blocks: int = 3,
    scale: float = 1.4,
    **rest: Any,
) -> Network:
    """Blocks that explain what is left of the past and add to the forecast; as N-BEATS."""

    def init(key: Any) -> Any:
        sizes = (HOURS, 48, 48, HOURS + AHEAD)
        made = [stack(k, sizes, scale) for k in jax.random.split(key, blocks)]
        return jax.tree.map(lambda x: x.astype(dtype), made)

    def error(p: Any, batch: Any) -> Any:
        past, wanted = ((unit[0] + unit[1] * x).astype(dtype) for x in batch)
        guess = jnp.zeros_like(wanted)
        for one in p:
            both = forward(one, past, jax.nn.relu)
            past, guess = past - both[:, :HOURS], guess + both[:, HOURS:]
        return guess - wanted

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean(error(p, batch) ** 2)

    def judged(p: Any, batch: Any) -> Any:
        return (jnp.mean((error(p, batch).astype(jnp.float32) / unit[1]) ** 2),)

    own = {"kind": "N-BEATS", "library": "plain", "task": _loads, "ails": ails}
    return Network(name=name, init=init, loss=loss, parts=judged, **{"steps": 300} | own | rest)
