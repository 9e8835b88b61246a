"""Networks of other kinds: galaxies, cues, faces, pendulums, adapters."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_linen
from benchmarks.real_zoo.text import entropy

MARGIN = 0.2
LENGTH, STATES = 40, 32

# Galaxies.


@functools.cache
def galaxies() -> Task:
    """Pictures, 12 x 12, of a disk, a ring or two arms in noise, and which it is."""
    rng = np.random.default_rng(1121)
    which, turn = rng.integers(0, 3, 1024), rng.uniform(0, 2 * np.pi, (1024, 1, 1))
    rows, columns = np.mgrid[:12, :12] - 5.5
    down, right = (
        rows + rng.uniform(-1, 1, (1024, 1, 1)),
        columns + rng.uniform(-1, 1, (1024, 1, 1)),
    )
    far, angle = np.hypot(down, right), np.arctan2(down, right)
    arms = np.exp(-far / 4) * (1 + np.cos(2 * (angle - 0.5 * far + turn)))
    kinds = np.stack([np.exp(-((far / 3) ** 2)) * 1.5, np.exp(-((far - 3.5) ** 2)), arms])
    x = kinds[which, np.arange(1024)] + 0.25 * rng.standard_normal((1024, 12, 12))
    train, test = parted(standard(x, None)[..., None], which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Bottlenecks(nn.Module):
    """A stem and two bottlenecks with batch norms."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the three kinds."""

        def block(x: Any, width: int, size: int, name: str) -> Any:
            x = nn.Conv(width, (size, size), use_bias=False, name=name)(x)
            return nn.BatchNorm(use_running_average=False, name=f"{name}_norm")(x)

        x = nn.relu(block(x, 16, 3, "stem"))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for number in range(2):
            y = nn.relu(block(x, 8, 1, f"narrow_{number}"))
            y = nn.relu(block(y, 8, 3, f"middle_{number}"))
            x = nn.relu(x + block(y, 16, 1, f"wide_{number}"))
        return nn.Dense(3, name="kinds")(x.mean((1, 2)))


def told(name: str) -> Network:
    """Which kind of galaxy a picture shows, by a bottleneck ResNet."""
    init, apply = of_linen(Bottlenecks(), jnp.zeros((2, 12, 12, 1)))
    own = {"kind": "bottleneck ResNet", "library": "linen", "task": galaxies, "batched": False}
    return classifier(name, init, apply, **own, rates=(2e-3, 8e-3))


# Cues.


@functools.cache
def cues() -> Task:
    """Forty steps of noise, a cue among the first five of them, and what it said."""
    rng = np.random.default_rng(1122)
    x = np.zeros((2048, LENGTH, 2))
    x[:, :, 0] = rng.standard_normal((2048, LENGTH))
    place = rng.integers(0, 5, 2048)
    x[np.arange(2048), place, 1] = 1
    y = x[np.arange(2048), place, 0]
    x[..., 0] *= 0.3 + 0.7 * x[..., 1]
    train, test = parted(x, y)
    return Task(train, test, (float(np.var(test[1])),))


def cued(name: str) -> Network:
    """What a cue said, by a linear recurrent unit with complex states, and an MLP before it."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 5)
        size = jax.random.uniform(keys[0], (STATES,), minval=0.97, maxval=0.999)
        return {
            "before": stack(keys[1], (2, 32, 32)),
            "log_decay": jnp.log(-jnp.log(size)),
            "angle": jax.random.uniform(keys[2], (STATES,), maxval=0.15),
            "into": jax.random.normal(keys[3], (2, 32, STATES)) / 64**0.5,
            "after": stack(keys[4], (2 * STATES, 32, 1)),
        }

    def apply(p: Any, x: Any) -> Any:
        size = jnp.exp(-jnp.exp(p["log_decay"]))
        turn = size * jnp.exp(1j * p["angle"])
        x = jax.nn.gelu(forward(p["before"], x, jax.nn.gelu))
        x = jnp.sqrt(1 - size**2) * (x @ p["into"][0] + 1j * (x @ p["into"][1]))
        times = turn ** jnp.arange(LENGTH - 1, -1, -1)[:, None]
        state = (x * times).sum(1)
        return forward(p["after"], jnp.concatenate([state.real, state.imag], -1))[:, 0]

    own = {"kind": "linear recurrent unit", "library": "plain", "task": cues, "steps": 400}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))


# Faces.


@functools.cache
def faces() -> Task:
    """A face, another view of it, and a face of someone else, twenty numbers each."""
    rng = np.random.default_rng(1123)
    people, mixing = rng.standard_normal((2, 2048, 3)), rng.standard_normal((6, 20)) / 6**0.5

    def view(who: Any) -> Any:
        own = np.concatenate([who, 1.5 * rng.standard_normal(who.shape)], 1)
        return np.tanh(own @ mixing) + 0.05 * rng.standard_normal((2048, 20))

    train, test = parted(*(2 * view(who) for who in (people[0], people[0], people[1])))
    return Task(train, test, (MARGIN,))


class Face(eqx.Module):
    """Three hidden layers, and a code of eight numbers."""

    layers: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        self.layers = eqx.nn.MLP(20, 8, 48, 3, jax.nn.relu, key=key)

    def __call__(self, x: Any) -> Any:
        """A code of a face."""
        return self.layers(x)


def faced(name: str) -> Network:
    """Codes by which views of a face are nearer than faces; as FaceNet's."""
    init, apply = of_equinox(Face)

    def loss(p: Any, batch: Any) -> Any:
        one, same, other = (apply(p, x) for x in batch)
        near, far = ((one - same) ** 2).sum(-1), ((one - other) ** 2).sum(-1)
        return jax.nn.relu(near - far + MARGIN).mean()

    own = {"kind": "face codes", "library": "Equinox", "task": faces, "steps": 400, "batch": 64}
    return network(name, loss, init, **own)


