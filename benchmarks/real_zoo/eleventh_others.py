"""Networks of other kinds: rhythms, dots, prices, scenes, herds, jets, steps."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

DRUMS, BEATS, PERIOD = 8, 12, 4
MASK = DRUMS
ROUNDS = 8
NODES = 8
MASSES = 6

# Rhythms.


@functools.cache
def rhythms() -> Task:
    """Twelve beats of a rhythm that returns every four, where one is hidden, and which it is."""
    rng = np.random.default_rng(1111)
    bars = rng.integers(0, DRUMS, (3072, PERIOD))
    heard = np.tile(bars, (1, BEATS // PERIOD))
    rows, place = np.arange(3072), rng.integers(0, BEATS, 3072)
    hidden = heard[rows, place].copy()
    heard[rows, place] = MASK
    kinds = (heard.astype(np.int32), place.astype(np.int32), hidden.astype(np.int32))
    train, test = parted(*kinds)
    return Task(train, test, (entropy(test[2]),))


def drummed(name: str) -> Network:
    """A masked model of rhythms with norms after its blocks; as BERT."""

    def made(heard: Any, place: Any) -> Any:
        normal = hk.initializers.RandomNormal(0.5)
        x = hk.Embed(DRUMS + 1, 32, w_init=normal, name="drums")(heard)
        x = x + hk.get_parameter("places", (BEATS, 32), init=normal)
        for number in range(2):
            attention = hk.MultiHeadAttention(
                4,
                8,
                model_size=32,
                w_init=hk.initializers.VarianceScaling(1.0),
                name=f"attention_{number}",
            )
            x = hk.LayerNorm(-1, True, True, name=f"norm_{number}_a")(x + attention(x, x, x))
            y = jax.nn.gelu(hk.Linear(64, name=f"up_{number}")(x))
            y = hk.Linear(32, name=f"down_{number}")(y)
            x = hk.LayerNorm(-1, True, True, name=f"norm_{number}_b")(x + y)
        x = jnp.take_along_axis(x, place[:, None, None], 1)[:, 0]
        return hk.Linear(DRUMS, name="hidden")(x)

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(model.apply(p, batch[0], batch[1]), batch[2])

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, BEATS), int), jnp.zeros(2, int))

    own = {"kind": "masked rhythm model", "library": "Haiku", "task": rhythms, "steps": 400}
    return network(name, loss, init, **own, rates=(2e-3, 4e-3))


# Dots.


@functools.cache
def dots() -> Task:
    """Pictures, 8 x 8, of a bright and a dark dot in noise; which way the dark one lies."""
    rng = np.random.default_rng(1112)
    places = rng.integers(0, 8, (8192, 4))
    down, right = places[:, 2] - places[:, 0], places[:, 3] - places[:, 1]
    kept = np.abs(np.abs(down) - np.abs(right)) >= 2
    places, down, right = places[kept][:2048], down[kept][:2048], right[kept][:2048]
    way = np.where(np.abs(down) > np.abs(right), (down > 0) * 1, 2 + (right > 0))
    x, rows = 0.3 * rng.standard_normal((len(way), 8, 8)), np.arange(len(way))
    x[rows, places[:, 0], places[:, 1]] += 4
    x[rows, places[:, 2], places[:, 3]] -= 4
    train, test = parted(x[..., None], way.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Mixer(nn.Module):
    """Two mixer blocks over sixteen patches."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the four ways."""
        x = nn.Conv(24, (2, 2), strides=(2, 2), name="patches")(x).reshape(len(x), 16, 24)
        for number in range(2):
            y = nn.LayerNorm(name=f"norm_{number}_a")(x).swapaxes(1, 2)
            y = nn.gelu(nn.Dense(32, name=f"tokens_{number}_a")(y))
            x = x + nn.Dense(16, name=f"tokens_{number}_b")(y).swapaxes(1, 2)
            y = nn.LayerNorm(name=f"norm_{number}_b")(x)
            y = nn.gelu(nn.Dense(48, name=f"channels_{number}_a")(y))
            x = x + nn.Dense(24, name=f"channels_{number}_b")(y)
        x = nn.LayerNorm(name="norm_last")(x).mean(1)
        return nn.Dense(4, name="ways")(x)


