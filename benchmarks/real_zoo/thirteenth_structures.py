"""Networks of other kinds: molecules, codes, springs, orbits, grips, likenesses, noises, flows."""

import functools
import itertools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_equinox, of_linen, of_nnx

ATOMS, CENTERS = 7, 12
CODES, GROUPS, CODE = 16, 2, 6
MARGIN = 0.5
SAMPLES, NOISES = 16, 100


def layers(key: Any, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Kernels of LeCun's size, and biases of 0."""
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    return [
        {"w": jax.random.normal(k, (a, b)) / a**0.5, "b": jnp.zeros(b)}
        for k, (a, b) in zip(keys, pairs, strict=True)
    ]


def through(p: list[dict[str, Any]], x: Any, act: Any = jnp.tanh) -> Any:
    """The outputs of such layers; none is activated but the hidden ones."""
    for layer in p[:-1]:
        x = act(x @ layer["w"] + layer["b"])
    return x @ p[-1]["w"] + p[-1]["b"]


# Molecules.


@functools.cache
def molecules() -> Task:
    """Which of three elements seven atoms are, how far apart, and their energy; standardized."""
    rng = np.random.default_rng(1321)
    kinds = rng.integers(0, 3, (1536, ATOMS))
    places = rng.uniform(0, 3.2, (1536, ATOMS, 3))
    far = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1)
    deep = np.array([[1.0, 0.5, 1.5], [0.5, 2.0, 0.8], [1.5, 0.8, 1.2]])
    bound = deep[kinds[:, :, None], kinds[:, None]] * np.exp(-((far - 1.6) ** 2) / 0.5)
    bound = (bound * (1 - np.eye(ATOMS))).sum((1, 2))
    y = -bound + 0.3 * np.array([0.0, 1.0, -1.0])[kinds].sum(1)
    train, test = parted(kinds.astype(np.int32), far, standard(y))
    return Task(train, test, (float(np.var(test[2])),))


class Molecules(nn.Module):
    """Two rounds of messages that distances filter, and a sum over atoms; as SchNet's."""

    @nn.compact
    def __call__(self, kinds: Any, far: Any) -> Any:
        """Energies of molecules."""
        centers = jnp.linspace(0.5, 5.0, CENTERS)
        bells = jnp.exp(-4 * (far[..., None] - centers) ** 2)
        others = (1 - jnp.eye(ATOMS))[..., None]
        x = nn.Embed(3, 24, embedding_init=nn.initializers.normal(1.0), name="elements")(kinds)
        for number in range(2):
            filters = nn.Dense(24, use_bias=False, name=f"filter_{number}")(bells) * others
            sent = nn.Dense(24, use_bias=False, name=f"sent_{number}")(x)
            y = jnp.einsum("bijc,bjc->bic", filters, sent)
            y = nn.softplus(nn.Dense(24, name=f"round_{number}")(y)) - jnp.log(2.0)
            x = x + nn.Dense(24, name=f"after_{number}")(y)
        x = nn.softplus(nn.Dense(16, name="atom")(x)) - jnp.log(2.0)
        return nn.Dense(1, name="energy")(x)[..., 0].sum(-1)


def bound(name: str) -> Network:
    """The energy of molecules by a network of their graph."""
    init, apply = of_linen(Molecules(), jnp.zeros((2, ATOMS), int), jnp.ones((2, ATOMS, ATOMS)))
    own = {"kind": "SchNet of molecules", "library": "linen", "task": molecules, "steps": 500}
    return regression(name, init, apply, **own, rates=(2e-3, 6e-3))


# Codes.


