"""Plain MLPs as people write them: bikes, shapes, waves, beams, switches, carts, blobs, names."""

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

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

LETTERS, SPAN = 40, 6.0

# Bikes.


@functools.cache
def rentals() -> Task:
    """A moment of the year, the weather and the hour, and how many bikes are out; standardized."""
    rng = np.random.default_rng(1101)
    moment, hour = rng.uniform(-1.7, 1.7, 2048), rng.uniform(-np.pi, np.pi, 2048)
    warm, wind, wet = rng.standard_normal((3, 2048))
    workday = rng.integers(0, 2, 2048) * 2.0 - 1
    x = np.stack([moment, np.sin(hour), np.cos(hour), warm, wind, wet, workday], 1)
    y = np.tanh(warm) - 0.4 * np.maximum(wet, 0) - 0.2 * wind + np.sin(1.5 * moment)
    y += workday * np.cos(2 * hour) - 0.7 * np.cos(hour) + 0.1 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Rentals(nn.Module):
    """Three hidden layers of 64 rectified units with He's kernels, and a number."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """How many bikes are out."""
        for number in range(3):
            x = nn.relu(nn.Dense(64, kernel_init=gaussian(1.4), name=f"hidden_{number}")(x))
        return nn.Dense(1, name="bikes")(x)[:, 0]


def bikes(name: str) -> Network:
    """How many bikes are rented."""
    init, apply = of_linen(Rentals(), jnp.zeros((2, 7)))
    own = {"kind": "bikes MLP", "library": "linen", "task": rentals, "steps": 300}
    return regression(name, init, apply, **own)


# Shapes.


@functools.cache
def shapes() -> Task:
    """Pictures, 9 x 9, of a disk, a ring, a cross or a bar, from -1 to 1, in one row each."""
    rng = np.random.default_rng(1102)
    which = rng.integers(0, 4, 2048)
    row, column = rng.uniform(2.6, 5.4, (2, 2048, 1, 1))
    rows, columns = np.mgrid[:9, :9]
    down, right = np.abs(rows - row), np.abs(columns - column)
    far = np.sqrt(down**2 + right**2)
    cross = ((down < 0.7) | (right < 0.7)) & (far < 2.8)
    kinds = np.stack([far < 2.3, np.abs(far - 2.2) < 0.7, cross, (down < 1.1) & (right < 2.8)])
    x = kinds[which, np.arange(2048)] * rng.uniform(0.6, 1.0, (2048, 1, 1))
    x = np.clip(x + 0.08 * rng.standard_normal(x.shape), 0, 1).reshape(-1, 81)
    train, test = parted(2 * x - 1, which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def pictured(name: str) -> Network:
    """Which shape a picture shows, by two hidden layers of sigmoids."""

    class Shapes(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            glorot = nnx.initializers.glorot_normal()
            self.hidden = nnx.List(
                nnx.Linear(a, 48, kernel_init=glorot, rngs=rngs) for a in (81, 48)
            )
            self.shapes = nnx.Linear(48, 4, kernel_init=glorot, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.hidden:
                x = nnx.sigmoid(layer(x))
            return self.shapes(x)

    init, apply = of_nnx(Shapes)
    own = {"kind": "shapes MLP", "library": "nnx", "task": shapes, "steps": 400}
    return classifier(name, init, apply, **own, rates=(4e-3, 1e-2))


# Waves.


@functools.cache
def cubes() -> Task:
    """Numbers of an interval, and a cubic of each, both in standard units."""
    rng = np.random.default_rng(1103)
    x = rng.uniform(-1.73, 1.73, 1536)
    y = standard((x / 1.73 + 1.0) ** 3 / 2 + 0.6 * np.sin(3 * x))
    train, test = parted(x[:, None], y + 0.02 * rng.standard_normal(1536))
    return Task(train, test, (float(np.var(test[1])),))


class Curve(eqx.Module):
    """Two hidden layers of tanh."""

    layers: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.layers = eqx.nn.MLP(1, 1, 40, 2, jnp.tanh, key=key)

    def __call__(self, x: Any) -> Any:
        """A number of a number."""
        return self.layers(x)[0]


def curve(name: str) -> Network:
    """A function of one number."""
    init, apply = of_equinox(Curve)
    own = {"kind": "curve MLP", "library": "Equinox", "task": cubes, "steps": 500}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Beams.


@functools.cache
def stations(unit: float) -> Task:
    """Places along a beam of six meters under an even load, in `1 / unit` meters."""
    x = np.random.default_rng(1104).uniform(0, SPAN * unit, (1024, 1))
    train, test = parted(x)
    moment = test[0] / unit * (SPAN - test[0] / unit) / 2
    return Task(train, test, (float(np.var(moment)),))


def beam(name: str, *, unit: float) -> Network:
    """A physics-informed MLP: M'' = -1 along a beam, nothing at its ends."""
    end = jnp.array([[0.0], [SPAN * unit]])

    def init(key: Any) -> Any:
        return stack(key, (1, 32, 32, 1))

    def loss(p: Any, batch: Any) -> Any:
        def moment(x: Any) -> Any:
            return forward(p, x)

        def slope(x: Any) -> Any:
            return jax.jvp(moment, (x,), (jnp.ones_like(x),))[1]

        bent = jax.jvp(slope, (batch[0],), (jnp.ones_like(batch[0]),))[1]
        return jnp.mean((bent + 1) ** 2) + jnp.mean(moment(end) ** 2)

    def judged(p: Any, batch: Any) -> Any:
        x = batch[0] / unit
        return (jnp.mean((forward(p, batch[0]) / unit**2 - x * (SPAN - x) / 2) ** 2),)

    own = {"kind": "beam PINN", "library": "plain", "task": lambda: stations(unit), "steps": 600}
    return Network(name=name, init=init, loss=loss, parts=judged, rates=(4e-3, 1e-2), **own)


# Switches.


@functools.cache
def switches() -> Task:
    """Sixteen switches, 0 or 1, and a number that depends on them and on pairs of them."""
    rng = np.random.default_rng(1105)
    x = rng.integers(0, 2, (2048, 16)).astype(np.float64)
    y = x @ rng.standard_normal(16) + 1.5 * x[:, 0] * x[:, 3] - 2 * x[:, 5] * (1 - x[:, 9])
    train, test = parted(x, standard(y + 0.1 * rng.standard_normal(2048)))
    return Task(train, test, (float(np.var(test[1])),))


def switched(name: str, *, depth: int = 2, activation: Any = nnx.relu, **rest: Any) -> Network:
    """A number of sixteen switches."""

    class Switched(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = (16, *[48] * depth)
            self.hidden = nnx.List(
                nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)
            )
            self.number = nnx.Linear(48, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.hidden:
                x = activation(layer(x))
            return self.number(x)[:, 0]

    init, apply = of_nnx(Switched)
    own = {"kind": "switches MLP", "library": "nnx", "task": switches, "steps": 300}
    return regression(name, init, apply, **own, **rest)


# Carts.


@functools.cache
def pushes() -> Task:
    """Four numbers of a cart and its pole, which of three pushes it got, and what it returned."""
    rng = np.random.default_rng(1106)
    x, push = rng.standard_normal((2048, 4)), rng.integers(0, 3, 2048)
    lean = x[:, 2] + 0.6 * x[:, 3]
    y = -np.abs(lean + 0.9 * (push - 1)) - 0.3 * np.abs(x[:, 0] + 0.5 * x[:, 1])
    y = standard(y + 0.05 * rng.standard_normal(2048))
    train, test = parted(x, push.astype(np.int32), y)
    return Task(train, test, (float(np.var(test[2])),))


class Values(eqx.Module):
    """Three hidden layers of rectified units, and the values of three pushes."""

    layers: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.layers = eqx.nn.MLP(4, 3, 48, 3, jax.nn.relu, key=key)

    def __call__(self, x: Any) -> Any:
        """What each push would return."""
        return self.layers(x)


def pushed(name: str) -> Network:
    """Action values of a cart and its pole, from returns."""
    init, apply = of_equinox(Values)

    def loss(p: Any, batch: Any) -> Any:
        x, push, returns = batch
        return jnp.mean((jnp.take_along_axis(apply(p, x), push[:, None], 1)[:, 0] - returns) ** 2)

    own = {"kind": "action values MLP", "library": "Equinox", "task": pushes, "steps": 400}
    return network(name, loss, init, **own)


# Blobs.


@functools.cache
def blobs() -> Task:
    """Pictures, 6 x 6, of a bright rectangle, in one row each, from 0 to 1."""
    rng = np.random.default_rng(1107)
    rows, columns = np.mgrid[:6, :6]
    top, left = rng.integers(0, 4, (2, 1536, 1, 1))
    tall, wide = rng.integers(2, 4, (2, 1536, 1, 1))
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    train, test = parted(inside.reshape(-1, 36).astype(np.float64))
    share = np.clip(test[0].mean(0), 1e-6, 1 - 1e-6)
    mean = -(share * np.log(share) + (1 - share) * np.log(1 - share)).mean()
    return Task(train, test, (float(mean),))


def blobbed(name: str) -> Network:
    """An autoencoder of bright rectangles whose outputs are told as probabilities."""

    def made(x: Any) -> Any:
        for number, width in enumerate((48, 10, 48)):
            x = jax.nn.relu(hk.Linear(width, name=f"layer_{number}")(x))
        return hk.Linear(36, name="pixels")(x)

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(model.apply(p, batch[0]), batch[0]).mean()

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 36)))

    own = {"kind": "blobs autoencoder", "library": "Haiku", "task": blobs, "steps": 400}
    return network(name, loss, init, **own, rates=(4e-3, 1e-2))


# Names.


@functools.cache
def names() -> Task:
    """Three letters of forty, some of them rare, and the one that follows."""
    rng = np.random.default_rng(1108)
    common = rng.dirichlet(np.full(LETTERS, 0.5), 1)[0]
    after = np.stack([rng.permutation(LETTERS)[:3] for _ in range(LETTERS)])
    said = np.zeros((6000, 4), np.int32)
    said[:, 0] = rng.choice(LETTERS, 6000, p=common)
    for place in range(1, 4):
        which = rng.choice(3, 6000, p=(0.7, 0.2, 0.1))
        said[:, place] = after[said[:, place - 1], which]
    train, test = parted(said[:, :3], said[:, 3])
    return Task(train, test, (entropy(test[1]),))


def named(name: str) -> Network:
    """The next letter of a name by embeddings and a hidden layer; as Bengio's."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {
            "letters": jax.random.normal(one, (LETTERS, 10)),
            "layers": stack(two, (30, 64, LETTERS)),
        }

    def apply(p: Any, letters: Any) -> Any:
        return forward(p["layers"], p["letters"][letters].reshape(-1, 30))

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(apply(p, batch[0]), batch[1])

    own = {"kind": "next letter MLP", "library": "plain", "task": names, "steps": 400}
    return network(name, loss, init, **own, rates=(4e-3, 1e-2))