def mixed(name: str) -> Network:
    """Which way a dark dot lies from a bright one, by an MLP-Mixer."""
    init, apply = of_linen(Mixer(), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "MLP-Mixer", "library": "linen", "task": dots, "steps": 400}
    return classifier(name, init, apply, **own, rates=(2e-3, 4e-3), batched=False)


# Prices.


@functools.cache
def prices() -> Task:
    """Fourteen days' closing prices that return to a mean, and the next, in standard units."""
    rng = np.random.default_rng(1113)
    x = np.zeros((2048, 40))
    for place in range(2, 40):
        x[:, place] = 1.5 * x[:, place - 1] - 0.7 * x[:, place - 2]
        x[:, place] += 0.4 * rng.standard_normal(2048)
    x = standard(x[:, 25:], None)
    train, test = parted(x[:, :14, None], x[:, 14])
    return Task(train, test, (float(np.var(test[1])),))


def priced(name: str) -> Network:
    """The next closing price by two LSTMs."""

    class Priced(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = ((1, 24), (24, 24))
            self.cells = nnx.List(nnx.RNN(nnx.OptimizedLSTMCell(a, b, rngs=rngs)) for a, b in sizes)
            self.price = nnx.Linear(24, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for cell in self.cells:
                x = cell(x)
            return self.price(x[:, -1])[:, 0]

    init, apply = of_nnx(Priced)
    own = {"kind": "LSTM of prices", "library": "nnx", "task": prices, "steps": 250}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Scenes.


@functools.cache
def scenes() -> Task:
    """Eight objects, their places, values and colors from 0 to 1; how far each is from the best."""
    rng = np.random.default_rng(1114)
    x = rng.uniform(0, 1, (1024, NODES, 4))
    apart = np.linalg.norm(x[:, :, None, :2] - x[:, None, :, :2], axis=-1)
    near = (apart < 0.55) / (apart < 0.55).sum(-1, keepdims=True)
    y = (near @ x[..., 2:3])[..., 0] * 3 - x[..., 2] + 2 * np.abs((near @ x[..., 3:])[..., 0] - 0.5)
    train, test = parted(2 * x - 1, near, standard(y, None))
    return Task(train, test, (float(np.var(test[2])),))


class Scenes(eqx.Module):
    """Three rounds of messages between neighbors, kept by a GRU; as gated graph networks."""

    into: eqx.nn.Linear
    message: eqx.nn.Linear
    cell: eqx.nn.GRUCell
    out: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 4)
        self.into = eqx.nn.Linear(4, 32, key=keys[0])
        self.message = eqx.nn.Linear(32, 32, key=keys[1])
        self.cell = eqx.nn.GRUCell(32, 32, key=keys[2])
        self.out = eqx.nn.MLP(32, 1, 32, 1, key=keys[3])

    def __call__(self, x: Any, near: Any) -> Any:
        """A number of each object."""
        h = jnp.tanh(jax.vmap(self.into)(x))
        for _ in range(3):
            h = jax.vmap(self.cell)(near @ jax.vmap(self.message)(h), h)
        return jax.vmap(self.out)(h)[:, 0]


def seen(name: str) -> Network:
    """Numbers of the objects of a scene by a gated graph network."""
    init, apply = of_equinox(Scenes)
    own = {"kind": "gated graph net", "library": "Equinox", "task": scenes, "steps": 300}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Herds.


@functools.cache
def herds() -> Task:
    """Hares and lynxes, a share of a year, and how many of both there are after it."""
    rng = np.random.default_rng(1115)
    now, share = rng.uniform(-1, 1, (1024, 2)), rng.uniform(0.3, 1, (1024, 1))
    x = np.exp(now)
    for _ in range(200):
        hares, lynxes = x[:, :1], x[:, 1:]
        slope = np.concatenate([3 * hares * (1 - lynxes), 3 * lynxes * (hares - 1)], 1)
        x = x * np.exp(share / 200 * slope / x)
    train, test = parted(now, share, np.log(x))
    return Task(train, test, (float(np.mean(np.var(test[2], 0))),))


def herded(name: str) -> Network:
    """How herds change, by an MLP of their slopes and eight steps of Runge and Kutta's."""

    def init(key: Any) -> Any:
        return stack(key, (2, 32, 32, 2))

    def apply(p: Any, x: Any, share: Any) -> Any:
        step = share / ROUNDS
        for _ in range(ROUNDS):
            one = forward(p, x)
            two = forward(p, x + step / 2 * one)
            three = forward(p, x + step / 2 * two)
            x = x + step / 6 * (one + 2 * two + 2 * three + forward(p, x + step * three))
        return x

    own = {"kind": "neural ODE of herds", "library": "plain", "task": herds, "steps": 300}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Jets.


@functools.cache
def jets() -> Task:
    """Six masses of jets that depend on each other, in standard units; their density."""
    rng = np.random.default_rng(1116)
    z = rng.standard_normal((3072, MASSES))
    x = z.copy()
    x[:, 1] = 0.5 * z[:, 1] + 0.9 * z[:, 0] ** 2
    x[:, 2] = 0.3 * z[:, 2] + np.sin(2 * z[:, 0])
    x[:, 4] = z[:, 4] * np.exp(0.7 * z[:, 3])
    x[:, 5] = 0.4 * z[:, 5] + z[:, 3]
    x = standard(x)
    train, test = parted(x)
    return Task(train, test, (float(0.5 * np.log(2 * np.pi) + 0.5),))


class Couplings(nn.Module):
    """Eight affine couplings whose last layers are zeros."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Codes, and the logarithm of how much the space was stretched."""
        stretched = jnp.zeros(len(x))
        for number in range(8):
            kept, moved = jnp.split(x, 2, -1)
            y = nn.relu(nn.Dense(32, kernel_init=gaussian(1.4), name=f"first_{number}")(kept))
            y = nn.relu(nn.Dense(32, kernel_init=gaussian(1.4), name=f"second_{number}")(y))
            zeros = nn.initializers.zeros
            y = nn.Dense(MASSES, kernel_init=zeros, name=f"last_{number}")(y)
            log_scale, shift = jnp.split(y, 2, -1)
            stretched = stretched + log_scale.sum(-1)
            x = jnp.concatenate([moved * jnp.exp(log_scale) + shift, kept], -1)
        return x, stretched


def coupled(name: str) -> Network:
    """The density of jets by a flow; as RealNVP."""
    init, apply = of_linen(Couplings(), jnp.zeros((2, MASSES)))

    def loss(p: Any, batch: Any) -> Any:
        z, stretched = apply(p, batch[0])
        each = 0.5 * (z**2).sum(-1) - stretched
        return each.mean() / MASSES + 0.5 * np.log(2 * np.pi)

    own = {"kind": "RealNVP of jets", "library": "linen", "task": jets, "steps": 400}
    return network(name, loss, init, **own)


# Steps.


@functools.cache
def walks() -> Task:
    """Thirty-two samples of three accelerations, and which of five ways one moves."""
    rng = np.random.default_rng(1117)
    which, phase = rng.integers(0, 5, 1280), rng.uniform(0, 2 * np.pi, (1280, 1))
    time, speed = np.arange(32), np.array([0.4, 0.8, 0.8, 1.4, 1.4])[which][:, None]
    speed = speed * rng.uniform(0.9, 1.1, (1280, 1))
    high = np.array([1.0, 0.3, 1.2, 0.3, 1.2])[which][:, None]
    up, side = np.sin(speed * time + phase), high * np.sin(2 * speed * time + phase)
    x = np.stack([up, side, 0.5 * up * side], -1) + 0.3 * rng.standard_normal((1280, 32, 3))
    train, test = parted(standard(x, (0, 1)), which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def walked(name: str) -> Network:
    """Which way one moves, by six convolutions without norms, and pools; as VGG."""

    class Walked(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            he = nnx.initializers.he_normal()
            self.convs = nnx.List(
                nnx.Conv(a, b, (3,), kernel_init=he, rngs=rngs)
                for a, b in ((3, 12), (12, 12), (12, 16), (16, 16), (16, 24), (24, 24))
            )
            self.full = nnx.Linear(24 * 4, 32, kernel_init=he, rngs=rngs)
            self.ways = nnx.Linear(32, 5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for number, conv in enumerate(self.convs):
                x = nnx.relu(conv(x))
                x = nnx.max_pool(x, (2,), (2,)) if number % 2 else x
            x = nnx.relu(self.full(x.reshape(len(x), -1)))
            return self.ways(x)

    init, apply = of_nnx(Walked)
    own = {"kind": "VGG of steps", "library": "nnx", "task": walks, "steps": 200}
    return classifier(name, init, apply, **own, batched=False)
