"""Convolutions, mixers and encoders on 8 x 8 digits."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.network import Network, network
from benchmarks.real_zoo.sequences import Block, cross_entropy, of_equinox, of_linen, of_nnx

EXAMPLE = jnp.zeros((2, 64))


def classifier(name: str, init: Any, apply: Any, **rest: Any) -> Network:
    """A network that tells the digits."""

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(apply(p, batch[0]), batch[1])

    return network(name, loss, init, **{"task": tasks.digits} | rest)


def gaussian(scale: float) -> Any:
    """Normal kernels of variance scale^2 / fan_in."""
    return nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


class ConvNet(nn.Module):
    """Plain convolutions."""

    depth: int = 3
    features: int = 16
    activation: str = "relu"
    bias: float = 0.0
    kernel_init: Any = gaussian(1.4)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = x.reshape(-1, 8, 8, 1)
        f, settings = getattr(nn, self.activation), {"kernel_init": self.kernel_init}
        bias = nn.initializers.constant(self.bias)
        x = f(nn.Conv(self.features, (3, 3), (2, 2), bias_init=bias, **settings)(x))
        for _ in range(self.depth - 1):
            x = f(nn.Conv(self.features, (3, 3), **settings)(x))
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


class ResNet(nn.Module):
    """Convolution, BatchNorm, ReLU, in blocks with skips."""

    blocks: int = 2
    stem_bias: float = 0.0
    last_gain: float = 1.0
    skip: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""

        def norm(**settings: Any) -> Any:
            return nn.BatchNorm(use_running_average=False, **settings)

        x = nn.Conv(8, (3, 3), (2, 2), use_bias=False, name="stem")(x.reshape(-1, 8, 8, 1))
        x = nn.relu(norm(bias_init=nn.initializers.constant(self.stem_bias), name="stem_norm")(x))
        for _ in range(self.blocks):
            y = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
            gain = nn.initializers.constant(self.last_gain)
            y = norm(scale_init=gain)(nn.Conv(8, (3, 3), use_bias=False)(y))
            x = nn.relu(x + y if self.skip else y)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class ViT(nn.Module):
    """Patches, a class token, blocks."""

    depth: int = 2
    block: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = nn.Conv(24, (2, 2), (2, 2), name="patches")(x.reshape(-1, 8, 8, 1))
        x = x.reshape(x.shape[0], -1, 24)
        token = self.param("class", nn.initializers.normal(0.02), (1, 1, 24))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 24)), x], 1)
        x += self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        settings = dict(self.block or {}) | {"causal": False}
        x, _ = nn.scan(Block, length=self.depth, **axes)(**settings, name="blocks")(x, None)
        return nn.Dense(10, name="head")(nn.LayerNorm()(x[:, 0]))


class Mixer(nn.Module):
    """MLPs over patches and over features by turns."""

    depth: int = 2
    activation: str = "gelu"
    bias: float = 0.0
    skip: bool = True
    kernel_init: Any = gaussian(1.0)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        x = nn.Dense(24, name="patches")(x)

        def mlp(x: Any, width: int) -> Any:
            bias = nn.initializers.constant(self.bias)
            h = nn.Dense(width, bias_init=bias, kernel_init=self.kernel_init)(x)
            return nn.Dense(x.shape[-1], kernel_init=self.kernel_init)(
                getattr(nn, self.activation)(h)
            )

        for _ in range(self.depth):
            y = mlp(nn.LayerNorm()(x).swapaxes(1, 2), 32).swapaxes(1, 2)
            x = x + y if self.skip else y
            y = mlp(nn.LayerNorm()(x), 48)
            x = x + y if self.skip else y
        return nn.Dense(10, name="head")(nn.LayerNorm()(x).mean(1))


def linen_classifier(
    name: str, module: nn.Module, kind: str, *ails: str, twin: str | None = None, **rest: Any
) -> Network:
    """A linen module that classifies digits."""
    init, apply = of_linen(module, EXAMPLE)
    return classifier(name, init, apply, kind=kind, library="linen", twin=twin, ails=ails, **rest)


def hk_convnet(name: str, *ails: str, bias: float = 0.0, **rest: Any) -> Network:
    """A small LeNet in Haiku."""

    def forward(x: Any) -> Any:
        x = x.reshape(-1, 8, 8, 1)
        x = jax.nn.relu(hk.Conv2D(8, 3, b_init=hk.initializers.Constant(bias))(x))
        x = hk.max_pool(x, 2, 2, "SAME")
        x = jax.nn.relu(hk.Conv2D(16, 3)(x))
        x = hk.max_pool(x, 2, 2, "SAME")
        return hk.nets.MLP([32, 10])(hk.Flatten()(x))

    model = hk.without_apply_rng(hk.transform(forward))
    settings = {"kind": "ConvNet", "library": "Haiku", "batched": False} | rest
    return classifier(
        name, lambda key: model.init(key, EXAMPLE), model.apply, ails=ails, **settings
    )


class EqxConvNet(eqx.Module):
    """Convolutions, pooling and two dense layers, for one image."""

    convolutions: list[Any]
    dense: list[Any]

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 4)
        self.convolutions = [
            eqx.nn.Conv2d(1, 8, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(8, 16, 3, padding=1, key=keys[1]),
        ]
        self.dense = [eqx.nn.Linear(64, 32, key=keys[2]), eqx.nn.Linear(32, 10, key=keys[3])]

    def __call__(self, x: Any) -> Any:
        """Logits of a flat image."""
        x = x.reshape(1, 8, 8)
        for convolution in self.convolutions:
            x = eqx.nn.AvgPool2d(2, 2)(jax.nn.silu(convolution(x)))
        return self.dense[1](jax.nn.silu(self.dense[0](x.reshape(-1))))


def eqx_convnet(name: str, **rest: Any) -> Network:
    """A small LeNet in Equinox."""
    init, apply = of_equinox(EqxConvNet)
    settings = {"kind": "ConvNet", "library": "Equinox", "batched": False}
    return classifier(name, init, apply, **settings | rest)


class NnxResNet(nnx.Module):
    """Convolution, BatchNorm, ReLU, in blocks with skips."""

    def __init__(self, blocks: int, rngs: nnx.Rngs) -> None:
        def convolution(inputs: int, stride: int = 1) -> Any:
            return nnx.Conv(inputs, 8, (3, 3), stride, use_bias=False, rngs=rngs)

        count = 2 * blocks
        self.stem, self.stem_norm = convolution(1, 2), nnx.BatchNorm(8, rngs=rngs)
        self.convolutions = nnx.List(convolution(8) for _ in range(count))
        self.norms = nnx.List(nnx.BatchNorm(8, rngs=rngs) for _ in range(count))
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = nnx.relu(self.stem_norm(self.stem(x.reshape(-1, 8, 8, 1))))
        pairs = list(zip(self.convolutions, self.norms, strict=True))
        for (first, norm), (second, last_norm) in zip(pairs[::2], pairs[1::2], strict=True):
            y = nnx.relu(norm(first(x)))
            x = nnx.relu(x + last_norm(second(y)))
        return self.head(x.mean((1, 2)))


def nnx_resnet(name: str, blocks: int, **rest: Any) -> Network:
    """A ResNet in nnx."""
    init, apply = of_nnx(lambda rngs: NnxResNet(blocks, rngs))
    settings = {"kind": "ResNet", "library": "nnx", "batched": False}
    return classifier(name, init, apply, **settings | rest)


# What comes out is an image.


class AutoEncoder(nn.Module):
    """Dense layers down to a code and up again."""

    depth: int = 2
    activation: str = "tanh"
    encoder_init: Any = gaussian(1.0)
    decoder_init: Any = gaussian(1.0)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Flat images."""
        f = getattr(nn, self.activation)
        for part, init in (("encoder", self.encoder_init), ("decoder", self.decoder_init)):
            for number in range(self.depth):
                x = f(nn.Dense(40, kernel_init=init, name=f"{part}_{number}")(x))
            x = nn.Dense(64 if part == "decoder" else 16, name=f"{part}_out")(x)
        return x


