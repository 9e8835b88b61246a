"""What the activations of one layer tell: their size, their spread, and how many units are gone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from vanishjax import numerics
from vanishjax._jaxpr import Activation, Site

# More samples than this say no more about the rank, and cost a matrix product each.
_MOST_SAMPLES = 512

# A slope below this share of the activation's steepest counts as saturated: a sigmoid at |x| > 4.4,
# a tanh at |x| > 2.2, where a gradient loses 95 % in a single layer.
SATURATED_SLOPE = 0.05


class Statistics(NamedTuple):
    """Of one layer on one batch: scalars, float32 at least.

    Attributes:
      preactivation_rms: Root mean square of what the activation is applied to.
      activation_rms: Of what comes out of it.
      centered_energy: Share of the activations' energy that tells inputs apart,
        tr Cov(h) / E|h|^2; NaN for a batch of one.
      effective_rank: (sum of eigenvalues)^2 / sum of their squares, of Cov(h); NaN for a batch of
        one, 0 where all inputs are mapped to one point.
      dead_fraction: Share of units with slope 0 at every input; 0 without an activation.
      saturated_fraction: Share of slopes below `SATURATED_SLOPE` of the steepest, if the activation
        is bounded; else 0.
      slope_rms: Root mean square of the activation's slope; 1 without one.
      intake_energy: Share of what a first kernel takes in that tells inputs apart, as that of what
        the activation is applied to; NaN where other kernels come before.
    """

    preactivation_rms: jax.Array
    activation_rms: jax.Array
    centered_energy: jax.Array
    effective_rank: jax.Array
    dead_fraction: jax.Array
    saturated_fraction: jax.Array
    slope_rms: jax.Array
    intake_energy: jax.Array


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is to be measured of one layer: a function of arrays, equal to others that do the same.

    Attributes:
      activation: See `statistics`.
      samples: See `statistics`.
      units: See `statistics`.
      text: The activation's.
      first: See `statistics`.
    """

    activation: Activation | None = dataclasses.field(compare=False)
    samples: tuple[int, ...]
    units: tuple[int, ...]
    text: Hashable
    first: bool

    @classmethod
    def of(cls, site: Site, *, first: bool) -> Self:
        """What is to be measured at a site, the first on its way or a later one."""
        text = None if site.activation is None else site.activation.text
        return cls(site.activation, site.samples, site.units, text, first)

    def __call__(self, x: jax.Array) -> Statistics:
        """Measures a layer: see `statistics`."""
        return statistics(x, self.activation, self.samples, self.units, first=self.first)


def statistics(
    x: jax.Array,
    activation: Activation | None,
    samples: tuple[int, ...],
    units: tuple[int, ...],
    *,
    first: bool = False,
) -> Statistics:
    """Measures one layer.

    Args:
      x: What the activation is applied to, or the layer's output if it has none.
      activation: The activation.
      samples: Axes of x that tell inputs apart: the batch's first, then positions.
      units: Its other axes.
      first: Whether no kernel comes before the layer's.

    Returns:
      The statistics.
    """
    size = [math.prod(x.shape[axis] for axis in axes) for axes in (samples[1:], units)]
    shape = (x.shape[samples[0]] if samples else 1, *size)  # [batch, positions, units]

    def arrange(values: jax.Array) -> jax.Array:
        return in_real_units(numerics.upcast(values).transpose(*samples, *units).reshape(shape), -1)

    slope = jnp.ones(shape) if activation is None else jnp.abs(arrange(activation.slope(x)))
    h = arrange(x if activation is None else activation(x))
    energy, rank = _spread(h)
    intake = jnp.full((), jnp.nan)
    if first:
        intake = energy if activation is None else _energy(arrange(x))[0]
    bounded = activation is not None and activation.bounded
    least = SATURATED_SLOPE * activation.steepest if activation is not None and bounded else 0.0
    values = (
        _rms(x),
        _rms(h),
        energy,
        rank,
        jnp.mean(jnp.all(slope == 0, axis=(0, 1))),
        jnp.mean(slope < least),
        _rms(slope),
        intake,
    )
    dtype = jnp.finfo(numerics.accumulator_dtype(x.dtype)).dtype
    return Statistics(*(jnp.asarray(value, dtype) for value in values))


def in_real_units(x: jax.Array, axis: int) -> jax.Array:
    """Of complex units twice as many, their real and their imaginary parts."""
    return jnp.concatenate([x.real, x.imag], axis) if jnp.iscomplexobj(x) else x


def _rms(x: jax.Array) -> jax.Array:
    scale, rest = numerics.split_rms(x)
    return (scale * rest).reshape(())


def _spread(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Centered energy and effective rank of activations `[batch, positions, units]`."""
    energy, centered = _energy(h)
    if h.shape[0] < 2:
        return energy, energy
    rows = _rescale(centered).reshape(-1, h.shape[-1])
    rows = rows[:: max(1, rows.shape[0] // _MOST_SAMPLES)]
    left = rows if rows.shape[0] < rows.shape[1] else rows.T
    gram = numerics.matmul(left, left.T)
    return energy, numerics.divide(jnp.trace(gram) ** 2, jnp.sum(gram**2))


def _energy(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Centered energy of activations `[batch, positions, units]`, and what tells inputs apart."""
    h = _rescale(h)
    centered = h - jnp.mean(h, axis=0)
    if h.shape[0] < 2:
        return jnp.full((), jnp.nan), centered
    return numerics.divide(jnp.sum(centered**2), jnp.sum(h**2)), centered


def _rescale(x: jax.Array) -> jax.Array:
    """Divides by a power of two near the largest entry, so that squares stay in range."""
    return x * numerics.power_of_two(jnp.max(jnp.abs(x), initial=0.0))[1]
