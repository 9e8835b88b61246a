r"""Activations shaped for a depth: the affine change under which plain chains of any depth train.

In a chain of layers that each apply

.. math:: \hat f(x) = \gamma\,(f(\alpha x + \beta) + \delta)

to inputs of unit variance, Q maps the variance and C the correlation of two inputs from layer to
layer. Isometry alone isn't enough, as all inputs still become alike further on; the curvature of C
must shrink as well, as 1 / depth. The four numbers can be absorbed by kernels and biases, so that
the network keeps its activation: see `vanishjax.initializers.shaped`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.activations import Activation, resolve_activation
from vanishjax.theory.fixed_points import bisect
from vanishjax.theory.quadrature import (
    Array,
    activation_name,
    affine_samples,
    evaluate,
    slope_jumps,
)
from vanishjax.validation import lookup

Method: TypeAlias = Literal["dks", "tat"]

_GROWTH = 1.5  # DKS: the slope at 1 of the correlation map of the whole network
_CURVATURE = 0.3  # TAT: its second derivative there
_CORRELATION = 0.9  # TAT, rectifiers: what the whole network makes of orthogonal inputs
_FIRST = 4.0  # the depth at which solutions are searched for, and from which they're followed
_DEEPEST = 1_000_000  # beyond it, what differs from an isometry is lost in rounding
_SCALES = np.geomspace(0.02, 8.0, 17)
_SHIFTS = np.sinh(np.linspace(-2.5, 2.5, 42))  # none at 0, where kinks are
_FARTHEST = 12.0  # standard deviations from a rectifier's kink; the tail beyond is 1e-33
_STEP = 1e-4  # of the differences in Newton's method
_CONVERGED = 1e-8  # a Newton step, each being a small part of the last, down to
_ROUNDING = 1e-13  # of residuals, which are times the depth: where they shrink no more
_MOST_STEPS = 100
_ALIKE = 1e-6  # solutions nearer to each other are one


class Shape(NamedTuple):
    """The numbers of f_hat(x) = output_scale (f(input_scale x + input_shift) + output_shift).

    Attributes:
      input_scale: alpha.
      input_shift: beta.
      output_shift: delta.
      output_scale: gamma.
    """

    input_scale: float
    input_shift: float
    output_shift: float
    output_scale: float


def shape(activation: str | Activation, depth: int, *, method: Method = "dks") -> Shape:
    r"""The affine change of an activation under which a plain chain of this depth can train.

    Deep kernel shaping ("dks") solves, for the local maps Q of variances and C of correlations,

    .. math:: Q(1) = 1, \quad Q'(1) = 1, \quad C(0) = 0, \quad C'(1) = 1.5^{1/L}

    and tailored activation transformation ("tat")

    .. math:: Q(1) = 1, \quad Q'(1) = 1, \quad C'(1) = 1, \quad C''(1) = .3 / L

    Both keep inputs of unit size. What DKS makes of larger ones depends on the activation: those of
    six times the mean energy leave 256 layers of tanh with 12, of GELU with 71, and 1,000 of
    softplus with 739; in TAT with 6.1, 6.3 and 6.4. So TAT is safer for what is bounded on one side
    at most (GELU, SiLU, softplus) in hundreds of layers.

    Of several solutions the one with the least output scale is taken, of these the one with the
    least mean output, then the one with a positive shift. For rectifiers, which are the same at
    every scale, Q'(1) can't be chosen (it's below 1, which is stable), and the shift is 1.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      depth: L, the number of layers that have the activation.
      method: "dks" or "tat". TAT needs a smooth activation: for rectifiers it chooses another
        negative slope, which kernels and biases can't absorb; see `leaky_slope`.

    Returns:
      ``(input_scale, input_shift, output_shift, output_scale)``: alpha, beta, delta, gamma. The
      sign of alpha is free; it's positive in DKS and that of beta in TAT.

    Raises:
      ValueError: A depth below 1 or above 1,000,000, an unknown method, an activation for which
        there is no solution (a linear one) or which can't be integrated to 1e-10.

    Example:
      >>> print([round(number, 6) for number in shape("sigmoid", 1000)])
      [0.056978, -1.100785, -0.249745, 93.704737]
      >>> shape("identity", 1000)
      Traceback (most recent call last):
      ...
      ValueError: identity has no DKS shape at depth 1000: ...

    References:
      Martens et al., Rapid training of deep neural networks without skip connections or
      normalization layers using deep kernel shaping, 2021, arXiv 2110.01765; Zhang et al., Deep
      learning without shortcuts: shaping the kernel with tailored rectifiers, 2022, arXiv
      2203.08120. The reduced equations, which stay exact at 100,000 layers, are this package's.
    """
    _check_depth(depth)
    equations = lookup("method", method, _EQUATIONS)
    f = resolve_activation(activation)
    try:
        if _is_rectifier(f):
            rectifier = _tat_rectifier if method == "tat" else _dks_rectifier
            return rectifier(f, float(depth))
        if method == "tat" and slope_jumps(f):
            raise ValueError("its slope jumps, and TAT needs a smooth one; use method='dks'")
        return equations.shape(f, float(depth))
    except ValueError as error:
        raise ValueError(
            f"{activation_name(f)} has no {method.upper()} shape at depth {depth:g}: {error}"
        ) from error


def mean_activation(activation: str | Activation, numbers: Shape) -> float:
    """The mean of a shaped activation before its output is shifted: E[f(alpha x + beta)].

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      numbers: Its shape.

    Returns:
      The mean: -delta in DKS, nearly that in TAT.

    Example:
      >>> numbers = shape("sigmoid", 64)
      >>> print(round(mean_activation("sigmoid", numbers) + numbers.output_shift, 12) + 0.0)
      0.0
    """
    f, scale = resolve_activation(activation), abs(numbers.input_scale)
    return float(_centered(f, np.array([scale]), np.array([numbers.input_shift]))[0][0])


@functools.lru_cache(maxsize=256)
def leaky_slope(depth: int) -> float:
    r"""The negative slope with which TAT makes a leaky ReLU fit for a depth.

    A network of this depth then maps orthogonal inputs to a correlation of .9, by

    .. math:: C(c) = c + \frac{(1 - a)^2}{\pi (1 + a^2)} (\sqrt{1 - c^2} - c \arccos c)

    Args:
      depth: The number of layers that have the activation.

    Returns:
      The slope a; 0 where a plain ReLU doesn't reach that.

    Raises:
      ValueError: A depth below 1 or above 1,000,000.

    Example:
      >>> print(round(leaky_slope(64), 6), round(leaky_slope(256), 6))
      0.484327 0.71217

    References:
      Zhang et al. 2022, section 4.2.
    """
    _check_depth(depth)

    def alike(slope: float) -> bool:
        bend = (1 - slope) ** 2 / (math.pi * (1 + slope**2))
        c = 0.0
        for _ in range(int(depth)):
            c = min(1.0, c + bend * (math.sqrt(1 - c * c) - c * math.acos(c)))
        return c <= _CORRELATION

    return 0.0 if alike(0.0) else bisect(alike, 0.0, 1.0)


def _check_depth(depth: float) -> None:
    if not 1 <= depth <= _DEEPEST:
        raise ValueError(f"depth must be from 1 to {_DEEPEST:,}, got {depth}")


class _Branch(NamedTuple):
    """Residuals `(f, depth, scales, shifts) -> [cases, 2]`, and the shape that a solution makes."""

    residuals: Callable[[Activation, float, Array, Array], Array]
    finish: Callable[[Activation, float, float], Shape]


class _Equations(NamedTuple):
    """A method's equations for scale and shift, by branches."""

    branches: tuple[_Branch, ...]

    def shape(self, f: Activation, depth: float) -> Shape:
        branch, (log_scale, shift) = _solution(self, f, depth)
        return branch.finish(f, math.exp(log_scale), shift)


@functools.lru_cache(maxsize=1024)
def _solution(equations: _Equations, f: Activation, depth: float) -> tuple[_Branch, Array]:
    """Which branch is solved, and where; followed from shallower networks."""
    if depth > 2 * _FIRST or depth < _FIRST / 2:
        nearer = depth / 2 if depth > _FIRST else _FIRST
        branch, start = _solution(equations, f, nearer)
        # A smooth activation's scale goes with the root of the depth.
        start = start + np.array([math.log(nearer / depth) / 2, 0.0])
        found = _newton(branch, f, depth, start)
        if found is None:
            raise ValueError("no scale and shift solve its equations")
        return branch, found
    candidates = []
    for branch in equations.branches:
        for start in _brackets(branch, f, depth):
            found = _newton(branch, f, depth, start)
            if found is not None:
                made = branch.finish(f, math.exp(found[0]), found[1])
                candidates.append((made, branch, found))
    if not candidates:
        raise ValueError("no scale and shift solve its equations")

    for cost in _PREFERENCES:
        costs = [cost(made) for made, _, _ in candidates]
        alike = min(costs) + _ALIKE * (1 + abs(min(costs)))
        candidates = [x for x, c in zip(candidates, costs, strict=True) if c <= alike]
    return candidates[0][1:]


# What a solution should have little of, in order: see `shape`.
_PREFERENCES: tuple[Callable[[Shape], float], ...] = (
    lambda made: abs(made.output_scale),
    lambda made: abs(made.output_shift),
    lambda made: -made.input_shift,
)


def _brackets(branch: _Branch, f: Activation, depth: float) -> list[Array]:
    """Middles of the cells of a coarse grid in which both residuals change sign."""
    scales, shifts = np.meshgrid(_SCALES, _SHIFTS, indexing="ij")
    with np.errstate(all="ignore"):
        residuals = branch.residuals(f, depth, scales.ravel(), shifts.ravel())
    residuals = residuals.reshape(*scales.shape, 2)
    corners = np.stack(
        [residuals[i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)]
    )
    mixed = (corners.min(axis=0) <= 0) & (corners.max(axis=0) >= 0)
    return [
        np.array([np.log(_SCALES[i] * _SCALES[i + 1]) / 2, (_SHIFTS[j] + _SHIFTS[j + 1]) / 2])
        for i, j in np.argwhere(np.all(mixed, axis=-1))
    ]


def _newton(branch: _Branch, f: Activation, depth: float, start: Array) -> Array | None:
    """The solution near a start, if Newton's method finds one; Jacobian by central differences."""
    differences = _STEP * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    point, step, residual = start, np.zeros(2), np.inf
    for _ in range(_MOST_STEPS):
        unit = np.array([1.0, np.exp(point[0])])  # the shift counts in units of the scale
        cases = point + differences * unit
        with np.errstate(all="ignore"):
            residuals = branch.residuals(f, depth, np.exp(cases[:, 0]), cases[:, 1])
        size = float(np.linalg.norm(residuals[0]))
        if residual <= size and residual < _ROUNDING * depth:
            return point - step
        if size > residual or not np.all(np.isfinite(residuals)):
            step = step / 2
            point = point - step
            continue
        residual = size
        jacobian = (residuals[1::2] - residuals[2::2]).T / (2 * _STEP)
        try:
            move = -np.linalg.solve(jacobian, residuals[0])
        except np.linalg.LinAlgError:
            return None
        length = float(np.linalg.norm(move))
        step = unit * move / max(1.0, length)
        point = point + step
        if length < _CONVERGED:
            return point
    return None


def _centered(f: Activation, scales: Array, shifts: Array) -> tuple[Array, ...]:
    """Mean and variance of the activation; its slope's mean square and product with (f - m) x."""
    x, values, slopes, weights = affine_samples(f, scales, shifts)
    mean = np.sum(weights * values, axis=1)
    values = values - mean[:, None]
    variance = np.sum(weights * values**2, axis=1)
    slope_square = scales**2 * np.sum(weights * slopes**2, axis=1)
    product = scales * np.sum(weights * values * slopes * x, axis=1)
    return mean, variance, slope_square, product


def _dks_residuals(f: Activation, depth: float, scales: Array, shifts: Array) -> Array:
    _, variance, slope_square, product = _centered(f, scales, shifts)
    growth = math.expm1(math.log(_GROWTH) / depth)
    excess = np.stack([(slope_square - variance) / variance - growth, product / variance - 1])
    return depth * excess.T


def _dks_shape(f: Activation, scale: float, shift: float) -> Shape:
    mean, variance, _, _ = _centered(f, np.array([scale]), np.array([shift]))
    return Shape(scale, float(shift), -float(mean[0]), float(variance[0]) ** -0.5)


def _tat_moments(f: Activation, scales: Array, shifts: Array) -> tuple[Array, ...]:
    mean, variance, _, product = _centered(f, scales, shifts)
    _, slopes, bends, weights = affine_samples(_slope_of(f), scales, shifts)
    slope_square = scales**2 * np.sum(weights * slopes**2, axis=1)
    bend = scales**2 * np.sum(weights * bends, axis=1)
    curvature = scales**4 * np.sum(weights * bends**2, axis=1)
    # Poincare's inequality: no variance is larger than its slope's mean square.
    offset = np.sqrt(np.maximum(slope_square - variance, 0.0))
    return mean, product, slope_square, bend, curvature, offset


def _tat_branch(sign: float) -> _Branch:
    """TAT's equations, for one sign of the mean that the output keeps."""

    def residuals(f: Activation, depth: float, scales: Array, shifts: Array) -> Array:
        _, product, slope_square, bend, curvature, offset = _tat_moments(f, scales, shifts)
        excess = np.stack(
            [
                curvature / slope_square - _CURVATURE / depth,
                (product + sign * offset * bend) / slope_square - 1,
            ]
        )
        return depth * excess.T

    def finish(f: Activation, scale: float, shift: float) -> Shape:
        mean, _, slope_square, _, _, offset = (
            float(x[0]) for x in _tat_moments(f, np.array([scale]), np.array([shift]))
        )
        output_shift = sign * offset - mean
        return Shape(math.copysign(scale, shift), float(shift), output_shift, slope_square**-0.5)

    return _Branch(residuals, finish)


_EQUATIONS = {
    "dks": _Equations((_Branch(_dks_residuals, _dks_shape),)),
    "tat": _Equations((_tat_branch(1.0), _tat_branch(-1.0))),
}


METHODS = tuple(_EQUATIONS)


@functools.lru_cache(maxsize=64)
def _slope_of(f: Activation) -> Activation:
    def slope(x: jax.Array) -> jax.Array:
        return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    slope.__name__ = f"the slope of {activation_name(f)}"
    return slope


@functools.lru_cache(maxsize=64)
def _is_rectifier(f: Activation) -> bool:
    """Whether f(a x) = a f(x) for positive a: two straight lines that meet at 0."""
    x = np.array([-1.0, 1.0])
    near, far = (evaluate(f, a * x)[0] / a for a in (2.0**-8, 2.0**8))
    return bool(np.max(np.abs(near - far)) <= 1e-12 * np.max(np.abs(near)))


@functools.lru_cache(maxsize=256)
def _dks_rectifier(f: Activation, depth: float) -> Shape:
    growth = math.expm1(math.log(_GROWTH) / depth)

    def excess(shift: float) -> float:
        """C'(1) - 1 with unit scale; it depends on the ratio of shift and scale alone."""
        _, variance, slope_square, _ = _centered(f, np.ones(1), np.array([shift]))
        if not variance[0] > 0:
            raise ValueError("it's constant")
        return float((slope_square - variance)[0] / variance[0])

    shift = _FARTHEST
    while not excess(shift) >= growth:
        shift -= 0.25
        if shift < -_FARTHEST:
            raise ValueError(f"it's too nearly linear for C'(1) = {_GROWTH}^(1/depth)")
    root = bisect(lambda shift: excess(shift) < growth, shift, shift + 0.25)
    unit = _dks_shape(f, 1.0, root)
    size = abs(root)
    return Shape(1 / size, root / size, unit.output_shift / size, unit.output_scale * size)


def _tat_rectifier(f: Activation, depth: float) -> Shape:
    (left, right), _ = evaluate(f, np.array([-1.0, 1.0]))
    wanted = leaky_slope(int(depth))
    steep, flat = (right, -left) if abs(right) >= abs(left) else (-left, right)
    if not abs(flat - wanted * steep) <= 1e-6 * abs(steep):
        raise ValueError(
            f"TAT changes the negative slope of rectifiers, to {wanted:.6g}, which kernels and "
            "biases can't absorb; use method='dks', or leaky ReLUs of this slope"
        )
    return Shape(1.0, 0.0, 0.0, math.sqrt(2 / (left**2 + right**2)))
