"""Networks over time, with derivatives or solvers inside, and several networks in one tree."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from jax.experimental.ode import odeint

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.network import Network, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox

# Recurrence.


class Recurrent(nn.Module):
    """Cells one above the other, and the last output."""

    cell: str = "LSTMCell"
    layers: int = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[batch, steps, channels]`."""
        for number in range(self.layers):
            x = nn.RNN(getattr(nn, self.cell)(24), name=f"rnn_{number}")(x)
        return nn.Dense(1, name="head")(x[:, -1])[:, 0]


class EqxGRU(eqx.Module):
    """A GRU in a scan, for one sequence."""

    cell: Any
    head: Any

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(2, 24, key=keys[0])
        self.head = eqx.nn.Linear(24, 1, key=keys[1])

    def __call__(self, x: Any) -> Any:
        """`[steps, channels]`."""
        start = jnp.zeros(24)
        last, _ = jax.lax.scan(lambda h, step: (self.cell(step, h), None), start, x)
        return self.head(last)[0]


def recurrent(name: str, cell: str, *ails: str, layers: int = 1, **rest: Any) -> Network:
    """A recurrent network in linen."""
    module = Recurrent(cell, layers)
    example = jnp.zeros((1, 20, 2))
    settings = {"kind": "recurrent", "library": "linen", "task": tasks.running_sum, "ails": ails}
    return regression(name, lambda key: module.init(key, example), module.apply, **settings | rest)


def eqx_gru(name: str, **rest: Any) -> Network:
    """A GRU in Equinox."""
    init, apply = of_equinox(EqxGRU)
    settings = {"kind": "recurrent", "library": "Equinox", "task": tasks.running_sum}
    return regression(name, init, apply, **settings | rest)


def hk_lstm(name: str, **rest: Any) -> Network:
    """An LSTM in Haiku."""

    def forward(x: Any) -> Any:
        core = hk.LSTM(24)
        outputs, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(x.shape[0]))
        return hk.Linear(1)(outputs[-1])[:, 0]

    model = hk.without_apply_rng(hk.transform(forward))
    example = jnp.zeros((1, 20, 2))
    settings = {"kind": "recurrent", "library": "Haiku", "task": tasks.running_sum}
    return regression(name, lambda key: model.init(key, example), model.apply, **settings | rest)


# Plain chains in trees.


def stack(key: Any, sizes: tuple[int, ...], scale: float = 1.0) -> list[dict[str, Any]]:
    """Kernels and biases of an MLP."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": scale * jax.random.normal(k, (a, b)) / a**0.5, "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def forward(layers: Any, x: Any, activation: Any = jnp.tanh) -> Any:
    """An MLP, the activation between its layers."""
    for one in layers[:-1]:
        x = activation(x @ one["w"] + one["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def actor_critic(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.0,
    activation: Any = jnp.tanh,
    **rest: Any,
) -> Network:
    """A policy and a value network in one tree; depth, scale and activation of the value's."""

    def init(key: Any) -> Any:
        first, second = jax.random.split(key)
        value = stack(second, (64,) + (32,) * depth + (1,), scale)
        return {"policy": stack(first, (64, 32, 32, 10)), "value": value}

    def parts(p: Any, batch: Any) -> Any:
        inputs, actions, returns = batch
        value = forward(p["value"], inputs, activation)[:, 0]
        return cross_entropy(forward(p["policy"], inputs), actions), jnp.mean(
            (value - returns) ** 2
        )

    settings = {"kind": "actor-critic", "library": "plain", "task": tasks.decisions, "ails": ails}
    return Network(
        name=name, init=init, loss=lambda p, b: sum(parts(p, b)), parts=parts, **settings | rest
    )


