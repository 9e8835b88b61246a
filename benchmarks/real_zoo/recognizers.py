"""Digits by squeezed convolutions, by capsules and pixel after pixel; speech without alignment."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import gaussian, linen_classifier
from benchmarks.real_zoo.network import Network, Task, network

# Inverted bottlenecks.


class MBConv(nn.Module):
    """Expand, convolve each feature, squeeze and excite, project (EfficientNet)."""

    features: int
    stride: int = 1
    norm: bool = True
    skip: bool = True
    gate: float = 0.0
    gain: float = 1.0
    kernel_init: Any = gaussian(1.4)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[batch, height, width, features]`."""
        wide, stride = 3 * x.shape[-1], (self.stride, self.stride)
        own = {"use_bias": not self.norm, "kernel_init": self.kernel_init}

        def norm(y: Any, gain: float = 1.0) -> Any:
            if not self.norm:
                return y
            return nn.BatchNorm(False, scale_init=nn.initializers.constant(gain))(y)

        y = nn.silu(norm(nn.Conv(wide, (1, 1), **own, name="expand")(x)))
        depthwise = nn.Conv(wide, (3, 3), stride, feature_group_count=wide, **own, name="depthwise")
        y = nn.silu(norm(depthwise(y)))
        squeezed = nn.silu(nn.Dense(8, name="squeeze")(y.mean((1, 2), keepdims=True)))
        bias = nn.initializers.constant(self.gate)
        y = y * nn.sigmoid(nn.Dense(wide, bias_init=bias, name="excite")(squeezed))
        y = norm(nn.Conv(self.features, (1, 1), **own, name="project")(y), self.gain)
        return x + y if self.skip and x.shape == y.shape else y


class EfficientNet(nn.Module):
    """A stem, blocks of which the second one halves the image, a head."""

    blocks: int = 2
    block: Any = nn.FrozenDict()

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of flat images."""
        x = nn.silu(nn.Conv(12, (3, 3), (2, 2), name="stem")(x.reshape(-1, 8, 8, 1)))
        for number in range(self.blocks):
            features, stride = (12, 1) if number == 0 else (16, 2 if number == 1 else 1)
            settings = dict(self.block)
            if features != x.shape[-1]:
                settings["gain"] = 1.0
            x = MBConv(features, stride, **settings, name=f"block_{number}")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def efficient(name: str, *ails: str, blocks: int = 2, **settings: Any) -> Network:
    """An EfficientNet on the digits; `settings` of `MBConv` or `Network`."""
    fields = ("norm", "skip", "gate", "gain", "kernel_init")
    block = {k: settings.pop(k) for k in fields if k in settings}
    module = EfficientNet(blocks, nn.FrozenDict(block))
    return linen_classifier(
        name, module, "EfficientNet", *ails, **{"batched": False, "rates": (4e-3,)} | settings
    )


# Pixels in turn.


@functools.cache
def _ink() -> Task:
    """The digits in black and white; chance says the same of all pixels, as a dead layer does."""
    task = tasks.reconstruction()
    train, test = ((np.asarray(x[0]) > 0).astype(np.float32) for x in (task.train, task.test))
    share = test.mean()
    chance = -share * np.log(share) - (1 - share) * np.log(1 - share)
    return Task((train,), (test,), (float(chance),))


class PixelCNN(nn.Module):
    """Masked convolutions: each pixel is told from those above it and to its left."""

    depth: int = 2
    features: int = 16
    skip: bool = True
    zero: bool = False
    activation: Any = nn.relu
    kernel_init: Any = gaussian(1.4)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of every pixel of flat images."""

        def masked(itself: float) -> Any:
            return np.array([[1, 1, 1], [1, itself, 0], [0, 0, 0]], np.float32)[..., None, None]

        x = 2.0 * x.reshape(-1, 8, 8, 1) - 1.0
        own = {"features": self.features, "kernel_size": (3, 3)}
        x = nn.Conv(**own, mask=masked(0) * np.ones((1, self.features)), name="first")(x)
        closing = nn.initializers.zeros if self.zero else gaussian(1.0)
        for number in range(self.depth):
            mask = masked(1) * np.ones((self.features, self.features))
            layer = nn.Conv(**own, mask=mask, kernel_init=self.kernel_init, name=f"layer_{number}")
            y = self.activation(layer(self.activation(x) if self.skip else x))
            if self.skip:
                y = nn.Conv(self.features, (1, 1), kernel_init=closing, name=f"out_{number}")(y)
            x = x + y if self.skip else y
        head = nn.Conv(1, (1, 1), kernel_init=gaussian(1.0), name="head")
        return head(self.activation(x)).reshape(-1, 64)


