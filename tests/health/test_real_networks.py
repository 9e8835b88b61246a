"""Verdicts on the kinds of network that people train, in small.

The labels were read off training networks of the same kinds at full size, beside a healthy one
each: a network is sick if it stays near what a constant output reaches.
"""

import dataclasses
import functools
import itertools
import re
import zlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.ode import odeint

import vanishjax as vj
from vanishjax import _jaxpr
from vanishjax.health.attention import token_collapse
from vanishjax.health.examination import Examination
from vanishjax.health.rounding import rounding_noise
from vanishjax.report import reached
from vanishjax.report.diagnosis_plot import _scales

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 8))
LABELS = jnp.arange(16) % 4
TOKENS = jax.random.randint(jax.random.key(2), (8, 9), 0, 8)
ADAM = optax.adam(1e-3)


def kernel(*name, shape, scale=1.0):
    """LeCun's, drawn by name."""
    key = functools.reduce(
        jax.random.fold_in, [zlib.crc32(str(part).encode()) for part in name], KEY
    )
    return scale * jax.random.normal(key, shape) / np.sqrt(shape[-2])


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# Chains, one after the other and side by side.


def stack(name, widths, scale=1.0):
    shapes = itertools.pairwise(widths)
    return [kernel(name, i, shape=shape, scale=scale) for i, shape in enumerate(shapes)]


def forward(kernels, x):
    for w in kernels[:-1]:
        x = jnp.tanh(x @ w)
    return x @ kernels[-1]


def chain(scale=0.05, penalty=0.0, depth=8):
    def loss(p, x):
        h = jnp.tanh(x @ p[0])
        return jnp.mean((forward(p[1:], h) - x[:, :1]) ** 2) + penalty * jnp.mean(h**2)

    return loss, stack("chain", [8] + [16] * depth + [1], scale), X


def two_networks():
    def loss(p, x):
        return sum(jnp.mean((forward(p[name], x) - x[:, :1]) ** 2) for name in p)

    deep = stack("deep", [8] + [16] * 8 + [1], 0.05)
    return loss, {"healthy": stack("flat", [8, 16, 1]), "sick": deep}, X


def encoder_decoder(scale):
    def loss(p, x):
        code = jnp.tanh(forward(p["encoder"], x))
        return jnp.mean((forward(p["decoder"], code) - x) ** 2)

    encoder, decoder = [8] + [16] * 4, [16] * 4 + [8]
    params = {"encoder": stack("e", encoder, scale), "decoder": stack("d", decoder, scale)}
    return loss, params, X


def policy_and_value(scale=1.0, depth=1):
    def loss(p, batch):
        x, actions, returns = batch
        value = forward(p["value"], x)[:, 0]
        advantage = jax.lax.stop_gradient(returns - value)
        log_probability = jax.nn.log_softmax(forward(p["policy"], x))
        taken = jnp.take_along_axis(log_probability, actions[:, None], 1)[:, 0]
        return jnp.mean((value - returns) ** 2) - jnp.mean(taken * advantage)

    value = stack("value", [8] + [16] * depth + [1], scale)
    return loss, {"policy": stack("policy", [8, 16, 4]), "value": value}, (X, LABELS, X[:, 0])


def vae():
    def loss(p, x):
        h = jax.nn.relu(x @ p["encoder"])
        mean, log_variance = h @ p["mean"], h @ p["variance"]
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(KEY, mean.shape)
        kl = jnp.mean(mean**2 + jnp.exp(log_variance) - log_variance - 1)
        return jnp.mean((jax.nn.relu(z @ p["up"]) @ p["out"] - x) ** 2) + 0.1 * kl

    shapes = {"encoder": (8, 16), "mean": (16, 4), "variance": (16, 4), "up": (4, 16)}
    shapes["out"] = (16, 8)
    return loss, {name: kernel(name, shape=shape) for name, shape in shapes.items()}, X


# Transformers.


class Block(nn.Module):
    norm: str = "pre"
    skip: bool = True
    gain: float | None = None
    gated: bool = False
    causal: bool = True
    dead: bool = False
    mlp: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        attention = nn.MultiHeadDotProductAttention(2)
        bias = nn.initializers.constant(-50.0 if self.dead else 0.0)

        def mlp(y):
            h = nn.Dense(32, bias_init=bias)(y)
            return nn.Dense(16)(nn.silu(h) * nn.Dense(32)(y) if self.gated else nn.relu(h))

        branches = (lambda y: attention(y, y, mask=mask), mlp)
        for number, branch in enumerate(branches[: 1 + self.mlp]):
            y = branch(nn.LayerNorm()(x) if self.norm == "pre" else x)
            if self.gain is not None:
                y *= self.param(f"gain_{number}", nn.initializers.constant(self.gain), (16,))
            x = x + y if self.skip else y
            x = nn.LayerNorm()(x) if self.norm == "post" else x
        return x, None


class Transformer(nn.Module):
    depth: int = 2
    scanned: bool = False
    settings: tuple = ()

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(8, 16)(tokens)
        x += self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        settings = dict(self.settings)
        if self.scanned:
            axes = {"params": 0}, {"params": True}
            blocks = nn.scan(Block, variable_axes=axes[0], split_rngs=axes[1], length=self.depth)
            x, _ = blocks(**settings)(x, None)
        else:
            for number in range(self.depth):
                dead = settings.get("dead", False) and number == 0
                x, _ = Block(**settings | {"dead": dead})(x)
        return nn.Dense(8, name="head")(nn.LayerNorm()(x))


@functools.cache
def transformer(depth=2, *, scanned=False, **settings):
    module = Transformer(depth, scanned, tuple(settings.items()))

    def loss(p, tokens):
        return cross_entropy(module.apply({"params": p}, tokens[:, :-1]), tokens[:, 1:])

    return loss, module.init(KEY, TOKENS[:, :-1])["params"], TOKENS


def scaled(network, factor, *parts):
    """Some of its parameters times a factor."""
    loss, params, batch = network
    changed = jax.tree_util.tree_map_with_path(
        lambda path, x: factor * x if any(p in str(path) for p in parts) else x, params
    )
    return loss, changed, batch


def bert():
    module = Transformer(2, settings=(("norm", "post"), ("causal", False)))
    hidden = jax.random.bernoulli(KEY, 0.3, TOKENS.shape)

    def loss(p, batch):
        tokens, hidden = batch
        logits = module.apply({"params": p}, jnp.where(hidden, 0, tokens))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.sum(each * hidden) / jnp.sum(hidden)

    return loss, module.init(KEY, TOKENS)["params"], (TOKENS, hidden)


