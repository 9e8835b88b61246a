"""Gradients from the smallest to the largest number of each type, through everything exported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishjax as vj
from tests.factories import factories
from tests.trajectory import run
from vanishjax import _jaxpr, numerics

FACTORIES = factories()
STEPS = 6
WIDE = (1e-36, 1e-20, 1e-8, 1e20, 1e36)
MAGNITUDES = {
    jnp.float32: WIDE,
    jnp.bfloat16: WIDE,
    jnp.float16: (6e-8, 1e-5, 1e-2, 250.0, 6e4),
}
every_type = pytest.mark.parametrize("dtype", MAGNITUDES, ids=lambda t: t.__name__)
SIGNS = {"constant": np.ones(STEPS), "alternating": (-1.0) ** np.arange(STEPS)}


def pattern(*shape):
    """Plus and minus one: scaled to any magnitude of any type, it stays a multiple of itself."""
    return np.random.default_rng(0).choice([-1.0, 1.0], shape)


def over_steps(g, signs, dtype):
    signs = signs.reshape(-1, *(1 for _ in np.shape(g)))
    return jnp.asarray(signs * np.asarray(jnp.asarray(g, dtype), np.float64), dtype)


def layer(magnitude):
    return {"kernel": magnitude * pattern(4, 3), "bias": magnitude * pattern(3)}


def side_by_side(dtype, signs, extra=()):
    """A layer at each magnitude, all with the same parameters; a layer without gradient."""
    grads = {f"{m:g}": layer(m) for m in (*MAGNITUDES[dtype], *extra)}
    params = {name: layer(1.0) for name in grads}
    grads["zero"] = params["zero"] = layer(0.0)
    grads = jax.tree.map(lambda g: over_steps(g, signs, dtype), grads)
    return grads, jax.tree.map(lambda p: jnp.asarray(0.5 * p, dtype), params)


def assert_finite(tree):
    assert all(np.all(np.isfinite(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree))


@every_type
@pytest.mark.parametrize("name", FACTORIES)
def test_finite_and_zeros_stay_zeros(name, dtype):
    tx = FACTORIES[name]()
    for signs in SIGNS.values():
        updates, state = run(tx, *side_by_side(dtype, signs))
        assert_finite((updates, state))
        for leaf in jax.tree.leaves(updates["zero"]):
            np.testing.assert_array_equal(np.asarray(leaf, np.float32), 0.0)


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


@every_type
@pytest.mark.parametrize("name", SCALE_FREE)
def test_update_is_that_of_magnitude_one(name, dtype):
    for signs in SIGNS.values():
        grads, params = side_by_side(dtype, signs, extra=(1.0,))
        if name in MATRICES_ONLY:
            grads, params = ({k: v["kernel"] for k, v in t.items()} for t in (grads, params))
        updates, _ = run(SCALE_FREE[name], grads, params)
        for magnitude in MAGNITUDES[dtype]:
            assert_same(updates[f"{magnitude:g}"], updates["1"], dtype)


# A clip is free of scale as long as it clips; float16 has few decades below one.
LARGEST = {jnp.float32: 1e-37, jnp.bfloat16: 1e-37, jnp.float16: 1e-3}


@every_type
@pytest.mark.parametrize("make", [vj.clip_by_layer_norm, vj.adaptive_clip])
def test_clip_by_layer_is_that_of_magnitude_one(make, dtype):
    grads, params = side_by_side(dtype, SIGNS["alternating"], extra=(1.0,))
    updates, _ = run(make(LARGEST[dtype]), grads, params)
    for magnitude in MAGNITUDES[dtype]:
        if magnitude > 9 * LARGEST[dtype]:
            assert_same(updates[f"{magnitude:g}"], updates["1"], dtype)


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


# Numerics, against float64.

TINY, HUGE = (float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "max"))


def exact_norm(x, axes=None, keepdims=False):
    x = np.asarray(x, np.float64)
    return np.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))


def close(ours, exact, rtol=1e-6):
    assert np.shape(ours) == np.shape(exact)
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=rtol)


@settings(deadline=None, max_examples=40)
@given(
    exponent=st.integers(-124, 125),
    spread=st.integers(0, 60),
    axes=st.sampled_from([None, (0,), (1,), (1, 2), (0, 1, 2), ()]),
    seed=st.integers(0, 99),
)
def test_norm_and_rms_equal_float64(exponent, spread, axes, seed):
    # Entries of a row spread over decades below the exponent; what is flushed doesn't matter then.
    rng = np.random.default_rng(seed)
    lower = rng.integers(0, spread + 1, (3, 5, 4)) if axes != () else 0
    x = np.ldexp(rng.uniform(1, 2, (3, 5, 4)) / 8, np.maximum(exponent - lower, -123))
    x = x.astype(np.float32)
    close(numerics.norm(x, axes), exact_norm(x, axes))
    close(numerics.norm(x, axes, keepdims=True), exact_norm(x, axes, keepdims=True))
    count = x.size / max(exact_norm(x, axes).size, 1)
    close(numerics.rms(x, axes), exact_norm(x, axes) / count**0.5)
    scale, rest = numerics.split_norm(x, axes)
    assert np.all(np.frexp(np.asarray(scale))[0] == 0.5)
    close(
        np.float64(scale) * np.asarray(rest),
        exact_norm(x, axes or (0, 1, 2) if axes is None else axes, keepdims=True),
    )
    close(
        numerics.global_norm({"a": x, "b": (x[0], x[1, 2, 3])}),
        np.sqrt(exact_norm(x) ** 2 + exact_norm(x[0]) ** 2 + float(x[1, 2, 3]) ** 2),
    )


@pytest.mark.parametrize("magnitude", [TINY, 2 * TINY, 1e-22, 1e-19, 1.2e-19, 1.0, 1e19, HUGE])
def test_norm_at_the_ends_and_at_the_seam(magnitude):
    x = np.full((2, 9), magnitude, np.float32)
    scale, rest = numerics.split_norm(x, (1,))
    close(
        np.float64(scale) * np.asarray(rest), np.full((2, 1), 3 * np.float64(np.float32(magnitude)))
    )
    close(numerics.rms(x, (1,)), np.full(2, np.float32(magnitude), np.float64))


def test_many_small_entries_count_beside_one_that_is_larger():
    # Each of their squares is flushed to zero, their sum is 300 times the large one's.
    x = np.full(30_000, 1e-19, np.float32)
    for largest in (1.2e-18, 3.5e-16):  # the second's square alone exceeds tiny / eps
        x[7] = largest
        close(numerics.norm(x), exact_norm(x), rtol=1e-5)
        close(numerics.global_norm([x[:9], x[9:]]), exact_norm(x), rtol=1e-5)
    with jax.enable_x64(True):
        close(numerics.global_norm([x[:9], x[9:]]), exact_norm(x), rtol=1e-5)
        close(numerics.global_norm([x, np.ones(1)]), 1.0)


def test_norm_of_what_is_not_finite_of_zeros_and_of_nothing():
    for bad in (np.inf, -np.inf, np.nan):
        for fn in (numerics.norm, numerics.rms, lambda x: numerics.global_norm([x])):
            np.testing.assert_equal(float(fn(np.array([1.0, bad], np.float32))), abs(bad))
    for x in (np.zeros(3, np.float32), np.zeros((0, 3), np.float32), np.float32(0)):
        for fn in (numerics.norm, numerics.rms, lambda x: numerics.global_norm({"a": x, "b": x})):
            assert float(fn(x)) == 0.0
    assert float(numerics.global_norm({})) == 0.0
    np.testing.assert_array_equal(numerics.rms(np.zeros((0, 3), np.float32), (0,)), np.zeros(3))


def test_one_layer_that_is_zero_or_infinite_leaves_the_others():
    x = np.array([[0, 0], [3e-30, 4e-30], [np.inf, 1], [3e30, 4e30], [np.nan, 1]], np.float32)
    expected = [0.0, 5e-30, np.inf, 5e30, np.nan]
    np.testing.assert_allclose(numerics.norm(x, (1,)), expected, rtol=1e-6)


def test_double_precision():
    with jax.enable_x64(True):
        for magnitude in (1e-300, 1e-160, 1.0, 1e160, 1e300):
            x = magnitude * np.arange(1.0, 5.0)
            scale, rest = numerics.split_norm(x)
            assert rest.dtype == np.float64
            close(scale * rest / magnitude, np.full(1, 30**0.5), rtol=1e-15)
            close(numerics.hypot(3 * magnitude, 4 * magnitude) / magnitude, 5.0, rtol=1e-15)
            close(numerics.global_norm([x, x]) / magnitude, 60**0.5, rtol=1e-15)
            root = numerics.root_moment(np.float64(magnitude), np.float64(magnitude), 0.75)
            close(root / magnitude, (0.75 + 0.25 * numerics.LIFT**2) ** 0.5, rtol=1e-15)


@settings(deadline=None)
@given(x=st.floats(0, HUGE, width=32), y=st.floats(0, HUGE, width=32))
def test_hypot_and_root_moment_equal_float64(x, y):
    # Products beyond the range are infinite; a subnormal counts as the zero it is flushed to.
    x, y = (0.0 if v < TINY else v for v in (x, y))
    exact = np.hypot(x, y)
    if exact < HUGE / 2:
        close(hypot(x, y), exact)
    exact = np.sqrt(0.9 * x**2 + 0.1 * (numerics.LIFT * y) ** 2)
    if TINY <= exact < HUGE / 4:
        close(root_moment(x, y), exact)


hypot = jax.jit(numerics.hypot)
root_moment = jax.jit(lambda r, g: numerics.root_moment(r, g, 0.9))


def test_hypot_and_root_moment_of_what_is_not_finite():
    for fn in (hypot, root_moment):
        assert fn(0.0, 0.0) == 0
        assert fn(np.inf, 1.0) == fn(1.0, -np.inf) == np.inf
        assert np.isnan(fn(np.nan, 1.0))
        assert np.isnan(fn(1.0, np.nan))


@given(x=st.floats(TINY, HUGE, width=32))
def test_power_of_two_and_its_inverse_are_exact(x):
    scale, inverse = map(float, power_of_two(np.float32(x)))
    assert np.frexp(scale)[0] == 0.5
    assert scale * inverse == 1.0
    assert 1 <= x / scale < (2 if x < 2.0**127 else 4)
    assert inverse >= TINY


power_of_two = jax.jit(numerics.power_of_two)


@pytest.mark.parametrize("x", [0.0, 1e-45, TINY, HUGE, np.inf, np.nan])
def test_power_of_two_is_finite_for_everything(x):
    scale, inverse = map(float, power_of_two(np.float32(x)))
    assert TINY <= inverse <= HUGE
    assert scale * inverse == 1.0


# In the normal case the data is read once.


def branches(monkeypatch):
    """Predicates of the conditionals that are run from now on."""
    taken = []

    def spy(predicate, first, second):
        taken.append(bool(predicate))
        return first() if predicate else second()

    monkeypatch.setattr(jax.lax, "cond", spy)
    return taken


@pytest.mark.parametrize(
    "fn",
    [
        numerics.norm,
        lambda x: numerics.norm(x, (1,)),
        numerics.rms,
        lambda x: numerics.global_norm([x, x]),
        lambda x: vj.clip_by_global_norm(1.0).update([x], None),
        lambda x: vj.normalize_by_layer().update([x], None),
    ],
)
def test_normal_numbers_take_the_cheap_branch(fn, monkeypatch):
    taken = branches(monkeypatch)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    with jax.disable_jit():
        for magnitude in (1e-12, 1e-6, 1.0, 1e6, 1e17):
            fn(magnitude * x)
            assert taken.pop()
        fn(1e-30 * x)
        assert not taken.pop()


@pytest.mark.parametrize("fn", [numerics.norm, lambda x: numerics.global_norm([x])])
def test_before_the_conditional_stands_one_reduction(fn):
    x = np.ones((64, 64), np.float32)
    program = _jaxpr.flatten(_jaxpr.trace_loss(lambda x, _: fn(x), x))
    equations = program.closed.jaxpr.eqns
    reductions = [e for e in equations if e.primitive.name.startswith("reduce")]
    assert [e.primitive.name for e in reductions if e.invars[0].aval.size > 1] == ["reduce_sum"]
    assert sum(e.primitive.name == "cond" for e in equations) == 1


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


@pytest.mark.parametrize("name", FACTORIES)
def test_constants_give_what_arguments_give(name):
    """XLA reorders the products of what it knows: 1e-30^2 times 1e30^2 is 0 times infinity.

    Of constants nothing is left without their mean but rounding errors, which a normalized step
    makes large: there both must be finite, and zero to rounding where nothing is normalized.
    """
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    tx = FACTORIES[name]()

    def run(gradient):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (params, state), updates

        return jax.lax.scan(step, (params, tx.init(params)), None, length=3)[1]

    for magnitude in (0.0, 1e-36, 1e20):
        gradient = jax.tree.map(lambda x, m=magnitude: jnp.full_like(x, m), params)
        known, given = jax.jit(lambda g=gradient: run(g))(), jax.jit(run)(gradient)
        if name == "deep_muon":
            assert_finite((known, given))
            continue
        rest = 1e-6 * magnitude if name in ("center", "deflate") else 1e-36
        jax.tree.map(
            lambda a, b, rest=rest: np.testing.assert_allclose(a, b, rtol=1e-4, atol=rest),
            known,
            given,
        )


# What is not a number stays none: XLA on a CPU drops NaN in reductions of a few thousand entries.

LARGE = 256, 256
# What takes no step along a bad gradient: it skips the layer or the step, or steps elsewhere first.
SKIPPING = {"skip_nonfinite", "dynamic_loss_scale", "recondition"}
# What divides a layer by a norm makes all of it NaN.
SPREADING = {"clip_by_layer_norm", "normalize_by_layer", "scale_by_trust_ratio", "lars", "lamb"}
# An infinite gradient has a sign.
SIGNED = {"lion", "scale_by_lion", "scale_by_sign"}


def broken(shape, dtype, bad):
    """Small gradients, whose squares are flushed to zero, and one bad entry."""
    x = np.full(shape, 1e-30 if dtype != jnp.float16 else 1e-7)
    x.flat[777 % x.size] = bad
    return jnp.asarray(x, dtype)


@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_not_finite_shows_in_large_leaves(name):
    tx, params = FACTORIES[name](), {"kernel": jnp.ones(LARGE), "bias": jnp.ones(LARGE[1])}
    step = jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])
    for bad in (np.nan, np.inf):
        found = step({"kernel": broken(LARGE, jnp.float32, bad), "bias": jnp.ones(LARGE[1])})
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


def norms_of(x):
    """Everything that numerics makes of one array `[256, 256]`, each of which must show a NaN."""
    flat, r = x.reshape(-1), numerics.upcast(x)
    return {
        "norm": numerics.norm(flat),
        "columns": jnp.max(numerics.norm(x, (0,)) * (jnp.arange(256) == 777 % 256)),
        "rms": numerics.rms(flat),
        "split_norm": numerics.split_norm(flat)[1].reshape(()),
        "split_rms": numerics.split_rms(flat)[1].reshape(()),
        "global_norm": numerics.global_norm([flat, x]),
        "hypot": jnp.sum(numerics.hypot(r, r)),
        "root_moment": jnp.sum(numerics.root_moment(r, r, 0.9)),
        "mean_moment": jnp.sum(numerics.mean_moment(r, r, 0.9)),
        "cast": jnp.sum(numerics.saturating_cast(r, jnp.float16).astype(r.dtype)),
        "at_least": jnp.sum(numerics.at_least(r, 0.0)),
        "sqrt": jnp.sum(numerics.sqrt(r)),
        "divide": jnp.sum(numerics.divide(r, r)),
    }


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16], ids=lambda t: t.__name__
)
def test_what_is_not_finite_shows_in_every_number(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        inputs = jnp.stack([broken(LARGE, dtype, bad) for bad in (np.nan, np.inf)])
        forms = [lambda x: jax.lax.map(norms_of, x), jax.vmap(norms_of)]
        if dtype == jnp.float32:
            mesh = jax.sharding.Mesh(jax.devices(), "rows")
            rows = jax.NamedSharding(mesh, jax.P(None, "rows"))
            forms.append(jax.jit(jax.vmap(norms_of), in_shardings=rows))
        for form in forms:
            found = jax.jit(form)(inputs)
            assert [name for name, x in found.items() if not np.isnan(x[0])] == []
            assert [name for name, x in found.items() if np.isfinite(x[1])] == []


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


@pytest.mark.parametrize("name", FACTORIES)
def test_gradients_through_an_optimizer_are_finite(name):
    tx = FACTORIES[name]()
    through = jax.jit(jax.grad(lambda g: trained(tx, g)))
    for magnitude in (1.0, 1e-10, 0.0):
        kernel = magnitude * WITH_ZEROS
        assert_finite(through({"kernel": kernel, "bias": kernel[0]}))


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
