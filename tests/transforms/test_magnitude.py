"""Gradients from the smallest to the largest number of each type, through everything exported."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishjax as vj
from tests.factories import PAIRED, factories
from tests.nonfinite import LARGE, broken
from tests.trajectory import run
from vanishjax import numerics

FACTORIES = factories()
# All tests of one after those of another: they share programs.
every_factory = pytest.mark.parametrize("name", FACTORIES, scope="module")
STEPS = 6
WIDE = (1e-36, 1e-20, 1e-8, 1e20, 1e36)
MAGNITUDES = {
    jnp.float32: WIDE,
    jnp.bfloat16: WIDE,
    jnp.float16: (6e-8, 1e-5, 1e-2, 250.0, 6e4),
}
# All types at once, large numbers of one beside small ones of another.
AT_ONCE = [
    dict(zip(MAGNITUDES, magnitudes, strict=True))
    for magnitudes in zip(WIDE, reversed(WIDE), MAGNITUDES[jnp.float16], strict=True)
]
every_type = pytest.mark.parametrize("dtype", MAGNITUDES, ids=lambda t: t.__name__)
SIGNS = {"constant": np.ones(STEPS), "alternating": (-1.0) ** np.arange(STEPS)}


def pattern(*shape):
    """Plus and minus one: scaled to any magnitude of any type, it stays a multiple of itself."""
    return np.random.default_rng(0).choice([-1.0, 1.0], shape)


def over_steps(g, signs, dtype):
    signs = signs.reshape(-1, *(1 for _ in np.shape(g)))
    return np.asarray(signs * np.asarray(np.asarray(g, dtype), np.float64), dtype)


def layer(magnitude):
    return {"kernel": magnitude * pattern(4, 3), "bias": magnitude * pattern(3)}


def layers(signs, magnitudes, only=lambda layer: layer):
    """Gradients over steps and parameters: a layer of each type at its magnitude."""
    grads, params = {}, {}
    for dtype, m in magnitudes.items():
        grads[dtype.__name__], params[dtype.__name__] = (
            jax.tree.map(lambda x, dtype=dtype: over_steps(x, signs, dtype), only(layer(m))),
            jax.tree.map(lambda x, dtype=dtype: np.asarray(x, dtype), only(layer(0.5 * (m > 0)))),
        )
    return grads, params


def assert_finite(tree):
    assert all(np.all(np.isfinite(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree))


def assert_zero(tree):
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), 0.0)


@every_factory
def test_finite_and_zeros_stay_zeros(name):
    tx, zeros = FACTORIES[name](), dict.fromkeys(MAGNITUDES, 0.0)
    for signs in SIGNS.values():
        nothing = layers(signs, zeros)
        for magnitudes in (zeros, *AT_ONCE):
            trees = zip(layers(signs, magnitudes), nothing, strict=True)
            updates, state = run(tx, *(tree | {"zero": zero["float32"]} for tree, zero in trees))
            assert_finite((updates, state))
            # The first step of deep_adam makes something of hidden layers of zeros too.
            all_zero = magnitudes is zeros and name != "deep_adam"
            assert_zero(updates if all_zero else updates["zero"])


# A learning rate of 1: float16 would lose digits of a smaller step.
SCALE_FREE = {
    "scale_by_adam-relative": vj.scale_by_adam(eps=1e-3, eps_root=1e-3, eps_relative=True),
    "scale_by_adam-0": vj.scale_by_adam(eps=0.0),
    "scale_by_adam-nesterov": vj.scale_by_adam(eps=0.0, nesterov=True),
    "scale_by_rms-0": vj.scale_by_rms(eps=0.0),
    "scale_by_adam_atan2": vj.scale_by_adam_atan2(),
    "scale_by_sign": vj.scale_by_sign(),
    "scale_by_lion": vj.scale_by_lion(),
    "scale_by_trust_ratio": vj.scale_by_trust_ratio(),
    "scale_by_muon": vj.scale_by_muon(),
    "orthogonalize": vj.orthogonalize(),
    "normalize_by_layer": vj.normalize_by_layer(),
    "adam-relative": vj.adam(1.0, eps_relative=True),
    "adam_atan2": vj.adam_atan2(1.0),
    "lion": vj.lion(1.0, weight_decay=0.0),
    "lars": vj.lars(1.0, trust_coefficient=1.0),
    "lamb": vj.lamb(1.0, eps_relative=True),
    "lamb-0": vj.lamb(1.0, eps=0.0),
    "muon": vj.muon(1.0),
    "rmsprop-0": vj.rmsprop(1.0, eps=0.0, momentum=0.9, bias_correction=True),
}
MATRICES_ONLY = {"orthogonalize", "scale_by_muon"}  # what isn't a matrix keeps its magnitude


def assert_same(ours, unit, dtype):
    """Equal to rounding: a factor that is no power of two rounds otherwise, step by step."""
    tolerance = 1e-2 if jnp.finfo(dtype).bits == 16 else 1e-5
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(unit), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("name", SCALE_FREE)
def test_update_is_that_of_magnitude_one(name):
    only = (lambda layer: layer["kernel"]) if name in MATRICES_ONLY else (lambda layer: layer)
    for signs in SIGNS.values():
        unit, *others = (
            run(SCALE_FREE[name], *layers(signs, magnitudes, only))[0]
            for magnitudes in (dict.fromkeys(MAGNITUDES, 1.0), *AT_ONCE)
        )
        for updates, dtype in itertools.product(others, MAGNITUDES):
            assert_same(updates[dtype.__name__], unit[dtype.__name__], dtype)


# A clip is free of scale as long as it clips; float16 has few decades below one.
LARGEST = {jnp.float32: 1e-37, jnp.bfloat16: 1e-37, jnp.float16: 1e-3}


@every_type
@pytest.mark.parametrize("make", [vj.clip_by_layer_norm, vj.adaptive_clip])
def test_clip_by_layer_is_that_of_magnitude_one(make, dtype):
    magnitudes = [1.0, *(m for m in MAGNITUDES[dtype] if m > 9 * LARGEST[dtype])]
    tx, signs = make(LARGEST[dtype]), SIGNS["alternating"]
    unit, *others = (run(tx, *layers(signs, {dtype: m}))[0] for m in magnitudes)
    for updates in others:
        assert_same(updates, unit, dtype)


@every_type
def test_clip_by_global_norm_is_that_of_magnitude_one(dtype):
    tx = vj.clip_by_global_norm(LARGEST[dtype])

    def clipped(magnitude):
        grads = over_steps(magnitude * pattern(4, 3), SIGNS["alternating"], dtype)
        return run(tx, {"a": grads, "b": -grads[:, 0]}, None)[0]

    for magnitude in MAGNITUDES[dtype]:
        if magnitude > 9 * LARGEST[dtype]:
            assert_same(clipped(magnitude), clipped(1.0), dtype)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1e25])
def test_what_is_added_to_a_norm_counts_as_it_is(magnitude):
    # The norm is held as a power of two times a rest; eps and min_norm must come to the same units.
    g, w = magnitude * np.array([3.0, -4.0]), np.array([0.6, 0.8])
    for least, eps in ((0.0, 5 * magnitude), (15 * magnitude, 0.0), (0.0, 0.25), (0.5, 0.0)):
        tx = vj.scale_by_trust_ratio(least, eps=eps)
        updates, _ = run(tx, np.float32(g)[None], np.float32(w))
        exact = g * max(1, least) / (max(5 * magnitude, least) + eps)
        np.testing.assert_allclose(updates[0], exact, rtol=1e-6)


SMALL_TYPES = [jnp.bfloat16, jnp.float16]
ONCE_ROUNDED = {
    "momentum": vj.momentum(0.9),
    "nesterov": vj.nesterov(0.9),
    "scale_by_adam": vj.scale_by_adam(),
    "scale_by_adam-nesterov": vj.scale_by_adam(nesterov=True),
    "scale_by_adam_atan2": vj.scale_by_adam_atan2(),
    "scale_by_rms": vj.scale_by_rms(),
    "scale_by_stddev": vj.scale_by_stddev(),
    "scale_by_lion": vj.scale_by_lion(),
    "scale_by_muon": vj.scale_by_muon(),
    "scale_by_trust_ratio": vj.scale_by_trust_ratio(),
    "normalize_by_layer": vj.normalize_by_layer(),
    "centralize": vj.centralize(),
    "clip_by_layer_norm": vj.clip_by_layer_norm(0.5),
    "clip_by_global_norm": vj.clip_by_global_norm(0.5),
    "adaptive_clip": vj.adaptive_clip(0.1),
}


@pytest.mark.parametrize("dtype", SMALL_TYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", ONCE_ROUNDED)
def test_small_types_get_the_wide_update_rounded_once(name, dtype):
    # State and sums of 16 bits would stop decaying and drift off over these steps.
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.standard_normal((40, 5, 4)) + 1, dtype)
    params = jnp.asarray(rng.standard_normal((5, 4)), dtype)
    ours, _ = run(ONCE_ROUNDED[name], grads, params)
    wide, _ = run(ONCE_ROUNDED[name], grads.astype(jnp.float32), params.astype(jnp.float32))
    assert ours.dtype == dtype
    ours = np.asarray(ours, np.float64)
    # Small entries of a product of matrices carry the float32 rounding of the large ones, which
    # differs between two programs; 16-bit rounding would be a thousand times that.
    atol = 1e-5 * float(jnp.max(jnp.abs(wide))) if name == "scale_by_muon" else 1e-7
    np.testing.assert_allclose(ours, wide, rtol=float(jnp.finfo(dtype).eps), atol=atol)


@pytest.mark.parametrize("dtype", SMALL_TYPES, ids=lambda t: t.__name__)
def test_a_cast_keeps_infinities_and_nan_and_saturates_the_rest(dtype):
    largest = float(jnp.finfo(dtype).max)
    x = jnp.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1.5])
    found = np.asarray(numerics.saturating_cast(x, dtype), np.float64)
    exact = np.clip([3.4e38, -3.4e38], -largest, largest)
    np.testing.assert_allclose(found, [np.inf, -np.inf, np.nan, *exact, 1.5], rtol=4e-3)


def test_a_sum_beyond_float16_comes_back():
    grads = jnp.array([[6e4], [6e4], [-6e4]], jnp.float16)
    updates, _ = run(vj.momentum(0.9), grads, jnp.zeros(1, jnp.float16))
    exact = [6e4, 65504.0, 0.9 * 1.9 * 6e4 - 6e4]  # the second, 1.14e5, is no float16
    np.testing.assert_allclose(np.asarray(updates[:, 0], np.float64), exact, rtol=1e-3)


@settings(deadline=None, max_examples=8)
@given(exponent=st.integers(-110, 110), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", SCALE_FREE)
def test_random_gradients_times_a_power_of_two(name, exponent, seed):
    # A power of two rounds nothing, so only overflow and underflow could make a difference.
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (STEPS, 5, 4)} | ({} if name in MATRICES_ONLY else {"bias": (STEPS, 4)})
    grads = {k: rng.uniform(0.5, 2, s) * rng.choice([-1, 1], s) for k, s in shapes.items()}
    grads = jax.tree.map(np.float32, grads)
    params = jax.tree.map(lambda g: g[0], grads)
    unit, _ = run(SCALE_FREE[name], grads, params)
    moved, _ = run(SCALE_FREE[name], jax.tree.map(lambda g: np.ldexp(g, exponent), grads), params)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(unit), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def test_constant_gradients_for_long_at_the_ends():
    # r^2 - m^2 dies out, and what is left of it is rounding.
    for make in (vj.scale_by_stddev, lambda **kw: vj.rmsprop(1.0, centered=True, **kw)):
        for eps in (0.0, 1e-8):
            for magnitude in (1e-36, 1.0, 1e36):
                grads = jnp.full((500, 3), magnitude) * jnp.array([1.0, 0.0, -0.7])
                updates, state = run(make(eps=eps), grads, jnp.zeros(3))
                assert_finite((updates, state))


@pytest.mark.parametrize(
    "factory",
    [
        lambda: vj.clip_by_layer_norm(1.0),
        lambda: vj.clip_by_global_norm(1.0),
        lambda: vj.adaptive_clip(0.1),
        vj.normalize_by_layer,
        vj.scale_by_trust_ratio,
        vj.orthogonalize,
    ],
)
def test_a_norm_beyond_the_largest_number(factory):
    """Every entry is a float32, their norm is not: 100 x 3e38."""
    params, unit = {"w": jnp.ones([100, 100])}, {"w": jnp.asarray(pattern(100, 100), jnp.float32)}
    tx = factory()
    large, _ = tx.update({"w": 3e38 * unit["w"]}, tx.init(params), params)
    small, _ = tx.update(unit, tx.init(params), params)
    np.testing.assert_allclose(large["w"], small["w"], rtol=1e-5)


# What asks for a bias beside each kernel, or sends them to different transforms.
WITH_BIAS = PAIRED | {"muon"}


def with_bias(name, kernel):
    """A kernel, with a bias beside it for what has other uses for one."""
    return {"kernel": kernel} | ({"bias": kernel[0]} if name in WITH_BIAS else {})


@every_factory
def test_constants_give_what_arguments_give(name):
    """XLA reorders the products of what it knows: 1e-30^2 times 1e30^2 is 0 times infinity.

    Of constants nothing is left without their mean but rounding errors, which a normalized step
    makes large: there both must be finite, and zero to rounding where nothing is normalized.
    """
    tx, params = FACTORIES[name](), with_bias(name, jnp.ones((4, 3)))

    def run(gradients):
        def step(carry, _):
            params, states = carry
            found = (tx.update(*pair, params) for pair in zip(gradients, states, strict=True))
            updates, states = zip(*found, strict=True)
            return (params, states), updates

        states = tuple(tx.init(params) for _ in gradients)
        return jax.lax.scan(step, (params, states), None, length=3)[1]

    magnitudes = (0.0, 1e-36, 1e20)
    gradients = [
        jax.tree.map(lambda x, m=magnitude: jnp.full_like(x, m), params) for magnitude in magnitudes
    ]
    given = [jax.jit(run)([gradient])[0] for gradient in gradients]
    known = jax.jit(lambda: run(gradients))()
    if name == "deep_muon":
        assert_finite((known, given))
        return
    for magnitude, *both in zip(magnitudes, known, given, strict=True):
        rest = 1e-6 * magnitude if name in ("center", "deflate") else 1e-36
        jax.tree.map(
            lambda a, b, rest=rest: np.testing.assert_allclose(a, b, rtol=1e-4, atol=rest), *both
        )


# What is not a number stays none, in large leaves too.

# What takes no step along a bad gradient: it skips the layer or the step, or steps elsewhere first.
SKIPPING = {"skip_nonfinite", "dynamic_loss_scale", "recondition"}
# What divides a layer by a norm makes all of it NaN.
SPREADING = {"clip_by_layer_norm", "normalize_by_layer", "scale_by_trust_ratio", "lars", "lamb"}
# An infinite gradient has a sign.
SIGNED = {"lion", "scale_by_lion", "scale_by_sign"}


@every_factory
def test_what_is_not_finite_shows_in_large_leaves(name):
    tx, params = FACTORIES[name](), with_bias(name, jnp.ones(LARGE))
    step = jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])
    for bad in (np.nan, np.inf):
        found = step(params | {"kernel": broken(LARGE, jnp.float32, bad)})
        shown = name not in SKIPPING and not (bad == np.inf and name in SIGNED)
        assert np.isfinite(np.asarray(found["kernel"]).flat[777]) != shown
        if np.isnan(bad) and name in SPREADING:
            assert np.isnan(found["kernel"]).all()


def test_clip_by_global_norm_does_with_what_is_not_finite_as_optax():
    for bad in (np.nan, np.inf):
        gradient = {"a": broken(LARGE, jnp.float32, bad), "b": jnp.ones(3)}
        ours, theirs = (
            jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g))[0])(gradient)
            for tx in (vj.clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5))
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# Gradients through an optimizer.


def trained(tx, gradient):
    """What two steps along a gradient make of the parameters."""
    params = jax.tree.map(lambda g: 0.5 * jnp.ones_like(g), gradient)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


WITH_ZEROS = jnp.array([[0.3, 0.0], [-1.0, 2.0], [0.0, 0.1]])


@every_factory
def test_gradients_through_an_optimizer_are_finite(name):
    tx = FACTORIES[name]()
    through = jax.jit(jax.grad(lambda g: trained(tx, g)))
    for magnitude in (1.0, 1e-10, 0.0):
        assert_finite(through(with_bias(name, magnitude * WITH_ZEROS)))


SAME_DERIVATIVE = {
    "adam": (vj.adam, optax.adam, {"eps_root": 1e-8}),
    "rmsprop": (vj.rmsprop, optax.rmsprop, {"eps": 1e-6}),
    "rmsprop-centered": (vj.rmsprop, optax.rmsprop, {"eps": 1e-6, "centered": True}),
}


@pytest.mark.parametrize("name", SAME_DERIVATIVE)
def test_gradients_through_an_optimizer_are_those_of_optax(name):
    ours, theirs, arguments = SAME_DERIVATIVE[name]
    found, exact = (
        jax.jit(jax.grad(lambda g, tx=tx: trained(tx, g)))(WITH_ZEROS)
        for tx in (ours(0.1, **arguments), theirs(0.1, **arguments))
    )
    assert np.abs(exact).max() > 1e-3
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())


# Hyperparameters in arrays, as optax.inject_hyperparams makes them.


@functools.cache
def injected(make, dtype, **settings):
    """The updates of five steps of an injected Adam and its like."""
    grads = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)) + 1, dtype)
    return run(optax.inject_hyperparams(make, **settings)(0.125), grads, jnp.ones(4, dtype))[0]


@pytest.mark.parametrize("dtype", SMALL_TYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("make", [vj.adam, vj.adamw, vj.nadam, vj.lamb, vj.adam_atan2, vj.rmsprop])
def test_injected_hyperparameters_of_16_bits_are_right_to_their_rounding(make, dtype):
    found, wide = injected(make, dtype), injected(make, jnp.float32)
    np.testing.assert_allclose(np.asarray(found, np.float64), wide, rtol=0.05, atol=2e-3)
    exact = injected(make, dtype, hyperparam_dtype=jnp.float32)
    np.testing.assert_allclose(np.asarray(exact, np.float64), wide, rtol=0.02, atol=1e-3)


def test_a_decay_that_was_rounded_to_one_is_the_middle_of_what_that_may_have_been():
    for dtype, expected in ((jnp.bfloat16, 1 - 2**-10), (jnp.float16, 1 - 2**-13)):
        found = jax.jit(numerics.bias_correction)(jnp.ones([], dtype), 1)
        np.testing.assert_allclose(found, 1 - expected, rtol=1e-6)
    # The mean of all there were: any weights that are alike.
    grads = jnp.array([[1.0], [3.0]])
    ones = jax.jit(lambda b: vj.scale_by_adam(b, b, eps=0.0).init(grads[0]))(1.0)
    step = jax.jit(lambda g, s, b: vj.scale_by_adam(b, b, eps=0.0).update(g, s))
    for g, expected in zip(grads, (1.0, 2 / 5**0.5), strict=True):
        update, ones = step(g, ones, 1.0)
        np.testing.assert_allclose(update, [expected], rtol=1e-6)


def test_a_decay_of_one_is_refused_where_it_is_known():
    for one in (1.0, np.float32(1), jnp.array(1.0)):
        with pytest.raises(ValueError, match=r"b2 must lie in \[0, 1\), got 1"):
            vj.adam(1e-3, b2=one)
