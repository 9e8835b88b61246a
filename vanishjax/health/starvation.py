"""Rules for what gets no gradient: whether it is in the only way, or a path leads past it."""

from __future__ import annotations

from typing import Any

import numpy as np

from vanishjax.health.advice import advised, applicable
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, Severity, Where, pick
from vanishjax.health.measurements import Probe
from vanishjax.health.vanishing import frozen_loss, vanished_on_the_way, vanishing_gradient
from vanishjax.layers.matrices import kernel_places

# Of the kernels, behind gains of 0 that never move: a residual network with all of them at 0 trains
# its first and last layers alone.
_MOST = 0.5

_NEITHER = "where both sides of a product start at 0, neither ever moves"

# Share of a layer's units. A residual rectifier network of depth 24 has a layer with half of its
# units dead on a batch, and trains; with all dead nothing gets through.
DEAD_UNITS = 0.9


def dead_units(seen: Examination) -> Finding | None:
    """Units whose activation is flat at every input: no gradient gets through them."""
    probe = seen.probe
    # Units that are off because nothing at all comes in aren't dead: `zero_gradient` says why.
    dead = (probe.dead_fraction > DEAD_UNITS) & (probe.preactivation_rms > 0)
    # A stop_gradient within an activation makes its slope 0 too: nothing is dead there.
    dead &= ~probe.is_stopped
    if not dead.any():
        return None
    worst = float(np.max(probe.dead_fraction[dead]))
    severity: Severity = "warning"
    past = ""
    if worst == 1:
        whole = dead & (probe.dead_fraction == 1)
        if (seen.blocked & whole).any():
            severity = "critical"
            dead = dead & (seen.blocked | ~whole)
        elif _none_is_left(probe, whole):
            severity = "critical"
            past = " No other activation is left: the rest of the network, past them, is linear."
        else:
            severity = "note"
            past = " The rest of the network trains past them, along a path that avoids them."
    return Finding(
        "dead_units",
        severity,
        pick(probe.names, dead),
        {"dead_fraction": worst, "preactivation_rms": float(np.max(probe.preactivation_rms[dead]))},
        f"Up to {worst:.0%} of a layer's units are off for every input of the batch, so neither "
        f"they nor what lies before them gets a gradient.{past}",
        advised("dead_units", probe),
    )


def _none_is_left(probe: Probe, dead: np.ndarray[Any, np.dtype[np.bool_]]) -> bool:
    """Whether all nonlinear functions of a network's layers are off; attention is one too."""
    nonlinear = np.array([kind is not None for kind in probe.activations])
    return not (probe.softmaxes or probe.choices) and bool(
        nonlinear.any() and dead[nonlinear].all()
    )


