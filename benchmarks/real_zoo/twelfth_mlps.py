"""Plain MLPs of wines, turbines, spirals, arms, claims, options, mail and echoes."""

import functools
import itertools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

WORDS = 80

# Wines.


@functools.cache
def wines() -> Task:
    """Twelve measurements of a wine, in standard units, and which of four growers made it."""
    rng = np.random.default_rng(1201)
    which, mixing = rng.integers(0, 4, 2048), rng.standard_normal((6, 12))
    centers = 1.6 * rng.standard_normal((4, 2, 6))
    hidden = centers[which, rng.integers(0, 2, 2048)] + 0.7 * rng.standard_normal((2048, 6))
    x = standard(hidden @ mixing + 0.5 * rng.standard_normal((2048, 12)))
    train, test = parted(x, which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Wines(eqx.Module):
    """Two hidden layers of tanh, and logits of the growers."""

    layers: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.layers = eqx.nn.MLP(12, 4, 32, 2, jnp.tanh, key=key)

    def __call__(self, x: Any) -> Any:
        """Logits of a wine."""
        return self.layers(x)


def tasted(name: str) -> Network:
    """Who made a wine."""
    init, apply = of_equinox(Wines)
    own = {"kind": "wines MLP", "library": "Equinox", "task": wines, "steps": 300}
    return classifier(name, init, apply, **own)


# Turbines.


@functools.cache
def turbines() -> Task:
    """Nine sensors of a turbine, and how worn it is; standardized."""
    rng = np.random.default_rng(1202)
    x = rng.standard_normal((2048, 9))
    y = np.tanh(x[:, 0] + x[:, 1]) + 0.6 * x[:, 2] * x[:, 3] - 0.7 * np.abs(x[:, 4])
    y += 0.5 * x[:, 5] - 0.4 * np.sin(2 * x[:, 6]) + 0.1 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Turbines(nn.Module):
    """Eight self-normalizing layers of 40, and a number."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """How worn turbines are."""
        for number in range(8):
            dense = nn.Dense(40, kernel_init=nn.initializers.lecun_normal(), name=f"unit_{number}")
            x = nn.selu(dense(x))
        return nn.Dense(1, name="wear")(x)[:, 0]


def worn(name: str) -> Network:
    """The wear of turbines by a deep chain of SELU."""
    init, apply = of_linen(Turbines(), jnp.zeros((2, 9)))
    own = {"kind": "turbines MLP", "library": "linen", "task": turbines, "steps": 400}
    return regression(name, init, apply, **own, rates=(5e-4, 2e-3))


# Spirals.


@functools.cache
def spirals() -> Task:
    """Points of two spirals, of which they are."""
    rng = np.random.default_rng(1203)
    which, along = rng.integers(0, 2, 2048), rng.uniform(0.15, 1, 2048)
    angle = 1.3 * 2 * np.pi * along + np.pi * which
    x = along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) * 2.4
    train, test = parted(x + 0.06 * rng.standard_normal(x.shape), which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def wound(name: str) -> Network:
    """Which of two spirals a point is of, by four hidden layers of rectified units."""

    class Spirals(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            he = nnx.initializers.he_normal()
            sizes = itertools.pairwise((2, 32, 32, 32, 32))
            self.hidden = nnx.List(nnx.Linear(a, b, kernel_init=he, rngs=rngs) for a, b in sizes)
            self.spiral = nnx.Linear(32, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.hidden:
                x = nnx.relu(layer(x))
            return self.spiral(x)

    init, apply = of_nnx(Spirals)
    own = {"kind": "spirals MLP", "library": "nnx", "task": spirals, "steps": 400}
    return classifier(name, init, apply, **own, rates=(2e-3, 6e-3))


# Arms.


@functools.cache
def arms() -> Task:
    """Where an arm of two bones reaches, in standard units, and the angles of its joints."""
    rng = np.random.default_rng(1204)
    shoulder, elbow = rng.uniform(-1.2, 1.2, 2048), rng.uniform(0.4, 2.4, 2048)
    x = np.cos(shoulder) + 0.8 * np.cos(shoulder + elbow)
    y = np.sin(shoulder) + 0.8 * np.sin(shoulder + elbow)
    places, angles = np.stack([x, y], 1), np.stack([shoulder, elbow], 1)
    train, test = parted(standard(places), standard(angles))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def reached(name: str) -> Network:
    """Angles of joints by three hidden layers of swish."""

    def made(x: Any) -> Any:
        for number in range(3):
            x = jax.nn.swish(hk.Linear(32, name=f"bone_{number}")(x))
        return hk.Linear(2, name="angles")(x)

    model = hk.without_apply_rng(hk.transform(made))

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 2)))

    own = {"kind": "arms MLP", "library": "Haiku", "task": arms, "steps": 300}
    return regression(name, init, model.apply, **own, rates=(2e-3, 6e-3))


# Claims.


def _deviance(rate: Any, counts: Any, of: Any = jnp) -> Any:
    """Twice what a Poisson's likelihood lacks of the best."""
    best = counts * of.log(of.maximum(counts, 1.0)) - counts
    return 2 * of.mean(best - counts * of.log(rate) + rate)


@functools.cache
def claims() -> Task:
    """Six numbers of a driver and a car, and how many claims there were."""
    rng = np.random.default_rng(1205)
    x = rng.standard_normal((2560, 6))
    log_rate = 1.2 * np.tanh(1.5 * x[:, 0]) - 0.9 * x[:, 1] * (x[:, 2] > 0) + 0.5 * np.abs(x[:, 3])
    counts = rng.poisson(np.exp(np.clip(log_rate + 0.5, -3, 3))).astype(np.float64)
    train, test = parted(x, counts)
    return Task(train, test, (float(_deviance(test[1].mean(), test[1], np)),))


class Claims(nn.Module):
    """Two hidden layers of 48 rectified units, and the logarithm of a rate."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logarithms of rates."""
        for number in range(2):
            x = nn.relu(nn.Dense(48, kernel_init=gaussian(1.4), name=f"hidden_{number}")(x))
        return nn.Dense(1, kernel_init=gaussian(0.3), name="log_rate")(x)[:, 0]


def claimed(name: str) -> Network:
    """How many claims a driver makes; a Poisson regression."""
    init, apply = of_linen(Claims(), jnp.zeros((2, 6)))

    def loss(p: Any, batch: Any) -> Any:
        return _deviance(jnp.exp(apply(p, batch[0])), batch[1])

    own = {"kind": "claims MLP", "library": "linen", "task": claims, "steps": 300}
    return network(name, loss, init, **own)


# Options.


@functools.cache
def options() -> Task:
    """Five numbers of an option, in standard units, and about what it is worth; standardized."""
    rng = np.random.default_rng(1206)
    x = rng.uniform(-1.7, 1.7, (2048, 5))
    spread = 0.25 * np.exp(0.4 * x[:, 1]) * np.sqrt(1 + 0.5 * x[:, 2])
    over = 0.35 * x[:, 0] + 0.08 * x[:, 3]
    y = spread * np.log1p(np.exp(1.7 * over / spread)) * (1 - 0.15 * x[:, 4])
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


def priced(name: str) -> Network:
    """What an option is worth by three hidden layers of GELU."""

    class Options(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = itertools.pairwise((5, 48, 48, 48))
            self.hidden = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in sizes)
            self.worth = nnx.Linear(48, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.hidden:
                x = nnx.gelu(layer(x))
            return self.worth(x)[:, 0]

    init, apply = of_nnx(Options)
    own = {"kind": "options MLP", "library": "nnx", "task": options, "steps": 300}
    return regression(name, init, apply, **own)


# Mail.


@functools.cache
def mail() -> Task:
    """Which of eighty words a message has, and whether it is unwanted: pairs of words tell."""
    rng = np.random.default_rng(1207)
    x = (rng.uniform(size=(6144, WORDS)) < rng.uniform(0.05, 0.4, WORDS)).astype(np.float64)
    x[:, :8] = rng.integers(0, 2, (6144, 8))
    score = x[:, 8:] @ rng.standard_normal(WORDS - 8) * 0.7
    for one, two, sign in ((0, 1, 1), (2, 3, -1), (4, 5, 1), (6, 7, -1)):
        score += sign * 1.4 * (2 * x[:, one] - 1) * (2 * x[:, two] - 1)
    train, test = parted(x, (score > np.median(score)).astype(np.float64))
    return Task(train, test, (entropy(test[1].astype(int)),))


def filtered(name: str) -> Network:
    """Whether a message is unwanted by two hidden layers, and a logit."""

    def made(x: Any) -> Any:
        for number in range(2):
            x = jax.nn.relu(hk.Linear(48, name=f"words_{number}")(x))
        return hk.Linear(1, name="unwanted")(x)[:, 0]

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(model.apply(p, batch[0]), batch[1]).mean()

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, WORDS)))

    own = {"kind": "mail MLP", "library": "Haiku", "task": mail, "steps": 600}
    return network(name, loss, init, **own, rates=(2e-3, 6e-3))


