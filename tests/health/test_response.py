"""The step response: what eps and underflow take from a step, and what they don't."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import vanishjax as vj
from vanishjax.compilation import jit_once
from vanishjax.health import diagnosis
from vanishjax.health.response import (
    GRADIENT_RMS,
    Response,
    effectiveness,
    gradient_sizes,
    measure_steps,
    sizes_around,
    step_response,
    trace_steps,
)

RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": jnp.asarray(RNG.standard_normal((16, 8)), jnp.float32),
    "bias": jnp.zeros(8),
}
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
EVERYWHERE = (1e-30, 1e-12, 1e-8, 1e-3, 1.0, 1e3)


def left(tx, rms, params=PARAMS, layers=None):
    """Each layer's effectiveness at one size."""
    response = step_response(tx, params, layers)
    return np.asarray(effectiveness(response, jnp.full(response.degree.shape, rms)))


@pytest.mark.parametrize(
    ("factory", "eps"), [(optax.adam, 1e-8), (vj.adam, 1e-8), (vj.adam, 1e-16)]
)
def test_adam_loses_what_eps_takes(factory, eps):
    response = step_response(factory(1e-3, eps=eps), PARAMS)
    np.testing.assert_array_equal(response.degree, 0.0)
    for g in (1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-2, 1e3):
        found = effectiveness(response, jnp.full(2, g))
        np.testing.assert_allclose(found, g / (g + eps), rtol=1e-2)


@pytest.mark.parametrize(
    ("tx", "degree"),
    [
        (optax.sgd(0.1), 1),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), 1),
        (vj.sgd(0.1, 0.9), 1),
        (CLIPPED, 1),
        (optax.chain(vj.clip_by_layer_norm(1.0), optax.sgd(0.1)), 1),
        (optax.chain(optax.clip(1.0), optax.sgd(0.1)), 1),
        (vj.adam(1e-3, eps_relative=True), 0),
        (vj.adam_atan2(1e-3), 0),
        (vj.lion(1e-3), 0),
        (optax.sign_sgd(1e-3), 0),
        (vj.muon(1e-2), 0),
        (optax.chain(vj.normalize_by_layer(), optax.sgd(0.1)), 0),
    ],
)
def test_nothing_is_lost_where_no_eps_is(tx, degree):
    response = step_response(tx, PARAMS)
    np.testing.assert_array_equal(response.degree, degree)
    for g in EVERYWHERE:
        np.testing.assert_allclose(effectiveness(response, jnp.full(2, g)), 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("tx", "most"),
    [
        (optax.adam(1e-3), 1e-3),
        (optax.adam(1e-3, eps=0.1), 1e-3),
        (optax.rmsprop(1e-3, eps=1.0), None),
        (optax.sgd(0.1), np.nan),
        (CLIPPED, np.nan),
        (optax.chain(vj.clip_by_layer_norm(1.0), optax.sgd(0.1)), np.nan),
        (optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)), np.nan),
        (optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)), np.nan),
        (optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(1e-3, eps=0.1)), np.nan),
        (optax.contrib.muon(1e-2), np.nan),
        (optax.lbfgs(), np.nan),
    ],
)
def test_the_step_that_no_epsilon_holds_back(tx, most):
    """A quarter of the entries take a half of the step, unless a norm holds all of them back."""
    params = jax.tree.map(lambda x: x + 1.0, {"kernel": jnp.zeros((64, 32)), "bias": jnp.zeros(32)})
    steps, leaves = trace_steps(tx, params), jax.tree.leaves(params)
    _, _, found = measure_steps(steps, leaves, vj.find_layers(params), jnp.ones(1))
    kernel = float(found[1])
    if most is None:  # its squares are means of two steps: more than the rate, less than thrice it
        assert 1e-3 < kernel < 4e-3
    else:
        np.testing.assert_allclose(kernel, most, rtol=0.01)


