"""Networks of other kinds: strokes, captions, rovers, regimes, facts, codes, growths, chains."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

THINGS, RELATIONS = 36, 4
ATOMS, MEASURED, ROUNDS = 32, 20, 6
EXPERTS = 4
GROWN = 8
LINKS = 20

# Strokes.


@functools.cache
def strokes() -> Task:
    """Places along a stroke of a pen that four numbers make, in standard units, and noise."""
    rng = np.random.default_rng(1221)
    time, made = np.linspace(-1, 1, 12), rng.standard_normal((2048, 4, 1))
    x = np.sin(2 * time * (1 + 0.4 * made[:, 0]) + made[:, 1])
    y = made[:, 2] * time + 0.6 * made[:, 3] * time**2
    both = np.concatenate([x, y], 1) + 0.05 * rng.standard_normal((2048, 24))
    train, test = parted(standard(both), rng.standard_normal((2048, 6)))
    return Task(train, test, (float(np.mean(np.var(test[0], 0))),))


def drawn(name: str, *, weight: float = 0.01, **rest: Any) -> Network:
    """A variational autoencoder of strokes."""

    def made(x: Any, noise: Any) -> Any:
        y = jax.nn.swish(hk.Linear(48, name="encoder_0")(x))
        mean, log_variance = jnp.split(hk.Linear(12, name="encoder_1")(y), 2, -1)
        z = mean + jnp.exp(log_variance / 2) * noise
        y = jax.nn.swish(hk.Linear(48, name="decoder_0")(z))
        apart = (mean**2 + jnp.exp(log_variance) - log_variance - 1).sum(-1) / 2
        return hk.Linear(24, name="decoder_1")(y), apart

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        again, apart = model.apply(p, *batch)
        return jnp.mean((again - batch[0]) ** 2) + weight * apart.mean()

    def parts(p: Any, batch: Any) -> Any:
        return (jnp.mean((model.apply(p, *batch)[0] - batch[0]) ** 2),)

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, 24)), jnp.zeros((2, 6)))

    own = {"kind": "VAE of strokes", "library": "Haiku", "task": strokes, "steps": 400}
    own = own | {"rates": (2e-3, 6e-3)} | rest
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Captions.


@functools.cache
def captions() -> Task:
    """What is seen and what is said of the same thing, twenty and twelve numbers."""
    rng = np.random.default_rng(1222)
    thing = rng.standard_normal((4096, 6))
    seen = np.tanh(thing @ rng.standard_normal((6, 20)) / 2) + 0.1 * rng.standard_normal((4096, 20))
    said = np.abs(thing @ rng.standard_normal((6, 12)) / 2) + 0.1 * rng.standard_normal((4096, 12))
    # Sides by side in sets of 32, among which each is to be found.
    sets = standard(seen).reshape(128, 32, 20), standard(said).reshape(128, 32, 12)
    train, test = parted(*sets)
    return Task(train, test, (float(np.log(32)),))


class Captions(eqx.Module):
    """Two encoders, and the logarithm of what their cosines are multiplied by; as CLIP."""

    seen: eqx.nn.MLP
    said: eqx.nn.MLP
    log_scale: Any

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.seen = eqx.nn.MLP(20, 16, 48, 2, jax.nn.gelu, key=one)
        self.said = eqx.nn.MLP(12, 16, 48, 2, jax.nn.gelu, key=two)
        self.log_scale = jnp.log(1 / 0.07)

    def __call__(self, seen: Any, said: Any) -> Any:
        """Logits of all pairs of a set."""
        one, two = jax.vmap(self.seen)(seen), jax.vmap(self.said)(said)
        one = one / jnp.linalg.norm(one, axis=-1, keepdims=True)
        two = two / jnp.linalg.norm(two, axis=-1, keepdims=True)
        return jnp.exp(self.log_scale) * one @ two.T


def captioned(name: str) -> Network:
    """Which caption is of which picture."""
    init, apply = of_equinox(Captions)

    def loss(p: Any, batch: Any) -> Any:
        logits, right = apply(p, *batch), jnp.arange(32)[None].repeat(len(batch[0]), 0)
        return (cross_entropy(logits, right) + cross_entropy(logits.swapaxes(1, 2), right)) / 2

    own = {"kind": "captions", "library": "Equinox", "task": captions, "steps": 300, "batch": 4}
    return network(name, loss, init, **own, rates=(1e-3, 3e-3))


# Rovers.


@functools.cache
def rovers() -> Task:
    """Eight readings of a rover, which of four ways was best, and what it returned."""
    rng = np.random.default_rng(1223)
    x, mixing = rng.standard_normal((2048, 8)), rng.standard_normal((2, 8, 6)) / 8**0.5
    values = np.tanh(2 * x @ mixing[0]) @ rng.standard_normal((6, 4))
    returned = standard(values.max(1) + 0.5 * np.abs(x[:, 0]) - x[:, 1])
    train, test = parted(x, values.argmax(1).astype(np.int32), returned)
    return Task(train, test, (entropy(test[1]), float(np.var(test[2]))))


def driven(name: str, *, unit: float = 1.0, **rest: Any) -> Network:
    """A policy and a value on one trunk, their losses added."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        trunk = stack(keys[0], (8, 48, 48))
        return {"trunk": trunk, "way": stack(keys[1], (48, 4)), "value": stack(keys[2], (48, 1))}

    def parts(p: Any, batch: Any) -> Any:
        x, way, returned = batch
        h = jnp.tanh(forward(p["trunk"], x))
        error = jnp.mean((forward(p["value"], h)[:, 0] - returned) ** 2)
        return cross_entropy(forward(p["way"], h), way), error / unit**2

    def loss(p: Any, batch: Any) -> Any:
        policy, error = parts(p, batch)
        return policy + 0.5 * unit**2 * error

    own = {"kind": "policy and value on a trunk", "library": "plain", "task": rovers, "steps": 400}
    own = own | {"rates": (2e-3, 6e-3)} | rest
    return Network(name=name, init=init, loss=loss, parts=parts, **own)


