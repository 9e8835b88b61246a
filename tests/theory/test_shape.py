"""Activations shaped for a depth: the reference numbers, and the equations that they solve."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vanishjax import theory

# (alpha, beta, delta, gamma) to nine decimals; sigmoid 256 and ReLU by a 30-digit solution, as a
# quadrature across the kink is off in the sixth digit.
DKS = {
    ("sigmoid", 64): (0.226634618, -1.132250166, -0.246135108, 23.929365968),
    ("sigmoid", 256): (0.112753682607, -1.107082253042, -0.249010077369, 47.501173783459),
    ("sigmoid", 1000): (0.056978198, -1.100784632, -0.249745015, 93.704736687),
    ("sigmoid", 10_000): (0.018011109, -1.098829649, -0.249974453, 296.145733049),
    ("tanh", 256): (0.056376841, 0.553541126, -0.501979845, 23.750586980),
    ("tanh", 1000): (0.028489099, 0.550392312, -0.500509966, 46.852367908),
    ("softplus", 256): (0.141409524, 0.406286179, -0.919177413, 11.782241254),
    ("relu", 64): (0.413871545922, 1, -1.001072124791, 2.433434286932),
    ("relu", 256): (0.345034150432, 1, -1.000188016767, 2.903284761002),
    ("relu", 1000): (0.302091494212, 1, -1.000036976340, 3.311698370253),
}
TAT = {
    ("sigmoid", 64): (-0.144241405, -1.048169484, -0.259189198, 36.045041382),
    ("tanh", 64): (0.072120703, 0.524084742, -0.481622004, 18.022520692),
    ("tanh", 256): (0.035986816, 0.519339800, -0.477386647, 35.974988706),
}


@pytest.mark.parametrize(("name", "depth"), DKS)
def test_the_reference_numbers_of_dks(name, depth):
    np.testing.assert_allclose(theory.shape(name, depth), DKS[name, depth], rtol=2e-8, atol=1e-9)


@pytest.mark.parametrize(("name", "depth"), TAT)
def test_the_reference_numbers_of_tat(name, depth):
    # The reference's output shift isn't as exact as its other numbers.
    found, expected = theory.shape(name, depth, method="tat"), TAT[name, depth]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.delete(found, 2), np.delete(expected, 2), rtol=2e-8, atol=1e-9)


@functools.cache
def compiled_derivatives(f):
    slope = jax.grad(f)
    return jax.jit(jax.vmap(lambda x: (f(x), slope(x), jax.grad(slope)(x))))


def derivatives(f, x):
    """f, f' and f'' in float64."""
    with jax.enable_x64(True):
        return [np.asarray(y) for y in compiled_derivatives(f)(x)]


FUNCTIONS = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "erf": jax.lax.erf,
}


def maps(f, numbers, nodes=120):
    """Q(1), Q'(1), C(0), C'(1) and C''(1), by a plain Gauss-Hermite quadrature."""
    alpha, beta, delta, gamma = numbers
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    value, slope, bend = derivatives(f, alpha * x + beta)
    value, slope, bend = gamma * (value + delta), gamma * alpha * slope, gamma * alpha**2 * bend
    return w @ value**2, w @ (value * slope * x), (w @ value) ** 2, w @ slope**2, w @ bend**2


# Solutions are followed from depth to twice the depth: those of powers of two share what they need.
DEEPEST = 2**17


@pytest.mark.parametrize("depth", [2, DEEPEST])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_equations_hold(name, depth):
    f = FUNCTIONS[name]
    q, q_slope, c_zero, c_slope, _ = maps(f, theory.shape(name, depth))
    np.testing.assert_allclose([q, q_slope, c_zero], [1, 1, 0], atol=1e-7)
    assert depth * math.log(c_slope) == pytest.approx(math.log(1.5), rel=1e-5)
    q, q_slope, _, c_slope, c_bend = maps(f, theory.shape(name, depth, method="tat"))
    np.testing.assert_allclose([q, q_slope, c_slope], 1, atol=1e-7)
    assert depth * c_bend == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "dks", "tat"),
    [("tanh", 256, 12.5, 6.1), ("gelu", 256, 71, 6.3), ("softplus", 1000, 739, 6.4)],
)
def test_tat_keeps_large_inputs_their_size_where_dks_makes_them_larger(name, depth, dks, tat):
    for method, expected in (("dks", dks), ("tat", tat)):
        shape = theory.shape(name, depth, method=method)
        x, w = np.polynomial.hermite_e.hermegauss(200)
        energy = 6.0
        for _ in range(depth):
            value, *_ = derivatives(FUNCTIONS[name], shape.input_scale * energy**0.5 * x + shape[1])
            energy = w @ (shape.output_scale * (value + shape.output_shift)) ** 2 / w.sum()
        assert energy == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["elu", "selu", "softsign", "leaky_relu", "relu"])
