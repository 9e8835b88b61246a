"""Words and time: a GPT, tags, recall, phrases, rows, forecasts."""

import functools
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import LENGTH, VOCABULARY, cross_entropy, next_token


def entropy(labels: Any) -> float:
    """Of the labels' shares."""
    shares = np.bincount(np.ravel(labels)) / np.size(labels)
    shares = shares[shares > 0]
    return float(-np.sum(shares * np.log(shares)))


def _norm(x: Any, p: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * p["gain"] + p["bias"]


def gpt(
    name: str,
    *ails: str,
    depth: int = 3,
    width: int = 32,
    norm: str = "pre",
    spread: float = 0.05,
    scale: float = 1.0,
    last: float | None = None,
    keys: float = 1.0,
    **rest: Any,
) -> Network:
    """A GPT whose blocks are scanned; its head is its embedding.

    `last` is what the branches' last kernels are scaled by, `keys` what queries and keys are.
    """
    end = (2 * depth) ** -0.5 if last is None else last

    def init(key: Any) -> Any:
        drawn = iter(jax.random.split(key, 8))

        def kernel(a: int, b: int, factor: float) -> Any:
            return factor * scale * jax.random.normal(next(drawn), (depth, a, b)) / a**0.5

        plain = {"gain": jnp.ones(width), "bias": jnp.zeros(width)}
        norms = jax.tree.map(lambda x: jnp.tile(x, (depth, 1)), plain)
        return {
            "embed": spread * jax.random.normal(next(drawn), (VOCABULARY, width)),
            "places": spread * jax.random.normal(next(drawn), (LENGTH, width)),
            "blocks": {
                "queries_keys": kernel(width, 2 * width, keys),
                "values": kernel(width, width, 1.0),
                "out": kernel(width, width, end),
                "up": kernel(width, 4 * width, 1.0),
                "down": kernel(4 * width, width, end),
                "first": norms,
                "second": norms,
            },
            "norm": plain,
        }

    def attention(p: Any, x: Any) -> Any:
        split = lambda y: y.reshape(*y.shape[:2], 2, -1)  # noqa: E731
        q, k = (split(y) for y in jnp.split(x @ p["queries_keys"], 2, -1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        before = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        shares = jax.nn.softmax(jnp.where(before, scores, -1e9))
        return jnp.einsum("bhqk,bkhd->bqhd", shares, split(x @ p["values"])).reshape(x.shape)

    def block(x: Any, p: Any) -> Any:
        mlp = lambda y: jax.nn.gelu(y @ p["up"]) @ p["down"]  # noqa: E731
        for branch, own in ((lambda y: attention(p, y) @ p["out"], "first"), (mlp, "second")):
            x = x + branch(_norm(x, p[own]) if norm == "pre" else x)
            x = _norm(x, p[own]) if norm == "post" else x
        return x, None

    def apply(p: Any, tokens: Any) -> Any:
        x, _ = jax.lax.scan(block, p["embed"][tokens] + p["places"], p["blocks"])
        return _norm(x, p["norm"]) @ p["embed"].T

    own = {"kind": "GPT", "library": "plain", "ails": ails, "steps": 400}
    return next_token(name, init, apply, **own | rest)


@functools.cache
def _tags() -> Task:
    """Words and their tags: each word's own, but for what stands before and behind it."""
    rng = np.random.default_rng(73)
    words = rng.integers(0, 12, (1280, 14)).astype(np.int32)
    usual, after, before = rng.integers(0, 5, (3, 12))
    tags = usual[words]
    tags[:, 1:] = np.where(words[:, :-1] < 3, after[words[:, 1:]], tags[:, 1:])
    tags[:, :-1] = np.where(words[:, 1:] > 9, before[words[:, :-1]], tags[:, :-1])
    train, test = parted(words, tags.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Tagger(nn.Module):
    """An LSTM from the front, one from the back, and a tag for every word."""

    layers: int = 1
    spread: float = 0.5

    @nn.compact
    def __call__(self, words: Any) -> Any:
        """`[batch, positions]` of integers."""
        x = nn.Embed(12, 16, embedding_init=nn.initializers.normal(self.spread))(words)
        for number in range(self.layers):
            own = [nn.RNN(nn.LSTMCell(24, name=f"{n}_{number}")) for n in ("there", "back")]
            x = nn.Bidirectional(*own)(x)
        return nn.Dense(5, name="head")(x)


def tagger(name: str, *ails: str, layers: int = 1, spread: float = 0.5, **rest: Any) -> Network:
    """A bidirectional LSTM that tags words."""
    module = Tagger(layers, spread)

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(module.apply({"params": p}, batch[0]), batch[1])

    init = lambda key: module.init(key, jnp.zeros((1, 14), jnp.int32))["params"]  # noqa: E731
    own = {"kind": "LSTM tagger", "library": "linen", "task": _tags, "ails": ails, "steps": 400}
    return network(name, loss, init, **own | rest)


@functools.cache
def _recall() -> Task:
    """Twenty symbols of eight, the first of which is to be told at the end."""
    symbols = np.random.default_rng(74).integers(0, 8, (2560, 20)).astype(np.int32)
    train, test = parted(symbols, symbols[:, 0])
    return Task(train, test, (entropy(test[1]),))


def recall(
    name: str,
    *ails: str,
    width: int = 48,
    scale: float = 1.0,
    activation: Any = jnp.tanh,
    **rest: Any,
) -> Network:
    """A simple recurrent network; its recurrent kernel is `scale` times an orthogonal one."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "into": 0.5 * jax.random.normal(keys[0], (8, width)),
            "again": jax.nn.initializers.orthogonal(scale)(keys[1], (width, width)),
            "bias": jnp.zeros(width),
            "head": jax.random.normal(keys[2], (width, 8)) / width**0.5,
        }

    def loss(p: Any, batch: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            return activation(h @ p["again"] + x + p["bias"]), None

        start = jnp.zeros((len(batch[0]), width))
        h, _ = jax.lax.scan(step, start, p["into"][batch[0].T])
        return cross_entropy(h @ p["head"], batch[1])

    own = {"kind": "simple RNN", "library": "plain", "task": _recall, "ails": ails, "steps": 1000}
    return network(name, loss, init, **own | rest)


@functools.cache
def _phrases() -> Task:
    """Twenty-four words of thirty; which of four kinds of phrase of two words is among them."""
    rng = np.random.default_rng(75)
    words, kinds = rng.integers(8, 30, (2560, 24)), rng.integers(0, 4, 2560)
    phrases = np.array([[(0, 1), (2, 3)], [(1, 0), (4, 5)], [(3, 2), (6, 7)], [(5, 4), (7, 6)]])
    rows, place = np.arange(2560), rng.integers(0, 23, 2560)
    chosen = phrases[kinds, rng.integers(0, 2, 2560)]
    words[rows, place], words[rows, place + 1] = chosen.T
    train, test = parted(words.astype(np.int32), kinds.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def text_cnn(
    name: str,
    *ails: str,
    spread: float = 0.3,
    bias: float = 0.0,
    scale: float = 1.4,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """Convolutions of two and three words, the largest of all places, a classifier in `dtype`."""

    def made(words: Any) -> Any:
        embed = hk.get_parameter(
            "words", (30, 16), jnp.float32, hk.initializers.RandomNormal(spread)
        )
        w_init = hk.initializers.VarianceScaling(scale**2, "fan_in", "normal")
        b_init = hk.initializers.Constant(bias)
        x = embed[words].astype(dtype)
        found = [
            jax.nn.relu(hk.Conv1D(24, n, w_init=w_init, b_init=b_init, name=f"phrases_{n}")(x))
            for n in (2, 3)
        ]
        x = jnp.concatenate(found, -1).max(1)
        x = jax.nn.relu(hk.Linear(32, w_init=w_init, name="hidden")(x))
        return hk.Linear(4, name="head")(x).astype(jnp.float32)

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        p = jax.tree.map(lambda x: x.astype(dtype), p)
        return cross_entropy(model.apply(p, batch[0]), batch[1])

    def init(key: Any) -> Any:
        made = model.init(key, jnp.zeros((2, 24), jnp.int32))
        return jax.tree.map(lambda x: x.astype(jnp.float32), made)

    own = {"kind": "text CNN", "library": "Haiku", "task": _phrases, "ails": ails, "steps": 400}
    return network(name, loss, init, **{"batched": False} | own | rest)


def row_lstm(
    name: str,
    *ails: str,
    width: int = 32,
    unit: float = 1.0,
    **rest: Any,
) -> Network:
    """An LSTM that reads digits row by row; pixels in `unit`."""

    class LSTM(hk.RNNCore):
        def __call__(self, x: Any, state: Any) -> Any:
            h, c = state
            gates = hk.Linear(4 * width, name="gates")(jnp.concatenate([x, h], -1))
            i, g, f, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return h, (h, c)

        def initial_state(self, batch_size: int | None) -> Any:
            return (jnp.zeros((batch_size or 1, width)),) * 2

    def made(x: Any) -> Any:
        rows = (unit * x).reshape(-1, 8, 8).swapaxes(0, 1)
        core = LSTM()
        outputs, _ = hk.dynamic_unroll(core, rows, core.initial_state(x.shape[0]))
        return hk.Linear(10, name="head")(outputs[-1])

    model = hk.without_apply_rng(hk.transform(made))
    init = lambda key: model.init(key, jnp.zeros((2, 64)))  # noqa: E731
    own = {"kind": "row LSTM", "library": "Haiku", "ails": ails, "steps": 600}
    return classifier(name, init, model.apply, **own | rest)


@functools.cache
def _load() -> Task:
    """Thirty-two noisy values of two waves, and the one that comes next, of spread one."""
    rng = np.random.default_rng(76)
    place = np.arange(33)

    def wave(period: Any, high: float) -> Any:
        return high * np.sin(2 * np.pi * (place / period + rng.random((1280, 1))))

    series = wave(8, 1.2) + wave(rng.uniform(14, 30, (1280, 1)), 0.7)
    series = series + 0.05 * rng.standard_normal(series.shape)
    train, test = parted(series[:, :-1, None], series[:, -1])
    return Task(train, test, (float(np.var(test[1])),))


class TCN(nn.Module):
    """Dilated causal convolutions, and what the last place says."""

    depth: int = 4
    skip: bool = True
    activation: str = "relu"
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[batch, steps, 1]`."""
        x = nn.Dense(16, name="into")(x)
        for number in range(self.depth):
            own = {"kernel_dilation": 2 ** (number % 4), "padding": "CAUSAL"}
            conv = nn.Conv(16, (3,), kernel_init=gaussian(self.scale), **own, name=f"conv_{number}")
            y = getattr(nn, self.activation)(conv(x))
            x = x + y if self.skip else y
        return nn.Dense(1, name="head")(x[:, -1])[:, 0]


def tcn(
    name: str,
    *ails: str,
    watts: tuple[float, float] = (0.0, 1.0),
    **settings: Any,
) -> Network:
    """A forecast by a TCN; what is forecast in units: a shift and a factor."""
    fields = ("depth", "skip", "activation", "scale")
    module = TCN(**{k: settings.pop(k) for k in fields if k in settings})

    def loss(p: Any, batch: Any) -> Any:
        guess = module.apply({"params": p}, batch[0])
        return jnp.mean((guess - watts[0] - watts[1] * batch[1]) ** 2)

    own = {"kind": "TCN", "library": "linen", "task": _load, "ails": ails, "steps": 400}
    return Network(
        name=name,
        init=lambda key: module.init(key, jnp.zeros((1, 32, 1)))["params"],
        loss=loss,
        parts=lambda p, batch: (loss(p, batch) / watts[1] ** 2,),
        **{"batched": False} | own | settings,
    )
