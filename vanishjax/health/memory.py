"""How far back in time a recurrent network learns from."""

from __future__ import annotations

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding


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
    _, nats, steps = max(short, key=lambda one: one[1])
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
