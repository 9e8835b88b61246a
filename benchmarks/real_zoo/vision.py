"""Images: stacked convolutions, patches, masks, comparisons, two answers, and codes."""

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

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_nnx


def vgg(
    name: str,
    *ails: str,
    depth: int = 4,
    width: int = 12,
    scale: float = 1.4,
    bias: float = 0.0,
    activation: Any = jax.nn.relu,
    **rest: Any,
) -> Network:
    """Convolutions of 3 x 3, pooled twice, and two dense layers."""

    class VGG(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            own = {
                "kernel_init": nnx.initializers.variance_scaling(scale**2, "fan_in", "normal"),
                "rngs": rngs,
            }
            b_init = nnx.initializers.constant(bias)
            self.convolutions = nnx.List(
                nnx.Conv(width if number else 1, width, (3, 3), bias_init=b_init, **own)
                for number in range(depth)
            )
            self.hidden = nnx.Linear(4 * width, 48, **own)
            self.head = nnx.Linear(48, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x.reshape(-1, 8, 8, 1)
            for number, convolution in enumerate(self.convolutions):
                x = activation(convolution(x))
                if number in (depth // 2 - 1, depth - 1):
                    x = nnx.max_pool(x, (2, 2), (2, 2))
            return self.head(activation(self.hidden(x.reshape(len(x), -1))))

    init, apply = of_nnx(VGG)
    own = {"kind": "VGG", "library": "nnx", "ails": ails, "batched": False, "steps": 400}
    return classifier(name, init, apply, **own | rest)


class Patches(eqx.Module):
    """Patches of 2 x 2, pre-norm blocks, the mean of all places; for one image."""

    into: Any
    places: Any
    attentions: list[Any]
    norms: list[Any]
    mlps: list[Any]
    head: Any
    skip: bool

    def __init__(self, key: Any, depth: int, width: int, skip: bool) -> None:
        keys = iter(jax.random.split(key, 3 + 2 * depth))
        self.into = eqx.nn.Linear(4, width, key=next(keys))
        self.places = 0.1 * jax.random.normal(next(keys), (16, width))
        self.head = eqx.nn.Linear(width, 10, key=next(keys))
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2 * depth + 1)]
        self.attentions = [
            eqx.nn.MultiheadAttention(2, width, key=next(keys)) for _ in range(depth)
        ]
        self.mlps = [
            eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=next(keys))
            for _ in range(depth)
        ]
        self.skip = skip

    def __call__(self, x: Any) -> Any:
        """Logits of a flat image."""
        x = x.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
        x = jax.vmap(self.into)(x) + self.places
        norms = iter(self.norms)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            y = jax.vmap(next(norms))(x)
            x = attention(y, y, y) + (x if self.skip else 0.0)
            y = jax.vmap(mlp)(jax.vmap(next(norms))(x))
            x = y + (x if self.skip else 0.0)
        return self.head(jax.vmap(next(norms))(x).mean(0))


def eqx_vit(
    name: str,
    *ails: str,
    depth: int = 3,
    width: int = 32,
    skip: bool = True,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """A ViT without a class token, its parameters of `dtype`."""
    made, apply = of_equinox(lambda key: Patches(key, depth, width, skip))

    def init(key: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype), made(key))

    def logits(p: Any, x: Any) -> Any:
        return apply(p, x.astype(dtype)).astype(jnp.float32)

    own = {"kind": "ViT", "library": "Equinox", "ails": ails, "steps": 400}
    return classifier(name, init, logits, **own | rest)


@functools.cache
def _discs() -> Task:
    """Noisy pictures, 12 x 12, of a disc and a square; where the disc is."""
    rng = np.random.default_rng(71)
    rows, columns = np.mgrid[:12, :12]
    far = lambda: rng.uniform(2, 10, (768, 1, 1))  # noqa: E731
    up, left = rows - far(), columns - far()
    disc = up**2 + left**2 < rng.uniform(2, 3.5, (768, 1, 1)) ** 2
    square = np.maximum(abs(rows - far()), abs(columns - far())) < 2
    light = (
        1.2 * disc - 1.0 * (square & ~disc) + 0.1 * (rows - 6) * rng.choice([-1, 1], far().shape)
    )
    x = light + 0.5 * rng.standard_normal(light.shape)
    train, test = parted(x, disc.astype(np.float64))
    share = np.clip(test[1].mean(0), 1e-6, 1 - 1e-6)
    chance = -np.mean(share * np.log(share) + (1 - share) * np.log(1 - share))
    return Task(train, test, (float(chance),))


class Segmenter(eqx.Module):
    """Twice down and twice up, joined by skips or not; for one image."""

    downs: list[Any]
    middles: list[Any]
    ups: list[Any]
    joins: list[Any]
    out: Any
    activation: Any
    skip: bool

    def __init__(self, key: Any, middle: int, scale: float, activation: Any, skip: bool) -> None:
        keys = iter(jax.random.split(key, 16 + 2 * middle))

        def drawn(layer: Any, fan: int) -> Any:
            w = scale * jax.random.normal(next(keys), layer.weight.shape) / fan**0.5
            return eqx.tree_at(lambda one: one.weight, layer, w)

        def conv(a: int, b: int, stride: int = 1) -> Any:
            return drawn(eqx.nn.Conv2d(a, b, 3, stride, 1, key=next(keys)), 9 * a)

        def raised(a: int, b: int) -> Any:
            return drawn(eqx.nn.ConvTranspose2d(a, b, 2, 2, key=next(keys)), a)

        self.downs = [conv(1, 8), conv(8, 12, 2), conv(12, 16, 2)]
        self.middles = [conv(16, 16) for _ in range(middle)]
        self.ups = [raised(16, 12), raised(12, 8)]
        self.joins = [conv(24 if skip else 12, 12), conv(16 if skip else 8, 8)]
        self.out = eqx.nn.Conv2d(8, 1, 1, key=next(keys))
        self.activation, self.skip = activation, skip

    def __call__(self, x: Any) -> Any:
        """Logits of `[12, 12]` pixels."""
        x, levels = x[None], []
        for down in self.downs:
            x = self.activation(down(x))
            levels.append(x)
        for middle in self.middles:
            x = self.activation(middle(x))
        for up, join, level in zip(self.ups, self.joins, levels[1::-1], strict=True):
            x = self.activation(up(x))
            x = jnp.concatenate([x, level]) if self.skip else x
            x = self.activation(join(x))
        return self.out(x)[0]


