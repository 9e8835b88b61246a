"""Standardized inputs: which arrays are inputs, what divides them, what `cure` makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax.treatment import standardize_inputs
from vanishjax.treatment.inputs import far_from_standard

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (64, 8))
LABELS = jnp.argmax(X[:, :4], axis=1)


def affine(w, x):
    return jnp.tanh(x @ w["first"]) @ w["last"]


PARAMS = {"first": jnp.eye(8) / 4, "last": jnp.ones((8, 8)) / 8}


def regression(w, batch):
    return jnp.mean((affine(w, batch["x"]) - batch["y"]) ** 2)


def test_inputs_are_standardized_and_targets_are_not():
    batch = {"x": 1e5 + 3 * X, "y": 1e5 + X, "weights": jnp.full(64, 1e5)}

    def weighted(w, batch):
        error = jnp.mean((affine(w, batch["x"]) - batch["y"]) ** 2, axis=1)
        return jnp.mean(error * batch["weights"])

    new = standardize_inputs(weighted, PARAMS, batch).standardize(batch)
    np.testing.assert_allclose(new["x"].mean(), 0, atol=1e-3)
    np.testing.assert_allclose(new["x"].std(), 1, rtol=1e-3)
    for name in ("y", "weights"):
        np.testing.assert_array_equal(new[name], batch[name])


def test_each_feature_by_itself_only_where_one_is_far_larger_than_most():
    uneven = (1 + X).at[:, 3].multiply(1e4)
    new = standardize_inputs(regression, PARAMS, {"x": uneven, "y": X}).standardize({"x": uneven})
    np.testing.assert_allclose(new["x"].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(new["x"].std(0), 1, rtol=1e-4)
    even = 1e3 * X * jnp.linspace(1, 2, 8)
    new = standardize_inputs(regression, PARAMS, {"x": even, "y": X}).standardize({"x": even})
    ratios = new["x"].std(0) / even.std(0)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


def test_a_feature_of_a_small_unit_beside_a_large_one_gets_unit_size():
    uneven = X.at[:, 3].multiply(1e6).at[:, 0].multiply(1e-4)
    standard = standardize_inputs(regression, PARAMS, {"x": uneven, "y": X})
    new = standard.standardize({"x": uneven})["x"]
    np.testing.assert_allclose(new.std(0), 1, rtol=1e-3)


def test_a_few_features_are_columns_each_in_a_unit_of_its_own():
    """Vehicles a day, kilometers an hour and meters: none is thirty times as large as most."""
    table = jnp.array([2.2e4, 55.0, 850.0]) + jnp.array([7e3, 15.0, 300.0]) * X[:, :3]
    means, deviations = (np.asarray(table.mean(0)), np.asarray(table.std(0)))
    mean, deviation = far_from_standard(means, deviations)
    np.testing.assert_allclose(mean, means, rtol=1e-6)
    np.testing.assert_allclose(deviation, deviations, rtol=1e-6)
    # Many may be pixels, and these aren't far.
    many = np.resize(means, 99), np.resize(deviations, 99)
    assert far_from_standard(*many)[1].shape == ()
    assert far_from_standard(np.array([0.0, 2.0]), np.array([1.0, 0.01])) is None


def test_a_feature_that_is_constant_in_one_batch_is_not_blown_up():
    uneven = X.at[:, 3].multiply(1e4).at[:, 0].set(7.0)
    standard = standardize_inputs(regression, PARAMS, {"x": uneven, "y": X})
    other = standard.standardize({"x": uneven.at[:, 0].set(8.0)})["x"]
    assert jnp.abs(other[:, 0]).max() < 30


@pytest.mark.parametrize(
    ("loss_fn", "batch"),
    [
        (regression, {"x": jnp.tile(jnp.array([*[1.0] * 7, 1e4]), (64, 1)), "y": X}),
        (regression, {"x": X, "y": 1e5 * X}),
        (lambda w, x: jnp.mean((affine(w, x) - x) ** 2), 1e5 + X),
        (lambda w, x: jnp.mean(affine(w, x + w["first"][0]) ** 2), 1e5 + X),
        (lambda w, x: jnp.mean(affine(w, jax.nn.one_hot(x, 8)) ** 2), jnp.arange(64) * 1000),
    ],
    ids=["all alike", "usual", "autoencoder", "positions", "tokens"],
)
def test_what_is_no_input_or_needs_nothing_is_refused(loss_fn, batch):
    with pytest.raises(ValueError, match="no input of the loss is far from zero mean and unit"):
        standardize_inputs(loss_fn, PARAMS, batch)


def test_inputs_of_a_loop_over_layers_are_inputs():
    problem = vj.mlp_problem(8, (8,) * 6, 4, activation="tanh")  # the middle is scanned
    batch = 1e4 * X, LABELS
    new, labels = standardize_inputs(problem.loss_fn, problem.params, batch).standardize(batch)
    np.testing.assert_allclose(new.std(), 1, rtol=1e-3)
    assert (labels == LABELS).all()


@pytest.fixture(scope="module")
def problem():
    return vj.mlp_problem(8, (32, 32), 4, activation="tanh", tx=vj.adam(3e-3))


@pytest.mark.parametrize(
    "spoiled", [lambda x: x + 1e5, lambda x: x.at[..., 5].multiply(1e4), lambda x: 1e-6 * x]
)
def test_inputs_far_from_standard_are_cured(spoiled, problem):
    x = jax.random.normal(KEY, (16, 64, 8))
    batches = [(spoiled(own), jnp.argmax(own[:, :4], axis=1)) for own in x]
    treatment = vj.cure(problem, batches, steps=40)
    assert [one.name for one in treatment.accepted] == ["standardize"], str(treatment)
    accepted = next(one for one in treatment.trials if one.outcome == "accepted")
    assert accepted.accuracy > 0.8
    # The recipe's loss is that of the cured problem.
    names = {"loss_fn": problem.plain_loss, "params": problem.params, "batch": treatment.batch}
    exec(treatment.recipe, {"vj": vj} | names, scope := {})  # noqa: S102
    for batch in batches[:2]:
        assert scope["loss_fn"](problem.params, batch) == treatment.start.plain_loss(
            problem.params, batch
        )


@pytest.mark.parametrize("unit", [1.0, 3e4])
def test_an_operation_that_large_inputs_break_is_no_fault_of_the_code_alone(unit):
    """The logarithm of a probability that is 0 in float32, as people write it by hand."""
    problem = vj.mlp_problem(8, (32,), 1, activation="relu", loss="squared_error", tx=vj.adam(1e-2))

    def loss_fn(params, batch):
        chance = jax.nn.sigmoid(problem.predict_fn(params, batch[0]))
        return -jnp.mean(jnp.where(batch[1] > 0, jnp.log(chance), jnp.log(1 - chance)))

    x = jax.random.normal(jax.random.key(0), (16, 64, 8))
    batches = [(unit * own, jnp.sign(own[:, :1])) for own in x]
    treatment = vj.cure(vj.Problem(loss_fn, problem.params, problem.tx), batches, steps=60)
    if unit == 1:
        assert treatment.before.healthy
    else:
        (found,) = (one for one in treatment.before.findings if one.severity == "critical")
        assert found.rule == "nonfinite"
        assert found.where is not None
        names = {one.name for one in treatment.accepted}
        assert names & {"standardize", "standardize_inside"}, str(treatment)
        assert treatment.after.healthy


def test_a_model_with_an_evaluation_of_its_own_is_evaluated_on_standardized_inputs():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 32, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.last = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dropout(nnx.tanh(self.first(x))))

    def loss_fn(model, batch):
        return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()

    problem = vj.Problem.from_nnx(Net(nnx.Rngs(0)), loss_fn, vj.adam(3e-3))
    x = jax.random.normal(KEY, (16, 64, 8))
    batches = [(1e5 + own, jnp.argmax(own[:, :4], axis=1)) for own in x]
    treatment = vj.cure(problem, batches, steps=40)
    assert treatment.accepted[0].name == "standardize", str(treatment)
    assert treatment.after.healthy
    assert isinstance(treatment.problem.model(), Net)


def test_what_a_loss_differentiates_by_is_left_as_it_is():
    layers = {"first": jnp.eye(2, 8), "last": jnp.ones((8, 1)) / 8}

    def equation(w, points):
        slope = jax.vmap(jax.grad(lambda z: jnp.tanh(z @ w["first"]) @ w["last"][:, 0]))(points)
        return jnp.mean((slope[:, 0] - slope[:, 1]) ** 2)

    problem = vj.Problem(equation, layers, vj.adam(1e-3))
    batches = [1e4 * jax.random.normal(jax.random.key(i), (32, 2)) for i in range(6)]
    treatment = vj.cure(problem, batches, steps=3)
    assert "standardize" not in [trial.remedy for trial in treatment.trials]
