"""Steps far too large or too small for the kernels that they move."""

from __future__ import annotations

from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding
from vanishjax.health.remedies import FITTING

# One step of the median kernel, over its usual size. At the best of the rates tried the networks
# that train in `benchmarks.real_networks`, of 52 kinds, take .002 to .1 of it, half of them .02.
USUAL_STEP = 0.01
# Ten times the most of them.
TOO_LARGE = 1.0
# A thousand such steps, all in one direction, change a kernel by a hundredth.
_TOO_SMALL = 1e-5


def learning_rate(seen: Examination) -> Finding | None:
    """A rate at which a step undoes the kernels, or leaves them as they are."""
    part = seen.relative_step
    if part is None or not (part > TOO_LARGE or part < _TOO_SMALL):
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
