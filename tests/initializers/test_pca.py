"""pca: first kernels turned toward the inputs' principal components, and what it leaves alone."""

import functools

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax.initializers import looks_linear, lsuv, pca
from vanishjax.models import unstack_params

FEATURES, WIDTH, EXAMPLES = 24, 8, 128
# Inputs that vary along directions of their own, each less than the last, around a mean.
DIRECTIONS = np.linalg.qr(np.random.default_rng(0).standard_normal((FEATURES, FEATURES)))[0]
INPUTS = np.random.default_rng(1).standard_normal((EXAMPLES, FEATURES)) * 0.7 ** np.arange(FEATURES)
INPUTS = (INPUTS @ DIRECTIONS.T + 0.5).astype(np.float32)
BATCH = jnp.asarray(INPUTS), jnp.arange(EXAMPLES) % 3


def cross_entropy(outputs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


@functools.cache
def network(activation="tanh", hidden=(WIDTH,) * 4, **options):
    options = {"key": jax.random.key(2)} | options
    return vj.mlp_problem(FEATURES, hidden, 3, activation=activation, **options)


def components(inputs, count):
    """The principal components, in float64."""
    centered = np.asarray(inputs, np.float64) - np.mean(inputs, axis=0, dtype=np.float64)
    return np.linalg.svd(centered, full_matrices=False)[2][:count].T


def by_hand(kernel, inputs):
    """What the docstring says, for a kernel of full rank, in float64."""
    kernel, inputs = np.asarray(kernel, np.float64), np.asarray(inputs, np.float64)
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    p = components(inputs, len(s))
    left, _, right = np.linalg.svd(p.T @ u)
    turned = p @ left @ right @ np.diag(s) @ vt
    centered = inputs - inputs.mean(0)
    return turned * np.linalg.norm(centered @ kernel) / np.linalg.norm(centered @ turned)


def first_kernel(params):
    return np.asarray(params["hidden_0"]["kernel"])


@pytest.mark.parametrize("scan", [True, False])
def test_equals_the_formula(scan):
    problem = network(scan=scan)
    params = pca(problem.loss_fn, problem.params, BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, problem.params)
    expected = by_hand(first_kernel(problem.params), INPUTS)
    np.testing.assert_allclose(first_kernel(params), expected, atol=1e-5)
    rest = [{k: v for k, v in tree.items() if k != "hidden_0"} for tree in (params, problem.params)]
    chex.assert_trees_all_equal(*rest)
    np.testing.assert_array_equal(params["hidden_0"]["bias"], problem.params["hidden_0"]["bias"])


def test_it_is_a_fixed_point():
    problem = network()
    params = pca(problem.loss_fn, problem.params, BATCH)
    again = pca(problem.loss_fn, params, BATCH)
    np.testing.assert_allclose(first_kernel(again), first_kernel(params), atol=1e-5)


def test_lsuv_keeps_the_directions():
    problem = network("sigmoid")
    params = pca(problem.loss_fn, problem.params, BATCH)
    kernel = first_kernel(lsuv(problem.loss_fn, params, BATCH))
    span, _ = np.linalg.qr(kernel)
    np.testing.assert_allclose(np.linalg.svd(components(INPUTS, WIDTH).T @ span)[1], 1.0, atol=1e-4)


def test_a_mirrored_network_stays_linear_and_sees_what_varies_most():
    """Of sixteen units half are mirror images: eight directions."""
    problem = network("relu", hidden=(16,) * 12)
    start = looks_linear(jax.random.key(0), problem.params)
    params = pca(problem.loss_fn, start, BATCH)
    kernel = first_kernel(params)
    np.testing.assert_allclose(kernel[:, :8], -kernel[:, 8:], atol=1e-5)
    span, _ = np.linalg.qr(kernel[:, :8])
    np.testing.assert_allclose(np.linalg.svd(components(INPUTS, 8).T @ span)[1], 1.0, atol=1e-4)
    x = BATCH[0]

    def f(inputs):
        return problem.predict_fn(params, inputs)

    np.testing.assert_allclose(f(2 * x), 2 * f(x), atol=1e-5)


def nnx_model():
    model = vj.NnxMLP(FEATURES, (WIDTH,) * 4, 3, activation="tanh", scan=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    def loss_fn(state, batch):
        return cross_entropy(nnx.merge(graph, state)(batch[0]), batch[1])

    return loss_fn, state, lambda state: state["hidden_0"]["kernel"][...]


def equinox_model():
    model = eqx.nn.MLP(FEATURES, 3, WIDTH, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch[0]), batch[1])

    return loss_fn, params, lambda params: params.layers[0].weight.T


def plain_model():
    params = [
        {"w": jax.random.normal(jax.random.key(i), s)} for i, s in ((0, (24, 8)), (1, (8, 3)))
    ]

    def loss_fn(params, batch):
        scaled = (batch[0] - 0.5) / 3.0  # what the kernel meets isn't the batch itself
        return cross_entropy(jnp.tanh(scaled @ params[0]["w"]) @ params[1]["w"], batch[1])

    return loss_fn, params, lambda params: params[0]["w"]


@pytest.mark.parametrize("make", [nnx_model, equinox_model, plain_model])
def test_any_model(make):
    loss_fn, params, kernel_of = make()
    after = pca(loss_fn, params, BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, params)
    expected = by_hand(kernel_of(params), INPUTS)
    np.testing.assert_allclose(kernel_of(after), expected, atol=2e-5)


def test_stacked_and_unrolled_alike():
    problem = network()
    unrolled = network(scan=False)
    together = unstack_params(pca(problem.loss_fn, problem.params, BATCH))
    apart = pca(unrolled.loss_fn, unstack_params(problem.params), BATCH)
    chex.assert_trees_all_close(together, apart, atol=1e-6)


def test_few_examples_tell_few_components():
    """Four examples tell three components; the kernel keeps five directions of its own."""
    problem = network()
    batch = BATCH[0][:4], BATCH[1][:4]
    params = pca(problem.loss_fn, problem.params, batch)
    before, after = first_kernel(problem.params), first_kernel(params)
    span, _ = np.linalg.qr(after)
    known = components(INPUTS[:4], 3)
    np.testing.assert_allclose(np.linalg.svd(known.T @ span)[1], 1.0, atol=1e-4)
    shared = np.linalg.svd(np.linalg.qr(before)[0].T @ span)[1]
    assert np.sum(shared > 0.999) >= 5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype):
    problem = network(dtype=dtype, param_dtype=dtype)
    params = pca(problem.loss_fn, problem.params, (BATCH[0].astype(dtype), BATCH[1]))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, problem.params)
    expected = by_hand(first_kernel(problem.params).astype(np.float32), INPUTS)
    np.testing.assert_allclose(first_kernel(params).astype(np.float32), expected, atol=0.03)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(2, (3,))(x[..., None])).reshape(x.shape[0], -1)
        return nn.Dense(3)(x)