def two_towers(
    name: str, *ails: str, depth: int = 2, scale: float = 1.0, cold: float = 0.1, **rest: Any
) -> Network:
    """A tower for each half of an image, and a contrastive loss, as CLIP's."""

    def init(key: Any) -> Any:
        first, second = jax.random.split(key)
        lower = stack(second, (32,) + (48,) * depth + (16,), scale)
        return {"upper": stack(first, (32, 48, 48, 16)), "lower": lower}

    def loss(p: Any, batch: Any) -> Any:
        ends = [
            forward(p[name], x, jax.nn.relu)
            for name, x in zip(("upper", "lower"), batch, strict=True)
        ]
        a, b = (x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12) for x in ends)
        logits = a @ b.T / cold
        places = jnp.arange(len(a))
        return 0.5 * (cross_entropy(logits, places) + cross_entropy(logits.T, places))

    settings = {"kind": "two towers", "library": "plain", "task": tasks.matching, "ails": ails}
    return network(name, loss, init, **{"batch": 64} | settings | rest)


# Derivatives, solvers, fixed points.


def pinn(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.0,
    activation: Any = jnp.tanh,
    **rest: Any,
) -> Network:
    """A network whose second derivative is to be -sin(pi x)."""

    def u(p: Any, x: Any) -> Any:
        # The factor 1 - x^2 makes it 0 at both ends.
        return (1 - x**2) * forward(p, jnp.stack([2 * x]), activation)[0]

    def loss(p: Any, batch: Any) -> Any:
        (points,) = batch
        second = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(p, points[:, 0])
        return jnp.mean((second + jnp.sin(jnp.pi * points[:, 0])) ** 2)

    def init(key: Any) -> Any:
        return stack(key, (1,) + (24,) * depth + (1,), scale)

    settings = {"kind": "PINN", "library": "plain", "task": tasks.poisson, "ails": ails}
    return network(name, loss, init, **settings | rest)


def neural_ode(name: str, *ails: str, solver: str = "odeint", **rest: Any) -> Network:
    """A flow of the plane, by an adaptive solver with an adjoint or by fixed steps in a scan."""

    def slope(y: Any, _: Any, p: Any) -> Any:
        return forward(p, y)

    def loss(p: Any, batch: Any) -> Any:
        x, target = batch
        wide = jnp.concatenate([x, jnp.zeros_like(x)], 1)
        if solver == "odeint":
            end = odeint(slope, wide, jnp.array([0.0, 1.0]), p, mxstep=60)[-1]
        else:

            def step(y: Any, _: Any) -> Any:
                h = 0.1
                middle = y + 0.5 * h * slope(y, None, p)
                return y + h * slope(middle, None, p), None

            end, _ = jax.lax.scan(step, wide, None, length=10)
        return jnp.mean((end[:, :2] - target) ** 2)

    settings = {"kind": "neural ODE", "library": "plain", "task": tasks.swirl, "ails": ails}
    return network(name, loss, lambda key: stack(key, (4, 24, 24, 4)), **settings | rest)


@jax.custom_vjp
def fixed_point(w: Any, x: Any) -> Any:
    """The z of z = tanh(z w + x), by iteration."""
    return jax.lax.fori_loop(0, 20, lambda _, z: jnp.tanh(z @ w + x), jnp.zeros_like(x))


def _there(w: Any, x: Any) -> Any:
    z = fixed_point(w, x)
    return z, (w, x, z)


def _back(residual: Any, cotangent: Any) -> Any:
    w, x, z = residual
    _, pull_back = jax.vjp(lambda w, x, z: jnp.tanh(z @ w + x), w, x, z)
    u = jax.lax.fori_loop(0, 20, lambda _, u: cotangent + pull_back(u)[2], cotangent)
    return pull_back(u)[:2]


fixed_point.defvjp(_there, _back)


