"""Plain MLPs as people write them: columns, digits, curves, policies, equations, maps, ratings."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, edited, network, regression
from benchmarks.real_zoo.sequences import of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

READERS, BOOKS = 60, 40


def measured(task: Callable[[], Task], units: dict[int, tuple[Any, Any]]) -> Callable[[], Task]:
    """The same data, some of its arrays in other units: by place what 0 is, and what 1 adds."""

    @functools.cache
    def made() -> Task:
        def change(arrays: Any) -> Any:
            both = [units.get(place, (0.0, 1.0)) for place in range(len(arrays))]
            return tuple(
                (zero + one * x).astype(np.float32) if place in units else x
                for place, (x, (zero, one)) in enumerate(zip(arrays, both, strict=True))
            )

        train, test, chance = task()
        return Task(change(train), change(test), chance)

    return made


def judged_in(base: Network, unit: float) -> Callable[[Any, Any], Any]:
    """A squared error in a unit, brought back to that of the standardized data."""
    return lambda p, batch: (base.loss(p, batch) / unit**2,)


def stored(base: Network, name: str, *ails: str, dtype: Any, **rest: Any) -> Network:
    """A network whose parameters are kept in another type; the base is its twin."""
    made = edited(base, name, *ails, **rest)
    init = lambda key: jax.tree.map(lambda x: x.astype(dtype), made.init(key))  # noqa: E731
    return dataclasses.replace(made, init=init)


def redrawn(base: Network, name: str, *ails: str, pattern: str, draw: Any, **rest: Any) -> Network:
    """A network some of whose parameters are drawn by `draw(key, shape)`; the base is its twin."""

    def init(key: Any) -> Any:
        made, treedef = jax.tree_util.tree_flatten_with_path(base.init(key))
        found = []
        for number, (path, x) in enumerate(made):
            text = jax.tree_util.keystr(path, simple=True, separator="/")
            own = jax.random.fold_in(key, number)
            found.append(draw(own, x.shape) if re.search(pattern, text) else x)
        return jax.tree.unflatten(treedef, found)

    return dataclasses.replace(edited(base, name, *ails, **rest), init=init)


# Concrete.


@functools.cache
def mixtures() -> Task:
    """Eight amounts of what concrete is made of, and how strong it is, in standard units."""
    rng = np.random.default_rng(1001)
    x = rng.standard_normal((1536, 8))
    y = 0.9 * x[:, 0] - 0.8 * x[:, 3] + np.tanh(1.5 * x[:, 7]) + 0.5 * x[:, 0] * x[:, 4]
    y += 0.4 * np.abs(x[:, 1]) - 0.3 * x[:, 5] * x[:, 6] + 0.1 * rng.standard_normal(1536)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Concrete(nn.Module):
    """Hidden layers of 48 rectified units, and a number."""

    depth: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Strengths of rows."""
        for number in range(self.depth):
            dense = nn.Dense(48, kernel_init=gaussian(1.4), name=f"hidden_{number}")
            x = nn.relu(dense(x))
        return nn.Dense(1, name="strength")(x)[:, 0]


def concrete(name: str, *, depth: int) -> Network:
    """How strong concrete is."""
    init, apply = of_linen(Concrete(depth), jnp.zeros((2, 8)))
    own = {"kind": "concrete MLP", "library": "linen", "task": mixtures, "steps": 300}
    return regression(name, init, apply, **own)


# Digits.


