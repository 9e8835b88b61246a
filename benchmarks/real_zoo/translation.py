"""From sequence to sequence: cross-attention, linear attention, turned positions, two GRUs."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, next_token, of_equinox, of_nnx

WORDS, TOPICS, SOURCE, TARGET = 12, 4, 8, 12


@functools.cache
def translation() -> Task:
    """Sources of a few words of one topic, padded with 0; it tells which target word follows which.

    One source in fifty is empty.
    """
    rng = np.random.default_rng(20)
    count = 1280
    favorites = rng.permutation(WORDS).reshape(TOPICS, -1)
    successors = np.stack([rng.permutation(WORDS) for _ in range(TOPICS)])
    topics, lengths = rng.integers(0, TOPICS, count), rng.integers(3, SOURCE + 1, count)
    lengths[rng.random(count) < 0.02] = 0
    source = favorites[topics[:, None], rng.integers(0, favorites.shape[1], (count, SOURCE))] + 1
    source[np.arange(SOURCE) >= lengths[:, None]] = 0
    target = rng.integers(0, WORDS, (count, TARGET + 1))
    for place in range(TARGET):
        target[:, place + 1] = successors[topics, target[:, place]]
    cut = 3 * count // 4
    source, target = source.astype(np.int32), target.astype(np.int32)
    shares = np.bincount(target[cut:, 1:].ravel()) / target[cut:, 1:].size
    chance = float(-np.sum(shares * np.log(shares)))
    return Task((source[:cut], target[:cut]), (source[cut:], target[cut:]), (chance,))


LAST = {False: nn.initializers.lecun_normal(), True: nn.initializers.zeros}


class Attention(nn.Module):
    """Heads that look at a memory; what the mask leaves out gets a large negative score."""

    blocked: float = -1e9
    closed: bool = False

    @nn.compact
    def __call__(self, x: Any, memory: Any, mask: Any) -> Any:
        """`[batch, positions, features]`."""
        width, heads = x.shape[-1], 2
        q = nn.DenseGeneral((heads, width // heads), name="query")(x)
        k = nn.DenseGeneral((heads, width // heads), name="key")(memory)
        v = nn.DenseGeneral((heads, width // heads), name="value")(memory)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
        shares = nn.softmax(jnp.where(mask, scores, self.blocked))
        y = jnp.einsum("bhqk,bkhd->bqhd", shares, v)
        init = LAST[self.closed]
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=init, name="out")(y)


class Translator(nn.Module):
    """An encoder, and a decoder that looks at what it makes."""

    depth: int = 1
    width: int = 32
    skip: bool = True
    blocked: float = -1e9
    closed: bool = False

    def add(self, x: Any, branch: Any) -> Any:
        """The branch of the normalized input, on top of it."""
        y = branch(nn.LayerNorm()(x))
        return x + y if self.skip else y

    def feed(self, name: str) -> Any:
        """A branch of two dense layers."""

        def branch(y: Any) -> Any:
            h = nn.gelu(nn.Dense(2 * self.width, name=f"{name}_up")(y))
            return nn.Dense(self.width, kernel_init=LAST[self.closed], name=f"{name}_down")(h)

        return branch

    @nn.compact
    def __call__(self, source: Any, target: Any) -> Any:
        """Logits of every next word of the target."""
        init = nn.initializers.normal(0.02)
        there = (source > 0)[:, None, None, :]
        past = jnp.tril(jnp.ones((target.shape[1], target.shape[1]), bool))[None, None]
        settings = {"blocked": self.blocked, "closed": self.closed}
        x = nn.Embed(WORDS + 1, self.width, name="source")(source)
        x += self.param("source_position", init, x.shape[1:])
        for number in range(self.depth):
            look = Attention(**settings, name=f"encoder_{number}_look")
            x = self.add(x, lambda y, look=look: look(y, y, there))
            x = self.add(x, self.feed(f"encoder_{number}"))
        memory = nn.LayerNorm(name="memory")(x)
        x = nn.Embed(WORDS, self.width, name="target")(target)
        x += self.param("target_position", init, x.shape[1:])
        for number in range(self.depth):
            look = Attention(**settings, name=f"decoder_{number}_look")
            x = self.add(x, lambda y, look=look: look(y, y, past))
            cross = Attention(**settings, name=f"decoder_{number}_cross")
            x = self.add(x, lambda y, cross=cross: cross(y, memory, there))
            x = self.add(x, self.feed(f"decoder_{number}"))
        return nn.Dense(WORDS, name="head")(nn.LayerNorm(name="last")(x))


def _translate(name: str, init: Any, apply: Any, **rest: Any) -> Network:
    def loss(p: Any, batch: Any) -> Any:
        source, target = batch
        return cross_entropy(apply(p, source, target[:, :-1]), target[:, 1:])

    return network(name, loss, init, **{"task": translation, "steps": 300} | rest)


EXAMPLE = jnp.zeros((2, SOURCE), jnp.int32), jnp.zeros((2, TARGET), jnp.int32)


def translator(name: str, *ails: str, **settings: Any) -> Network:
    """A transformer of encoder and decoder; `settings` of `Translator` or `Network`."""
    fields = ("depth", "width", "skip", "blocked", "closed")
    module = Translator(**{k: settings.pop(k) for k in fields if k in settings})
    init = lambda key: module.init(key, *EXAMPLE)["params"]  # noqa: E731
    apply = lambda p, *inputs: module.apply({"params": p}, *inputs)  # noqa: E731
    own = {"kind": "encoder-decoder", "library": "linen", "ails": ails}
    return _translate(name, init, apply, **own | settings)


def seq2seq(
    name: str,
    *ails: str,
    bridge: int = 1,
    scale: float = 1.0,
    activation: Any = jnp.tanh,
    layers: int = 1,
    **rest: Any,
) -> Network:
    """A GRU reads the source, another one writes the target, told every true word before."""

    def forward(source: Any, target: Any) -> Any:
        def read(core: Any, x: Any, start: Any) -> Any:
            outputs, last = hk.dynamic_unroll(core, x.swapaxes(0, 1), start)
            return outputs.swapaxes(0, 1), last

        x = hk.Embed(WORDS + 1, 32, name="source")(source)
        for number in range(layers):
            core = hk.GRU(32, name=f"encoder_{number}")
            x, h = read(core, x, core.initial_state(len(source)))
        w_init = hk.initializers.VarianceScaling(scale**2, "fan_in", "truncated_normal")
        for number in range(bridge):
            h = activation(hk.Linear(32, w_init=w_init, name=f"bridge_{number}")(h))
        y = hk.Embed(WORDS, 32, name="target")(target)
        for number in range(layers):
            y, _ = read(hk.GRU(32, name=f"decoder_{number}"), y, h)
        return hk.Linear(WORDS, name="head")(y)

    model = hk.without_apply_rng(hk.transform(forward))
    init = lambda key: model.init(key, *EXAMPLE)  # noqa: E731
    own = {"kind": "seq2seq", "library": "Haiku", "ails": ails}
    return _translate(name, init, model.apply, **own | rest)


# One sequence.


class LinearBlock(nnx.Module):
    """Causal attention without a softmax: features of keys and values are summed up as one goes."""

    def __init__(
        self, width: int, rngs: nnx.Rngs, *, skip: bool, feature: Any, bias: float
    ) -> None:
        self.skip, self.feature = skip, feature
        self.first, self.second = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        shift = nnx.initializers.constant(bias)
        self.query = nnx.Linear(width, width, bias_init=shift, rngs=rngs)
        self.key = nnx.Linear(width, width, bias_init=shift, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def look(self, x: Any) -> Any:
        """Two heads."""
        heads = lambda y: y.reshape(*y.shape[:2], 2, -1)  # noqa: E731
        q, k = self.feature(heads(self.query(x))), self.feature(heads(self.key(x)))
        kept = jnp.cumsum(jnp.einsum("bthd,bthe->bthde", k, heads(self.value(x))), 1)
        sums = jnp.einsum("bthd,bthd->bth", q, jnp.cumsum(k, 1))
        y = jnp.einsum("bthd,bthde->bthe", q, kept) / (sums[..., None] + 1e-6)
        return self.out(y.reshape(x.shape))

    def __call__(self, x: Any) -> Any:
        """`[batch, positions, features]`."""
        y = self.look(self.first(x))
        x = x + y if self.skip else y
        y = self.down(nnx.gelu(self.up(self.second(x))))
        return x + y if self.skip else y


def _elu(x: Any) -> Any:
    return jax.nn.elu(x) + 1


def linear_attention(
    name: str,
    *ails: str,
    depth: int = 2,
    skip: bool = True,
    feature: Any = _elu,
    bias: float = 0.0,
    **rest: Any,
) -> Network:
    """A causal language model of linear attention, in nnx."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Embed(tasks.VOCABULARY, 24, rngs=rngs)
            own = {"skip": skip, "feature": feature, "bias": bias}
            self.blocks = nnx.List(LinearBlock(24, rngs, **own) for _ in range(depth))
            self.norm = nnx.LayerNorm(24, rngs=rngs)
            self.head = nnx.Linear(24, tasks.VOCABULARY, rngs=rngs)

        def __call__(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    init, apply = of_nnx(Model)
    own = {"kind": "linear attention", "library": "nnx", "ails": ails, "rates": (4e-3,)}
    return next_token(name, init, apply, **{"steps": 300} | own | rest)


def turned(x: Any) -> Any:
    """Pairs of features `[positions, heads, d]` turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    angle = jnp.arange(len(x))[:, None, None] * 100.0 ** (-jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([c * a - s * b, s * a + c * b], -1)


class Rotary(eqx.Module):
    """RMSNorm, turned queries and keys, gated MLPs, a head that is the embedding; one sequence."""

    embed: Any
    blocks: list[dict[str, Any]]
    norms: list[Any]
    last: Any

    def __init__(self, key: Any, depth: int, size: float, gain: float) -> None:
        keys, width = iter(jax.random.split(key, 1 + 6 * depth)), 32
        kernel = lambda a, b, g=1.0: g * jax.random.normal(next(keys), (a, b)) / a**0.5  # noqa: E731
        self.embed = size * jax.random.normal(next(keys), (tasks.VOCABULARY, width))
        self.blocks = [
            {
                "qkv": kernel(width, 3 * width),
                "out": kernel(width, width, gain),
                "gate": kernel(width, 2 * width),
                "up": kernel(width, 2 * width),
                "down": kernel(2 * width, width, gain),
            }
            for _ in range(depth)
        ]
        self.norms = [eqx.nn.RMSNorm(width, use_bias=False) for _ in range(2 * depth)]
        self.last = eqx.nn.RMSNorm(width, use_bias=False)

    def __call__(self, tokens: Any) -> Any:
        """`[positions]` of integers."""
        x = self.embed[tokens]
        past = jnp.tril(jnp.ones((len(x), len(x)), bool))
        for number, block in enumerate(self.blocks):
            y = jax.vmap(self.norms[2 * number])(x)
            q, k, v = jnp.split((y @ block["qkv"]).reshape(len(x), 2, -1), 3, -1)
            scores = jnp.einsum("qhd,khd->hqk", turned(q), turned(k)) / q.shape[-1] ** 0.5
            y = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(jnp.where(past, scores, -1e9)), v)
            x = x + y.reshape(len(x), -1) @ block["out"]
            y = jax.vmap(self.norms[2 * number + 1])(x)
            x = x + (jax.nn.silu(y @ block["gate"]) * (y @ block["up"])) @ block["down"]
        return jax.vmap(self.last)(x) @ self.embed.T


def rotary(
    name: str, *ails: str, depth: int = 2, size: float = 0.2, gain: float = 1.0, **rest: Any
) -> Network:
    """A causal language model with turned positions and a tied head, in Equinox."""
    init, apply = of_equinox(lambda key: Rotary(key, depth, size, gain))
    own = {"kind": "rotary transformer", "library": "Equinox", "ails": ails}
    return next_token(name, init, apply, **{"steps": 300} | own | rest)
