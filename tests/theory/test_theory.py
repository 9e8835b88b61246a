"""Mean-field theory against published digits, closed forms and sampled networks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishjax import theory
from vanishjax.activations import ACTIVATIONS
from vanishjax.theory.quadrature import evaluate, pair_moments, samples

INF = math.inf
SQRT_17 = 17**0.5

# activation, sigma_b2, critical sigma_w2 and q*, as strings so that every digit counts
CRITICAL = [
    ("tanh", 1e-4, "1.08602629249969", "0.0457090786953"),
    ("tanh", 0.01, "1.42420529048859", "0.273300913458"),
    ("tanh", 0.05, "1.76095463960674", "0.570047881641"),
    ("tanh", 0.1, "1.98607264113586", "0.805799181913"),
    ("erf", 0.05, "1.37583900734668", "0.517176837981"),
    ("hard_tanh", 0.05, "1.16554468963588", "0.463863969432"),
    ("softsign", 0.05, "3.14124723604", "0.412183176"),
    ("centered_sigmoid", 0.2, "28.1752742337", "2.28019152656"),
    ("sigmoid", 0.0, "103.007553855519", "45.6242777974"),
    ("relu", 0.0, "2", "1"),
    ("gelu", 0.172922390756, "1.98305825744", f"{(3 + SQRT_17) / 2:.12f}"),
    ("silu", 0.555143170722, "1.98800467827", "14.3201736180"),
]
# Where criticality only just exists, q* amplifies the digits that sigma_b2 lacks 60-fold.
HALF_STABLE = {"gelu", "silu"}


def assert_digits(value, digits, units=1.0):
    """The value agrees with all printed digits, to so many units of the last one."""
    places = len(digits.partition(".")[2])
    assert abs(value - float(digits)) <= units * 10.0**-places, (value, digits)


@pytest.mark.parametrize(("name", "sigma_b2", "sigma_w2", "q"), CRITICAL)
def test_critical_points(name, sigma_b2, sigma_w2, q):
    point = theory.critical_point(name, sigma_b2)
    # The table is cut in places, not rounded.
    assert_digits(point.sigma_w2, sigma_w2)
    assert_digits(point.q, q, units=2 if name in HALF_STABLE else 1)
    assert theory.critical_sigma_w2(name, sigma_b2) == point.sigma_w2
    assert theory.chi(name, point.q, point.sigma_w2) == pytest.approx(1, abs=1e-12)
    settled = theory.variance_map(name, point.q, point.sigma_w2, sigma_b2)
    assert settled == pytest.approx(point.q, rel=2e-12)
    if name not in HALF_STABLE:
        found = theory.fixed_point(name, point.sigma_w2, sigma_b2)
        assert found.q == pytest.approx(point.q, rel=1e-11)
        assert found.chi == pytest.approx(1, abs=1e-12)
        assert found.depth_scale == found.xi_gradient == INF


def test_least_critical_points():
    gelu = theory.critical_point("gelu")
    assert gelu.q == pytest.approx((3 + SQRT_17) / 2, abs=1e-12)
    assert_digits(gelu.sigma_b2, "0.172922390756")
    assert_digits(theory.critical_point("silu").sigma_b2, "0.555143170722")
    assert theory.critical_point("sigmoid").sigma_b2 == 0
    for name in ("tanh", "elu", "softsign", "hard_tanh", "centered_sigmoid"):
        slope = 0.25 if name == "centered_sigmoid" else 1.0
        assert theory.critical_point(name) == pytest.approx((1 / slope**2, 0, 0), abs=1e-12)
    assert theory.critical_point("erf").sigma_w2 == pytest.approx(np.pi / 4, abs=1e-14)
    # A kink at 0: what counts is the mean of the squared slopes on either side.
    assert theory.critical_point("selu")[1:] == (0, 0)
    assert theory.critical_point("leaky_relu") == pytest.approx((2 / 1.0001, 0, 1), abs=1e-14)
    assert theory.critical_point("identity") == pytest.approx((1, 0, 1), abs=1e-14)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "digits"),
    [
        ("sigmoid", 1 / 3, ".0200078293377"),
        ("sigmoid", 1, ".0557207067698"),
        ("sigmoid", 2, ".100977080692"),
        ("tanh", 1 / 3, f"{1 / 3:.14f}"),
        ("tanh", 1, "1.00000000000000"),
        ("tanh", 2, "1.10552882044"),
        ("relu", 1 / 3, f"{1 / 6:.14f}"),
        ("relu", 1, ".50000000000000"),
        ("relu", 2, "1.00000000000000"),
        ("gelu", 1 / 3, f"{1 / 12:.14f}"),
        ("gelu", 1, ".25000000000000"),
        ("gelu", 2, ".50000000000000"),
        ("silu", 1 / 3, f"{1 / 12:.14f}"),
        ("silu", 1, ".25000000000000"),
        ("silu", 2, ".50000000000000"),
    ],
)
def test_chi_of_common_initializers(name, sigma_w2, digits):
    found = theory.fixed_point(name, sigma_w2, 0)
    assert_digits(found.chi, digits)
    scale = INF if found.chi == pytest.approx(1, abs=1e-12) else -1 / math.log(found.chi)
    assert found.xi_gradient == pytest.approx(scale, rel=1e-10)
    if found.chi <= 1:
        assert found.c == 1
        assert found.depth_scale == found.xi_gradient


def test_selu():
    found = theory.fixed_point("selu", 1, 0)
    q, c, chi, depth_scale = found
    assert (q, c, chi, depth_scale) == (found.q, found.c, found.chi, found.depth_scale)
    assert found.q == pytest.approx(1, abs=1e-12)
    assert_digits(found.chi, "1.0715749924558")
    assert found.c == pytest.approx(0, abs=1e-12)  # E[selu] = 0


def test_ordered_and_chaotic_tanh():
    ordered = theory.fixed_point("tanh", 1.3, 0.05)
    assert_digits(ordered.chi, ".88016350988")
    assert ordered.c == 1
    assert_digits(ordered.depth_scale, "7.834069268")
    assert theory.trainable_depth("tanh", 1.3, 0.05) == 6 * ordered.depth_scale
    chaotic = theory.fixed_point("tanh", 2.5, 0.05)
    assert_digits(chaotic.chi, "1.13351569870")
    assert_digits(chaotic.c, ".44680423234")
    assert_digits(chaotic.depth_scale, "11.79559752")
    assert chaotic.xi_gradient < 0
    assert type(chaotic.c) is type(chaotic.depth_scale) is float


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 4.0), st.floats(0.0, 1.0))
def test_sigmoid_is_tanh_in_other_units(sigma_w2, sigma_b2):
    """sigmoid(x) - 1/2 = tanh(x / 2) / 2."""
    tanh = theory.fixed_point("tanh", sigma_w2, sigma_b2)
    sigmoid = theory.fixed_point("centered_sigmoid", 16 * sigma_w2, 4 * sigma_b2)
    assert sigmoid.q == pytest.approx(4 * tanh.q, rel=1e-9, abs=1e-10)
    assert sigmoid.chi == pytest.approx(tanh.chi, abs=1e-9)
    if abs(tanh.chi - 1) > 1e-3:
        assert sigmoid.c == pytest.approx(tanh.c, abs=1e-9)
        assert sigmoid.depth_scale == pytest.approx(tanh.depth_scale, rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-6, 10.0))
def test_sigmoid_is_critical_where_tanh_is(sigma_b2):
    tanh = theory.critical_point("tanh", sigma_b2)
    sigmoid = theory.critical_point("centered_sigmoid", 4 * sigma_b2)
    assert sigmoid.sigma_w2 == pytest.approx(16 * tanh.sigma_w2, rel=1e-11)
    assert sigmoid.q == pytest.approx(4 * tanh.q, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["tanh", "erf", "hard_tanh", "softsign", "elu", "selu", "centered_sigmoid"]),
    st.floats(1e-5, 5.0),
)
def test_chi_is_one_at_the_critical_point(name, sigma_b2):
    found = theory.fixed_point(name, theory.critical_sigma_w2(name, sigma_b2), sigma_b2)
    assert found.chi == pytest.approx(1, abs=1e-11)
    assert found.c == 1
    assert found.depth_scale == INF
    assert 0 < found.xi_q < INF


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["gelu", "silu"]), st.floats(0.56, 5.0))
def test_gelu_and_silu_are_critical_with_large_biases(name, sigma_b2):
    found = theory.fixed_point(name, theory.critical_sigma_w2(name, sigma_b2), sigma_b2)
    assert found.chi == pytest.approx(1, abs=1e-9)


# Correlations as distances from 1, down to where 1 - c itself would have lost its digits.
DISTANCES = [1e-14, 1e-10, 1e-6, 1e-3, 0.1, 0.3, 0.9, 1.0, 1.2, 1.8, 2.0]


@pytest.mark.parametrize("q", [1e-8, 0.3, 7.0, 1e6])
@pytest.mark.parametrize("relu", ["relu", lambda x: jnp.maximum(x, 0)], ids=["name", "callable"])
def test_relu_is_the_arc_cosine_kernel(relu, q):
    """Cho and Saul, Kernel methods for deep learning, 2009, equations (4) to (6)."""
    for distance in DISTANCES:
        theta = 2 * math.asin((distance / 2) ** 0.5)
        kernel = (math.sin(theta) + (math.pi - theta) * (1 - distance)) / (2 * math.pi)
        apart, slope = pair_moments(relu, q, distance)
        assert 0.5 - apart / q == pytest.approx(kernel, abs=1e-13)
        assert slope == pytest.approx((math.pi - theta) / (2 * math.pi), abs=1e-11)


@pytest.mark.parametrize("q", [1e-8, 0.3, 7.0, 1e4])
def test_erf_is_the_arcsine_kernel(q):
    """Williams, Computing with infinite networks, 1997, equation (11)."""

    def kernel(c):
        return 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))

    _, values, slopes, weights = samples("erf", q)
    assert weights @ values**2 == pytest.approx(kernel(1), rel=1e-12)
    assert weights @ slopes**2 == pytest.approx(4 / math.pi / (1 + 4 * q) ** 0.5, rel=1e-12)
    for distance in DISTANCES:
        c = 1 - distance
        apart, slope = pair_moments("erf", q, distance)
        assert apart == pytest.approx(kernel(1) - kernel(c), abs=1e-13)
        exact = 4 / math.pi / ((1 + 2 * q) ** 2 - (2 * q * c) ** 2) ** 0.5
        assert slope == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("q", [0.1, 1.0, 5.0])
def test_closed_forms_of_kinked_and_unbounded_functions(q):
    sigma = q**0.5

    def tail(x):
        return math.erfc(x / sigma / 2**0.5) / 2

    density = math.exp(-0.5 / q) / (2 * math.pi * q) ** 0.5
    clipped = q * (1 - 2 * tail(1)) - 2 * q * density + 2 * tail(1)
    for hard_tanh in ("hard_tanh", lambda x: jnp.clip(x, -1, 1)):
        _, values, slopes, weights = samples(hard_tanh, q)
        assert weights @ values**2 == pytest.approx(clipped, abs=1e-12)
        assert weights @ slopes**2 == pytest.approx(1 - 2 * tail(1), abs=1e-12)
    _, values, slopes, weights = samples(lambda x: jnp.sin(3 * x), q)
    assert weights @ values**2 == pytest.approx((1 - math.exp(-18 * q)) / 2, abs=1e-12)
    assert weights @ slopes**2 == pytest.approx(4.5 * (1 + math.exp(-18 * q)), abs=1e-11)
    _, values, slopes, weights = samples(lambda x: x**3, q)
    assert weights @ values**2 == pytest.approx(15 * q**3, rel=1e-12)
    assert weights @ slopes**2 == pytest.approx(27 * q**2, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(0.5, 2.0))
def test_a_kink_anywhere_is_found(kink, slope):
    def bent(x):
        return jnp.where(x > kink, slope * (x - kink), 0.0)

    _, values, slopes, weights = samples(bent, 1.0)
    tail = math.erfc(kink / 2**0.5) / 2
    density = math.exp(-0.5 * kink**2) / (2 * math.pi) ** 0.5
    square = slope**2 * ((1 + kink**2) * tail - kink * density)
    assert weights @ values**2 == pytest.approx(square, abs=1e-12)
    assert weights @ slopes**2 == pytest.approx(slope**2 * tail, abs=1e-12)


@pytest.mark.parametrize("name", ["hard_tanh", "relu", "leaky_relu", "selu"])
def test_kinks_are_cut_not_closed_in_on(name):
    f = ACTIVATIONS[name]
    assert samples(name, 1.0).x.size == samples(lambda x: f(x), 1.0).x.size < 300


def test_a_callable_equals_its_name():
    for name, f in ACTIVATIONS.items():
        unnamed = lambda x, f=f: f(x)  # noqa: E731
        by_name, by_callable = samples(name, 1.3), samples(unnamed, 1.3)
        for g in (lambda s: s.values**2, lambda s: s.slopes**2):
            assert by_name.weights @ g(by_name) == pytest.approx(
                by_callable.weights @ g(by_callable), abs=1e-13
            )
        moments = pair_moments(name, 1.3, 0.01)
        assert moments == pytest.approx(pair_moments(unnamed, 1.3, 0.01), abs=1e-12)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_derivatives_agree_with_differences(name):
    x = np.array([-3.3, -0.7, 0.4, 2.9])
    h = 1e-5
    _, slopes = evaluate(ACTIVATIONS[name], x)
    ahead, behind = (evaluate(ACTIVATIONS[name], x + step)[0] for step in (h, -h))
    np.testing.assert_allclose(slopes, (ahead - behind) / (2 * h), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["tanh", "hard_tanh", "selu", "softsign", "gelu"]),
    st.floats(0.05, 5.0),
    st.floats(0.02, 1.9),
)
def test_the_slope_of_the_correlation_is_that_of_the_distance(name, q, distance):
    """Price's theorem: d E[f(u1) f(u2)] / dc = q E[f'(u1) f'(u2)]."""
    h = 1e-4 * distance
    ahead, behind = (pair_moments(name, q, distance + step)[0] for step in (h, -h))
    assert pair_moments(name, q, distance)[1] == pytest.approx(
        (ahead - behind) / (2 * h * q), rel=1e-5
    )


