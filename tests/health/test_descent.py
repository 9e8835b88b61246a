"""Steps to half of the loss, as the gradient tells: too many, or one far beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.health import diagnosis
from vanishjax.health.descent import TOO_FEW, TOO_MANY

X = jax.random.normal(jax.random.key(0), (64, 8))
BATCH = X, jnp.argmax(X[:, :4], axis=1)


@functools.cache
def network(activation="tanh", depth=3, **options):
    return vj.mlp_problem(8, (32,) * depth, 4, activation=activation, **options)


def heated(temperature, unit=1.0):
    """Logits divided by a temperature, the loss in another unit."""
    problem = network()

    def loss_fn(params, batch):
        logits = problem.predict_fn(params, batch[0]) / temperature
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return unit * jnp.mean(losses)

    return loss_fn


def found(loss_fn, tx, params=None):
    verdict = vj.diagnose(loss_fn, network().params if params is None else params, BATCH, tx)
    return {one.rule: one.evidence.get("steps_to_half") for one in verdict.findings}


def test_the_number_of_steps_is_that_of_the_gradient_alone(monkeypatch):
    seen = []
    apply_rules = diagnosis.apply_rules
    monkeypatch.setattr(diagnosis, "apply_rules", lambda one: seen.append(one) or apply_rules(one))
    loss_fn, params = heated(1.0), network().params
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
    assert found(heated(1.0, unit), optax.adam(rate)) == {}
    cold = found(heated(1000.0, unit), optax.adam(rate))
    assert set(cold) == {"vanishing_gradient"}
    assert cold["vanishing_gradient"] > TOO_MANY


def test_a_step_far_beyond_the_loss_is_found():
    """Codes that are compared by their angles, so faint that no step is small beside them."""
    encoder = vj.mlp_problem(8, (32,) * 14, 16, activation="relu")

    def loss_fn(params, pairs):
        codes = [encoder.predict_fn(params, one) for one in pairs]
        codes = [one / jnp.linalg.norm(one, axis=1, keepdims=True) for one in codes]
        logits = 10 * codes[0] @ codes[1].T
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(logits)))
        )

    pairs = X, X + 0.3 * jax.random.normal(jax.random.key(2), X.shape)

    def verdict(scale):
        params = jax.tree.map(lambda x: scale * x, encoder.params)
        return vj.diagnose(loss_fn, params, pairs, optax.adam(3e-3))

    assert verdict(2**0.5).healthy, str(verdict(2**0.5))
    (one,) = (one for one in verdict(0.6).findings if one.severity == "critical")
    assert one.rule == "exploding_gradient"
    assert one.evidence["steps_to_half"] < TOO_FEW


def test_kernels_that_grow_are_no_flat_loss():
    """Each of Adam's steps makes small kernels and their gradients larger; not those of SGD."""
    params = jax.tree.map(lambda x: 0.05 * x, network().params)
    assert found(heated(1.0), optax.adam(3e-3), params) == {}
    assert "vanishing_gradient" in found(heated(1.0), optax.sgd(0.1), params)


def test_what_has_learned_may_be_near_its_end():
    problem = network(tx=optax.adam(3e-3))
    step, state = vj.make_train_step(problem), vj.TrainState.create(problem)
    for _ in range(300):
        state, _ = step(state, BATCH)
    verdict = vj.diagnose(problem.loss_fn, state.params, BATCH, optax.adam(3e-3))
    assert verdict.probe.loss < 0.05
    assert verdict.healthy, str(verdict)
