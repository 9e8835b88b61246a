"""Kernels that are nearly 0, and hold back what lies before and behind them until they grow."""

from __future__ import annotations

import functools
import operator

import numpy as np

from vanishjax.health.measurements import Probe
from vanishjax.health.supply import Flags, Vector

# Of LeCun's entries. Of chains of 4 and 8 layers with one kernel of a hundredth of them or less,
# down to 1e-12 of them, Adam, momentum and SGD train all as if it were as large as the others.
_NEARLY_ZERO = 0.05
# A step of this part of LeCun's entries brings a kernel to a hundredth of them in a hundred.
_MOVES = 1e-4
# Of the kernels: where more of them are nearly 0, each waits for the others.
_FEW = 0.2


def nearly_zero(size: Vector, usual: Vector, step: Vector) -> Flags:
    """The kernels that are nearly 0 and move; none where many are, or where one of them stands.

    Args:
      size: `[layers]`, of the kernels' entries.
      usual: LeCun's.
      step: Of one step.
    """
    small = (size > 0) & (size < _NEARLY_ZERO * usual)
    few = small.sum() <= max(1, int(_FEW * len(size)))
    moves = bool((step[small] > _MOVES * usual[small]).all())
    return small & (few and moves)


def won_back(probe: Probe, small: Flags, size: Vector, usual: Vector) -> Vector:
    """Nats that each layer's gradient gains as the kernels downstream grow to a usual size.

    Args:
      probe: What was measured.
      small: `[layers]`, which kernels are nearly 0.
      size: Of the kernels' entries.
      usual: LeCun's.
    """
    won, supply = np.zeros(len(probe)), probe.supply
    if supply is None:
        return won
    for place in map(int, np.flatnonzero(small)):
        before, _ = supply.around(place)
        won[before] += 2 * np.log(usual[place] / size[place])
    return won


def beside(probe: Probe, small: Flags) -> Flags:
    """The layers that come before or behind a kernel that is nearly 0.

    Args:
      probe: What was measured.
      small: `[layers]`, which kernels are nearly 0.
    """
    supply = probe.supply
    if supply is None:
        return np.zeros(len(probe), bool)
    around = [part for place in np.flatnonzero(small) for part in supply.around(int(place))]
    return functools.reduce(operator.or_, around, np.zeros(len(probe), bool))
