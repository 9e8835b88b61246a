"""deflate, center and deep_muon: their identities, formulas, trees, and what they train."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import vanishjax as vj
from tests.trajectory import assert_close
from vanishjax.models import unstack_params
from vanishjax.training.data.digits import read_digits


def batch_of(key=0, examples=32, features=6):
    x = jax.random.normal(jax.random.key(key), (examples, features))
    return x, jnp.arange(examples) % 3


def mlp(depth=5, width=8, **options):
    options = {"activation": "sigmoid"} | options
    return vj.mlp_problem(6, (width,) * depth, 3, key=jax.random.key(1), **options)


def layers_of(problem, batch):
    return vj.find_layers(problem.params, problem.loss_fn, batch)


def dense_gradient(h, delta):
    """The gradient of a layer z = h W + b for activations and cotangents `[batch, units]`."""
    return {"kernel": h.T @ delta, "bias": delta.sum(0)}


def test_deflation_is_the_gradient_less_its_mean_activation_part():
    rng = np.random.default_rng(0)
    h = 5 + rng.normal(size=(64, 7))
    delta = 0.3 + rng.normal(size=(64, 4))
    g = dense_gradient(h, delta)
    u = g["bias"] / np.linalg.norm(g["bias"])
    # sum (h - hbar)(delta - mean delta)^T, the mean-activation part hbar g_b^T taken out ...
    centered = (h - h.mean(0)).T @ (delta - delta.mean(0))
    np.testing.assert_allclose(centered, g["kernel"] - np.outer(h.mean(0), g["bias"]))
    # ... and of that what lies along the bias's gradient.
    expected = centered - np.outer(centered @ u, u)
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g)
    tx = vj.deflate()
    found, _ = tx.update(single, tx.init(single))
    bound = 4 * np.finfo(np.float32).eps * np.linalg.norm(g["kernel"])
    np.testing.assert_allclose(found["kernel"], expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(found["bias"], single["bias"])


def test_what_is_left_is_orthogonal_to_the_bias_gradient_even_when_it_is_small():
    rng = np.random.default_rng(0)
    delta = rng.normal(size=5)
    g = {"kernel": np.outer(np.ones(9), delta) + 1e-4 * rng.normal(size=(9, 5)), "bias": delta}
    g = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g)
    for normalize in (False, True):
        tx = vj.deflate(normalize=normalize)
        w = np.asarray(tx.update(g, tx.init(g))[0]["kernel"], np.float64)
        along = w @ (delta / np.linalg.norm(delta))
        assert np.abs(along).max() < 1e-6 * np.linalg.norm(w)
    np.testing.assert_allclose(np.sqrt(np.mean(w**2)), 1, rtol=1e-6)


def centered_descent(gradients, rate, decay):
    """`center(sgd)` of one layer in float64, step by step."""
    mean, steps = None, []
    for g in gradients:
        gw, gb = g["kernel"].astype(np.float64), g["bias"].astype(np.float64)
        hbar = np.clip(gw @ gb / (gb @ gb), -5, 5)
        mean = hbar if mean is None else decay * mean + (1 - decay) * hbar
        u = gb / np.linalg.norm(gb)
        step = -rate * (gw - np.outer(gw @ u, u))
        steps.append({"kernel": step, "bias": -rate * gb - mean @ step})
    return steps


def test_center_is_the_float64_loop():
    rng = np.random.default_rng(1)
    gradients = [
        dense_gradient(1 + rng.normal(size=(16, 6)), rng.normal(size=(16, 4)) + 0.5)
        for _ in range(6)
    ]
    tx = vj.center(optax.sgd(0.1), decay=0.8)
    params = {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}
    state, update = tx.init(params), jax.jit(tx.update)
    for g, expected in zip(gradients, centered_descent(gradients, 0.1, 0.8), strict=True):
        g = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g)
        updates, state = update(g, state, params)
        assert_close(updates, expected, 2e-6)


def test_a_centered_step_leaves_the_mean_output_where_it_is():
    problem, batch = mlp(depth=4, scan=False), batch_of()
    layers = layers_of(problem, batch)
    gradient = jax.grad(problem.loss_fn)(problem.params, batch)
    # Only kernels move, so that all that biases do is to make up for them.
    only = optax.masked(optax.set_to_zero(), lambda p: layers.map(lambda x, axes: x.ndim == 1, p))

    def mean_outputs(params):
        h, means = np.asarray(batch[0]), []
        for i in range(4):
            layer = jax.tree.map(np.asarray, params[f"hidden_{i}"])
            z = h @ layer["kernel"] + layer["bias"]
            h, means = 1 / (1 + np.exp(-z)), [*means, z.mean(0)]
        return means

    def moved(tx):
        updates, _ = jax.jit(tx.update)(gradient, tx.init(problem.params), problem.params)
        return mean_outputs(optax.apply_updates(problem.params, updates))

    inner = optax.chain(vj.orthogonalize(), only, optax.scale(-0.1))
    before = mean_outputs(problem.params)
    plain, centered = moved(inner), moved(vj.center(inner, layers=layers))
    # The layers behind the first, where the estimate of the mean is good.
    for a, b, c in list(zip(before, plain, centered, strict=True))[2:]:
        assert np.abs(c - a).max() < 0.1 * np.abs(b - a).max()


OPTIMIZERS = {
    "deflate": lambda layers: vj.deflate(layers),
    "center": lambda layers: vj.center(optax.sgd(0.1, 0.9), layers=layers),
    "center-muon": lambda layers: vj.center(
        vj.muon(0.1, layers=layers), layers=layers, normalize=True
    ),
    "polar_growth": lambda layers: vj.polar_growth(optax.sgd(0.1), layers=layers, steps=2),
    "recondition": lambda layers: vj.recondition(optax.sgd(0.1), layers=layers),
    "deep_muon": lambda layers: vj.deep_muon(0.1, 10, layers=layers),
    "deep_muon-recondition": lambda layers: vj.deep_muon(0.1, 10, layers=layers, recondition=True),
}


# The polar factor's ten Newton-Schulz steps multiply rounding errors by up to 3.4445 each.
FLOAT64_ROUNDING = 3.4445**10 * np.finfo(np.float64).eps * 10


def trained(problem, batch, make, steps=3):
    """Parameters after a few steps, in float64."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem.params)
    batch = jnp.asarray(batch[0], jnp.float64), batch[1]
    tx = make(vj.find_layers(params, problem.loss_fn, batch))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(problem.loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


# All but those that deep_muon-recondition is made of.
@pytest.mark.parametrize("name", ["deflate", "center", "polar_growth", "deep_muon-recondition"])
def test_stacked_equals_unrolled(name):
    problem, batch = mlp(depth=3, scan=True), batch_of()
    with jax.enable_x64(True):
        stacked = trained(problem, batch, OPTIMIZERS[name])
        unrolled = mlp(depth=3, scan=False)
        unrolled = vj.Problem(unrolled.loss_fn, unstack_params(problem.params), unrolled.tx)
        apart = trained(unrolled, batch, OPTIMIZERS[name])
        assert_close(unstack_params(stacked), dict(apart), FLOAT64_ROUNDING)


def test_nnx_equals_linen():
    make = OPTIMIZERS["deep_muon-recondition"]
    problem, batch = mlp(depth=3, scan=False), batch_of()
    graph, state = nnx.split(vj.NnxMLP(6, (8,) * 3, 3, activation="sigmoid", rngs=nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, problem.params)

    def loss_fn(state, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            nnx.merge(graph, state)(batch[0]), batch[1]
        ).mean()

    with jax.enable_x64(True):
        twin = vj.Problem(loss_fn, state, problem.tx)
        found = nnx.to_pure_dict(trained(twin, batch, make))
        expected = trained(problem, batch, make)
        assert_close(found, dict(expected), FLOAT64_ROUNDING)


@pytest.mark.parametrize(
    ("name", "axis"),
    [("center", 2), ("polar_growth", 1), ("deep_muon-recondition", 0)],
)
def test_sharded_equals_unsharded(name, axis):
    problem, batch = mlp(depth=9), batch_of()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def placed(path, x):
        spec = [None] * x.ndim
        if "hidden_stack" in jax.tree_util.keystr(path) and axis < x.ndim:
            spec[axis] = "x"
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.enable_x64(True):
        plain = trained(problem, batch, OPTIMIZERS[name])
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem.params)
        spread = jax.tree_util.tree_map_with_path(placed, params)
        twin = vj.Problem(problem.loss_fn, spread, problem.tx)
        # What deflation leaves is small, and with it goes the share of rounding errors.
        assert_close(trained(twin, batch, OPTIMIZERS[name]), plain, 1e-6)


def test_a_mean_beyond_belief_is_bounded():
    """Where the bias's gradient cancels over the batch, what is read off it is noise."""
    tx = vj.center(optax.sgd(1.0))
    params = {"w": jnp.eye(2), "b": jnp.zeros(2)}
    gradient = {"w": jnp.array([[1.0, 1.0], [-1.0, -1.0]]), "b": jnp.full(2, 1e-3)}
    _, state = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(state.activations.means[0], [[5.0, -5.0]])


def test_names_and_shapes_of_other_libraries():
    rng = np.random.default_rng(0)
    h, delta = 2 + rng.normal(size=(32, 6)), rng.normal(size=(32, 4)) + 1
    g = {k: jnp.asarray(v, jnp.float32) for k, v in dense_gradient(h, delta).items()}
    tx = vj.deflate()
    expected = tx.update(g, tx.init(g))[0]["kernel"]
    others = {
        "plain": ({"w": g["kernel"], "b": g["bias"]}, "w", lambda w: w),
        "equinox": ({"weight": g["kernel"].T, "bias": g["bias"]}, "weight", lambda w: w.T),
        "heads": (
            {"kernel": g["kernel"].reshape(6, 2, 2), "bias": g["bias"].reshape(2, 2)},
            "kernel",
            lambda w: w.reshape(6, 4),
        ),
        "convolution": (
            {"kernel": g["kernel"].reshape(3, 2, 4), "bias": g["bias"]},
            "kernel",
            lambda w: w.reshape(6, 4),
        ),
        "equinox-convolution": (
            {"weight": g["kernel"].T.reshape(4, 2, 3), "bias": g["bias"].reshape(4, 1)},
            "weight",
            lambda w: w.reshape(4, 6).T,
        ),
    }
    for kind, (tree, key, matrix) in others.items():
        found = tx.update(tree, tx.init(tree))[0][key]
        np.testing.assert_allclose(matrix(found), expected, rtol=1e-5, atol=1e-6, err_msg=kind)


REFUSED = {
    "no bias": ({"embed": {"embedding": jnp.ones((9, 4))}}, "embed/embedding: no bias beside it"),
    "bias of another shape": (
        {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(3)},
        r"bias of shape \(3,\) isn't the bias of kernel of shape \(3, 4\)",
    ),
    "integer": ({"w": jnp.ones((2, 2), int), "b": jnp.ones(2)}, "w: expected a real floating"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_refuses_by_name(name, case):
    params, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        OPTIMIZERS[name](None).init(params)


def test_what_has_no_partner_can_be_masked_out():
    params = {"embedding": jnp.ones((5, 4)), "out": {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}}
    mask = {"embedding": False, "out": True}
    tx = optax.masked(vj.deep_muon(0.1, 10), mask)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["embedding"], params["embedding"])
    assert np.abs(updates["out"]["b"]).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vj.deep_muon(0.1, 0), "total_steps must be at least 1, got 0"),
        (lambda: vj.center(decay=1.0), r"decay must lie in \[0, 1\), got 1.0"),
        (lambda: vj.deep_muon(0.1, 10, momentum=-0.5), r"momentum must lie in \[0, 1\)"),
        (lambda: vj.polar_growth(steps=-1), "steps must not be negative, got -1"),
        (lambda: vj.polar_growth(rate=-0.1), "rate must not be negative"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("transform", [vj.recondition, vj.polar_growth])
def test_parameters_are_needed(transform):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = transform()
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))