@pytest.mark.parametrize("compiled", [jit_once, jax.jit, lambda fn, **_: fn])
def test_what_weight_decay_rounds_away_is_lost(compiled):
    """1e-2 w + g is 1e-2 w for a gradient below its rounding; the biases are zero."""
    tx = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1))
    response = compiled(step_response, static_argnums=0)(tx, PARAMS)
    np.testing.assert_array_equal(response.degree, 1)
    for g, kernel in ((1e-30, 0.0), (1e-12, 0.0), (1e-6, 1.0), (1e-3, 1.0), (1e3, 1.0)):
        found = effectiveness(response, jnp.full(2, g))
        np.testing.assert_allclose(found, [1.0, kernel], rtol=1e-2)


def test_an_update_that_leaves_the_types_range_is_lost():
    np.testing.assert_array_equal(left(optax.sgd(1e-12), 1e-30), 0.0)
    np.testing.assert_allclose(left(optax.sgd(1e-12), 1e-20), 1.0, rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,), (64,), (8, 8)])
def test_a_single_layer(shape):
    params = jnp.ones(shape)
    np.testing.assert_allclose(left(CLIPPED, 1e-12, params), 1.0, rtol=1e-3)
    np.testing.assert_allclose(left(optax.adam(1e-3), 1e-12, params), 1e-4, rtol=1e-2)


def test_layers_are_told_apart():
    tx = optax.partition(
        {"adam": optax.adam(1e-3), "sgd": optax.sgd(0.1)}, {"kernel": "adam", "bias": "sgd"}
    )
    names = vj.find_layers(PARAMS).names
    found = dict(zip(names, left(tx, 1e-12), strict=True))
    np.testing.assert_allclose(found["kernel"], 1e-4, rtol=1e-2)
    np.testing.assert_allclose(found["bias"], 1.0, rtol=1e-3)


def test_weight_decay_is_no_response():
    for tx in (optax.adamw(1e-3, weight_decay=0.1), vj.adamw(1e-3, weight_decay=0.1)):
        np.testing.assert_allclose(left(tx, 1e-12), 1e-4, rtol=0.05)


def test_warm_up_from_zero_and_extra_arguments():
    warm = optax.adam(optax.linear_schedule(0.0, 1e-3, 1000))
    np.testing.assert_allclose(left(warm, 1e-12), 1e-4, rtol=1e-2)
    plateau = optax.chain(optax.adam(1e-3), contrib.reduce_on_plateau())
    np.testing.assert_allclose(left(plateau, 1e-12), 1e-4, rtol=1e-2)


# A line search answers no gradient alone: it wants the loss function.
@pytest.mark.parametrize(
    "tx", [optax.set_to_zero(), optax.MultiSteps(optax.sgd(0.1), 4), optax.lbfgs()]
)
def test_no_answer_is_unknown(tx):
    if isinstance(tx, optax.MultiSteps):
        tx = tx.gradient_transformation()
    assert np.all(np.isnan(left(tx, 1.0)))


def test_16_bit_parameters():
    brief = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    np.testing.assert_allclose(left(optax.adam(1e-3), 1e-12, brief), 1e-4, rtol=0.03)
    np.testing.assert_allclose(left(vj.adam(1e-3, eps_relative=True), 1e-30, brief), 1.0, rtol=0.02)
    np.testing.assert_allclose(left(CLIPPED, 1e-12, brief), 1.0, rtol=0.02)
    half = jax.tree.map(lambda p: p.astype(jnp.float16), PARAMS)
    np.testing.assert_allclose(left(vj.adam(1e-3, eps=1e-10), 1e-6, half), 1.0, rtol=0.05)
    # 1e-6 times the rate is below 6e-8, float16's last number; optax's squares are gone as well.
    np.testing.assert_array_equal(left(optax.sgd(1e-3), 1e-6, half), 0.0)
    assert np.all(np.isnan(left(optax.adam(1e-3), 1e-3, half)))


