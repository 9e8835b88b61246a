"""Bounded activations and gates that are flat for nearly all inputs."""

from __future__ import annotations

import collections

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, feeding, pick
from vanishjax.health.measurements import Probe
from vanishjax.health.supply import LEAST_STEPS, Flags

# Share of a bounded activation's slopes in a layer.
SATURATED_UNITS = 0.8
# Nats that are lost where one gate of several is shut. With biases of -9 in the output or the input
# gates, 17 of them, an LSTM goes a third of the way in 400 steps of Adam at .005, with -14 and 27
# nowhere; with -5, 9 of them, most of it.
_SHUT = 15.0


def saturated_units(seen: Examination) -> Finding | None:
    """A bounded activation driven to where it is flat."""
    probe = seen.probe
    saturated = probe.saturated_fraction > SATURATED_UNITS
    frozen = saturated & probe.is_stopped
    for place in map(int, np.flatnonzero(frozen)):
        # Before all that is trained nothing has to come back through it.
        before = None if probe.supply is None else probe.supply.around(place)[0]
        saturated[place] = before is None or bool((before & ~probe.is_stopped).any())
    gates = _gates_beside(probe, saturated)
    saturated &= ~gates
    if not saturated.any():
        return _saturated_gates(probe) or _shut_gates(seen, gates) or _saturated_beyond(probe)
    rms = float(np.median(probe.preactivation_rms[saturated]))
    return Finding(
        "saturated_units",
        "critical",
        pick(probe.names, saturated),
        {
            "saturated_fraction": float(np.max(probe.saturated_fraction)),
            "preactivation_rms": rms,
        },
        f"Pre-activations of size {rms:.3g} drive the activation to where its slope is below a "
        "twentieth of its steepest."
        + (" These layers are frozen." if (frozen | ~saturated).all() else ""),
        ("frozen_slope",) if (frozen | ~saturated).all() else advised("saturated_units", probe),
    )


def _gates_beside(probe: Probe, saturated: Flags) -> Flags:
    """Which of some layers feed a sigmoid in a loop that something leads past.

    As of a cell with a kernel for each gate. An open one is flat as well, and does no harm.
    """
    used = collections.Counter(probe.kernels)
    looped = np.array([used[name] >= LEAST_STEPS for name in probe.kernels], bool)
    gates = saturated & looped & np.array([kind == "other" for kind in probe.activations], bool)
    if probe.supply is None or not gates.any():
        return np.zeros_like(saturated)
    return gates & ~probe.supply.blocked(np.inf, saturated)


def _saturated_gates(probe: Probe) -> Finding | None:
    """All gates together driven to where they are flat."""
    shares = [share for _, share in probe.gates]
    if not shares or not np.mean(shares) > SATURATED_UNITS:
        return None
    return Finding(
        "saturated_units",
        "critical",
        feeding(probe.gates, SATURATED_UNITS),
        {"saturated_fraction": float(np.mean(shares))},
        f"{np.mean(shares):.0%} of the gates that these kernels feed are driven to where their "
        "slope is below a twentieth of its steepest.",
        advised("saturated_units", probe),
    )


def _shut_gates(seen: Examination, flat: Flags) -> Finding | None:
    """A gate that lets next to nothing through, where nothing leads past it."""
    probe = seen.probe
    names = set(feeding(probe.gates, SATURATED_UNITS))
    fed = flat | np.array([name in names for name in probe.names], bool)
    if not fed.any() or probe.supply is None:
        return None
    shares = [share for _, share in probe.gates] + probe.saturated_fraction[flat].tolist()
    shut = probe.supply.blocked(_SHUT) & fed
    if not shut.any():
        return None
    nats = float(np.max(probe.reach[shut]))
    return Finding(
        "saturated_units",
        "critical",
        pick(probe.names, shut),
        {"saturated_fraction": max(shares), "reach": nats},
        f"A gate that these kernels feed is shut for all inputs: exp({nats:.3g}) of the gradient's "
        "energy comes through, and nothing leads past it.",
        advised("saturated_units", probe),
    )


def _saturated_beyond(probe: Probe) -> Finding | None:
    """A frozen network after the last layer, driven to where it is flat."""
    flat = [one for one in probe.frozen if one.saturated_fraction > SATURATED_UNITS]
    if not flat:
        return None
    where = flat[0].where
    line = "" if where is None else f", first at {where.file}:{where.line}"
    share = max(one.saturated_fraction for one in flat)
    return Finding(
        "saturated_units",
        "critical",
        probe.names[-1:],
        {"saturated_fraction": share},
        f"A frozen network after them is driven to where its activation is flat, at {share:.0%} of "
        f"its units{line}: what comes back says next to nothing.",
        ("frozen_slope",),
        where,
    )