def test_deep_muon_is_scale_free_layer_by_layer():
    """Every layer's gradient times another power of two: the same trajectory.

    In doubles: Newton-Schulz makes much of how a program rounds (`tests.trajectory`).
    """
    problem, batch = mlp(depth=4, scan=False), batch_of()
    tx = vj.deep_muon(0.1, 10, layers=layers_of(problem, batch))
    gradient = jax.grad(problem.loss_fn)(problem.params, batch)
    params, gradient = jax.tree.map(np.float64, (problem.params, gradient))
    step = jax.jit(tx.update)

    def updates(factor):
        state, found = tx.init(params), []
        for i in range(3):
            factors = [(1 + i) * factor(number) for number in range(len(gradient))]
            scaled = {
                name: jax.tree.map(lambda g, by=by: by * g, layer)
                for by, (name, layer) in zip(factors, gradient.items(), strict=True)
            }
            update, state = step(scaled, state, params)
            found.append(update)
        return found

    with jax.enable_x64(True):
        plain = updates(lambda _: 1.0)
        for exponent in (-90, 90):
            moved = updates(lambda number, n=exponent: 2.0 ** (n if number % 2 else 0))
            assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype(np.float64)}
            assert_close(moved, plain, FLOAT64_ROUNDING)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_layer_without_numbers_keeps_its_mean(bad):
    tx = vj.center(optax.sgd(0.1))
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    _, state = tx.update(params, tx.init(params), params)
    _, after = tx.update({"w": jnp.full((3, 2), bad), "b": jnp.ones(2)}, state, params)
    chex.assert_trees_all_equal(after.activations, state.activations)