# Echoes.


@functools.cache
def echoes() -> Task:
    """Thirty samples of an echo, in standard units, and how far what it came from was."""
    rng = np.random.default_rng(1208)
    far, high = rng.uniform(4, 25, (2048, 1)), rng.uniform(0.7, 1.4, (2048, 1))
    apart, sharp = np.arange(30) - far, rng.uniform(1.5, 3, (2048, 1))
    x = high * np.exp(-((apart / sharp) ** 2)) * np.cos(apart)
    x = standard(x + 0.1 * rng.standard_normal((2048, 30)), None)
    train, test = parted(x, standard(far[:, 0]))
    return Task(train, test, (float(np.var(test[1])),))


def heard(name: str, *, depth: int = 3) -> Network:
    """How far a thing is by layers of rectified units as they come."""

    class Echoes(eqx.Module):
        layers: eqx.nn.MLP

        def __init__(self, key: Any) -> None:
            self.layers = eqx.nn.MLP(30, 1, 40, depth, jax.nn.relu, key=key)

        def __call__(self, x: Any) -> Any:
            return self.layers(x)[0]

    init, apply = of_equinox(Echoes)
    own = {"kind": "echoes MLP", "library": "Equinox", "task": echoes, "steps": 400}
    return regression(name, init, apply, **own)
