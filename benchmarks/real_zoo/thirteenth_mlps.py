"""Plain MLPs of houses, displays, loans and torques."""

import functools
import itertools
from collections.abc import Callable
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
from benchmarks.real_zoo.images import classifier
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

# Houses.


@functools.cache
def houses() -> Task:
    """Eight numbers of a house, in standard units, and what it was sold for; standardized."""
    rng = np.random.default_rng(1301)
    x = rng.standard_normal((2048, 8))
    size = 0.45 * x[:, 0] + 0.2 * x[:, 1] - 0.25 * np.abs(x[:, 2])
    place = 0.3 * np.sin(1.5 * x[:, 3]) * np.cos(1.2 * x[:, 4]) + 0.15 * x[:, 5] * (x[:, 6] > 0)
    y = np.exp(size + place) + 0.05 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Houses(nn.Module):
    """Hidden layers of 64, 64 and 32 rectified units, and a price."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Prices of houses."""
        for number, width in enumerate((64, 64, 32)):
            x = nn.relu(nn.Dense(width, name=f"dense_{number}")(x))
        return nn.Dense(1, name="price")(x)[:, 0]


def sold(name: str) -> Network:
    """What a house is sold for."""
    init, apply = of_linen(Houses(), jnp.zeros((2, 8)))
    own = {"kind": "houses MLP", "library": "linen", "task": houses, "steps": 300}
    return regression(name, init, apply, **own)


# Displays.

# Which of the bars a to g of a display are lit for each digit.
LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
BARS = {
    "a": (slice(0, 1), slice(0, 4)),
    "b": (slice(0, 4), slice(3, 4)),
    "c": (slice(3, 7), slice(3, 4)),
    "d": (slice(6, 7), slice(0, 4)),
    "e": (slice(3, 7), slice(0, 1)),
    "f": (slice(0, 4), slice(0, 1)),
    "g": (slice(3, 4), slice(0, 4)),
}


@functools.cache
def displays() -> Task:
    """Pictures, 9 x 6, of a display with seven bars in noise, and the digit it shows."""
    rng = np.random.default_rng(1302)
    digit, x = rng.integers(0, 10, 3072), 0.25 * rng.standard_normal((3072, 9, 6))
    for picture, shown in zip(x, digit, strict=True):
        down, right = rng.integers(0, 3, 2)
        glyph = np.zeros((7, 4))
        for bar in LIT[shown]:
            glyph[BARS[bar]] = rng.uniform(0.7, 1.0)
        picture[down : down + 7, right : right + 4] += glyph
    train, test = parted(standard(x.reshape(3072, 54), None), digit.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def shown(
    name: str,
    *,
    sizes: tuple[int, ...] = (54, 64, 64),
    act: Callable[[Any], Any] = nnx.relu,
    temperature: float = 1.0,
    **rest: Any,
) -> Network:
    """Which digit a display shows, by a softmax of logits over a temperature."""

    class Displays(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            pairs = itertools.pairwise(sizes)
            self.hidden = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in pairs)
            self.digit = nnx.Linear(sizes[-1], 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.hidden:
                x = act(layer(x))
            return self.digit(x) / temperature

    init, apply = of_nnx(Displays)
    own = {"kind": "displays MLP", "library": "nnx", "task": displays, "steps": 500}
    return classifier(name, init, apply, **own | rest)


# Loans.


@functools.cache
def loans() -> Task:
    """Ten numbers of who borrows, in standard units, and whether a loan is paid back late."""
    rng = np.random.default_rng(1303)
    x = rng.standard_normal((3072, 10))
    score = 1.5 * x[:, 0] - 1.2 * np.abs(x[:, 1]) + 1.3 * x[:, 2] * x[:, 3] - 0.8 * x[:, 4]
    score += 0.9 * np.sin(2 * x[:, 5]) + 0.6 * x[:, 6] + 0.3 * rng.standard_normal(3072)
    train, test = parted(x, (score > np.quantile(score, 0.65)).astype(np.float64))
    return Task(train, test, (entropy(test[1].astype(int)),))


class Loans(eqx.Module):
    """Three hidden layers of tanh, and a logit."""

    layers: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.layers = eqx.nn.MLP(10, "scalar", 48, 3, jnp.tanh, key=key)

    def __call__(self, x: Any) -> Any:
        """The logit of one who borrows."""
        return self.layers(x)


def lent(name: str) -> Network:
    """Whether a loan is paid back late."""
    init, apply = of_equinox(Loans)

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(apply(p, batch[0]), batch[1]).mean()

    own = {"kind": "loans MLP", "library": "Equinox", "task": loans, "steps": 500}
    return network(name, loss, init, **own, rates=(2e-3, 6e-3))


# Torques.


@functools.cache
def torques() -> Task:
    """Angles, speeds and accelerations of two joints, and the torques they take; standardized."""
    rng = np.random.default_rng(1304)
    x = rng.standard_normal((2560, 6))
    (one, two), (fast, faster), (gain, gains) = x[:, :2].T, x[:, 2:4].T, x[:, 4:].T
    bend = np.cos(two)
    first = (1.6 + bend) * gain + (0.4 + 0.5 * bend) * gains
    first += -np.sin(two) * (fast * faster + 0.5 * faster**2)
    first += 2 * np.cos(one) + 0.8 * np.cos(one + two)
    second = (0.4 + 0.5 * bend) * gain + 0.4 * gains + 0.5 * np.sin(two) * fast**2
    second += 0.8 * np.cos(one + two)
    train, test = parted(x, standard(np.stack([first, second], 1)))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def turned(name: str) -> Network:
    """Which torques move an arm, by five hidden layers of ELU."""

    def made(x: Any) -> Any:
        for number in range(5):
            x = jax.nn.elu(hk.Linear(48, name=f"joint_{number}")(x))
        return hk.Linear(2, name="torques")(x)

    model = hk.without_apply_rng(hk.transform(made))

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 6)))

    own = {"kind": "torques MLP", "library": "Haiku", "task": torques, "steps": 500}
    return regression(name, init, model.apply, **own)