def test_maps_have_their_fixed_points():
    found = theory.fixed_point("tanh", 2.5, 0.05)
    args = (2.5, 0.05)
    assert theory.variance_map("tanh", found.q, *args) == pytest.approx(found.q, rel=1e-13)
    assert theory.correlation_map("tanh", found.c, found.q, *args) == pytest.approx(found.c)
    assert theory.correlation_map("tanh", 1.0, found.q, *args) == 1
    # The depth scales are those at which deviations really shrink.
    h = 1e-5
    ahead = theory.correlation_map("tanh", found.c + h, found.q, *args)
    assert -1 / math.log((ahead - found.c) / h) == pytest.approx(found.depth_scale, rel=1e-4)
    ahead = theory.variance_map("tanh", found.q + h, *args)
    assert -1 / math.log((ahead - found.q) / h) == pytest.approx(found.xi_q, rel=1e-4)


def test_limits():
    assert theory.variance_map("tanh", 0, 1.5, 0) == pytest.approx(0, abs=1e-200)
    assert theory.variance_map("sigmoid", 0, 1.0, 0.0) == 0.25
    assert theory.fixed_point("tanh", 0.5, 0)[:3] == (0, 1, 0.5)
    assert theory.fixed_point("tanh", 0, 0.3)[:4] == pytest.approx((0.3, 1, 0, 0))
    assert theory.fixed_point("relu", 1, 1).q == pytest.approx(2, rel=1e-12)
    relu = theory.fixed_point("relu", 2, 0)
    assert (relu.q, relu.c, relu.depth_scale, relu.xi_q) == (1, 1, INF, INF)
    assert theory.fixed_point("relu", 2, 0, start=7).q == 7
    assert theory.fixed_point("identity", 0.25, 3).q == pytest.approx(4, rel=1e-12)
    # tanh just above criticality: q* = (sigma_w2 - 1) / 2 to first order, though 1 - chi is noise.
    assert theory.fixed_point("tanh", 1 + 1e-6, 0).q == pytest.approx(5e-7, rel=1e-5)
    # A step of height 1 at a gain of 1e6: q* is nearly sigma_w2, chi grows as its root.
    steep = theory.fixed_point("tanh", 1e6, 0)
    assert steep.q == pytest.approx(1e6, rel=1e-2)
    assert steep.chi == pytest.approx(1e6 * 4 / 3 / (2 * math.pi * steep.q) ** 0.5, rel=1e-5)


