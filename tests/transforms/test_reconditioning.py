"""recondition and polar_growth: against a float64 loop, and on a collapsed network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.models import unstack_params
from vanishjax.transforms.orthogonalization import polar_factor

DEPTH, WIDTH = 8, 16


def sigmoid_network(depth=DEPTH, activation="sigmoid", **options):
    """A network, its batch, layers and first gradient."""
    options = {"key": jax.random.key(1)} | options
    problem = vj.mlp_problem(6, (WIDTH,) * depth, 3, activation=activation, **options)
    batch = jax.random.normal(jax.random.key(0), (64, 6)), jnp.arange(64) % 3
    if jax.config.jax_enable_x64:
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem.params)
        problem = dataclasses.replace(problem, params=params)
    layers = vj.find_layers(problem.params, problem.loss_fn, batch)
    return problem, batch, layers, jax.jit(jax.grad(problem.loss_fn))(problem.params, batch)


@pytest.fixture
def float64():
    """In float32 the polar factor of an ill-conditioned kernel is right to few digits."""
    with jax.enable_x64(True):
        yield


def in_order(tree, depth=DEPTH):
    names = [*(f"hidden_{i}" for i in range(depth)), "output"]
    tree = unstack_params(tree)
    return [{k: np.asarray(v, np.float64) for k, v in tree[name].items()} for name in names]


def polar(w):
    left, _, right = np.linalg.svd(w, full_matrices=False)
    return left @ right


def read(params, gradients):
    """The gain and the means, by the formulas, in float64."""
    norms = [np.linalg.norm(g["bias"]) for g in gradients]
    ratios = [
        np.linalg.norm(p["kernel"]) / np.sqrt(p["kernel"].shape[1]) * norms[i] / norms[i - 1]
        for i, p in enumerate(params)
    ][1:-1]
    means = [g["kernel"] @ g["bias"] / (g["bias"] @ g["bias"]) for g in gradients]
    return np.clip(np.median(ratios), 0.5, 8), [np.clip(m, -5, 5) for m in means]


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3)])
def test_polar_factor_is_the_svd(shape, float64):
    x = np.random.default_rng(0).normal(size=(4, *shape))
    np.testing.assert_allclose(polar_factor(jnp.asarray(x)), [polar(m) for m in x], atol=1e-9)
    np.testing.assert_array_equal(polar_factor(jnp.zeros((2, 3))), 0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 64, 64), (2, 64, 64), (1, 96, 40), (64, 64)])
def test_polar_factor_is_as_exact_compiled(shape):
    """Where XLA fuses the iteration's steps, one batched matrix alone came out 4e-3 turned."""
    x = np.random.default_rng(3).standard_normal(shape)
    expected = np.reshape([polar(m) for m in x.reshape(-1, *shape[-2:])], shape)
    found = jax.jit(polar_factor)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_polar_factor_in_float32_is_orthogonal_and_fits_its_matrix():
    """However small a singular value: the factor of a matrix within rounding of this one."""
    left, right = (np.linalg.qr(np.random.default_rng(i).normal(size=(6, 6)))[0] for i in (0, 1))
    x = left @ np.diag(10.0 ** -np.arange(6)) @ right
    q = np.asarray(polar_factor(jnp.asarray(x, jnp.float32)), np.float64)
    np.testing.assert_allclose(q @ q.T, np.eye(6), atol=1e-5)
    stretch = q.T @ x
    np.testing.assert_allclose(stretch, stretch.T, atol=1e-5)


def test_the_first_step_of_recondition_is_the_float64_loop(float64):
    problem, _, layers, gradient = sigmoid_network()
    tx = vj.recondition(layers=layers)
    updates, state = jax.jit(tx.update)(gradient, tx.init(problem.params), problem.params)
    found = in_order(optax.apply_updates(problem.params, updates))
    params = in_order(problem.params)
    gain, means = read(params, in_order(gradient))
    common = np.median(np.concatenate(means[2:-1]))
    for i, (p, f) in enumerate(zip(params, found, strict=True)):
        kernel = gain * polar(p["kernel"]) if 0 < i < DEPTH else p["kernel"]
        np.testing.assert_allclose(f["kernel"], kernel, atol=1e-8)
        mean = means[1] if i == 1 else np.full(len(kernel), common)
        bias = p["bias"] if i == 0 else -mean @ kernel
        np.testing.assert_allclose(f["bias"], bias, atol=1e-8)
    # 1 / rms f' of a collapsed sigmoid network is a little over 4.
    assert 3.5 < gain < 5
    # From the second step on it is the transform inside.
    again, _ = jax.jit(tx.update)(gradient, state, problem.params)
    jax.tree.map(np.testing.assert_array_equal, again, gradient)