def test_no_gradient_means_no_step_and_nothing_seen():
    tx = vj.deep_muon(0.1, 10)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, tx.init(params), params)
    chex.assert_trees_all_equal(updates, zeros)
    assert not state.activations.seen[0].any()


def test_the_rate_falls_to_its_end_or_follows_a_schedule():
    params = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    gradient = {"w": jnp.zeros((1, 1)), "b": jnp.ones(1)}

    def steps(tx):
        state, found = tx.init(params), []
        for _ in range(6):
            update, state = tx.update(gradient, state, params)
            found.append(-float(update["b"][0]))
        return found

    falling = steps(vj.deep_muon(1.0, 5, end_rate=0.5, rest_rate=1.0))
    np.testing.assert_allclose(falling, [1, 0.9, 0.8, 0.7, 0.6, 0.5], rtol=1e-6)
    given = steps(vj.deep_muon(lambda count: 0.5**count, 5, rest_rate=1.0))
    np.testing.assert_allclose(given, 0.5 ** np.arange(6), rtol=1e-6)


@pytest.mark.slow
def test_deep_muon_trains_a_sigmoid_network_where_adam_and_muon_do_not():
    digits, steps = read_digits().train, 400
    x = jnp.asarray(digits.inputs[:1024], jnp.float32).reshape(1024, 64) / 8 - 1
    y = jnp.asarray(digits.labels[:1024], jnp.int32)
    problem = vj.mlp_problem(64, (32,) * 16, 10, activation="sigmoid", key=jax.random.key(0))
    layers = vj.find_layers(problem.params, problem.loss_fn, (x[:64], y[:64]))
    rows = jax.random.randint(jax.random.key(1), (steps, 64), 0, len(x))

    def accuracy(tx):
        def step(carry, rows):
            params, state = carry
            gradient = jax.grad(problem.loss_fn)(params, (x[rows], y[rows]))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = problem.params, tx.init(problem.params)
        (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, rows))(start)
        return float((jnp.argmax(problem.predict_fn(params, x), -1) == y).mean())

    falling = optax.linear_schedule(0.03, 0.0006, steps)
    assert accuracy(vj.deep_muon(0.03, steps, layers=layers)) > 0.95
    assert accuracy(vj.adam(optax.linear_schedule(0.01, 0.0002, steps))) < 0.3
    assert accuracy(vj.muon(falling, layers=layers)) < 0.6
