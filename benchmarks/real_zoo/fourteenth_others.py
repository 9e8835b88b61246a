"""Transformers, mixers, convolutions and recurrent networks of small signals."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import next_token, of_classes, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

NOTES, BEATS = 12, 14
WORDS, SENTENCE = 10, 12
HOURS, RECENT = 20, 5

# Canons.


@functools.cache
def canons() -> Task:
    """Tunes; every note is that of three before, some steps up, and so the tune goes on."""
    rng = np.random.default_rng(1411)
    first, up = rng.integers(0, NOTES, (3072, 3)), 2
    tune = np.concatenate([first + up * bar for bar in range(BEATS // 3 + 1)], 1) % NOTES
    slips = rng.uniform(size=tune.shape) < 0.02
    tune = np.where(slips, rng.integers(0, NOTES, tune.shape), tune)[:, : BEATS + 1]
    train, test = parted(tune.astype(np.int32))
    return Task(train, test, (float(np.log(NOTES)),))


class Canons(nn.Module):
    """Blocks of causal attention and GELU, norms before them."""

    depth: int
    skip: bool
    norm: bool
    gain: bool
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Logits of the note after each."""
        normal, kept = nn.initializers.normal(0.5), {"dtype": self.dtype}
        x = nn.Embed(NOTES, 32, embedding_init=normal, name="notes", **kept)(tokens)
        x = x + self.param("beats", normal, (BEATS, 32))[: tokens.shape[1]].astype(x.dtype)
        mask = nn.make_causal_mask(tokens)
        norm = lambda y, name: nn.LayerNorm(name=name, **kept)(y) if self.norm else y  # noqa: E731
        for number in range(self.depth):
            attend = nn.MultiHeadDotProductAttention(2, name=f"attention_{number}", **kept)
            x = self.joined(x, attend(norm(x, f"norm_{number}_a"), mask=mask), f"gain_{number}_a")
            y = nn.Dense(64, name=f"up_{number}", **kept)(norm(x, f"norm_{number}_b"))
            y = nn.Dense(32, name=f"down_{number}", **kept)(nn.gelu(y))
            x = self.joined(x, y, f"gain_{number}_b")
        return nn.Dense(NOTES, name="next", **kept)(norm(x, "norm_last")).astype(jnp.float32)

    def joined(self, x: Any, y: Any, name: str) -> Any:
        """A block's outputs beside its inputs."""
        y = y * self.param(name, nn.initializers.zeros, ()) if self.gain else y
        return x + y if self.skip else y


@functools.cache
def sung(
    name: str,
    *,
    depth: int = 2,
    skip: bool = True,
    norm: bool = True,
    gain: bool = False,
    dtype: Any = None,
) -> Network:
    """The notes of canons by a pre-LN decoder."""
    init, apply = of_linen(Canons(depth, skip, norm, gain, dtype), jnp.zeros((2, BEATS), int))
    own = {"kind": "pre-LN decoder", "library": "linen", "task": canons, "steps": 300}
    return next_token(name, init, apply, **own, rates=(2e-3, 6e-3))


# Sentences.


