"""What goes on in time: sounds, symbols, cues, forecasts, paths, and an oscillator."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_nnx
from benchmarks.real_zoo.text import entropy


@functools.cache
def _sounds() -> Task:
    """A second of sound: a tone that rises, falls, stays or trembles, in noise."""
    rng = np.random.default_rng(91)
    kinds, t = rng.integers(0, 4, 1536), np.linspace(0, 1, 128)
    middle, starts = rng.uniform(16, 24, (1536, 1)), rng.random((1536, 1))
    bend = np.array([20.0, -20.0, 0.0, 0.0])[kinds][:, None]
    loud = 1 + 0.9 * (kinds == 3)[:, None] * np.sin(2 * np.pi * (5 * t + starts))
    sound = loud * np.sin(2 * np.pi * (middle * t + bend * (t**2 - t) / 2 + 3 * starts))
    train, test = parted(sound + 0.2 * rng.standard_normal(sound.shape), kinds.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Keywords(nn.Module):
    """Convolutions over samples, the first three with strides, and the mean over time."""

    depth: int = 4
    norm: bool = True
    unit: float = 1.0
    kernel_init: Any = gaussian(1.4)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of `[batch, samples]`."""
        x = self.unit * x[..., None]
        for number in range(self.depth):
            own = {"kernel_init": self.kernel_init, "name": f"conv_{number}"}
            x = nn.Conv(16, (7,), (2 if number < 3 else 1,), **own)(x)
            x = nn.relu(nn.GroupNorm(4, name=f"norm_{number}")(x) if self.norm else x)
        return nn.Dense(4, name="head")(x.mean(1))


def keywords(name: str, *ails: str, **settings: Any) -> Network:
    """A spotter of words in raw sound; `settings` of `Keywords` or `Network`."""
    fields = ("depth", "norm", "unit", "kernel_init")
    module = Keywords(**{k: settings.pop(k) for k in fields if k in settings})
    init = lambda key: module.init(key, jnp.zeros((2, 128)))["params"]  # noqa: E731
    apply = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    own = {"kind": "keywords", "library": "linen", "task": _sounds, "ails": ails, "steps": 300}
    return classifier(name, init, apply, **{"batched": False} | own | settings)


@functools.cache
def _marked() -> Task:
    """Twenty of eight symbols; which one was the single one that was marked."""
    rng = np.random.default_rng(92)
    tokens, place = rng.integers(0, 8, (2048, 20)), rng.integers(0, 16, 2048)
    answers = tokens[np.arange(2048), place]
    tokens[np.arange(2048), place] += 8
    train, test = parted(tokens.astype(np.int32), answers.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def mamba(
    name: str, *ails: str, depth: int = 2, pace: float = 0.0, decay: float = 0.0, **rest: Any
) -> Network:
    """Selective state spaces; `pace` is added to the steps' bias, `decay` to the rates' logarithm.

    Each block is a short convolution, a state of eight for each feature, and a gate.
    """
    width, states = 24, 8

    def init(key: Any) -> Any:
        keys = iter(jax.random.split(key, 2 + 6 * depth))

        def kernel(a: int, b: int) -> Any:
            return jax.random.normal(next(keys), (a, b)) / a**0.5

        def block() -> Any:
            steps = jnp.exp(jax.random.uniform(next(keys), (width,), minval=-4.0, maxval=-1.0))
            return {
                "norm": jnp.ones(width),
                "into": kernel(width, 2 * width),
                "conv": {"w": kernel(3, width), "b": jnp.zeros(width)},
                "step": {"w": 0.1 * kernel(width, width), "b": jnp.log(jnp.expm1(steps)) + pace},
                "read_write": kernel(width, 2 * states),
                "log_rates": jnp.tile(jnp.log(jnp.arange(1.0, states + 1)), (width, 1)) + decay,
                "past": jnp.ones(width),
                "out": kernel(width, width) / depth**0.5,
            }

        embed = 0.3 * jax.random.normal(next(keys), (16, width))
        return {"embed": embed, "blocks": [block() for _ in range(depth)], "head": kernel(width, 8)}

    def mixed(p: Any, x: Any) -> Any:
        x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * p["norm"]
        u, gate = jnp.split(x @ p["into"], 2, -1)
        padded = jnp.pad(u, ((0, 0), (2, 0), (0, 0)))
        u = sum(p["conv"]["w"][i] * padded[:, i : i + u.shape[1]] for i in range(3))
        u = jax.nn.silu(u + p["conv"]["b"])
        step = jax.nn.softplus(u @ p["step"]["w"] + p["step"]["b"])[..., None]
        read, write = jnp.split(u @ p["read_write"], 2, -1)
        kept = jnp.exp(-step * jnp.exp(p["log_rates"]))
        added = step * write[:, :, None] * u[..., None]
        join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])  # noqa: E731
        _, state = jax.lax.associative_scan(join, (kept, added), axis=1)
        y = jnp.einsum("bsdn,bsn->bsd", state, read) + p["past"] * u
        return (y * jax.nn.silu(gate)) @ p["out"]

    def loss(p: Any, batch: Any) -> Any:
        x = p["embed"][batch[0]]
        for one in p["blocks"]:
            x = x + mixed(one, x)
        return cross_entropy(x[:, -1] @ p["head"], batch[1])

    own = {"kind": "selective state space", "library": "plain", "task": _marked, "ails": ails}
    return network(name, loss, init, **{"steps": 400} | own | rest)


