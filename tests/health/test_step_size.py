"""Steps far too large or too small, told before the first one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.report.diagnosis_plot import _scales

BATCH = jax.random.normal(jax.random.key(0), (32, 8)), jnp.arange(32) % 4


PLAIN = vj.mlp_problem(8, (64,) * 2, 4, activation="tanh")


def network(tx):
    return dataclasses.replace(PLAIN, tx=tx)


def found(problem):
    return {one.rule: one for one in vj.diagnose(problem, BATCH).findings}


@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_adams_step_is_its_rate_over_the_kernels_entries(rate):
    """8 inputs and 64: entries of 1 / sqrt(8) and 1 / 8."""
    verdict = vj.diagnose(network(optax.adam(rate)), BATCH)
    np.testing.assert_allclose(verdict.relative_step, 8 * rate, rtol=0.05)
    assert verdict.to_dict()["relative_step"] == verdict.relative_step
    assert vj.diagnose(PLAIN.loss_fn, PLAIN.params, BATCH).relative_step is None


@pytest.mark.parametrize(
    ("tx", "told"),
    [
        (optax.adamw(1e-3, weight_decay=0.01), False),
        (optax.adamw(1e-3, weight_decay=3.0), False),
        (optax.adamw(1e-3, weight_decay=300.0), True),
        (vj.adamw(1e-3, weight_decay=300.0), True),
        # Steps hold kernels at a quarter of their size, and are forgotten within eight.
        (optax.adamw(4e-3, weight_decay=30.0), True),
        (optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)), False),
        (optax.chain(optax.add_decayed_weights(3.0), optax.sgd(0.1)), True),
        # At an eighth, and at three fifths.
        (optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.01)), True),
        (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), False),
        # Adam's own step, in a direction of the decay's.
        (optax.chain(optax.add_decayed_weights(1.0), optax.adam(1e-3)), False),
        # Over in a million steps.
        (optax.adamw(1e-9, weight_decay=300.0), False),
    ],
)
def test_a_decay_that_no_step_holds_against_is_told(tx, told):
    """Told are those after which the loss is that of a constant output, or near it."""
    verdict = vj.diagnose(network(tx), BATCH)
    decayed = [one for one in verdict.findings if "decay" in one.evidence]
    assert [one.severity for one in decayed] == ["critical"] * told, str(verdict)
    if told:

        def step(_, carried):
            params, state = carried
            gradient = jax.grad(PLAIN.loss_fn)(params, BATCH)
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        # Three times as long as the decay takes.
        steps = int(3 / decayed[0].evidence["decay"])
        start = PLAIN.params, tx.init(PLAIN.params)
        params, _ = jax.lax.fori_loop(0, steps, step, start)
        assert PLAIN.loss_fn(params, BATCH) > 0.95 * np.log(4)


@pytest.mark.parametrize(
    ("tx", "severity"),
    [
        (optax.adam(1e-3), None),
        (optax.adam(0.05), None),
        (optax.adam(0.5), "critical"),
        (optax.adam(10.0), "critical"),
        (optax.adam(1e-7), "critical"),
        (optax.adamw(2e-6, weight_decay=0.01), "critical"),
        (optax.chain(optax.clip_by_global_norm(1e-6), optax.sgd(0.1)), "critical"),
        # Steps that grow with a schedule, or of which that isn't known.
        (optax.adam(optax.linear_schedule(0.0, 1e-3, 10_000)), None),
        (optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.0, 0.1, 10**4)), None),
        (optax.MultiSteps(optax.adam(1e-7), 2), "critical"),
        (optax.sgd(0.1), None),
        (optax.sgd(1e3), "critical"),
        (optax.sgd(1e-6), "critical"),
        (optax.adam(3e-5), None),
        (optax.adam(optax.linear_schedule(0.0, 1e-3, 100)), None),
        (vj.muon(0.02), None),
        (optax.lion(1e-4), None),
    ],
)
def test_a_rate_is_told_where_it_is_far_off(tx, severity):
    verdict = vj.diagnose(network(tx), BATCH)
    one = next((one for one in verdict.findings if one.rule == "learning_rate"), None)
    assert (one and one.severity) == severity
    if one:
        assert one.evidence["relative_step"] == verdict.relative_step


@pytest.mark.parametrize(
    "tx",
    [
        # A hundred steps and more to half of the loss.
        optax.adam(1e-3, eps=0.5),
        optax.rmsprop(1e-3, eps=1.0),
        optax.adagrad(1e-4),
        optax.chain(optax.clip_by_global_norm(100.0), optax.adam(1e-3, eps=0.5)),
    ],
)
def test_an_epsilon_above_all_gradients_is_no_small_rate(tx):
    said = found(network(tx))
    blind = said["blind_optimizer"]
    assert blind.severity == "critical"
    assert "learning_rate" not in said
    assert 0.001 < blind.evidence["effectiveness"] < 0.05
    assert "eps_relative" in blind.remedy_ids


@pytest.mark.parametrize(("eps", "loss_by"), [(1e-3, 1e-6), (1.0, 1e-3), (30.0, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_share_that_a_large_epsilon_leaves(eps, loss_by, dtype):
    """Each entry's step is rate * g / (g + eps)."""
    params = jax.tree.map(lambda x: x.astype(dtype), PLAIN.params)

    def loss(params, batch):
        return loss_by * PLAIN.loss_fn(params, batch)

    verdict = vj.diagnose(loss, params, BATCH, optax.adam(1e-3, eps=eps))
    (blind,) = [one for one in verdict.findings if one.rule == "blind_optimizer"]
    smallest = blind.evidence["gradient_rms"]
    assert blind.severity == "critical"
    np.testing.assert_allclose(blind.evidence["effectiveness"], smallest / eps, rtol=0.3)