class ViT(nn.Module):
    depth: int = 2
    skip: bool = True

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(16, (2, 2), (2, 2))(images)
        x = x.reshape(x.shape[0], -1, 16)
        token = self.param("class", nn.initializers.normal(0.02), (1, 1, 16))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 16)), x], 1)
        axes = {"params": 0}, {"params": True}
        blocks = nn.scan(Block, variable_axes=axes[0], split_rngs=axes[1], length=self.depth)
        x, _ = blocks(skip=self.skip, causal=False)(x, None)
        return nn.Dense(4)(nn.LayerNorm()(x[:, 0]))


# Convolutions.


class ConvNet(nn.Module):
    bias: float = 0.0
    dropout: float = 0.0
    first_gain: float = 1.0
    last_gain: float = 1.0
    residual: bool = False
    blocks: int = 1

    @nn.compact
    def __call__(self, x):
        def norm(**settings):
            return nn.BatchNorm(use_running_average=False, **settings)

        x = nn.relu(norm(bias_init=nn.initializers.constant(self.bias))(nn.Conv(8, (3, 3))(x)))
        x = nn.Dropout(self.dropout, deterministic=False)(nn.Conv(8, (3, 3))(x))
        x = nn.relu(x + self.bias)
        first, last = map(nn.initializers.constant, (self.first_gain, self.last_gain))
        for _ in range(self.blocks if self.residual else 0):
            y = nn.relu(norm(scale_init=first)(nn.Conv(8, (3, 3))(x)))
            x = nn.relu(x + norm(scale_init=last)(nn.Conv(8, (3, 3))(y)))
        return nn.Dense(4)(x.mean((1, 2)))


def images(module):
    batch = jax.random.normal(KEY, (16, 6, 6, 3)), LABELS
    variables = module.init({"params": KEY, "dropout": KEY}, batch[0])

    def loss(p, batch):
        logits, _ = module.apply(
            variables | {"params": p}, batch[0], mutable=["batch_stats"], rngs={"dropout": KEY}
        )
        return cross_entropy(logits, batch[1])

    return loss, variables["params"], batch


# Time.


def recurrent(*, carry, steps=200):
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            last, outputs = nn.RNN(nn.SimpleCell(8), return_carry=True)(x)
            return nn.Dense(1)(jax.tree.leaves(last)[-1] if carry else outputs[:, -1])

    module = Recurrent()
    x = jax.random.normal(KEY, (8, steps, 2))

    def loss(p, x):
        return jnp.mean((module.apply(p, x)[:, 0] - x[:, :5].sum((1, 2))) ** 2)

    return loss, module.init(KEY, x), x


def gated_loss(p, x):
    """Of a cell with one kernel for all its gates, split afterwards."""

    def step(h, x):
        reset, update, new = jnp.split(x @ p["x"] + h @ p["h"], 3, axis=-1)
        new = jnp.tanh(new + jax.nn.sigmoid(reset) * h)
        update = jax.nn.sigmoid(update)
        return update * h + (1 - update) * new, None

    last, _ = jax.lax.scan(step, jnp.zeros((8, 16)), x.swapaxes(0, 1))
    return jnp.mean((last @ p["out"] - x[:, :5].sum((1, 2))[:, None]) ** 2)


def gated(scale=1.0):
    shapes = {"x": (2, 48), "h": (16, 48)}
    params = {name: kernel(name, shape=shape, scale=scale) for name, shape in shapes.items()}
    x = jax.random.normal(KEY, (8, 12, 2))
    return gated_loss, params | {"out": kernel("last", shape=(16, 1))}, x


# Derivatives inside the loss, and what can't be looked into.


def small(*names):
    shapes = {"a": (8, 16), "b": (8, 16), "h": (16, 16), "c": (16, 1), "o": (16, 8)}
    return {n: kernel(n, shape=shapes[n]) if n in shapes else jnp.zeros(16) for n in names}


def bilinear():
    def loss(p, x):
        return jnp.mean(((jnp.tanh(x @ p["a"] + p["bias"]) * (x @ p["b"])) @ p["c"]) ** 2)

    return loss, small("a", "b", "c", "bias"), X


def pinn():
    def loss(p, points):
        def u(x, t):
            h = jnp.tanh(jnp.stack([x, t]) @ p["a"] + p["bias"])
            return (jnp.tanh(h @ p["h"] + p["bias"]) @ p["c"])[0]

        def residual(point):
            x, t = point
            u_xx = jax.jvp(lambda y: jax.jvp(lambda v: u(v, t), (y,), (1.0,))[1], (x,), (1.0,))[1]
            return jax.grad(u, 1)(x, t) - 0.1 * u_xx - jnp.sin(x)

        return jnp.mean(jax.vmap(residual)(points) ** 2)

    return loss, small("h", "c", "bias") | {"a": kernel("pinn", shape=(2, 16))}, X[:, :2]


def score_matching():
    def loss(p, x):
        def score(z):
            return jnp.tanh(z @ p["a"] + p["bias"]) @ p["o"]

        def one(z, v):
            s, change = jax.jvp(score, (z,), (v,))
            return v @ change + 0.5 * jnp.sum(s**2)

        return jnp.mean(jax.vmap(one)(x, x[::-1]))

    return loss, small("a", "o", "bias"), X


def ode(scale=1.0):
    def loss(p, x):
        def slope(y, t, p):
            return jnp.tanh(y @ p["a"] + p["bias"]) @ p["o"]

        end = odeint(slope, x @ p["in"], jnp.array([0.0, 1.0]), p)[-1]
        return jnp.mean((end @ p["out"] - x) ** 2)

    ends = {"in": kernel("in", shape=(8, 8)), "out": kernel("out", shape=(8, 8))}
    return loss, small("a", "o", "bias") | ends, X


@functools.partial(jax.custom_vjp)
def fixed_point(w, x):
    return jax.lax.fori_loop(0, 30, lambda _, z: jnp.tanh(z @ w + x), jnp.zeros_like(x))


def _fixed_point_forward(w, x):
    z = fixed_point(w, x)
    return z, (w, x, z)


def _fixed_point_backward(residual, cotangent):
    w, x, z = residual
    _, pull_back = jax.vjp(lambda w, x, z: jnp.tanh(z @ w + x), w, x, z)
    u = jax.lax.fori_loop(0, 30, lambda _, u: cotangent + pull_back(u)[2], cotangent)
    return pull_back(u)[:2]


fixed_point.defvjp(_fixed_point_forward, _fixed_point_backward)


def equilibrium_loss(p, x):
    return jnp.mean((fixed_point(p["h"], 0.1 * x @ p["a"]) @ p["o"] - x) ** 2)


def equilibrium(scale=0.5):
    params = small("a", "h", "o")
    return equilibrium_loss, params | {"h": scale * params["h"]}, X


def only_hidden():
    return (lambda p, x: jnp.mean(fixed_point(p, x) ** 2)), 0.1 * jnp.eye(8), X


def judged(layers, x, activation):
    for w, bias in layers:
        x = activation(x @ w + bias)
    return jnp.mean(jnp.log1p(jnp.exp(-x @ jnp.ones(16))))