def test_recondition_makes_a_collapsed_network_trainable():
    problem, batch, layers, gradient = sigmoid_network(depth=24)
    assert not vj.diagnose(problem.loss_fn, problem.params, batch).healthy
    tx = vj.recondition(vj.adam(1e-3), layers=layers)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(problem.params), problem.params)
    after = vj.diagnose(problem.loss_fn, optax.apply_updates(problem.params, updates), batch)
    assert after.healthy, str(after)


@pytest.mark.parametrize(("activation", "gain"), [("tanh", 1.1), ("relu", 1.41)])
def test_the_gain_read_is_that_of_the_activation(activation, gain):
    problem, _, layers, gradient = sigmoid_network(12, activation, scan=False)
    tx = vj.polar_growth(layers=layers)
    _, state = jax.jit(tx.update)(gradient, tx.init(problem.params), problem.params)
    np.testing.assert_allclose(float(state.gain), gain, rtol=0.15)


def test_polar_growth_is_the_float64_loop(float64):
    problem, batch, layers, gradient = sigmoid_network()
    rate, steps = 0.2, 3
    tx = vj.polar_growth(optax.sgd(0.0), layers=layers, steps=steps, rate=rate)
    state, update, params = tx.init(problem.params), jax.jit(tx.update), problem.params
    expected, means = in_order(params), None
    gain, _ = read(expected, in_order(gradient))
    for step in range(steps + 1):
        gradient = jax.jit(jax.grad(problem.loss_fn))(params, batch)
        _, new = read(expected, in_order(gradient))
        means = (
            new if means is None else [0.95 * m + 0.05 * n for m, n in zip(means, new, strict=True)]
        )
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for i in range(1, DEPTH if step < steps else 0):
            move = rate * (gain * polar(expected[i]["kernel"]) - expected[i]["kernel"])
            expected[i]["bias"] = expected[i]["bias"] - means[i] @ move
            expected[i]["kernel"] = expected[i]["kernel"] + move
        for p, e in zip(in_order(params), expected, strict=True):
            np.testing.assert_allclose(p["kernel"], e["kernel"], atol=1e-8)
            np.testing.assert_allclose(p["bias"], e["bias"], atol=1e-8)


def test_growth_adds_to_what_the_transform_inside_makes():
    problem, _, layers, gradient = sigmoid_network()

    def updates(inner):
        tx = vj.polar_growth(inner, layers=layers)
        return jax.jit(tx.update)(gradient, tx.init(problem.params), problem.params)[0]

    alone, both = updates(optax.sgd(0.0)), updates(optax.sgd(1.0))
    jax.tree.map(
        lambda a, b, g: np.testing.assert_allclose(b, a - g, atol=1e-6), alone, both, gradient
    )


@pytest.mark.parametrize("make", [vj.recondition, vj.polar_growth])
def test_without_a_gradient_nothing_moves(make):
    problem, _, layers, gradient = sigmoid_network()
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    tx = make(layers=layers)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(problem.params), problem.params)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0), updates)


def test_layers_whose_gradient_has_vanished_are_left_out_of_gain_and_mean():
    problem, _, layers, gradient = sigmoid_network(scan=False)
    dead = {
        name: jax.tree.map(lambda x, n=name: x * (n not in ("hidden_0", "hidden_1")), layer)
        for name, layer in gradient.items()
    }
    tx = vj.polar_growth(layers=layers)
    gains = [
        float(jax.jit(tx.update)(g, tx.init(problem.params), problem.params)[1].gain)
        for g in (gradient, dead)
    ]
    np.testing.assert_allclose(gains[1], gains[0], rtol=0.1)
    tx = vj.recondition(layers=layers)
    updates, _ = jax.jit(tx.update)(dead, tx.init(problem.params), problem.params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))
    # It is still a hidden kernel: it moves to the common gain.
    assert np.abs(updates["hidden_1"]["kernel"]).max() > 1