def digits(name: str) -> Network:
    """Three hidden layers of tanh, and the digit."""

    class Reader(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = (64, 48, 48, 48)
            self.hidden = nnx.List(
                nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)
            )
            self.classes = nnx.Linear(48, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.hidden:
                x = jnp.tanh(layer(x))
            return self.classes(x)

    init, apply = of_nnx(Reader)
    own = {"kind": "digits MLP", "library": "nnx", "task": tasks.digits, "steps": 200}
    return classifier(name, init, apply, **own)


# Curves.


@functools.cache
def beats() -> Task:
    """Heart beats of forty samples that three numbers make, in standard units."""
    rng = np.random.default_rng(1003)
    time = np.linspace(0, 1, 40)
    place, height, after = rng.uniform(-1, 1, (3, 1536, 1))
    x = (1.5 + height) * np.exp(-(((time - 0.4 - 0.1 * place) / 0.06) ** 2))
    x += (0.6 + 0.5 * after) * np.exp(-(((time - 0.75 - 0.05 * after) / 0.1) ** 2))
    train, test = parted(standard(x + 0.02 * rng.standard_normal(x.shape), None))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


class Curves(eqx.Module):
    """From forty samples to six numbers and back."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.encoder = eqx.nn.MLP(40, 6, 48, 2, jax.nn.elu, key=one)
        self.decoder = eqx.nn.MLP(6, 40, 48, 2, jax.nn.elu, key=two)

    def __call__(self, x: Any) -> Any:
        """The same forty samples."""
        return self.decoder(self.encoder(x))


def curves(name: str) -> Network:
    """An autoencoder of heart beats."""
    init, apply = of_equinox(Curves)

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((apply(p, batch[0]) - batch[0]) ** 2)

    own = {"kind": "autoencoder MLP", "library": "Equinox", "task": beats, "steps": 300}
    return network(name, loss, init, **own)


# Policies.


@functools.cache
def landings() -> Task:
    """Six numbers of a lander, in standard units, and which of four engines a pilot fires."""
    rng = np.random.default_rng(1004)
    x = rng.standard_normal((2048, 6))
    tilt, fall = 1.5 * x[:, 4] + x[:, 5] - 0.7 * x[:, 0] - 0.5 * x[:, 2], x[:, 1] + 1.2 * x[:, 3]
    scores = np.stack([0.3 + 0 * tilt, tilt, -fall * np.cos(0.7 * tilt), -tilt], 1)
    train, test = parted(x, (2 * scores + 0.3 * rng.gumbel(size=scores.shape)).argmax(1))
    return Task(train, test, (entropy(test[1]),))


class Pilot(nn.Module):
    """Two hidden layers of tanh with orthogonal kernels, and logits of four actions."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of engines."""
        for number in range(2):
            kernel = nn.initializers.orthogonal(2**0.5)
            x = jnp.tanh(nn.Dense(32, kernel_init=kernel, name=f"layer_{number}")(x))
        return nn.Dense(4, kernel_init=nn.initializers.orthogonal(0.01), name="engines")(x)


def pilot(name: str) -> Network:
    """A policy that is cloned from a pilot."""
    init, apply = of_linen(Pilot(), jnp.zeros((2, 6)))
    own = {"kind": "policy MLP", "library": "linen", "task": landings, "steps": 300}
    return classifier(name, init, apply, **own, rates=(2e-3, 6e-3))


# Equations.


def _cooled(t: Any) -> Any:
    return np.exp(-t) + np.sin(3 * t)


@functools.cache
def cooling() -> Task:
    """Times from 0 to 2, for u' = -u + sin 3t + 3 cos 3t, u(0) = 1."""
    train, test = parted(np.random.default_rng(1005).uniform(0, 2, (1024, 1)))
    return Task(train, test, (float(np.var(_cooled(test[0]))),))


def heated(name: str) -> Network:
    """A physics-informed MLP of tanh: what is left of an equation, and where it starts."""

    class Heat(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in (1, 32, 32))
            self.last = nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, t: Any) -> Any:
            for layer in self.layers:
                t = jnp.tanh(layer(t))
            return self.last(t)

    init, apply = of_nnx(Heat)

    def loss(p: Any, batch: Any) -> Any:
        t = batch[0]
        u, slope = jax.jvp(lambda t: apply(p, t), (t,), (jnp.ones_like(t),))
        left = slope + u - jnp.sin(3 * t) - 3 * jnp.cos(3 * t)
        return jnp.mean(left**2) + 10 * jnp.mean((apply(p, jnp.zeros((1, 1))) - 1) ** 2)

    def judged(p: Any, batch: Any) -> Any:
        exact = jnp.exp(-batch[0]) + jnp.sin(3 * batch[0])
        return (jnp.mean((apply(p, batch[0]) - exact) ** 2),)

    own = {"kind": "PINN MLP", "library": "nnx", "task": cooling, "steps": 500}
    return Network(name=name, init=init, loss=loss, parts=judged, rates=(4e-3, 1e-2), **own)


# Maps.


