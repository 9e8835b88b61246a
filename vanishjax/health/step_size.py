"""Steps far too large or too small for the kernels that they move."""

from __future__ import annotations

import numpy as np

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
# A decay that takes more than this of all kernels in a step is over within a training.
_FAST_DECAY = 1e-3
# The largest size, as a part of their own, at which steps hold kernels against it. At a twentieth
# a temporal convolutional network learns nothing.
_HELD = 0.1


def learning_rate(seen: Examination) -> Finding | None:
    """A rate at which a step undoes the kernels, or leaves them as they are."""
    if (decayed := _decayed(seen)) is not None:
        return decayed
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


def _decayed(seen: Examination) -> Finding | None:
    """Weight decay that shrinks kernels further than steps can hold them.

    They rest where a step is as large as what the decay takes: at step / decay of their size.
    """
    part = seen.decay
    if part is None or part < _FAST_DECAY or seen.still_rms is None or seen.step_rms is None:
        return None
    kernels = np.array([leaf.is_matrix for leaf in seen.probe.parameters.layers.homes], bool)
    shrunk = kernels & (seen.still_rms > 0)
    held = seen.step_rms[shrunk] / seen.still_rms[shrunk]
    held = held[np.isfinite(held)]
    size = float(np.median(held)) if len(held) else np.inf
    if size > _HELD:
        return None
    return Finding(
        "learning_rate",
        "critical",
        (),
        {"decay": part, "held": size},
        f"Weight decay takes {part:.2g} of every kernel in a step, and steps hold them at no more "
        f"than {size:.2g} of their size: the decay is far too strong.",
        ("less_decay",),
    )
