"""Decoders of knots, encoders of lanterns."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import lecun, stack
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import next_token, of_classes, of_nnx
from benchmarks.real_zoo.text import entropy

TURNS, KNOT = 8, 12
COLORS, ROW, WIDTH = 5, 10, 24

# Knots.


@functools.cache
def knots() -> Task:
    """Turns of a knot; each follows from the last one, and from which half the one before is in."""
    rng = np.random.default_rng(1811)
    after = np.stack([rng.permutation(TURNS) for _ in range(2)])
    turns = rng.integers(0, TURNS, (3072, KNOT))
    for place in range(2, KNOT):
        half = turns[:, place - 2] * 2 // TURNS
        slips = rng.uniform(size=3072) < 0.03
        turns[:, place] = np.where(slips, turns[:, place], after[half, turns[:, place - 1]])
    train, test = parted(turns.astype(np.int32))
    return Task(train, test, (entropy(test[0][:, 1:]),))


class Tied(nnx.Module):
    """Causal attention and a gated MLP behind RMS norms, each with a gain."""

    def __init__(self, rngs: nnx.Rngs, skip: bool) -> None:
        self.norm_a, self.norm_b = nnx.RMSNorm(32, rngs=rngs), nnx.RMSNorm(32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, use_bias=False, rngs=rngs)
        self.gate, self.up, self.down = (
            nnx.Linear(a, b, use_bias=False, rngs=rngs) for a, b in ((32, 64), (32, 64), (64, 32))
        )
        self.gains, self.skip = nnx.Param(jnp.ones(2)), skip

    def __call__(self, x: Any, mask: Any) -> Any:
        """The next vectors."""
        y = self.gains[...][0] * self.attention(self.norm_a(x), mask=mask)
        x = x + y if self.skip else y
        y = self.norm_b(x)
        y = self.gains[...][1] * self.down(nnx.silu(self.gate(y)) * self.up(y))
        return x + y if self.skip else y


@functools.cache
def tied(name: str, *, depth: int = 2, skip: bool = True) -> Network:
    """The turns of a knot by a decoder of the sort of Llama, with a tied embedding."""

    class Knots(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            own = {"embedding_init": nnx.initializers.normal(0.2), "rngs": rngs}
            self.turns, self.places = nnx.Embed(TURNS, 32, **own), nnx.Embed(KNOT, 32, **own)
            self.blocks = nnx.List(Tied(rngs, skip) for _ in range(depth))
            self.norm = nnx.RMSNorm(32, rngs=rngs)

        def __call__(self, tokens: Any) -> Any:
            x = self.turns(tokens) + self.places(jnp.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x, nnx.make_causal_mask(tokens))
            return self.turns.attend(self.norm(x))

    init, apply = of_nnx(Knots)
    own = {"kind": "gated decoder of knots", "library": "nnx", "task": knots, "steps": 300}
    return next_token(name, init, apply, **own, rates=(3e-3, 8e-3))


# Lanterns.


@functools.cache
def lanterns() -> Task:
    """Ten colors of lanterns and one that is out, and the color after the one that is out."""
    rng = np.random.default_rng(1812)
    colors, out = rng.integers(0, COLORS, (3072, ROW)), rng.integers(0, ROW - 1, 3072)
    colors[np.arange(3072), out] = COLORS
    color = colors[np.arange(3072), out + 1]
    train, test = parted(colors.astype(np.int32), color.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def _norm(p: Any, x: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["shift"]


def _block(p: Any, x: Any, skip: bool) -> Any:
    q, k, v = ((x @ p[name]).reshape(*x.shape[:2], 2, -1) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["out"]
    x = _norm(p["norm_a"], x + y if skip else y)
    y = jax.nn.relu(x @ p["up"]["w"] + p["up"]["b"]) @ p["down"]["w"] + p["down"]["b"]
    return _norm(p["norm_b"], x + y if skip else y)


@functools.cache
def lit(name: str, *, depth: int = 2, skip: bool = True) -> Network:
    """The color after the lantern that is out by a post-LN encoder in parameter dicts."""

    def drawn(key: Any) -> Any:
        one, two, *rest = jax.random.split(key, 6)
        names = ("query", "key", "value", "out")
        p = {n: lecun()(k, (WIDTH, WIDTH)) for n, k in zip(names, rest, strict=True)}
        p |= {"up": stack(one, (WIDTH, 48))[0], "down": stack(two, (48, WIDTH))[0]}
        norm = {"scale": jnp.ones(WIDTH), "shift": jnp.zeros(WIDTH)}
        return p | {"norm_a": norm, "norm_b": norm}

    def init(key: Any) -> Any:
        one, two, three, *rest = jax.random.split(key, 3 + depth)
        return {
            "colors": jax.random.normal(one, (COLORS + 1, WIDTH)),
            "places": jax.random.normal(two, (ROW, WIDTH)),
            "blocks": [drawn(k) for k in rest],
            "color": stack(three, (WIDTH, COLORS))[0],
        }

    def apply(p: Any, colors: Any) -> Any:
        x = p["colors"][colors] + p["places"]
        for block in p["blocks"]:
            x = _block(block, x, skip)
        return x.mean(1) @ p["color"]["w"] + p["color"]["b"]

    own = {"kind": "post-LN encoder of lanterns", "library": "plain", "task": lanterns}
    return network(name, of_classes(apply), init, **own, steps=400, rates=(2e-3, 5e-3))
