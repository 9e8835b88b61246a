"""Some steps of training beside a verdict: whether the network learns, and what that decides."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.commands import vanishjax
from vanishjax.health.learning import Learning, learn, unlearned

X = jax.random.normal(jax.random.key(1), (64, 8))
LABELS = (X[:, 0] > 0).astype(jnp.int32)
BATCH = X, LABELS


def mlp(activation="tanh", depth=2, **settings):
    return vj.mlp_problem(8, (16,) * depth, 2, activation=activation, **settings)


@jax.custom_vjp
def hidden(w, x):
    return jnp.tanh(x @ w)


hidden.defvjp(
    lambda w, x: (hidden(w, x), (w, x)),
    lambda saved, g: jax.vjp(lambda w, x: jnp.tanh(x @ w), *saved)[1](g),
)


def opaque(scale=1.0):
    """A loss whose kernel can't be looked into."""

    def loss_fn(w, x):
        return jnp.mean((hidden(scale * w, x) - jnp.tanh(x)) ** 2)

    return loss_fn, 0.1 * jnp.eye(8), X


def rules(found):
    return [(one.rule, one.severity) for one in found.findings]


def test_what_learns_is_shown_and_raises_nothing():
    problem = mlp()
    before = jax.tree.map(np.array, problem.params)
    found = vj.diagnose(problem.loss_fn, problem.params, BATCH, vj.adam(1e-2), steps=40)
    assert found.healthy
    assert "does_not_learn" not in dict(rules(found))
    assert found.losses.shape == (41,)
    assert found.losses[0] == pytest.approx(found.probe.loss, rel=1e-5)
    assert found.losses[-1] < 0.5 * found.probe.constant_loss
    assert found.learning.learns
    assert "Trained 40 steps: loss" in str(found)
    assert "it learns" in str(found)
    assert "Adam at" not in str(found)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))["learning"]
    assert (told["steps"], told["learns"], len(told["losses"])) == (40, True, 41)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(problem.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_losses_are_those_of_a_loop_of_steps():
    problem, tx = mlp(), optax.adamw(1e-2)
    found = learn(problem.loss_fn, problem.params, BATCH, tx, 5, held_out=(X + 1, LABELS))
    params, state = problem.params, tx.init(problem.params)
    losses, held_out = [], []

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(problem.loss_fn)(params, BATCH)
        other = problem.loss_fn(params, (X + 1, LABELS))
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, other

    for _ in range(6):
        params, state, value, other = step(params, state)
        losses.append(value)
        held_out.append(other)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(found.held_out, held_out, rtol=1e-4)
    assert found.judged is found.held_out


def test_a_scaled_loss_learns_as_the_plain_one_does():
    problem, tx = mlp(), optax.sgd(0.1)
    plain, scaled = (
        learn(problem.loss_fn, problem.params, BATCH, one, 20)
        for one in (tx, vj.dynamic_loss_scale(tx))
    )
    np.testing.assert_allclose(scaled.losses, plain.losses, rtol=1e-4)


def test_labels_that_nothing_tells_are_not_learned():
    problem = mlp()

    def loss_fn(p, batch):
        return problem.loss_fn(p, (0 * batch[0] + 1, batch[1]))

    found = vj.diagnose(loss_fn, problem.params, BATCH, vj.adam(1e-2), steps=150)
    assert found.verdict == "sick"
    assert ("does_not_learn", "critical") in rules(found)
    (one,) = [one for one in found.findings if one.rule == "does_not_learn"]
    assert one.evidence["end"] == pytest.approx(np.log(2), rel=0.02)
    assert one.evidence["constant_loss"] == pytest.approx(np.log(2), rel=0.02)
    assert "it doesn't learn" in " ".join(str(found).split())


def test_the_unknown_is_decided():
    assert vj.diagnose(*opaque()).verdict == "unknown"
    learned = vj.diagnose(*opaque(), vj.adam(1e-2), steps=60)
    assert learned.verdict == "healthy"
    assert str(learned).startswith("Healthy")
    # Driven to where it is flat: nothing moves.
    still = vj.diagnose(*opaque(1e4), vj.adam(1e-9), steps=30)
    assert still.verdict == "sick"
    assert ("does_not_learn", "critical") in rules(still)


def test_no_other_finding_is_taken_back():
    problem = mlp("sigmoid", 12)
    static = vj.diagnose(problem.loss_fn, problem.params, BATCH)
    driven = vj.diagnose(problem.loss_fn, problem.params, BATCH, steps=3)
    assert static.verdict == driven.verdict == "sick"
    assert rules(static) == rules(driven)[: len(rules(static))]
    assert "with Adam at 1e-3" in str(driven)


def course(losses, constant=1.0):
    return Learning(np.array(losses, float), None, constant, usual=True)


def test_what_counts_as_learning():
    steps = np.linspace(0, 1, 41)
    assert course(2 - 1.5 * steps).learns
    assert not course(2 - 0.5 * steps).learns
    assert course(2 - 0.5 * steps).is_falling
    assert not course(1 + np.exp(-50 * steps)).learns
    assert not course(1 + np.exp(-50 * steps)).is_falling
    # What falls back from where it exploded to hasn't learned.
    assert not course(np.append(1.0, 1e12 * np.exp(-25 * steps))).is_falling
    assert course(np.append(1.0, 1e2 * np.exp(-5 * steps))).is_falling
    assert not course(2 + 0 * steps).learns
    assert not course(np.where(steps > 0.5, np.nan, 0.5)).learns
    noise = np.random.default_rng(0).normal(size=41)
    assert not course(1 + 0.3 * noise).learns
    assert course(2 - 1.5 * steps, np.nan).learns
    assert not course(2 - 0.01 * steps, np.nan).learns


@pytest.mark.parametrize("count", range(1, 13))
def test_a_few_steps_tell_too(count):
    steps = np.linspace(0, 1, count + 1)
    assert course(2 - 1.5 * steps).learns
    assert not course(2 - 0.5 * steps).learns
    assert course(2 - 0.5 * steps, np.nan).learns


def test_an_explosion_is_told_by_its_step():
    def loss_fn(w, x):
        return jnp.mean(jnp.exp(x @ w) ** 2)

    found = vj.diagnose(loss_fn, jnp.ones((8, 2)), jnp.abs(X), vj.sgd(-1e3), steps=5)
    (one,) = [one for one in found.findings if one.rule == "does_not_learn"]
    assert one.severity == "critical"
    assert "from step 1 of 5 on" in one.cause


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_steps_are_whole_numbers(steps):
    problem = mlp()
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        vj.diagnose(problem.loss_fn, problem.params, BATCH, steps=steps)


def test_the_command_trains_too():
    options = "--hidden", "16", "--steps", "60", "--batch-size", "64", "--json"
    told = vanishjax("diagnose", *options).json
    assert told["learning"]["steps"] == 60
    assert told["learning"]["learns"]
    assert told["healthy"]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            [0.97, 0.9, 0.95, 0.91, 0.94, 0.9, 0.95, 0.91, 0.94],
            "get below the best constant",
        ),
        (
            [1.2, 1.1, 1.05, 0.98, 0.99, 0.98, 0.99, 0.98, 0.99],
            "get no further",
        ),
        ([1.2, 1.3, 1.25, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3], "don't lower the loss"),
    ],
)
def test_what_is_said_of_steps_that_teach_nothing_is_what_they_did(losses, said):
    found = unlearned(Learning(np.array(losses), None, 0.96, usual=False))
    assert found.severity == "critical"
    assert found.cause.startswith(f"8 steps of training {said}")


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_so_few_steps_condemn_nothing_but_what_explodes(steps):
    rising = Learning(np.linspace(1.2, 1.25, steps + 1), None, 0.96, usual=False)
    found = unlearned(rising)
    assert found.severity == "warning"
    assert found.cause.startswith(f"After {steps} step{'s' if steps > 1 else ''} the loss")
    exploding = Learning(np.geomspace(1.2, 1e9, steps + 1), None, 0.96, usual=False)
    assert unlearned(exploding).severity == "critical"


def test_a_network_that_learns_in_time_is_not_sick_after_a_step():
    problem = mlp()
    for steps in (1, 5):
        found = vj.diagnose(problem.loss_fn, problem.params, BATCH, vj.adam(1e-3), steps=steps)
        assert found.verdict == "healthy", str(found)
