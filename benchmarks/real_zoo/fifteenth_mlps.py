"""Plain MLPs of rowers, cheeses, bridges, glazes and sails, of any depth."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.fourteenth_mlps import run_stack, stack
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_classes, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

# Rowers.


@functools.cache
def rowers() -> Task:
    """Six numbers of a crew and its water, and how fast its boat is; standardized."""
    rng = np.random.default_rng(1501)
    x = rng.standard_normal((2048, 6))
    y = 0.8 * np.tanh(x[:, 0] + 0.5 * x[:, 1]) + 0.5 * x[:, 2] * x[:, 3] - 0.4 * np.abs(x[:, 4])
    y += 0.5 * np.sin(1.5 * x[:, 5]) + 0.08 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


@functools.cache
def _rowers(act: Any) -> Callable[[Any, Any], Any]:
    return lambda p, batch: jnp.mean((run_stack(p, batch[0], act)[:, 0] - batch[1]) ** 2)


def rowed(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jnp.tanh,
    draw: Callable[[Any, Any], Any] | None = None,
    trained: int = 0,
    **rest: Any,
) -> Network:
    """The speed of a boat; it may be trained for some steps before it starts."""
    loss = _rowers(act)

    def init(key: Any) -> Any:
        p = stack(key, (6, *[40] * depth, 1), draw)
        tx, data = optax.adam(4e-3), jax.tree.map(jnp.asarray, rowers().train)

        def step(state: Any, key: Any) -> Any:
            p, kept = state
            rows = jax.random.randint(key, (64,), 0, len(data[0]))
            updates, kept = tx.update(jax.grad(loss)(p, [x[rows] for x in data]), kept, p)
            return (optax.apply_updates(p, updates), kept), None

        keys = jax.random.split(jax.random.fold_in(key, 2), trained)
        return jax.lax.scan(step, (p, tx.init(p)), keys)[0][0] if trained else p

    own = {"kind": "rowers MLP", "library": "plain", "task": rowers, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


@functools.cache
def _crews() -> Callable[[Any, Any], Any]:
    def loss(p: Any, batch: Any) -> Any:
        x = batch[0] @ p["into"]["w"] + p["into"]["b"]
        for block in p["blocks"]:
            x = x + block["gain"] * jnp.tanh(x @ block["w"] + block["b"])
        speed = x @ p["speed"]["w"] + p["speed"]["b"]
        return jnp.mean((speed[:, 0] - batch[1]) ** 2)

    return loss


def joined(name: str, *, depth: int = 24, gain: float = 0.0) -> Network:
    """The speed of a boat by residual layers, whose gains start so."""

    def init(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        blocks = stack(two, (40,) * (depth + 1))
        return {
            "into": stack(one, (6, 40))[0],
            "blocks": [{**block, "gain": jnp.asarray(gain)} for block in blocks],
            "speed": stack(three, (40, 1))[0],
        }

    own = {"kind": "rowers MLP", "library": "plain", "task": rowers, "steps": 300}
    return network(name, _crews(), init, **own, rates=(2e-3, 6e-3))


# Cheeses.


@functools.cache
def cheeses() -> Task:
    """Nine measures of a cheese, which of four makers made it, and numbers to draw from."""
    rng = np.random.default_rng(1502)
    x = rng.standard_normal((2560, 9))
    salt = x[:, 0] + 0.7 * x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3])
    age = x[:, 4] - 0.6 * x[:, 5] ** 2 + 0.5 * np.tanh(2 * x[:, 6]) + 0.4 * x[:, 7]
    maker = 2 * (salt > np.median(salt)) + (age > np.median(age))
    draws = rng.integers(0, 2**31, 2560).astype(np.uint32)
    train, test = parted(x, maker.astype(np.int32), draws)
    return Task(train, test, (entropy(test[1]),))


class Cheeses(nn.Module):
    """Hidden layers of 40 units, maybe with norms before they're activated, and logits."""

    depth: int
    act: Callable[[Any], Any]
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of the makers."""
        for number in range(self.depth):
            x = nn.Dense(40, dtype=self.dtype, name=f"hidden_{number}")(x)
            x = nn.LayerNorm(dtype=self.dtype, name=f"norm_{number}")(x) if self.norm else x
            x = self.act(x)
        return nn.Dense(4, dtype=self.dtype, name="maker")(x).astype(jnp.float32)


@functools.cache
def _cheeses(depth: int, act: Any, norm: bool, dtype: Any) -> tuple[Any, Any]:
    init, apply = of_linen(Cheeses(depth, act, norm, dtype), jnp.zeros((2, 9)))
    return init, of_classes(apply)


def ripened(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nn.relu,
    norm: bool = False,
    dtype: Any = None,
    **rest: Any,
) -> Network:
    """Who made a cheese, computed in a type."""
    init, loss = _cheeses(depth, act, norm, dtype)
    own = {"kind": "cheeses MLP", "library": "linen", "task": cheeses, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


class Dropped(nn.Module):
    """Two hidden layers of 64 units, of which a part is dropped."""

    share: float

    @nn.compact
    def __call__(self, x: Any, training: bool = False) -> Any:
        """Logits of the makers."""
        for number in range(2):
            x = nn.relu(nn.Dense(64, name=f"hidden_{number}")(x))
            x = nn.Dropout(self.share, deterministic=not training)(x)
        return nn.Dense(4, name="maker")(x)


def dropped(name: str, *, share: float = 0.2) -> Network:
    """Who made a cheese, with dropout whose keys are drawn with the examples."""
    module = Dropped(share)
    init, apply = of_linen(module, jnp.zeros((2, 9)))

    def loss(p: Any, batch: Any) -> Any:
        rngs = {"dropout": jax.random.key(batch[2][0])}
        return cross_entropy(module.apply({"params": p}, batch[0], True, rngs=rngs), batch[1])

    def parts(p: Any, batch: Any) -> Any:
        return (cross_entropy(apply(p, batch[0]), batch[1]),)

    own = {"kind": "cheeses MLP", "library": "linen", "task": cheeses, "steps": 300}
    return Network(name=name, init=init, loss=loss, parts=parts, **own, rates=(2e-3, 6e-3))


# Bridges.


@functools.cache
def bridges() -> Task:
    """Eight numbers of a bridge and its load, and how far it sags; standardized."""
    rng = np.random.default_rng(1503)
    x = rng.standard_normal((2048, 8))
    y = 0.7 * x[:, 0] * x[:, 1] + np.maximum(x[:, 2], 0) - 0.6 * x[:, 3] + 0.5 * np.cos(2 * x[:, 4])
    y += 0.4 * x[:, 5] * np.tanh(x[:, 6]) + 0.08 * rng.standard_normal(2048)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


@functools.cache
def _bridges(depth: int, act: Any, frozen: int) -> tuple[Any, Any]:
    class Bridges(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = itertools.pairwise((8, *[36] * depth))
            self.spans = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in sizes)
            self.sag = nnx.Linear(36, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for number, layer in enumerate(self.spans):
                x = act(layer(x))
                x = jax.lax.stop_gradient(x) if number + 1 == frozen else x
            return self.sag(x)[:, 0]

    init, apply = of_nnx(Bridges)
    return init, lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)


def loaded(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = nnx.relu,
    frozen: int = 0,
    **rest: Any,
) -> Network:
    """The sag of a bridge; so many of the first layers are frozen."""
    init, loss = _bridges(depth, act, frozen)
    own = {"kind": "bridges MLP", "library": "nnx", "task": bridges, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Glazes.


@functools.cache
def glazes() -> Task:
    """Seven parts of a glaze, and which of five colors it burns to."""
    rng = np.random.default_rng(1504)
    x = rng.standard_normal((2560, 7))
    score = x[:, 0] + 0.8 * np.sin(1.5 * x[:, 1]) + 0.6 * x[:, 2] * x[:, 3] - 0.5 * x[:, 4]
    color = np.digitize(score, np.quantile(score, [0.2, 0.4, 0.6, 0.8]))
    train, test = parted(x, color.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Linears(eqx.Module):
    """Linear layers, activated but for the last."""

    layers: list[eqx.nn.Linear]
    act: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(self, sizes: tuple[int, ...], act: Any, key: Any) -> None:
        pairs = list(itertools.pairwise(sizes))
        keys = jax.random.split(key, len(pairs))
        self.layers = [eqx.nn.Linear(a, b, key=k) for (a, b), k in zip(pairs, keys, strict=True)]
        self.act = act

    def __call__(self, x: Any) -> Any:
        """What the last one puts out."""
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


@functools.cache
def _glazes(depth: int, act: Any) -> tuple[Any, Any]:
    init, apply = of_equinox(lambda key: Linears((7, *[44] * depth, 5), act, key))
    return init, of_classes(apply)


def fired(
    name: str,
    *,
    depth: int = 3,
    act: Callable[[Any], Any] = jnp.tanh,
    **rest: Any,
) -> Network:
    """The color of a glaze, by layers whose kernels and biases are uniform, as in PyTorch."""
    init, loss = _glazes(depth, act)
    own = {"kind": "glazes MLP", "library": "Equinox", "task": glazes, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)


# Sails.


@functools.cache
def sails() -> Task:
    """Five numbers of wind and sail, and two forces; standardized."""
    rng = np.random.default_rng(1505)
    x = rng.standard_normal((2048, 5))
    wind = x[:, 0] + 0.5 * np.maximum(x[:, 1], 0)
    turn = np.tanh(x[:, 2] - 0.5 * x[:, 3])
    y = np.stack([wind * turn + 0.3 * x[:, 4], wind + 0.5 * np.abs(x[:, 2]) - x[:, 4] * turn], 1)
    train, test = parted(x, standard(y + 0.05 * rng.standard_normal(y.shape)))
    return Task(train, test, (float(np.mean(np.var(test[1], 0))),))


@functools.cache
def _sails(depth: int, act: Any, dtype: Any, over: bool) -> tuple[Any, Any]:
    net = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([*[32] * depth, 2], activation=act, name="sail")(x))
    )

    def loss(p: Any, batch: Any) -> Any:
        if over:
            p = {name: one | {"w": one["w"] / len(one["w"]) ** 0.5} for name, one in p.items()}
        p, x = jax.tree.map(lambda a: a.astype(dtype), (p, batch[0]))
        return jnp.mean((net.apply(p, x).astype(jnp.float32) - batch[1]) ** 2)

    return lambda key: net.init(key, jnp.zeros((2, 5))), loss


def hoisted(
    name: str,
    *,
    depth: int = 4,
    act: Callable[[Any], Any] = jax.nn.silu,
    dtype: Any = jnp.float32,
    over: bool = False,
    **rest: Any,
) -> Network:
    """The forces of a sail, computed in a type; kernels may be divided by roots of widths."""
    init, loss = _sails(depth, act, dtype, over)
    own = {"kind": "sails MLP", "library": "Haiku", "task": sails, "steps": 300}
    return network(name, loss, init, **own | {"rates": (2e-3, 6e-3)} | rest)