def passed_loss(p, batch):
    z, layers = batch
    return judged(layers, jnp.tanh(z @ p["h"]) @ p["o"], jax.nn.relu)


def generator(*, depth=2, bias=0.0, activation=jnp.tanh, passed=False):
    """A generator that learns through a discriminator that isn't trained."""
    shapes = [(8, 16), *[(16, 16)] * depth]
    layers = [
        (kernel("discriminator", i, shape=shape), jnp.full(16, bias))
        for i, shape in enumerate(shapes)
    ]

    def loss(p, z):
        return judged(layers, jnp.tanh(z @ p["h"]) @ p["o"], activation)

    params = {"h": kernel("h", shape=(8, 16)), "o": kernel("o", shape=(16, 8))}
    return (passed_loss, params, (X, layers)) if passed else (loss, params, X)


def imitation(*, weight=1.0):
    """A generator judged by what a frozen network, among the parameters, makes of its images."""

    def judged(kernels, x):
        for w in kernels:
            x = jnp.tanh(x @ (weight * w))
        return x

    def loss(p, x):
        frozen = jax.lax.stop_gradient(p["frozen"])
        made = jnp.tanh(x @ p["h"]) @ p["o"]
        return jnp.mean((judged(frozen, made) - judged(frozen, x)) ** 2)

    frozen = [kernel("judge", i, shape=(8, 8)) for i in range(2)]
    return (
        loss,
        {"frozen": frozen, "h": kernel("h", shape=(8, 16)), "o": kernel("o", shape=(16, 8))},
        X,
    )


def saturated_judge():
    """The same, its kernels closed over and so large that its units are flat."""
    loss, params, x = imitation(weight=300.0)
    frozen = params.pop("frozen")
    return (lambda p, x: loss(p | {"frozen": frozen}, x)), params, x


def directions():
    """Classes by the direction of features that start at zero."""

    def loss(p, batch):
        h = jnp.tanh(batch[0] @ p["h"]) @ p["zero"] + p["bias"]
        h /= jnp.sqrt(jnp.sum(h**2, -1, keepdims=True) + 1e-4)
        return cross_entropy(4 * h @ p["classes"], batch[1])

    zero = {"zero": jnp.zeros((16, 8)), "bias": jnp.zeros(8)}
    drawn = {"h": kernel("h", shape=(8, 16)), "classes": kernel("classes", shape=(8, 4))}
    return loss, zero | drawn, (X, LABELS)


def graph(depth):
    """Each node's label, from means over neighbors on a ring."""
    ring = (np.eye(6) + np.roll(np.eye(6), 1, 1) + np.roll(np.eye(6), -1, 1)) / 3
    x = jax.random.normal(KEY, (8, 6, 8))

    def loss(p, batch):
        x, matrix, labels = batch
        for w in p[:-1]:
            x = jax.nn.relu(matrix @ x @ w)
        return cross_entropy(x @ p[-1], labels)

    kernels = stack("graph", [8] + [16] * depth + [3], 2**0.5)
    return loss, kernels, (x, jnp.asarray(ring, jnp.float32), jnp.argmax(x[..., :3], -1))


def residual_loss(p, batch):
    x, labels = batch
    x = x @ p["in"]
    for up, bias, down in p["blocks"]:
        x = x + jax.nn.relu(x @ up + bias) @ down
    return cross_entropy(x @ p["out"], labels)


def residual(*dead):
    """Blocks with skips, of which some have all their units off."""
    shape = (16, 16)
    blocks = [
        (
            kernel("r", i, 0, shape=shape),
            jnp.full(16, -50.0 * (i in dead)),
            kernel("r", i, 1, shape=shape),
        )
        for i in range(2)
    ]
    ends = {"in": kernel("in", shape=(8, 16)), "out": kernel("out", shape=(16, 4))}
    return residual_loss, ends | {"blocks": blocks}, (X, LABELS)


BASE = {"h": kernel("base", shape=(8, 16)), "o": kernel("end", shape=(16, 4))}


def adapted_loss(p, batch):
    w = {name: BASE[name] + p[name]["a"] @ p[name]["b"] for name in p}
    h = jnp.tanh(batch[0] @ w.get("h", BASE["h"]))
    return cross_entropy(h @ w["o"], batch[1])


def adapted(zeros="b", *, hidden=True):
    """Low-rank changes of kernels that aren't trained (LoRA), some of their factors zeros."""

    def factors(name):
        n, m = BASE[name].shape
        drawn = {"a": kernel(name, "a", shape=(n, 4)), "b": kernel(name, "b", shape=(4, m))}
        return {key: 0 * w if key in zeros else w for key, w in drawn.items()}

    names = ("h", "o") if hidden else ("o",)
    return adapted_loss, {name: factors(name) for name in names}, (X, LABELS)


def rectified(p, x):
    return jax.nn.relu(x @ p[0]) @ p[1]


def classified(p, batch):
    return cross_entropy(rectified(p, batch[0]), batch[1])


def squares(p, batch):
    return jnp.mean((rectified(p, batch[0]) - jax.nn.one_hot(batch[1], 4)) ** 2)


def loud(factor, loss=classified):
    """A classifier of inputs in units too small for them, or a regression on such."""
    params = [kernel("loud", 0, shape=(8, 32)), kernel("loud", 1, shape=(32, 4))]
    return loss, params, (factor * X, LABELS)


def faint_loss(p, batch):
    x = batch[0]
    for name in ("h", "i", "o"):
        x = x @ p[name]["w"] + p[name]["b"]
        x = x if name == "o" else jnp.tanh(x)
    return cross_entropy(x, batch[1])


def faint(factor):
    """A classifier of inputs in units far too large for them."""
    params = {
        name: {"w": kernel(name, shape=shape), "b": jnp.zeros(shape[1])}
        for name, shape in (("h", (8, 16)), ("i", (16, 16)), ("o", (16, 4)))
    }
    return faint_loss, params, (factor * X, LABELS), ADAM


def contrast_loss(p, x):
    ends = [jnp.tanh(half @ w) for half, w in zip(jnp.split(x, 2, 1), p["w"], strict=True)]
    a, b = (y / jnp.linalg.norm(y, axis=1, keepdims=True) for y in ends)
    return cross_entropy(jnp.exp(p["heat"]) * a @ b.T, jnp.arange(len(x)))


def contrast(heat):
    """Pairs told apart by the angle of their encodings, times a temperature's inverse."""
    w = [kernel("pair", i, shape=(4, 16)) for i in range(2)]
    return contrast_loss, {"w": w, "heat": jnp.array(float(heat))}, X


