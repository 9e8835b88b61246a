"""Graphs of pipes, judges of banknotes, inverses of robots, pay of routes."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import lecun, run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import of_equinox

NODES = 9

# Pipes.


@functools.cache
def pipes() -> Task:
    """Nine joints of pipes with three readings each, which are joined, and the pressure of each."""
    rng = np.random.default_rng(1426)
    x = rng.standard_normal((1536, NODES, 3))
    joined = np.triu(rng.uniform(size=(1536, NODES, NODES)) < 0.25, 1)
    joined = joined + joined.swapaxes(1, 2) + np.eye(NODES)
    shares = joined / joined.sum(-1, keepdims=True)
    y = np.tanh(x[..., 0]) + 1.5 * (shares @ x[..., 1:2])[..., 0] * (1 + 0.3 * x[..., 2])
    train, test = parted(x, shares, standard(y, None))
    return Task(train, test, (float(np.var(test[2])),))


@functools.cache
def _pipes(act: Any, skip: bool) -> Callable[[Any, Any], Any]:
    def apply(p: Any, x: Any, shares: Any) -> Any:
        x = x @ p["into"]["w"] + p["into"]["b"]
        for layer in p["rounds"]:
            y = act(x @ layer["own"] + shares @ x @ layer["near"] + layer["b"])
            x = x + y if skip else y
        return (x @ p["pressure"]["w"] + p["pressure"]["b"])[..., 0]

    return lambda p, batch: jnp.mean((apply(p, batch[0], batch[1]) - batch[2]) ** 2)


def piped(
    name: str,
    *,
    depth: int = 2,
    act: Callable[[Any], Any] = jax.nn.relu,
    skip: bool = False,
    own: float = 1.0,
) -> Network:
    """The pressure of joints by rounds of messages along pipes."""

    def init(key: Any) -> Any:
        one, two, *rest = jax.random.split(key, 2 + 2 * depth)
        draw = lecun(0.5**0.5)
        made = [
            {"own": own * draw(a, (24, 24)), "near": draw(b, (24, 24)), "b": jnp.zeros(24)}
            for a, b in zip(rest[::2], rest[1::2], strict=True)
        ]
        into, pressure = stack(one, (3, 24))[0], stack(two, (24, 1))[0]
        return {"into": into, "rounds": made, "pressure": pressure}

    rest = {"kind": "graph of pipes", "library": "plain", "task": pipes, "steps": 300}
    return network(name, _pipes(act, skip), init, **rest, rates=(3e-3, 8e-3))


# Banknotes.


@functools.cache
def banknotes() -> Task:
    """Twelve measures of banknotes, printed or forged, and which."""
    rng = np.random.default_rng(1427)
    x, mixing = rng.standard_normal((2048, 4)), rng.standard_normal((4, 12)) / 2
    real = rng.integers(0, 2, 2048)
    x[:, 0] = np.where(real, np.sin(2 * x[:, 1]), x[:, 0]) + 0.2 * x[:, 2]
    train, test = parted(
        standard(x @ mixing + 0.05 * rng.standard_normal((2048, 12))), real.astype(np.float64)
    )
    return Task(train, test, (float(np.log(2)),))


class Judge(eqx.Module):
    """Three hidden layers of leaky units, and how likely a banknote is real."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key: Any) -> None:
        keys, sizes = jax.random.split(key, 4), (12, 32, 32, 32, 1)
        self.layers = [
            eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]

    def __call__(self, x: Any) -> Any:
        """From 0 to 1."""
        for layer in self.layers[:-1]:
            x = jax.nn.leaky_relu(layer(x), 0.2)
        return jax.nn.sigmoid(self.layers[-1](x)[0])


@functools.cache
def forged(name: str) -> Network:
    """A discriminator with the first GAN's loss, its logarithms kept from 0."""
    init, apply = of_equinox(Judge)

    def loss(p: Any, batch: Any) -> Any:
        real = apply(p, batch[0])
        least = 1e-7
        wrong = batch[1] * jnp.log(real + least) + (1 - batch[1]) * jnp.log(1 - real + least)
        return -wrong.mean()

    own = {"kind": "discriminator of banknotes", "library": "Equinox", "task": banknotes}
    return network(name, loss, init, **own, steps=300, rates=(2e-3, 6e-3))


# Robots.


@functools.cache
def robots() -> Task:
    """Three angles of a robot's joints."""
    rng = np.random.default_rng(1428)
    train, test = parted(0.7 * rng.standard_normal((1536, 3)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


@functools.cache
def grasped(name: str) -> Network:
    """Angles for places through a frozen network that says where a hand goes with angles.

    The frozen one's two layers are random features; what it says is where the hand shall be.
    """

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {"angles": stack(one, (24, 40, 40, 3)), "robot": stack(two, (3, 24, 24))}

    def ahead(p: Any, angles: Any) -> Any:
        first, last = p["robot"]
        return jax.nn.relu(angles @ first["w"] + first["b"] + 0.5) @ last["w"]

    def loss(p: Any, batch: Any) -> Any:
        frozen = jax.lax.stop_gradient({"robot": p["robot"]})
        place = ahead(frozen, batch[0])
        again = ahead(frozen, run_stack(p["angles"], place, jnp.tanh))
        return jnp.mean((again - place) ** 2)

    def parts(p: Any, batch: Any) -> Any:
        angles = run_stack(p["angles"], ahead(p, batch[0]), jnp.tanh)
        return (jnp.mean((angles - batch[0]) ** 2),)

    own = {"kind": "inverse of a frozen robot", "library": "plain", "task": robots}
    return Network(
        name=name, init=init, loss=loss, parts=parts, **own, steps=300, rates=(2e-3, 6e-3)
    )


# Deliveries.


@functools.cache
def deliveries() -> Task:
    """Eight numbers of a courier's day, one of four routes that was driven, and what it paid."""
    rng = np.random.default_rng(1429)
    x, mixing = rng.standard_normal((3072, 8)), rng.standard_normal((8, 4)) / 3
    route = rng.integers(0, 4, 3072)
    pay = (x @ mixing + np.cos(x @ rng.standard_normal((8, 4)) / 3))[np.arange(3072), route]
    train, test = parted(x, route.astype(np.int32), standard(pay))
    return Task(train, test, (float(np.var(test[2])),))


@functools.cache
def paid(name: str) -> Network:
    """A dueling Q network: a trunk, a value, and what each route is better than others."""

    def init(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        return {
            "trunk": stack(one, (8, 40, 40)),
            "value": stack(two, (40, 24, 1)),
            "better": stack(three, (40, 24, 4)),
        }

    def loss(p: Any, batch: Any) -> Any:
        x, route, pay = batch
        for layer in p["trunk"]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        better = run_stack(p["better"], x, jax.nn.relu)
        q = run_stack(p["value"], x, jax.nn.relu) + better - better.mean(-1, keepdims=True)
        own = jnp.take_along_axis(q, route[:, None], 1)[:, 0]
        return optax.huber_loss(own, pay).mean() * 2

    own = {"kind": "dueling Q network", "library": "plain", "task": deliveries}
    return network(name, loss, init, **own, steps=400, rates=(2e-3, 6e-3))