def equilibrium(name: str, *ails: str, scale: float = 0.5, **rest: Any) -> Network:
    """A deep equilibrium network on the digits."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        shapes = {"inside": (32, 32), "into": (64, 32), "head": (32, 10)}
        drawn = {
            name: jax.random.normal(k, s) / s[0] ** 0.5
            for k, (name, s) in zip(keys, shapes.items(), strict=True)
        }
        return drawn | {"inside": scale * drawn["inside"]}

    def loss(p: Any, batch: Any) -> Any:
        return cross_entropy(fixed_point(p["inside"], batch[0] @ p["into"]) @ p["head"], batch[1])

    settings = {"kind": "equilibrium", "library": "plain", "task": tasks.digits, "ails": ails}
    return network(name, loss, init, **settings | rest)


# Densities and graphs.


def flow(name: str, *ails: str, couplings: int = 4, scale: float = 1.0, **rest: Any) -> Network:
    """A normalizing flow of affine couplings."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, couplings)
        return {f"coupling_{i}": stack(k, (1, 24, 24, 2), scale) for i, k in enumerate(keys)}

    def loss(p: Any, batch: Any) -> Any:
        (x,) = batch
        a, b, volume = x[:, :1], x[:, 1:], 0.0
        for i in range(couplings):
            shift, log_scale = jnp.split(forward(p[f"coupling_{i}"], a), 2, axis=1)
            b, volume = b * jnp.exp(log_scale) + shift, volume + log_scale
            a, b = b, a
        energy = 0.5 * (a**2 + b**2) + 0.5 * jnp.log(2 * jnp.pi) * 2
        return jnp.mean(energy - volume) / 2

    settings = {"kind": "flow", "library": "plain", "task": tasks.moons, "ails": ails}
    return network(name, loss, init, **settings | rest)


def graph(name: str, *ails: str, depth: int = 2, skip: bool = False, **rest: Any) -> Network:
    """A graph network: means over neighbors, a kernel, a ReLU."""

    class GCN(nn.Module):
        @nn.compact
        def __call__(self, features: Any, matrix: Any) -> Any:
            x = nn.Dense(24, name="into")(features)
            for number in range(depth):
                y = nn.relu(nn.Dense(24, name=f"graph_{number}", kernel_init=_HE)(matrix @ x))
                x = x + y / depth**0.5 if skip else y
            return nn.Dense(3, name="head")(x)

    module = GCN()
    example = jnp.zeros((1, 12, 4)), jnp.zeros((1, 12, 12))

    def loss(p: Any, batch: Any) -> Any:
        features, matrix, classes = batch
        return cross_entropy(module.apply(p, features, matrix), classes)

    settings = {"kind": "graph", "library": "linen", "task": tasks.graphs, "ails": ails}
    return network(name, loss, lambda key: module.init(key, *example), **settings | rest)


_HE = nn.initializers.he_normal()


def metric(name: str, *ails: str, guarded: bool, **rest: Any) -> Network:
    """Digits by the direction of their features, whose head starts at zero."""

    def init(key: Any) -> Any:
        first, second = jax.random.split(key)
        layers = stack(first, (64, 32, 16))
        last = layers[-1] | {"w": 0.0 * layers[-1]["w"]}
        return {"net": [layers[0], last], "classes": jax.random.normal(second, (10, 16))}

    def loss(p: Any, batch: Any) -> Any:
        h = forward(p["net"], batch[0])
        if guarded:
            h = h / jnp.sqrt(jnp.sum(h**2, -1, keepdims=True) + 1e-4)
        else:
            h = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
        return cross_entropy(4 * h @ p["classes"].T, batch[1])

    settings = {"kind": "metric", "library": "plain", "task": tasks.digits, "ails": ails}
    return network(name, loss, init, **settings | rest)


def scaled_loss(base: Network, name: str, factor: float, *ails: str, **rest: Any) -> Network:
    """The same network, its loss multiplied; judged by the loss as it was."""
    twin = base.twin or base.name
    fields = {f: getattr(base, f) for f in base.__dataclass_fields__}
    changed = {
        "name": name,
        "twin": twin,
        "ails": ails,
        "loss": lambda p, b: factor * base.loss(p, b),
    }
    return Network(**fields | changed | rest)


momentum = functools.partial(optax.sgd, momentum=0.9)
