"""Steps to half of the loss, as the gradient tells: too many, or one far beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.health.test_step_size import marked
from vanishjax.health import diagnosis
from vanishjax.health.descent import TOO_FEW, TOO_MANY

X = jax.random.normal(jax.random.key(0), (64, 8))
BATCH = X, jnp.argmax(X[:, :4], axis=1)
PAIRS = X, X + 0.3 * jax.random.normal(jax.random.key(2), X.shape)


@functools.cache
def network(activation="tanh", depth=3, outputs=4, **options):
    return vj.mlp_problem(8, (32,) * depth, outputs, activation=activation, **options)


def contrast(encoder, heat=10.0, unit=1.0):
    """Codes of two views of each input, compared by their angles."""

    def loss_fn(params, pairs):
        codes = [encoder.predict_fn(params, one) for one in pairs]
        codes = [one / jnp.linalg.norm(one, axis=1, keepdims=True) for one in codes]
        logits = heat * codes[0] @ codes[1].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(logits)))
        return unit * jnp.mean(losses)

    return loss_fn


def found(verdict):
    return {one.rule: one.evidence.get("steps_to_half") for one in verdict.findings}


def test_the_number_of_steps_is_that_of_the_gradient_alone(monkeypatch):
    seen = []
    apply_rules = diagnosis.apply_rules
    monkeypatch.setattr(diagnosis, "apply_rules", lambda one: seen.append(one) or apply_rules(one))
    loss_fn, params = network().loss_fn, network().params
    gradient = jax.grad(loss_fn)(params, BATCH)
    squares = sum(float(np.sum(np.asarray(x, np.float64) ** 2)) for x in jax.tree.leaves(gradient))
    vj.diagnose(loss_fn, params, BATCH, optax.sgd(0.3))
    assert seen[-1].descent == pytest.approx(0.3 * squares, rel=1e-3)
    # Adam's steps don't go along the gradient: no more than the product of the norms.
    vj.diagnose(loss_fn, params, BATCH, optax.adam(1e-3))
    sums = sum(float(np.abs(x).sum()) for x in map(np.asarray, jax.tree.leaves(gradient)))
    assert 1e-3 * sums < seen[-1].descent < 3e-3 * sums
    vj.diagnose(loss_fn, params, BATCH)
    assert seen[-1].descent is None


@pytest.mark.parametrize("rate", [1e-3, 3e-5])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_a_temperature_that_hides_the_parameters_is_found(rate, unit):
    """Whatever the unit of the loss; a smaller rate is no fault of the network's."""
    encoder = network(outputs=16)

    def verdict(heat):
        loss_fn = contrast(encoder, heat, unit)
        return vj.diagnose(loss_fn, encoder.params, PAIRS, optax.adam(rate, eps=1e-20))

    assert verdict(1.0).healthy, str(verdict(1.0))
    assert found(verdict(1e-3))["vanishing_gradient"] > TOO_MANY
    assert marked(verdict(1e-3)) == {"way"}


def test_a_step_far_beyond_the_loss_is_found():
    """Codes so faint that no step is small beside them."""
    encoder = network("relu", 14, outputs=16)

    def verdict(scale):
        params = jax.tree.map(lambda x: scale * x, encoder.params)
        return vj.diagnose(contrast(encoder), params, PAIRS, optax.adam(3e-3))

    assert verdict(2**0.5).healthy, str(verdict(2**0.5))
    assert found(verdict(0.6))["exploding_gradient"] < TOO_FEW
    assert marked(verdict(0.6)) == {"way"}


@pytest.mark.parametrize(("depth", "scale"), [(3, 0.05), (24, 1.0)])
def test_a_gradient_that_grows_with_the_kernels_is_none_that_stays_small(depth, scale):
    """Adam's steps make small kernels larger, and what layers lose on the way back less."""
    problem = network("relu", depth)
    params = jax.tree.map(lambda x: scale * x, problem.params)
    verdict = vj.diagnose(problem.loss_fn, params, BATCH, optax.adam(3e-3), steps=200)
    assert verdict.healthy, str(verdict)
    assert verdict.learning.learns


def test_what_has_learned_may_be_near_its_end():
    problem = network(tx=optax.adam(3e-3))
    step, state = vj.make_train_step(problem), vj.TrainState.create(problem)
    for _ in range(300):
        state, _ = step(state, BATCH)
    verdict = vj.diagnose(problem.loss_fn, state.params, BATCH, optax.adam(3e-3))
    assert verdict.probe.loss < 0.05
    assert verdict.healthy, str(verdict)
