"""Lookouts and their neighbors, drones and what they earn, voices heard twice."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_nnx
from benchmarks.real_zoo.text import entropy

TOWERS, GROUP = 12, 32

# Lookouts.


@functools.cache
def lookouts() -> Task:
    """Towers with two numbers each, paths among them; which are above their neighbors' mean."""
    rng = np.random.default_rng(1641)
    x = rng.standard_normal((1536, TOWERS, 2))
    paths = np.triu(rng.uniform(size=(1536, TOWERS, TOWERS)) < 0.3, 1)
    paths = 1.0 * (paths + paths.swapaxes(1, 2)) + np.eye(TOWERS)
    means = paths / paths.sum(-1, keepdims=True)
    height = x[..., 0] + np.abs(x[..., 1])
    above = height > (means @ height[..., None])[..., 0]
    train, test = parted(x, means, above.astype(np.int32))
    return Task(train, test, (entropy(test[2]),))


@functools.cache
def watched(name: str, *, depth: int = 2, own: bool = True, unused: bool = False) -> Network:
    """Which towers are high by rounds of messages, with or without what a tower has itself."""

    def init(key: Any) -> Any:
        one, two, *rest = jax.random.split(key, 3 + 2 * depth)
        p = {
            "tower": stack(one, (2, 24))[0],
            "rounds": [{"neighbors": stack(k, (24, 24))[0]} for k in rest[:depth]],
            "high": stack(two, (24, 24, 2)),
        }
        for number, key in enumerate(rest[depth : 2 * depth]):
            p["rounds"][number] |= {"own": stack(key, (24, 24))[0]} if own else {}
        return p | ({"storms": stack(rest[-1], (24, 24, 3))} if unused else {})

    def apply(p: Any, x: Any, means: Any) -> Any:
        x = jax.nn.relu(x @ p["tower"]["w"] + p["tower"]["b"])
        for layer in p["rounds"]:
            y = means @ x @ layer["neighbors"]["w"] + layer["neighbors"]["b"]
            y = y + x @ layer["own"]["w"] + layer["own"]["b"] if own else y
            x = jax.nn.relu(y)
        return run_stack(p["high"], x, jax.nn.relu)

    loss = lambda p, batch: cross_entropy(apply(p, batch[0], batch[1]), batch[2])  # noqa: E731
    rest = {"kind": "graph of lookouts", "library": "plain", "task": lookouts, "steps": 300}
    return network(name, loss, init, **rest, rates=(3e-3, 8e-3))


# Drones.


@functools.cache
def drones() -> Task:
    """Eight readings of a drone, which of three moves it made, and what it earned."""
    rng = np.random.default_rng(1642)
    x, mixing = rng.standard_normal((2048, 8)), rng.standard_normal((8, 3)) / 2
    move = (3 * x @ mixing + 2 * np.abs(x[:, 2:5]) + 0.2 * rng.gumbel(size=(2048, 3))).argmax(1)
    earned = x[:, 0] * x[:, 1] + np.maximum(x[:, 2], x[:, 5]) - 0.5 * x[:, 6]
    train, test = parted(x, move.astype(np.int32), standard(earned))
    return Task(train, test, (entropy(test[1]), float(np.var(test[2]))))


@functools.cache
def flown(name: str, *, frozen: bool = False) -> Network:
    """An actor and a critic on a trunk, whose first layer may be frozen as it was drawn."""

    class Drones(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(8, 96 if frozen else 32, rngs=rngs)
            self.trunk = nnx.Linear(96 if frozen else 32, 32, rngs=rngs)
            self.actor = nnx.List([nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs)])
            self.critic = nnx.List([nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)])

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.first(x))
            x = nnx.relu(self.trunk(jax.lax.stop_gradient(x) if frozen else x))
            heads = [last(nnx.relu(one(x))) for one, last in (self.actor, self.critic)]
            return heads[0], heads[1][:, 0]

    init, apply = of_nnx(Drones)

    def parts(p: Any, batch: Any) -> Any:
        logits, worth = apply(p, batch[0])
        return cross_entropy(logits, batch[1]), jnp.mean((worth - batch[2]) ** 2)

    loss = lambda p, batch: sum(parts(p, batch))  # noqa: E731
    own = {"kind": "actor and critic of drones", "library": "nnx", "task": drones}
    own = own | {"steps": 300, "rates": (3e-3, 8e-3)}
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Voices.


@functools.cache
def voices() -> Task:
    """Ten numbers of a voice in a room and twelve in another."""
    rng = np.random.default_rng(1643)
    voice = rng.standard_normal((2048, 5))
    rooms = [standard(np.tanh(voice @ rng.standard_normal((5, size)) / 2)) for size in (10, 12)]
    train, test = parted(*(x + 0.05 * rng.standard_normal(x.shape) for x in rooms))
    return Task(train, test, (float(np.log(GROUP)),))


@functools.cache
def heard(
    name: str, *, dtype: Any = jnp.float32, width: int = 32, steps: int = 300, **rest: Any
) -> Network:
    """Which voices are the same, among thirty-two, by two towers and a temperature."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        p = {
            "one": stack(one, (10, width, width, 8)),
            "two": stack(two, (12, width, width, 8)),
        }
        return jax.tree.map(lambda x: x.astype(dtype), p)

    def loss(p: Any, batch: Any) -> Any:
        one, two = (
            run_stack(p[name], x.astype(dtype), jax.nn.relu)
            for name, x in zip(("one", "two"), batch, strict=True)
        )
        one, two = (
            (x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)).reshape(-1, GROUP, 8)
            for x in (one, two)
        )
        logits = 8 * (one @ two.swapaxes(1, 2)).astype(jnp.float32)
        same = jnp.broadcast_to(jnp.arange(GROUP), logits.shape[:2])
        return (cross_entropy(logits, same) + cross_entropy(logits.swapaxes(1, 2), same)) / 2

    own = {"kind": "contrast of voices", "library": "plain", "task": voices, "steps": steps}
    return network(name, loss, init, **own, **{"rates": (2e-3, 6e-3)} | rest)