def test_sum_log_chi_follows_the_variance():
    # A sigmoid of 200 layers, from inputs of unit mean square.
    assert theory.sum_log_chi("sigmoid", 1, 0, 200) == pytest.approx(-577.71, abs=0.005)
    q, total = 2.0, 0.0
    for _ in range(5):
        total += math.log(theory.chi("tanh", q, 1.3))
        q = theory.variance_map("tanh", q, 1.3, 0.05)
    assert theory.sum_log_chi("tanh", 1.3, 0.05, 5, q=2.0) == pytest.approx(total)
    assert theory.sum_log_chi("tanh", 0, 1, 3) == -INF
    assert theory.sum_log_chi("tanh", 1, 0, 0) == 0


@functools.cache
def normals():
    """Normal numbers for six networks of three layers, 1000 wide, and four pairs of inputs."""
    rng = np.random.default_rng(1)
    shapes = {"weights": (3, 1000, 1000), "biases": (3, 1000), "inputs": (2, 4, 1000)}
    shapes["cotangents"] = shapes["inputs"]
    return [
        {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        for _ in range(6)
    ]


@functools.partial(jax.jit, static_argnums=0)
def sampled_network(f, normal, q, c, sigma_w2, sigma_b2):
    """Mean square and mean product of pairs of outputs, and log chi a layer."""
    z1, z2 = normal["inputs"]
    start = q**0.5 * jnp.stack([z1, c * z1 + (1 - c**2) ** 0.5 * z2])
    layers, width = normal["biases"].shape

    def layer(z, weights_and_biases):
        weights, biases = weights_and_biases
        return f(z) @ weights * (sigma_w2 / width) ** 0.5 + sigma_b2**0.5 * biases, None

    def network(z):
        return jax.lax.scan(layer, z, (normal["weights"], normal["biases"]))[0]

    end, back = jax.vjp(network, start)
    (delta,) = back(normal["cotangents"])
    log_chi = jnp.log(jnp.sum(delta**2) / jnp.sum(normal["cotangents"] ** 2)) / layers
    return jnp.mean(end**2), jnp.mean(end[0] * end[1]), log_chi


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2"),
    [("tanh", 1.76, 0.05), ("tanh", 2.5, 0.05), ("sigmoid", 1.0, 0.0), ("selu", 1.0, 0.0)],
)
def test_sampled_networks_agree(name, sigma_w2, sigma_b2):
    """Width 1000, 3 layers, 6 networks: variance, correlation and gradient at the fixed point.

    The tolerance is five standard errors over the networks, and these must be small themselves.
    """
    found = theory.fixed_point(name, sigma_w2, sigma_b2)
    point = (found.q, found.c, sigma_w2, sigma_b2)
    results = np.array([sampled_network(ACTIVATIONS[name], normal, *point) for normal in normals()])
    mean, error = results.mean(0), results.std(0, ddof=1) / len(results) ** 0.5
    expected = np.array([found.q, found.q * found.c, math.log(found.chi)])
    assert np.all(error < [0.05 * found.q, 0.05 * found.q, 0.01])
    assert np.all(np.abs(mean - expected) < 5 * error)