def test_monotone_zero_and_nan():
    response = step_response(optax.adam(1e-3), jnp.ones(4))
    sizes = jnp.asarray(np.logspace(-37, 6, 200), jnp.float32)
    curve = jax.vmap(lambda g: effectiveness(response, g[None])[0])(sizes)
    assert np.all(np.diff(curve) >= -1e-6)
    assert curve[-1] == 1.0
    assert curve[0] < 1e-25
    np.testing.assert_array_equal(effectiveness(response, jnp.zeros(1)), 1.0)
    assert np.isnan(effectiveness(response, jnp.array([jnp.nan]))[0])
    np.testing.assert_array_equal(effectiveness(response, jnp.array([jnp.inf])), 1.0)


def test_stacked_equals_separate():
    stack = {"w": jnp.ones((3, 8, 4)), "head": jnp.ones((4, 2))}

    def loss_fn(params, x):
        x, _ = jax.lax.scan(lambda x, w: (x @ w @ jnp.ones((4, 8)), None), x, params["w"])
        return jnp.sum(x[:, :4] @ params["head"])

    layers = vj.find_layers(stack, loss_fn, jnp.ones((2, 8)))
    flat = {**{f"w{i}": stack["w"][i] for i in range(3)}, "x": stack["head"]}
    for tx in (optax.adam(1e-3), CLIPPED):
        one, other = step_response(tx, stack, layers), step_response(tx, flat)
        np.testing.assert_allclose(one.effectiveness, other.effectiveness[:, :4], rtol=1e-4)


