"""Two faults at once: remedies that show nothing alone, and mend the network together."""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vanishjax as vj
from tests.treatment.test_remedies import assert_recipe_makes
from vanishjax.treatment import Context, starts
from vanishjax.treatment.progress import Progress, Relief
from vanishjax.treatment.together import pairs

cures = sys.modules["vanishjax.treatment.cure"]

# Of the Adam-like optimizers among the remedies: too slow to make up for small kernels.
SLOW = 1e-4
X = jax.random.normal(jax.random.key(0), (16, 64, 8))
SUMS = [(x, jnp.sin(x[:, :1]) + x[:, 1:2]) for x in X]


@functools.cache
def small_kernels_at_a_small_rate():
    widths = (8, *(32,) * 8, 1)
    keys = jax.random.split(jax.random.key(1), len(widths))
    params = {
        str(i): jax.random.normal(key, shape) * shape[0] ** -0.5 / 1000
        for i, (key, shape) in enumerate(zip(keys, itertools.pairwise(widths), strict=False))
    }

    def loss_fn(params, batch):
        x, targets = batch
        *hidden, last = params.values()
        for kernel in hidden:
            x = jnp.tanh(x @ kernel)
        return vj.losses.squared_error(x @ last, targets)

    return vj.Problem(loss_fn, params, vj.sgd(1e-4)), SUMS


@functools.cache
def inputs_and_targets_in_units_of_their_own():
    plain = vj.mlp_problem(8, (32, 32), 1, loss="squared_error", tx=vj.adam(3e-3))

    def loss_fn(params, batch):
        return plain.loss_fn(params, ((batch[0] + 3.0) * 1e4, batch[1] * 1e4))

    return vj.Problem(loss_fn, plain.params, plain.tx), [
        (x, 3.0 + jnp.sin(x[:, :1]) + x[:, 1:2]) for x in X
    ]


def trained(problem, batches, steps=300):
    state, step = vj.TrainState.create(problem), jax.jit(vj.make_train_step(problem))
    for i in range(steps):
        state, _ = step(state, batches[i % 14])
    return np.mean([problem.plain_loss(state.params, batch) for batch in batches[14:]])


@pytest.mark.parametrize(
    ("make", "expected", "enough"),
    [
        (small_kernels_at_a_small_rate, ("small_lsuv", "fit_rate"), 0.5),
        (inputs_and_targets_in_units_of_their_own, ("standardize_inside", "match_targets"), 5e7),
    ],
    ids=["kernels and rate", "inputs and targets"],
)
def test_two_faults_are_mended_at_once(make, expected, enough):
    problem, batches = make()
    treatment = vj.cure(problem, batches, steps=40, learning_rate=SLOW)
    assert tuple(one.name for one in treatment.accepted) == expected, str(treatment)
    tried = {one.remedy: one.outcome for one in treatment.trials}
    assert tried[" + ".join(expected)] == "accepted"
    # Neither is enough.
    assert {tried.get(name, "no better") for name in expected} == {"no better"}
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)
    assert trained(treatment.start, batches) < enough < trained(problem, batches)


def reliefs(context, made, **after):
    """Remedies in the order of their losses, and how they left the network."""
    seen = vj.diagnose(context.problem, context.batch)
    changed = {name: after.pop(name) for name in ("loss", "constant_loss") if name in after}
    seen = dataclasses.replace(seen, probe=dataclasses.replace(seen.probe, **changed), **after)
    return [Relief(make(context), float(loss), seen) for loss, make in enumerate(made)]


@pytest.fixture(scope="module")
def context():
    problem, batches = small_kernels_at_a_small_rate()
    return Context(problem, batches[0])


NEW = (starts.lsuv, starts.redraw, starts.small_lsuv)


def named(found):
    return [(given.name, [(one.name, one.rate) for one in rest]) for given, rest in found]


@pytest.mark.parametrize("step", [None, np.nan, 0.005, 0.01, 0.03])
def test_nothing_is_paired_where_nothing_else_is_measured(context, step):
    assert pairs(reliefs(context, NEW, relative_step=step), context) == ()


@pytest.mark.parametrize(("step", "factor"), [(1e-5, 1000.0), (1.0, 0.01)])
def test_a_rate_far_off_is_fit_to_what_each_remedy_left(context, step, factor):
    found = pairs(reliefs(context, NEW, relative_step=step), context)
    assert named(found) == [
        ("lsuv", [("fit_rate", factor)]),
        ("redraw", [("fit_rate", factor)]),
    ]


@pytest.mark.parametrize(
    ("loss", "constant", "expected"),
    [(30.0, 1.0, True), (2.0, 1.0, False), (30.0, np.nan, False), (30.0, 0.0, False)],
)
def test_a_loss_far_above_a_constants_asks_for_the_targets(context, loss, constant, expected):
    left = {"loss": loss, "constant_loss": constant, "relative_step": 0.01}
    found = pairs(reliefs(context, [starts.zero_means], **left), context)
    assert named(found) == [("zero_means", [("match_targets", 1.0)])] * expected


def test_inputs_are_standardized_first_below_all_others():
    problem, batches = inputs_and_targets_in_units_of_their_own()
    context = Context(problem, batches[0])
    made = starts.match_targets, starts.lsuv, starts.standardize_inside
    found = pairs(reliefs(context, made, relative_step=0.01), context)
    assert named(found) == [
        ("standardize_inside", [("match_targets", 1.0), ("lsuv", 1.0)]),
        ("standardize_inside", [("match_targets", 1.0)]),
    ]


def test_slower_forms_are_no_relief_of_their_own(context):
    given = reliefs(context, NEW)
    slow = dataclasses.replace(given[0].remedy, safer_than="lsuv")
    relieved = dataclasses.replace(given[0], remedy=slow), *reversed(given)
    progress = Progress(context.problem, given[0].after, relieved=relieved)
    assert progress.reliefs == given


def test_what_cannot_be_taken_as_given_is_recorded(context, monkeypatch):
    def refuse(problem):
        raise ValueError("not for this network")

    pair = vj.Remedy("broken", refuse), (starts.lsuv(context),)
    monkeypatch.setattr(cures, "pairs", lambda reliefs, context: (pair,))
    _, batches = small_kernels_at_a_small_rate()
    told = []
    treatment = vj.cure(
        context.problem, batches, steps=40, learning_rate=SLOW, on_trial=told.append
    )
    (broken,) = (trial for trial in treatment.trials if trial.remedy == "broken")
    assert (broken.outcome, broken.reason) == ("failed", "ValueError: not for this network")
    assert told == list(treatment.trials)


def test_remedies_of_ones_own_are_not_paired(context):
    _, batches = small_kernels_at_a_small_rate()
    treatment = vj.cure(context.problem, batches, steps=4, remedies=[starts.lsuv(context)])
    assert not any("+" in one.remedy for one in treatment.trials)
