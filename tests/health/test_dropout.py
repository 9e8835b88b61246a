"""Dropout's noise tells inputs apart that the network doesn't: verdicts are of the network."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax import _jaxpr

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (8, 6, 16))
BATCH = X, jnp.roll(X, 1, axis=1)


def squares(outputs, batch):
    return jnp.mean((outputs - batch[1]) ** 2)


def linen(rate):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            drop = nn.Dropout(rate, deterministic=rate == 0)
            x = drop(nn.relu(nn.Dense(16)(x)))
            x = x + nn.Dropout(rate, (1, 2), deterministic=rate == 0)(nn.Dense(16)(x))
            attention = nn.MultiHeadDotProductAttention(
                2, dropout_rate=rate, deterministic=rate == 0
            )
            return attention(x, x)

    params = Model().init(jax.random.key(0), X) if rate == 0 else linen(0.0)[1]
    return (lambda p, b: squares(Model().apply(p, b[0], rngs={"dropout": KEY}), b)), params


def linen_scanned(rate):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dropout(rate, deterministic=rate == 0)(nn.tanh(nn.Dense(16)(x))), None

    stack = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=5
    )
    params = stack().init({"params": KEY, "dropout": KEY}, X, None)
    return (lambda p, b: squares(stack().apply(p, b[0], None, rngs={"dropout": KEY})[0], b)), params


def nnx_model(rate):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
            self.dropout = nnx.Dropout(rate, rngs=rngs)

        def __call__(self, x):
            return self.second(self.dropout(nnx.gelu(self.first(x))))

    model = Model(nnx.Rngs(0, dropout=1))
    problem = vj.Problem.from_nnx(model, lambda model, batch: squares(model(batch[0]), batch))
    return problem.plain_loss, problem.params


def equinox_model(rate):
    linear = eqx.nn.Linear(16, 16, key=KEY)
    dropout = eqx.nn.Dropout(rate)

    def loss_fn(params, batch):
        h = dropout(jnp.tanh(jax.vmap(jax.vmap(params))(batch[0])), key=KEY)
        return squares(h, batch)

    return loss_fn, linear


def haiku_model(rate):
    def forward(x):
        h = jnp.tanh(hk.Linear(16)(x))
        return hk.dropout(hk.next_rng_key(), rate, h) if rate else h

    model = hk.transform(forward)
    return (lambda p, b: squares(model.apply(p, KEY, b[0]), b)), model.init(KEY, X)


def by_hand(rate):
    """Whole branches, with a rate that the program doesn't tell."""

    def loss_fn(params, batch):
        kept = jax.random.normal(KEY, (8, 1, 1)) > -0.5
        h = batch[0] @ params
        return squares(jnp.where(kept, h / jnp.mean(kept), 0.0) if rate else h, batch)

    return loss_fn, jnp.eye(16)


@pytest.mark.parametrize(
    "make", [linen, linen_scanned, nnx_model, equinox_model, haiku_model, by_hand]
)
def test_numbers_are_those_without_dropout(make):
    loss_fn, params = make(0.3)
    plain_loss, _ = make(0.0)
    found, plain = (vj.probe(fn, params, BATCH) for fn in (loss_fn, plain_loss))
    assert found.loss == pytest.approx(plain.loss, rel=1e-5)
    assert abs(found.loss - float(jax.jit(loss_fn)(params, BATCH))) > 1e-3
    assert found.names == plain.names
    for field in (
        "log_chi",
        "gradient_rms",
        "preactivation_rms",
        "centered_energy",
        "token_energy",
    ):
        np.testing.assert_allclose(
            getattr(found, field), getattr(plain, field), rtol=1e-4, atol=1e-5, err_msg=field
        )
    assert found.activations == plain.activations


def test_positions_that_only_dropout_tells_apart_have_collapsed():
    params = [list(layer) for layer in 0.25 * jax.random.normal(KEY, (6, 4, 16, 16))]

    def loss_fn(params, batch, rate=0.1):
        h = batch[0]
        for number, (query, key, value, out) in enumerate(params):
            scores = jnp.einsum("bic,bjc->bij", h @ query, h @ key) / 4
            h = jax.nn.softmax(scores) @ (h @ value) @ out
            kept = jax.random.bernoulli(jax.random.fold_in(KEY, number), 1 - rate, h.shape)
            h = jnp.where(kept, h / (1 - rate), 0)
        return squares(h, batch)

    found = vj.diagnose(loss_fn, params, BATCH, optax.adam(1e-3))
    assert "token_collapse" in [one.rule for one in found.findings if one.severity == "critical"]


def test_noise_that_is_no_mask_stays():
    params = jax.random.normal(KEY, (16, 16)) / 4

    def loss_fn(params, batch):
        h = batch[0] @ params
        noise = jax.random.normal(KEY, h.shape)
        # Chosen by the data, and not by chance; and a target that is hidden at random.
        h = jnp.where(batch[0] > 0, h, 0) + jnp.exp(0.1 * h) * noise
        hidden = jax.random.bernoulli(KEY, 0.5, h.shape)
        return jnp.sum(jnp.where(hidden, h, h + 1.0) ** 2) / h.size

    found = vj.probe(loss_fn, params, BATCH)
    assert found.loss == pytest.approx(float(jax.jit(loss_fn)(params, BATCH)), rel=1e-5)
    program = _jaxpr.flatten(_jaxpr.trace_loss(loss_fn, params, BATCH))
    assert _jaxpr.without_dropout(program) is program
