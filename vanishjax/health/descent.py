"""How far a step goes beside how far the loss is to go, as the gradient tells: nowhere, or beyond.

What no rule of layers sees: closed gates, a temperature, features that see nothing, a division by
what is nearly nothing.
"""

from __future__ import annotations

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, Rule
from vanishjax.health.step_size import HAS_LEARNED, USUAL_STEP

# Steps of usual size to half of the loss. Of the networks of `benchmarks.real_networks` that train,
# and of which no rule finds anything, most take 1 to 10, and none more than 85, those with gains of
# 0 or 1e-6 in all branches; of those that don't, and of which nothing else is found, half a dozen
# take 180 to 90,000.
TOO_MANY = 150.0
# The same, of the steps as they are: those that train take .12 or more, but for one at .03 that
# BatchNorm holds, and .016 at a width of 512 and Adam's .03; an encoder whose faint outputs are
# divided by their size, which doesn't train, .0005.
TOO_FEW = 0.005
# Kernels smaller than this part of LeCun's grow with each step of Adam's, and the gradient with
# them.
_SMALL = 1 / 3


def step_length(seen: Examination) -> Finding | None:
    """A loss that is far more steps away from its half than networks that train are, or far fewer.

    At a rate below the usual it counts in steps of the usual size: the network isn't to blame for a
    small rate.

    Args:
      seen: What was measured.

    Returns:
      The finding, if there is one.

    References:
      Polyak, Minimization of unsmooth functionals, 1969, equation 3.
    """
    probe, part, steps = seen.probe, seen.relative_step, seen.steps_to_half
    # Near the end of training steps are large beside what is left, and nothing is to be halved.
    if part is None or not (part > 0 and probe.loss >= probe.constant_loss / 2):
        return None
    usual = steps * min(1.0, part / USUAL_STEP)
    untrained = probe.loss >= HAS_LEARNED * probe.constant_loss
    if usual > TOO_MANY and untrained and not _grows(seen):
        return _finding(
            seen,
            "vanishing_gradient",
            {"steps_to_half": usual},
            f"As far as the gradient tells it takes {_rounded(usual)} steps of the usual size to "
            "halve the loss: it hardly depends on the parameters.",
            "a look at what lies between kernels and loss: a temperature, gates that are closed, "
            "features that see nothing",
        )
    if steps < TOO_FEW:
        return _finding(
            seen,
            "exploding_gradient",
            {"steps_to_half": steps},
            f"As far as the gradient tells one step goes {_rounded(1 / steps)} times as far as it "
            "takes to halve the loss: something is divided by what is nearly nothing, or the rate "
            "is far too large.",
            "larger values in what is divided by its own size",
        )
    return None


def _grows(seen: Examination) -> bool:
    """Whether the gradient is to grow with the kernels, so that it tells nothing of later steps.

    What it loses from layer to layer comes back as kernels grow, and has a rule of its own.
    """
    return seen.loses_much or (not seen.is_linear and seen.kernel_size < _SMALL)


def _finding(
    seen: Examination, rule: Rule, evidence: dict[str, float], cause: str, mend: str
) -> Finding:
    evidence |= {"loss": seen.probe.loss, "constant_loss": seen.probe.constant_loss}
    return Finding(rule, "critical", (), evidence, cause, (mend, *advised(rule, seen.probe)))


def _rounded(count: float) -> str:
    return f"{float(np.format_float_positional(count, 2, fractional=False)):,.0f}"
