"""What a probe measures of softmaxes, of the positions of a sequence, and of features."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr, numerics
from vanishjax.health.statistics import SATURATED_SLOPE, in_real_units

_ONE_HOT = 0.05  # a row whose 1 - sum p^2 is below that looks at one position alone
_LEAST_SEQUENCE = 4


def watch(watched: _jaxpr.Watched, x: jax.Array, *kernel: jax.Array) -> jax.Array:
    """Measures a softmax's rows, or the positions or the features that a kernel takes in.

    Args:
      watched: What it is.
      x: The softmax's result, or the kernel's intake.
      *kernel: Beside its features the kernel.

    Returns:
      The share of rows that are one-hot, or of slopes below `SATURATED_SLOPE` of the steepest. Or
      two shares of the intake's energy: what is left once each example's mean over positions is
      taken off, and what tells a position from the middle between its neighbors (the same as the
      first, for independent positions); NaN where nothing comes in. Or the evenness of features:
      see `Probe.feature_evenness`.
    """
    x = numerics.upcast(x)
    if watched.kind == "features":
        return _evenness(x, watched.axes, numerics.upcast(kernel[0]), watched.kernel_axes)
    if watched.kind in ("tanh", "logistic"):
        slope = 1 - x * x if watched.kind == "tanh" else 4 * x * (1 - x)
        return jnp.mean(slope < SATURATED_SLOPE)
    if watched.kind == "softmax":
        rest = 1 - jnp.sum(x * x, axis=watched.axes)
        size = math.prod(x.shape[axis] for axis in watched.axes)
        return jnp.mean(rest < _ONE_HOT) if size > 1 else jnp.zeros(())
    x = in_real_units(x, watched.axes[0])
    positions = tuple(
        axis for axis in range(x.ndim) if axis not in watched.axes and axis != watched.batch
    )
    x = x * numerics.power_of_two(jnp.max(jnp.abs(x), initial=0.0))[1]
    centered = jnp.mean((x - jnp.mean(x, axis=positions, keepdims=True)) ** 2)
    apart = centered
    if len(positions) == 1 and x.shape[positions[0]] > _LEAST_SEQUENCE:
        # A second difference adds up 1 + 4 + 1 variances.
        apart = jnp.mean(jnp.diff(x, 2, axis=positions[0]) ** 2) / 6
    whole = jnp.mean(x * x)
    return jnp.where(whole > 0, jnp.stack([centered, apart]) / whole, jnp.nan)


def _evenness(
    x: jax.Array, axes: tuple[int, ...], kernel: jax.Array, kernel_axes: tuple[int, ...]
) -> jax.Array:
    """How even the features are that a kernel takes in: see `Probe.feature_evenness`.

    Args:
      x: What it takes in.
      axes: Those of the features.
      kernel: It.
      kernel_axes: Those of the features there.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.full((), jnp.nan)
    data, rows = (
        jnp.moveaxis(a, own, range(len(own))).reshape(math.prod(a.shape[i] for i in own), -1)
        for a, own in ((x, axes), (kernel, kernel_axes))
    )
    ranges = jnp.max(data, axis=1) - jnp.min(data, axis=1)
    return jnp.fmax(_fifth(ranges), _fifth(ranges * numerics.rms(rows, axes=(1,))))


def _fifth(sizes: jax.Array) -> jax.Array:
    """The fifth largest, of less than nine the middle one, as a part of the largest.

    What is 0 doesn't count. NaN where that can't be told.
    """
    sizes = jnp.sort(sizes)
    count = jnp.sum(sizes > 0)
    told = (count > 1) & jnp.isfinite(sizes[-1])
    return jnp.where(told, sizes[-1 - jnp.minimum(count // 2, 4)] / sizes[-1], jnp.nan)
