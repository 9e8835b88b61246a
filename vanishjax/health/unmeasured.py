"""Kernels that can't be looked into: judged by their gradients, or said to be unknown."""

from __future__ import annotations

from typing import Any

import numpy as np

from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, Severity
from vanishjax.health.measurements import Opaque, ParameterGradients, Probe
from vanishjax.layers.matrices import kernel_places

# Nats between the energies of the largest |gradient| |kernel| among hidden kernels and among those
# that were measured. Healthy fixed points and differential equations -4 to -2, sick ones 19 to 72.
HIDDEN_EXPLODES = 10.0
HIDDEN_VANISHES = -30.0
# Share of the kernels, where all are hidden, whose gradient is so far below the largest of all.
_STARVED = 1 / 3


def unmeasured(seen: Examination) -> Finding | None:
    """Kernels inside functions with derivatives of their own, solvers and callbacks."""
    probe, parameters = seen.probe, seen.probe.parameters
    names = np.array(parameters.layers.names)
    hidden = np.isin(names, probe.unmeasured)
    hidden |= np.isin([name.rpartition("[")[0] for name in names], probe.unmeasured)
    used = [leaf.path for leaf in parameters.layers.leaves if leaf.status in ("used", "unknown")]
    if not hidden.any() and (len(probe) or not used):
        return None
    if not len(probe):
        starved, nats = _starved(parameters)
        if starved.any():
            return Finding(
                "unmeasured",
                "critical",
                tuple(map(str, names[starved])),
                {"hidden": float(hidden.sum()), "measured": 0.0, "starved_over_largest": nats},
                "Their outputs can't be looked into, but their gradients have down to "
                f"exp({nats:.0f}) of the energy of the largest: what lies between lets nothing "
                "through.",
                ("derivative", "larger_inside"),
            )
        return Finding(
            "unmeasured",
            "warning",
            tuple(map(str, names[hidden] if hidden.any() else names)),
            {"hidden": float(hidden.sum()), "measured": 0.0},
            "No kernel's output could be measured: the parameters meet the data inside functions "
            "that can't be looked into, or in none of the ways known (a matrix product, a "
            "convolution, a lookup). Whether it trains is unknown.",
            ("train_and_look",),
        )
    with np.errstate(divide="ignore"):
        energy = 2 * np.log(parameters.rms * parameters.parameter_rms)
    measured = probe.is_kernel & ~hidden
    largest = np.max(energy[measured], initial=-np.inf)
    nats = float(np.max(energy[hidden]) - largest) if np.isfinite(largest) else np.nan
    evidence = {"hidden": float(hidden.sum()), "hidden_over_measured": nats}
    layers = tuple(map(str, names[hidden]))
    if not np.isfinite(nats) and not np.isneginf(nats):
        severity: Severity = "warning"
        cause = "Their outputs can't be looked into, and there is nothing to compare them with."
        remedies: tuple[str, ...] = ("train_and_look",)
    elif nats > HIDDEN_EXPLODES:
        severity = "critical"
        cause = (
            f"Their outputs can't be looked into, but their gradients have exp({nats:.0f}) times "
            "the energy of the others': the solver, or its way back, diverges."
        )
        remedies = ("contract", "solve_better", "clip")
    elif nats < HIDDEN_VANISHES:
        severity = "critical"
        cause = (
            f"Their outputs can't be looked into, but their gradients have exp({nats:.0f}) of the "
            "energy of the others'."
        )
        remedies = ("derivative", "larger_inside")
    else:
        severity = "note"
        cause = (
            "Their outputs can't be looked into. Judged by the size of their gradients they are "
            "healthy."
        )
        remedies = ()
    return Finding("unmeasured", severity, layers, evidence, cause, remedies)


def _starved(parameters: ParameterGradients) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], float]:
    """Kernels whose gradient is far below the largest of all, if they are many, and how far."""
    with np.errstate(divide="ignore"):
        energy = 2 * np.log(parameters.rms)
    kernels = np.zeros(len(energy), bool)
    kernels[kernel_places(parameters.layers)] = True
    known = np.isfinite(energy)
    kernels &= known
    below = np.zeros_like(energy)
    below[known] = energy[known] - np.max(energy[known], initial=-np.inf)
    starved = kernels & (below < HIDDEN_VANISHES)
    if starved.sum() <= _STARVED * kernels.sum():
        starved[:] = False
    return starved, float(np.min(below, initial=0.0, where=starved))


def opaque_behind(probe: Probe, layer: int) -> Opaque | None:
    """What can't be looked into and takes in what a layer puts out, with no kernel in between.

    Args:
      probe: The measurements.
      layer: The layer's number.
    """
    name = probe.names[layer]
    return next((one for one in probe.opaque if name in one.before), None)
