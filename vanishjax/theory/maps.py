"""What one layer does to variance, correlation and gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

from vanishjax.activations import Activation
from vanishjax.theory.quadrature import pair_moments, samples
from vanishjax.validation import check_non_negative


class Moments(NamedTuple):
    """What the variance map and the gradient see of an activation.

    Attributes:
      square: E[f^2].
      square_slope: Its derivative by q.
      slope_square: E[f'^2].
    """

    square: float
    square_slope: float
    slope_square: float


def variance_map(activation: str | Activation, q: float, sigma_w2: float, sigma_b2: float) -> float:
    """The next layer's pre-activation variance: ``sigma_w2 E[f(sqrt(q) z)^2] + sigma_b2``.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      q: This layer's variance.
      sigma_w2: Variance of the weights times fan-in.
      sigma_b2: Variance of the biases.

    Returns:
      The variance.

    Raises:
      ValueError: On a negative argument or an activation that can't be integrated to 1e-10.

    Example:
      >>> print(round(variance_map("relu", 3.0, 2.0, 0.1), 12))
      3.1

    References:
      Poole et al. 2016, equation (3).
    """
    check_finite(q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return sigma_w2 * moments(activation, q).square + sigma_b2


def chi(activation: str | Activation, q: float, sigma_w2: float) -> float:
    """The gradient's squared norm per layer: ``sigma_w2 E[f'(sqrt(q) z)^2]``.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      q: Variance of the pre-activations; 0 gives the limit from above.
      sigma_w2: Variance of the weights times fan-in.

    Returns:
      The factor.

    Raises:
      ValueError: On a negative argument or an activation that can't be integrated to 1e-10.

    Example:
      >>> print(round(chi("relu", 5.0, 1.0), 12))
      0.5

    References:
      Schoenholz et al. 2017, equations (5) and (18).
    """
    check_finite(q=q, sigma_w2=sigma_w2)
    return sigma_w2 * moments(activation, q).slope_square


def correlation_map(
    activation: str | Activation, c: float, q: float, sigma_w2: float, sigma_b2: float
) -> float:
    """The next layer's correlation of two inputs: ``(sigma_w2 E[f(u1) f(u2)] + sigma_b2) / q'``.

    Here u1, u2 ~ N(0, q) have correlation c, and q' is the next layer's variance (Poole's q* at the
    fixed point). Computed from E[(f(u1) - f(u2))^2], so that 1 - c keeps its digits near c = 1.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      c: This layer's correlation, from -1 to 1.
      q: This layer's variance.
      sigma_w2: Variance of the weights times fan-in.
      sigma_b2: Variance of the biases.

    Returns:
      The correlation.

    Raises:
      ValueError: On an argument out of range, an activation that can't be integrated to 1e-10, or
        a next layer without variance.

    Example:
      >>> print(round(correlation_map("relu", 0.0, 1.0, 2.0, 0.0) * math.pi, 12))
      1.0

    References:
      Poole et al. 2016, equation (5).
    """
    if not -1 <= c <= 1:
        raise ValueError(f"c must lie in [-1, 1], got {c}")
    following = variance_map(activation, q, sigma_w2, sigma_b2)
    if following == 0:
        raise ValueError("the next layer's variance is 0: its correlation isn't defined")
    return 1 - sigma_w2 * pair_moments(activation, q, 1 - c)[0] / following


def sum_log_chi(
    activation: str | Activation,
    sigma_w2: float,
    sigma_b2: float,
    depth: int,
    *,
    q: float | None = None,
) -> float:
    """The log of what `depth` layers do to the gradient's squared norm: ``sum_l ln chi(q_l)``.

    The best single predictor of whether a network trains. The variance q_l is followed from the
    first layer on, not taken at its fixed point.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      sigma_w2: Variance of the weights times fan-in.
      sigma_b2: Variance of the biases.
      depth: Number of layers that have the activation.
      q: Variance of the first layer's pre-activations; that of inputs with a mean square of 1 if
        None.

    Returns:
      The sum of natural logarithms; -inf if the gradient vanishes exactly.

    Raises:
      ValueError: On a negative argument or an activation that can't be integrated to 1e-10.

    Example:
      >>> print(round(sum_log_chi("relu", 1.0, 0.0, 10) / math.log(0.5), 9))
      10.0
    """
    check_finite(sigma_w2=sigma_w2, sigma_b2=sigma_b2, depth=depth)
    q = sigma_w2 + sigma_b2 if q is None else q
    total = 0.0
    for _ in range(depth):
        gain = chi(activation, q, sigma_w2)
        if gain == 0:
            return -math.inf
        total += math.log(gain)
        q = variance_map(activation, q, sigma_w2, sigma_b2)
    return total


def moments(activation: str | Activation, q: float) -> Moments:
    """The activation's moments over pre-activations of variance q; limits from above if q = 0.

    Example:
      >>> print([round(moment, 12) for moment in moments("relu", 3.0)])
      [1.5, 0.5, 0.5]
    """
    x, values, slopes, weights = samples(activation, q)
    # Stein's lemma: d E[f^2] / dq = E[f f' x] / q, where the nodes stand for the limit if q = 0.
    variance = float(weights @ x**2)
    return Moments(
        square=float(weights @ values**2),
        square_slope=float(weights @ (values * slopes * x)) / variance,
        slope_square=float(weights @ slopes**2),
    )


def check_finite(**arguments: float) -> None:
    """Raises ValueError naming the first argument that is negative, infinite or NaN."""
    for name, value in arguments.items():
        check_non_negative(name, float(value))
        if math.isinf(value):
            raise ValueError(f"{name} must be finite, got {value}")
