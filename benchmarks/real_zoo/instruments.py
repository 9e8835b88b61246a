"""What instruments give: radiographs, scans of a laser, spectra, brain waves."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network, Task
from benchmarks.real_zoo.sequences import of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

# Where a tile lies (UTM), and how long its unit is, in meters.
TILE, METERS = np.array([447_310.0, 5_411_820.0, 312.0], np.float32), 5.0


def standard(x: Any, axis: Any = 0) -> Any:
    """Of mean zero and spread one."""
    return (x - x.mean(axis)) / x.std(axis)


# Radiographs.


@functools.cache
def _radiographs() -> Task:
    """Smooth shadows, 16 x 16, with a nodule, a line or neither, in standard units."""
    rng = np.random.default_rng(112)
    count, kinds = 1024, rng.integers(0, 3, 1024)
    rows, columns = np.mgrid[-1:1:16j, -1:1:16j]

    def drawn(low: float, high: float, many: int = 1) -> Any:
        return rng.uniform(low, high, (many, count, 1, 1))

    (slope, tilt), (y, x) = drawn(-0.8, 0.8, 2), drawn(-0.6, 0.6, 2)
    ((angle,), (size,)) = drawn(0, np.pi), drawn(0.15, 0.25)
    shadow = slope * rows + tilt * columns + drawn(-0.3, 0.3)[0]
    nodule = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * size**2))
    across = (rows - y) * np.cos(angle) + (columns - x) * np.sin(angle)
    line = np.exp(-((across / 0.08) ** 2))
    which = kinds[:, None, None]
    image = shadow + 2.0 * (which == 1) * nodule + 2.0 * (which == 2) * line
    image = standard(image + 0.2 * rng.standard_normal(image.shape), None)
    train, test = parted(image[..., None], kinds.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def dense_net(
    name: str,
    *ails: str,
    norm: bool = True,
    pixels: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """Two blocks whose layers see all before them (DenseNet); `pixels` are a level and a unit."""

    class DenseNet(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            own = {"kernel_init": gaussian(1.4), "use_bias": not norm, "rngs": rngs}
            widths = [8, 16, 24, 16, 24, 32]
            self.stem = nnx.Conv(1, 8, (3, 3), strides=2, **own)
            self.layers = nnx.List(nnx.Conv(width, 8, (3, 3), **own) for width in widths)
            self.norms = nnx.List(nnx.BatchNorm(width, rngs=rngs) for width in [*widths, 40])
            self.between = nnx.Conv(32, 16, (1, 1), **own)
            self.head = nnx.Linear(40, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.stem(pixels[0] + pixels[1] * x)
            for number, layer in enumerate(self.layers):
                if number == 3:
                    x = nnx.avg_pool(self.between(x), (2, 2), (2, 2))
                y = self.norms[number](x) if norm else x
                x = jnp.concatenate([x, layer(nnx.relu(y))], -1)
            x = nnx.relu(self.norms[-1](x) if norm else x)
            return self.head(x.mean((1, 2)))

    init, apply = of_nnx(DenseNet)
    own = {"kind": "DenseNet", "library": "nnx", "task": _radiographs, "ails": ails}
    return classifier(name, init, apply, **{"batched": False} | own | rest)


# Laser scans.


@functools.cache
def _scans() -> Task:
    """Twenty-four points of a pole, a wall, the ground or a crown, around the middle of a tile."""
    rng = np.random.default_rng(113)
    count, points = 1280, 24
    kinds, u = rng.integers(0, 4, count), rng.uniform(-1, 1, (count, points, 3))
    extent = np.array([[0.1, 0.1, 1.0], [1.0, 0.1, 1.0], [1.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    ball = rng.standard_normal(u.shape)
    ball *= 0.8 / np.linalg.norm(ball, axis=-1, keepdims=True)
    shape = np.where((kinds == 3)[:, None, None], ball, u * extent[kinds][:, None])
    angle = rng.uniform(0, 2 * np.pi, (count, 1))
    c, s, (x, y, z) = np.cos(angle), np.sin(angle), np.moveaxis(shape, -1, 0)
    cloud = np.stack([c * x - s * y, s * x + c * y, z], -1) + rng.normal(0, 0.4, (count, 1, 3))
    cloud += 0.08 * rng.standard_normal(cloud.shape)
    train, test = parted(cloud, kinds.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class EdgeNet(eqx.Module):
    """Points, their nearest ones, and how these differ from them (DGCNN), for one cloud."""

    edges: list[Any]
    wide: Any
    head: Any
    surveyed: bool = eqx.field(static=True)

    def __init__(self, key: Any, surveyed: bool) -> None:
        keys = jax.random.split(key, 4)
        sizes = ((3, 24), (24, 24))
        make = functools.partial(eqx.nn.MLP, depth=1, final_activation=jax.nn.relu)
        self.edges = [
            make(2 * a, b, b, key=one) for (a, b), one in zip(sizes, keys[:2], strict=True)
        ]
        self.wide = eqx.nn.Linear(48, 48, key=keys[2])
        self.head = eqx.nn.MLP(96, 4, 32, 1, key=keys[3])
        self.surveyed = surveyed

    def __call__(self, x: Any) -> Any:
        """Logits of `[points, 3]`."""
        x, found = TILE + METERS * x if self.surveyed else x, []
        for edge in self.edges:
            apart = jnp.sum((x[:, None] - x[None]) ** 2, -1)
            near = x[jax.lax.top_k(-jax.lax.stop_gradient(apart), 5)[1]]
            pairs = jnp.concatenate(
                [jnp.broadcast_to(x[:, None], near.shape), near - x[:, None]], -1
            )
            x = jax.vmap(jax.vmap(edge))(pairs).max(1)
            found.append(x)
        x = jax.nn.relu(jax.vmap(self.wide)(jnp.concatenate(found, -1)))
        return self.head(jnp.concatenate([x.max(0), x.mean(0)]))


def scan(name: str, *ails: str, surveyed: bool = False, **rest: Any) -> Network:
    """What a scan shows, by edges; its points within a tile or, if `surveyed`, on the Earth."""
    init, apply = of_equinox(lambda key: EdgeNet(key, surveyed))
    own = {"kind": "edge convolutions", "library": "Equinox", "task": _scans, "ails": ails}
    return classifier(name, init, apply, **{"steps": 300} | own | rest)


# Spectra.


@functools.cache
def _spectra() -> Task:
    """Three lines on a slope, in forty-eight channels, in standard units."""
    rng = np.random.default_rng(114)
    channels = np.linspace(0, 1, 48)
    high, shift = rng.uniform(0, 2, (1280, 3, 1)), rng.normal(0, 0.02, (1280, 1, 1))
    places = np.array([0.25, 0.5, 0.75])[:, None] + shift
    light = (high * np.exp(-((channels - places) ** 2) / 0.006)).sum(1)
    light += rng.normal(0, 0.5, (1280, 1)) * channels + 0.1 * rng.standard_normal(light.shape)
    train, test = parted(standard(light))
    return Task(train, test, (float(np.mean(np.var(test[0], axis=0))),))


class SpectraVAE(nn.Module):
    """The code's mean and spread, and a spectrum from it."""

    counts: tuple[float, float] = (0.0, 1.0)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The spectrum as given back, and the code's divergence in nats."""
        h = self.counts[0] + self.counts[1] * x
        for number in range(2):
            h = nn.relu(nn.Dense(64, kernel_init=gaussian(1.4), name=f"encoder_{number}")(h))
        mean, spread = nn.Dense(6, name="mean")(h), nn.Dense(6, name="spread")(h)
        spread = nn.softplus(spread) + 1e-3
        z = mean + spread * jax.random.normal(jax.random.key(1), mean.shape)
        for number in range(2):
            z = nn.relu(nn.Dense(64, kernel_init=gaussian(1.4), name=f"decoder_{number}")(z))
        nats = 0.5 * jnp.sum(mean**2 + spread**2 - 2 * jnp.log(spread) - 1, -1)
        return nn.Dense(48, name="out")(z), nats.mean()


