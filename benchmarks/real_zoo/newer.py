"""Kinds that came late: state spaces, sines, scores, contrast, critics, adapters and mixtures."""

import itertools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_nnx

DIGITS = jnp.zeros((2, 64))


def classifier(name: str, init: Any, apply: Any, *ails: str, **rest: Any) -> Network:
    """A network that tells the digits."""

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(apply(p, batch[0]), batch[1])

    return network(name, loss, init, **{"task": tasks.digits, "ails": ails} | rest)


def in_linen(name: str, module: nn.Module, *ails: str, **rest: Any) -> Network:
    """The same of a linen module."""
    init = lambda key: module.init(key, DIGITS)["params"]  # noqa: E731
    apply = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    return classifier(name, init, apply, *ails, **{"library": "linen"} | rest)


# Over time.


def state_space(
    name: str, *ails: str, depth: int = 2, skip: bool = True, gain: float = 1.0, **rest: Any
) -> Network:
    """Diagonal linear recurrences by an associative scan, a gated output after each (LRU, S5)."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3 * depth + 2)
        kernel = lambda k, a, b: gain * jax.random.normal(k, (a, b)) / a**0.5  # noqa: E731
        blocks = [
            {
                "decay": jnp.linspace(1.0, 4.0, 24),
                "into": kernel(keys[3 * i], 24, 24),
                "out": kernel(keys[3 * i + 1], 24, 24),
                "gate": kernel(keys[3 * i + 2], 24, 24),
            }
            for i in range(depth)
        ]
        encoder = jax.random.normal(keys[-2], (2, 24)) / 2**0.5
        return {"encoder": encoder, "blocks": blocks, "head": kernel(keys[-1], 24, 1)}

    def block(p: Any, x: Any) -> Any:
        a = jax.nn.sigmoid(p["decay"])
        u = jnp.sqrt(1 - a**2) * (x @ p["into"])
        step = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])  # noqa: E731
        _, h = jax.lax.associative_scan(step, (jnp.broadcast_to(a, u.shape), u), axis=1)
        y = jax.nn.gelu(h) @ p["out"]
        return y * jax.nn.sigmoid(x @ p["gate"])

    def loss(p: Any, batch: Any) -> Any:
        x = batch[0] @ p["encoder"]
        for one in p["blocks"]:
            x = x + block(one, x) if skip else block(one, x)
        return jnp.mean(((x[:, -1] @ p["head"])[:, 0] - batch[1]) ** 2)

    settings = {"kind": "state space", "library": "plain", "task": tasks.running_sum, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | settings | rest)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates."""

    depth: int = 4
    skip: bool = True

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """`[batch, positions]` of integers."""
        x = nn.Embed(tasks.VOCABULARY, 24)(tokens)
        for number in range(self.depth):
            dilation = 2 ** (number % 4)

            def conv(n, d=dilation):
                return nn.Conv(24, (2,), kernel_dilation=d, padding="CAUSAL", name=n)

            y = jnp.tanh(conv(f"filter_{number}")(x)) * nn.sigmoid(conv(f"gate_{number}")(x))
            y = nn.Dense(24, name=f"mix_{number}")(y)
            x = x + y if self.skip else y
        return nn.Dense(tasks.VOCABULARY, name="head")(nn.relu(x))


def wavenet(name: str, *ails: str, depth: int = 4, skip: bool = True, **rest: Any) -> Network:
    """A language model of dilated convolutions."""
    module = WaveNet(depth, skip)

    def loss(p: Any, batch: Any) -> Any:
        (tokens,) = batch
        return cross_entropy(module.apply({"params": p}, tokens[:, :-1]), tokens[:, 1:])

    init = lambda key: module.init(key, jnp.zeros((1, 16), jnp.int32))["params"]  # noqa: E731
    settings = {"kind": "WaveNet", "library": "linen", "task": tasks.language, "ails": ails}
    return network(name, loss, init, **{"batched": False} | settings | rest)


# Functions of few variables.


class Siren(eqx.Module):
    """Sines of a frequency."""

    layers: list[Any]
    frequency: float = eqx.field(static=True)

    def __init__(self, key: Any, depth: int, frequency: float, usual: bool) -> None:
        keys, self.frequency = jax.random.split(key, depth + 1), frequency
        sizes = [2] + [32] * depth
        layers = []
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False):
            bound = 1 / a if a == 2 else (6 / a) ** 0.5 / frequency
            layer = eqx.nn.Linear(a, b, key=k)
            kernel = jax.random.uniform(k, (b, a), minval=-bound, maxval=bound)
            layers.append(layer if usual else eqx.tree_at(lambda one: one.weight, layer, kernel))
        self.layers = [*layers, eqx.nn.Linear(32, 2, key=keys[-1])]

    def __call__(self, x: Any) -> Any:
        """One point."""
        for layer in self.layers[:-1]:
            x = jnp.sin(self.frequency * layer(x))
        return self.layers[-1](x)


def siren(
    name: str, *ails: str, depth: int = 3, frequency: float = 6.0, usual: bool = False, **rest: Any
) -> Network:
    """A sine network, with its own start or a linear layer's usual one."""
    init, apply = of_equinox(lambda key: Siren(key, depth, frequency, usual))

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)

    settings = {"kind": "SIREN", "library": "Equinox", "task": tasks.swirl, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | settings | rest)