class UNet(nn.Module):
    """Down and up again, with a skip between the two ends of a resolution."""

    skip: bool = True
    bottleneck: Any = gaussian(1.4)
    kernel_init: Any = gaussian(1.4)
    deep: int = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Flat images."""
        settings = {"kernel_init": self.kernel_init}
        x = x.reshape(-1, 8, 8, 1)
        fine = nn.relu(nn.Conv(8, (3, 3), name="down_0", **settings)(x))
        coarse = nn.relu(nn.Conv(16, (3, 3), (2, 2), name="down_1", **settings)(fine))
        for number in range(self.deep):
            layer = nn.Conv(16, (3, 3), kernel_init=self.bottleneck, name=f"middle_{number}")
            coarse = nn.relu(layer(coarse))
        up = nn.relu(nn.ConvTranspose(8, (2, 2), (2, 2), name="up", **settings)(coarse))
        both = jnp.concatenate([fine, up], -1) if self.skip else up
        return nn.Conv(1, (3, 3), name="out")(both).reshape(-1, 64)


class VAE(nn.Module):
    """Mean and logarithm of the variance of a code, and back."""

    depth: int = 1
    activation: str = "relu"
    log_variance: float = 0.0
    kernel_init: Any = gaussian(1.0)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Flat images; the KL divergence as well."""
        f = getattr(nn, self.activation)
        h = x
        for number in range(self.depth):
            h = f(nn.Dense(40, kernel_init=self.kernel_init, name=f"encoder_{number}")(h))
        mean = nn.Dense(8, name="mean")(h)
        bias = nn.initializers.constant(self.log_variance)
        log_variance = nn.Dense(8, bias_init=bias, name="log_variance")(h)
        noise = jax.random.normal(jax.random.key(1), mean.shape)
        z = mean + jnp.exp(log_variance / 2) * noise
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - log_variance - 1)
        h = z
        for number in range(self.depth):
            h = f(nn.Dense(40, kernel_init=self.kernel_init, name=f"decoder_{number}")(h))
        return nn.Dense(64, name="out")(h), kl


