"""Codes of shells, ferries with their worth, villages with their roads."""

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
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

HOUSES = 10

# Shells.


@functools.cache
def shells() -> Task:
    """Fourteen measures of shells of two habits, and noise for their codes."""
    rng = np.random.default_rng(1541)
    habit, mixing = rng.standard_normal((2048, 2)), rng.standard_normal((3, 14))
    bent = np.concatenate([habit, habit[:, :1] * habit[:, 1:]], 1)
    x = standard(bent @ mixing + 0.15 * rng.standard_normal((2048, 14)))
    train, test = parted(x, rng.standard_normal((2048, 3)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


@functools.cache
def curled(
    name: str,
    *,
    decoder: int = 2,
    act: Callable[[Any], Any] = nnx.relu,
) -> Network:
    """Shells by a variational autoencoder, whose decoder has so many hidden layers."""

    class Shells(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.encoder = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in (14, 32))
            self.mean, self.log_variance = (
                nnx.Linear(32, 3, rngs=rngs),
                nnx.Linear(32, 3, rngs=rngs),
            )
            sizes = (3, *[32] * (decoder - 1))
            self.decoder = nnx.List(nnx.Linear(a, 32, rngs=rngs) for a in sizes)
            self.shell = nnx.Linear(32, 14, rngs=rngs)

        def __call__(self, x: Any, noise: Any) -> Any:
            for layer in self.encoder:
                x = nnx.relu(layer(x))
            mean, spread = self.mean(x), self.log_variance(x)
            x = mean + jnp.exp(spread / 2) * noise
            for layer in self.decoder:
                x = act(layer(x))
            return self.shell(x), mean, spread

    init, apply = of_nnx(Shells)

    def loss(p: Any, batch: Any) -> Any:
        again, mean, spread = apply(p, *batch)
        divergence = (jnp.exp(spread) + mean**2 - 1 - spread).sum(-1) / 2
        return jnp.mean((again - batch[0]) ** 2) + 0.01 * divergence.mean()

    def parts(p: Any, batch: Any) -> Any:
        again = apply(p, batch[0], jnp.zeros_like(batch[1]))[0]
        return (jnp.mean((again - batch[0]) ** 2),)

    own = {"kind": "VAE of shells", "library": "nnx", "task": shells, "steps": 300}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(3e-3, 8e-3), **own)


# Ferries.


@functools.cache
def ferries() -> Task:
    """Seven readings of a ferry, which of three piers it made for, and what that was worth."""
    rng = np.random.default_rng(1542)
    x, mixing = rng.standard_normal((2048, 7)), rng.standard_normal((7, 3)) / 2
    pier = (2 * x @ mixing + np.abs(x[:, 3:6]) + 0.2 * rng.gumbel(size=(2048, 3))).argmax(1)
    worth = np.tanh(x[:, 0] + x[:, 1]) + 0.6 * x[:, 2] * x[:, 3] - 0.5 * x[:, 4]
    train, test = parted(x, pier.astype(np.int32), standard(worth))
    return Task(train, test, (entropy(test[1]), float(np.var(test[2]))))


@functools.cache
def crossed(name: str, *, critic: int = 3) -> Network:
    """An actor and a critic in one tree, each with layers of its own."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {"actor": stack(one, (7, 32, 32, 3)), "critic": stack(two, (7, *[32] * critic, 1))}

    def parts(p: Any, batch: Any) -> Any:
        logits = run_stack(p["actor"], batch[0], jax.nn.relu)
        worth = run_stack(p["critic"], batch[0], jax.nn.relu)[:, 0]
        return cross_entropy(logits, batch[1]), jnp.mean((worth - batch[2]) ** 2)

    own = {"kind": "actor and critic of ferries", "library": "plain", "task": ferries}
    loss = lambda p, batch: sum(parts(p, batch))  # noqa: E731
    own = own | {"steps": 300, "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Villages.


@functools.cache
def villages() -> Task:
    """Houses of a village with three numbers each, roads among them, and each house's trade."""
    rng = np.random.default_rng(1543)
    x = rng.standard_normal((1536, HOUSES, 3))
    roads = np.triu(rng.uniform(size=(1536, HOUSES, HOUSES)) < 0.2, 1)
    roads = roads + roads.swapaxes(1, 2) + np.eye(HOUSES)
    root = roads.sum(-1) ** -0.5
    shares = root[..., None] * roads * root[:, None]
    score = x[..., 0] + 1.2 * (shares @ np.abs(x[..., 1:2]))[..., 0] - 0.5 * x[..., 2]
    trade = np.digitize(score, np.quantile(score, [1 / 3, 2 / 3]))
    train, test = parted(x, shares, trade.astype(np.int32))
    return Task(train, test, (entropy(test[2]),))


class Villages(nn.Module):
    """Graph convolutions, maybe beside what goes into them, and logits of each house."""

    depth: int
    skip: bool

    @nn.compact
    def __call__(self, x: Any, shares: Any) -> Any:
        """Logits of trades."""
        x = nn.relu(nn.Dense(24, name="house")(x))
        for number in range(self.depth):
            y = nn.relu(shares @ nn.Dense(24, name=f"road_{number}")(x))
            x = x + y if self.skip else y
        return nn.Dense(3, name="trade")(x)


@functools.cache
def settled(name: str, *, depth: int = 2, skip: bool = True) -> Network:
    """The trades of houses by a graph convolutional network."""
    example = jnp.zeros((2, HOUSES, 3)), jnp.zeros((2, HOUSES, HOUSES))
    init, apply = of_linen(Villages(depth, skip), *example)
    loss = lambda p, batch: cross_entropy(apply(p, batch[0], batch[1]), batch[2])  # noqa: E731
    own = {"kind": "graph convolutions of villages", "library": "linen", "task": villages}
    return network(name, loss, init, **own, steps=250, rates=(3e-3, 8e-3))