# Regimes.


@functools.cache
def regimes() -> Task:
    """Six numbers, of which two say which of four functions of the others is meant."""
    rng = np.random.default_rng(1224)
    x = rng.standard_normal((3072, 6))
    which = 2 * (x[:, 0] > 0) + (x[:, 1] > 0)
    each = np.sin(1.5 * x[:, 2:] @ rng.standard_normal((4, 4)) + np.array([0, 1, 2, 3]))
    y = 2 * each[np.arange(3072), which] + 0.05 * rng.standard_normal(3072)
    train, test = parted(x, standard(y))
    return Task(train, test, (float(np.var(test[1])),))


class Regimes(nn.Module):
    """Four small experts, and a router that weighs them."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """A number of each row."""
        normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal", batch_axis=0)
        zeros = nn.initializers.zeros
        weights = nn.softmax(nn.Dense(EXPERTS, kernel_init=gaussian(1.0), name="router")(x))
        into, outof = (
            self.param("experts_into", normal, (EXPERTS, 6, 8)),
            self.param("experts_out", normal, (EXPERTS, 8, 1)),
        )
        h = jnp.einsum("bi,eih->beh", x, into) + self.param("experts_bias", zeros, (EXPERTS, 8))
        each = jnp.einsum("beh,eho->be", nn.tanh(h), outof)
        return (weights * each).sum(-1) + self.param("bias", zeros, ())


def governed(name: str) -> Network:
    """A function that has four regimes, by four experts."""
    init, apply = of_linen(Regimes(), jnp.zeros((2, 6)))
    own = {"kind": "experts of regimes", "library": "linen", "task": regimes, "steps": 1000}
    return regression(name, init, apply, **own, rates=(6e-3, 2e-2))


# Facts.


@functools.cache
def facts() -> Task:
    """A thing, a relation, another thing or not, and whether the relation holds."""
    rng = np.random.default_rng(1225)
    hidden, turned = rng.standard_normal((THINGS, 4)), rng.standard_normal((RELATIONS, 4))
    score = np.einsum("id,rd,jd->irj", hidden, turned, hidden)
    one, two = rng.integers(0, THINGS, (2, 6144))
    relation = rng.integers(0, RELATIONS, 6144)
    holds = (score[one, relation, two] > 0).astype(np.float64)
    train, test = parted(*(x.astype(np.int32) for x in (one, relation, two)), holds)
    return Task(train, test, (entropy(test[3].astype(int)),))


def known(name: str) -> Network:
    """Whether relations hold by products of three vectors; as DistMult."""

    def init(key: Any) -> Any:
        one, two = jax.random.split(key)
        things = 0.5 * jax.random.normal(one, (THINGS, 16))
        return {"things": things, "relations": 0.5 * jax.random.normal(two, (RELATIONS, 16))}

    def loss(p: Any, batch: Any) -> Any:
        one, relation, two, holds = batch
        logits = (p["things"][one] * p["relations"][relation] * p["things"][two]).sum(-1)
        return optax.sigmoid_binary_cross_entropy(logits, holds).mean()

    own = {"kind": "facts", "library": "plain", "task": facts, "steps": 400, "batch": 128}
    return network(name, loss, init, **own, rates=(1e-2, 3e-2))


# Codes.


@functools.cache
def sparse() -> Task:
    """Twenty mixtures of the few of thirty-two atoms that are there, and how much of each is."""
    rng = np.random.default_rng(1226)
    atoms = rng.standard_normal((ATOMS, MEASURED)) / MEASURED**0.5
    there = rng.uniform(size=(3072, ATOMS)) < 0.08
    codes = there * rng.choice([-1, 1], there.shape) * rng.uniform(1, 2, there.shape)
    x = codes @ atoms + 0.02 * rng.standard_normal((3072, MEASURED))
    size = float(codes.std())
    train, test = parted(x / x.std(), codes / size)
    return Task(train, test, (float(np.mean(test[1] ** 2)),))


def _shrunk(x: Any, least: Any) -> Any:
    return jnp.sign(x) * jax.nn.relu(jnp.abs(x) - least)


class Codes(nn.Module):
    """Six rounds of shrinking whose kernels are learned; as LISTA."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """How much there is of each atom."""
        into = nn.Dense(ATOMS, use_bias=False, name="into")(x)
        code = jnp.zeros_like(into)
        for number in range(ROUNDS):
            least = self.param(f"least_{number}", nn.initializers.constant(0.2), (ATOMS,))
            back = nn.Dense(ATOMS, use_bias=False, kernel_init=gaussian(0.5), name=f"back_{number}")
            code = _shrunk(into + code - back(code), least)
        return code


def coded(name: str) -> Network:
    """Which atoms a mixture is made of, by unrolled rounds."""
    init, apply = of_linen(Codes(), jnp.zeros((2, MEASURED)))
    own = {"kind": "unrolled shrinking", "library": "linen", "task": sparse, "steps": 400}
    return regression(name, init, apply, **own, rates=(2e-3, 6e-3))


# Growths.


@functools.cache
def growths() -> Task:
    """Fields, 5 x 5, with heat in them, and the same after it has spread and been damped."""
    rng = np.random.default_rng(1227)
    x = rng.standard_normal((768, 5, 5))
    y = x
    for _ in range(3):
        around = sum(np.roll(y, way, axis) for way in (-1, 1) for axis in (1, 2)) / 4
        y = 0.4 * y + 0.6 * around + 0.3 * np.tanh(2 * around)
    train, test = parted(x[..., None], standard(y, None)[..., None])
    return Task(train, test, (float(np.var(test[1])),))


def grown(name: str) -> Network:
    """How fields change, by the same small convolutions eight times over; a cellular automaton."""

    class Growths(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            he, zeros = nnx.initializers.he_normal(), nnx.initializers.zeros
            own = {"padding": "CIRCULAR", "rngs": rngs}
            self.look = nnx.Conv(6, 20, (3, 3), kernel_init=he, **own)
            self.change = nnx.Conv(20, 6, (1, 1), kernel_init=zeros, use_bias=False, **own)

        def __call__(self, x: Any) -> Any:
            x = jnp.concatenate([x, jnp.zeros((*x.shape[:-1], 5), x.dtype)], -1)
            for _ in range(GROWN):
                x = x + self.change(nnx.relu(self.look(x)))
            return x[..., :1]

    init, apply = of_nnx(Growths)
    own = {"kind": "cellular automaton", "library": "nnx", "task": growths, "batched": False}
    return regression(name, init, apply, **own, rates=(1e-3, 4e-3))


# Chains.


@functools.cache
def chains() -> Task:
    """Eight numbers of a chain of reactions, and its yield; standardized."""
    rng = np.random.default_rng(1228)
    x = rng.standard_normal((2048, 8))
    y = np.tanh(x[:, 0] * x[:, 1]) + np.sin(1.5 * x[:, 2]) + 0.6 * x[:, 3] - 0.5 * np.abs(x[:, 4])
    train, test = parted(x, standard(y + 0.05 * rng.standard_normal(2048)))
    return Task(train, test, (float(np.var(test[1])),))


def linked(name: str) -> Network:
    """A yield by twenty residual layers that all start at nothing; as ReZero."""

    def init(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        inner = jax.random.normal(two, (LINKS, 2, 32, 32)) * (2 / 32) ** 0.5
        return {
            "first": stack(one, (8, 32)),
            "links": {"w": inner, "alpha": jnp.zeros(LINKS)},
            "last": stack(three, (32, 1)),
        }

    def apply(p: Any, x: Any) -> Any:
        def link(x: Any, one: Any) -> Any:
            w, alpha = one
            return x + alpha * (jax.nn.relu(x @ w[0]) @ w[1]), None

        x = forward(p["first"], x)
        x, _ = jax.lax.scan(link, x, (p["links"]["w"], p["links"]["alpha"]))
        return forward(p["last"], x)[:, 0]

    own = {"kind": "ReZero chain", "library": "plain", "task": chains, "steps": 400}
    return regression(name, init, apply, **own)
