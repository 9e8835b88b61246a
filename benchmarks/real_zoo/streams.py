"""Tokens of several sorts: words, columns of a table, points, rows of noise, marked numbers."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import VOCABULARY, next_token, of_equinox, of_nnx

# A decoder of today.


class LlamaBlock(nnx.Module):
    """RMSNorm, queries in groups, linear biases for distance (ALiBi), a gated MLP."""

    def __init__(self, width: int, rngs: nnx.Rngs, closed: bool, slope: float, dtype: Any) -> None:
        self.slope = slope
        own = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        last = nnx.initializers.zeros if closed else nnx.initializers.lecun_normal()
        self.first = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(width, width, **own)
        self.key = nnx.Linear(width, width // 2, **own)
        self.value = nnx.Linear(width, width // 2, **own)
        self.out = nnx.Linear(width, width, kernel_init=last, **own)
        self.second = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(width, 2 * width, **own)
        self.up = nnx.Linear(width, 2 * width, **own)
        self.down = nnx.Linear(2 * width, width, kernel_init=last, **own)

    def __call__(self, x: Any) -> Any:
        """`[batch, positions, features]`."""
        y, (count, length, width) = self.first(x), x.shape
        q = self.query(y).reshape(count, length, 2, 2, width // 4)
        k = self.key(y).reshape(count, length, 2, width // 4)
        v = self.value(y).reshape(count, length, 2, width // 4)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", q, k) / (width // 4) ** 0.5
        distance = jnp.arange(length)[:, None] - jnp.arange(length)
        slopes = self.slope * 2.0 ** (-2.0 * jnp.arange(1, 5)).reshape(2, 2, 1, 1)
        scores = scores.astype(jnp.float32) - slopes * distance
        shares = jax.nn.softmax(jnp.where(distance >= 0, scores, -1e9)).astype(x.dtype)
        y = jnp.einsum("bgrqk,bkgd->bqgrd", shares, v)
        x = x + self.out(y.reshape(x.shape))
        y = self.second(x)
        return x + self.down(nnx.gelu(self.gate(y)) * self.up(y))


def llama(
    name: str,
    *ails: str,
    depth: int = 2,
    closed: bool = False,
    slope: float = 1.0,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """A causal language model whose embedding is its head too."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            init = nnx.initializers.normal(0.1)
            self.embed = nnx.Embed(VOCABULARY, 32, embedding_init=init, dtype=dtype, rngs=rngs)
            self.blocks = nnx.List(LlamaBlock(32, rngs, closed, slope, dtype) for _ in range(depth))
            self.norm = nnx.RMSNorm(32, dtype=dtype, rngs=rngs)

        def __call__(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.embed.attend(self.norm(x)).astype(jnp.float32)

    init, apply = of_nnx(Model)
    own = {"kind": "grouped-query decoder", "library": "nnx", "ails": ails}
    return next_token(name, init, apply, **{"rates": (4e-3,), "steps": 300} | own | rest)


# Tables.


@functools.cache
def _table() -> Task:
    """Eight numbers and two categories of four; a number that depends on them."""
    rng = np.random.default_rng(61)
    x, kinds = rng.standard_normal((2560, 8)), rng.integers(0, 4, (2560, 2)).astype(np.int32)
    y = np.tanh(2 * x[:, 0]) + np.abs(x[:, 1]) + 0.8 * x[:, 2] * (kinds[:, 1] > 1)
    y += np.array([0.0, 1.0, -1.0, 0.5])[kinds[:, 0]] - np.sin(2 * x[:, 3])
    train, test = parted(x, kinds, (y - y.mean()) / y.std())
    return Task(train, test, (float(np.var(test[2])),))


class TableTransformer(eqx.Module):
    """A token for each column and one for the answer, for one row (FT-Transformer)."""

    weights: Any
    biases: Any
    kinds: list[Any]
    answer: Any
    attentions: list[Any]
    norms: list[Any]
    mlps: list[Any]
    head: Any
    stopped: bool
    frozen: bool

    def __init__(
        self, key: Any, depth: int, width: int, spread: float, stopped: bool, frozen: bool
    ) -> None:
        keys = iter(jax.random.split(key, 6 + 2 * depth))
        self.weights = spread * jax.random.normal(next(keys), (8, width))
        self.biases = spread * jax.random.normal(next(keys), (8, width))
        self.kinds = [
            eqx.nn.Embedding(weight=spread * jax.random.normal(next(keys), (4, width)))
            for _ in range(2)
        ]
        self.answer = spread * jax.random.normal(next(keys), (width,))
        self.attentions = [
            eqx.nn.MultiheadAttention(2, width, key=next(keys)) for _ in range(depth)
        ]
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2 * depth + 1)]
        self.mlps = [eqx.nn.MLP(width, width, 2 * width, 1, key=next(keys)) for _ in range(depth)]
        self.head = eqx.nn.Linear(width, 1, key=next(keys))
        self.stopped, self.frozen = stopped, frozen

    def __call__(self, numbers: Any, kinds: Any) -> Any:
        """The answer to one row."""
        columns = numbers[:, None] * self.weights + self.biases
        others = jnp.stack([embed(one) for embed, one in zip(self.kinds, kinds, strict=True)])
        columns = jnp.concatenate([columns, others])
        columns = jax.lax.stop_gradient(columns) if self.frozen else columns
        x = jnp.concatenate([self.answer[None], columns])
        norms = iter(self.norms)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            y = jax.vmap(next(norms))(x)
            x = x + attention(y, y, y)
            x = x + jax.vmap(mlp)(jax.vmap(next(norms))(x))
        x = next(norms)(x[0])
        return self.head(jax.lax.stop_gradient(x) if self.stopped else x)[0]


