"""Networks of other kinds: paintings, look-ups, steps, boxes, spectra, tanks."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, next_token, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

KEYS, VALUES, PAIRS = 6, 6, 5
TOKENS, PLACES = 24, 12
HOURS, UNITS = 24, 24
OMEGA = 12.0

# Paintings.


@functools.cache
def paintings() -> Task:
    """Places of a picture of 64 x 64, from -1 to 1, and how light it is there; standardized."""
    rng = np.random.default_rng(1311)
    x = (rng.integers(0, 64, (4096, 2)) - 31.5) / 31.5
    rings = np.sin(9 * np.hypot(x[:, 0] - 0.3, x[:, 1] + 0.2))
    stripes = np.sin(6 * x[:, 0] + 4 * x[:, 1]) * (np.tanh(6 * x[:, 1]) + 1) / 2
    train, test = parted(x, standard(rings + stripes))
    return Task(train, test, (float(np.var(test[1])),))


def painted(name: str) -> Network:
    """How light a place of a picture is, by layers of sines with SIREN's kernels."""
    sizes = (2, 40, 40, 40)

    def init(key: Any) -> Any:
        made = {}
        for number, (a, b) in enumerate(itertools.pairwise(sizes)):
            key, one, two = jax.random.split(key, 3)
            most = 1 / a if number == 0 else (6 / a) ** 0.5 / OMEGA
            w = jax.random.uniform(one, (a, b), minval=-most, maxval=most)
            bias = jax.random.uniform(two, (b,), minval=-1, maxval=1) / a**0.5
            made[f"sine_{number}"] = {"w": w, "b": bias}
        most = (6 / 40) ** 0.5 / OMEGA
        w = jax.random.uniform(key, (40, 1), minval=-most, maxval=most)
        return made | {"light": {"w": w, "b": jnp.zeros(1)}}

    def apply(p: Any, x: Any) -> Any:
        for number in range(len(sizes) - 1):
            layer = p[f"sine_{number}"]
            x = jnp.sin(OMEGA * (x @ layer["w"] + layer["b"]))
        return (x @ p["light"]["w"] + p["light"]["b"])[:, 0]

    own = {"kind": "SIREN of paintings", "library": "plain", "task": paintings, "steps": 500}
    return regression(name, init, apply, **own, rates=(5e-4, 2e-3), batch=64)


# Look-ups.


@functools.cache
def lookups() -> Task:
    """Five keys with a value each, one of the keys, and its value."""
    rng = np.random.default_rng(1312)
    keys = np.argsort(rng.uniform(size=(6144, KEYS)), 1)[:, :PAIRS]
    values, which = rng.integers(0, VALUES, (6144, PAIRS)), rng.integers(0, PAIRS, 6144)
    asked, rows = keys[np.arange(6144), which], np.arange(6144)
    ints = (x.astype(np.int32) for x in (keys, values, asked, values[rows, which]))
    train, test = parted(*ints)
    return Task(train, test, (entropy(test[3]),))


class Encoder(nnx.Module):
    """Attention and an MLP, norms after their sums; as in the first transformers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)
        self.norm_a, self.norm_b = nnx.LayerNorm(32, rngs=rngs), nnx.LayerNorm(32, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """The next tokens."""
        x = self.norm_a(x + self.attention(x))
        return self.norm_b(x + self.down(nnx.relu(self.up(x))))


def looked_up(name: str) -> Network:
    """The value of a key by an encoder of pairs and a token that asks."""

    class Lookups(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            normal = nnx.initializers.normal(1.0)
            self.keys = nnx.Embed(KEYS, 32, embedding_init=normal, rngs=rngs)
            self.values = nnx.Embed(VALUES + 1, 32, embedding_init=normal, rngs=rngs)
            self.blocks = nnx.List(Encoder(rngs) for _ in range(2))
            self.answer = nnx.Linear(32, VALUES, rngs=rngs)

        def __call__(self, keys: Any, values: Any, asked: Any) -> Any:
            none = jnp.full_like(asked, VALUES)
            pairs = self.keys(keys) + self.values(values)
            x = jnp.concatenate([pairs, (self.keys(asked) + self.values(none))[:, None]], 1)
            for block in self.blocks:
                x = block(x)
            return self.answer(x[:, -1])

    init, apply = of_nnx(Lookups)

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(apply(p, *batch[:-1]), batch[-1])

    own = {"kind": "encoder of look-ups", "library": "nnx", "task": lookups, "steps": 600}
    return network(name, loss, init, **own, rates=(2e-3, 5e-3))


# Steps.


@functools.cache
def stairs() -> Task:
    """Thirteen tokens; each row goes around a circle in steps of one of three lengths."""
    rng = np.random.default_rng(1313)
    step = np.array([1, 5, 10])[rng.integers(0, 3, (3072, 1))]
    walked = rng.integers(0, TOKENS, (3072, 1)) + step * np.arange(PLACES + 1)
    slips = rng.uniform(size=walked.shape) < 0.04
    walked = (walked + np.cumsum(slips, 1) * 3) % TOKENS
    train, test = parted(walked.astype(np.int32))
    return Task(train, test, (float(np.log(TOKENS)),))


class Stairs(nn.Module):
    """A small GPT whose last layer is the embedding again."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Logits of the token after each."""
        normal = nn.initializers.normal(0.1)
        embed = nn.Embed(TOKENS, 32, embedding_init=normal, name="tokens")
        x = embed(tokens) + self.param("places", normal, (PLACES, 32))[: tokens.shape[1]]
        mask = nn.make_causal_mask(tokens)
        for number in range(2):
            y = nn.LayerNorm(name=f"norm_{number}_a")(x)
            x = x + nn.MultiHeadDotProductAttention(2, name=f"attention_{number}")(y, mask=mask)
            y = nn.LayerNorm(name=f"norm_{number}_b")(x)
            x = x + nn.Dense(32, name=f"down_{number}")(
                nn.gelu(nn.Dense(64, name=f"up_{number}")(y))
            )
        return embed.attend(nn.LayerNorm(name="norm_last")(x))


