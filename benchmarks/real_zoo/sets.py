"""Sets, pairs and graphs: points of a cloud, halves of an image, attention to neighbors."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_nnx


def _clouds() -> Task:
    """Twenty points of a circle, a square or a cross, turned and moved."""
    rng = np.random.default_rng(10)
    kinds, t = rng.integers(0, 3, 1024), rng.uniform(0, 1, (1024, 20))
    angle, along = 2 * np.pi * t, 4 * t % 1 * 2 - 1
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    ones, side = np.ones_like(along), np.floor(4 * t)
    edges = [(along, ones), (along, -ones), (ones, along), (-ones, along)]
    square = np.select(
        [side[..., None] == i for i in range(3)],
        [np.stack(e, -1) for e in edges[:3]],
        np.stack(edges[3], -1),
    )
    lines = [(along, 0 * ones), (0 * ones, along)]
    cross = np.where(side[..., None] < 2, np.stack(lines[0], -1), np.stack(lines[1], -1))
    clouds = np.choose(kinds[:, None, None], [circle, 0.9 * square, 1.3 * cross])
    clouds = clouds + 0.08 * rng.standard_normal(clouds.shape)
    shares = np.bincount(kinds[768:]) / 256
    train, test = (
        (clouds[part].astype(np.float32), kinds[part].astype(np.int32))
        for part in (slice(768), slice(768, None))
    )
    return Task(train, test, (float(-np.sum(shares * np.log(shares))),))


def point_net(
    name: str, *ails: str, depth: int = 3, scale: float = 1.4, bias: float = 0.0, **rest: Any
) -> Network:
    """Each point by itself, the largest of all points, and a classifier."""

    def init(key: Any) -> Any:
        first, second = jax.random.split(key)
        each = stack(first, (2,) + (32,) * depth, scale)
        each[-1]["b"] += bias
        return {"each": each, "all": stack(second, (32, 32, 3), 1.4)}

    def loss(p: Any, batch: Any) -> Any:
        points = jax.nn.relu(forward(p["each"], batch[0], jax.nn.relu))
        return cross_entropy(forward(p["all"], points.max(1), jax.nn.relu), batch[1])

    settings = {"kind": "point net", "library": "plain", "task": _clouds, "ails": ails}
    return network(name, loss, init, **settings | rest)


def clip(
    name: str, *ails: str, depth: int = 2, scale: float = 1.0, log_heat: float = 2.3, **rest: Any
) -> Network:
    """Encoders of both halves of an image in nnx, with a temperature that is learned."""

    class Pair(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            kernel = nnx.initializers.variance_scaling(2.0 * scale**2, "fan_in", "normal")
            sizes = [32] + [48] * depth + [16]
            pairs = list(itertools.pairwise(sizes))
            make = lambda a, b: nnx.Linear(a, b, kernel_init=kernel, rngs=rngs)  # noqa: E731
            self.upper = nnx.List(make(a, b) for a, b in pairs)
            self.lower = nnx.List(make(a, b) for a, b in pairs)
            self.log_heat = nnx.Param(jnp.array(log_heat))

        def __call__(self, upper: Any, lower: Any) -> Any:
            ends = []
            for layers, x in ((self.upper, upper), (self.lower, lower)):
                for layer in list(layers)[:-1]:
                    x = nnx.relu(layer(x))
                x = layers[len(layers) - 1](x)
                ends.append(x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12))
            return jnp.exp(self.log_heat[...]) * ends[0] @ ends[1].T

    init, apply = of_nnx(Pair)

    def loss(p: Any, batch: Any) -> Any:
        logits = apply(p, *batch)
        places = jnp.arange(len(logits))
        return 0.5 * (cross_entropy(logits, places) + cross_entropy(logits.T, places))

    settings = {"kind": "contrast", "library": "nnx", "task": tasks.matching, "ails": ails}
    return network(name, loss, init, **{"batch": 64} | settings | rest)


class GAT(nn.Module):
    """Attention over a graph's neighbors."""

    depth: int = 2
    skip: bool = False

    @nn.compact
    def __call__(self, features: Any, matrix: Any) -> Any:
        """Logits of every node."""
        x = nn.Dense(24, name="into")(features)
        for number in range(self.depth):
            h = nn.Dense(24, name=f"kernel_{number}")(x)
            to, of = (nn.Dense(1, name=f"{n}_{number}")(h)[..., 0] for n in ("to", "of"))
            scores = nn.leaky_relu(to[:, :, None] + of[:, None, :], 0.2)
            shares = nn.softmax(jnp.where(matrix > 0, scores, -1e9))
            y = nn.elu(shares @ h)
            x = x + y if self.skip else y
        return nn.Dense(3, name="head")(x)


def graph_attention(
    name: str, *ails: str, depth: int = 2, skip: bool = False, **rest: Any
) -> Network:
    """A graph attention network."""
    module = GAT(depth, skip)

    def loss(p: Any, batch: Any) -> Any:
        features, matrix, classes = batch
        return cross_entropy(module.apply({"params": p}, features, matrix), classes)

    example = jnp.zeros((1, 12, 4)), jnp.zeros((1, 12, 12))
    init = lambda key: module.init(key, *example)["params"]  # noqa: E731
    settings = {"kind": "graph attention", "library": "linen", "task": tasks.graphs, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | settings | rest)
