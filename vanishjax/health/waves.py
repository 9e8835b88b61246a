"""A rule for networks of sines: what goes into one behind another has its period's size."""

from __future__ import annotations

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.finding import Finding, pick
from vanishjax.health.measurements import Probe

# Radians: what goes in is of size 1 where kernels are divided by the sine's frequency, 20 and more
# where they aren't; each step then leads into another wave.
_WRAPPED = 2 * np.pi


def wrapped(probe: Probe) -> Finding | None:
    """Sines of what sines made, with arguments so large that they wrap around again and again.

    Args:
      probe: What was measured.

    Returns:
      The finding, if there is one.

    References:
      Sitzmann et al., Implicit neural representations with periodic activation functions, 2020,
      section 3.2.
    """
    periods = np.array(probe.periods, float)
    waves = np.flatnonzero(np.isfinite(periods))
    # Not where no kernel comes before, as behind features of the data's own frequencies.
    inside = waves[1:][np.isnan(probe.intake_energy[waves[1:]])]
    radians = np.zeros(len(probe))
    radians[inside] = 2 * np.pi * probe.preactivation_rms[inside] / periods[inside]
    wrapped = radians > _WRAPPED
    if not wrapped.any():
        return None
    size, frequency = float(np.max(radians)), 2 * np.pi / periods[np.argmax(radians)]
    return Finding(
        "exploding_gradient",
        "critical",
        pick(probe.names, wrapped),
        {"radians": size, "frequency": frequency, "limit": float(_WRAPPED)},
        f"What goes into a sine behind another one is {size:.3g} radians in size and wraps around "
        "again and again: the gradient grows as much in each layer, and tells nothing of where a "
        "step leads.",
        (
            f"kernels of a size of 1 over the square root of inputs and over {frequency:.3g}, the "
            "sine's frequency",
            "lsuv",
            *advised("exploding_gradient", probe),
        ),
    )