# What it is called, and the rule that says why it doesn't train; None where it does. Those of one
# loss stand side by side, for which it is compiled once.
NETWORKS = {
    "adapters": (adapted, None),
    "adapters, the other factor": (lambda: adapted("a"), None),
    "adapters of zeros": (lambda: adapted("ab"), "zero_gradient"),
    "adapters of the last layer": (lambda: adapted(hidden=False), None),
    "raw inputs": (lambda: loud(20.0), None),
    "loud inputs": (lambda: loud(1000.0), "bad_start"),
    "raw inputs, squares": (lambda: loud(4.0, squares), None),
    "loud inputs, squares": (lambda: loud(200.0, squares), "bad_start"),
    "contrast": (lambda: contrast(2.0), None),
    "hot contrast": (lambda: contrast(8.0), "bad_start"),
    "inputs of .1": (lambda: faint(0.1), None),
    "faint inputs": (lambda: faint(1e-5), "mean_collapse"),
    "one of two blocks dead": (lambda: residual(0), None),
    "both blocks dead": (lambda: residual(0, 1), "dead_units"),
    "generator": (generator, None),
    "dead discriminator": (lambda: generator(activation=jax.nn.relu, bias=-50.0), "zero_gradient"),
    "generator, discriminator in the batch": (lambda: generator(passed=True), None),
    "dead discriminator in the batch": (
        lambda: generator(bias=-50.0, passed=True),
        "zero_gradient",
    ),
    "deep discriminator": (
        lambda: generator(depth=14, activation=jax.nn.sigmoid),
        "vanishing_gradient",
    ),
    "imitation": (imitation, None),
    "saturated judge": (saturated_judge, "saturated_units"),
    "directions": (directions, None),
    "graph": (lambda: graph(2), None),
    "deep graph": (lambda: graph(12), "token_collapse"),
    "encoder and decoder": (lambda: encoder_decoder(1.0), None),
    "penalized chain": (lambda: chain(penalty=1e-6), "vanishing_gradient"),
    "two networks": (two_networks, "vanishing_gradient"),
    "value network": (lambda: policy_and_value(0.05, 8), "vanishing_gradient"),
    "vae": (vae, None),
    "pre-LN, 12 layers": (lambda: transformer(12, scanned=True), None),
    "embedding": (
        lambda: scaled(transformer(12, scanned=True), 1e-6, "embedding", "position"),
        "exploding_gradient",
    ),
    "no skips": (lambda: transformer(16, scanned=True, skip=False), "token_collapse"),
    "attention alone": (
        lambda: transformer(6, scanned=True, skip=False, norm="none", mlp=False),
        "token_collapse",
    ),
    "queries and keys": (
        lambda: scaled(transformer(1), 40, "query", "key'"),
        "saturated_attention",
    ),
    "logits": (lambda: scaled(transformer(1), 100, "head"), "bad_start"),
    "ReZero": (lambda: transformer(1, norm="none", gain=0.0), None),
    "LayerScale": (lambda: transformer(1, gain=1e-8), None),
    "dead block beside a skip": (lambda: transformer(2, dead=True), None),
    "BERT": (bert, None),
    "ViT without skips": (lambda: images(ViT(12, skip=False)), None),
    "ResNet of zero gains": (lambda: images(ConvNet(residual=True, last_gain=0.0)), None),
    "ResNet of gains that stay 0": (
        lambda: images(ConvNet(residual=True, first_gain=0.0, last_gain=0.0, blocks=2)),
        "zero_gradient",
    ),
    "BatchNorm and dropout": (lambda: images(ConvNet(bias=-50.0, dropout=0.1)), "dead_units"),
    "gates of one kernel": (gated, None),
    "gates of one kernel, flat": (lambda: gated(300.0), "saturated_units"),
    "RNN, last output": (lambda: recurrent(carry=False), None),
    "RNN, carry": (lambda: recurrent(carry=True), None),
    "bilinear": (bilinear, None),
    "PINN": (pinn, None),
    "score matching": (score_matching, None),
    "neural ODE": (ode, None),
    "equilibrium": (equilibrium, None),
    "diverging equilibrium": (lambda: equilibrium(6.0), "exploding_gradient"),
}


@functools.cache
def diagnosed(name):
    make, _ = NETWORKS[name]
    return vj.diagnose(*make())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_verdict_is_that_of_training_and_the_rule_says_why(name):
    found, (_, rule) = diagnosed(name), NETWORKS[name]
    assert found.verdict == ("sick" if rule else "healthy"), str(found)
    if rule:
        assert rule in {one.rule for one in found.findings if one.severity == "critical"}
    else:
        assert all(one.severity == "note" for one in found.findings), str(found)


def test_where_positions_and_inputs_are_alike_what_is_pooled_is_lost():
    """As in ViTs of 8 and 10 layers without skips; one that has learned is left in peace."""
    probe = diagnosed("ViT without skips").probe
    layers = len(probe.centered_energy)

    def severity(share, loss):
        alike = np.full(layers, share)
        changed = dataclasses.replace(probe, centered_energy=alike, loss=loss)
        return token_collapse(Examination(changed)).severity

    assert severity(0.1, probe.loss) == "note"
    assert severity(0.025, probe.loss) == "critical"
    assert severity(1e-3, probe.loss) == "critical"
    assert severity(1e-3, 0.1 * probe.constant_loss) == "note"


def finding(name, rule):
    (found,) = [one for one in diagnosed(name).findings if one.rule == rule]
    return found


def test_what_starves_is_named_and_what_is_fed_is_not():
    sick = finding("two networks", "vanishing_gradient")
    assert all(name.startswith("sick/") for name in sick.layers)
    value = finding("value network", "vanishing_gradient")
    assert all(name.startswith("value/") for name in value.layers)
    penalized = finding("penalized chain", "vanishing_gradient")
    assert "1" in penalized.layers
    assert set(finding("logits", "bad_start").layers) == {"head/kernel"}
    embedding = finding("embedding", "exploding_gradient")
    assert "what Embed_0/embedding puts out" in embedding.cause
    attention = finding("queries and keys", "saturated_attention")
    assert all("query" in name or "key" in name for name in attention.layers)


def test_what_is_said_of_a_branch_is_measured_in_it():
    """Each layer of the sick network keeps a part of what comes, whatever the other one does."""
    found = finding("two networks", "vanishing_gradient")
    probe = diagnosed("two networks").probe
    own = [i for i, one in enumerate(probe.names) if one.startswith("sick/")]
    kept = np.exp(found.evidence["reach"] / (len(own) - 1))
    assert found.evidence["chi"] == pytest.approx(kept, rel=0.1), str(found)
    assert "sum_log_chi" not in found.evidence
    shown = reached.decades(probe.to_dict())[own[0]]
    assert shown == pytest.approx(probe.reach[own[0]] / 2 / np.log(10), rel=1e-6)
    assert f" {shown:.1f} " in str(diagnosed("two networks"))