@functools.cache
def gestures() -> Task:
    """Twenty-four places of a hand in one of twelve gestures, turned a little; standardized."""
    rng = np.random.default_rng(1322)
    which, centers = rng.integers(0, 12, 2560), rng.standard_normal((12, 24))
    ways = 0.25 * rng.standard_normal((2, 24))
    x = centers[which] + rng.standard_normal((2560, 2)) @ ways
    train, test = parted(standard(x + 0.1 * rng.standard_normal(x.shape)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


class Codes(eqx.Module):
    """An encoder to two vectors, the nearest of sixteen codes to each, and a decoder; VQ-VAE."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    codes: Any

    def __init__(self, key: Any) -> None:
        one, two, three = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(24, GROUPS * CODE, 48, 1, jax.nn.silu, key=one)
        self.decoder = eqx.nn.MLP(GROUPS * CODE, 24, 48, 1, jax.nn.silu, key=two)
        self.codes = 0.3 * jax.random.normal(three, (CODES, CODE))

    def __call__(self, x: Any) -> Any:
        """The same places, and how far vectors are from their codes."""
        z = self.encoder(x).reshape(GROUPS, CODE)
        apart = ((z[:, None] - self.codes) ** 2).sum(-1)
        near = self.codes[apart.argmin(-1)]
        stop = jax.lax.stop_gradient
        committed = ((stop(z) - near) ** 2).mean() + 0.25 * ((z - stop(near)) ** 2).mean()
        return self.decoder((z + stop(near - z)).reshape(-1)), committed


def gestured(name: str, **rest: Any) -> Network:
    """Gestures as codes."""
    init, apply = of_equinox(Codes)

    def parts(p: Any, batch: Any) -> Any:
        return (jnp.mean((apply(p, batch[0])[0] - batch[0]) ** 2),)

    def loss(p: Any, batch: Any) -> Any:
        again, committed = apply(p, batch[0])
        return jnp.mean((again - batch[0]) ** 2) + committed.mean()

    own = {"kind": "VQ-VAE of gestures", "library": "Equinox", "task": gestures, "steps": 500}
    own = own | {"rates": (2e-3, 6e-3)} | rest
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Springs.


def _swung(t: Any, of: Any = jnp) -> Any:
    """How a damped spring swings that was let go at 1."""
    rate = (9 - 0.25) ** 0.5
    return of.exp(-0.5 * t) * (of.cos(rate * t) + 0.5 / rate * of.sin(rate * t))


@functools.cache
def springs() -> Task:
    """Times from 0 to 3, for u'' + u' + 9 u = 0, u(0) = 1, u'(0) = 0."""
    train, test = parted(np.random.default_rng(1323).uniform(0, 3, (1024, 1)))
    return Task(train, test, (float(np.var(_swung(test[0], np))),))


def swung(name: str, *, unit: float = 1.0, **rest: Any) -> Network:
    """A physics-informed network of a spring, its loss in some unit."""

    def init(key: Any) -> Any:
        return {"swing": layers(key, (1, 32, 32, 32, 1))}

    def apply(p: Any, t: Any) -> Any:
        return through(p["swing"], t[None] - 1.5)[0]

    def loss(p: Any, batch: Any) -> Any:
        u, slope = lambda t: apply(p, t), jax.grad(apply, 1)
        bend = jax.grad(slope, 1)

        def left(t: Any) -> Any:
            return bend(p, t) + slope(p, t) + 9 * u(t)

        start = jnp.zeros(())
        known = (u(start) - 1) ** 2 + (slope(p, start) / 3) ** 2
        return unit * (jnp.mean((jax.vmap(left)(batch[0][:, 0]) / 9) ** 2) + known)

    def parts(p: Any, batch: Any) -> Any:
        t = batch[0][:, 0]
        return (jnp.mean((jax.vmap(lambda t: apply(p, t))(t) - _swung(t)) ** 2),)

    own = {"kind": "PINN of a spring", "library": "plain", "task": springs, "steps": 1000}
    own = own | {"rates": (3e-3, 8e-3)} | rest
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Orbits.


@functools.cache
def orbits() -> Task:
    """Where a van der Pol oscillator starts, and where it is a while later."""
    rng = np.random.default_rng(1324)
    start = rng.uniform(-2, 2, (1536, 2))
    x = start
    for _ in range(150):
        x = x + 0.01 * np.stack([x[:, 1], 1.5 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], 1)
    train, test = parted(start, x)
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


class Orbits(eqx.Module):
    """A field of two hidden layers, and eight steps of Runge and Kutta's through it."""

    field: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.field = eqx.nn.MLP(2, 2, 32, 2, jnp.tanh, key=key)

    def __call__(self, x: Any) -> Any:
        """Where one is that starts there."""
        step = 1.5 / 8
        for _ in range(8):
            one = self.field(x)
            two = self.field(x + step / 2 * one)
            three = self.field(x + step / 2 * two)
            x = x + step / 6 * (one + 2 * two + 2 * three + self.field(x + step * three))
        return x


def orbited(name: str) -> Network:
    """How an oscillator moves, by a neural ODE."""
    init, apply = of_equinox(Orbits)
    own = {"kind": "neural ODE of orbits", "library": "Equinox", "task": orbits, "steps": 500}
    return regression(name, init, apply, **own, rates=(3e-3, 1e-2))


# Grips.


@functools.cache
def grips() -> Task:
    """Nine readings of a gripper, and what an operator did with its three motors."""
    rng = np.random.default_rng(1325)
    x, mixing = rng.standard_normal((2048, 9)), rng.standard_normal((2, 9, 3)) / 3
    y = np.tanh(x @ mixing[0] + 0.8 * np.abs(x @ mixing[1]) - 0.5)
    train, test = parted(x, 0.95 * y + 0.03 * rng.standard_normal(y.shape))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def gripped(name: str) -> Network:
    """A Gaussian policy with bounded means and spreads of its own, cloned by likelihood."""

    class Grips(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.trunk = nnx.List(nnx.Linear(a, 48, rngs=rngs) for a in (9, 48))
            self.motors = nnx.Linear(48, 3, rngs=rngs)
            self.log_spread = nnx.Param(jnp.full(3, -0.5))

        def __call__(self, x: Any) -> Any:
            for layer in self.trunk:
                x = nnx.relu(layer(x))
            return jnp.tanh(self.motors(x)), self.log_spread[...]

    init, apply = of_nnx(Grips)

    def loss(p: Any, batch: Any) -> Any:
        mean, log_spread = apply(p, batch[0])
        away = (batch[1] - mean) * jnp.exp(-log_spread)
        return jnp.mean((away**2 / 2 + log_spread).sum(-1))

    def parts(p: Any, batch: Any) -> Any:
        return (jnp.mean((apply(p, batch[0])[0] - batch[1]) ** 2),)

    own = {"kind": "Gaussian policy of grips", "library": "nnx", "task": grips, "steps": 400}
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Likenesses.


@functools.cache
def likenesses() -> Task:
    """Twenty measurements of a face, of the same one again, and of another."""
    rng = np.random.default_rng(1326)
    faces, mixing = rng.standard_normal((2048, 2, 4)), rng.standard_normal((4, 20)) / 2
    light = 2.5 * rng.standard_normal((2048, 3, 3)) @ rng.standard_normal((3, 20)) / 3**0.5
    x = 2 * np.tanh(faces[:, [0, 0, 1]] @ mixing) + light
    x = standard(x + 0.1 * rng.standard_normal(x.shape), None)
    train, test = parted(x[:, 0], x[:, 1], x[:, 2])
    return Task(train, test, (MARGIN,))


def likened(name: str, **rest: Any) -> Network:
    """Vectors of faces, by triplets with a margin."""

    def made(x: Any) -> Any:
        for number in range(3):
            x = jax.nn.relu(hk.Linear(48, name=f"face_{number}")(x))
        return hk.Linear(8, name="vector")(x)

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        one, same, other = (model.apply(p, x) for x in batch)
        near, far = (jnp.mean((one - x) ** 2, -1) for x in (same, other))
        return jax.nn.relu(near - far + MARGIN).mean()

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 20)))

    own = {"kind": "triplets of likenesses", "library": "Haiku", "task": likenesses, "steps": 400}
    return network(name, loss, init, **own | {"rates": (1e-3, 3e-3)} | rest)


