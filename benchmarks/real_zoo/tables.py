"""Columns, sets, molecules, routed rows, and an equation on a square."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_equinox, of_nnx

# What columns are in as they come: dollars, years, a share, square feet, a year, a rate.
MEANS = np.array([6e4, 45.0, 0.5, 1.8e3, 1985.0, 0.03], np.float32)
SPREADS = np.array([2.5e4, 15.0, 0.2, 7e2, 20.0, 0.01], np.float32)


@functools.cache
def _houses() -> Task:
    """Six numbers and three categories, all standardized, and a price."""
    rng = np.random.default_rng(81)
    x, kinds = rng.standard_normal((2560, 6)), rng.integers(0, 6, (2560, 3)).astype(np.int32)
    worth = rng.standard_normal((3, 6))
    y = 0.8 * x[:, 0] + np.tanh(2 * x[:, 3]) - 0.6 * np.abs(x[:, 1]) + 0.7 * x[:, 2] * x[:, 4]
    y += worth[0][kinds[:, 0]] + 0.6 * worth[1][kinds[:, 1]] * x[:, 5]
    y += 0.1 * rng.standard_normal(2560)
    train, test = parted(x, kinds, (y - y.mean()) / y.std())
    return Task(train, test, (float(np.var(test[2])),))


def tabular(
    name: str,
    *ails: str,
    depth: int = 3,
    scale: float = 1.4,
    activation: str = "relu",
    raw: bool = False,
    price: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """Embeddings of categories and an MLP; columns `raw` or not, the price in its unit."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, kinds: Any) -> Any:
            x = MEANS + SPREADS * x if raw else x
            for number in range(3):
                own = nn.Embed(6, 4, embedding_init=nn.initializers.normal(0.5))
                x = jnp.concatenate([x, own(kinds[:, number])], -1)
            for number in range(depth):
                own = {"kernel_init": gaussian(scale), "name": f"hidden_{number}"}
                x = getattr(nn, activation)(nn.Dense(64, **own)(x))
            return nn.Dense(1, kernel_init=gaussian(1.0), name="head")(x)[:, 0]

    module = Model()

    def loss(p: Any, batch: Any) -> Any:
        guess = module.apply({"params": p}, *batch[:2])
        return jnp.mean((guess - price[0] - price[1] * batch[2]) ** 2)

    example = jnp.zeros((2, 6)), jnp.zeros((2, 3), jnp.int32)
    return Network(
        name=name,
        init=lambda key: module.init(key, *example)["params"],
        loss=loss,
        parts=lambda p, batch: (loss(p, batch) / price[1] ** 2,),
        ails=ails,
        **{"kind": "tabular", "library": "linen", "task": _houses, "steps": 500} | rest,
    )


@functools.cache
def _samples() -> Task:
    """Up to forty points of the plane, which are there, and how far apart they are."""
    rng = np.random.default_rng(82)
    spread, middle = rng.uniform(0.2, 1.8, (2048, 1, 1)), 0.5 * rng.standard_normal((2048, 1, 2))
    points = middle + spread * rng.standard_normal((2048, 40, 2))
    there = (np.arange(40) < rng.integers(15, 41, (2048, 1))).astype(np.float64)
    train, test = parted(points, there, (spread[:, 0, 0] - 1.0) / 0.46)
    return Task(train, test, (float(np.var(test[2])),))


class DeepSets(eqx.Module):
    """Each by itself, their mean or sum, and what that says; for one set."""

    each: list[Any]
    all: list[Any]
    activation: Any
    total: bool

    def __init__(self, key: Any, depth: int, scale: float, activation: Any, total: bool) -> None:
        keys = iter(jax.random.split(key, 2 * depth + 6))

        def dense(a: int, b: int) -> Any:
            normal = scale * jax.random.normal(next(keys), (b, a)) / a**0.5
            layer = eqx.nn.Linear(a, b, key=next(keys))
            return eqx.tree_at(lambda one: one.weight, layer, normal)

        self.each = [dense(32 if number else 2, 32) for number in range(depth)]
        self.all = [dense(32, 32), dense(32, 1)]
        self.activation, self.total = activation, total

    def __call__(self, points: Any, there: Any) -> Any:
        """What is said of `[points, 2]`."""
        x = points
        for layer in self.each:
            x = self.activation(jax.vmap(layer)(x))
        x = (x * there[:, None]).sum(0)
        x = x if self.total else x / there.sum()
        return self.all[1](self.activation(self.all[0](x)))[0]


def deep_sets(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.4,
    activation: Any = jax.nn.relu,
    total: bool = False,
    unit: float = 1.0,
    **rest: Any,
) -> Network:
    """How far apart a set's points are; the points in `unit`."""
    init, apply = of_equinox(lambda key: DeepSets(key, depth, scale, activation, total))
    own = {"kind": "deep sets", "library": "Equinox", "task": _samples, "ails": ails}
    made = lambda p, points, there: apply(p, unit * points, there)  # noqa: E731
    return regression(name, init, made, **{"steps": 400} | own | rest)


