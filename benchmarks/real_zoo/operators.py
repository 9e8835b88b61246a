"""Values of actions, bases, operators on functions, mixtures of densities."""

import functools
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_equinox

# Values of actions.


@functools.cache
def _choices() -> Task:
    """States, actions, rewards and the states that come next, which are drawn anew."""
    rng = np.random.default_rng(21)
    weights = rng.standard_normal((6, 4)) / 6**0.5
    states, after = rng.standard_normal((2, 1280, 6)).astype(np.float32)
    actions = rng.integers(0, 4, 1280).astype(np.int32)
    rewards = np.tanh(2 * states @ weights)[np.arange(1280), actions].astype(np.float32)
    parts = (states, actions, rewards, after)
    train, test = (tuple(x[part] for x in parts) for part in (slice(960), slice(960, None)))
    return Task(train, test, (float(np.var(test[2])),))


def q_learning(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.4,
    activation: Any = jax.nn.relu,
    unit: float = 1.0,
    last: float = 1.0,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """Values of four actions by temporal differences, the target behind stop_gradient.

    Judged by the values' differences from the rewards, the mean aside: the rest is the same
    everywhere.
    """

    def init(key: Any) -> Any:
        layers = stack(key, (6,) + (48,) * depth + (4,), scale)
        layers[-1]["w"] *= last
        return jax.tree.map(lambda x: x.astype(dtype), layers)

    def values(p: Any, states: Any) -> Any:
        return forward(p, (unit * states).astype(dtype), activation)

    def taken(p: Any, batch: Any) -> Any:
        return jnp.take_along_axis(values(p, batch[0]), batch[1][:, None], 1)[:, 0]

    def loss(p: Any, batch: Any) -> Any:
        target = batch[2] + 0.5 * values(jax.lax.stop_gradient(p), batch[3]).max(1)
        return jnp.mean((taken(p, batch) - target.astype(dtype)) ** 2)

    def parts(p: Any, batch: Any) -> Any:
        return (jnp.var(taken(p, batch).astype(jnp.float32) - batch[2]),)

    own = {"kind": "Q-learning", "library": "plain", "task": _choices, "ails": ails, "steps": 400}
    return Network(name=name, init=init, loss=loss, parts=parts, **own | rest)


# Bases.


def radial(name: str, *ails: str, width: float = 0.7, **rest: Any) -> Network:
    """A sum of Gaussian bumps, whose centers and widths are learned."""

    def init(key: Any) -> Any:
        return {
            "centers": jax.random.normal(key, (48, 2)),
            "log_width": jnp.full(48, np.log(width)),
            "heights": jnp.zeros((48, 2)),
            "offset": jnp.zeros(2),
        }

    def apply(p: Any, x: Any) -> Any:
        squares = jnp.sum((x[:, None] - p["centers"]) ** 2, -1)
        return jnp.exp(-0.5 * squares / jnp.exp(2 * p["log_width"])) @ p["heights"] + p["offset"]

    own = {"kind": "radial basis", "library": "plain", "task": tasks.swirl, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | {"rates": (4e-3, 1.5e-2)} | own | rest)


class KAN(eqx.Module):
    """On every edge a sum of bumps on a grid, beside a silu; for one point."""

    layers: list[dict[str, Any]]
    grid: Any = eqx.field(static=True)
    based: bool = eqx.field(static=True)

    def __init__(self, key: Any, depth: int, center: float, based: bool, scale: float) -> None:
        self.grid, self.based = tuple(center + 0.6 * i for i in range(-4, 5)), based
        sizes = [2] + [16] * (depth - 1) + [2]
        self.layers = []
        for k, a, b in zip(jax.random.split(key, depth), sizes[:-1], sizes[1:], strict=True):
            one, two = jax.random.split(k)
            bumps = 0.5 * scale * jax.random.normal(one, (a, len(self.grid), b)) / a**0.5
            base = scale * jax.random.normal(two, (a, b)) / a**0.5
            self.layers.append({"bumps": bumps, "base": base} if based else {"bumps": bumps})

    def __call__(self, x: Any) -> Any:
        """One point."""
        for layer in self.layers:
            seen = jnp.exp(-(((x[:, None] - jnp.array(self.grid)) / 0.6) ** 2))
            y = jnp.einsum("ag,agb->b", seen, layer["bumps"])
            x = y + jax.nn.silu(x) @ layer["base"] if self.based else y
        return x


def kan(
    name: str,
    *ails: str,
    depth: int = 2,
    center: float = 0.0,
    based: bool = True,
    scale: float = 1.0,
    **rest: Any,
) -> Network:
    """A Kolmogorov-Arnold network."""
    init, apply = of_equinox(lambda key: KAN(key, depth, center, based, scale))
    own = {"kind": "KAN", "library": "Equinox", "task": tasks.swirl, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | own | rest)


# Operators.

SENSORS = 16


def _waves(rng: Any, count: int) -> tuple[Any, Any, Any]:
    places = np.arange(SENSORS) / SENSORS
    sines = rng.standard_normal((count, 3)) / np.array([1, 1.5, 2])
    phases = rng.uniform(0, 2 * np.pi, (count, 3))
    angle = 2 * np.pi * places[:, None] * np.arange(1, 4)
    values = (sines[:, None] * np.sin(angle + phases[:, None])).sum(-1)
    return values.astype(np.float32), sines, phases


@functools.cache
def _smoothing() -> Task:
    """Waves on a ring, and what transport and decay make of their squares and themselves."""
    values, _, _ = _waves(np.random.default_rng(22), 1280)
    ends = np.fft.rfft(values + 0.5 * values**2)
    k = np.arange(ends.shape[1])
    ends = np.fft.irfft(ends * np.exp(-0.05 * k**2 - 1j * k), SENSORS).astype(np.float32)
    chance = float(np.mean(np.var(ends[960:], axis=0)))
    return Task((values[:960], ends[:960]), (values[960:], ends[960:]), (chance,))


@functools.cache
def _readings() -> Task:
    """Waves at sixteen sensors, a place, and the wave's value there."""
    rng = np.random.default_rng(23)
    values, sines, phases = _waves(rng, 1280)
    places = rng.uniform(0, 1, (1280, 1))
    angle = 2 * np.pi * places * np.arange(1, 4)
    truth = (sines * np.sin(angle + phases)).sum(-1).astype(np.float32)
    parts = (values, places.astype(np.float32), truth)
    train, test = (tuple(x[part] for x in parts) for part in (slice(960), slice(960, None)))
    return Task(train, test, (float(np.var(test[2])),))


def fourier_operator(
    name: str, *ails: str, depth: int = 2, spectral: float = 1.0, skip: bool = True, **rest: Any
) -> Network:
    """A Fourier neural operator: kernels for the lowest waves, beside pointwise ones."""
    modes, width = 5, 16

    def init(key: Any) -> Any:
        keys = jax.random.split(key, depth + 2)
        blocks = [
            {
                "spectral": spectral * jax.random.normal(k, (2, modes, width, width)) / width**0.5,
                "point": stack(k, (width, width))[0],
            }
            for k in keys[:depth]
        ]
        lift, head = stack(keys[-2], (2, width))[0], stack(keys[-1], (width, width, 1))
        return {"lift": lift, "blocks": blocks, "head": head}

    def apply(p: Any, values: Any) -> Any:
        places = jnp.broadcast_to(jnp.arange(SENSORS) / SENSORS, values.shape)
        x = forward([p["lift"]], jnp.stack([values, places], -1))
        for number, one in enumerate(p["blocks"]):
            waves = jnp.fft.rfft(x, axis=1)[:, :modes]
            kernel = jax.lax.complex(*one["spectral"])
            y = jnp.fft.irfft(jnp.einsum("bka,kac->bkc", waves, kernel), SENSORS, axis=1)
            y = y + forward([one["point"]], x) if skip else y
            x = jax.nn.gelu(y) if number < depth - 1 else y
        return forward(p["head"], x, jax.nn.gelu)[..., 0]

    own = {"kind": "Fourier operator", "library": "plain", "task": _smoothing, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | own | rest)


class DeepONet(eqx.Module):
    """A branch for the function, a trunk for the place, and their product; for one example."""

    branch: list[Any]
    trunk: list[Any]
    activation: Any = eqx.field(static=True)

    def __init__(
        self, key: Any, depths: tuple[int, int], ends: tuple[float, float], activation: Any
    ) -> None:
        self.activation = activation
        stacks = []
        for k, depth, end, start in zip(
            jax.random.split(key), depths, ends, (SENSORS, 6), strict=True
        ):
            sizes = [start] + [40] * depth
            keys = jax.random.split(k, depth)
            layers = [
                eqx.nn.Linear(a, b, key=one)
                for one, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
            ]
            scaled = jax.tree.map(lambda x, end=end: end * x, eqx.filter(layers[-1], eqx.is_array))
            stacks.append([*layers[:-1], eqx.combine(scaled, layers[-1])])
        self.branch, self.trunk = stacks

    def __call__(self, values: Any, place: Any) -> Any:
        """The value at one place."""
        angle = 2 * jnp.pi * place * jnp.arange(1, 4)
        a, b = values, jnp.concatenate([jnp.sin(angle), jnp.cos(angle)])
        for layer in self.branch[:-1]:
            a = self.activation(layer(a))
        for layer in self.trunk[:-1]:
            b = jax.nn.silu(layer(b))
        return self.branch[-1](a) @ self.trunk[-1](b)


def deep_operator(
    name: str,
    *ails: str,
    depths: tuple[int, int] = (2, 2),
    ends: tuple[float, float] = (1.0, 1.0),
    activation: Any = jax.nn.silu,
    **rest: Any,
) -> Network:
    """A DeepONet; depths of branch and trunk, and factors of their last layers."""
    init, apply = of_equinox(lambda key: DeepONet(key, depths, ends, activation))
    own = {"kind": "DeepONet", "library": "Equinox", "task": _readings, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | own | rest)


# Densities.


@functools.cache
def _branches() -> Task:
    """A number, and another one that has two likely values."""
    rng = np.random.default_rng(24)
    x = rng.uniform(-2, 2, (4096, 1))
    y = np.where(rng.random((4096, 1)) < 0.5, np.sin(2 * x), -0.7 * x)
    y = ((y + 0.2 * rng.standard_normal(y.shape)) / y.std()).astype(np.float32)
    x = x.astype(np.float32)
    # The best Gaussian.
    chance = float(0.5 * np.log(2 * np.pi * np.var(y[3072:])) + 0.5)
    return Task((x[:3072], y[:3072]), (x[3072:], y[3072:]), (chance,))


def mixture(
    name: str,
    *ails: str,
    depth: int = 2,
    log_width: float = 0.0,
    activation: Any = jnp.tanh,
    scale: float = 1.0,
    **rest: Any,
) -> Network:
    """A mixture density network: weights, means and widths of five Gaussians."""

    def forward_of(x: Any) -> Any:
        w_init = hk.initializers.VarianceScaling(scale**2, "fan_in", "truncated_normal")
        for number in range(depth):
            x = activation(hk.Linear(40, w_init=w_init, name=f"hidden_{number}")(2 * x))
        log_widths = hk.Linear(5, name="log_widths", b_init=hk.initializers.Constant(log_width))(x)
        return hk.Linear(5, name="weights")(x), hk.Linear(5, name="means")(x), log_widths

    model = hk.without_apply_rng(hk.transform(forward_of))

    def loss(p: Any, batch: Any) -> Any:
        weights, means, log_widths = model.apply(p, batch[0])
        z = (batch[1] - means) * jnp.exp(-log_widths)
        each = jax.nn.log_softmax(weights) - 0.5 * z**2 - log_widths - 0.5 * jnp.log(2 * jnp.pi)
        return -jnp.mean(jax.nn.logsumexp(each, -1))

    init = lambda key: model.init(key, jnp.zeros((1, 1)))  # noqa: E731
    own = {"kind": "mixture density", "library": "Haiku", "task": _branches, "ails": ails}
    return network(name, loss, init, **{"steps": 800} | own | rest)