# Noises.


@functools.cache
def noises() -> Task:
    """Sixteen samples of a wave in standard units, how much noise is to come to it, and noise."""
    rng = np.random.default_rng(1327)
    phase, turns = rng.uniform(0, 2 * np.pi, (4096, 1)), rng.uniform(0.5, 1.2, (4096, 1))
    x = np.sin(phase + turns * np.arange(SAMPLES) / 2) * rng.uniform(0.7, 1.5, (4096, 1))
    time, noise = rng.integers(0, NOISES, 4096), rng.standard_normal((4096, SAMPLES))
    train, test = parted(standard(x, None), time.astype(np.int32), noise)
    return Task(train, test, (float(np.mean(test[2] ** 2)),))


class Noises(nn.Module):
    """Two residual blocks that are told the time by waves of it."""

    @nn.compact
    def __call__(self, x: Any, time: Any) -> Any:
        """What noise there is."""
        turns = time[:, None] / NOISES * 2.0 ** jnp.arange(5)
        told = nn.Dense(64, name="time")(jnp.concatenate([jnp.sin(turns), jnp.cos(turns)], -1))
        x = nn.Dense(64, name="into")(x)
        for number in range(2):
            y = nn.silu(nn.Dense(64, name=f"block_{number}_a")(nn.LayerNorm()(x) + told))
            x = x + nn.Dense(64, name=f"block_{number}_b")(y)
        return nn.Dense(SAMPLES, name="noise")(nn.LayerNorm()(x))


