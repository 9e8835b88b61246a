"""What was accepted, at other rates: before a short training, for as long as several trials."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.treatment.test_remedies import assert_recipe_makes
from tests.treatment.test_treatment import KEY, STEPS, data, network
from vanishjax.transforms.coordinates import InCoordinates
from vanishjax.treatment import rates
from vanishjax.treatment.batches import stack
from vanishjax.treatment.trial import race

RATES = ("rate_by_30", "rate_by_3", "rate_x3", "rate_x10")


def small(rate=0.01, **options):
    """A tanh network whose kernels and rate are both too small to learn anything soon."""
    problem = network("tanh", 4, **options)
    params = jax.tree.map(lambda x: 0.1 * x, problem.params)
    return dataclasses.replace(problem, params=params, tx=optax.sgd(rate))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_side_by_side_is_one_by_one(dtype):
    problem = network("tanh", 2, param_dtype=dtype, tx=optax.adam(1e-3))
    parts = (1.0, 0.3, 10.0)
    problems = [problem] + [
        dataclasses.replace(problem, tx=optax.chain(problem.tx, optax.scale(part)))
        for part in parts[1:]
    ]
    batches = stack(data()[:12])
    together = race(problems, batches, stack(data()[12:]), KEY, rates=parts)
    for one, run in zip(problems, together, strict=True):
        (alone,) = race([one], batches, stack(data()[12:]), KEY)
        assert run.problem is one
        chex.assert_trees_all_equal_shapes_and_dtypes(run.opt_state, one.tx.init(one.params))
        assert jax.tree.structure(run.opt_state) == jax.tree.structure(alone.opt_state)
        np.testing.assert_allclose(run.losses, alone.losses, rtol=2e-2)
    ends = [run.losses[-1] for run in together]
    assert ends[2] < ends[0] < ends[1]


def test_a_rate_is_compared_for_as_long_as_four_trials():
    treatment = vj.cure(small(), data(), steps=STEPS, total_steps=8 * STEPS)
    told = {trial.remedy: trial for trial in treatment.trials}
    *accepted, last = (one.name for one in treatment.accepted)
    assert last in RATES, str(treatment)
    before = " + ".join(accepted)
    assert {f"{before} + {rate}" for rate in RATES} <= told.keys()
    # The last entry of that name: the same network as long at its own rate.
    for name in (before, *(f"{before} + {rate}" for rate in RATES)):
        assert told[name].steps == 4 * STEPS
    best = min((told[f"{before} + {rate}"].loss for rate in RATES), default=np.inf)
    assert told[f"{before} + {last}"].loss == best < told[before].loss
    assert_recipe_makes(small(), treatment.recipe, treatment.start, treatment.batch)


@pytest.mark.parametrize(("total", "most"), [(50 * STEPS, 0), (2 * STEPS, 2 * STEPS)])
def test_it_is_no_longer_than_the_training(total, most):
    treatment = vj.cure(small(), data(), steps=STEPS, total_steps=total)
    compared = [one.steps for one in treatment.trials if one.remedy.endswith(RATES)]
    assert set(compared) <= {most}
    assert bool(compared) == bool(most)


def test_the_rate_it_had_is_kept_where_no_other_is_better():
    """With the state of the usual trial: the longer one was to compare."""
    short = vj.cure(network(tx=vj.adam(3e-3)), data(), steps=STEPS, total_steps=8 * STEPS, key=KEY)
    assert [one.name for one in short.accepted] == ["lsuv"], str(short)
    (count,) = {int(x) for x in jax.tree.leaves(short.opt_state) if jnp.ndim(x) == 0}
    assert count == STEPS
    compared = [one for one in short.trials if one.steps == 4 * STEPS]
    # Four rates, Muon's steps, and other kernels that came nearly as far.
    assert [one.outcome for one in compared] == ["accepted"] + 6 * ["no better"]
    assert compared[5].remedy == "lsuv + slow_muon"
    assert short.cost > sum(one.steps for one in short.trials)


def blocks(count, tx):
    """A residual network with He's kernels in every branch, whose output is too large."""
    keys, he = jax.random.split(jax.random.key(0), 4), jax.nn.initializers.he_normal()
    shapes = {"in": (8, 32), "one": (32, 32), "two": (32, 32), "out": (32, 4)}
    params = {
        name: {"w": he(key, shape), "b": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def loss(params, batch):
        def dense(name, x):
            return x @ params[name]["w"] + params[name]["b"]

        x = dense("in", batch[0])
        for _ in range(count):
            x = x + dense("two", jax.nn.relu(dense("one", x)))
        logits = dense("out", x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return vj.Problem(loss, params, tx)


def test_a_network_that_learns_gets_other_steps_that_it_learns_more_by():
    """What leads after one trial, though not by enough, trains on beside other rates."""
    problem = blocks(1, optax.sgd(0.01))
    treatment = vj.cure(problem, data(), steps=STEPS, total_steps=8 * STEPS)
    assert treatment.before.healthy
    assert [one.name for one in treatment.accepted] == ["muon"], str(treatment)
    raced = [(one.steps, one.outcome) for one in treatment.trials if one.remedy == "muon"]
    assert raced == [(STEPS, "no better"), (4 * STEPS, "accepted")]
    told = {one.remedy: one for one in treatment.trials}
    assert {"small_output", "redraw", "adam_atan2"} <= told.keys()
    assert told["muon"].loss < min(told[rate].loss for rate in RATES)
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


def test_what_came_next_trains_on_beside_what_was_accepted():
    treatment = vj.cure(blocks(2, optax.sgd(1e-3)), data(), steps=STEPS, total_steps=8 * STEPS)
    accepted, *others = [one for one in treatment.trials if one.steps == 4 * STEPS]
    assert accepted.outcome == "accepted"
    assert [one.remedy.endswith(RATES) for one in others] == 4 * [True] + [False]
    assert others[-1].remedy == "match_targets + fit_rate", str(treatment)


def test_no_other_steps_where_a_long_training_follows():
    problem = blocks(1, optax.sgd(0.01))
    assert vj.cure(problem, data(), steps=STEPS, total_steps=50 * STEPS).problem is problem


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (optax.lion(0.03), {"rate_by_30"}),
        (optax.sgd(0.03), {"rate_x10"}),
        (optax.adam(3e-3), set()),
    ],
)
def test_a_network_that_learns_gets_a_rate_that_it_learns_more_by(tx, expected):
    """Where only a short training follows: none that makes up for a rate that isn't quite right."""
    problem = network("tanh", 3, tx=tx)
    treatment = vj.cure(problem, data(), steps=STEPS, total_steps=8 * STEPS)
    assert treatment.before.healthy
    assert {one.name for one in treatment.accepted} == expected, str(treatment)
    assert "only a short training follows" in str(treatment)
    assert "far from zero mean" not in str(treatment)
    assert [one.steps for one in treatment.trials[-1 - len(RATES) :]] == 5 * [4 * STEPS]
    assert (treatment.problem is problem) == (not expected)


def test_a_network_that_learns_keeps_its_rate_before_a_long_training():
    problem = network("tanh", 3, tx=optax.sgd(0.03))
    assert vj.cure(problem, data(), steps=STEPS).problem is problem


@pytest.mark.parametrize(("total", "slower"), [(50 * STEPS, True), (8 * STEPS, False)])
def test_a_residual_networks_new_kernels_get_smaller_steps_before_a_long_training(total, slower):
    treatment = vj.cure(blocks(12, optax.adam(1e-2)), data(), steps=STEPS, total_steps=total)
    names = {one.remedy for one in treatment.trials}
    assert ("slow_redraw" in names) == slower, str(treatment)
    assert [one.name for one in treatment.accepted] == ["slow_redraw" if slower else "redraw"]


@pytest.mark.parametrize(("rate", "told"), [(3e-2, False), (3e-3, True)])
def test_no_larger_steps_where_little_is_left_to_learn(rate, told):
    """They may fall apart later than a trial shows; what a trial shows already isn't tried."""
    problem = vj.mlp_problem(8, (64,), 1, loss="squared_error", tx=optax.adam(rate))
    x = jax.random.normal(jax.random.key(2), (24, 64, 8))
    batches = [(own, own[:, :1] + 0.5 * own[:, 1:2]) for own in x]
    treatment = vj.cure(problem, batches, steps=STEPS, total_steps=8 * STEPS)
    trials = {one.remedy: one for one in treatment.trials}
    assert {"rate_by_30", "rate_by_3"} <= trials.keys()
    larger = {"rate_x3", "rate_x10"} & trials.keys()
    assert larger == ({"rate_x3", "rate_x10"} if told else set()), str(treatment)
    assert all("little is left" in trials[name].reason for name in larger), str(treatment)
    assert trials["rate_by_3"].steps == 4 * STEPS
    assert treatment.cost >= sum(one.steps for one in treatment.trials)
    assert not {one.name for one in treatment.accepted} & larger


def test_a_rate_stands_inside_the_coordinates():
    """So that a network in units of its own is still looked at in those that its steps are in."""
    problem = vj.mlp_problem(8, (32,), 1, loss="squared_error", tx=vj.adam(1e-3))
    x = jax.random.normal(jax.random.key(2), (24, 64, 8))
    batches = [(own, 2e5 + 8e4 * (jnp.sin(own[:, :1]) + own[:, 1:2])) for own in x]
    treatment = vj.cure(problem, batches, steps=STEPS, total_steps=8 * STEPS)
    names = [one.name for one in treatment.accepted]
    assert "standardize_outputs" in names, str(treatment)
    assert names[-1] in RATES, str(treatment)
    rules = {rule for one in treatment.trials if one.remedy.endswith(RATES) for rule in one.rules}
    assert rules <= {"learning_rate"}, str(treatment)
    assert isinstance(treatment.start.tx, InCoordinates)
    start = treatment.start.tx.init(treatment.start.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(treatment.opt_state, start)
    assert treatment.after.healthy
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


def test_what_rounds_the_steps_comes_after_the_rate():
    """There each rate has a run of its own: no scale may stand behind the rounding."""
    problem = network("tanh", 2, param_dtype=jnp.bfloat16, tx=optax.sgd(1e-4))
    treatment = vj.cure(problem, data(), steps=STEPS, total_steps=8 * STEPS)
    assert any(one.remedy.endswith(RATES) for one in treatment.trials), str(treatment)
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


def test_rates_that_are_too_many_at_once_run_one_by_one(monkeypatch):
    seen = []

    def raced(problems, *args, rates=None):
        seen.append(len(problems))
        if len(problems) > 1:
            raise MemoryError
        return race(problems, *args)

    monkeypatch.setattr(rates, "race", raced)
    treatment = vj.cure(small(), data(), steps=STEPS, total_steps=8 * STEPS)
    assert seen == [5, 1, 1, 1, 1, 1]
    assert any(one.name in RATES for one in treatment.accepted), str(treatment)