def test_a_router_that_has_decided_is_a_warning():
    """What it chooses trains: beside attention, which can't look elsewhere, a lesser thing."""
    keys = jax.random.split(KEY, 5)
    x = jax.random.normal(keys[0], (64, 16))
    batch = x, jnp.argmax(x[:, :5], axis=1)

    def loss(p, batch):
        scores = batch[0] @ p["router"]
        gates = jax.nn.one_hot(scores.argmax(-1), 4) * jax.nn.softmax(scores)
        each = jax.nn.relu(jnp.einsum("bi,eio->beo", batch[0], p["experts"]))
        return cross_entropy(jnp.einsum("be,beo->bo", gates, each) @ p["head"], batch[1])

    params = {
        "router": 30 * jax.random.normal(keys[1], (16, 4)) / 4,
        "experts": jax.random.normal(keys[2], (4, 16, 32)) / 4,
        "head": jax.random.normal(keys[3], (32, 5)) / 6,
    }
    found = vj.diagnose(loss, params, batch, optax.adam(1e-3))
    assert found.verdict == "healthy", str(found)
    (one,) = [one for one in found.findings if one.rule == "saturated_attention"]
    assert (one.severity, one.layers) == ("warning", ("router",))
    assert not found.probe.softmaxes


def test_logits_a_hundred_times_too_large_are_told_where_a_factor_makes_them_so():
    """Of a cross-entropy that starts at 65 times a guess's, and closes .15 in 300 steps."""
    x = jax.random.normal(KEY, (64, 8))
    labels = jnp.argmax(x @ jax.random.normal(jax.random.key(3), (8, 8)), axis=1)
    params = {"up": kernel("up", shape=(8, 32)), "head": kernel("head", shape=(32, 8))}

    def verdict(factor):
        def loss(p, batch):
            return cross_entropy(factor * (jnp.tanh(batch[0] @ p["up"]) @ p["head"]), batch[1])

        return vj.diagnose(loss, params, (x, labels), ADAM)

    assert verdict(1.0).healthy
    found = verdict(160.0)
    assert 50 < found.probe.loss / found.probe.constant_loss < 100
    assert [one.rule for one in found.findings if one.severity == "critical"] == ["bad_start"]


def test_what_a_path_leads_past_is_a_note_that_says_so():
    dead = finding("dead block beside a skip", "dead_units")
    assert dead.layers == ("Block_0/Dense_0/kernel",)
    assert "trains past them" in dead.cause
    scaled = finding("LayerScale", "vanishing_gradient")
    assert "trains past them" in scaled.cause
    for name in ("ReZero", "ResNet of zero gains"):
        cause = finding(name, "zero_gradient").cause
        assert "will let go" in cause
        assert "never" not in cause
    stays = finding("ResNet of gains that stay 0", "zero_gradient").cause
    assert stays.startswith("BatchNorm_1/scale is 0")
    assert "neither ever moves" in stays


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("dead discriminator", "3 of 4"),
        ("dead discriminator in the batch", "3 of 4"),
        ("deep discriminator", r"\d+ of 16"),
    ],
)
def test_a_frozen_network_that_keeps_the_gradient_is_named_by_its_line(name, product):
    found = finding(name, NETWORKS[name][1])
    assert found.layers == ("h", "o")
    assert "A frozen network" in found.cause
    assert re.search(f"behind product {product}", found.cause)
    assert Path(found.where.file).name == Path(__file__).name
    source = Path(__file__).read_text().splitlines()
    assert "activation(x @ w + bias)" in source[found.where.line - 1]


def test_a_frozen_network_that_is_saturated_is_named_by_its_line():
    found = finding("saturated judge", "saturated_units")
    assert found.layers == ("o",)
    source = Path(__file__).read_text().splitlines()
    assert "x @ (weight * w)" in source[found.where.line - 1]


def test_a_rate_makes_up_for_a_gradient_that_is_small_in_every_kernel():
    """The mean place by a softmax over 64 of them, each of which gets little."""
    places, batch = jnp.linspace(-1.0, 1.0, 64), (X, jnp.tanh(X[:, 0]))

    def loss(p, batch):
        weights = jax.nn.softmax(jnp.tanh(batch[0] @ p["h"]) @ p["map"])
        return jnp.mean((weights @ places - batch[1]) ** 2)

    params = {"h": kernel("h", shape=(8, 32)), "map": 0.3 * kernel("map", shape=(32, 64))}

    @jax.jit
    def train(rate):
        tx = optax.sgd(rate, momentum=0.9)

        def step(carry, _):
            value, gradient = jax.value_and_grad(loss)(carry[0], batch)
            updates, state = tx.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=200)[1]

    for rate, trains in ((0.003, False), (0.1, True), (3.0, True)):
        losses = train(rate)
        assert (losses[-1] < 0.1 * losses[0]) == trains
        found = vj.diagnose(loss, params, batch, optax.sgd(rate, momentum=0.9))
        assert found.verdict == ("healthy" if trains else "sick"), str(found)


def test_memory_is_no_illness():
    for name in ("RNN, last output", "RNN, carry"):
        assert diagnosed(name).probe.memory
        note = finding(name, "memory")
        assert "time step" in note.cause
        assert 0 < note.evidence["memory"] < 200


def test_a_memory_so_short_that_nothing_is_left_at_the_first_step_is_told():
    """Behind forty steps of a small recurrent kernel the gradient is exactly 0."""

    def loss(p, x):
        last, _ = jax.lax.scan(
            lambda h, u: (jax.nn.relu(u @ p["x"] + h @ p["h"]), None), jnp.zeros((8, 16)), x
        )
        return jnp.mean((last @ p["out"]) ** 2)

    params = {"x": kernel("x", shape=(2, 16)), "out": kernel("out", shape=(16, 1))}
    params["h"] = 0.01 * kernel("h", shape=(16, 16))
    told = []
    for steps in (5, 40):
        x = jax.random.normal(KEY, (steps, 8, 2))
        found = vj.diagnose(loss, params, x)
        nats, count = {name: rest for name, *rest in found.probe.memory}["h"]
        assert count == steps
        told.append(nats)
    assert told[1] == pytest.approx(told[0], rel=0.2)
    assert "long_memory" in found.findings[0].remedy_ids, str(found)


def in_time(form, cell, scale, steps=40):
    """One recurrent layer, written out or scanned: the same function."""

    def loss(params, x):
        h, rows = jnp.zeros((16, 32)), x.swapaxes(0, 1)
        if form == "scanned":
            h, _ = jax.lax.scan(
                lambda h, u: (cell(u @ params["in"] + h @ params["time"]), None), h, rows
            )
        else:
            for u in rows:
                h = cell(u @ params["in"] + h @ params["time"])
        return jnp.mean((h @ params["out"] - x[:, 3, :1]) ** 2)

    params = {
        "in": kernel("in", shape=(2, 32)),
        "time": kernel("time", shape=(32, 32), scale=scale),
        "out": kernel("out", shape=(32, 1)),
    }
    return loss, params, jax.random.normal(KEY, (16, steps, 2)), ADAM