def test_shapes_types_and_tracing():
    tx = optax.adam(1e-3)
    response = step_response(tx, PARAMS)
    sizes = len(GRADIENT_RMS)
    chex.assert_shape(response, [(sizes,), (sizes, 2), (2,), (sizes, 2)])
    chex.assert_type(jax.tree.leaves(response), jnp.float32)
    shapes = jax.eval_shape(lambda p: step_response(tx, p), PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, response)
    compiled = jax.jit(lambda p: step_response(tx, p))(PARAMS)
    assert isinstance(compiled, Response)
    chex.assert_trees_all_close(compiled, response, rtol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="w: expected a real floating-point leaf"):
        step_response(optax.sgd(0.1), {"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="without leaves"):
        step_response(optax.sgd(0.1), {})
    with pytest.raises(ValueError, match="w: no such parameter"):
        step_response(optax.sgd(0.1), {"w": jnp.ones(3)}, vj.find_layers(PARAMS))


@pytest.mark.parametrize("level", [0, 1, 3])
def test_what_is_unknown_stays_so_where_the_compiler_knows_it(level):
    """XLA makes any number of a constant NaN in `exp2`."""
    unknown = step_response(optax.lbfgs(), PARAMS)
    options = {"xla_backend_optimization_level": level}
    compiled = jax.jit(lambda rms: effectiveness(unknown, rms), compiler_options=options)
    for _ in range(3):
        np.testing.assert_array_equal(compiled(jnp.array([0.1, 0.2])), np.nan)


RMS = [0.0, 1e-45, 2.0**-126, 1e-30, 3e-9, 1e-4, 2.0**-6, 9e9, np.inf, np.nan]


@pytest.mark.parametrize(
    "tx",
    [optax.adam(1e-3), optax.sgd(0.1), CLIPPED, optax.adamw(1e-3)],
    ids=["adam", "sgd", "clipped", "adamw"],
)
def test_the_sizes_around_tell_as_much_as_all(tx):
    params = {f"layer_{i}": jnp.ones((4, 4)) for i in range(2)}
    layers, leaves, steps = vj.find_layers(params), jax.tree.leaves(params), trace_steps(tx, params)
    full = jax.jit(lambda params: step_response(tx, params))(params)
    measure = jax.jit(lambda sizes: measure_steps(steps, leaves, layers, sizes))
    share = jax.jit(effectiveness)
    for one in RMS:
        for other in RMS:
            rms = np.array([one, other])
            few, *_ = measure(sizes_around(rms, "float32"))
            np.testing.assert_array_equal(full.degree, few.degree)
            wanted, found = (np.asarray(share(own, rms.astype(np.float32))) for own in (full, few))
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
            wanted, found = (diagnosis._step_rms(own, rms) for own in (full, few))
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_a_zero_gradient_moves():
    params = {"a": jnp.full((4, 4), 2.0), "b": jnp.full((4, 4), 3.0)}
    layers, leaves = vj.find_layers(params), jax.tree.leaves(params)
    for tx, moved in ((optax.adamw(1e-3, weight_decay=0.1), [2e-4, 3e-4]), (optax.adam(1.0), 0)):
        _, still, _ = measure_steps(trace_steps(tx, params), leaves, layers, jnp.ones(1))
        np.testing.assert_allclose(still, moved, rtol=1e-5)


def test_few_sizes_are_of_few_numbers():
    found = [sizes_around(np.exp(RNG.uniform(-80, 5, n)), "float32") for n in range(200)]
    assert {len(sizes) for sizes in found} <= {4, 8, 16, len(GRADIENT_RMS)}
    assert max(map(len, found)) == len(GRADIENT_RMS)
    for sizes in found:
        assert (np.diff(sizes) > 0).all()
        assert {*sizes} <= {*gradient_sizes("float32")}


def test_transforms_are_the_same_program_or_not():
    def of(tx, params=PARAMS):
        return trace_steps(tx, params)

    def table(*values):
        return optax.sgd(lambda count: jnp.array(values)[count])

    same = of(optax.adam(1e-3))
    assert same == of(optax.adam(1e-3))
    assert hash(same) == hash(of(optax.adam(1e-3)))
    assert same != of(optax.adam(1.0001e-3))
    assert same != of(optax.adam(1e-3, nesterov=True))
    assert same != of(optax.adam(1e-3), {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(9)})
    assert same != of(optax.adam(1e-3), {"matrix": PARAMS["kernel"], "bias": PARAMS["bias"]})
    # What a program holds as an array isn't in its text.
    assert of(table(0.1, 0.2)) == of(table(0.1, 0.2)) != of(table(0.1, 0.3))


def test_functions_that_a_text_tells_by_address_are_not_compared():
    def through_host(factor):
        def update(updates, state, params=None):
            one = lambda x: np.asarray(x) * np.float32(factor)  # noqa: E731
            moved = jax.tree.map(lambda g: jax.pure_callback(one, g, g), updates)
            return moved, state

        return optax.GradientTransformation(lambda params: (), update)

    tx = through_host(0.1)
    assert trace_steps(tx, PARAMS) == trace_steps(tx, PARAMS)
    assert trace_steps(tx, PARAMS) != trace_steps(through_host(0.1), PARAMS)


def test_a_new_optimizer_object_compiles_nothing_anew(monkeypatch):
    """As in a notebook's cell that says `optax.adam(1e-3)` each time it is run."""
    compiled = []

    def noted(*given):
        compiled.append(given)
        return measure_steps(*given)

    monkeypatch.setattr(diagnosis, "measure_steps", noted)
    params = {"w": jnp.full((5, 3), 0.5), "b": jnp.zeros(3)}

    def loss_fn(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]) ** 2)

    verdicts = [
        vj.diagnose(loss_fn, params, jnp.eye(5), optax.adam(rate)) for rate in (0.01, 0.01, 0.02)
    ]
    assert len(compiled) == 2
    np.testing.assert_array_equal(verdicts[0].effectiveness, verdicts[1].effectiveness)
    np.testing.assert_allclose(verdicts[2].relative_step, 2 * verdicts[1].relative_step, rtol=1e-3)