def table(
    name: str,
    *ails: str,
    depth: int = 2,
    width: int = 24,
    spread: float = 0.5,
    stopped: bool = False,
    frozen: bool = False,
    shift: float = 0.0,
    **rest: Any,
) -> Network:
    """A transformer for tables; `shift` is added to all numbers."""
    init, apply = of_equinox(
        lambda key: TableTransformer(key, depth, width, spread, stopped, frozen)
    )

    def shifted(p: Any, numbers: Any, kinds: Any) -> Any:
        return apply(p, numbers + shift, kinds)

    own = {"kind": "table transformer", "library": "Equinox", "task": _table, "ails": ails}
    return regression(name, init, shifted, **{"steps": 400} | own | rest)


# Pointers.


@functools.cache
def _nearest() -> Task:
    """A place, up to ten points, which are there, the nearest, and whether there is any."""
    rng = np.random.default_rng(62)
    place, points = rng.uniform(-1, 1, (1920, 2)), rng.uniform(-1, 1, (1920, 10, 2))
    counts = rng.integers(4, 11, 1920) * (rng.random(1920) > 0.1)
    there = np.arange(10) < counts[:, None]
    far = ((points - place[:, None]) ** 2).sum(-1)
    nearest = np.where(there, far, np.inf).argmin(1).astype(np.int32)
    train, test = parted(place, points, there, nearest, (counts > 0).astype(np.float32))
    counts = test[2].sum(1)
    return Task(train, test, (float(np.log(counts[counts > 0]).mean()),))


class Pointer(eqx.Module):
    """Scores of points for a place, for one of them."""

    place: Any
    point: Any

    def __init__(self, key: Any, depth: int, scale: float) -> None:
        def mlp(key: Any) -> Any:
            made = eqx.nn.MLP(2, 24, 48, depth, key=key)
            leaves = [layer.weight * scale for layer in made.layers]
            return eqx.tree_at(lambda m: [layer.weight for layer in m.layers], made, leaves)

        first, second = jax.random.split(key)
        self.place, self.point = mlp(first), mlp(second)

    def __call__(self, place: Any, points: Any, there: Any) -> Any:
        """Logits of the points."""
        scores = jax.vmap(self.point)(points) @ self.place(place) / 24**0.5
        return jnp.where(there, 10.0 * jnp.tanh(scores), -1e9)


def pointer(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 2.0,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """A network that points at the nearest of several points; scores go through a tanh."""
    made, apply = of_equinox(lambda key: Pointer(key, depth, scale))
    init = lambda key: jax.tree.map(lambda x: x.astype(dtype), made(key))  # noqa: E731

    def loss(p: Any, batch: Any) -> Any:
        place, points, there, nearest, any_there = batch
        logits = apply(p, place.astype(dtype), points.astype(dtype), there).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, nearest)
        return jnp.sum(losses * any_there) / jnp.sum(any_there)

    own = {"kind": "pointer", "library": "Equinox", "task": _nearest, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | own | rest)


# Noise predicted by a transformer.


@functools.cache
def _rows() -> Task:
    """Digits mixed with noise, how much of them there is, and the way from noise to digit."""
    rng = np.random.default_rng(63)
    task, parts = tasks.reconstruction(), []
    for images in (np.tile(task.train[0], (3, 1)), task.test[0]):
        noise, time = rng.standard_normal(images.shape), rng.uniform(0, 1, (len(images), 1))
        mixed = time * images + (1 - time) * noise
        made = (mixed, time[:, 0], images - noise)
        parts.append(tuple(np.asarray(x, np.float32) for x in made))
    return Task(*parts, (float(np.mean(np.var(parts[1][2], axis=0))),))


