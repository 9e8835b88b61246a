"""Networks of other kinds: melodies, clocks, plates, spindles, alarms, tones, circles."""

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
from benchmarks.real_zoo.sequences import next_token, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

NOTES, BARS = 12, 16
CALLS, WAIT, UNITS = 4, 18, 24
SAMPLES, MODES = 64, 24
PEOPLE = 16

# Melodies.


@functools.cache
def melodies() -> Task:
    """Sixteen notes, each a step of one of three kinds from the one before the last."""
    rng = np.random.default_rng(1211)
    heard = rng.integers(0, NOTES, (3072, BARS + 1))
    step = rng.permutation(NOTES)
    for place in range(2, BARS + 1):
        which = rng.choice(3, 3072, p=(0.85, 0.1, 0.05))
        follows = step[(heard[:, place - 1] + heard[:, place - 2]) % NOTES]
        heard[:, place] = (follows + np.array([0, 4, 7])[which]) % NOTES
    train, test = parted(heard.astype(np.int32))
    return Task(train, test, (float(np.log(NOTES)),))


class Melodies(nn.Module):
    """A decoder with learned places and norms before its two blocks."""

    @nn.compact
    def __call__(self, notes: Any) -> Any:
        """Logits of the note after each."""
        normal = nn.initializers.normal(0.3)
        x = nn.Embed(NOTES, 32, embedding_init=normal, name="notes")(notes)
        x = x + self.param("places", normal, (BARS, 32))[: notes.shape[1]]
        mask = nn.make_causal_mask(notes)
        for number in range(2):
            y = nn.LayerNorm(name=f"norm_{number}_a")(x)
            x = x + nn.MultiHeadDotProductAttention(4, name=f"attention_{number}")(y, mask=mask)
            y = nn.LayerNorm(name=f"norm_{number}_b")(x)
            y = nn.gelu(nn.Dense(64, name=f"up_{number}")(y))
            x = x + nn.Dense(32, name=f"down_{number}")(y)
        return nn.Dense(NOTES, name="next")(nn.LayerNorm(name="norm_last")(x))


def hummed(name: str) -> Network:
    """The notes of melodies by a causal transformer."""
    init, apply = of_linen(Melodies(), jnp.zeros((2, BARS), int))
    own = {"kind": "melody decoder", "library": "linen", "task": melodies, "steps": 400}
    return next_token(name, init, apply, **own, rates=(3e-3, 8e-3))


# Clocks.