def test_a_loop_that_is_written_out_is_told_in_time_steps_too():
    told = {}
    for form in ("scanned", "written out"):
        found = vj.diagnose(*in_time(form, jnp.tanh, 0.7))
        assert found.healthy
        (note,) = found.findings
        assert (note.rule, note.severity) == ("memory", "note")
        assert set(note.layers) == {"in", "time"}
        assert "orthogonal_cell" in note.remedy_ids
        # It sets the cells of loops alone.
        assert ("long_memory" in note.remedy_ids) == (form == "scanned")
        told[form] = note.cause
    assert told["scanned"] == told["written out"]


def test_what_cannot_be_looked_into_and_multiplies_the_gradient_is_named():
    found = finding("diverging equilibrium", "exploding_gradient")
    assert found.layers == ("h",)
    assert found.cause.startswith("Behind a the gradient's energy grows")
    assert "way back, diverges" in found.cause
    assert Path(found.where.file).name == Path(__file__).name
    assert found.remedy_ids[0] == "contract"
    assert diagnosed("equilibrium").probe.opaque[0].kernels == ("h",)


@jax.custom_vjp
def nearly_deaf(x):
    return x + x.sum(1, keepdims=True)


nearly_deaf.defvjp(lambda x: (nearly_deaf(x), None), lambda _, cotangent: (1e-12 * cotangent,))


