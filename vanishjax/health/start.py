"""Where a network starts from: its loss beside that of the best constant output."""

from __future__ import annotations

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding

# The first loss over that of the best constant output. Networks that train start at .4 to 3.05 of
# it; logits 100 times too large at 73, an ODE's kernels 30 times too large at 377.
BAD_START = 10.0
# The last kernel's root mean square over that of one step. Of networks that train the most is 736;
# with logits 100 times too large 14,520. A regression on small targets starts high as well, but its
# kernel is soon small enough.
FAR_STEPS = 3000.0

_USUAL_STEP = 1e-3  # without an optimizer


def bad_start(seen: Examination) -> Finding | None:
    """A first loss far above that of a guess, and a last kernel too large to get down soon."""
    probe = seen.probe
    if not len(probe) or not probe.constant_loss > 0:
        return None
    ratio = probe.loss / probe.constant_loss
    name = probe.kernels[-1]
    layers = probe.parameters.layers
    if name.partition("[")[0] in layers.stopped:
        return None  # what comes after the last kernel that is trained is no part of the loss alone
    place = layers.names.index(name)
    step = _USUAL_STEP if seen.step_rms is None else float(seen.step_rms[place])
    kernel = float(probe.parameters.parameter_rms[place])
    steps = kernel / step if step > 0 else np.inf
    if not (ratio > BAD_START and steps > FAR_STEPS):
        return None
    return Finding(
        "bad_start",
        "critical",
        probe.names[-1:],
        {"loss_ratio": ratio, "constant_loss": probe.constant_loss, "kernel_in_steps": steps},
        f"The loss starts at {ratio:.0f} times that of the best constant output, and the last "
        f"kernel is {steps:.0f} steps large: the first steps only undo its initialization.",
        advised("bad_start", probe),
    )
