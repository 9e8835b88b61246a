"""What is seen and heard: sharper pictures, rain, outlines, slides, earthquakes, compounds."""

import functools
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_linen
from benchmarks.real_zoo.text import entropy

SHAPES, CLAMP = 12, 0.25
BYTES = (110.0, 55.0)


# Sharper pictures.


@functools.cache
def _blurs() -> Task:
    """Pictures of a disc and a bar whose pixels were averaged by fours; what was lost."""
    rng = np.random.default_rng(911)
    rows, columns = np.mgrid[:8, :8]
    far = lambda low, high: rng.uniform(low, high, (768, 1, 1))  # noqa: E731
    disc = (rows - far(1, 7)) ** 2 + (columns - far(1, 7)) ** 2 < far(2, 3) ** 2
    angle = far(0, np.pi)
    across = np.cos(angle) * (rows - far(2, 6)) + np.sin(angle) * (columns - far(2, 6))
    sharp = disc - 1.0 * (np.abs(across) < 1.2)
    blurred = sharp.reshape(-1, 4, 2, 4, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    lost = sharp - blurred
    train, test = parted(2 * blurred[..., None], lost / lost.std())
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


class Sharper(nn.Module):
    """Convolutions of 3 x 3; their kernels are normal, by `scale` over the root of the fan."""

    depth: int = 4
    scale: float = 1.4
    last: float = 1.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """What blurred pictures lack."""
        for number in range(self.depth - 1):
            conv = nn.Conv(8, (3, 3), kernel_init=gaussian(self.scale), name=f"conv_{number}")
            x = nn.relu(conv(x))
        return nn.Conv(1, (3, 3), kernel_init=gaussian(self.last), name="out")(x)[..., 0]


def sharper(
    name: str, *ails: str, depth: int = 4, scale: float = 1.4, last: float = 1.0, **rest: Any
) -> Network:
    """Details that are added to an enlarged picture; as SRCNN and VDSR."""
    init, apply = of_linen(Sharper(depth, scale, last), jnp.zeros((2, 8, 8, 1)))
    own = {"kind": "super-resolution", "library": "linen", "task": _blurs, "ails": ails}
    settings = {"steps": 300, "batch": 16, "rates": (4e-3, 1e-2), "batched": False}
    return regression(name, init, apply, **settings | own | rest)


# Rain.


@functools.cache
def _clouds() -> Task:
    """Four pictures, 6 x 6, of a cloud that moves, and the fifth; light is from 0 to 1."""
    rng = np.random.default_rng(912)
    places = np.stack(np.mgrid[:6, :6])
    start, speed = rng.uniform(1, 5, (768, 2)), rng.uniform(-0.7, 0.7, (768, 2))
    width, films = rng.uniform(1.5, 3, (768, 1, 1)), []
    for time in range(5):
        away = (places - (start + time * speed)[..., None, None] + 3) % 6 - 3
        films.append(np.exp(-(away**2).sum(1) / width))
    films = np.stack(films, 1)
    train, test = parted(films[:, :4, ..., None], films[:, 4])
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def rain(
    name: str, *ails: str, light: float = 1.0, last: Any = lambda x: x, **rest: Any
) -> Network:
    """The next picture by a convolutional LSTM; white is `light`, outputs go through `last`."""

    def made(x: Any) -> Any:
        cell = hk.Conv2DLSTM((6, 6), 6, 3, name="cell")
        states, _ = hk.dynamic_unroll(cell, x, cell.initial_state(len(x)), time_major=False)
        return last(hk.Conv2D(1, 3, name="picture")(states[:, -1])[..., 0])

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((model.apply(p, light * batch[0]) - light * batch[1]) ** 2)

    own = {"kind": "ConvLSTM", "library": "Haiku", "task": _clouds, "ails": ails}
    return Network(
        name=name,
        init=lambda key: model.init(key, jnp.zeros((2, 4, 6, 6, 1))),
        loss=loss,
        parts=lambda p, batch: (loss(p, batch) / light**2,),
        **{"steps": 300, "batch": 16, "rates": (4e-3, 1e-2), "batched": False} | own | rest,
    )


# Outlines.


@functools.cache
def _outlines() -> Task:
    """Which of twelve outlines, a point of the plane, and how far it's outside."""
    rng = np.random.default_rng(913)
    which, points = rng.integers(0, SHAPES, 4096), rng.uniform(-1, 1, (4096, 2))
    middle, radius = rng.uniform(-0.3, 0.3, (SHAPES, 2)), rng.uniform(0.3, 0.6, SHAPES)
    sides, depth = rng.integers(2, 5, SHAPES), rng.uniform(0.05, 0.15, SHAPES)
    away = points - middle[which]
    angle = np.arctan2(away[:, 1], away[:, 0])
    edge = radius[which] + depth[which] * np.cos(sides[which] * angle)
    train, test = parted(which.astype(np.int32), points, np.hypot(*away.T) - edge)
    near = np.clip(test[2], -CLAMP, CLAMP)
    return Task(train, test, (float(np.mean(np.abs(near - np.median(near)))),))


def outlines(
    name: str, *ails: str, codes: float = 0.01, bias: float = 0.0, last: float = 0.3, **rest: Any
) -> Network:
    """A code for each outline and clamped distances; as DeepSDF, its last bias is `bias`."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        layers = stack(two, (10, 64, 64, 64, 1), 1.4)
        layers[-1] = {"w": layers[-1]["w"] * last, "b": layers[-1]["b"] + bias}
        return {"codes": codes * jax.random.normal(one, (SHAPES, 8)), "layers": layers}

    def loss(p: Any, batch: Any) -> Any:
        x = jnp.concatenate([p["codes"][batch[0]], batch[1]], -1)
        guess = forward(p["layers"], x, jax.nn.relu)[:, 0]
        guess, wanted = (jnp.clip(y, -CLAMP, CLAMP) for y in (guess, batch[2]))
        return jnp.mean(jnp.abs(guess - wanted))

    own = {"kind": "signed distances", "library": "plain", "task": _outlines, "ails": ails}
    return network(name, loss, init, **{"steps": 400, "batch": 64} | own | rest)


# Slides.


@functools.cache
def _slides() -> Task:
    """Bags of ten patches, twelve numbers each; whether one of them is of a tumor."""
    rng = np.random.default_rng(914)
    x, ill = rng.standard_normal((1536, 10, 12)), rng.random(1536) < 0.5
    found = rng.random((1536, 10)) < 0.1
    found[np.arange(1536), rng.integers(0, 10, 1536)] = True
    sign = 2.5 * rng.standard_normal(12) / 12**0.5
    x += (found & ill[:, None])[..., None] * sign * 1.6
    train, test = parted(x, ill.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def slides(
    name: str,
    *ails: str,
    axis: int = 1,
    raw: bool = False,
    depth: int = 1,
    activation: Any = jax.nn.relu,
    **rest: Any,
) -> Network:
    """Patches weighed by gated attention, a softmax over `axis`; `raw` are bytes."""

    def made(x: Any) -> Any:
        x = BYTES[0] + BYTES[1] * x if raw else x
        for number in range(depth):
            x = activation(hk.Linear(32, name=f"patch_{number}")(x))
        gate = jnp.tanh(hk.Linear(16, name="what")(x)) * jax.nn.sigmoid(hk.Linear(16)(x))
        shares = jax.nn.softmax(hk.Linear(1, name="weight")(gate), axis)
        return hk.Linear(1, name="head")(jnp.sum(shares * x, 1))[:, 0]

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(model.apply(p, batch[0]), batch[1]).mean()

    init = lambda key: model.init(key, jnp.zeros((2, 10, 12)))  # noqa: E731
    own = {"kind": "bags of patches", "library": "Haiku", "task": _slides, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | own | rest)


# Earthquakes.


@functools.cache
def _quakes() -> Task:
    """Noise of 32 steps in which a wave arrives, and the eight steps from there on."""
    rng = np.random.default_rng(915)
    since = np.arange(32) - rng.integers(4, 24, (1024, 1))
    wave = np.exp(-since / 6) * np.sin(since * rng.uniform(1.2, 2.0, (1024, 1)))
    x = 3 * np.where(since >= 0, wave, 0.0) + 0.4 * rng.standard_normal(since.shape)
    train, test = parted(x[..., None], ((since >= 0) & (since < 8)).astype(np.float64))
    share = test[1].mean(0).clip(1e-6, 1 - 1e-6)
    chance = -np.mean(share * np.log(share) + (1 - share) * np.log(1 - share))
    return Task(train, test, (float(chance),))


class Picker(nn.Module):
    """A U-Net of one dimension, twice down and up; outputs go through `last`."""

    scale: float = 1.4
    last: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of steps."""
        conv = functools.partial(nn.Conv, kernel_size=(5,), kernel_init=gaussian(self.scale))
        first = nn.relu(conv(6, name="first")(x))
        second = nn.relu(conv(12, strides=(2,), name="down_0")(first))
        x = nn.relu(conv(16, strides=(2,), name="down_1")(second))
        for number, level in enumerate((second, first)):
            x = jnp.concatenate([x.repeat(2, 1), level], -1)
            x = nn.relu(conv(level.shape[-1], name=f"up_{number}")(x))
        x = nn.Dense(1, name="out")(x)[..., 0]
        return self.last(x) if self.last else x


def picker(
    name: str, *ails: str, scale: float = 1.4, last: Any = None, dice: str = "", **rest: Any
) -> Network:
    """Where an earthquake's wave is: cross-entropy, or the `dice` of "shares" or "masks"."""
    init, apply = of_linen(Picker(scale, last), jnp.zeros((2, 32, 1)))

    def judged(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(apply(p, batch[0]), batch[1]).mean()

    def overlap(p: Any, batch: Any) -> Any:
        shares = jax.nn.sigmoid(apply(p, batch[0]))
        shares = (shares > 0.5).astype(jnp.float32) if dice == "masks" else shares
        return 1 - (2 * jnp.sum(shares * batch[1]) + 1) / (jnp.sum(shares + batch[1]) + 1)

    own = {"kind": "phase picker", "library": "linen", "task": _quakes, "ails": ails}
    return Network(
        name=name,
        init=init,
        loss=overlap if dice else judged,
        parts=lambda p, batch: (judged(p, batch),),
        **{"steps": 300, "batch": 16, "rates": (4e-3, 1e-2), "batched": False} | own | rest,
    )


# Compounds.


@functools.cache
def _compounds() -> Task:
    """Twelve atoms of four kinds, their bonds, and a property: which are beside which."""
    rng = np.random.default_rng(916)
    kinds = np.eye(4)[rng.integers(0, 4, (1280, 12))]
    bonds = np.triu(rng.random((1280, 12, 12)) < 0.3, 1)
    bonds = (bonds | bonds.swapaxes(1, 2)).astype(np.float64)
    beside = bonds @ kinds
    y = (kinds[..., 0] * beside[..., 1]).sum(1) - 0.5 * (kinds[..., 2] * beside[..., 3]).sum(1)
    y += 0.6 * np.maximum(beside[..., 0] - 1, 0).sum(1) * 0.3
    train, test = parted(kinds, bonds, standard(y))
    return Task(train, test, (float(np.var(test[2])),))


def compounds(name: str, *ails: str, depth: int = 2, norm: bool = True, **rest: Any) -> Network:
    """Sums over neighbors, an MLP after each, and a sum over atoms; as GIN."""

    def made(x: Any, bonds: Any) -> Any:
        for number in range(depth):
            x = x + bonds @ x
            x = hk.nets.MLP([32, 32], activate_final=True, name=f"layer_{number}")(x)
            x = hk.LayerNorm(-1, True, True, name=f"norm_{number}")(x) if norm else x
        return hk.nets.MLP([32, 1], name="head")(x.sum(1))[:, 0]

    model = hk.without_apply_rng(hk.transform(made))
    init = lambda key: model.init(key, jnp.zeros((2, 12, 4)), jnp.zeros((2, 12, 12)))  # noqa: E731
    own = {"kind": "isomorphism network", "library": "Haiku", "task": _compounds, "ails": ails}
    return regression(name, init, model.apply, **{"steps": 400} | own | rest)
