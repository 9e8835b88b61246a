"""Steps far too large or too small for the kernels that they move."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding
from vanishjax.health.measurements import ParameterGradients
from vanishjax.health.remedies import FITTING

# One step of the median kernel, over its usual size. At the best of the rates tried the networks
# that train in `benchmarks.real_networks`, of 52 kinds, take .002 to .1 of it, half of them .02.
USUAL_STEP = 0.01
# Ten times the most of them.
TOO_LARGE = 1.0
# A thousand such steps, all in one direction, change a kernel by a hundredth.
_TOO_SMALL = 1e-5
# Kernels that move by less than this part of what others do stand still.
_STILL = 1e-3


def relative_step(parameters: ParameterGradients, step_rms: np.ndarray[Any, Any]) -> float:
    """One step of the median kernel that moves, as a part of its usual size.

    That is its own size, or that of LeCun's entries, 1 / sqrt(fan-in), where it is less than that:
    kernels that start small grow.

    Args:
      parameters: What was measured of them.
      step_rms: `[layers]`, the root mean square of one step.

    Returns:
      The part; NaN where no kernel is known to move.
    """
    homes = parameters.layers.homes
    inputs = [math.prod(leaf.shape[axis] for axis in leaf.inputs) for leaf in homes]
    usual = np.fmax(parameters.parameter_rms, np.fmax(inputs, 1) ** -0.5)
    kernels = np.array([leaf.is_matrix for leaf in homes], bool)
    parts = step_rms[kernels] / usual[kernels]
    parts = parts[np.isfinite(parts) & (parts > 0)]
    # Branches that end at zero get no gradient yet, whatever the rate is.
    moved = parts[parts > _STILL * np.max(parts, initial=0.0)]
    return float(np.median(moved)) if len(moved) else math.nan


def learning_rate(seen: Examination) -> Finding | None:
    """A rate at which a step undoes the kernels, or leaves them as they are."""
    if seen.step_rms is None:
        return None
    part = relative_step(seen.probe.parameters, seen.step_rms)
    if not (part > TOO_LARGE or part < _TOO_SMALL):
        return None
    large = part > TOO_LARGE
    return Finding(
        "learning_rate",
        "critical" if large else "warning",
        (),
        {"relative_step": part},
        f"One step changes kernels by {part:.3g} times their usual size: the learning rate is far "
        + ("too large." if large else "too small, unless it is still warming up."),
        FITTING["learning_rate"].advised,
    )