# Pendulums.


@functools.cache
def swings() -> Task:
    """Three numbers of a pendulum, which way it was pushed, and what that returned."""
    rng = np.random.default_rng(1124)
    angle, speed = rng.uniform(-np.pi, np.pi, 2048), rng.standard_normal(2048)
    x = np.stack([np.cos(angle), np.sin(angle), speed], 1) * 1.4
    way = -np.sin(angle) - 0.6 * speed
    scores = 3 * np.stack([-way, 0.4 - np.abs(way), way], 1)
    pushed = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    returned = standard(-(angle**2) - 0.6 * speed**2 - angle * speed)
    train, test = parted(x, pushed.astype(np.int32), returned)
    return Task(train, test, (entropy(test[1]), float(np.var(test[2]))))


def swung(name: str, *, unit: float = 1.0, **rest: Any) -> Network:
    """An actor and a critic of a pendulum side by side in one tree."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        return {"actor": stack(one, (3, 40, 40, 3)), "critic": stack(two, (3, 40, 40, 1))}

    def parts(p: Any, batch: Any) -> Any:
        x, pushed, returned = batch
        error = jnp.mean((forward(p["critic"], x)[:, 0] - returned) ** 2)
        return cross_entropy(forward(p["actor"], x), pushed), error / unit**2

    def loss(p: Any, batch: Any) -> Any:
        policy, error = parts(p, batch)
        return policy + 0.5 * unit**2 * error

    own = {"kind": "actor and critic", "library": "plain", "task": swings, "steps": 300}
    own = own | {"rates": (4e-3, 1e-2)} | rest
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Adapters.


def _trained() -> Any:
    return stack(jax.random.key(1125), (10, 32, 32, 4))


@functools.cache
def moved() -> Task:
    """Ten numbers, and what a network makes of them once its layers were moved a little."""
    rng = np.random.default_rng(1125)
    x, layers = rng.standard_normal((2048, 10)).astype(np.float32), _trained()
    for one in layers:
        a, b = one["w"].shape
        change = rng.standard_normal((a, 2)) @ rng.standard_normal((2, b)) * 1.2 / (2 * a) ** 0.5
        one["w"] = one["w"] + jnp.asarray(change, jnp.float32)
    train, test = parted(x, np.asarray(forward(layers, x)))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


def adapted(name: str) -> Network:
    """A frozen network with adapters of rank 4 on each layer; as LoRA."""

    def init(key: Any) -> Any:
        shapes = [one["w"].shape for one in _trained()]
        keys = jax.random.split(key, len(shapes))
        return [
            {"lora_a": jax.random.normal(k, (a, 4)) / a**0.5, "lora_b": jnp.zeros((4, b))}
            for k, (a, b) in zip(keys, shapes, strict=True)
        ]

    def apply(p: Any, x: Any) -> Any:
        both = zip(_trained(), p, strict=True)
        return forward(
            [{"w": one["w"] + two["lora_a"] @ two["lora_b"], "b": one["b"]} for one, two in both], x
        )

    own = {"kind": "low-rank adapters", "library": "plain", "task": moved, "steps": 400}
    return regression(name, init, apply, **own, rates=(4e-3, 1e-2))