def denoised(name: str) -> Network:
    """What noise is in a wave, by a small denoising diffusion model."""
    init, apply = of_linen(Noises(), jnp.zeros((2, SAMPLES)), jnp.zeros(2, int))
    kept = jnp.asarray(np.cumprod(1 - np.linspace(1e-3, 0.12, NOISES)), jnp.float32)

    def loss(p: Any, batch: Any) -> Any:
        x, time, noise = batch
        signal = kept[time][:, None]
        mixed = jnp.sqrt(signal) * x + jnp.sqrt(1 - signal) * noise
        return jnp.mean((apply(p, mixed, time) - noise) ** 2)

    own = {"kind": "diffusion of waves", "library": "linen", "task": noises, "steps": 600}
    return network(name, loss, init, **own, rates=(1e-3, 3e-3), batch=64)


# Flows.


@functools.cache
def moons() -> Task:
    """Points of a bent ribbon in four dimensions, in standard units."""
    rng = np.random.default_rng(1328)
    along = rng.uniform(-1, 1, (4096, 2)) * np.array([2.5, 1.5])
    bent = np.stack([np.sin(2 * along[:, 0]), along[:, 1] ** 2 - along[:, 0] / 2], 1)
    x = standard(np.concatenate([along, bent], 1) + 0.08 * rng.standard_normal((4096, 4)))
    train, test = parted(x)
    spread = np.linalg.slogdet(np.cov(test[0].T))[1]
    return Task(train, test, (float(2 * (np.log(2 * np.pi) + 1) + spread / 2),))


def flowed(name: str) -> Network:
    """The density of points by six couplings that start at nothing; RealNVP."""

    def init(key: Any) -> Any:
        made = {}
        for number, own in enumerate(jax.random.split(key, 6)):
            first, last = layers(own, (2, 32, 32, 4))[:2], layers(own, (32, 4))[0]
            made[f"coupling_{number}"] = [*first, jax.tree.map(jnp.zeros_like, last)]
        return made

    def loss(p: Any, batch: Any) -> Any:
        x, grown = batch[0].astype(p["coupling_0"][0]["w"].dtype), 0.0
        for number in range(6):
            kept, moved = x[:, :2], x[:, 2:]
            log_scale, shift = jnp.split(through(p[f"coupling_{number}"], kept), 2, -1)
            grown = grown + log_scale.sum(-1)
            x = jnp.concatenate([moved * jnp.exp(log_scale) + shift, kept], -1)
            # Every second pair of couplings sees the other halves.
            x = x[:, [0, 2, 1, 3]] if number % 2 else x
        return jnp.mean((x**2 / 2 + jnp.log(2 * jnp.pi) / 2).sum(-1) - grown)

    own = {"kind": "RealNVP of a ribbon", "library": "plain", "task": moons, "steps": 500}
    return network(name, loss, init, **own, rates=(1e-3, 3e-3), batch=64)
