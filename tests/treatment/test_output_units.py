"""Targets of unit size, by the last layer's coordinates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from tests.treatment.test_coordinates import assert_keeps_the_form
from tests.treatment.test_remedies import assert_recipe_makes
from vanishjax.treatment import standardize_outputs
from vanishjax.treatment.loss import as_judged

X = jax.random.normal(jax.random.key(0), (256, 8))
SHAPES = jnp.stack([jnp.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]], axis=1)
SHAPES = (SHAPES - SHAPES.mean(0)) / SHAPES.std(0)
UNITS = {
    "dollars": (jnp.array([250_000.0, 2e5]), jnp.array([80_000.0, 80_000.0])),
    "volts": (jnp.array([3e-5, 0.0]), jnp.array([2e-5, 2e-5])),
}
OPTIMIZERS = {
    "sgd": lambda: vj.sgd(0.05, momentum=0.9),
    "adam": lambda: vj.adam(3e-3),
    "clipped": lambda: optax.chain(vj.clip_by_global_norm(0.1), vj.adam(3e-3, eps=0.01)),
    "lbfgs": optax.lbfgs,
}


def predictor(outputs=2, **settings):
    return vj.mlp_problem(8, (32,), outputs, loss="squared_error", **settings)


def losses_of(problem, params, batch, tx, steps=24):
    step = vj.make_train_step(problem.loss_fn, tx)
    state, losses = vj.TrainState.create(params, tx), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_that_of_standardized_targets(units, optimizer):
    problem, (zero, one) = predictor(), UNITS[units]
    expected = losses_of(problem, problem.params, (X, SHAPES), OPTIMIZERS[optimizer]())
    batch = X, zero + one * SHAPES
    last = problem.params["output"]
    params = problem.params | {
        "output": {"kernel": last["kernel"] * one, "bias": last["bias"] * one + zero}
    }
    found = standardize_outputs(problem, batch)
    assert found.loss == pytest.approx(float(one[0]) ** 2, rel=1e-2)
    raw = losses_of(problem, params, batch, found.transform(OPTIMIZERS[optimizer]()))
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(raw / float(one[0]) ** 2, expected, rtol=0.03)
    plain = losses_of(problem, params, batch, OPTIMIZERS[optimizer]())
    assert not np.allclose(plain / float(one[0]) ** 2, expected, rtol=0.03)


def test_every_unit_has_its_own():
    targets = SHAPES * jnp.array([4e3, 2e-2])
    found = standardize_outputs(predictor(), (X, targets))
    kernel, bias = found.units[2], found.units[3]
    assert sorted([kernel.shape, bias.shape], key=len) == [(2,), (1, 2)]
    for one in (kernel, bias):
        np.testing.assert_allclose(one.ravel(), [4e3, 2e-2], rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_and_updates_keep_their_form(dtype):
    problem = predictor(param_dtype=dtype, dtype=dtype)
    assert_keeps_the_form(standardize_outputs(problem, (X, 1e4 * SHAPES)), problem.params)


def test_targets_near_unit_size_are_refused():
    with pytest.raises(ValueError, match="no targets are known to be far"):
        standardize_outputs(predictor(), (X, 1000 + 3 * SHAPES))
    classes = vj.mlp_problem(8, (32,), 4)
    with pytest.raises(ValueError, match="no targets are known to be far"):
        standardize_outputs(classes, (X, jnp.arange(256) % 4))
    with pytest.raises(ValueError, match="has no bias beside it"):
        standardize_outputs(
            lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2),
            jnp.ones((8, 2)),
            (X, 1e4 * SHAPES),
        )


def autoencoder(unit):
    """Signals of a unit of their own, taken in and put out."""
    problem = vj.mlp_problem(16, (32, 4, 32), 16, loss="squared_error", tx=vj.adam(4e-3))
    times = jnp.linspace(0, 1, 16)
    low, high = jax.random.normal(jax.random.key(1), (2, 24, 64, 1))
    beats = 0.5 + low * jnp.sin(6 * times) + high * jnp.cos(9 * times)
    batches = [unit * beat for beat in beats]

    def loss_fn(params, beat):
        return problem.loss_fn(params, (beat, beat))

    return vj.Problem(loss_fn, problem.params, problem.tx), batches


def trained(problem, batches, unit, opt_state=None):
    step = jax.jit(vj.make_train_step(problem))
    state = vj.TrainState.create(problem)
    for i in range(300):
        state, _ = step(state, batches[i % 20])
    return np.mean([problem.plain_loss(state.params, x) for x in batches[20:]]) / unit**2


@pytest.mark.parametrize("unit", [2e-5, 3e4])
def test_what_is_input_and_target_in_a_unit_of_its_own_is_cured(unit):
    plain, (problem, batches) = autoencoder(1.0), autoencoder(unit)
    treatment = vj.cure(problem, batches, steps=40, total_steps=300)
    names = [one.name for one in treatment.accepted]
    assert {"standardize_inside", "standardize_outputs"} <= set(names), str(treatment)
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)
    best, spoiled = trained(*plain, 1.0), trained(problem, batches, unit)
    assert trained(treatment.start, batches, unit) < 2 * best < 0.2 * spoiled


def test_inputs_are_tried_again_once_targets_are_mended():
    """Each hides the other: all units are saturated, and the loss is that of the targets' mean."""
    problem = vj.mlp_problem(8, (32, 32), 1, loss="squared_error", tx=vj.adam(4e-3))
    x = jax.random.normal(jax.random.key(2), (24, 64, 8))
    batches = [(3e4 + 4e3 * own, 2e4 + 5e3 * (jnp.sin(own[:, :1]) + own[:, 1:2])) for own in x]
    treatment = vj.cure(problem, batches, steps=40, total_steps=300)
    names = {one.name for one in treatment.accepted}
    assert "standardize_outputs" in names, str(treatment)
    assert names & {"standardize", "standardize_inside"}, str(treatment)
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