@functools.cache
def _cues() -> Task:
    """One of five cues, and forty steps of noise in which it's to be remembered."""
    rng = np.random.default_rng(93)
    kinds, x = rng.integers(0, 5, 1536), 0.2 * rng.standard_normal((1536, 40, 4))
    x[:, :2] += rng.standard_normal((5, 2, 4))[kinds]
    train, test = parted(x, kinds.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


def irnn(name: str, *ails: str, again: Any = None, **rest: Any) -> Network:
    """Rectifiers whose recurrent kernel starts at the identity, or as `again` says."""
    start = again or (lambda *_: jnp.eye(32))

    class IRNN(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.into = nnx.Linear(4, 32, kernel_init=nnx.initializers.normal(0.2), rngs=rngs)
            self.again = nnx.Linear(32, 32, use_bias=False, kernel_init=start, rngs=rngs)
            self.head = nnx.Linear(32, 5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            kernel = self.again.kernel[...]

            def step(h: Any, u: Any) -> Any:
                return nnx.relu(u + h @ kernel), None

            last, _ = jax.lax.scan(step, jnp.zeros((len(x), 32)), self.into(x).swapaxes(0, 1))
            return self.head(last)

    init, apply = of_nnx(IRNN)
    own = {"kind": "IRNN", "library": "nnx", "task": _cues, "ails": ails, "steps": 300}
    return classifier(name, init, apply, **own | rest)


@functools.cache
def _demand() -> Task:
    """Two days' values and when they were, in standard units; the quarter of a day that follows."""
    rng = np.random.default_rng(94)
    hours, start = np.arange(60), rng.uniform(0, 1000, (1536, 1))
    daily = np.sin(2 * np.pi * (hours + start) / 24) * rng.uniform(0.6, 1.4, (1536, 1))
    slow = np.sin(2 * np.pi * (hours / rng.uniform(8, 14, (1536, 1)) + rng.random((1536, 1))))
    series = daily + 0.5 * slow + 0.1 * rng.standard_normal((1536, 60))
    clock = (start + hours[None, :48:6] - 500) / 289
    train, test = parted(series[:, :48].reshape(-1, 8, 6), clock, series[:, 48:54])
    return Task(train, test, (float(np.mean(np.var(test[2], axis=0))),))


class PatchBlock(eqx.Module):
    """Attention and an MLP, each with a LayerNorm before it or after the sum."""

    attention: Any
    mlp: Any
    norms: list[Any]
    post: bool

    def __init__(self, key: Any, width: int, post: bool) -> None:
        first, second = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, width, key=first)
        self.mlp = eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=second)
        self.norms, self.post = [eqx.nn.LayerNorm(width) for _ in range(2)], post

    def __call__(self, x: Any) -> Any:
        """`[places, width]`."""
        branches = (lambda y: self.attention(y, y, y)), jax.vmap(self.mlp)
        for branch, one in zip(branches, self.norms, strict=True):
            norm = jax.vmap(one)
            x = norm(x + branch(x)) if self.post else x + branch(norm(x))
        return x


class PatchForecast(eqx.Module):
    """Blocks in a scan over patches of a series, for one of them."""

    into: Any
    places: Any
    blocks: Any
    head: Any
    clock: tuple[float, float] = eqx.field(static=True)

    def __init__(self, key: Any, depth: int, post: bool, clock: tuple[float, float]) -> None:
        keys = jax.random.split(key, 4)
        self.into = eqx.nn.Linear(7, 24, key=keys[0])
        self.places = 0.1 * jax.random.normal(keys[1], (8, 24))
        made = eqx.filter_vmap(lambda k: PatchBlock(k, 24, post))
        self.blocks = made(jax.random.split(keys[2], depth))
        self.head, self.clock = eqx.nn.Linear(8 * 24, 6, key=keys[3]), clock

    def __call__(self, patches: Any, time: Any) -> Any:
        """The next six values."""
        time = self.clock[0] + self.clock[1] * time
        x = jax.vmap(self.into)(jnp.concatenate([patches, time[:, None]], -1)) + self.places
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, one: (eqx.combine(one, rest)(x), None), x, arrays)
        return self.head(x.reshape(-1))