@functools.cache
def _molecules() -> Task:
    """Ten atoms of four sorts, which are bound to which, and an energy."""
    rng = np.random.default_rng(83)
    sorts = rng.integers(0, 4, (1536, 10))
    bonds = np.triu(rng.random((1536, 10, 10)) < 0.25, 1)
    bonds[:, np.arange(9), np.arange(1, 10)] = True
    bonds = bonds | bonds.transpose(0, 2, 1)
    table = rng.standard_normal((4, 4))
    pairs = (table + table.T)[sorts[:, :, None], sorts[:, None]]
    energy = (pairs * bonds).sum((1, 2)) + rng.standard_normal(4)[sorts].sum(1)
    made = (sorts.astype(np.int32), bonds.astype(np.float64))
    train, test = parted(*made, (energy - energy.mean()) / energy.std())
    return Task(train, test, (float(np.var(test[2])),))


def molecule(
    name: str,
    *ails: str,
    depth: int = 2,
    skip: bool = True,
    mean: bool = True,
    **rest: Any,
) -> Network:
    """Messages along bonds, added or averaged, and an energy."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            kernel = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
            self.sorts = nnx.Embed(4, 32, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
            make = lambda: nnx.Linear(32, 32, kernel_init=kernel, rngs=rngs)  # noqa: E731
            self.messages = nnx.List(make() for _ in range(depth))
            self.own = nnx.List(make() for _ in range(depth))
            self.head = nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, sorts: Any, bonds: Any) -> Any:
            x = self.sorts(sorts)
            bonds = bonds / bonds.sum(-1, keepdims=True) if mean else bonds
            for message, own in zip(self.messages, self.own, strict=True):
                if skip:
                    x = x + nnx.relu(bonds @ message(x) + own(x)) / depth**0.5
                else:
                    x = nnx.relu(bonds @ message(x))
            return self.head(x.sum(1) / 10)[:, 0]

    init, apply = of_nnx(Model)

    own = {"kind": "molecule", "library": "nnx", "task": _molecules, "ails": ails}
    return regression(name, init, apply, **{"steps": 500} | own | rest)


@functools.cache
def _regions() -> Task:
    """Eight numbers; two say which of four maps makes the answer of the rest."""
    rng = np.random.default_rng(84)
    x = rng.standard_normal((2560, 8))
    maps = rng.standard_normal((4, 8)) / 8**0.5
    y = (x * maps[2 * (x[:, 0] > 0) + (x[:, 1] > 0)]).sum(1)
    train, test = parted(x, y / y.std())
    return Task(train, test, (float(np.var(test[1])),))


def routed(
    name: str,
    *ails: str,
    scale: float = 1.4,
    bias: float = 0.0,
    router: float = 0.1,
    chosen: int = 2,
    **rest: Any,
) -> Network:
    """A mixture of six experts of which the `chosen` likeliest answer, weighed by the router."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "router": router * jax.random.normal(keys[0], (8, 6)) / 8**0.5,
            "experts": {
                "up": scale * jax.random.normal(keys[1], (6, 8, 24)) / 8**0.5,
                "bias": jnp.full((6, 24), bias),
                "down": jax.random.normal(keys[2], (6, 24)) / 24**0.5,
            },
            "offset": jnp.zeros(()),
        }

    def apply(p: Any, x: Any) -> Any:
        shares = jax.nn.softmax(x @ p["router"])
        least = jax.lax.top_k(shares, chosen)[0][:, -1:]
        shares = jnp.where(shares >= least, shares, 0.0)
        own = p["experts"]
        h = jax.nn.relu(jnp.einsum("bi,eij->bej", x, own["up"]) + own["bias"])
        answers = jnp.einsum("bej,ej->be", h, own["down"])
        return (shares * answers).sum(-1) / shares.sum(-1) + p["offset"]

    own = {"kind": "mixture of experts", "library": "plain", "task": _regions, "ails": ails}
    return regression(name, init, apply, **{"steps": 600} | own | rest)


@functools.cache
def _plate() -> Task:
    """Points of a square, for u_xx + u_yy = -f, u = 0 at the edge; chance is u = 0."""
    points = np.random.default_rng(85).uniform(0, 1, (2048, 2))
    train, test = parted(points)
    return Task(train, test, (float(np.mean(_heat(test[0]) ** 2)),))


def _heat(points: Any) -> Any:
    waves = np if isinstance(points, np.ndarray) else jnp
    return waves.sin(np.pi * points[..., 0]) * waves.sin(2 * np.pi * points[..., 1])


def plate(
    name: str,
    *ails: str,
    depth: int = 3,
    scale: float = 1.0,
    side: float = 1.0,
    activation: Any = jnp.tanh,
    **rest: Any,
) -> Network:
    """A PINN of the heat in a plate that is `side` long; its equation is made dimensionless."""

    class Plate(eqx.Module):
        layers: list[Any]

        def __init__(self, key: Any) -> None:
            self.layers = stack(key, (2,) + (32,) * depth + (1,), scale)

        def __call__(self, point: Any) -> Any:
            def u(place: Any) -> Any:
                edge = 16 * jnp.prod(place / side * (1 - place / side))
                return edge * forward(self.layers, place, activation)[0]

            place = side * point
            return side**2 * jnp.trace(jax.hessian(u)(place))

    init, apply = of_equinox(Plate)

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((apply(p, batch[0]) + _heat(batch[0])) ** 2)

    own = {"kind": "PINN", "library": "Equinox", "task": _plate, "ails": ails, "steps": 600}
    return network(name, loss, init, **own | rest)
