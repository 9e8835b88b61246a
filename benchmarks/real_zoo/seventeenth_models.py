"""Codes of violets, graphs of hives, likeness of songs, forgeries, lenses, curling stones."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

CELLS, PAIRS = 12, 32

# Violets.


@functools.cache
def violets() -> Task:
    """Sixteen measures of a flower that two numbers make, and noise for their codes."""
    rng = np.random.default_rng(1841)
    code, mixing = rng.standard_normal((2048, 2)), rng.standard_normal((4, 16))
    bent = np.concatenate([code, np.sin(2 * code[:, :1]), np.abs(code[:, 1:])], 1)
    x = standard(bent @ mixing + 0.15 * rng.standard_normal((2048, 16)))
    train, test = parted(x, rng.standard_normal((2048, 3)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


@functools.cache
def pressed(name: str) -> Network:
    """Flowers by a variational autoencoder of ReLU."""

    def forward(x: Any, noise: Any) -> Any:
        seen = hk.nets.MLP([32, 32], activate_final=True, name="encoder")(x)
        mean, spread = jnp.split(hk.Linear(6, name="code")(seen), 2, -1)
        code = mean + jnp.exp(spread / 2) * noise
        return hk.nets.MLP([32, 32, 16], name="decoder")(code), mean, spread

    net = hk.without_apply_rng(hk.transform(forward))

    def loss(p: Any, batch: Any) -> Any:
        again, mean, spread = net.apply(p, *batch)
        divergence = (jnp.exp(spread) + mean**2 - 1 - spread).sum(-1) / 2
        return jnp.mean((again - batch[0]) ** 2) + 0.01 * divergence.mean()

    def parts(p: Any, batch: Any) -> Any:
        again = net.apply(p, batch[0], jnp.zeros_like(batch[1]))[0]
        return (jnp.mean((again - batch[0]) ** 2),)

    init = lambda key: net.init(key, jnp.zeros((2, 16)), jnp.zeros((2, 3)))  # noqa: E731
    own = {"kind": "VAE of violets", "library": "Haiku", "task": violets, "steps": 300}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(3e-3, 8e-3), **own)


# Hives.


@functools.cache
def hives() -> Task:
    """Cells of a hive with three numbers each, which are neighbors, and how much honey it holds."""
    rng = np.random.default_rng(1842)
    x = rng.standard_normal((1536, CELLS, 3))
    near = np.triu(rng.uniform(size=(1536, CELLS, CELLS)) < 0.3, 1)
    near = (near + near.swapaxes(1, 2)).astype(np.float64)
    around = (near @ x[..., 1:2])[..., 0] / (1 + near.sum(-1))
    honey = (np.maximum(x[..., 0], 0) + 0.8 * np.abs(around) - 0.4 * x[..., 2]).mean(1)
    train, test = parted(x, near, standard(honey + 0.03 * rng.standard_normal(1536)))
    return Task(train, test, (float(np.var(test[2])),))


class Hives(nn.Module):
    """Rounds of sums over neighbors and two layers each, and a number for the mean of cells."""

    rounds: int

    @nn.compact
    def __call__(self, x: Any, near: Any) -> Any:
        """Honey of hives."""
        x = nn.Dense(24, name="cell")(x)
        for number in range(self.rounds):
            y = nn.relu(nn.Dense(24, name=f"round_{number}_a")(x + near @ x))
            x = nn.relu(nn.Dense(24, name=f"round_{number}_b")(y))
        return nn.Dense(1, name="honey")(x.mean(1))[:, 0]


@functools.cache
def gathered(name: str, *, rounds: int = 2) -> Network:
    """How much honey a hive holds by a graph isomorphism network."""
    init, apply = of_linen(Hives(rounds), jnp.zeros((2, CELLS, 3)), jnp.zeros((2, CELLS, CELLS)))
    loss = lambda p, b: jnp.mean((apply(p, b[0], b[1]) - b[2]) ** 2)  # noqa: E731
    own = {"kind": "graph isomorphism network of hives", "library": "linen", "task": hives}
    return network(name, loss, init, **own, steps=300, rates=(2e-3, 6e-3))


# Songs.


@functools.cache
def songs() -> Task:
    """Ten measures of a song and eight of its words, which share three hidden numbers."""
    rng = np.random.default_rng(1843)
    hidden = rng.standard_normal((2048, 3))
    mixing, words = rng.standard_normal((3, 10)), rng.standard_normal((3, 8))
    x = np.tanh(hidden @ mixing) + 0.1 * rng.standard_normal((2048, 10))
    y = np.sin(hidden @ words) + 0.1 * rng.standard_normal((2048, 8))
    train, test = parted(standard(x), standard(y))
    return Task(train, test, (float(np.log(PAIRS)),))


@functools.cache
def matched(name: str, *, depth: int = 2) -> Network:
    """Which words belong to which song by two towers and a temperature that is learned."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        song, words = stack(one, (10, *[32] * depth, 16)), stack(two, (8, *[32] * depth, 16))
        return {"song": song, "words": words, "log_scale": jnp.asarray(2.0)}

    def loss(p: Any, batch: Any) -> Any:
        towers = zip(("song", "words"), batch, strict=True)
        one, two = (run_stack(p[tower], x, jax.nn.gelu) for tower, x in towers)
        one, two = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (one, two))
        logits, places = jnp.exp(p["log_scale"]) * one @ two.T, jnp.arange(len(one))
        return (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2

    def parts(p: Any, batch: Any) -> Any:
        groups = jax.tree.map(lambda x: x.reshape(-1, PAIRS, x.shape[-1]), batch)
        return (jax.vmap(lambda group: loss(p, group))(groups).mean(),)

    own = {"kind": "contrast of songs", "library": "plain", "task": songs, "steps": 300}
    return Network(name=name, init=init, loss=loss, parts=parts, rates=(2e-3, 6e-3), **own)


# Banners.


@functools.cache
def banners() -> Task:
    """Twenty places along a banner whose waves three numbers make, in standard units."""
    rng = np.random.default_rng(1844)
    time, (wide, phase, tilt) = np.linspace(0, 1, 20), rng.uniform(-1, 1, (3, 2048, 1))
    x = (1 + 0.4 * wide) * np.sin(5 * time + 1.5 * phase) + tilt * (time - 0.5)
    train, test = parted(standard(x + 0.03 * rng.standard_normal(x.shape), None))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


class Banners(eqx.Module):
    """A code of three numbers, and a critic that doesn't learn, whose features are compared."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    critic: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        one, two, three = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(20, 3, 32, 2, jax.nn.gelu, key=one)
        self.decoder = eqx.nn.MLP(3, 20, 32, 2, jax.nn.gelu, key=two)
        self.critic = eqx.nn.MLP(20, 32, 32, 1, jnp.tanh, key=three)

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """The same twenty places, and how far they are off for the critic."""
        again = self.decoder(self.encoder(x))
        frozen = jax.tree.map(
            lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, self.critic
        )
        return again, 10 * jnp.mean((frozen(again) - frozen(x)) ** 2)


@functools.cache
def waved(name: str) -> Network:
    """An autoencoder of banners that learns from a frozen critic's features."""
    init, apply = of_equinox(Banners)

    def parts(p: Any, batch: Any) -> Any:
        return (jnp.mean((apply(p, batch[0])[0] - batch[0]) ** 2),)

    own = {"kind": "autoencoder behind a frozen critic", "library": "Equinox", "task": banners}
    own |= {"steps": 300, "rates": (2e-3, 6e-3)}
    loss = lambda p, batch: apply(p, batch[0])[1].mean()  # noqa: E731
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Lenses.


@functools.cache
def lenses() -> Task:
    """Four numbers of a lens, two of a ray, and where the ray ends; standardized."""
    rng = np.random.default_rng(1845)
    lens, ray = rng.standard_normal((2048, 4)), rng.standard_normal((2048, 2))
    power = np.tanh(lens[:, 0] + 0.5 * lens[:, 1])
    end = ray[:, 0] * power + ray[:, 1] * np.cos(lens[:, 2]) + 0.4 * lens[:, 3] * ray[:, 0] ** 2
    train, test = parted(lens, ray, standard(end + 0.05 * rng.standard_normal(2048)))
    return Task(train, test, (float(np.var(test[2])),))


@functools.cache
def focused(name: str) -> Network:
    """Where a ray ends by a small network whose kernels another one makes from the lens."""
    small = 2 * 16 + 16 + 16 + 1

    class Lenses(nn.Module):
        @nn.compact
        def __call__(self, lens: Any, ray: Any) -> Any:
            h = nn.silu(nn.Dense(32, name="lens")(lens))
            h = nn.silu(nn.Dense(32, name="glass")(h))
            made = nn.Dense(small, name="kernels")(h)
            one, bias, two, last = jnp.split(made, (32, 48, 64), -1)
            y = jnp.einsum("bi,bij->bj", ray, one.reshape(-1, 2, 16))
            return (jnp.tanh(y + bias) * two).sum(-1) + last[:, 0]

    init, apply = of_linen(Lenses(), jnp.zeros((2, 4)), jnp.zeros((2, 2)))
    loss = lambda p, b: jnp.mean((apply(p, b[0], b[1]) - b[2]) ** 2)  # noqa: E731
    own = {"kind": "hypernetwork of lenses", "library": "linen", "task": lenses, "steps": 400}
    return network(name, loss, init, **own, rates=(3e-3, 8e-3))


# Stones.


@functools.cache
def stones() -> Task:
    """Eight numbers of a curling sheet, which of four shots was played, and how it scored."""
    rng = np.random.default_rng(1846)
    x, mixing = rng.standard_normal((2048, 8)), rng.standard_normal((8, 4)) / 2
    shot = (2 * x @ mixing + np.abs(x[:, 4:]) + 0.2 * rng.gumbel(size=(2048, 4))).argmax(1)
    score = np.maximum(x[:, 0], x[:, 1]) + 0.6 * x[:, 2] * x[:, 3] - 0.5 * np.sin(2 * x[:, 5])
    train, test = parted(x, shot.astype(np.int32), standard(score))
    return Task(train, test, (entropy(test[1]), float(np.var(test[2]))))


@functools.cache
def curled(name: str, **rest: Any) -> Network:
    """Shots and their scores by an actor and a critic on two layers that they share."""

    class Stones(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.trunk = nnx.List(nnx.Linear(a, 40, rngs=rngs) for a in (8, 40))
            self.actor = nnx.Linear(40, 4, rngs=rngs)
            self.valued, self.critic = nnx.Linear(40, 40, rngs=rngs), nnx.Linear(40, 1, rngs=rngs)

        def __call__(self, x: Any) -> tuple[Any, Any]:
            for layer in self.trunk:
                x = nnx.relu(layer(x))
            return self.actor(x), self.critic(nnx.relu(self.valued(x)))[:, 0]

    init, apply = of_nnx(Stones)

    def parts(p: Any, batch: Any) -> Any:
        logits, score = apply(p, batch[0])
        return cross_entropy(logits, batch[1]), jnp.mean((score - batch[2]) ** 2)

    own = {"kind": "actor and critic of stones", "library": "nnx", "task": stones, "steps": 300}
    own |= {"loss": lambda p, batch: sum(parts(p, batch)), "rates": (2e-3, 6e-3)}
    return Network(name=name, init=init, parts=parts, **own | rest)
