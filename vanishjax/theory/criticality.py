"""The critical line, on which gradients neither vanish nor explode."""

from __future__ import annotations

import functools
from typing import NamedTuple

from vanishjax.activations import Activation
from vanishjax.theory.fixed_points import LARGEST, NOISE, bisect
from vanishjax.theory.maps import check_finite, moments
from vanishjax.theory.quadrature import activation_name

_MARGINAL = 1e-6  # by which the variance map's slope may exceed 1: sigma_b2 given to six digits
_SMALL = 2.0**-10  # a variance at which what happens just above 0 has left the rounding


class CriticalPoint(NamedTuple):
    """A point of the line chi = 1.

    Attributes:
      sigma_w2: Variance of the weights times fan-in.
      sigma_b2: Variance of the biases.
      q: The variance that pre-activations then keep.
    """

    sigma_w2: float
    sigma_b2: float
    q: float


def critical_point(activation: str | Activation, sigma_b2: float | None = None) -> CriticalPoint:
    """The weights' and biases' variances at which chi = 1 and q* is stable.

    On the critical line sigma_w2 = 1 / E[f'^2] and sigma_b2 = q - E[f^2] / E[f'^2]; it's stable
    where sigma_w2 dE[f^2]/dq <= 1. For GELU and SiLU it is only from some sigma_b2 on, and just
    there q* is stable from one side only.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      sigma_b2: Variance of the biases; None for the least that has a stable critical point.

    Returns:
      ``(sigma_w2, sigma_b2, q)``; q = 1 where any will do (ReLU).

    Raises:
      ValueError: If there is no such point, on a negative argument, or for an activation that
        can't be integrated to 1e-10.

    Example:
      >>> sigma_w2, sigma_b2, q = critical_point("gelu")
      >>> print(round(sigma_w2, 6), round(sigma_b2, 6), round(q, 6))
      1.983058 0.172922 3.561553
      >>> critical_point("relu", 0.1)
      Traceback (most recent call last):
      ...
      ValueError: relu has no critical point with sigma_b2=0.1, only with sigma_b2=0

    References:
      Schoenholz et al. 2017, figure 2; Roberts et al. 2022, sections 5.3 and 5.4 (GELU and SWISH).
    """
    if sigma_b2 is not None:
        check_finite(sigma_b2=sigma_b2)
        sigma_b2 = float(sigma_b2)
    return _critical_point(activation, sigma_b2)


def critical_sigma_w2(activation: str | Activation, sigma_b2: float) -> float:
    """The variance of weights, times fan-in, at which gradients neither vanish nor explode.

    Args:
      activation: Name of an activation or a continuous elementwise JAX function.
      sigma_b2: Variance of the biases.

    Returns:
      sigma_w2 with chi = 1: see `critical_point`.

    Raises:
      ValueError: As `critical_point`.

    Example:
      >>> print(round(critical_sigma_w2("tanh", 0.05), 12))
      1.760954639607
    """
    return critical_point(activation, sigma_b2).sigma_w2


def _on_critical_line(activation: str | Activation, q: float) -> tuple[CriticalPoint, float]:
    """The point of the critical line whose variance is q, and the variance map's slope there."""
    found = moments(activation, q)
    if found.slope_square == 0:
        raise ValueError(f"{activation_name(activation)} has no critical point: its slope is 0")
    sigma_w2 = 1 / found.slope_square
    point = CriticalPoint(sigma_w2, q - sigma_w2 * found.square, q)
    return point, sigma_w2 * found.square_slope


@functools.lru_cache(maxsize=256)
def _critical_point(activation: str | Activation, sigma_b2: float | None) -> CriticalPoint:
    least = _least_critical_point(activation)
    if sigma_b2 is None or sigma_b2 == least.sigma_b2:
        return least

    def reached(q: float) -> bool:
        return _on_critical_line(activation, q)[0].sigma_b2 >= sigma_b2

    q = max(least.q, 1 / LARGEST) / 2
    while q < LARGEST:
        q *= 2
        point, _ = _on_critical_line(activation, q)
        if point.sigma_b2 - sigma_b2 > NOISE * q:
            point, slope = _on_critical_line(activation, bisect(reached, q / 2, q))
            if slope > 1 + _MARGINAL:
                break
            return point._replace(sigma_b2=sigma_b2)
    where = "only" if _takes_any_variance(activation) else "the least is"
    raise ValueError(
        f"{activation_name(activation)} has no critical point with sigma_b2={sigma_b2:.12g}, "
        f"{where} with sigma_b2={least.sigma_b2:.12g}"
    )


@functools.lru_cache(maxsize=256)
def _least_critical_point(activation: str | Activation) -> CriticalPoint:
    """The critical point with the least sigma_b2 at which the variance is stable."""
    if _takes_any_variance(activation):
        return _on_critical_line(activation, 1.0)[0]._replace(sigma_b2=0.0)

    def stable(q: float) -> bool:
        point, slope = _on_critical_line(activation, q)
        return point.sigma_b2 >= 0 and slope <= 1

    q = _SMALL
    zero, _ = _on_critical_line(activation, 0.0)
    _, slope = _on_critical_line(activation, q)
    if abs(zero.sigma_b2) <= NOISE and slope <= 1 + NOISE:
        return zero._replace(sigma_b2=0.0)
    while q < LARGEST:
        q *= 2
        if stable(q):
            point, _ = _on_critical_line(activation, bisect(stable, q / 2, q))
            below_noise = point.sigma_b2 <= NOISE * point.q
            return point._replace(sigma_b2=0.0) if below_noise else point
    raise ValueError(
        f"{activation_name(activation)} has no critical point: where chi = 1 its variance isn't "
        "stable"
    )


def _takes_any_variance(activation: str | Activation) -> bool:
    """Whether f(a x) = a f(x), as for ReLU: at criticality every variance is a fixed point."""
    point, slope = _on_critical_line(activation, 1.0)
    return abs(point.sigma_b2) <= NOISE and abs(slope - 1) <= NOISE