def pixels(name: str, *ails: str, **settings: Any) -> Network:
    """A PixelCNN on the digits; `settings` of `PixelCNN` or `Network`."""
    fields = ("depth", "skip", "zero", "activation", "kernel_init")
    module = PixelCNN(**{k: settings.pop(k) for k in fields if k in settings})

    def loss(p: Any, batch: Any) -> Any:
        logits = module.apply({"params": p}, batch[0])
        return jnp.mean(jax.nn.softplus(logits) - logits * batch[0])

    own = {"kind": "PixelCNN", "library": "linen", "task": _ink, "ails": ails}
    init = lambda key: module.init(key, jnp.zeros((2, 64)))["params"]  # noqa: E731
    return network(name, loss, init, **{"rates": (4e-3,), "batched": False} | own | settings)


# Capsules.

UPPER, LOWER = 0.9, 0.1


@functools.cache
def _capsules() -> Task:
    """The digits; chance is the best lengths that are the same for all images."""
    task = tasks.digits()
    share = np.bincount(task.test[1], minlength=10) / len(task.test[1])
    best = (share * UPPER + 0.5 * (1 - share) * LOWER) / (share + 0.5 * (1 - share))
    each = share * (UPPER - best) ** 2 + 0.5 * (1 - share) * (best - LOWER) ** 2
    return Task(task.train, task.test, (float(each.sum()),))