class DiTBlock(nnx.Module):
    """Attention and MLP, shifted, scaled and gated by the time: all gates start closed."""

    def __init__(self, width: int, rngs: nnx.Rngs, *, skip: bool) -> None:
        self.skip = skip
        plain = {"use_bias": False, "use_scale": False, "rngs": rngs}
        self.first, self.second = nnx.LayerNorm(width, **plain), nnx.LayerNorm(width, **plain)
        zeros = nnx.initializers.zeros
        self.modulate = nnx.Linear(width, 6 * width, kernel_init=zeros, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: Any, time: Any) -> Any:
        """`[batch, positions, features]`."""
        parts = jnp.split(self.modulate(nnx.silu(time))[:, None], 6, -1)
        y = parts[2] * self.attention(self.first(x) * (1 + parts[0]) + parts[1])
        x = x + y if self.skip else y
        h = self.second(x) * (1 + parts[3]) + parts[4]
        y = parts[5] * self.down(nnx.gelu(self.up(h)))
        return x + y if self.skip else y


def dit(name: str, *ails: str, depth: int = 2, skip: bool = True, **rest: Any) -> Network:
    """A diffusion transformer on rows of pixels, trained by flow matching."""
    width = 32

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            zeros = nnx.initializers.zeros
            self.rows = nnx.Linear(8, width, rngs=rngs)
            self.places = nnx.Param(0.5 * jax.random.normal(rngs.params(), (8, width)))
            self.time = nnx.Linear(16, width, rngs=rngs)
            self.time_out = nnx.Linear(width, width, rngs=rngs)
            self.blocks = nnx.List(DiTBlock(width, rngs, skip=skip) for _ in range(depth))
            plain = {"use_bias": False, "use_scale": False, "rngs": rngs}
            self.norm = nnx.LayerNorm(width, **plain)
            self.modulate = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
            self.head = nnx.Linear(width, 8, kernel_init=zeros, rngs=rngs)

        def __call__(self, mixed: Any, time: Any) -> Any:
            angles = 3.0 * time[:, None] * 2.0 ** jnp.arange(-2.0, 6.0)
            waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
            time = self.time_out(nnx.silu(self.time(waves)))
            x = self.rows(mixed.reshape(-1, 8, 8)) + self.places[...]
            for block in self.blocks:
                x = block(x, time)
            scale, shift = jnp.split(self.modulate(nnx.silu(time))[:, None], 2, -1)
            return self.head(self.norm(x) * (1 + scale) + shift).reshape(-1, 64)

    init, apply = of_nnx(Model)
    own = {"kind": "diffusion transformer", "library": "nnx", "task": _rows, "ails": ails}
    return regression(name, init, apply, **{"steps": 300, "rates": (4e-3,)} | own | rest)


# Gates that don't see the past.


class MinGRU(eqx.Module):
    """Linear recurrences whose gates depend on the input alone, for one sequence."""

    into: Any
    gates: list[Any]
    values: list[Any]
    outs: list[Any]
    head: Any
    how: str

    def __init__(self, key: Any, depth: int, bias: float, how: str) -> None:
        keys, width = iter(jax.random.split(key, 2 + 3 * depth)), 24
        make = lambda: eqx.nn.Linear(width, width, key=next(keys))  # noqa: E731
        self.into = eqx.nn.Linear(2, width, key=next(keys))
        self.gates = [make() for _ in range(depth)]
        self.gates = [eqx.tree_at(lambda g: g.bias, g, g.bias + bias) for g in self.gates]
        self.values = [make() for _ in range(depth)]
        self.outs = [make() for _ in range(depth)]
        self.head = eqx.nn.Linear(width, 1, key=next(keys))
        self.how = how

    def __call__(self, x: Any) -> Any:
        """What the last position says."""
        x = jax.vmap(self.into)(x)
        for gate, value, out in zip(self.gates, self.values, self.outs, strict=True):
            z, y = jax.nn.sigmoid(jax.vmap(gate)(x)), jax.vmap(value)(x)
            if self.how == "divided":
                kept = jnp.cumprod(1 - z, 0)
                h = kept * jnp.cumsum(z * y / kept, 0)
            else:
                h = jax.lax.associative_scan(
                    lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (1 - z, z * y)
                )[1]
            y = jax.vmap(out)(jax.nn.gelu(h))
            x = y if self.how == "alone" else x + y
        return self.head(x[-1])[0]


def min_gru(
    name: str, *ails: str, depth: int = 2, bias: float = 0.0, how: str = "scan", **rest: Any
) -> Network:
    """A minGRU; `how` "alone" is without skips, "divided" by the product of what is kept."""
    init, apply = of_equinox(lambda key: MinGRU(key, depth, bias, how))
    own = {"kind": "minGRU", "library": "Equinox", "task": tasks.running_sum, "ails": ails}
    return regression(name, init, apply, **{"steps": 300, "rates": (4e-3, 1e-2)} | own | rest)
