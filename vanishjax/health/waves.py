"""A rule for networks of sines: what goes into one behind another has its period's size."""

from __future__ import annotations

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.finding import Finding
from vanishjax.health.measurements import Probe
from vanishjax.health.starvation import pick

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
    radians = 2 * np.pi * probe.preactivation_rms / np.array(probe.periods)
    waves = np.isfinite(probe.periods)
    behind = np.isnan(probe.intake_energy) & (np.cumsum(waves) > 1)
    wrapped = waves & behind & (radians > _WRAPPED)
    if not wrapped.any():
        return None
    size = float(np.max(radians[wrapped]))
    frequency = 2 * np.pi / probe.periods[int(np.argmax(np.where(wrapped, radians, 0)))]
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
            *advised("exploding_gradient", probe),
        ),
    )
