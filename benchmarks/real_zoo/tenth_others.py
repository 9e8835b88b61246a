"""Networks of other kinds: signs, textures, sensors, roads, words, cells, arms, codes, pairs."""

import functools
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
from benchmarks.real_zoo.tenth_mlps import beats
from benchmarks.real_zoo.text import entropy

# Of what a decoder leaves to chance.
WIDTH = 0.3

# Brackets.


@functools.cache
def brackets() -> Task:
    """Twelve of six signs, and how often the second most frequent kind of three comes."""
    rng = np.random.default_rng(1011)
    shares = rng.dirichlet([1.0] * 3, 2048)
    kinds = np.stack([rng.choice(3, 12, p=one) for one in shares])
    signs = 2 * kinds + rng.integers(0, 2, kinds.shape)
    counts = np.sort((kinds[..., None] == np.arange(3)).sum(1), 1)[:, 1]
    train, test = parted(signs.astype(np.int32), counts.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Counter(nn.Module):
    """Two pre-norm blocks over signs and places; the mean of all is told apart."""

    @nn.compact
    def __call__(self, signs: Any) -> Any:
        """Logits of the seven counts."""
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(6, 32, embedding_init=normal, name="signs")(signs)
        x = x + self.param("places", nn.initializers.normal(0.1), (12, 32))
        for number in range(2):
            y = nn.LayerNorm(name=f"before_{number}")(x)
            x = x + nn.MultiHeadDotProductAttention(4, name=f"attention_{number}")(y)
            y = nn.LayerNorm(name=f"between_{number}")(x)
            y = nn.gelu(nn.Dense(64, name=f"up_{number}")(y))
            x = x + nn.Dense(32, name=f"down_{number}")(y)
        x = nn.LayerNorm(name="after")(x).mean(1)
        return nn.Dense(7, name="counts")(x).astype(jnp.float32)


def counter(name: str) -> Network:
    """A small transformer that counts signs."""
    init, apply = of_linen(Counter(), jnp.zeros((2, 12), int))
    own = {"kind": "counting transformer", "library": "linen", "task": brackets, "steps": 300}
    return classifier(name, init, apply, **own)


# Textures.


@functools.cache
def textures() -> Task:
    """Waves of a random phase on 12 x 12 pixels; which of four ways they run."""
    rng = np.random.default_rng(1012)
    rows, columns = np.mgrid[:12, :12]
    which, phase = rng.integers(0, 4, 1280), rng.uniform(0, 2 * np.pi, (1280, 1, 1))
    angle = (which * np.pi / 4 + 0.15 * rng.standard_normal(1280))[:, None, None]
    x = np.sin(1.6 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    x = x + 0.4 * rng.standard_normal(x.shape)
    train, test = parted(standard(x, None)[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Residual(nn.Module):
    """A stem and blocks of two convolutions with a gate on each, as SkipInit; no norms."""

    blocks: int
    gate: float

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the ways."""
        x = nn.Conv(8, (3, 3), name="stem")(x)
        for number in range(self.blocks):
            own = {"kernel_init": gaussian(1.4)}
            y = nn.relu(nn.Conv(8, (3, 3), **own, name=f"first_{number}")(x))
            y = nn.Conv(8, (3, 3), **own, name=f"second_{number}")(y)
            x = x + self.param(f"gate_{number}", nn.initializers.constant(self.gate), ()) * y
        return nn.Dense(4, name="ways")(x.mean((1, 2)))


def residual(name: str, *, blocks: int, gate: float) -> Network:
    """Which way waves run, by a residual network without norms."""
    init, apply = of_linen(Residual(blocks, gate), jnp.zeros((2, 12, 12, 1)))
    own = {
        "kind": "gated ResNet",
        "library": "linen",
        "task": textures,
        "batched": False,
        "batch": 16,
    }
    return classifier(name, init, apply, **own)


def patches(name: str) -> Network:
    """Which way waves run, by a vision transformer of nine patches and a class token."""

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.one, self.two = nnx.LayerNorm(32, rngs=rngs), nnx.LayerNorm(32, rngs=rngs)
            self.qkv, self.out = nnx.Linear(32, 96, rngs=rngs), nnx.Linear(32, 32, rngs=rngs)
            self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            q, k, v = jnp.split(self.qkv(self.one(x)).reshape(*x.shape[:2], 4, 24), 3, -1)
            x = x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
            return x + self.down(nnx.gelu(self.up(self.two(x))))

    class Patches(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.patch = nnx.Linear(16, 32, rngs=rngs)
            self.places = nnx.Param(0.3 * jax.random.normal(rngs.params(), (10, 32)))
            self.blocks = nnx.List(Block(rngs) for _ in range(2))
            self.last, self.ways = nnx.LayerNorm(32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x.reshape(-1, 3, 4, 3, 4).swapaxes(2, 3).reshape(-1, 9, 16)
            x = jnp.pad(self.patch(x), ((0, 0), (1, 0), (0, 0))) + self.places[...]
            for block in self.blocks:
                x = block(x)
            return self.ways(self.last(x[:, 0]))

    init, apply = of_nnx(Patches)
    own = {"kind": "ViT of textures", "library": "nnx", "task": textures, "steps": 300}
    return classifier(name, init, apply, **own)


# Sensors.


@functools.cache
def meters() -> Task:
    """Sixteen steps of a leaky tank: what flows, and whether a valve lets it; the last level."""
    rng = np.random.default_rng(1013)
    x = rng.standard_normal((2048, 16, 2))
    level = np.zeros((2048, 1))
    for place in range(16):
        level = 0.7 * level + 0.5 * x[:, place, :1] * (x[:, place, 1:] > 0)
    train, test = parted(x, standard(level[:, 0]))
    return Task(train, test, (float(np.var(test[1])),))


class Memory(eqx.Module):
    """An LSTM over the steps, and a number."""

    cell: eqx.nn.LSTMCell
    level: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(2, 32, key=one)
        self.level = eqx.nn.Linear(32, 1, key=two)

    def __call__(self, x: Any) -> Any:
        """What level is reached."""
        step = lambda state, now: (self.cell(now, state), None)  # noqa: E731
        (h, _), _ = jax.lax.scan(step, (jnp.zeros(32), jnp.zeros(32)), x)
        return self.level(h)[0]


def tank(name: str) -> Network:
    """The level of a leaky tank by an LSTM."""
    init, apply = of_equinox(Memory)
    own = {"kind": "LSTM of sensors", "library": "Equinox", "task": meters, "steps": 300}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Weather.


@functools.cache
def fronts() -> Task:
    """Twenty-four hours of pressure, and what follows in the next one, in standard units."""
    rng = np.random.default_rng(1014)
    time, phase = np.arange(25), rng.uniform(0, 2 * np.pi, (1536, 2, 1))
    speed, size = rng.uniform(0.2, 0.7, (1536, 2, 1)), rng.uniform(0.5, 1.5, (1536, 2, 1))
    x = standard((size * np.sin(speed * time + phase)).sum(1), None)
    train, test = parted(x[:, :24, None], x[:, 24] + 0.02 * rng.standard_normal(1536))
    return Task(train, test, (float(np.var(test[1])),))


class Causal(nn.Module):
    """Four dilated causal convolutions with skips, and the last step's number."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The next hour."""
        x = nn.Dense(24, name="into")(x)
        for number in range(4):
            conv = nn.Conv(
                24, (2,), kernel_dilation=2**number, padding="CAUSAL", name=f"conv_{number}"
            )
            x = x + jnp.tanh(conv(x))
        return nn.Dense(1, name="next")(x[:, -1])[:, 0]


def weather(name: str) -> Network:
    """Pressure by a temporal convolutional network."""
    init, apply = of_linen(Causal(), jnp.zeros((2, 24, 1)))
    own = {"kind": "temporal conv net", "library": "linen", "task": fronts, "batched": False}
    return regression(name, init, apply, **own, steps=250, rates=(4e-3, 1e-2))


# Roads.


@functools.cache
def roads() -> Task:
    """Ten crossings, who is beside whom, and by how much each will be fuller or emptier."""
    rng = np.random.default_rng(1015)
    beside = rng.random((1024, 10, 10)) < 0.2
    beside[:, np.arange(10), (np.arange(10) + 1) % 10] = True
    beside = (beside | beside.transpose(0, 2, 1)) & ~np.eye(10, dtype=bool)
    shares = beside / beside.sum(-1, keepdims=True)
    x = rng.standard_normal((1024, 10, 3))
    near = shares @ x
    y = 1.2 * near[..., 0] + np.tanh(2 * near[..., 1]) - 0.6 * x[..., 0] + 0.4 * x[..., 2]
    train, test = parted(x, shares, standard(y, None))
    return Task(train, test, (float(np.var(test[2])),))


def traffic(name: str) -> Network:
    """A graph network: each crossing's own and its neighbors' mean, twice."""

    def init(key: Any) -> Any:
        keys, sizes = jax.random.split(key, 5), (3, 32, 32)
        layers = []
        for a, b, one, two in zip(sizes[:-1], sizes[1:], keys[:2], keys[2:4], strict=True):
            (own,), (near,) = stack(one, (a, b)), stack(two, (a, b))
            layers.append({"own": own["w"], "near": near["w"], "b": own["b"]})
        return {"layers": layers, "change": stack(keys[4], (32, 1))}

    def apply(p: Any, x: Any, shares: Any) -> Any:
        for one in p["layers"]:
            x = jax.nn.relu(x @ one["own"] + shares @ x @ one["near"] + one["b"])
        return forward(p["change"], x)[..., 0]

    own = {"kind": "traffic graph net", "library": "plain", "task": roads, "steps": 250}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Dates.


@functools.cache
def dates() -> Task:
    """Six signs of eight, and the same signs turned around, each one further by one."""
    rng = np.random.default_rng(1016)
    words = rng.integers(0, 8, (3072, 6))
    answers = (words[:, ::-1] + 1) % 8
    train, test = parted(words.astype(np.int32), answers.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def turned(name: str) -> Network:
    """Two GRUs, the second one with attention to the first one's states and forced answers."""

    def made(words: Any, before: Any) -> Any:
        seen = hk.Embed(8, 16, w_init=hk.initializers.RandomNormal(1.0), name="words")(words)
        told = hk.Embed(9, 16, w_init=hk.initializers.RandomNormal(1.0), name="told")(before)
        one, two = hk.GRU(32, name="reader"), hk.GRU(32, name="writer")
        start = one.initial_state(len(words))
        states, last = hk.dynamic_unroll(one, seen, start, time_major=False)
        outs, _ = hk.dynamic_unroll(two, told, last, time_major=False)
        scores = hk.Linear(32, name="query")(outs) @ states.swapaxes(1, 2) / 32**0.5
        found = jax.nn.softmax(scores) @ states
        x = jnp.tanh(hk.Linear(32, name="mixed")(jnp.concatenate([outs, found], -1)))
        return hk.Linear(8, name="signs")(x)

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        before = jnp.pad(batch[1][:, :-1], ((0, 0), (1, 0)), constant_values=8)
        return cross_entropy(model.apply(p, batch[0], before), batch[1])

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 6), int), jnp.zeros((2, 6), int))

    own = {"kind": "attentive seq2seq", "library": "Haiku", "task": dates, "steps": 400}
    return network(name, loss, init, **own, rates=(4e-3, 1e-2))


# Cells.


@functools.cache
def cells() -> Task:
    """Pictures, 8 x 8, of a cell and a streak in noise, and which pixels are the cell's."""
    rng = np.random.default_rng(1017)
    rows, columns = np.mgrid[:8, :8]
    middle, radius = rng.uniform(2, 6, (2, 768, 1, 1)), rng.uniform(1.5, 2.6, (768, 1, 1))
    mask = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2
    streak = rows == rng.integers(0, 8, (768, 1, 1))
    x = 1.2 * mask + 1.2 * streak * ~mask + 0.3 * rng.standard_normal(mask.shape)
    train, test = parted(standard(x, None)[..., None], mask.astype(np.float64))
    share = test[1].mean()
    return Task(train, test, (float(-share * np.log(share) - (1 - share) * np.log(1 - share)),))


class Segmenter(nn.Module):
    """A U-Net of two levels with group norms."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of pixels."""

        def block(x: Any, width: int, name: str) -> Any:
            x = nn.Conv(width, (3, 3), name=name)(x)
            return nn.relu(nn.GroupNorm(2, name=f"{name}_norm")(x))

        fine = block(x, 8, "fine")
        coarse = block(nn.avg_pool(fine, (2, 2), (2, 2)), 16, "coarse")
        coarse = block(coarse, 16, "deepest").repeat(2, 1).repeat(2, 2)
        x = block(jnp.concatenate([fine, coarse], -1), 8, "joined")
        return nn.Conv(1, (1, 1), name="mask")(x)[..., 0]


def segmenter(name: str) -> Network:
    """Which pixels are a cell's, by a U-Net."""
    init, apply = of_linen(Segmenter(), jnp.zeros((2, 8, 8, 1)))

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(apply(p, batch[0]), batch[1]).mean()

    own = {"kind": "U-Net of cells", "library": "linen", "task": cells, "batched": False}
    return network(name, loss, init, **own, batch=16, rates=(4e-3, 1e-2))


# Arms.


@functools.cache
def arms() -> Task:
    """Where a robot's arm reaches along a line, and its angle, of which two are right."""
    rng = np.random.default_rng(1018)
    x, side = rng.uniform(-1, 1, (2048, 1)), rng.integers(0, 2, 2048) * 2 - 1
    y = side * (1.2 + 0.6 * np.sin(2.5 * x[:, 0])) + 0.3 * x[:, 0]
    y = standard(y + 0.08 * rng.standard_normal(2048))
    train, test = parted(x / x.std(), y)
    return Task(train, test, (float(0.5 * np.log(2 * np.pi * np.e * np.var(test[1]))),))


def reach(name: str) -> Network:
    """A mixture of three normal angles; as Bishop's."""

    def init(key: Any) -> Any:
        layers = stack(key, (1, 40, 40, 9))
        layers[-1]["b"] = jnp.array([0.0] * 3 + [-1.0, 0.0, 1.0] + [0.0] * 3)
        return layers

    def loss(p: Any, batch: Any) -> Any:
        logits, means, log_widths = jnp.split(forward(p, batch[0], jnp.tanh), 3, -1)
        far = (batch[1][:, None] - means) * jnp.exp(-log_widths)
        each = jax.nn.log_softmax(logits) - log_widths - 0.5 * far**2
        return -jax.nn.logsumexp(each, -1).mean() + 0.5 * np.log(2 * np.pi)

    own = {"kind": "mixture of angles", "library": "plain", "task": arms, "steps": 300}
    return network(name, loss, init, **own, rates=(4e-3, 1e-2))


# Codes.


@functools.cache
def noisy_beats() -> Task:
    """Heart beats, and the noise of four numbers that their codes are drawn with."""
    (train,), (test,), _ = beats()
    rng = np.random.default_rng(1020)
    both = [(x, rng.standard_normal((len(x), 4)).astype(np.float32)) for x in (train, test)]
    return Task(*both, (float(np.mean(np.var(test, 0)) / (2 * WIDTH**2)),))


def coded(name: str) -> Network:
    """A VAE of heart beats: errors by their width and divergence, a sample's share of both."""

    class Coded(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.encoder = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in (40, 32))
            self.mean, self.log_spread = (nnx.Linear(32, 4, rngs=rngs) for _ in range(2))
            self.decoder = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in (4, 32))
            self.samples = nnx.Linear(32, 40, rngs=rngs)

        def __call__(self, x: Any, noise: Any) -> Any:
            for layer in self.encoder:
                x = nnx.silu(layer(x))
            mean, log_spread = self.mean(x), self.log_spread(x)
            y = mean + jnp.exp(log_spread) * noise
            for layer in self.decoder:
                y = nnx.silu(layer(y))
            return self.samples(y), mean, log_spread

    init, apply = of_nnx(Coded)

    def loss(p: Any, batch: Any) -> Any:
        guess, mean, log_spread = apply(p, *batch)
        apart = 0.5 * (mean**2 + jnp.exp(2 * log_spread) - 1) - log_spread
        error = ((guess - batch[0]) / WIDTH) ** 2 / 2
        return error.mean() + apart.sum(-1).mean() / batch[0].shape[1]

    own = {"kind": "VAE of beats", "library": "nnx", "task": noisy_beats, "steps": 300}
    return network(name, loss, init, **own, rates=(2e-3, 6e-3))


# Pairs.


@functools.cache
def views() -> Task:
    """Two views, of twelve numbers each, of the same four."""
    rng = np.random.default_rng(1019)
    hidden, maps = rng.standard_normal((2048, 4)), rng.standard_normal((2, 4, 12)) / 2
    both = [np.tanh(hidden @ one) + 0.1 * rng.standard_normal((2048, 12)) for one in maps]
    train, test = parted(*(standard(x) for x in both))
    return Task(train, (test[0][:64], test[1][:64]), (float(np.log(64.0)),))


class Views(eqx.Module):
    """An encoder of each view, to the sphere, and a heat that is learned; as CLIP."""

    one: eqx.nn.MLP
    two: eqx.nn.MLP
    log_heat: Any

    def __init__(self, key: Any) -> None:
        first, second = jax.random.split(key)
        self.one = eqx.nn.MLP(12, 16, 48, 2, jax.nn.relu, key=first)
        self.two = eqx.nn.MLP(12, 16, 48, 2, jax.nn.relu, key=second)
        self.log_heat = jnp.array(2.0)

    def __call__(self, x: Any, y: Any) -> Any:
        """Codes of both, the first one's times the heat."""
        x, y = self.one(x), self.two(y)
        heat = jnp.exp(self.log_heat)
        return heat * x / jnp.linalg.norm(x), y / jnp.linalg.norm(y)


def paired(name: str) -> Network:
    """Which views belong together."""
    init, apply = of_equinox(Views)

    def loss(p: Any, batch: Any) -> Any:
        x, y = apply(p, *batch)
        return cross_entropy(x @ y.T, jnp.arange(len(x)))

    own = {"kind": "contrast of views", "library": "Equinox", "task": views, "steps": 300}
    return network(name, loss, init, **own, batch=64)