def walked(name: str) -> Network:
    """The tokens of walks by a decoder with a tied embedding."""
    init, apply = of_linen(Stairs(), jnp.zeros((2, PLACES), int))
    own = {"kind": "decoder with a tied embedding", "library": "linen", "task": stairs}
    return next_token(name, init, apply, **own, steps=300, rates=(3e-3, 8e-3))


# Boxes.


@functools.cache
def boxes() -> Task:
    """Pictures, 12 x 12, of a bright box in noise, and where its middle is; standardized."""
    rng = np.random.default_rng(1314)
    x, corner = 0.2 * rng.standard_normal((1536, 12, 12)), rng.integers(0, 9, (1536, 2))
    size = rng.integers(3, 5, (1536, 2))
    for picture, (down, right), (high, wide) in zip(x, corner, size, strict=True):
        picture[down : down + high, right : right + wide] += 1
    train, test = parted(standard(x, None)[..., None], standard(corner + size / 2))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


class Boxes(nn.Module):
    """Convolutions in pairs with pools of maxima after them, a hidden layer, and two numbers."""

    act: Callable[[Any], Any] = nn.relu

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Where boxes are."""
        for number, width in enumerate((8, 16)):
            for side in "ab":
                x = self.act(nn.Conv(width, (3, 3), name=f"conv_{number}_{side}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = self.act(nn.Dense(32, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(2, name="place")(x)


def boxed(name: str, *, rates: tuple[float, ...] = (1e-3, 3e-3), **options: Any) -> Network:
    """Where a box is by a convolutional network."""
    init, apply = of_linen(Boxes(**options), jnp.zeros((2, 12, 12, 1)))
    own = {"kind": "CNN of boxes", "library": "linen", "task": boxes, "batched": False}
    return regression(name, init, apply, **own, rates=rates)


# Spectra.


@functools.cache
def spectra() -> Task:
    """Forty-eight channels with two lines, and which of four substances has them so far apart."""
    rng = np.random.default_rng(1315)
    which, place = rng.integers(0, 4, 1536), rng.uniform(6, 26, (1536, 1))
    apart = np.array([4.0, 7.0, 10.0, 13.0])[which][:, None]
    channel, strong = np.arange(48), rng.uniform(0.7, 1.3, (2, 1536, 1))
    x = strong[0] * np.exp(-((channel - place) ** 2) / 3)
    x += strong[1] * np.exp(-((channel - place - apart) ** 2) / 3)
    x = standard(x + 0.08 * rng.standard_normal(x.shape), None)
    train, test = parted(x[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def measured_lines(name: str, *, blocks: int = 3, norms: bool = True, **rest: Any) -> Network:
    """Which substance has a spectrum, by residual convolutions and their norms."""

    def made(x: Any) -> Any:
        norm = lambda y, name: hk.GroupNorm(2, name=name)(y) if norms else y  # noqa: E731
        x = hk.Conv1D(16, 5, 2, name="stem")(x)[:, :, None]
        for number in range(blocks):
            y = hk.Conv2D(16, (5, 1), name=f"conv_{number}_a")(x)
            y = jax.nn.relu(norm(y, f"norm_{number}_a"))
            y = hk.Conv2D(16, (5, 1), name=f"conv_{number}_b")(y)
            x = jax.nn.relu(x + norm(y, f"norm_{number}_b"))
        return hk.Linear(4, name="substance")(x.max((1, 2)))

    model = hk.without_apply_rng(hk.transform(made))

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 48, 1)))

    own = {"kind": "ResNet of spectra", "library": "Haiku", "task": spectra, "batched": False}
    own = own | {"rates": (2e-3, 6e-3), "steps": 200} | rest
    return classifier(name, init, model.apply, **own)


# Tanks.


@functools.cache
def tanks() -> Task:
    """What flows into a tank and out of it for a day, and its level; standardized."""
    rng = np.random.default_rng(1316)
    x, counts = rng.standard_normal((2048, HOURS, 2)), np.where(np.arange(HOURS) < 6, 1.0, 0.1)
    level = (x[..., 0] - 0.5 * x[..., 1]) @ counts / 3
    train, test = parted(x, standard(np.tanh(level) + 0.3 * level))
    return Task(train, test, (float(np.var(test[1])),))


def filled(name: str, *, act: Callable[[Any], Any] = jnp.tanh, **rest: Any) -> Network:
    """The level of a tank by a plain RNN with orthogonal kernels between its states."""

    def init(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        return {
            "inputs": 0.3 * jax.random.normal(one, (2, UNITS)),
            "states": jax.random.orthogonal(two, UNITS),
            "bias": jnp.zeros(UNITS),
            "level": jax.random.normal(three, (UNITS,)) / UNITS**0.5,
            "shift": jnp.zeros(()),
        }

    def apply(p: Any, x: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            return act(x @ p["inputs"] + state @ p["states"] + p["bias"]), None

        start = jnp.zeros((len(x), UNITS), p["states"].dtype)
        state, _ = jax.lax.scan(step, start, x.swapaxes(0, 1))
        return state @ p["level"] + p["shift"]

    own = {"kind": "RNN of tanks", "library": "plain", "task": tanks, "steps": 400}
    return regression(name, init, apply, **own | {"rates": (2e-3, 6e-3)} | rest)
