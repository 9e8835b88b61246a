"""How far back in time a recurrent network learns from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding
from vanishjax.health.measurements import Probe


def memory(seen: Examination) -> Finding | None:
    """A recurrent network whose gradient fades before it gets to the first steps.

    That starves no parameter: every step uses the same kernels, and the last ones train them. What
    lies further back than the memory is learned slowly, or not at all.
    """
    short = [
        (name, nats, steps) for name, nats, steps in seen.probe.memory if nats * steps > seen.reach
    ]
    if not short:
        return None
    nats = max(nats for _, nats, _ in short)
    # Written out, the first step of a cell that starts at 0 is none of its kernel's.
    steps = max(steps for *_, steps in short)
    reach = seen.reach / nats
    return Finding(
        "memory",
        "note",
        tuple(dict.fromkeys(name for name, *_ in short)),
        {"nats_per_step": nats, "steps": float(steps), "memory": reach},
        f"On its way back in time the gradient's energy falls by exp(-{nats:.2g}) a time step: a "
        f"memory of about {reach:.0f} of the {steps} steps.",
        advised("memory", seen.probe),
    )


class Growth(NamedTuple):
    """How a gradient grows on its way back in time.

    Attributes:
      nats: Of energy in a time step, more than 0.
      steps: The number of steps.
    """

    nats: float
    steps: int

    @property
    def total(self) -> float:
        """Nats over all steps."""
        return self.nats * (self.steps - 1)

    @property
    def cause(self) -> str:
        """A sentence."""
        return (
            f"Every time step multiplies the gradient's energy by {np.exp(self.nats):.2g}, so over "
            f"the {self.steps} steps it grows by exp({self.total:.0f}): the recurrent kernels are "
            "too large."
        )

    @property
    def evidence(self) -> dict[str, float]:
        """The same in numbers."""
        return {"nats_per_step": -self.nats, "steps": float(self.steps)}


def growth(probe: Probe) -> Growth | None:
    """The fastest growth back in time of any kernel that is used anew in every step."""
    grown = [Growth(-nats, steps) for _, nats, steps in probe.memory if nats < 0]
    return max(grown, key=lambda one: one.total, default=None)