def convolutional():
    model = Convolutional()
    params = model.init(jax.random.key(0), BATCH[0])["params"]
    return lambda p, b: cross_entropy(model.apply({"params": p}, b[0]), b[1]), params, BATCH


def tied():
    params = {"w": jax.random.normal(jax.random.key(0), (FEATURES, WIDTH))}

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch[0] @ params["w"]) @ params["w"].T - batch[0]) ** 2)

    return loss_fn, params, BATCH


def wide():
    problem = network(hidden=(FEATURES,) * 3)
    return problem.loss_fn, problem.params, BATCH


def with_inputs(change):
    def make():
        problem = network()
        return problem.loss_fn, problem.params, (change(BATCH[0]), BATCH[1])

    return make


def lookup():
    params = {"table": jnp.ones((50, 4)), "w": jax.random.normal(jax.random.key(0), (4, 3))}

    def loss_fn(params, batch):
        return cross_entropy(params["table"][batch[0]] @ params["w"], batch[1])

    return loss_fn, params, (jnp.arange(20) % 7, jnp.arange(20) % 3)


@pytest.mark.parametrize(
    "make",
    [
        convolutional,
        tied,
        wide,
        lookup,
        with_inputs(lambda x: x.at[3, 4].set(jnp.nan)),
        with_inputs(lambda x: x.at[3, 4].set(jnp.inf)),
        with_inputs(jnp.zeros_like),
        with_inputs(lambda x: jnp.broadcast_to(x[0], x.shape)),
        with_inputs(lambda x: x[:1]),
    ],
    ids=["conv", "tied", "wide", "lookup", "nan", "inf", "zeros", "all alike", "single"],
)
def test_what_it_leaves_alone(make):
    loss_fn, params, batch = make()
    batch = batch[0], batch[1][: len(batch[0])]
    chex.assert_trees_all_equal(pca(loss_fn, params, batch), params)


def test_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="floating"):
        pca(lambda p, b: jnp.sum(p["w"] * b), {"w": jnp.arange(3)}, jnp.ones(3))
    with pytest.raises(ValueError, match="scalar"):
        pca(lambda p, b: p["w"] * b, {"w": jnp.ones(3)}, jnp.ones(3))