class House(nnx.Module):
    """Prices of houses, in dollars, of square feet, years and lots."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 32, rngs=rngs)
        self.second = nnx.Linear(32, 32, rngs=rngs)
        self.price = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.price(nnx.relu(self.second(nnx.relu(self.first(x)))))[:, 0]


def prices_of_houses(seed, rate):
    """Their model in a problem, and batches: three inputs and the target in units of their own."""
    shapes = jax.random.normal(jax.random.key(seed), (24, 64, 3))
    batches = [
        (
            jnp.array([2000.0, 1985.0, 9000.0]) + jnp.array([600.0, 20.0, 4000.0]) * z,
            350_000 + 90_000 * (z[:, 0] + jnp.tanh(z[:, 1])),
        )
        for z in shapes
    ]

    def loss_fn(model, batch):
        return jnp.mean((model(batch[0]) - batch[1]) ** 2)

    return vj.Problem.from_nnx(House(nnx.Rngs(seed)), loss_fn, optax.adam(rate)), batches


@pytest.mark.parametrize(
    ("seed", "rate", "steps", "lost"),
    [(0, 1e-3, 60, 0.2), (1, 1e-3, 100, 0.05), (2, 1e-2, 200, 0.01)],
)
def test_inputs_and_targets_in_units_of_their_own_are_mended_together(seed, rate, steps, lost):
    """Either alone is enough for a part of the loss, and so are new kernels, or a large rate."""
    problem, batches = prices_of_houses(seed, rate)
    treatment = vj.cure(problem, batches, steps=steps)
    prices = float(np.var([price for _, price in batches]))
    names = {one.name for one in treatment.accepted}
    assert "standardize_outputs" in names, str(treatment)
    assert names & {"standardize", "standardize_inside"}, str(treatment)
    assert min(one.loss for one in treatment.trials if one.outcome == "accepted") < lost * prices
    # Of dollars squared three digits are told.
    assert max(map(len, str(treatment).splitlines())) <= 80
    assert "untreated" in str(treatment)
    assert "e+" in str(treatment)
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


def test_a_model_that_gets_no_further_than_a_constant_is_not_taken_for_one_that_learns():
    """Its loss falls for hundreds of steps, and lies six times above that of one price for all."""
    problem, batches = prices_of_houses(0, 1e-3)
    treatment = vj.cure(problem, batches, steps=100)
    prices = float(np.var([price for _, price in batches]))
    assert treatment.trials[0].loss > 2 * prices
    assert "standardize_outputs" in {one.name for one in treatment.accepted}, str(treatment)
    best = min(one.loss for one in treatment.trials if one.outcome == "accepted")
    assert best < 0.8 * prices


def test_what_a_constant_reaches_is_asked_of_the_loss_in_evaluation():
    problem = predictor()
    batch = X, SHAPES
    before = vj.diagnose(problem, batch)
    same = as_judged(before, problem, [batch])
    assert same.probe.constant_loss == pytest.approx(before.probe.constant_loss, rel=1e-3)
    other = dataclasses.replace(problem, evaluate_fn=lambda p, b: 100 * problem.loss_fn(p, b))
    seen = as_judged(before, other, [batch])
    assert seen.probe.constant_loss == pytest.approx(100 * before.probe.constant_loss, rel=1e-3)
    assert seen.findings == before.findings


def test_what_a_constant_reaches_is_fitted_to_each_held_out_batch():
    problem = predictor()
    before = vj.diagnose(problem, (X, SHAPES))
    half = len(X) // 2
    halves = [(X[:half], SHAPES[:half]), (X[half:], SHAPES[half:])]
    each = [as_judged(before, problem, [one]).probe.constant_loss for one in halves]
    assert each[0] != each[1]
    both = as_judged(before, problem, halves).probe.constant_loss
    assert both == pytest.approx(np.mean(each), rel=1e-6)