def test_inside_a_trace_and_under_other_settings():
    expected = theory.fixed_point("tanh", 1.31, 0.05)

    @jax.jit
    def traced(x):
        return x * theory.fixed_point("tanh", 1.31, 0.05).chi

    assert float(traced(1.0)) == pytest.approx(expected.chi, rel=1e-6)
    assert float(jax.grad(traced)(1.0)) == pytest.approx(expected.chi, rel=1e-6)
    with jax.enable_x64(True), jax.debug_nans(True), jax.numpy_rank_promotion("raise"):
        assert theory.fixed_point("tanh", 1.31, 0.05) == expected
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.fixed_point("relu", 2.1, 0), "no finite fixed point"),
        (lambda: theory.fixed_point("relu", 2, 1e-6), "no finite fixed point"),
        (lambda: theory.fixed_point("selu", 2.5, 0), "no finite fixed point"),
        (lambda: theory.fixed_point("tahn", 1, 0), "did you mean 'tanh'"),
        (lambda: theory.fixed_point("tanh", -1, 0), "sigma_w2 must not be negative"),
        (lambda: theory.fixed_point("tanh", 1, math.nan), "sigma_b2 must not be negative"),
        (lambda: theory.fixed_point("tanh", 1, INF), "sigma_b2 must be finite"),
        (lambda: theory.fixed_point("tanh", 1, 0, start=0), "start must be positive"),
        (lambda: theory.correlation_map("tanh", 1.1, 1, 1, 0), "c must lie in"),
        (lambda: theory.correlation_map("tanh", 0.5, 1, 0, 0), "variance is 0"),
        (lambda: theory.sum_log_chi("tanh", 1, 0, -1), "depth must not be negative"),
        (lambda: theory.critical_point("relu", 0.1), "only with sigma_b2=0"),
        (lambda: theory.critical_point("gelu", 0.1), "the least is with sigma_b2=0.1729223"),
        (lambda: theory.critical_point("softplus", 0.1), "softplus has no critical point"),
        (lambda: theory.critical_point(lambda x: 0 * x + 1, 0.1), "its slope is 0"),
        # Keeps q = 1, but no other: not of ReLU's kind.
        (lambda: theory.critical_point(lambda x: x**2 + 2**0.5 - 1), "no critical point"),
        (lambda: theory.fixed_point(jax.nn.softmax, 1, 0), "softmax must be an elementwise"),
        (lambda: theory.fixed_point(np.tanh, 1, 0), "tanh must be an elementwise JAX function"),
        (lambda: theory.fixed_point(lambda x: x * [1, 2], 1, 0), "elementwise"),
        (lambda: theory.fixed_point(lambda x: jnp.stack([x, x]), 1, 0), "map a float64 number"),
        (lambda: theory.fixed_point(lambda x: jnp.float32(x), 1, 0), "got float32"),
        (lambda: theory.chi(lambda x: (x.astype("float32") ** 2).astype(x), 1, 1), "elementwise"),
        (
            lambda: theory.chi(lambda x: jnp.tanh(x.astype("float32")).astype(x.dtype), 1, 1),
            "less than float64",
        ),
        (lambda: theory.chi(lambda x: jnp.sqrt(jnp.abs(x)), 1, 1), "seems unbounded"),
        (lambda: theory.chi(lambda x: 1 / x, 1, 1), "seems unbounded"),
        (lambda: theory.chi(lambda x: jnp.exp(x**2), 1, 1), "grows too fast"),
        (lambda: theory.chi(jnp.log, 1, 1), "isn't finite at x = -"),
        (lambda: theory.chi(lambda x: jnp.sin(1e4 * x), 1, 1), "it oscillates"),
    ],
)
def test_errors_are_clear(call, message):
    with pytest.raises(ValueError, match=message):
        call()
