"""Steps that an optimizer's epsilon eats."""

from __future__ import annotations

from typing import Any

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, Severity, pick
from vanishjax.health.rounding import rounding_noise
from vanishjax.health.step_size import is_too_small

# An optimizer that takes less than this share of its step in most layers is as good as still. Of
# the networks tried that train, the median kernel takes .89 of it or more; of two deep ones that
# don't, whose signals are faint as well, .14 and .16.
BLIND_STEP = 0.25


def blind_optimizer(seen: Examination) -> Finding | None:
    """The optimizer's eps, or moments that flush to zero, eat the step."""
    if seen.effectiveness is None:
        return None
    probe, blind = seen.probe, _blind(seen, seen.effectiveness)
    if not blind.any():
        return None
    kernels = probe.is_kernel | (len(probe) == 0)
    stops = blind[kernels].mean() > 0.5
    if probe.supply is not None:
        # As with kernels that starve, a network trains past those that a path avoids.
        standing = np.array([blind[list(own)].all() for own in probe.places], bool)
        stops &= (probe.supply.blocked(np.inf, standing) & standing).any()
        # Nor past those for which a kernel that is nearly 0 and moves makes gradients small.
        stops &= not seen.beside_zero[standing].all()
    return _told(seen, seen.effectiveness, "critical" if stops else "warning")


def large_epsilon(seen: Examination) -> Finding | None:
    """An eps above every gradient: steps in proportion to them, and all of them too small.

    Adagrad starts with squares of .1 and RMSProp with an eps of 1 where that is what its rate is
    made for: only where steps move nothing is it a fault.
    """
    if seen.most_rms is None or seen.step_rms is None or not is_too_small(seen):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.asarray(seen.step_rms / seen.most_rms)
    blind = _blind(seen, share)
    return _told(seen, share, "critical") if blind[seen.kernels].mean() > 0.5 else None


def _blind(seen: Examination, share: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which layers of parameters take so small a share of their steps."""
    parameters = seen.probe.parameters
    noise = rounding_noise(parameters.layers.names, parameters.rms)
    return np.asarray((share < BLIND_STEP) & (parameters.rms > 0) & ~noise)


def _told(seen: Examination, share: np.ndarray[Any, Any], severity: Severity) -> Finding:
    probe, parameters = seen.probe, seen.probe.parameters
    blind = _blind(seen, share)
    kernels = probe.is_kernel | (len(probe) == 0)
    named = blind & kernels if (blind & kernels).any() else blind
    worst, least = float(np.min(share[blind])), float(np.min(parameters.rms[blind]))
    return Finding(
        "blind_optimizer",
        severity,
        pick(parameters.layers.names, named),
        {"effectiveness": worst, "gradient_rms": least},
        f"The optimizer takes {worst:.1e} of its step where the gradient is {least:.1e}: its eps "
        "is larger than that.",
        advised("blind_optimizer", probe),
    )