@functools.cache
def clocks() -> Task:
    """Pictures, 12 x 12, of the hand of a clock in noise, and which of eight ways it points."""
    rng = np.random.default_rng(1212)
    which = rng.integers(0, 8, 2048)
    angle = (which + rng.uniform(-0.3, 0.3, 2048))[:, None, None] * np.pi / 4
    down, right = np.mgrid[:12, :12] - 5.5
    along = down * np.cos(angle) + right * np.sin(angle)
    across = down * np.sin(angle) - right * np.cos(angle)
    x = np.exp(-(across**2)) * (along > 0) * (along < 5.5)
    x = standard(x + 0.15 * rng.standard_normal(x.shape), None)
    train, test = parted(x[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Block(nnx.Module):
    """Attention and an MLP, their norms before them, their sizes learned; as CaiT's."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm_a, self.norm_b = nnx.LayerNorm(32, rngs=rngs), nnx.LayerNorm(32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)
        self.size_a, self.size_b = nnx.Param(jnp.full(32, 0.5)), nnx.Param(jnp.full(32, 0.5))

    def __call__(self, x: Any) -> Any:
        """The next tokens."""
        x = x + self.size_a[...] * self.attention(self.norm_a(x))
        return x + self.size_b[...] * self.down(nnx.gelu(self.up(self.norm_b(x))))


def pointed(name: str) -> Network:
    """Which way a hand points, by a vision transformer with a token for the class."""

    class Clocks(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.patches = nnx.Linear(9, 32, rngs=rngs)
            self.token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, 32)))
            self.places = nnx.Param(0.3 * jax.random.normal(rngs.params(), (17, 32)))
            self.blocks = nnx.List(Block(rngs) for _ in range(3))
            self.norm, self.ways = nnx.LayerNorm(32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x.reshape(-1, 4, 3, 4, 3).swapaxes(2, 3).reshape(-1, 16, 9)
            token = jnp.broadcast_to(self.token[...], (len(x), 1, 32))
            x = jnp.concatenate([token, self.patches(x)], 1) + self.places[...]
            for block in self.blocks:
                x = block(x)
            return self.ways(self.norm(x[:, 0]))

    init, apply = of_nnx(Clocks)
    own = {"kind": "ViT with a class token", "library": "nnx", "task": clocks, "steps": 250}
    return classifier(name, init, apply, **own, rates=(1e-3, 3e-3))


# Plates.


@functools.cache
def plates() -> Task:
    """Pictures, 8 x 8, of stripes of one of four slants over a slope, and which."""
    rng = np.random.default_rng(1213)
    which, phase = rng.integers(0, 4, 1024), rng.uniform(0, 2 * np.pi, (1024, 1, 1))
    rows, columns = np.mgrid[:8, :8]
    angle = (np.array([0.2, 0.9, 1.7, 2.5])[which] + rng.normal(0, 0.1, 1024))[:, None, None]
    x = np.sin(1.5 * (rows * np.cos(angle) + columns * np.sin(angle)) + phase)
    x = x + 0.2 * rng.standard_normal((1024, 1, 1)) * rows + 0.6 * rng.standard_normal(x.shape)
    train, test = parted(standard(x, None)[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def scratched(name: str, *, blocks: int = 3, norms: bool = True, **rest: Any) -> Network:
    """Which way a plate is scratched, by residual convolutions and their norms of groups."""

    def made(x: Any) -> Any:
        he = hk.initializers.VarianceScaling(2.0)
        norm = lambda y, name: hk.GroupNorm(4, name=name)(y) if norms else y  # noqa: E731
        x = hk.Conv2D(12, 3, w_init=he, name="stem")(x)
        for number in range(blocks):
            stride = 2 if number == 0 else 1
            y = jax.nn.relu(norm(x, f"norm_{number}_a"))
            y = hk.Conv2D(12, 3, stride, w_init=he, name=f"conv_{number}_a")(y)
            y = jax.nn.relu(norm(y, f"norm_{number}_b"))
            y = hk.Conv2D(12, 3, w_init=he, name=f"conv_{number}_b")(y)
            x = (hk.avg_pool(x, 2, 2, "SAME") if number == 0 else x) + y
        return hk.Linear(4, name="ways")(jax.nn.relu(norm(x, "norm_last")).mean((1, 2)))

    model = hk.without_apply_rng(hk.transform(made))

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 8, 8, 1)))

    own = {"kind": "ResNet of plates", "library": "Haiku", "task": plates, "batched": False}
    return classifier(name, init, model.apply, **own | {"rates": (1e-3, 4e-3)} | rest)


# Spindles.


@functools.cache
def spindles() -> Task:
    """Sixty-four samples with a short burst or two in slow waves, and when it lasts."""
    rng = np.random.default_rng(1214)
    time, x, told = np.arange(64), np.zeros((1024, 64)), np.zeros((1024, 64))
    for _ in range(2):
        start, long = rng.uniform(-10, 60, (1024, 1)), rng.uniform(10, 18, (1024, 1))
        inside = (time >= start) & (time < start + long)
        x += inside * 1.5 * np.sin(1.7 * time + rng.uniform(0, 6.3, (1024, 1)))
        told = np.maximum(told, inside)
    x += 1.2 * np.sin(0.25 * time + rng.uniform(0, 6.3, (1024, 1)))
    x = standard(x + 0.4 * rng.standard_normal(x.shape), None)
    train, test = parted(x[..., None], told)
    return Task(train, test, (entropy(test[1].astype(int)),))


class Spindles(nn.Module):
    """Two halvings, two doublings, and what was before each halving beside them."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of each sample."""

        def conv(x: Any, width: int, name: str) -> Any:
            return nn.relu(nn.Conv(width, (5,), kernel_init=gaussian(1.4), name=name)(x))

        one = conv(x, 12, "down_0")
        two = conv(nn.max_pool(one, (2,), (2,)), 16, "down_1")
        x = conv(nn.max_pool(two, (2,), (2,)), 24, "middle")
        x = conv(jnp.concatenate([jnp.repeat(x, 2, 1), two], -1), 16, "up_1")
        x = conv(jnp.concatenate([jnp.repeat(x, 2, 1), one], -1), 12, "up_0")
        return nn.Conv(1, (1,), name="spindle")(x)[..., 0]


def slept(name: str) -> Network:
    """When a burst lasts, by a U-Net in time."""
    init, apply = of_linen(Spindles(), jnp.zeros((2, 64, 1)))

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(apply(p, batch[0]), batch[1]).mean()

    own = {"kind": "U-Net of spindles", "library": "linen", "task": spindles, "batched": False}
    return network(name, loss, init, **own, rates=(1e-3, 4e-3))


# Alarms.


@functools.cache
def alarms() -> Task:
    """One of four calls at the start, eighteen steps of noise, and which call it was."""
    rng = np.random.default_rng(1215)
    which = rng.integers(0, CALLS, 2048)
    x = 0.3 * rng.standard_normal((2048, WAIT, CALLS))
    x[np.arange(2048), rng.integers(0, 3, 2048), which] += 2
    train, test = parted(x, which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def rung(name: str) -> Network:
    """Which call there was, by an LSTM whose gates of forgetting start open."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "inputs": jax.random.normal(keys[0], (CALLS, 4 * UNITS)) / CALLS**0.5,
            "states": jax.random.normal(keys[1], (UNITS, 4 * UNITS)) / UNITS**0.5,
            "bias": {"forget": jnp.ones(UNITS), "rest": jnp.zeros(3 * UNITS)},
            "out": stack(keys[2], (UNITS, CALLS)),
        }

    def apply(p: Any, x: Any) -> Any:
        bias = jnp.concatenate([p["bias"]["forget"], p["bias"]["rest"]])

        def step(before: Any, x: Any) -> Any:
            state, cell = before
            gates = x @ p["inputs"] + state @ p["states"] + bias
            forget, into, out, new = jnp.split(gates, 4, -1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
            return (jax.nn.sigmoid(out) * jnp.tanh(cell), cell), None

        start = jnp.zeros((len(x), UNITS), p["states"].dtype)
        (state, _), _ = jax.lax.scan(step, (start, start), x.swapaxes(0, 1))
        return forward(p["out"], state)

    own = {"kind": "LSTM of alarms", "library": "plain", "task": alarms, "steps": 300}
    return classifier(name, init, apply, **own, rates=(4e-3, 1e-2))


# Tones.


@functools.cache
def tones() -> Task:
    """Sixty-four samples of noise and a tone, and which of six pitches it has."""
    rng = np.random.default_rng(1216)
    which = rng.integers(0, 6, 2048)
    pitch = np.array([0.15, 0.22, 0.32, 0.45, 0.63, 0.9])[which] * rng.uniform(0.95, 1.05, 2048)
    x = np.sin(pitch[:, None] * np.arange(SAMPLES) + rng.uniform(0, 6.3, (2048, 1)))
    x = standard(x + 0.7 * rng.standard_normal(x.shape), None)
    train, test = parted(x, which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Tones(eqx.Module):
    """Diagonal states of 1 / 2 + a turn that grows, over steps of several lengths; as S4D's."""

    log_step: Any
    log_real: Any
    turn: Any
    into: Any
    out: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.log_step = jax.random.uniform(keys[0], (MODES,), minval=-4.0, maxval=-1.5)
        self.log_real = jnp.full(MODES, np.log(0.5))
        self.turn = np.pi * jnp.arange(MODES, dtype=jnp.float32) / 4
        self.into = jax.random.normal(keys[1], (2, MODES))
        self.out = eqx.nn.MLP(MODES, 6, 32, 1, key=keys[2])

    def __call__(self, x: Any) -> Any:
        """Logits of pitches, from the mean size of each state."""
        step = jnp.exp(self.log_step)
        move = jnp.exp(step * (-jnp.exp(self.log_real) + 1j * self.turn))
        scaled = step * (self.into[0] + 1j * self.into[1])

        def advance(state: Any, now: Any) -> Any:
            state = move * state + scaled * now
            return state, jnp.square(state.real) + jnp.square(state.imag)

        _, sizes = jax.lax.scan(advance, jnp.zeros(MODES, jnp.complex64), x)
        return self.out(jnp.sqrt(sizes.mean(0) + 1e-6))


def toned(name: str) -> Network:
    """Which pitch a tone has, by a diagonal state space."""
    init, apply = of_equinox(Tones)
    own = {"kind": "diagonal state space", "library": "Equinox", "task": tones, "steps": 250}
    return classifier(name, init, apply, **own, rates=(4e-3, 1e-2))


# Circles.


@functools.cache
def circles() -> Task:
    """Sixteen people with five traits, whom they know, and what their friends' say of each."""
    rng = np.random.default_rng(1217)
    x, group = rng.standard_normal((1024, PEOPLE, 5)), rng.integers(0, 2, (1024, PEOPLE))
    same = group[:, :, None] == group[:, None]
    known = np.triu(rng.uniform(size=same.shape) < np.where(same, 0.7, 0.1), 1)
    known = known | known.swapaxes(1, 2) | np.eye(PEOPLE, dtype=bool)
    known = known.astype(np.float64)
    mean = known @ x / known.sum(-1, keepdims=True)
    y = 1.2 * np.tanh(3 * mean[..., 0]) + 1.5 * mean[..., 1] + 0.7 * x[..., 2] + 0.5 * x[..., 3]
    train, test = parted(x, known, standard(y, None))
    return Task(train, test, (float(np.var(test[2])),))


class Circles(nn.Module):
    """Graph convolutions over means or sums of friends."""

    depth: int
    sums: bool

    @nn.compact
    def __call__(self, x: Any, known: Any) -> Any:
        """A number of each person."""
        near = known if self.sums else known / known.sum(-1, keepdims=True)
        for number in range(self.depth):
            x = nn.relu(nn.Dense(32, kernel_init=gaussian(1.4), name=f"graph_{number}")(near @ x))
        return nn.Dense(1, name="number")(x)[..., 0]


class Own(nn.Module):
    """Graph convolutions that add what each person was; as GraphConv."""

    depth: int = 2
    sums: bool = False

    @nn.compact
    def __call__(self, x: Any, known: Any) -> Any:
        """A number of each person."""
        near = known if self.sums else known / known.sum(-1, keepdims=True)
        for number in range(self.depth):
            friends = nn.Dense(32, use_bias=False, name=f"friends_{number}")(near @ x)
            x = nn.relu(nn.Dense(32, kernel_init=gaussian(1.4), name=f"own_{number}")(x) + friends)
        return nn.Dense(1, name="number")(x)[..., 0]


def befriended(name: str, module: Any = None, **rest: Any) -> Network:
    """Numbers of people by graph convolutions."""
    example = jnp.zeros((2, PEOPLE, 5)), jnp.ones((2, PEOPLE, PEOPLE))
    init, apply = of_linen(module or Own(), *example)
    own = {"kind": "graph of circles", "library": "linen", "task": circles, "steps": 300}
    return regression(name, init, apply, **own, **rest)
