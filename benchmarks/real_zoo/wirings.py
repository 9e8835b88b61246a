"""Digits by other ways to join layers: concatenated, gated, factored, made by another network."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network
from benchmarks.real_zoo.sequences import of_nnx


class DenseNet(nn.Module):
    """Every layer sees all before it."""

    depth: int = 6
    scale: float = 1.4
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        for _ in range(self.depth):
            dense = nn.Dense(
                12,
                kernel_init=gaussian(self.scale),
                bias_init=nn.initializers.constant(self.bias),
            )
            x = jnp.concatenate([x, nn.relu(dense(x))], -1)
        return nn.Dense(10, name="head")(x)


class MobileNet(nn.Module):
    """Depthwise and pointwise convolutions, group normalization, relu6."""

    blocks: int = 3
    shift: float = 0.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = nn.Conv(16, (3, 3), name="stem")(x.reshape(-1, 8, 8, 1))
        for number in range(self.blocks):
            stride = (2, 2) if number == 1 else (1, 1)
            y = nn.Conv(16, (3, 3), stride, feature_group_count=16, use_bias=False)(x)
            shift = nn.initializers.constant(self.shift)
            y = nn.relu6(nn.GroupNorm(4, bias_init=shift)(y))
            y = nn.GroupNorm(4)(nn.Conv(16, (1, 1), use_bias=False)(y))
            x = x + y if stride == (1, 1) else y
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Highway(nn.Module):
    """Gates that carry the input past every layer."""

    depth: int = 20
    carry: float = -2.0
    gated: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = nn.Dense(32, name="into")(x)
        for number in range(self.depth):
            y = nn.tanh(nn.Dense(32, kernel_init=gaussian(0.6), name=f"layer_{number}")(x))
            bias = nn.initializers.constant(self.carry)
            gate = nn.sigmoid(nn.Dense(32, bias_init=bias, name=f"gate_{number}")(x))
            x = gate * y + (1 - gate) * x if self.gated else gate * y
        return nn.Dense(10, name="head")(x)


def maxout(name: str, *ails: str, depth: int = 4, scale: float = 1.0, **rest: Any) -> Network:
    """The larger of two linear maps, in nnx."""

    class Maxout(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            kernel = nnx.initializers.variance_scaling(scale**2, "fan_in", "normal")
            sizes = [64] + [24] * depth
            self.layers = nnx.List(
                nnx.Linear(a, 2 * b, kernel_init=kernel, rngs=rngs)
                for a, b in itertools.pairwise(sizes)
            )
            self.head = nnx.Linear(24, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x).reshape(len(x), -1, 2).max(-1)
            return self.head(x)

    init, apply = of_nnx(Maxout)
    return classifier(
        name, init, apply, **{"kind": "maxout", "library": "nnx", "ails": ails} | rest
    )


def weight_norm(name: str, *ails: str, depth: int = 4, gain: float = 1.4, **rest: Any) -> Network:
    """Kernels as a direction and a length for each unit."""

    def init(key: Any) -> Any:
        layers = stack(key, (64,) + (32,) * depth + (10,))
        return [one | {"g": jnp.full(one["b"].shape, gain)} for one in layers]

    def apply(p: Any, x: Any) -> Any:
        kernels = [
            {"w": one["g"] * one["w"] / jnp.linalg.norm(one["w"], axis=0), "b": one["b"]}
            for one in p
        ]
        return forward(kernels, x, jax.nn.relu)

    own = {"kind": "weight norm", "library": "plain", "ails": ails}
    return classifier(name, init, apply, **own | rest)


def adapters(name: str, *ails: str, first: float = 1.0, last: float = 0.0, **rest: Any) -> Network:
    """Low-rank changes of frozen kernels (LoRA): one factor at random, the other of zeros."""
    base = stack(jax.random.key(3), (64, 48, 48, 10), 1.4)

    def init(key: Any) -> Any:
        keys = jax.random.split(key, len(base))
        return [
            {
                "a": first * jax.random.normal(k, (one["w"].shape[0], 8)) / 8,
                "b": jnp.full((8, one["w"].shape[1]), last),
            }
            for k, one in zip(keys, base, strict=True)
        ]

    def apply(p: Any, x: Any) -> Any:
        kernels = [
            {"w": one["w"] + own["a"] @ own["b"], "b": one["b"]}
            for one, own in zip(base, p, strict=True)
        ]
        return forward(kernels, x, jax.nn.relu)

    own = {"kind": "adapters", "library": "plain", "ails": ails}
    return classifier(name, init, apply, **own | rest)


def hypernetwork(name: str, *ails: str, gain: float = 1.0, **rest: Any) -> Network:
    """A network that makes another one's kernels, from an embedding for each of its layers."""
    sizes = ((64, 32), (32, 32), (32, 10))

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        most = max(a * b for a, b in sizes)
        return {
            "embedding": jax.random.normal(keys[0], (len(sizes), 8)),
            "hidden": stack(keys[1], (8, 32))[0],
            "maker": gain * jax.random.normal(keys[2], (32, most)) / 32**0.5,
        }

    def apply(p: Any, x: Any) -> Any:
        made = jnp.tanh(p["embedding"] @ p["hidden"]["w"] + p["hidden"]["b"]) @ p["maker"]
        for number, (a, b) in enumerate(sizes):
            x = x @ (made[number, : a * b].reshape(a, b) * (2 / a) ** 0.5)
            x = jax.nn.relu(x) if number < len(sizes) - 1 else x
        return x

    own = {"kind": "hypernetwork", "library": "plain", "ails": ails}
    return classifier(name, init, apply, **own | rest)


class Perceiver(nn.Module):
    """Learned queries that look at a sequence of pixels' rows, of which the last are padding."""

    blocks: int = 2
    sharpness: float = 1.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        rows = jnp.pad(x.reshape(-1, 8, 8), ((0, 0), (0, 4), (0, 0)))
        there = jnp.broadcast_to(jnp.arange(12) < 8, rows.shape[:2])
        places = self.param("places", nn.initializers.normal(1.0), (12, 24))
        rows = nn.Dense(24, name="rows")(rows) + places
        queries = self.param("queries", nn.initializers.normal(1.0), (6, 24))
        y = jnp.broadcast_to(queries, (len(x), 6, 24))
        mask = nn.make_attention_mask(jnp.ones((len(x), 6), bool), there)
        for number in range(self.blocks):
            look = nn.MultiHeadDotProductAttention(2, name=f"look_{number}")
            y = y + look(self.sharpness * nn.LayerNorm()(y), nn.LayerNorm()(rows), mask=mask)
            h = nn.gelu(nn.Dense(48, name=f"up_{number}")(nn.LayerNorm()(y)))
            y = y + nn.Dense(24, name=f"down_{number}")(h)
        return nn.Dense(10, name="head")(y.mean(1))
