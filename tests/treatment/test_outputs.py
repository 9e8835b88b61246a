"""The last layer starts where the targets are."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.treatment import match_targets

X = jax.random.normal(jax.random.key(0), (256, 8))
PRICES = 250_000 + 80_000 * X[:, 0]


def predictor(outputs, **settings):
    return vj.mlp_problem(8, (32,), outputs, loss="squared_error", **settings)


def put_out(problem, loss_fn, batch):
    params = match_targets(loss_fn, problem.params, batch)
    return params, np.asarray(problem.predict_fn(params, batch[0]), np.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_unit_starts_at_its_targets_mean_and_some_way_apart(dtype):
    targets = jnp.stack([PRICES, 1e-3 * X[:, 1], 7.0 + 1e-2 * X[:, 2]], axis=1)
    problem = predictor(3, param_dtype=dtype, dtype=dtype)
    _, y = put_out(problem, problem.loss_fn, (X, targets))
    mean, width = np.mean(targets, axis=0), np.std(targets, axis=0)
    np.testing.assert_allclose(y.mean(0), mean, atol=0.02 * width.min(), rtol=1e-2)
    # A hundredth in bfloat16 is less than the next number after 7.
    units = 3 if dtype == jnp.float32 else 2
    np.testing.assert_allclose(y.std(0)[:units], 0.3 * width[:units], rtol=0.02)
    towards = y[:, 0] - y[:, 0].mean()
    assert np.mean(towards * (targets[:, 0] - mean[0])) > 0


def test_a_width_is_told_apart_from_a_mean():
    """A unit that is an exponent can't move as far as one that is a price."""
    problem = predictor(2)

    def loss_fn(params, batch):
        mean, log_width = problem.predict_fn(params, batch[0]).T
        return jnp.mean(log_width + ((batch[1] - mean) / jnp.exp(log_width)) ** 2 / 2)

    _, y = put_out(problem, loss_fn, (X, PRICES))
    assert y[:, 0].mean() == pytest.approx(float(PRICES.mean()), rel=0.1)
    assert y[:, 1].mean() == pytest.approx(float(jnp.log(PRICES.std())), abs=0.3)
    assert y[:, 1].std() < 1


def test_quantiles_start_at_those_of_the_targets():
    problem, shares = predictor(2), jnp.array([0.1, 0.9])

    def loss_fn(params, batch):
        error = batch[1][:, None] - problem.predict_fn(params, batch[0])
        return jnp.mean(jnp.maximum(shares * error, (shares - 1) * error))

    _, y = put_out(problem, loss_fn, (X, PRICES))
    np.testing.assert_allclose(y.mean(0), np.quantile(PRICES, [0.1, 0.9]), rtol=0.03)
    assert (y.std(0) < PRICES.std()).all()


def test_rare_classes_start_rare():
    problem = vj.mlp_problem(8, (32,), 3)
    labels = jnp.where(jnp.arange(256) % 16 < 13, 0, jnp.where(jnp.arange(256) % 16 < 15, 1, 2))
    _, y = put_out(problem, problem.plain_loss, (X, labels))
    shares = np.exp(y.mean(0)) / np.exp(y.mean(0)).sum()
    np.testing.assert_allclose(shares, [13 / 16, 2 / 16, 1 / 16], atol=0.03)


def test_classes_that_are_not_in_the_batch_stay_possible():
    """Their best logit is -inf, and the next batch may have them."""
    problem = vj.mlp_problem(8, (32,), 50)
    _, y = put_out(problem, problem.plain_loss, (X, jnp.arange(256) % 40))
    worst = jnp.full(256, 49)
    assert np.ptp(y.mean(0)) > 0.1
    assert problem.plain_loss(match_targets(problem, (X, jnp.arange(256) % 40)), (X, worst)) < 10


@pytest.mark.parametrize("penalty", [lambda w: jnp.sum(w * w), lambda w: jnp.vdot(w, w)])
def test_a_penalty_on_the_parameters_is_no_other_use_of_them(penalty):
    problem = predictor(1)

    def loss_fn(params, batch):
        error = problem.plain_loss(params, batch)
        return error + 1e-4 * sum(penalty(w) for w in jax.tree.leaves(params))

    _, y = put_out(problem, loss_fn, (X, PRICES[:, None]))
    assert y.mean() == pytest.approx(float(PRICES.mean()), rel=0.05)
    assert y.std() == pytest.approx(0.3 * float(PRICES.std()), rel=0.02)