def spectra_vae(
    name: str,
    *ails: str,
    counts: tuple[float, float] = (0.0, 1.0),
    summed: bool = True,
    **rest: Any,
) -> Network:
    """A VAE of spectra: errors, `summed` over channels or their mean, and the divergence.

    `counts` are a detector's dark level and the unit of what it adds, for the encoder.
    """
    init, apply = of_linen(SpectraVAE(counts), jnp.zeros((2, 48)))

    def error(p: Any, batch: Any) -> Any:
        out, nats = apply(p, batch[0])
        return jnp.mean((out - batch[0]) ** 2), nats

    def loss(p: Any, batch: Any) -> Any:
        mean, nats = error(p, batch)
        return mean + nats / 48 if summed else mean + nats

    own = {"kind": "VAE of spectra", "library": "linen", "task": _spectra, "ails": ails}
    parts = lambda p, batch: error(p, batch)[:1]  # noqa: E731
    return Network(name=name, init=init, loss=loss, parts=parts, **{"steps": 400} | own | rest)


# Brain waves.


@functools.cache
def _brain_waves() -> Task:
    """Eight electrodes' noise, with a slow wave behind, a fast one in front or neither."""
    rng = np.random.default_rng(115)
    count, kinds, t = 1024, rng.integers(0, 3, 1024), np.arange(64) / 64
    noise = rng.standard_normal((count, 8, 65))
    noise = noise[..., 1:] + 0.7 * noise[..., :-1]
    rate = np.where(kinds == 1, 9.0, 20.0) + rng.uniform(-1.5, 1.5, count)
    wave = np.sin(2 * np.pi * (rate[:, None] * t + rng.random((count, 1))))
    behind, front = np.linspace(0, 1.5, 8), np.linspace(1.5, 0, 8)
    maps = np.stack([0 * behind, behind, front])[kinds]
    volts = standard(noise + maps[..., None] * wave[:, None], None)
    train, test = parted(volts, kinds.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class EEGNet(nn.Module):
    """Filters in time, over electrodes, in time again; norms and means between them."""

    unit: float = 1.0
    norm: bool = True
    shares: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits, or shares, of `[batch, electrodes, samples]`."""

        def normal(x: Any, name: str) -> Any:
            own = {"use_running_average": False, "epsilon": 1e-3}
            return nn.BatchNorm(**own, name=name)(x) if self.norm else x

        bare = functools.partial(nn.Conv, use_bias=False)
        x = bare(6, (1, 16), name="in_time")(self.unit * x[..., None])
        x = normal(x, "norm_0")
        own = {"padding": "VALID", "feature_group_count": 6}
        x = nn.elu(normal(bare(12, (8, 1), **own, name="electrodes")(x), "norm_1"))
        x = nn.avg_pool(x, (1, 4), (1, 4))
        x = bare(12, (1, 8), feature_group_count=12, name="again")(x)
        x = nn.elu(normal(bare(12, (1, 1), name="mixed")(x), "norm_2"))
        x = nn.avg_pool(x, (1, 4), (1, 4)).reshape(len(x), -1)
        x = nn.Dense(3, name="head")(x)
        return nn.softmax(x) if self.shares else x


def eeg_net(name: str, *ails: str, **settings: Any) -> Network:
    """States told by brain waves; `settings` of `EEGNet` or `Network`."""
    fields = ("unit", "norm", "shares")
    module = EEGNet(**{k: settings.pop(k) for k in fields if k in settings})
    init, apply = of_linen(module, jnp.zeros((2, 8, 64)))
    own = {"kind": "EEGNet", "library": "linen", "task": _brain_waves, "ails": ails}
    return classifier(name, init, apply, **{"batched": False} | own | settings)