def autoencoder(
    name: str, module: nn.Module, kind: str, *ails: str, twin: str | None = None, **rest: Any
) -> Network:
    """A linen module that gives images back; `noise` is added to what it sees."""
    init, apply = of_linen(module, EXAMPLE)
    noise = rest.pop("noise", 0.0)

    def loss(p: Any, batch: Any) -> Any:
        (x,) = batch
        seen = x + noise * jax.random.normal(jax.random.key(2), x.shape)
        return jnp.mean((apply(p, seen) - x) ** 2)

    settings = {"kind": kind, "library": "linen", "task": tasks.reconstruction}
    return network(name, loss, init, **settings | rest, twin=twin, ails=ails)


def vae(name: str, module: VAE, *ails: str, twin: str | None = None, **rest: Any) -> Network:
    """A variational autoencoder, judged by what it gives back."""
    init, apply = of_linen(module, EXAMPLE)

    def terms(p: Any, batch: Any) -> Any:
        (x,) = batch
        out, kl = apply(p, x)
        return jnp.mean((out - x) ** 2), kl

    def loss(p: Any, batch: Any) -> Any:
        error, kl = terms(p, batch)
        return error + 0.02 * kl

    return Network(
        name=name,
        kind="VAE",
        library="linen",
        task=tasks.reconstruction,
        init=init,
        loss=loss,
        parts=lambda p, b: terms(p, b)[:1],
        twin=twin,
        ails=ails,
        **rest,
    )


def through_frozen(
    name: str,
    judge: Callable[[Any, Any], Any],
    kernels: Any,
    *ails: str,
    inside: bool,
    twin: str | None = None,
    where: str = "generator",
    **rest: Any,
) -> Network:
    """A generator of images that learns through a frozen network, as in a GAN or with DPG.

    Args:
      name: Says what it is.
      judge: `judge(kernels, images)`: the frozen network's features.
      kernels: The frozen network's.
      *ails: The rules that would name its sickness.
      inside: Whether the frozen kernels are among the parameters, behind a stop_gradient.
      twin: As in `Network`.
      where: As in `Network`.
      **rest: Other fields.
    """
    shapes = [(64, 32), (32, 64)]

    def init(key: Any) -> Any:
        keys = jax.random.split(key, len(shapes))
        own = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=True)]
        generator = {"hidden": own[0], "out": 0.1 * own[1]}
        if inside:
            return {"critic": kernels, "generator": generator}
        return {"generator": generator}

    def make(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["generator"]["hidden"]) @ p["generator"]["out"]

    def loss(p: Any, batch: Any) -> Any:
        (x,) = batch
        frozen = jax.lax.stop_gradient(p["critic"]) if inside else kernels
        return jnp.mean((judge(frozen, make(p, x)) - judge(frozen, x)) ** 2)

    def parts(p: Any, batch: Any) -> Any:
        (x,) = batch
        return (jnp.mean((make(p, x) - x) ** 2),)

    return Network(
        name=name,
        kind="frozen critic",
        library="plain",
        task=tasks.imitation,
        init=init,
        loss=loss,
        parts=parts,
        twin=twin,
        ails=ails,
        where=where,
        **{"rates": (4e-3, 1.5e-2), "steps": 400} | rest,
    )


def critic(sizes: tuple[int, ...], scale: float = 1.0, bias: float = 0.0) -> Any:
    """Kernels and biases of a frozen network."""
    rng = np.random.default_rng(8)
    return [
        {
            "w": (scale * rng.standard_normal((a, b)) / a**0.5).astype(np.float32),
            "b": np.full(b, bias, np.float32),
        }
        for a, b in itertools.pairwise(sizes)
    ]


def features(activation: str) -> Callable[[Any, Any], Any]:
    """What a frozen MLP of this activation makes of images."""
    f = getattr(jax.nn, activation)

    def judge(kernels: Any, x: Any) -> Any:
        for one in kernels:
            x = f(x @ one["w"] + one["b"])
        return x

    return judge