def test_what_cannot_be_looked_into_and_loses_the_gradient_is_named():
    params = {name: kernel(name, shape=(8, 8)) for name in ("a", "b", "c")}

    def loss(p, x):
        return jnp.mean((nearly_deaf(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"] - x) ** 2)

    (found,) = [one for one in vj.diagnose(loss, params, X).findings if one.severity == "critical"]
    assert found.rule == "vanishing_gradient"
    assert found.layers == ("a", "b")
    assert "behind b, in what can't be looked into" in found.cause
    assert Path(found.where.file).name == Path(__file__).name
    assert found.remedy_ids == ("derivative",)


def test_kernels_side_by_side_and_tables_used_twice_are_no_time_steps():
    towers = (X, jnp.roll(X, 1, 0), jnp.roll(X, 2, 0))
    params = {"a": kernel("a", shape=(8, 8)), "b": kernel("b", shape=(8, 8))}

    def side_by_side(params, x):
        return sum(jnp.mean(jnp.tanh(one @ params["a"]) @ params["b"] * x) for one in towers)

    def twice(params, x):
        return jnp.mean((jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["a"]) ** 2)

    for loss in (side_by_side, twice):
        assert vj.diagnose(loss, params, X).probe.memory == ()


@pytest.mark.parametrize("form", ["scanned", "written out"])
def test_what_grows_in_time_is_told_in_time_steps(form):
    found = vj.diagnose(*in_time(form, jax.nn.relu, 3.0, steps=30))
    (grows,) = [one for one in found.findings if one.rule == "exploding_gradient"]
    assert grows.severity == "critical"
    assert grows.cause.startswith("Every time step multiplies")
    assert "30 steps" in grows.cause
    assert ("long_memory" in grows.remedy_ids) == (form == "scanned")
    assert "orthogonal_cell" in grows.remedy_ids


def stacked_cells(small):
    """Three recurrent layers; of the second one the input kernel times `small`."""

    def loss(params, x):
        h = x.swapaxes(0, 1)
        for cell in params["cells"]:
            h = jax.lax.scan(
                lambda h, u, cell=cell: (jnp.tanh(u @ cell["in"] + h @ cell["time"]),) * 2,
                jnp.zeros((16, 32)),
                h,
            )[1]
        return jnp.mean((h[-1] @ params["out"] - x[:, 3, :1]) ** 2)

    sizes = (4, 32, 32)
    cells = [
        {
            "in": kernel("in", i, shape=(size, 32), scale=small if i == 1 else 1.0),
            "time": kernel("time", i, shape=(32, 32), scale=0.9),
        }
        for i, size in enumerate(sizes)
    ]
    params = {"cells": cells, "out": kernel("out", shape=(32, 1))}
    return loss, params, 2 * jax.random.normal(KEY, (16, 30, 4)), ADAM


def test_a_gradient_lost_between_recurrent_layers_is_not_lost_in_time():
    assert vj.diagnose(*stacked_cells(1.0)).healthy
    # With Adam, which brings the kernel back in a few steps, it is a note, and names it too.
    noted = vj.diagnose(*stacked_cells(1e-8))
    assert noted.verdict == "healthy", str(noted)
    (note,) = [one for one in noted.findings if one.rule == "vanishing_gradient"]
    assert "cells/1/in is nearly 0 and holds them back for now" in note.cause
    loss, params, batch, _ = stacked_cells(1e-8)
    found, *_ = [
        one for one in vj.diagnose(loss, params, batch).findings if one.severity == "critical"
    ]
    assert found.rule == "vanishing_gradient"
    assert "and cells/1/in; the weights' gain" in found.cause
    assert found.evidence["weight_gain"] < 1e-12 < found.evidence["slope_square"]
    assert found.remedy_ids[0] == "unit_kernels"
    assert not {"long_memory", "orthogonal_cell", "gates"} & set(found.remedy_ids)


def test_a_start_that_is_too_loud_says_what_to_turn_down():
    hot = finding("hot contrast", "bad_start")
    assert hot.remedy_ids == ("cooler",)
    assert hot.evidence["loss_ratio"] > 100
    assert finding("loud inputs", "bad_start").remedy_ids[0] == "standardize"
    assert finding("logits", "bad_start").remedy_ids[0] == "small_output"
    assert finding("faint inputs", "mean_collapse").remedy_ids[0] == "standardize"


def test_a_gradient_of_rounding_noise_is_no_optimizers_fault():
    parameters = diagnosed("BERT").probe.parameters
    noise = np.array(parameters.layers.names)[
        rounding_noise(parameters.layers.names, parameters.rms)
    ]
    assert sorted(noise) == [f"Block_{i}/MultiHeadDotProductAttention_0/key/bias" for i in (0, 1)]


def test_what_cannot_be_measured_is_unknown():
    found = vj.diagnose(*only_hidden())
    assert (found.verdict, found.healthy) == ("unknown", False)
    assert [(one.rule, one.severity) for one in found.findings] == [("unmeasured", "warning")]
    assert str(found).startswith("Unknown")
    assert found.to_dict()["verdict"] == "unknown"
    with pytest.raises(ValueError, match="params holds no arrays"):
        vj.diagnose(lambda p, x: jnp.mean(x), {}, X)


@functools.cache
def solved_loss(activation):
    def slope(y, t, p):
        for layer in p[:-1]:
            y = activation(y @ layer["w"] + layer["b"])
        return y @ p[-1]["w"] + p[-1]["b"]

    def loss(p, x):
        return jnp.mean((odeint(slope, x, jnp.array([0.0, 1.0]), p)[-1] - jnp.roll(x, 1, 1)) ** 2)

    return loss


def solved(depth, activation, scale=1.0):
    """A differential equation whose every kernel is inside the solver."""
    shapes = [(8, 16), *[(16, 16)] * (depth - 1), (16, 8)]
    params = [
        {"w": scale * kernel("solved", i, shape=shape), "b": jnp.zeros(shape[1])}
        for i, shape in enumerate(shapes)
    ]
    return solved_loss(activation), params, X


@functools.cache
def diagnosed_solved(*network):
    return vj.diagnose(*solved(*network))


@pytest.mark.parametrize(
    ("network", "verdict"),
    [
        ((2, jnp.tanh), "unknown"),
        ((2, jnp.tanh, 0.1), "unknown"),
        ((10, nn.sigmoid, 0.5), "sick"),
        ((9, jnp.tanh, 0.1), "sick"),
    ],
)
def test_where_nothing_can_be_looked_into_gradients_are_compared(network, verdict):
    found = diagnosed_solved(*network)
    assert found.verdict == verdict
    (finding,) = (one for one in found.findings if one.rule == "unmeasured")
    if verdict == "sick":
        assert finding.layers[0] == "0/w"
        assert not any(name.endswith("b") for name in finding.layers)
        assert finding.evidence["starved_over_largest"] < -30


def test_without_any_gradient_there_is_nothing_to_compare():
    loss, params, x = solved(2, jnp.tanh)
    found = vj.diagnose(lambda p, x: jnp.round(loss(p, x)), params, x)
    assert found.verdict == "sick"
    assert [one.rule for one in found.findings] == ["zero_gradient"]


@pytest.mark.parametrize(
    ("network", "title", "first"),
    [
        ((2, jnp.tanh), "Unknown", "First remedy: train it for some steps on one batch"),
        ((9, jnp.tanh, 0.1), "Won't train: unmeasured", "First remedy: check the function's own"),
    ],
)
def test_a_picture_calls_nothing_alive_that_was_not_measured(
    network, title, first, tmp_path, figures
):
    diagnosed_solved(*network).plot(tmp_path / "verdict.png")
    (figure,) = figures
    waterfall, card = figure.axes
    assert title in [text.get_text() for text in figure.texts]
    assert [text.get_text() for text in waterfall.texts] == ["no kernel's output could be measured"]
    assert not waterfall.lines
    said = [" ".join(text.get_text().split()) for text in card.texts]
    assert "sum ln chi unknown" in said
    assert any(text.startswith(first) for text in said)
    assert not [line for line in card.lines if line.get_marker() == "D"]


NORMALIZED = {
    "LayerNorm": (lambda: [nn.Dense(8), nn.LayerNorm()], nn.gelu),
    "RMSNorm": (lambda: [nn.Dense(8), nn.RMSNorm()], nn.silu),
    "GroupNorm": (lambda: [nn.Conv(8, (3, 3)), nn.GroupNorm(4)], nn.relu),
    "BatchNorm": (lambda: [nn.Conv(8, (3, 3)), nn.BatchNorm(use_running_average=False)], nn.relu),
    "dropout": (lambda: [nn.Dense(8), nn.Dropout(0.5, deterministic=False)], nn.tanh),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_the_activation_is_the_one_behind_the_normalization(name):
    parts, activation = NORMALIZED[name]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for part in parts():
                x = part(x)
            return nn.Dense(2)(activation(x).mean((1, 2)))

    module, x = Net(), jax.random.normal(KEY, (3, 4, 4, 2))
    variables = module.init({"params": KEY, "dropout": KEY}, x)

    def loss(p, x):
        settings = {"mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
        return jnp.mean(module.apply(variables | {"params": p}, x, **settings)[0] ** 2)

    program = _jaxpr.flatten(_jaxpr.trace_loss(loss, variables["params"], x))
    anatomy = _jaxpr.dissect(program, _jaxpr.parameter_uses(program))
    first, last = sorted(anatomy.sites.values(), key=lambda site: site.tap)
    z = jnp.linspace(-3, 3, 3 * 4 * 4 * 8).reshape(3, 4, 4, 8)
    np.testing.assert_allclose(first.activation(z), activation(z), rtol=1e-6, atol=1e-6)
    assert (first.samples, first.units) == ((0, 1, 2), (3,))
    assert last.activation is None


def halves(x):
    """Pooling without a window."""
    batch, height, width, features = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).max((2, 4))


POOLINGS = {
    "max": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "average": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "by shape": halves,
}


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("bias", [0.0, -60.0])
def test_the_activation_is_the_one_behind_the_pooling(name, bias):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            x = nn.Conv(8, (3, 3), bias_init=nn.initializers.constant(bias))(x)
            x = nn.relu(POOLINGS[name](x))
            return nn.Dense(4)(x.reshape(len(x), -1))

    net, x = Net(), jax.random.normal(KEY, (16, 8, 8, 3))
    params = net.init(KEY, x)

    def loss(params, batch):
        return cross_entropy(net.apply(params, batch[0]), batch[1])

    found = vj.diagnose(loss, params, (x, LABELS), ADAM)
    assert found.probe.activations == ("rectifier", "rectifier", None)
    if bias:
        (dead,) = found.findings
        assert (dead.rule, dead.severity) == ("dead_units", "critical")
        assert dead.layers == ("params/Conv_1/kernel",)
    else:
        assert found.healthy


def test_an_optimizer_that_is_blind_to_kernels_used_many_times_trains_nothing():
    loss, params, points = pinn()
    found = vj.diagnose(lambda p, x: 1e-13 * loss(p, x), params, points, ADAM)
    (blind,) = [one for one in found.findings if one.rule == "blind_optimizer"]
    assert blind.severity == "critical"
    assert set(blind.layers) == {"a", "h", "c"}


@pytest.mark.parametrize("skips", [True, False])
def test_an_optimizer_that_is_blind_to_a_branch_stops_the_network_only_without_a_skip(skips):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(16)(x))
            branch = x
            for _ in range(5):
                small = nn.initializers.normal(1e-7)
                branch = nn.Dense(16, use_bias=False, kernel_init=small)(branch)
            return nn.Dense(2)(nn.LayerNorm(use_bias=False)(x + branch if skips else branch))

    net, x = Net(), jax.random.normal(KEY, (32, 6))
    y = jnp.stack([x[:, 0] * x[:, 1], x[:, 2]], axis=1)

    def loss(params, batch):
        return jnp.mean((net.apply(params, batch[0]) - batch[1]) ** 2)

    found = vj.diagnose(loss, net.init(KEY, x), (x, y), optax.adam(1e-2))
    (blind,) = [one for one in found.findings if one.rule == "blind_optimizer"]
    assert {f"Dense_{i}/kernel" for i in range(1, 6)} <= {name[7:] for name in blind.layers}
    assert blind.severity == ("warning" if skips else "critical")
    assert found.healthy == skips


def test_a_signal_that_shrinks_to_zero_is_named_by_what_shrinks_it():
    problem = vj.mlp_problem(8, (48,) * 16, 4, activation="centered_sigmoid")
    found = vj.diagnose(problem, (X, LABELS))
    assert (found.probe.preactivation_rms == 0).any()
    assert found.findings[0].rule == "vanishing_gradient"


def shown(name):
    """The scales of the picture: name -> words and place."""
    found = diagnosed(name).to_dict()
    critical = [one for one in found["findings"] if one["severity"] == "critical"]
    evidence = {one["rule"]: one["evidence"] for one in critical}
    return {scale: rest for scale, *rest in _scales(found["probe"], evidence)}


def test_the_picture_shows_what_is_wrong_on_a_scale_of_its_own():
    for name, scale in (
        ("no skips", "positions"),
        ("queries and keys", "attention"),
        ("BatchNorm and dropout", "units"),
    ):
        words, place = shown(name)[scale]
        assert place >= 0.5
        assert words
    # What is no more than a note, or fine, isn't shown as dead.
    for name in ("ViT without skips", "BERT", "dead block beside a skip"):
        scales = shown(name)
        assert {"magnitude", "mean", "rank"} <= set(scales)
        for scale in {"positions", "attention", "units"} & set(scales):
            assert scales[scale][1] < 0.5


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_edge_of_a_field_is_a_line_and_no_collapse(collapsed):
    """The last call's inputs differ in one coordinate; those of the first in two."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(2, 24), (24, 24), (24, 24), (24, 1)]
    kernels = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=False)]
    if collapsed:
        kernels[2] = jnp.outer(kernels[2][:, 0], jnp.ones(24))
    inside = jax.random.uniform(keys[4], (64, 2))

    def predict(kernels, x):
        for kernel in kernels[:-1]:
            x = jnp.tanh(0.3 * x @ kernel)
        return (x @ kernels[-1])[:, 0]

    def loss(kernels, batch):
        edge = batch if collapsed else batch.at[:, 1].set(0.0)
        inner = jnp.mean((predict(kernels, batch) - batch[:, 1]) ** 2)
        return inner + jnp.mean(predict(kernels, edge) ** 2)

    found = vj.diagnose(loss, kernels, inside)
    assert ("rank_collapse" in [one.rule for one in found.findings]) == collapsed, str(found)


def test_inputs_on_a_line_are_not_shown_as_a_collapse():
    """Features of one number have a rank of one, and train."""
    x = jnp.linspace(-1, 1, 64)[:, None]
    problem = vj.mlp_problem(1, (32,) * 3, 1, activation="tanh", loss="squared_error")
    verdict = vj.diagnose(problem, (x, x**2))
    assert verdict.healthy
    assert [name for name, *_ in _scales(verdict.to_dict()["probe"], {})] == ["magnitude", "mean"]


@pytest.mark.parametrize("unrolled", [True, False])
def test_saturated_gates_of_one_kernel_are_told_whatever_they_let_through(unrolled):
    """The tanh of an LSTM's cell is small where its gates are closed, and is no gate itself."""
    width = 32

    def loss_fn(params, batch):
        def step(carry, x):
            h, c = carry
            gates = jnp.concatenate([x, h], axis=-1) @ params["gates"]["w"] + params["gates"]["b"]
            i, g, f, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        rows, labels = batch
        carry = (jnp.zeros((len(rows), width)),) * 2
        if unrolled:
            for x in rows.swapaxes(0, 1):
                carry, _ = step(carry, x)
        else:
            carry, _ = jax.lax.scan(step, carry, rows.swapaxes(0, 1))
        logits = carry[0] @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "gates": {
            "w": jax.random.normal(keys[0], (8 + width, 4 * width)) / (8 + width) ** 0.5,
            "b": jnp.zeros(4 * width),
        },
        "head": jax.random.normal(keys[1], (width, 4)) / width**0.5,
    }
    batch = jax.random.normal(keys[2], (32, 4, 8)), jnp.arange(32) % 4
    assert vj.diagnose(loss_fn, params, batch, ADAM).healthy
    large = params | {"gates": {"w": 60.0 * params["gates"]["w"], "b": params["gates"]["b"]}}
    (found,) = vj.diagnose(loss_fn, large, batch, ADAM).findings
    assert found.rule == "saturated_units"
    assert all(name.startswith("gates/w") for name in found.layers)


@pytest.mark.parametrize(
    ("gate", "bias", "verdict"),
    [("o", -14.0, "sick"), ("i", -9.0, "sick"), ("o", -5.0, "healthy"), ("f", 12.0, "healthy")],
)
@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.LSTMCell])
def test_one_gate_that_is_shut_for_all_inputs_stops_a_cell(gate, bias, verdict, cell):
    """After 400 steps of Adam at .005 -14 has learned nothing, -9 a third, -5 most of it."""

    class Reader(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.RNN(cell(32))(x)[:, -1])[:, 0]

    x = jax.random.normal(jax.random.key(0), (64, 40, 3))
    batch = x, 4 * x[:, :, 0].mean(axis=1)
    params = Reader().init(jax.random.key(1), x)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + bias if f"h{gate}" in str(path) and leaf.ndim == 1 else leaf,
        params,
    )

    def loss(params, batch):
        return jnp.mean((Reader().apply(params, batch[0]) - batch[1]) ** 2)

    found = vj.diagnose(loss, params, batch, optax.adam(5e-3))
    assert found.verdict == verdict
    critical = [one.rule for one in found.findings if one.severity == "critical"]
    expected = ["saturated_units"] * (verdict == "sick")
    # Where every gate has kernels of its own, that so little comes out is told as well.
    own = cell is nn.LSTMCell and (gate, bias) == ("o", -14.0)
    assert critical == expected + ["mean_collapse"] * own


def test_the_picture_draws_networks_side_by_side_apart():
    probe = diagnosed("two networks").probe.to_dict()
    firsts = [name.partition("/")[0] for name in probe["names"]]
    assert [set(firsts[start:stop]) for start, stop in reached.towers(probe)] == [
        {firsts[0]},
        {firsts[-1]},
    ]
    found = finding("two networks", "vanishing_gradient")
    (text, place) = {name: rest for name, *rest in _scales(probe, {found.rule: found.evidence})}[
        "magnitude"
    ]
    assert text == f"reach {found.evidence['reach']:.3g}"
    assert place > 0.5
    for name in ("pre-LN, 12 layers", "encoder and decoder", "penalized chain"):
        one = diagnosed(name).probe.to_dict()
        assert reached.towers(one) == [(0, len(one["names"]))]