def test_heads_side_by_side_each_by_its_own_targets():
    problem, prices = predictor(1), predictor(1, key=jax.random.key(1))
    params = {"one": problem.params, "other": prices.params}

    def loss_fn(params, batch):
        one = problem.predict_fn(params["one"], batch[0])[:, 0]
        other = prices.predict_fn(params["other"], batch[0])[:, 0]
        return jnp.mean((one - X[:, 1]) ** 2) + jnp.mean((other - PRICES) ** 2)

    new = match_targets(loss_fn, params, (X,))
    one, other = problem.predict_fn(new["one"], X), prices.predict_fn(new["other"], X)
    assert float(one.std()) == pytest.approx(0.3, rel=0.2)
    assert float(other.mean()) == pytest.approx(float(PRICES.mean()), rel=0.05)
    assert float(other.std()) == pytest.approx(0.3 * float(PRICES.std()), rel=0.02)


def test_only_the_last_layer_moves():
    model = eqx.nn.MLP(8, 2, 16, 2, key=jax.random.key(1))
    arrays, static = eqx.partition(model, eqx.is_array)

    def loss_fn(params, batch):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(batch[0]) - batch[1]) ** 2)

    targets = jnp.stack([PRICES, 3 * X[:, 1]], axis=1)
    new = match_targets(loss_fn, arrays, (X, targets))
    last = arrays.layers[-1]
    kept = eqx.tree_at(lambda m: m.layers[-1], new, last)
    assert all(
        bool((a == b).all())
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(arrays), strict=True)
    )
    # Each unit's kernel is scaled as a whole: in Equinox's layout a row.
    ratios = np.asarray(new.layers[-1].weight / last.weight)
    np.testing.assert_allclose(ratios, ratios[:, :1] * np.ones(16), rtol=1e-4)
    assert ratios[0, 0] > 1e3 * ratios[1, 0] > 0


def tied(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["w"]) @ params["w"].T - batch[0]) ** 2)


def twins(params, batch):
    one, other = (x @ params["kernel"] + params["bias"] for x in (batch[0], batch[0][::-1]))
    return jnp.mean((one * other - 1) ** 2)


@pytest.mark.parametrize(
    ("loss_fn", "params"),
    [
        (tied, {"w": jnp.eye(8)}),
        (twins, {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}),
    ],
)
def test_what_cannot_be_matched_is_refused(loss_fn, params):
    with pytest.raises(ValueError, match=r"can't be matched to the targets"):
        match_targets(loss_fn, params, (X,))
    # Or made small, if that helps enough.
    small = vj.initializers.small_output(loss_fn, params, (X,), below=0.99)
    chex.assert_trees_all_equal(match_targets(loss_fn, params, (X,), below=0.99), small)
    chex.assert_trees_all_equal(match_targets(loss_fn, params, (X,), below=1e-9), params)


@pytest.fixture(scope="module")
def problem():
    tx = optax.adam(1e-3)
    return vj.mlp_problem(8, (64, 64), 1, activation="relu", loss="squared_error", tx=tx)


@pytest.mark.parametrize(
    ("unit", "offset", "remedy"),
    [
        (8e4, 2.5e5, "standardize_outputs"),
        (1.0, 1e3, "match_targets"),
        (0.1, 30.0, "match_targets"),
    ],
)
def test_targets_of_another_size_are_cured_at_once(unit, offset, remedy, problem):
    x = jax.random.normal(jax.random.key(2), (24, 64, 8))
    batches = [(a, offset + unit * (a[:, :1] + a[:, 1:2] * a[:, 2:3])) for a in x]
    treatment = vj.cure(problem, batches, steps=40)
    assert [one.name for one in treatment.accepted] == [remedy], str(treatment)
    spread = float(np.var([y for _, y in batches]))
    tried = {trial.remedy: trial.loss for trial in treatment.trials}
    assert tried[remedy] < 0.7 * spread < 5 * spread < tried["untreated"]