class Capsules(nn.Module):
    """Sixteen small vectors that vote for ten larger ones, in a few rounds."""

    rounds: int = 2
    bias: float = 0.0
    rectified: bool = False
    guarded: bool = True

    def squash(self, x: Any) -> Any:
        """The same direction, a length below one."""
        if self.guarded:
            square = jnp.sum(x**2, -1, keepdims=True)
            return x * jnp.sqrt(square + 1e-7) / (1 + square)
        length = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return length**2 / (1 + length**2) * x / length

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The lengths of the ten capsules of flat images."""
        bias = nn.initializers.constant(self.bias)
        x = nn.relu(nn.Dense(48, kernel_init=gaussian(1.4), bias_init=bias, name="stem")(x))
        x = nn.Dense(16 * 4, name="primary")(x).reshape(-1, 16, 4)
        x = self.squash(nn.relu(x) if self.rectified else x)
        init = nn.initializers.normal(1.0)
        votes = jnp.einsum("bic,ickd->bikd", x, self.param("votes", init, (16, 4, 10, 8)))
        agreed = jnp.zeros((len(x), 16, 10))
        for number in range(self.rounds):
            y = self.squash(jnp.einsum("bik,bikd->bkd", nn.softmax(agreed), votes))
            if number < self.rounds - 1:
                agreed += jnp.einsum("bikd,bkd->bik", jax.lax.stop_gradient(votes), y)
        return jnp.sqrt(jnp.sum(y**2, -1) + 1e-7) if self.guarded else jnp.linalg.norm(y, axis=-1)


def capsules(name: str, *ails: str, **settings: Any) -> Network:
    """A capsule network on the digits; `settings` of `Capsules` or `Network`."""
    fields = ("rounds", "bias", "rectified", "guarded")
    module = Capsules(**{k: settings.pop(k) for k in fields if k in settings})

    def loss(p: Any, batch: Any) -> Any:
        lengths = module.apply({"params": p}, batch[0])
        right = jax.nn.one_hot(batch[1], 10)
        # Not by a maximum, behind which compiled code may hide NaN.
        short, long = ((x + jnp.abs(x)) ** 2 / 4 for x in (UPPER - lengths, lengths - LOWER))
        return jnp.sum(right * short + 0.5 * (1 - right) * long, -1).mean()

    own = {"kind": "capsules", "library": "linen", "task": _capsules, "ails": ails}
    init = lambda key: module.init(key, jnp.zeros((2, 64)))["params"]  # noqa: E731
    return network(name, loss, init, **own | settings)


# Speech.

FRAMES, SOUNDS, MOST = 20, 5, 5


def _ctc(logits: Any, labels: Any) -> Any:
    losses = optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), labels, labels == 0)
    return losses.mean() / MOST


@functools.cache
def _speech() -> Task:
    """Frames of two to five sounds of different lengths, and which sounds these are."""
    rng = np.random.default_rng(64)
    voices = 1.5 * rng.standard_normal((SOUNDS + 1, 6))
    frames, labels = np.zeros((1280, FRAMES, 6)), np.zeros((1280, MOST), np.int32)
    for one, label in zip(frames, labels, strict=True):
        place, count = 0, rng.integers(2, MOST + 1)
        for number in range(count):
            choices = [s for s in range(1, SOUNDS + 1) if number == 0 or s != label[number - 1]]
            label[number] = rng.choice(choices)
            end = place + rng.integers(2, 5)
            one[place:end] = voices[label[number]]
            place = end
        one[place:] = voices[0]
    train, test = parted(frames + 0.5 * rng.standard_normal(frames.shape), labels)
    shares = jnp.linspace(0.3, 0.95, 40)

    def constant(blank: Any) -> Any:
        logits = jnp.log(jnp.append(blank, jnp.full(SOUNDS, (1 - blank) / SOUNDS)))
        return _ctc(jnp.broadcast_to(logits, (len(test[0]), FRAMES, SOUNDS + 1)), test[1])

    return Task(train, test, (float(jax.lax.map(constant, shares).min()),))


class Speech(nn.Module):
    """Two GRUs, forward and backward, and the logits of every frame."""

    stride: int = 1
    unit: float = 1.0
    shift: float = 0.0
    layers: int = 1
    blank: float = 0.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[batch, frames, sounds]`."""
        x = self.shift + self.unit * x[:, self.stride // 2 :: self.stride]
        for number in range(self.layers):
            there = nn.RNN(nn.GRUCell(24, name=f"there_{number}"))
            back = nn.RNN(nn.GRUCell(24, name=f"back_{number}"), reverse=True, keep_order=True)
            x = jnp.concatenate([there(x), back(x)], -1)
        x = nn.Dense(SOUNDS + 1, use_bias=False, name="head")(x)
        start = jnp.zeros(SOUNDS + 1).at[0].set(self.blank)
        return x + self.param("bias", lambda _: start)


def speech(name: str, *ails: str, **settings: Any) -> Network:
    """Speech without alignment (CTC); `settings` of `Speech` or `Network`."""
    fields = ("stride", "unit", "shift", "layers", "blank")
    module = Speech(**{k: settings.pop(k) for k in fields if k in settings})
    loss = lambda p, batch: _ctc(module.apply({"params": p}, batch[0]), batch[1])  # noqa: E731
    own = {"kind": "CTC", "library": "linen", "task": _speech, "ails": ails}
    init = lambda key: module.init(key, jnp.zeros((2, FRAMES, 6)))["params"]  # noqa: E731
    return network(name, loss, init, **{"rates": (1e-2,), "steps": 300} | own | settings)