def segmenter(
    name: str,
    *ails: str,
    middle: int = 1,
    scale: float = 1.4,
    activation: Any = jax.nn.relu,
    skip: bool = True,
    **rest: Any,
) -> Network:
    """A U-Net that says which pixels are a disc's."""
    init, apply = of_equinox(lambda key: Segmenter(key, middle, scale, activation, skip))

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(apply(p, batch[0]), batch[1]).mean()

    own = {"kind": "U-Net", "library": "Equinox", "task": _discs, "ails": ails}
    return network(name, loss, init, **{"batched": False, "batch": 16, "steps": 400} | own | rest)


@functools.cache
def _triplets() -> Task:
    """A digit, another one of its class, and one of another class; chance is the margin."""
    rng, made = np.random.default_rng(72), []
    task = tasks.digits()
    for count, (images, labels) in ((4096, task.train), (512, task.test)):
        rows = rng.integers(0, len(images), count)
        same = [rng.choice(np.flatnonzero(labels == labels[row])) for row in rows]
        other = [rng.choice(np.flatnonzero(labels != labels[row])) for row in rows]
        made.append((images[rows], images[same], images[other]))
    return Task(*made, (1.0,))


def triplet(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.0,
    activation: Any = jax.nn.relu,
    **rest: Any,
) -> Network:
    """Codes of which those of a class are to be nearer, by a margin of 1."""

    def loss(p: Any, batch: Any) -> Any:
        anchor, same, other = (forward(p, x, activation) for x in batch)
        near, far = (jnp.sum((anchor - x) ** 2, -1) for x in (same, other))
        return jnp.mean(jax.nn.relu(near - far + 1.0))

    def init(key: Any) -> Any:
        return stack(key, (64,) + (48,) * depth + (8,), scale)

    own = {"kind": "triplet", "library": "plain", "task": _triplets, "ails": ails}
    return network(name, loss, init, **{"steps": 500} | own | rest)


def two_heads(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.4,
    activation: str = "relu",
    unit: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """The digit and a number from one trunk; the number is `unit[0]` + `unit[1]` times its own."""

    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for number in range(depth):
                dense = nn.Dense(64, kernel_init=gaussian(scale), name=f"trunk_{number}")
                x = getattr(nn, activation)(dense(x))
            return nn.Dense(10, name="digit")(x), nn.Dense(1, name="number")(x)[:, 0]

    module = Heads()

    def parts(p: Any, batch: Any) -> Any:
        x, digit, number = batch
        logits, guess = module.apply({"params": p}, x)
        error = jnp.mean((guess - unit[0] - unit[1] * number) ** 2)
        return cross_entropy(logits, digit), error

    def judged(p: Any, batch: Any) -> Any:
        first, second = parts(p, batch)
        return first, second / unit[1] ** 2

    return Network(
        name=name,
        init=lambda key: module.init(key, jnp.zeros((2, 64)))["params"],
        loss=lambda p, batch: sum(parts(p, batch)),
        parts=judged,
        ails=ails,
        **{"kind": "two heads", "library": "linen", "task": tasks.decisions, "steps": 400} | rest,
    )


def conv_autoencoder(
    name: str,
    *ails: str,
    scale: float = 1.4,
    bias: float = 0.0,
    activation: Any = jax.nn.relu,
    **rest: Any,
) -> Network:
    """Convolutions to a code of 16 and back."""

    def made(x: Any) -> Any:
        w_init = hk.initializers.VarianceScaling(scale**2, "fan_in", "normal")
        b_init = hk.initializers.Constant(bias)
        conv = functools.partial(hk.Conv2D, kernel_shape=3, w_init=w_init)
        x = activation(conv(8, stride=2, name="down_0")(x.reshape(-1, 8, 8, 1)))
        x = activation(conv(16, stride=2, name="down_1")(x))
        x = hk.Linear(16, w_init=w_init, b_init=b_init, name="code")(hk.Flatten()(x))
        x = activation(hk.Linear(64, w_init=w_init, name="back")(activation(x)))
        up = functools.partial(hk.Conv2DTranspose, kernel_shape=3, stride=2, w_init=w_init)
        x = activation(up(16, name="up_0")(x.reshape(-1, 2, 2, 16)))
        return up(1, name="up_1")(x).reshape(-1, 64)

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((model.apply(p, batch[0]) - batch[0]) ** 2)

    own = {"kind": "autoencoder", "library": "Haiku", "task": tasks.reconstruction, "ails": ails}
    init = lambda key: model.init(key, jnp.zeros((2, 64)))  # noqa: E731
    return network(name, loss, init, **{"batched": False, "steps": 500} | own | rest)