def patch_forecast(
    name: str,
    *ails: str,
    depth: int = 2,
    post: bool = False,
    clock: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """A transformer over patches of a series; `clock` is what its time is shifted by, and in."""
    init, apply = of_equinox(lambda key: PatchForecast(key, depth, post, clock))
    own = {"kind": "PatchTST", "library": "Equinox", "task": _demand, "ails": ails}
    return regression(name, init, apply, **{"steps": 400} | own | rest)


@functools.cache
def _spirals() -> Task:
    """Times, unevenly apart, and places on a spiral with noise; whether it turns to the left."""
    rng = np.random.default_rng(95)
    gaps, left = rng.uniform(0.2, 1.8, (1024, 17, 1)), rng.integers(0, 2, 1024)
    time = np.cumsum(gaps, 1)
    time = (time - time[:, :1]) / (time[:, -1:] - time[:, :1])
    angle = (2 * left[:, None, None] - 1) * 4 * time + 2 * np.pi * rng.random((1024, 1, 1))
    places = (1.5 - time) * np.concatenate([np.cos(angle), np.sin(angle)], -1)
    path = np.concatenate([time, places + 0.1 * rng.standard_normal(places.shape)], -1)
    train, test = parted(path, left.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class ControlledPath(eqx.Module):
    """A state that moves as a path does, by a matrix that depends on it (neural CDE)."""

    start: Any
    field: Any
    head: Any
    second: float = eqx.field(static=True)

    def __init__(self, key: Any, second: float) -> None:
        keys = jax.random.split(key, 3)
        self.start, self.second = eqx.nn.Linear(3, 12, key=keys[0]), second
        self.field = eqx.nn.MLP(12, 36, 32, 1, jax.nn.silu, jnp.tanh, key=keys[1])
        self.head = eqx.nn.Linear(12, 2, key=keys[2])

    def __call__(self, path: Any) -> Any:
        """Logits of `[times, 3]`."""
        path = path * jnp.array([self.second, 1.0, 1.0])

        def step(z: Any, change: Any) -> Any:
            return z + self.field(z).reshape(12, 3) @ change, None

        return self.head(jax.lax.scan(step, self.start(path[0]), jnp.diff(path, axis=0))[0])


def controlled(name: str, *ails: str, second: float = 1.0, **rest: Any) -> Network:
    """A neural CDE; the whole path takes `second`."""
    init, apply = of_equinox(lambda key: ControlledPath(key, second))
    own = {"kind": "neural CDE", "library": "Equinox", "task": _spirals, "ails": ails}
    return classifier(name, init, apply, **{"steps": 300} | own | rest)


@functools.cache
def _swings() -> Task:
    """Times from 0 to 1; chance is the best constant motion."""
    train, test = parted(np.random.default_rng(96).uniform(0, 1, (1024, 1)))
    return Task(train, test, (float(np.var(_swing(test[0][:, 0]))),))


def _swing(t: Any) -> Any:
    wave = np if isinstance(t, np.ndarray) else jnp
    return wave.exp(-t) * (wave.cos(5 * t) + 0.2 * wave.sin(5 * t))


def oscillator(
    name: str, *ails: str, scale: float = 1.0, stiffness: float = 1.0, **rest: Any
) -> Network:
    """A PINN of u'' + 2 u' + 26 u = 0, u(0) = 1, u'(0) = 0, its residual times `stiffness` / 26."""

    def u(p: Any, t: Any) -> Any:
        return 1 + t**2 * forward(p, jnp.stack([4 * t - 2]))[0]

    def loss(p: Any, batch: Any) -> Any:
        def residual(t: Any) -> Any:
            slope = jax.grad(u, 1)
            return (jax.grad(slope, 1)(p, t) + 2 * slope(p, t)) / 26 + u(p, t)

        return jnp.mean((stiffness * jax.vmap(residual)(batch[0][:, 0])) ** 2)

    def error(p: Any, batch: Any) -> Any:
        t = batch[0][:, 0]
        return jnp.mean((jax.vmap(u, (None, 0))(p, t) - _swing(t)) ** 2)

    return Network(
        name=name,
        init=lambda key: stack(key, (1, 32, 32, 32, 1), scale),
        loss=loss,
        parts=lambda p, batch: (error(p, batch),),
        ails=ails,
        **{"kind": "oscillator", "library": "plain", "task": _swings, "steps": 400} | rest,
    )
