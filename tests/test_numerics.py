"""Norms, moments and powers of two, against float64; what is not finite shows in each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import vanishjax as vj
from tests.nonfinite import LARGE, broken
from vanishjax import _jaxpr, numerics

TINY, HUGE = (float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "max"))


def exact_norm(x, axes=None, keepdims=False):
    x = np.asarray(x, np.float64)
    return np.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))


def close(ours, exact, rtol=1e-6):
    assert np.shape(ours) == np.shape(exact)
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=rtol)


@pytest.fixture(params=["branch", "one-pass"])
def form(request, monkeypatch):
    """How norms are computed: as on a CPU, and as on accelerators."""
    monkeypatch.setattr(numerics.norms, "branches_are_cheap", lambda: request.param == "branch")
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    exponent=st.integers(-124, 125),
    spread=st.integers(0, 60),
    axes=st.sampled_from([None, (0,), (1,), (1, 2), (0, 1, 2), ()]),
    seed=st.integers(0, 99),
)
def test_norm_and_rms_equal_float64(form, exponent, spread, axes, seed):
    # Entries of a row spread over decades below the exponent; what is flushed doesn't matter then.
    rng = np.random.default_rng(seed)
    lower = rng.integers(0, spread + 1, (3, 5, 4)) if axes != () else 0
    x = np.ldexp(rng.uniform(1, 2, (3, 5, 4)) / 8, np.maximum(exponent - lower, -123))
    x = x.astype(np.float32)
    close(numerics.norm(x, axes), exact_norm(x, axes))
    close(numerics.norm(x, axes, keepdims=True), exact_norm(x, axes, keepdims=True))
    close(numerics.scaled_norm(x, axes), exact_norm(x, axes))
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


def test_norm_at_the_ends_and_at_the_seam(form):
    for magnitude in (TINY, 2 * TINY, 1e-22, 1e-19, 1.2e-19, 1.0, 1e19, HUGE):
        x = np.full((2, 9), magnitude, np.float32)
        exact = x[:, 0].astype(np.float64)
        scale, rest = numerics.split_norm(x, (1,))
        close(np.float64(scale) * np.asarray(rest), 3 * exact[:, None])
        close(numerics.rms(x, (1,)), exact)


def test_a_program_grows_no_faster_than_the_number_of_leaves(form):
    """XLA computes anew for each leaf what all of them need, where it can."""

    def length(leaves):
        tree = [jnp.ones((2, 3))] * leaves
        return jax.jit(numerics.split_global_norm).lower(tree).compile().as_text().count("\n")

    assert length(32) < 5 * length(8)


def test_leaves_of_every_magnitude_make_one_norm(form):
    for leaves in ((3e-30, 0.0, 4e-30), (3e30, 1e-30, 4e30), (5e-20, 1e-38), (1e-25, 2e38)):
        tree = [np.full((3, 3), x, np.float32) for x in leaves]
        scale, rest = numerics.split_global_norm(tree)
        exact = exact_norm(np.concatenate(tree))
        close(np.float64(scale) * np.asarray(rest), exact)


def test_many_small_entries_count_beside_one_that_is_larger(form):
    # Each of their squares is flushed to zero, their sum is 300 times the large one's.
    x = np.full(30_000, 1e-19, np.float32)
    for largest in (1.2e-18, 3.5e-16):  # the second's square alone exceeds tiny / eps
        x[7] = largest
        close(numerics.norm(x), exact_norm(x), rtol=1e-5)
        close(numerics.global_norm([x[:9], x[9:]]), exact_norm(x), rtol=1e-5)
    with jax.enable_x64(True):
        close(numerics.global_norm([x[:9], x[9:]]), exact_norm(x), rtol=1e-5)
        close(numerics.global_norm([x, np.ones(1)]), 1.0)


def test_norm_of_what_is_not_finite_of_zeros_and_of_nothing(form):
    for bad in (np.inf, -np.inf, np.nan):
        for fn in (numerics.norm, numerics.rms, lambda x: numerics.global_norm([x])):
            np.testing.assert_equal(float(fn(np.array([1.0, bad], np.float32))), abs(bad))
    for x in (np.zeros(3, np.float32), np.zeros((0, 3), np.float32), np.float32(0)):
        for fn in (
            numerics.norm,
            numerics.scaled_norm,
            numerics.rms,
            lambda x: numerics.global_norm({"a": x, "b": x}),
        ):
            assert float(fn(x)) == 0.0
    assert float(numerics.global_norm({})) == 0.0
    np.testing.assert_array_equal(numerics.rms(np.zeros((0, 3), np.float32), (0,)), np.zeros(3))


def test_one_layer_that_is_zero_or_infinite_leaves_the_others(form):
    x = np.array([[0, 0], [3e-30, 4e-30], [np.inf, 1], [3e30, 4e30], [np.nan, 1]], np.float32)
    expected = [0.0, 5e-30, np.inf, 5e30, np.nan]
    np.testing.assert_allclose(numerics.norm(x, (1,)), expected, rtol=1e-6)


def test_double_precision(form):
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


@pytest.fixture(params=["few", "many"])
def entries(request, monkeypatch):
    """How sums of two squares are computed: as of few entries, and as of many."""
    if request.param == "many":
        monkeypatch.setattr(numerics.moments, "_FEW", 0)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.floats(0, HUGE, width=32), y=st.floats(0, HUGE, width=32))
def test_hypot_and_root_moment_equal_float64(entries, x, y):
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


def test_hypot_and_root_moment_of_what_is_not_finite(entries):
    for fn in (hypot, root_moment):
        assert fn(0.0, 0.0) == 0
        assert fn(np.inf, 1.0) == fn(1.0, -np.inf) == fn(np.inf, np.inf) == np.inf
        assert np.isnan(fn(np.nan, 1.0))
        assert np.isnan(fn(1.0, np.nan))


@pytest.mark.parametrize("size", [3e-30, 3e30])
def test_constants_are_squared_at_their_scale(size):
    """XLA may take the square of a constant, and of its scale, before it multiplies the two."""
    a, b = jnp.float32(size), jnp.float32(size * 4 / 3)
    close(
        jax.jit(lambda: numerics.hypot(jnp.full(7, a), jnp.full(7, b)))(), np.full(7, 5 / 3 * size)
    )
    close(jax.jit(lambda: numerics.rms(jnp.full(7, a)))(), size)
    scale, rest = jax.jit(lambda: numerics.split_rms(jnp.full(7, a)))()
    close(np.float64(scale) * np.asarray(rest), np.full(1, size))


def test_derivatives_of_a_sum_of_squares(entries):
    for magnitude in (1e-36, 1e-22, 1.0, 1e22, 1e36):
        for a, b in ((3.0, 4.0), (4.0, -3.0), (0.0, 5.0), (5.0, 0.0)):
            x = np.float32(magnitude * a), np.float32(magnitude * b)
            np.testing.assert_allclose(jax.grad(hypot, (0, 1))(*x), (a / 5, b / 5), rtol=1e-6)
            root = np.sqrt(0.9 * a**2 + 0.1 * (numerics.LIFT * b) ** 2)
            expected = 0.9 * a / root, 0.1 * numerics.LIFT**2 * b / root
            np.testing.assert_allclose(jax.grad(root_moment, (0, 1))(*x), expected, rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(root_moment, (0, 1))(0.0, 0.0)))


@settings(deadline=None)
@given(root=st.floats(TINY, HUGE, width=32), added=st.floats(1e-36, 1e36))
@example(root=1e-18, added=1e-36)
def test_what_is_added_in_a_root_equals_float64(root, added):
    exact, root = np.sqrt(root**2 + added), jnp.asarray(root, jnp.float32)
    if exact < HUGE / 2:
        close(numerics.add_in_root(root, added), exact)
        close(numerics.add_in_root(root, jnp.asarray(added)), exact)
    at = jnp.array([0.0, jnp.inf, jnp.nan])
    expected = [np.sqrt(added), np.inf, np.nan]
    np.testing.assert_allclose(numerics.add_in_root(at, added), expected, rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda r: numerics.add_in_root(r, added))(root)))


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
    monkeypatch.setattr(numerics.norms, "branches_are_cheap", lambda: True)
    taken = branches(monkeypatch)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    with jax.disable_jit():
        for magnitude in (1e-12, 1e-6, 1.0, 1e6, 1e17):
            fn(magnitude * x)
            assert taken.pop()
        fn(1e-30 * x)
        assert not taken.pop()


@pytest.mark.parametrize("fn", [numerics.norm, lambda x: numerics.global_norm([x])])
def test_before_the_conditional_stands_one_reduction(fn, monkeypatch):
    monkeypatch.setattr(numerics.norms, "branches_are_cheap", lambda: True)
    x = np.ones((64, 64), np.float32)
    program = _jaxpr.flatten(_jaxpr.trace_loss(lambda x, _: fn(x), x))
    equations = program.closed.jaxpr.eqns
    reductions = [e for e in equations if e.primitive.name.startswith("reduce")]
    assert [e.primitive.name for e in reductions if e.invars[0].aval.size > 1] == ["reduce_sum"]
    assert sum(e.primitive.name == "cond" for e in equations) == 1


@pytest.mark.parametrize("fn", [numerics.norm, lambda x: numerics.global_norm([x])])
def test_where_branches_cost_there_is_none(fn, monkeypatch):
    # An accelerator's host would wait for the device at each, every step.
    monkeypatch.setattr(numerics.norms, "branches_are_cheap", lambda: False)
    jax.clear_caches()
    x = np.ones((64, 64), np.float32)
    program = _jaxpr.flatten(_jaxpr.trace_loss(lambda x, _: fn(x), x))
    assert "cond" not in {e.primitive.name for e in program.closed.jaxpr.eqns}
    jax.clear_caches()


def test_the_derivative_of_a_norm_is_finite_at_any_magnitude(form):
    for fn in (numerics.norm, lambda x: numerics.global_norm([x])):
        gradient = jax.jit(jax.grad(fn))
        for magnitude in (1e-36, 1e-22, 1e-12, 1.0, 1e12, 1e22, 1e36):
            x = np.float32(magnitude) * np.array([3.0, 0.0, -4.0], np.float32)
            np.testing.assert_allclose(gradient(x), [0.6, 0.0, -0.8], rtol=1e-6)


@pytest.mark.parametrize("x", [0.0, 4e-30, 9.0, 1e36, np.nan])
def test_the_derivatives_of_a_root(x):
    """Right everywhere but at 0, where they are 0."""
    first, second = jax.grad(numerics.sqrt), jax.grad(jax.grad(numerics.sqrt))
    expected = (0.5 * x**-0.5, -0.25 * x**-1.5) if x else (0.0, 0.0)
    np.testing.assert_allclose(first(x), expected[0], rtol=1e-6)
    if 1e-20 < x < 1e20:  # elsewhere it is no float32
        np.testing.assert_allclose(second(x), expected[1], rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(numerics.sqrt, (x,), (2.0,))[1], 2 * expected[0], rtol=1e-6)


@pytest.mark.parametrize(("added", "looks"), [(1e-8, False), (1e-45, True), (0.0, True)])
def test_a_denominator_of_zero_is_looked_for_where_there_may_be_one(added, looks):
    """A subnormal number may be flushed to zero."""
    fn = lambda m, r: numerics.divide_by_sum(m, r, added)  # noqa: E731
    m, r = jnp.array([0.0, 3.0, jnp.nan, 1.0]), jnp.array([0.0, 2.0, 1.0, jnp.nan])
    np.testing.assert_allclose(jax.jit(fn)(m, r), [0.0, 1.5, np.nan, np.nan], rtol=1e-6)
    names = {e.primitive.name for e in jax.make_jaxpr(fn)(m, r).jaxpr.eqns}
    assert ("div" not in names or "select_n" in names) == looks
    traced = jax.jit(lambda m, r, added: numerics.divide_by_sum(m, r, added))
    np.testing.assert_allclose(traced(m, r, added)[0], 0.0)


# What is not a number stays none.


def norms_of(x):
    """Everything that numerics makes of one array `[256, 256]`, each of which must show a NaN."""
    flat, r = x.reshape(-1), numerics.upcast(x)
    return {
        "norm": numerics.norm(flat),
        "columns": jnp.max(numerics.norm(x, (0,)) * (jnp.arange(256) == 777 % 256)),
        "scaled_norm": numerics.scaled_norm(flat),
        "rms": numerics.rms(flat),
        "split_norm": numerics.split_norm(flat)[1].reshape(()),
        "split_rms": numerics.split_rms(flat)[1].reshape(()),
        "global_norm": numerics.global_norm([flat, x]),
        "hypot": jnp.sum(numerics.hypot(r, r)),
        "hypot of few": jnp.sum(numerics.hypot(r[:64], r[:64])),
        "root_moment": jnp.sum(numerics.root_moment(r, r, 0.9)),
        "root_moment of few": jnp.sum(numerics.root_moment(r[:64], r[:64], 0.9)),
        "add_in_root": jnp.sum(numerics.add_in_root(jnp.abs(r), 1e-8)),
        "mean_moment": jnp.sum(numerics.mean_moment(r, r, 0.9)),
        "cast": jnp.sum(numerics.saturating_cast(r, jnp.float16).astype(r.dtype)),
        "at_least": jnp.sum(numerics.at_least(r, 0.0)),
        "sqrt": jnp.sum(numerics.sqrt(r)),
        "divide": jnp.sum(numerics.divide(r, r)),
    }


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16], ids=lambda t: t.__name__
)
def test_what_is_not_finite_shows_in_every_number(form, dtype):
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