def fourier(name: str, *ails: str, depth: int = 3, scale: float = 1.4, **rest: Any) -> Network:
    """A rectifier network on sines and cosines of its inputs, as NeRF's."""

    def init(key: Any) -> Any:
        return stack(key, (16,) + (48,) * depth + (2,), scale)

    def loss(p: Any, batch: Any) -> Any:
        waves = batch[0][..., None] * 2.0 ** jnp.arange(-1, 3)
        seen = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1).reshape(len(waves), -1)
        return jnp.mean((forward(p, seen, jax.nn.relu) - batch[1]) ** 2)

    settings = {"kind": "Fourier features", "library": "plain", "task": tasks.swirl, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | settings | rest)


def _pendulum() -> Task:
    """Angle and momentum, and how they change."""
    rng = np.random.default_rng(8)
    state = rng.uniform(-2, 2, (1024, 2)).astype(np.float32)
    change = np.stack([state[:, 1], -2 * np.sin(state[:, 0])], 1).astype(np.float32)
    chance = float(np.mean(np.var(change[768:], axis=0)))
    return Task((state[:768], change[:768]), (state[768:], change[768:]), (chance,))


def hamiltonian(name: str, *ails: str, depth: int = 2, scale: float = 1.0, **rest: Any) -> Network:
    """An energy whose slopes say how a pendulum moves."""

    def energy(p: Any, state: Any) -> Any:
        return forward(p, state)[0]

    def loss(p: Any, batch: Any) -> Any:
        slopes = jax.vmap(jax.grad(energy, 1), (None, 0))(p, batch[0])
        return jnp.mean((jnp.stack([slopes[:, 1], -slopes[:, 0]], 1) - batch[1]) ** 2)

    def init(key: Any) -> Any:
        return stack(key, (2,) + (32,) * depth + (1,), scale)

    settings = {"kind": "Hamiltonian", "library": "plain", "task": _pendulum, "ails": ails}
    return network(name, loss, init, **settings | rest)


def denoiser(
    name: str,
    *ails: str,
    depth: int = 3,
    activation: Any = jax.nn.silu,
    skip: bool = True,
    **rest: Any,
) -> Network:
    """The noise in points of the plane, told from them and its level, as a diffusion model does."""

    def mlp(x: Any) -> Any:
        x = activation(hk.Linear(48, name="into")(x))
        for number in range(depth):
            y = activation(hk.Linear(48, name=f"hidden_{number}")(x))
            x = x + y if skip else y
        return hk.Linear(2, name="head")(x)

    model = hk.without_apply_rng(hk.transform(mlp))

    def loss(p: Any, batch: Any) -> Any:
        points, noise, level = batch
        keep, waves = jnp.cos(level), level * 2.0 ** jnp.arange(4)
        noisy = keep * points + jnp.sin(level) * noise
        seen = jnp.concatenate([noisy, jnp.sin(waves), jnp.cos(waves)], 1)
        return jnp.mean((model.apply(p, seen) - noise) ** 2)

    init = lambda key: model.init(key, jnp.zeros((1, 10)))  # noqa: E731
    settings = {"kind": "denoiser", "library": "Haiku", "task": _noisy_moons, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | settings | rest)


def _noisy_moons() -> Task:
    """The moons with noise and its level beside them."""
    moons, rng = tasks.moons(), np.random.default_rng(9)

    def noisy(points: Any) -> Any:
        noise = rng.standard_normal(points.shape).astype(np.float32)
        return points, noise, rng.uniform(0.3, 1.5, (len(points), 1)).astype(np.float32)

    train, test = noisy(moons.train[0]), noisy(moons.test[0])
    return Task(train, test, (float(np.mean(test[1] ** 2)),))


# Sets and pairs.


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


def wgan_critic(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.4,
    activation: Any = jax.nn.leaky_relu,
    **rest: Any,
) -> Network:
    """A critic of moons and noise, whose slope is held near 1 by a penalty."""

    def one(p: Any, x: Any) -> Any:
        return forward(p, x, activation)[0]

    def loss(p: Any, batch: Any) -> Any:
        real, noise, _ = batch
        values = jax.vmap(one, (None, 0))
        slopes = jax.vmap(jax.grad(one, 1), (None, 0))(p, 0.5 * (real + noise))
        sizes = jnp.sqrt(jnp.sum(slopes**2, -1) + 1e-12)
        return values(p, noise).mean() - values(p, real).mean() + 10 * jnp.mean((sizes - 1) ** 2)

    def init(key: Any) -> Any:
        return stack(key, (2,) + (32,) * depth + (1,), scale)

    def task() -> Task:
        return _noisy_moons()._replace(chance=(10.0,))

    settings = {"kind": "WGAN critic", "library": "plain", "task": task, "ails": ails}
    return network(name, loss, init, **settings | rest)


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


# The digits once more.


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
    return classifier(name, init, apply, *ails, **{"kind": "maxout", "library": "nnx"} | rest)


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

    own = {"kind": "weight norm", "library": "plain"}
    return classifier(name, init, apply, *ails, **own | rest)


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

    own = {"kind": "adapters", "library": "plain"}
    return classifier(name, init, apply, *ails, **own | rest)


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

    own = {"kind": "hypernetwork", "library": "plain"}
    return classifier(name, init, apply, *ails, **own | rest)


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