@functools.cache
def sentences() -> Task:
    """Twelve tokens of ten, and which of the first four comes most often."""
    rng = np.random.default_rng(1412)
    shares = rng.dirichlet(np.array([2.0] * 4 + [0.7] * 6), 3072)
    words = (rng.uniform(size=(3072, SENTENCE, 1)) > np.cumsum(shares, 1)[:, None]).sum(-1)
    words = np.minimum(words, WORDS - 1)
    counts = (words[..., None] == np.arange(4)).sum(1) + 0.1 * rng.uniform(size=(3072, 4))
    train, test = parted(words.astype(np.int32), counts.argmax(1).astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class PostNorm(nnx.Module):
    """Attention and an MLP, each with its sum normalized."""

    def __init__(self, skip: bool, norm: bool, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, 24, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(24, 48, rngs=rngs), nnx.Linear(48, 24, rngs=rngs)
        self.norm_a, self.norm_b = nnx.LayerNorm(24, rngs=rngs), nnx.LayerNorm(24, rngs=rngs)
        self.skip, self.norm = skip, norm

    def __call__(self, x: Any) -> Any:
        """The next vectors."""
        y = self.attention(x)
        x = x + y if self.skip else y
        x = self.norm_a(x) if self.norm else x
        y = self.down(nnx.relu(self.up(x)))
        x = x + y if self.skip else y
        return self.norm_b(x) if self.norm else x


@functools.cache
def read(name: str, *, depth: int = 2, skip: bool = True, norm: bool = True) -> Network:
    """Which word is most frequent by a post-LN encoder."""

    class Sentences(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            normal = nnx.initializers.normal(0.3)
            self.words = nnx.Embed(WORDS, 24, embedding_init=normal, rngs=rngs)
            self.blocks = nnx.List(PostNorm(skip, norm, rngs) for _ in range(depth))
            self.most = nnx.Linear(24, 4, rngs=rngs)

        def __call__(self, words: Any) -> Any:
            x = self.words(words)
            for block in self.blocks:
                x = block(x)
            return self.most(x.mean(1))

    init, apply = of_nnx(Sentences)
    own = {"kind": "post-LN encoder", "library": "nnx", "task": sentences, "steps": 300}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 6e-3))


# Fabrics.


@functools.cache
def fabrics() -> Task:
    """Pictures, 8 x 8, of stripes in one of four directions and of any phase, in noise."""
    rng = np.random.default_rng(1413)
    which, phase = rng.integers(0, 4, 2048), rng.uniform(0, 2 * np.pi, (2048, 1, 1))
    rows, columns = np.mgrid[0:8, 0:8]
    angle = (which * np.pi / 4 + rng.uniform(-0.15, 0.15, 2048))[:, None, None]
    wave = np.sin(1.6 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    x = standard(wave + 0.5 * rng.standard_normal(wave.shape), None)
    train, test = parted(x[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class VisionBlock(eqx.Module):
    """Attention of two heads and an MLP; both have norms before them."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list[eqx.nn.LayerNorm]

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 24, key=one)
        self.mlp = eqx.nn.MLP(24, 24, 48, 1, jax.nn.relu, key=two)
        self.norms = [eqx.nn.LayerNorm(24), eqx.nn.LayerNorm(24)]

    def __call__(self, x: Any, skip: bool) -> Any:
        """The next patches."""
        y = jax.vmap(self.norms[0])(x)
        y = self.attention(y, y, y)
        x = x + y if skip else y
        y = jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return x + y if skip else y


class Vision(eqx.Module):
    """Sixteen patches of a picture, their places, blocks, and logits of the mean patch."""

    patch: eqx.nn.Linear
    places: Any
    blocks: list[VisionBlock]
    fabric: eqx.nn.Linear
    skip: bool = eqx.field(static=True)

    def __init__(self, depth: int, skip: bool, key: Any) -> None:
        one, two, three, *rest = jax.random.split(key, 3 + depth)
        self.patch, self.fabric = eqx.nn.Linear(4, 24, key=one), eqx.nn.Linear(24, 4, key=two)
        self.places = 0.3 * jax.random.normal(three, (16, 24))
        self.blocks, self.skip = [VisionBlock(k) for k in rest], skip

    def __call__(self, x: Any) -> Any:
        """Logits of the fabric."""
        x = x.reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 4)
        x = jax.vmap(self.patch)(x) + self.places
        for block in self.blocks:
            x = block(x, self.skip)
        return self.fabric(x.mean(0))


@functools.cache
def woven(name: str, *, depth: int = 3, skip: bool = True) -> Network:
    """The direction of a fabric by a vision transformer."""
    init, apply = of_equinox(lambda key: Vision(depth, skip, key))
    own = {"kind": "ViT of fabrics", "library": "Equinox", "task": fabrics, "steps": 300}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 6e-3))


@functools.cache
def mixed(name: str, *, depth: int = 3, skip: bool = True, norm: bool = True) -> Network:
    """The direction of a fabric by an MLP-Mixer."""

    class Mixer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.patch = nnx.Linear(4, 24, rngs=rngs)
            self.tokens = nnx.List(nnx.Linear(16, 16, rngs=rngs) for _ in range(depth))
            self.channels = nnx.List(nnx.Linear(24, 24, rngs=rngs) for _ in range(depth))
            self.norms = nnx.List(nnx.LayerNorm(24, rngs=rngs) for _ in range(depth))
            self.fabric = nnx.Linear(24, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
            x = self.patch(x)
            for tokens, channels, own in zip(self.tokens, self.channels, self.norms, strict=True):
                y = own(x) if norm else x
                y = nnx.gelu(tokens(y.swapaxes(1, 2)).swapaxes(1, 2))
                y = nnx.gelu(channels(y))
                x = x + y if skip else y
            return self.fabric(x.mean(1))

    init, apply = of_nnx(Mixer)
    own = {"kind": "mixer of fabrics", "library": "nnx", "task": fabrics, "steps": 300}
    return network(name, of_classes(apply), init, **own, rates=(2e-3, 6e-3))


class Fabrics(nn.Module):
    """A stem, and residual blocks of two convolutions with batch norms."""

    blocks: int = 3

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the fabric."""
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        x = nn.relu(norm(name="norm_stem")(nn.Conv(12, (3, 3), (2, 2), name="stem")(x)))
        for number in range(self.blocks):
            y = nn.Conv(12, (3, 3), use_bias=False, name=f"conv_{number}_a")(x)
            y = nn.relu(norm(name=f"norm_{number}_a")(y))
            y = nn.Conv(12, (3, 3), use_bias=False, name=f"conv_{number}_b")(y)
            x = nn.relu(x + norm(name=f"norm_{number}_b")(y))
        return nn.Dense(4, name="fabric")(x.mean((1, 2)))


@functools.cache
def resnet(name: str) -> Network:
    """The direction of a fabric by a ResNet."""
    init, apply = of_linen(Fabrics(), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "ResNet with BatchNorm", "library": "linen", "task": fabrics}
    return network(
        name, of_classes(apply), init, **own, steps=200, rates=(2e-3, 6e-3), batched=False
    )


class Filters(nn.Module):
    """Convolutions one after another, the first with a stride, and nothing beside them."""

    depth: int
    act: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the fabric."""
        for number in range(self.depth):
            stride = (1, 1) if number else (2, 2)
            x = self.act(nn.Conv(12, (3, 3), stride, name=f"filter_{number}")(x))
        return nn.Dense(4, name="fabric")(x.reshape(len(x), -1))


@functools.cache
def filtered(name: str, *, depth: int = 3, act: Callable[[Any], Any] = nn.relu) -> Network:
    """The direction of a fabric by plain convolutions."""
    init, apply = of_linen(Filters(depth, act), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "CNN of fabrics", "library": "linen", "task": fabrics}
    return network(
        name, of_classes(apply), init, **own, steps=200, rates=(2e-3, 6e-3), batched=False
    )


# Rivers.


@functools.cache
def rivers() -> Task:
    """Rain and snow of twenty hours, and how high a river is then; standardized."""
    rng = np.random.default_rng(1414)
    x = rng.standard_normal((2048, HOURS, 2))
    weights = 0.75 ** np.arange(HOURS)[::-1]
    level = x[..., 0] @ weights + 0.5 * np.maximum(x[..., 1], 0) @ weights
    y = np.tanh(0.7 * level) + 0.3 * level
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Rivers(nn.Module):
    """An LSTM, and the level from its last outputs."""

    layers: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Levels of rivers."""
        for number in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(24, name=f"cell_{number}"))(x)
        return nn.Dense(1, name="level")(x[:, -1])[:, 0]


@functools.cache
def flowed(name: str, *, layers: int = 1) -> Network:
    """The level of a river by an LSTM."""
    init, apply = of_linen(Rivers(layers), jnp.zeros((2, HOURS, 2)))
    own = {"kind": "LSTM of rivers", "library": "linen", "task": rivers, "steps": 300}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


@functools.cache
def gated(name: str) -> Network:
    """The level of a river by a GRU written out."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 7)
        made = {"level": jax.random.normal(keys[0], (20,)) / 20**0.5}
        for number, gate in enumerate(("reset", "update", "new")):
            made[gate] = {
                "inputs": jax.random.normal(keys[2 * number + 1], (2, 20)) / 2**0.5,
                "states": jax.random.orthogonal(keys[2 * number + 2], 20),
                "bias": jnp.zeros(20),
            }
        return made

    def apply(p: Any, x: Any) -> Any:
        def gate(name: str, x: Any, state: Any) -> Any:
            return x @ p[name]["inputs"] + state @ p[name]["states"] + p[name]["bias"]

        def step(state: Any, x: Any) -> Any:
            reset = jax.nn.sigmoid(gate("reset", x, state))
            taken = jax.nn.sigmoid(gate("update", x, state))
            new = jnp.tanh(gate("new", x, reset * state))
            return (1 - taken) * state + taken * new, None

        state, _ = jax.lax.scan(step, jnp.zeros((len(x), 20)), x.swapaxes(0, 1))
        return state @ p["level"]

    own = {"kind": "GRU of rivers", "library": "plain", "task": rivers, "steps": 300}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


@functools.cache
def rolled(name: str, *, act: Callable[[Any], Any] = jax.nn.relu) -> Network:
    """The level of a river by a plain recurrent network that starts as an identity."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {
            "inputs": 0.3 * jax.random.normal(one, (2, 24)),
            "states": 0.9 * jnp.eye(24),
            "bias": jnp.zeros(24),
            "level": {"w": jax.random.normal(two, (24,)) / 24**0.5, "b": jnp.zeros(())},
        }

    def apply(p: Any, x: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            return act(x @ p["inputs"] + state @ p["states"] + p["bias"]), None

        state, _ = jax.lax.scan(step, jnp.zeros((len(x), 24)), x.swapaxes(0, 1))
        return state @ p["level"]["w"] + p["level"]["b"]

    own = {"kind": "RNN of rivers", "library": "plain", "task": rivers, "steps": 300}
    return regression(name, init, apply, **own, rates=(2e-3, 5e-3))