@functools.cache
def relief() -> Task:
    """Places of a square from -1 to 1, and how high the ground is, in standard units."""
    rng = np.random.default_rng(1006)
    x = rng.uniform(-1, 1, (3072, 2))
    y = np.sin(3 * x[:, 0] + 1) * np.cos(2 * x[:, 1]) + 0.5 * np.sin(4 * x[:, 1] - 2 * x[:, 0])
    y += np.exp(-8 * ((x - 0.3) ** 2).sum(1))
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Relief(eqx.Module):
    """Three hidden layers of bells, exp(-x^2 / 2)."""

    layers: list[Any]

    def __init__(self, key: Any) -> None:
        keys, sizes = jax.random.split(key, 4), (2, 48, 48, 48, 1)
        self.layers = [
            eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]

    def __call__(self, x: Any) -> Any:
        """How high a place is."""
        for layer in self.layers[:-1]:
            x = jnp.exp(-0.5 * layer(x) ** 2)
        return self.layers[-1](x)[0]


def ground(name: str) -> Network:
    """A map of the ground by a coordinate MLP."""
    init, apply = of_equinox(Relief)
    own = {"kind": "coordinate MLP", "library": "Equinox", "task": relief, "steps": 400}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Ratings.


@functools.cache
def opinions() -> Task:
    """A reader, a book, and how the reader liked it, in standard units."""
    rng = np.random.default_rng(1007)
    who, what = rng.integers(0, READERS, 4096), rng.integers(0, BOOKS, 4096)
    tastes, kinds = rng.standard_normal((READERS, 2)), rng.standard_normal((BOOKS, 2))
    y = (tastes[who] * kinds[what]).sum(1) + 0.8 * rng.standard_normal(BOOKS)[what]
    y = standard(y + 0.6 * rng.standard_normal(READERS)[who] + 0.1 * rng.standard_normal(4096))
    train, test = parted(who.astype(np.int32), what.astype(np.int32), y)
    return Task(train, test, (float(np.var(test[2])),))


def liked(name: str) -> Network:
    """Embeddings of both, two hidden layers, and a rating."""

    class Liked(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            normal = nnx.initializers.normal(0.5)
            self.reader = nnx.Embed(READERS, 8, embedding_init=normal, rngs=rngs)
            self.book = nnx.Embed(BOOKS, 8, embedding_init=normal, rngs=rngs)
            self.hidden = nnx.List(nnx.Linear(a, 48, rngs=rngs) for a in (16, 48))
            self.rating = nnx.Linear(48, 1, rngs=rngs)

        def __call__(self, who: Any, what: Any) -> Any:
            x = jnp.concatenate([self.reader(who), self.book(what)], -1)
            for layer in self.hidden:
                x = nnx.gelu(layer(x))
            return self.rating(x)[:, 0]

    init, apply = of_nnx(Liked)
    own = {"kind": "ratings MLP", "library": "nnx", "task": opinions, "steps": 400, "batch": 64}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Rings.


@functools.cache
def rings() -> Task:
    """Points of the plane, and which of three rings they're in."""
    rng = np.random.default_rng(1008)
    radius, angle = rng.uniform(0, 2.4, 2048), rng.uniform(0, 2 * np.pi, 2048)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    which = (radius + 0.25 * np.sin(3 * angle)) / 0.8
    train, test = parted(x, np.clip(which, 0, 2).astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Rings(eqx.Module):
    """Twelve hidden layers of 32 leaky units with normal kernels; it has no skips."""

    layers: list[Any]

    def __init__(self, key: Any) -> None:
        sizes = (2, *[32] * 12, 3)
        keys = jax.random.split(key, 2 * len(sizes))
        self.layers = []
        for number, (a, b) in enumerate(itertools.pairwise(sizes)):
            layer = eqx.nn.Linear(a, b, key=keys[2 * number])
            kernel = 1.4 * jax.random.normal(keys[2 * number + 1], (b, a)) / a**0.5
            made = (kernel, jnp.zeros(b))
            self.layers.append(eqx.tree_at(lambda one: (one.weight, one.bias), layer, made))

    def __call__(self, x: Any) -> Any:
        """Logits of the rings."""
        for layer in self.layers[:-1]:
            x = jax.nn.leaky_relu(layer(x))
        return self.layers[-1](x)


def ringed(name: str) -> Network:
    """Rings by a deep and narrow MLP."""
    init, apply = of_equinox(Rings)
    own = {"kind": "deep MLP", "library": "Equinox", "task": rings, "steps": 400}
    return classifier(name, init, apply, **own)