def zero_gradient(seen: Examination) -> Finding | None:
    """Gradients that are exactly zero by construction, not for lack of precision."""
    probe, parameters = seen.probe, seen.probe.parameters
    names = parameters.layers.names
    kernels = probe.is_kernel
    unused = _of_paths(parameters.layers.unused, names)
    stopped = _of_paths(parameters.layers.stopped, names)
    # A bias alone may be zero by accident: at the start of training its examples' gradients cancel.
    still = (parameters.rms == 0) & np.isneginf(parameters.log_rms)
    zero = still & (kernels | np.isin(names, unused + stopped) | (len(probe) == 0))
    vanished = np.flatnonzero(vanished_on_the_way(seen))
    zero[[place for i in vanished for place in probe.places[i]]] = False
    if not zero.any():
        return None
    layers = pick(names, zero)
    evidence = {
        "layers": float(zero.sum()),
        "of": float(len(names)),
        "unused": float(len(unused)),
        "stopped": float(len(stopped)),
    }
    # A bias alone trains nothing.
    everything = bool(zero[kernels].all() if kernels.any() else zero.all())
    everything &= not (np.isin(names, stopped)[kernels].all() and _trains_beside(seen))
    blocks = _blocked_by_zeros(seen)
    where: Where | None = None
    # A gain or a kernel that is 0 but moves sets the rest free after the first step; so does a
    # matrix that is no kernel by itself, as a factor of one.
    matrices = np.zeros(len(names), bool)
    matrices[kernel_places(parameters.layers)] = True
    factors = np.array([name.rpartition("[")[0] or name for name in names])
    at_zero = kernels | np.isin(factors, probe.factors) | np.isin(names, probe.factors) | matrices
    at_zero &= parameters.parameter_rms == 0
    gates = at_zero & (parameters.rms > 0)
    # Not so if it's 0 behind one that is 0 as well: then both stay, and what they multiply.
    stuck = at_zero & still
    lost = stuck.any() and kernels.any() and bool(np.mean(zero[kernels]) >= _MOST)
    severity: Severity = "critical" if everything or blocks or lost else "warning"
    if len(unused) == len(layers):
        cause = "The loss never uses these parameters."
        remedies: tuple[str, ...] = ("unused",)
    elif len(unused) + len(stopped) == len(layers):
        cause = "A stop_gradient, or an integer or comparison, stands between them and the loss."
        remedies = ("frozen",)
        severity = "critical" if everything else "note"
    elif gates.any():
        gate = pick(names, gates)[0]
        cause = f"{gate} is 0 and blocks them for now; it has a gradient itself and will let go."
        remedies = ("starts_at_zero",)
        severity = "note"
    elif lost and not everything:
        cause = f"{pick(names, stuck)[0]} is 0, and what it would learn by is 0 too: {_NEITHER}."
        remedies = (*advised("zero_gradient", probe), "random_kernels")
    elif not everything and kernels[zero].all() and not blocks:
        cause = (
            "No gradient comes back to them, but the network trains past them, along a path that "
            "avoids them."
        )
        remedies = ("starts_at_zero",)
        severity = "note"
    elif (probe.preactivation_rms == 0).any() and parameters.parameter_rms[kernels].all():
        vanishing = vanishing_gradient(seen)
        if vanishing is not None and vanishing.severity == "critical":
            return None  # what shrinks the signal shrinks the gradient, and there it has a number
        first = pick(probe.names, probe.preactivation_rms == 0)[0]
        cause = f"The signal itself shrinks until it is exactly 0, from {first} on."
        remedies = applicable(("slow_looks_linear", "lsuv", "rezero"), probe)
    elif everything and not len(probe):
        cause = (
            "The loss doesn't depend on the parameters: it never uses them, or nothing but their "
            "rounded value, their sign or a comparison."
        )
        remedies = ("slope",)
    elif everything and (frozen := frozen_loss(seen)) is not None:
        where, cause = frozen
        remedies = ("frozen_slope",)
    elif (len(probe) and np.isneginf(probe.log_backward_rms[-1])) or (
        # Nothing on the way is 0, and still nothing comes back.
        everything and parameters.parameter_rms[kernels].all()
    ):
        one = probe.widths[-1] == 1
        cause = "The loss doesn't depend on the network's output: its slope there is exactly 0" + (
            ", as after a softmax over a single unit, which is always 1."
            if one
            else ", as that of a rounding, a sign or a comparison."
        )
        remedies = ("sigmoid_output", "slope") if one else ("slope",)
    else:
        cause = f"What multiplies them is exactly 0: {_NEITHER}."
        remedies = (*advised("zero_gradient", probe), "random_kernels")
    return Finding("zero_gradient", severity, layers, evidence, cause, remedies, where)


def _trains_beside(seen: Examination) -> bool:
    """Whether something trains beside kernels that are all stopped: more than an output's bias.

    Low-rank factors, gains, a prompt, biases of hidden layers.
    """
    probe, layers = seen.probe, seen.probe.parameters.layers
    matrices = kernel_places(layers)
    heads = probe.widths[np.isin(probe.names, probe.heads)]
    return any(
        place in matrices or leaf.path in probe.factors or seen.sizes[place] not in heads
        for place, leaf in enumerate(layers.homes)
        if probe.parameters.rms[place] > 0
    )


def _blocked_by_zeros(seen: Examination) -> bool:
    """Whether kernels whose gradient is 0 stand in the only way."""
    probe = seen.probe
    if probe.supply is None:
        return False
    still = (probe.gradient_rms == 0) & np.isneginf(probe.log_gradient_rms)
    return bool((probe.supply.blocked(seen.reach, still) & still).any())


def in_the_way(seen: Examination, features: np.ndarray[Any, np.dtype[np.bool_]]) -> bool:
    """Whether the last of some features stands in the only way, or a path leads past it."""
    supply = seen.probe.supply
    if supply is None:
        return True
    still = np.append(features, False)
    return bool(supply.blocked(seen.reach, still)[: len(features)][-1])


def _of_paths(paths: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """The layers that belong to some parameters."""
    return tuple(name for name in names if name in paths or name.rpartition("[")[0] in paths)
