"""looks_linear: a rectifier network that starts as a linear isometry."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vanishjax as vj
from vanishjax.initializers import looks_linear
from vanishjax.models import unstack_params

X = jax.random.normal(jax.random.key(1), (64, 8))


def network(activation="relu", hidden=(16,) * 50, **options):
    return vj.mlp_problem(8, hidden, 8, activation=activation, **options)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("scan", [True, False])
def test_the_network_is_affine_and_loses_nothing(activation, scan):
    problem = network(activation, scan=scan, hidden=(16,) * 12)
    params = looks_linear(jax.random.key(0), problem.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, problem.params)

    @jax.jit
    def f(x):
        return problem.predict_fn(params, x)

    np.testing.assert_allclose(f(2 * X), 2 * f(X), atol=1e-5)
    np.testing.assert_allclose(f(X + 1), f(X) + f(jnp.ones_like(X)) - f(0 * X), atol=1e-5)
    jacobian = np.asarray(jax.jacobian(f)(X[0]))
    scale = (1.01 if activation == "leaky_relu" else 1.0) ** 12
    np.testing.assert_allclose(np.linalg.svd(jacobian)[1], scale, rtol=1e-4)


def test_no_gradient_is_lost_at_depth_fifty():
    problem = network()
    batch = X, jnp.arange(64) % 8
    params = looks_linear(jax.random.key(0), problem.params)
    assert not vj.diagnose(problem.loss_fn, problem.params, batch).healthy
    found = vj.diagnose(problem.loss_fn, params, batch)
    assert found.healthy
    assert abs(found.probe.sum_log_chi) < 2
    assert found.probe.effective_rank[-2] > 4


def test_mirrored_halves_and_zero_biases():
    problem = network(hidden=(8, 4, 12), scan=False)
    params = unstack_params(looks_linear(jax.random.key(0), problem.params))
    first, middle, last = (
        np.asarray(params[name]["kernel"]) for name in ("hidden_0", "hidden_1", "output")
    )
    np.testing.assert_array_equal(first[:, :4], -first[:, 4:])
    np.testing.assert_array_equal(middle[:4], -middle[4:])
    np.testing.assert_array_equal(middle[:, :2], -middle[:, 2:])
    np.testing.assert_array_equal(last[:6], -last[6:])
    assert not any(np.any(layer["bias"]) for layer in params.values())


def test_refuses_odd_widths_and_kernels_without_bias():
    with pytest.raises(ValueError, match="hidden_0/kernel: mirrored units come in pairs"):
        looks_linear(jax.random.key(0), network(hidden=(7, 8)).params)
    with pytest.raises(ValueError, match="w: no bias beside it"):
        looks_linear(jax.random.key(0), {"w": jnp.ones((2, 2))})