def test_a_small_rate_is_for_what_has_learned():
    params, tx = PLAIN.params, optax.adam(0.01)
    state = tx.init(params)
    for _ in range(200):
        updates, state = tx.update(jax.grad(PLAIN.loss_fn)(params, BATCH), state, params)
        params = optax.apply_updates(params, updates)
    learned = dataclasses.replace(network(optax.adam(1e-7)), params=params)
    assert PLAIN.loss_fn(params, BATCH) < 0.5 * np.log(4)
    assert found(learned)["learning_rate"].severity == "warning"


def test_what_the_gradient_makes_large_is_not_the_rates_fault():
    problem = vj.mlp_problem(8, (64,) * 2, 4, activation="relu", tx=optax.sgd(1e3))
    dead = jax.tree.map(lambda x: x - 30.0 * (x.ndim == 1), problem.params)
    rules = found(dataclasses.replace(problem, params=dead))
    assert "dead_units" in rules
    assert "learning_rate" not in rules


def test_branches_that_start_at_zero_stand_still_at_any_rate():
    """Nearly all kernels get no gradient yet: what the others take counts."""
    problem = vj.mlp_problem(8, (64,) * 8, 4, residual="rezero", tx=optax.adam(1e-3))
    verdict = vj.diagnose(problem, BATCH)
    assert verdict.healthy
    assert 1e-3 < verdict.relative_step < 1e-1
    assert "learning_rate" not in {one.rule for one in verdict.findings}


def test_kernels_that_start_small_are_judged_by_what_they_grow_to():
    problem = network(optax.adam(1e-3))
    small = jax.tree.map(lambda x: 1e-3 * x, problem.params)
    assert "learning_rate" not in found(dataclasses.replace(problem, params=small))


def marked(verdict):
    """The ways to die whose mark lies beyond the middle."""
    evidence = {one.rule: one.evidence for one in verdict.findings}
    scales = _scales(verdict.to_dict()["probe"], evidence)
    return {name for name, _, place in scales if place > 0.5}


def test_the_picture_shows_what_the_verdict_names():
    """Every other way to die is far: the mark beyond the middle is the one in the title."""
    shown = {
        "rate": [optax.adam(rate) for rate in (10.0, 2e-6, 1e-9)],
        "decay": [optax.adamw(1e-3, weight_decay=300.0), optax.adamw(4e-3, weight_decay=30.0)],
        "step": [optax.adam(1e-3, eps=0.5)],
    }
    for name, optimizers in shown.items():
        for tx in optimizers:
            assert marked(vj.diagnose(network(tx), BATCH)) == {name}

    problem = network(optax.adam(1e-3))

    def squares(params, batch):
        targets = 3e5 + 5e4 * batch[0][:, :4]
        return jnp.mean((problem.predict_fn(params, batch[0]) - targets) ** 2)

    far = vj.diagnose(squares, problem.params, BATCH, problem.tx)
    assert marked(far) == {"start"}
