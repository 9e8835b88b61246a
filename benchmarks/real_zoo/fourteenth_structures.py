"""Equations, fields, equilibria, encoders with decoders, policies with values."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

# Beams.


def _bent(x: Any, of: Any = jnp) -> Any:
    return of.sin(np.pi * x) + 0.4 * of.sin(2 * np.pi * x)


@functools.cache
def beams() -> Task:
    """Places of a beam from 0 to 1; u'' is its load, and u is 0 at both ends."""
    train, test = parted(np.random.default_rng(1421).uniform(0, 1, (1024, 1)))
    return Task(train, test, (float(np.var(_bent(test[0], np))),))


@functools.cache
def _beams(act: Any) -> tuple[Any, Any]:
    def apply(p: Any, x: Any) -> Any:
        return run_stack(p["beam"], 2 * x[None] - 1, act)[0]

    def loss(p: Any, batch: Any) -> Any:
        x, bend = batch[0][:, 0], jax.grad(jax.grad(apply, 1), 1)
        load = -(jnp.pi**2) * (jnp.sin(jnp.pi * x) + 1.6 * jnp.sin(2 * jnp.pi * x))
        left = jax.vmap(lambda x: bend(p, x))(x) - load
        ends = apply(p, jnp.zeros(())) ** 2 + apply(p, jnp.ones(())) ** 2
        return jnp.mean((left / 10) ** 2) + 5 * ends

    def parts(p: Any, batch: Any) -> Any:
        x = batch[0][:, 0]
        return (jnp.mean((jax.vmap(lambda x: apply(p, x))(x) - _bent(x)) ** 2),)

    return loss, parts


def bent(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jnp.tanh,
    draw: Callable[[Any, Any], Any] | None = None,
) -> Network:
    """How a beam bends, by a physics-informed network."""
    loss, parts = _beams(act)

    def init(key: Any) -> Any:
        return {"beam": stack(key, (1, *[24] * depth, 1), draw)}

    own = {"kind": "PINN of a beam", "library": "plain", "task": beams, "steps": 500}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(4e-3, 1e-2), **own)


# Pendulums.


@functools.cache
def pendulums() -> Task:
    """The angle and speed of a damped pendulum, and both a second later."""
    rng = np.random.default_rng(1422)
    start = rng.uniform(-2, 2, (1536, 2))
    x = start
    for _ in range(200):
        x = x + 0.005 * np.stack([x[:, 1], -4 * np.sin(x[:, 0]) - 0.4 * x[:, 1]], 1)
    train, test = parted(start, x)
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def _pendulums(act: Any) -> Callable[[Any, Any], Any]:
    def apply(p: Any, x: Any) -> Any:
        def step(x: Any, _: Any) -> Any:
            half = x + 0.025 * run_stack(p["field"], x, act)
            return x + 0.05 * run_stack(p["field"], half, act), None

        return jax.lax.scan(step, x, None, length=20)[0]

    return lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)


def swung(name: str, *, act: Callable[[Any], Any] = jnp.tanh, depth: int = 2) -> Network:
    """Where a pendulum will be, by a neural ODE of twenty steps through midpoints."""

    def init(key: Any) -> Any:
        return {"field": stack(key, (2, *[24] * depth, 2))}

    own = {"kind": "neural ODE of pendulums", "library": "plain", "task": pendulums}
    return network(name, _pendulums(act), init, **own, steps=300, rates=(3e-3, 1e-2))


# Markets.


@functools.cache
def markets() -> Task:
    """Six shocks to a market of four goods, and prices that balance it; standardized."""
    rng = np.random.default_rng(1423)
    x, mixing = rng.standard_normal((1536, 6)), rng.standard_normal((6, 4)) / 2
    among, price = 0.8 * rng.standard_normal((4, 4)) / 2, np.zeros((1536, 4))
    for _ in range(60):
        price = np.tanh(price @ among + x @ mixing)
    train, test = parted(x, standard(price))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def _layer(p: Any, x: Any, z: Any) -> Any:
    return jnp.tanh(z @ p["states"] + x @ p["inputs"] + p["bias"])


def _repeated(f: Any, z: Any) -> Any:
    return jax.lax.fori_loop(0, 30, lambda _, z: f(z), z)


@jax.custom_vjp
def _balance(p: Any, x: Any) -> Any:
    start = jnp.zeros((len(x), p["bias"].shape[0]))
    return _repeated(lambda z: _layer(p, x, z), start)


def _forward(p: Any, x: Any) -> Any:
    z = _balance(p, x)
    return z, (p, x, z)


def _backward(kept: Any, ct: Any) -> Any:
    p, x, z = kept
    _, pull = jax.vjp(lambda z: _layer(p, x, z), z)
    adjoint = _repeated(lambda w: ct + pull(w)[0], ct)
    return jax.vjp(lambda p, x: _layer(p, x, z), p, x)[1](adjoint)


_balance.defvjp(_forward, _backward)


@functools.cache
def balanced(name: str) -> Network:
    """Prices from the equilibrium of a layer, whose gradient is implicit; a DEQ."""

    def init(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        return {
            "layer": {
                "states": 0.4 * jax.random.normal(one, (24, 24)) / 24**0.5,
                "inputs": jax.random.normal(two, (6, 24)) / 6**0.5,
                "bias": jnp.zeros(24),
            },
            "prices": {"w": jax.random.normal(three, (24, 4)) / 24**0.5, "b": jnp.zeros(4)},
        }

    def apply(p: Any, x: Any) -> Any:
        return _balance(p["layer"], x) @ p["prices"]["w"] + p["prices"]["b"]

    own = {"kind": "DEQ of markets", "library": "plain", "task": markets, "steps": 300}
    return regression(name, init, apply, **own, rates=(2e-3, 6e-3))


# Soils.


@functools.cache
def soils() -> Task:
    """Sixteen bands of light from soils of three properties, and noise for their codes."""
    rng = np.random.default_rng(1424)
    of, mixing = rng.standard_normal((2048, 3)), rng.standard_normal((3, 16)) / 3**0.5
    x = standard(np.tanh(of @ mixing) + 0.1 * rng.standard_normal((2048, 16)))
    train, test = parted(x, rng.standard_normal((2048, 4)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


class Soils(nn.Module):
    """An encoder to means and spreads of four codes, and a decoder, of so many layers each."""

    encoder: int
    decoder: int
    act: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Any, noise: Any) -> Any:
        """The bands again, and the means and log variances of codes."""
        for number in range(self.encoder):
            x = self.act(nn.Dense(32, name=f"encoder_{number}")(x))
        mean, spread = nn.Dense(4, name="mean")(x), nn.Dense(4, name="log_variance")(x)
        x = mean + jnp.exp(spread / 2) * noise
        for number in range(self.decoder):
            x = self.act(nn.Dense(32, name=f"decoder_{number}")(x))
        return nn.Dense(16, name="bands")(x), mean, spread


@functools.cache
def dug(
    name: str,
    *,
    encoder: int = 1,
    decoder: int = 1,
    act: Callable[[Any], Any] = nn.gelu,
) -> Network:
    """Soils by a variational autoencoder."""
    example = jnp.zeros((2, 16)), jnp.zeros((2, 4))
    init, apply = of_linen(Soils(encoder, decoder, act), *example)

    def loss(p: Any, batch: Any) -> Any:
        again, mean, spread = apply(p, *batch)
        divergence = (jnp.exp(spread) + mean**2 - 1 - spread).sum(-1) / 2
        return jnp.mean((again - batch[0]) ** 2) + 0.01 * divergence.mean()

    def parts(p: Any, batch: Any) -> Any:
        again = apply(p, batch[0], jnp.zeros_like(batch[1]))[0]
        return (jnp.mean((again - batch[0]) ** 2),)

    own = {"kind": "VAE of soils", "library": "linen", "task": soils, "steps": 400}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(3e-3, 8e-3), **own)


@functools.cache
def _folded(act: Any) -> Callable[[Any, Any], Any]:
    def loss(p: Any, batch: Any) -> Any:
        code = run_stack(p["encoder"], batch[0], act)
        return jnp.mean((run_stack(p["decoder"], code, act) - batch[0]) ** 2)

    return loss


def folded(
    name: str,
    *,
    depth: int = 1,
    act: Callable[[Any], Any] = jnp.tanh,
    draw: Callable[[Any, Any], Any] | None = None,
) -> Network:
    """Soils by an autoencoder, so many hidden layers on both sides of three numbers."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {
            "encoder": stack(one, (16, *[32] * depth, 3), draw),
            "decoder": stack(two, (3, *[32] * depth, 16), draw),
        }

    own = {"kind": "autoencoder of soils", "library": "plain", "task": soils, "steps": 400}
    return network(name, _folded(act), init, **own, rates=(2e-3, 6e-3))


