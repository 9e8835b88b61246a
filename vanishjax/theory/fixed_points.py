"""Where variance and correlation settle in a deep network, and over how many layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from vanishjax.activations import Activation
from vanishjax.theory.maps import check_finite, moments
from vanishjax.theory.quadrature import activation_name, pair_moments

LARGEST = 2.0**40  # variance; beyond it a fixed point is taken for infinite, below 1 / it for zero
NOISE = 1e-13  # relative; what is smaller is rounding
_CRITICAL = 1e-12  # how near 1 a slope is taken for 1


class _Point(NamedTuple):
    q: float
    c: float
    chi: float
    depth_scale: float


class FixedPoint(_Point):
    """Where variance and correlation settle, and how fast: ``(q, c, chi, depth_scale)``, and more.

    Attributes:
      q: Variance of the pre-activations, q*.
      c: Correlation of two inputs' pre-activations, c*: 1 in the ordered phase (chi <= 1).
      chi: Factor of the gradient's squared norm from layer to layer, and the slope of the
        correlation map at c = 1.
      depth_scale: xi_c: layers over which two inputs lose a factor e of their difference to c*;
        infinite at criticality.
      xi_q: The same for the variance on its way to q*; no item of the tuple.
    """

    xi_q: float

    def __new__(
        cls, q: float, c: float, chi: float, depth_scale: float, *, xi_q: float
    ) -> FixedPoint:
        """Four numbers of the tuple, and one beside it."""
        self = super().__new__(cls, q, c, chi, depth_scale)
        self.xi_q = xi_q
        return self

    @property
    def xi_gradient(self) -> float:
        """-1 / ln(chi): the same as `depth_scale` for the gradient; negative if it grows."""
        return _depth_scale(self.chi)


def fixed_point(
    activation: str | Activation, sigma_w2: float, sigma_b2: float, *, start: float = 1.0
) -> FixedPoint:
    """Where signals settle in a deep network, and over how many layers.

    q* is the fixed point of the variance map that is met first from `start` in the direction in
    which the map moves it. There may be others: GELU and SiLU have several close together near
    their critical points, see `critical_point`. Where every q is one (ReLU at sigma_w2 = 2), it's
    `start`. Where q* = 0 all numbers are limits from above, and c = 1.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      sigma_w2: Variance of the weights times fan-in.
      sigma_b2: Variance of the biases.
      start: Variance from which the search starts.

    Returns:
      ``(q, c, chi, depth_scale)``, with the further attributes of `FixedPoint`.

    Raises:
      ValueError: If the variance grows without bound, on a negative argument, or for an activation
        that can't be integrated to 1e-10.

    Example:
      >>> q, c, chi, depth_scale = fixed_point("tanh", 1.3, 0.05)
      >>> print(c, round(chi, 6), round(depth_scale, 6))
      1.0 0.880164 7.834069
      >>> fixed_point("relu", 2.5, 0.0)
      Traceback (most recent call last):
      ...
      ValueError: relu with sigma_w2=2.5, sigma_b2=0 has no finite fixed point: ...

    References:
      Schoenholz et al. 2017, equations (7) to (9) and (18).
    """
    check_finite(sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    if not 0 < start < LARGEST:
        raise ValueError(f"start must be positive, and smaller than {LARGEST:.0e}, got {start}")
    sigma_w2, sigma_b2 = float(sigma_w2), float(sigma_b2)
    q = _variance_fixed_point(activation, sigma_w2, sigma_b2, float(start))
    found = moments(activation, q)
    gain = sigma_w2 * found.slope_square
    distance = 0.0
    if q > 0 and gain > 1 + _CRITICAL:
        distance = _distance_fixed_point(activation, sigma_w2, q)
    slope = sigma_w2 * pair_moments(activation, q, distance)[1] if distance else gain
    return FixedPoint(
        q=q,
        c=1 - distance,
        chi=gain,
        depth_scale=_depth_scale(slope),
        xi_q=_depth_scale(sigma_w2 * found.square_slope),
    )


def trainable_depth(activation: str | Activation, sigma_w2: float, sigma_b2: float) -> float:
    """The depth to which a plain network was found to train: 6 xi_c.

    An empirical bound, from fully connected tanh networks on MNIST and CIFAR-10; infinite at
    criticality.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      sigma_w2: Variance of the weights times fan-in.
      sigma_b2: Variance of the biases.

    Returns:
      The number of layers.

    Raises:
      ValueError: As `fixed_point`.

    Example:
      >>> print(round(trainable_depth("tanh", 1.3, 0.05)), trainable_depth("relu", 2.0, 0.0))
      47 inf

    References:
      Schoenholz et al. 2017, section 5.
    """
    return 6 * fixed_point(activation, sigma_w2, sigma_b2).depth_scale


def _variance_fixed_point(
    activation: str | Activation, sigma_w2: float, sigma_b2: float, start: float
) -> float:
    def gap(q: float) -> float:
        return sigma_w2 * moments(activation, q).square + sigma_b2 - q

    first = gap(start)
    if abs(first) <= NOISE * start:
        return start
    up = first > 0
    a = start
    while 1 / LARGEST < a < LARGEST:
        b = 2 * a if up else a / 2
        if (-gap(b) if up else gap(b)) > NOISE * b:
            return bisect(lambda q: (gap(q) <= 0) == up, a, b)
        a = b
    if not up:
        return 0.0
    raise ValueError(
        f"{activation_name(activation)} with sigma_w2={sigma_w2:g}, sigma_b2={sigma_b2:g} has no "
        "finite fixed point: the variance of its pre-activations grows from layer to layer; "
        "choose a smaller sigma_w2 (or sigma_b2=0 at criticality)"
    )


def _distance_fixed_point(activation: str | Activation, sigma_w2: float, q: float) -> float:
    """1 - c* where chi > 1.

    The distance's map is concave, with slope chi > 1 at 0: Newton's method from above can't
    overshoot its one other fixed point.
    """
    distance = 1.0
    for _ in range(100):
        apart, slope = pair_moments(activation, q, distance)
        step = (sigma_w2 * apart / q - distance) / (1 - sigma_w2 * slope)
        distance = max(distance + step, distance / 4)
        if abs(step) <= 1e-15:
            break
    return distance


def _depth_scale(slope: float) -> float:
    """-1 / ln(slope) for a deviation that is multiplied by `slope` at each layer."""
    if slope == 0:
        return 0.0
    rate = math.log(abs(slope))
    return math.inf if abs(rate) <= _CRITICAL else -1 / rate


def bisect(reached: Callable[[float], bool], a: float, b: float) -> float:
    """The point between a, where `reached` is false, and b, where it's true, at which it turns."""
    while True:
        middle = (a + b) / 2
        if middle in (a, b):
            return b
        if reached(middle):
            b = middle
        else:
            a = middle