def test_kinks_are_no_obstacle(name):
    for depth in (2, 256, DEEPEST):
        found = theory.shape(name, depth)

        def f_hat(x, found=found):
            f = getattr(jax.nn, {"softsign": "soft_sign"}.get(name, name))
            return found.output_scale * (
                f(found.input_scale * x + found.input_shift) + found.output_shift
            )

        # The library's own quadrature knows nothing of the shape: it finds the kinks anew.
        assert theory.variance_map(f_hat, 1.0, 1.0, 0.0) == pytest.approx(1, abs=1e-9)
        slope = theory.chi(f_hat, 1.0, 1.0)
        assert depth * math.log(slope) == pytest.approx(math.log(1.5), rel=1e-6)


def test_solutions_move_smoothly_with_depth():
    for name, method in itertools.product(("sigmoid", "gelu", "elu", "softsign"), ("dks", "tat")):
        found = np.array([theory.shape(name, 2**k, method=method) for k in range(3, 17, 2)])
        scales = np.log(np.abs(found[:, [0, 3]]))
        assert np.all(np.abs(np.diff(scales, n=2, axis=0)) < 0.3), (name, method)
        assert len(set(np.sign(found[:, 1]))) == 1, (name, method)


def test_a_function_is_as_good_as_a_name():
    def steep(x):
        return jnp.tanh(30 * x)

    alpha, *rest = theory.shape(steep, 64)
    expected = theory.shape("tanh", 64)
    assert 30 * alpha == pytest.approx(expected[0], rel=1e-8)
    assert 30 * rest[0] == pytest.approx(expected[1], rel=1e-8)
    np.testing.assert_allclose(rest[1:], expected[2:], rtol=1e-8)
    # sigmoid(x) - 1/2 = tanh(x / 2) / 2
    scaled = np.array(theory.shape("centered_sigmoid", 64)) * [0.5, 0.5, 2, 0.5]
    np.testing.assert_allclose(scaled, expected, rtol=1e-8)


def test_tat_for_rectifiers_is_another_slope():
    assert theory.leaky_slope(64) == pytest.approx(0.484327, abs=5e-7)
    assert theory.leaky_slope(256) == pytest.approx(0.712170, abs=5e-7)
    assert theory.leaky_slope(1) == 0.0
    with pytest.raises(ValueError, match=r"relu has no TAT shape at depth 64: .* 0\.484327"):
        theory.shape("relu", 64, method="tat")
    slope = theory.leaky_slope(64)
    found = theory.shape(lambda x: jax.nn.leaky_relu(x, slope), 64, method="tat")
    assert found == pytest.approx((1, 0, 0, math.sqrt(2 / (1 + slope**2))))
    with pytest.raises(ValueError, match="selu has no TAT shape at depth 64: its slope jumps"):
        theory.shape("selu", 64, method="tat")


@pytest.mark.parametrize(
    ("activation", "depth", "method", "message"),
    [
        ("sigmoid", 0, "dks", "depth must be from 1 to 1,000,000, got 0"),
        ("sigmoid", float("nan"), "dks", "depth must be from 1"),
        ("sigmoid", float("inf"), "tat", "depth must be from 1"),
        ("identity", 8, "dks", "identity has no DKS shape at depth 8: it's too nearly linear"),
        ("identity", 8, "tat", "identity has no TAT shape at depth 8"),
        ("hard_tanh", 64, "dks", "hard_tanh has no DKS shape at depth 64"),
        (jnp.zeros_like, 8, "dks", "zeros_like has no DKS shape at depth 8: it's constant"),
        (jnp.square, 8, "dks", "square has no DKS shape"),
        ("sigmoid", 8, "tad", "unknown method 'tad': did you mean 'tat'"),
        ("sigmiod", 8, "dks", "unknown activation 'sigmiod'"),
    ],
)
def test_what_has_no_shape_is_refused_by_name(activation, depth, method, message):
    with pytest.raises(ValueError, match=message):
        theory.shape(activation, depth, method=method)