# Elevators.


@functools.cache
def elevators() -> Task:
    """Eight readings of an elevator, what it did of three things, and what came of it."""
    rng = np.random.default_rng(1425)
    x, mixing = rng.standard_normal((2048, 8)), rng.standard_normal((8, 3)) / 2
    did = (x @ mixing + 0.5 * np.abs(x[:, :3]) + 0.3 * rng.gumbel(size=(2048, 3))).argmax(1)
    worth = np.sin(x[:, 0]) + 0.7 * x[:, 1] * (x[:, 2] > 0) - 0.5 * x[:, 3]
    train, test = parted(x, did.astype(np.int32), standard(worth))
    return Task(train, test, (entropy(test[1]), float(np.var(test[2]))))


@functools.cache
def lifted(name: str, *, depth: int = 2, act: Callable[[Any], Any] = nnx.tanh) -> Network:
    """A policy and a value network of its own; the value's depth and activation may be others."""

    class Elevators(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.policy = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in (8, 32))
            self.action = nnx.Linear(32, 3, rngs=rngs)
            sizes = (8, *[32] * (depth - 1))
            self.value = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in sizes)
            self.worth = nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = x
            for layer in self.policy:
                x = nnx.tanh(layer(x))
            for layer in self.value:
                y = act(layer(y))
            return self.action(x), self.worth(y)[:, 0]

    init, apply = of_nnx(Elevators)

    def parts(p: Any, batch: Any) -> Any:
        logits, worth = apply(p, batch[0])
        return cross_entropy(logits, batch[1]), jnp.mean((worth - batch[2]) ** 2)

    own = {"kind": "policy and value of elevators", "library": "nnx", "task": elevators}
    loss = lambda p, batch: sum(parts(p, batch))  # noqa: E731
    own = own | {"steps": 400, "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, loss=loss, parts=parts, **own)
