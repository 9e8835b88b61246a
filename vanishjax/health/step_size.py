"""Steps far too large or too small for the kernels that they move."""

from __future__ import annotations

import numpy as np

from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, Severity
from vanishjax.health.remedies import FITTING

# One step of the median kernel, over its usual size. At the best of the rates tried the networks
# that train in `benchmarks.real_networks`, of 52 kinds, take .002 to .1 of it, half of them .02.
USUAL_STEP = 0.01
# Ten times the most of them.
TOO_LARGE = 1.0
# A thousand such steps, all in one direction, change a kernel by a tenth. Of the networks of
# `benchmarks.real_networks` that aren't Adam's at 1e-4 or more, all 28 that take less than 4e-4
# learn nothing in some hundred steps; of those that learn none takes less than 5e-3.
TOO_SMALL = 1e-4
# Or below this, where it takes so many steps to halve the loss, as the gradient tells. An eps of .1
# in Adam and one of 1 in RMSProp leave steps of .00015 to .0003, and 43 to 280 of them; Adagrad at
# 1e-3 .0003 and 75.
FAINT, _FAR = 4e-4, 40.0
# Of so many kernels. The deeper a network, the more of them change its output at once, and the less
# each may: `deep_adam` divides its rate by the depth.
_SHALLOW = 8
# Below this part of a constant output's loss a network has learned something, and small steps may
# be what it needs.
HAS_LEARNED = 0.9
# A decay that takes more than this of all kernels in a step is over within a training.
_FAST_DECAY = 1e-3
# The largest size, as a part of their own, at which steps hold kernels against it. At a twentieth,
# at .17 and at .33 networks learn nothing; at .6 one goes most of the way, at 8 all of it.
_HELD = 0.4
# Or a decay that leaves of every step less than half twenty steps later: with .05 (SGD, L2 of .5)
# and .08 (AdamW, a decay of 20) MLPs learn nothing, though steps hold their kernels at a half.
_FORGETS = 0.035


def learning_rate(seen: Examination) -> Finding | None:
    """A rate at which a step undoes the kernels, or leaves them as they are."""
    if (decayed := _decayed(seen)) is not None:
        return decayed
    part = seen.relative_step
    if part is not None and part > TOO_LARGE:
        return _off(part, "critical", "too large.")
    return _too_small(seen, part) if part is not None and part < FAINT else None


def is_too_small(seen: Examination) -> bool:
    """Whether nothing moves, or nothing gets far, where there is something to learn.

    Not where a schedule, or what a constant output reaches, isn't known.
    """
    probe, part = seen.probe, seen.relative_step
    if part is None or not part < FAINT:
        return False
    still = _moves(seen, part) < TOO_SMALL or _is_far(seen, part)
    return still and bool(probe.loss >= HAS_LEARNED * probe.constant_loss)


def _moves(seen: Examination, part: float) -> float:
    """The steps to come: it may warm up, or be as deep as that."""
    return float(part * seen.later_steps * max(1.0, seen.kernels.sum() / _SHALLOW))


def _is_far(seen: Examination, part: float) -> bool:
    """Small steps, of which it takes many to halve the loss."""
    return bool(_moves(seen, part) < FAINT and seen.steps_to_half > _FAR * seen.later_steps)


def _too_small(seen: Examination, part: float) -> Finding | None:
    """A rate at which nothing moves, or nothing gets far."""
    faint = part >= TOO_SMALL
    if is_too_small(seen):
        more = {"steps_to_half": seen.steps_to_half} if faint else {}
        why = f"too small: a thousand steps move them by {1000 * part:.1g} at most."
        return _off(part, "critical", why, **more)
    if faint or (_moves(seen, part) >= TOO_SMALL and not _is_far(seen, part)):
        return None
    return _off(
        part, "warning", "too small, unless it still warms up or the network has learned already."
    )


def _off(part: float, severity: Severity, why: str, **more: float) -> Finding:
    return Finding(
        "learning_rate",
        severity,
        (),
        {"relative_step": part, **more},
        f"One step changes kernels by {part:.3g} times their usual size: the learning rate is far "
        + why,
        FITTING["learning_rate"].advised,
    )


def _decayed(seen: Examination) -> Finding | None:
    """Weight decay that shrinks kernels further than steps can hold them.

    They rest where a step is as large as what the decay takes: at step / decay of their size.
    """
    part = seen.decay
    if part is None or part < _FAST_DECAY or seen.still_rms is None or seen.step_rms is None:
        return None
    shrunk = seen.kernels & (seen.still_rms > 0)
    held = seen.step_rms[shrunk] / seen.still_rms[shrunk]
    held = held[np.isfinite(held)]
    size = float(np.median(held)) if len(held) else np.inf
    if size > _HELD and part < _FORGETS:
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
