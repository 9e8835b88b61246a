"""Codebooks, masked pixels, wide blocks of convolutions, tables of users and things."""

import functools
import itertools
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_nnx


class Quantized(nn.Module):
    """An autoencoder whose code is eight of the sixteen vectors of a codebook each."""

    depth: int = 1
    spread: float = 0.5
    through: bool = True
    encoder_init: Any = gaussian(1.4)
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Pixels, and what draws codes and codebook together."""
        h, bias = x, nn.initializers.constant(self.bias)
        for number in range(self.depth):
            dense = nn.Dense(
                48, kernel_init=self.encoder_init, bias_init=bias, name=f"encoder_{number}"
            )
            h = nn.relu(dense(h))
        h = nn.Dense(32, kernel_init=self.encoder_init, name="code")(h).reshape(-1, 8, 4)
        init = nn.initializers.normal(self.spread)
        book = self.param("book", init, (8, 16, 4))
        distance = jnp.sum((h[:, :, None] - book) ** 2, -1)
        nearest = nn.one_hot(distance.argmin(-1), 16)
        code = jnp.einsum("bpc,pcd->bpd", nearest, book)
        fixed = jax.lax.stop_gradient
        draw = jnp.mean((code - fixed(h)) ** 2) + 0.25 * jnp.mean((h - fixed(code)) ** 2)
        code = h + fixed(code - h) if self.through else fixed(code)
        y = nn.relu(nn.Dense(48, name="decoder")(code.reshape(len(x), -1)))
        return nn.Dense(64, name="pixels")(y), draw


def quantized(name: str, *ails: str, **settings: Any) -> Network:
    """A VQ-VAE on the digits, judged by the pixels; `settings` of `Quantized` or `Network`."""
    fields = ("depth", "spread", "through", "encoder_init", "bias")
    module = Quantized(**{k: settings.pop(k) for k in fields if k in settings})

    def both(p: Any, batch: Any) -> Any:
        pixels, draw = module.apply({"params": p}, batch[0])
        return jnp.mean((pixels - batch[0]) ** 2), draw

    own = {"kind": "VQ-VAE", "library": "linen", "task": tasks.reconstruction, "ails": ails}
    return Network(
        name=name,
        init=lambda key: module.init(key, jnp.zeros((2, 64)))["params"],
        loss=lambda p, batch: sum(both(p, batch)),
        parts=lambda p, batch: both(p, batch)[:1],
        **{"steps": 400} | own | settings,
    )


# Pixels told from those before them.


@functools.cache
def _bits() -> Task:
    """The digits in black and white; chance knows how often each pixel is white."""
    task = tasks.reconstruction()
    train, test = ((np.asarray(x[0]) > 0).astype(np.float32) for x in (task.train, task.test))
    share = np.clip(test.mean(0), 1e-6, 1 - 1e-6)
    each = -share * np.log(share) - (1 - share) * np.log(1 - share)
    return Task((train,), (test,), (float(each.mean()),))


def masked_autoencoder(
    name: str,
    *ails: str,
    depth: int = 1,
    scale: float = 1.4,
    activation: Any = jax.nn.relu,
    last: float = 1.0,
    bias: float = 0.0,
    **rest: Any,
) -> Network:
    """MADE: kernels are masked so that every pixel is told from those before it."""
    order, hidden = np.arange(64), np.arange(96) % 63
    degrees = [order] + [hidden] * depth
    masks = [(a[:, None] <= b).astype(np.float32) for a, b in itertools.pairwise(degrees)]
    masks.append((hidden[:, None] < order).astype(np.float32))

    def init(key: Any) -> Any:
        layers = []
        for k, mask in zip(jax.random.split(key, len(masks)), masks, strict=True):
            seen = np.maximum(mask.sum(0), 1)
            layers.append(
                {
                    "w": scale * jax.random.normal(k, mask.shape) / seen**0.5,
                    "b": jnp.full(mask.shape[1], bias),
                }
            )
        layers[-1] = {"w": last * layers[-1]["w"], "b": jnp.zeros(64)}
        return layers

    def loss(p: Any, batch: Any) -> Any:
        x = 2 * batch[0] - 1
        for number, (one, mask) in enumerate(zip(p, masks, strict=True)):
            x = x @ (one["w"] * mask) + one["b"]
            x = activation(x) if number < depth else x
        return jnp.mean(jax.nn.softplus(x) - x * batch[0])

    own = {"kind": "MADE", "library": "plain", "task": _bits, "ails": ails}
    return network(name, loss, init, **{"rates": (4e-3, 1.2e-2), "steps": 500} | own | rest)


# Convolutions.


class NextBlock(nnx.Module):
    """Depthwise convolution, LayerNorm, a wide MLP, a gain for each feature (ConvNeXt)."""

    def __init__(self, width: int, gain: float, rngs: nnx.Rngs, *, skip: bool, norm: bool) -> None:
        self.skip = skip
        self.depthwise = nnx.Conv(width, width, (3, 3), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs) if norm else None
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.gain = nnx.Param(jnp.full(width, gain))

    def __call__(self, x: Any) -> Any:
        """`[batch, height, width, features]`."""
        y = self.depthwise(x)
        y = y if self.norm is None else self.norm(y)
        y = self.gain[...] * self.down(nnx.gelu(self.up(y)))
        return x + y if self.skip else y


def convnext(
    name: str,
    *ails: str,
    depth: int = 2,
    gain: float = 1.0,
    skip: bool = True,
    norm: bool = True,
    **rest: Any,
) -> Network:
    """A ConvNeXt on the digits, in nnx."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.stem = nnx.Conv(1, 16, (2, 2), (2, 2), rngs=rngs)
            own = {"skip": skip, "norm": norm}
            self.blocks = nnx.List(NextBlock(16, gain, rngs, **own) for _ in range(depth))
            self.head = nnx.Linear(16, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.stem(x.reshape(-1, 8, 8, 1))
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    init, apply = of_nnx(Model)

    own = {"kind": "ConvNeXt", "library": "nnx", "ails": ails}
    return classifier(name, init, apply, **{"batched": False, "rates": (4e-3,)} | own | rest)


# Tables.


@functools.cache
def _ratings() -> Task:
    """Users, things, and how a user likes a thing: their tastes' product, and the thing's worth."""
    rng = np.random.default_rng(25)
    tastes, traits = rng.standard_normal((24, 2)), rng.standard_normal((24, 2))
    users, things = rng.integers(0, 24, (2, 2560))
    likes = (tastes[users] * traits[things]).sum(1) + 0.5 * traits[things, 0]
    likes = likes + 0.1 * rng.standard_normal(2560)
    parts = (users.astype(np.int32), things.astype(np.int32), likes.astype(np.float32))
    train, test = (tuple(x[part] for x in parts) for part in (slice(1920), slice(1920, None)))
    return Task(train, test, (float(np.var(test[2])),))


def recommender(
    name: str,
    *ails: str,
    spread: float = 0.5,
    depth: int = 2,
    scale: float = 1.4,
    bias: float = 0.0,
    activation: Any = jax.nn.relu,
    wide: bool = True,
    **rest: Any,
) -> Network:
    """Embeddings of user and thing, their product, and an MLP on all of them."""

    def forward(users: Any, things: Any) -> Any:
        w_init = hk.initializers.RandomNormal(spread)
        a = hk.Embed(24, 12, w_init=w_init, name="users")(users)
        b = hk.Embed(24, 12, w_init=w_init, name="things")(things)
        kernel = hk.initializers.VarianceScaling(scale**2, "fan_in", "normal")
        x = jnp.concatenate([a, b, a * b], -1) if wide else a * b
        for number in range(depth):
            b_init = hk.initializers.Constant(bias)
            layer = hk.Linear(48, w_init=kernel, b_init=b_init, name=f"hidden_{number}")
            x = activation(layer(x))
        return hk.Linear(1, name="head")(x)[:, 0]

    model = hk.without_apply_rng(hk.transform(forward))

    example = jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32)
    init = lambda key: model.init(key, *example)  # noqa: E731
    own = {"kind": "recommender", "library": "Haiku", "task": _ratings, "ails": ails}
    return regression(name, init, model.apply, **{"steps": 400} | own | rest)
