"""From measurements to findings: one function a rule, each pure.

A threshold is a named constant with its evidence. None depends on the scale of the loss, but for
those of number types and of an optimizer's eps, which do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from vanishjax._jaxpr import Span
from vanishjax.health.advice import advised, applicable
from vanishjax.health.attention import saturated_attention, token_collapse
from vanishjax.health.descent import step_length
from vanishjax.health.epsilon import blind_optimizer, large_epsilon
from vanishjax.health.examination import Examination
from vanishjax.health.explosion import exploding_gradient
from vanishjax.health.finding import Finding, Rule, Severity, pick
from vanishjax.health.learning import does_not_learn
from vanishjax.health.lost import lost_squares, lost_updates
from vanishjax.health.memory import memory
from vanishjax.health.saturation import saturated_units
from vanishjax.health.start import (
    bad_start,
    faint_inputs,
    far_inputs,
    far_targets,
    high_floor,
    uneven_inputs,
)
from vanishjax.health.starvation import (
    dead_units,
    in_the_way,
    zero_gradient,
)
from vanishjax.health.step_size import learning_rate
from vanishjax.health.unmeasured import unmeasured
from vanishjax.health.vanishing import vanishing_gradient

_Rule: TypeAlias = Callable[[Examination], Finding | None]

# Share of the last features' energy that tells inputs apart. Adam trains sigmoid networks of depth
# 16 with critical kernels, 1e-7, and none of depth 8 with LeCun's, 3e-11 (`benchmarks.networks`).
COLLAPSED_ENERGY = 1e-8
_FAINT_ENERGY = 4e-6

# Dimensions that the last features differ in. Rectifiers of depth 128 end at 1.0 and hardly train;
# of depth 16, at 1.9, they do. Inputs that lie on a line to begin with don't count.
COLLAPSED_RANK = 1.05
LEAST_INPUT_RANK = 1.5
# Units whose kernels are equal differ from one another by rounding; inputs of features that vary
# alike, the fifth (or the middle one) by so much of the largest, don't lie on a line.
_COPIES, _EVEN = 1e-4, 0.05

# Half of a gradient is gone if it's this much smaller than it would be in a type of more range.
_LOST = np.log(2.0)


_SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")


def _gravest(*rules: _Rule, of: Examination) -> Finding | None:
    """What some rules of one name find, the gravest, and of equals the first."""
    found = [one for rule in rules if (one := rule(of)) is not None]
    return min(found, key=lambda one: _SEVERITIES.index(one.severity), default=None)


def nonfinite(seen: Examination) -> Finding | None:
    """Infinity or NaN, in the parameters, the loss or a gradient."""
    probe, parameters = seen.probe, seen.probe.parameters
    wrong, broken = parameters.nonfinite, ~np.isfinite(parameters.parameter_rms)
    if np.isfinite(probe.loss) and not (wrong | broken).any():
        return None
    evidence = {"loss": probe.loss, "nonfinite_gradients": float(wrong.sum())}
    # What the loss itself makes of the output isn't the forward pass's fault.
    forward = ~np.isfinite(probe.preactivation_rms)
    forward[seen.features] |= ~np.isfinite(probe.activation_rms[seen.features])
    if broken.any():
        layers = pick(parameters.layers.names, broken)
        cause = f"The parameters themselves hold infinity or NaN, {layers[0]} first."
        remedies: tuple[str, ...] = ("restore", "skip_nonfinite")
    elif forward.any():
        layers = pick(probe.names, forward)
        cause = f"The forward pass overflows: from {layers[0]} on activations aren't finite."
        remedies = (
            *advised("nonfinite", probe),
            *applicable(("rezero", "layer_norm", "bounded_activation"), probe),
        )
    elif not np.isfinite(probe.loss):
        layers = probe.names[-1:]
        cause = (
            "All activations are finite, but the loss isn't: it takes a logarithm, a root or a "
            "quotient of something that is zero or negative."
        )
        remedies = ("logits", "guard")
    else:
        layers = pick(parameters.layers.names, wrong)
        cause = "The loss is finite, but its gradient isn't: something has an infinite slope."
        remedies = ("guard", "skip_nonfinite")
    where = None
    if seen.fault is not None and not broken.any():
        where, cause, remedies, span = seen.fault
        evidence |= {} if span is None else _operand(span)
    return Finding("nonfinite", "critical", layers, evidence, cause, remedies, where)


def _operand(span: Span) -> dict[str, float]:
    """What went into the operation that made infinity or NaN."""
    least, largest, zeros = span
    return {"operand_least": least, "operand_largest": largest, "operand_zeros": float(zeros)}


def mean_collapse(seen: Examination) -> Finding | None:
    """All inputs arrive at the same point."""
    probe = seen.probe
    energy = probe.centered_energy[seen.features]
    if (
        not len(energy)
        or not np.isfinite(energy[-1])
        or probe.activation_rms[seen.features][-1] == 0
    ):
        return None
    types = probe.dtypes[seen.features]
    # What rounding alone makes of identical features.
    floor = np.array([float(jnp.finfo(dtype).eps) ** 2 for dtype in types])
    # A derivative doesn't see what all inputs have in common.
    told_apart = probe.in_derivatives & (probe.centered_energy >= COLLAPSED_ENERGY)
    kernels = {kernel for kernel, one in zip(probe.kernels, told_apart, strict=True) if one}
    differentiated = np.array([kernel in kernels for kernel in probe.kernels])
    undifferentiated = ~differentiated[seen.features]
    collapsed = (energy < np.maximum(COLLAPSED_ENERGY, floor)) & undifferentiated
    severity: Severity = "critical"
    if not collapsed[-1] and seen.loses_much:
        # The gradient is lost on its way back as well. At 4e-7 to 7e-8, five or six sigmoids, Adam
        # learns little in the first hundreds of steps; at 5e-5, three, it does.
        collapsed = (energy < np.maximum(_FAINT_ENERGY, floor)) & undifferentiated
        severity = "warning"
    if not collapsed[-1] or not in_the_way(seen, collapsed):
        return None
    late = " Learning starts late, if at all." if severity == "warning" else ""
    return Finding(
        "mean_collapse",
        severity,
        pick(probe.names[seen.features], collapsed),
        {"centered_energy": float(energy[-1]), "first_layer": float(energy[0])},
        f"Only {energy[-1]:.1e} of the last features' energy tells inputs apart: the activation's "
        f"mean, added up layer by layer, has drowned the rest.{late}",
        advised("mean_collapse", probe),
    )


def rank_collapse(seen: Examination) -> Finding | None:
    """What is left of the inputs' differences is one direction."""
    probe = seen.probe
    rank = probe.effective_rank[seen.features]
    collapsed = (rank < COLLAPSED_RANK) & (probe.widths[seen.features] > 2)
    if not len(rank) or not collapsed[-1]:
        return None
    first = rank[0]
    if probe.supply is not None and first > LEAST_INPUT_RANK:
        # Called for other inputs again, as on the edge of a field, they may lie on a line there.
        before, _ = probe.supply.around(len(rank) - 1)
        first = np.max(rank[before[: len(rank)]], initial=0.0) if before.any() else first
    if not first > LEAST_INPUT_RANK:
        return _copies(seen)
    if probe.activation_rms[seen.features][-1] == 0:  # as of a kernel that starts at 0
        return None
    if not in_the_way(seen, collapsed):
        return None
    return Finding(
        "rank_collapse",
        "critical",
        pick(probe.names[seen.features], collapsed),
        {"effective_rank": float(rank[-1]), "first_layer": float(first)},
        f"The last features differ in {rank[-1]:.2f} dimensions, the first in {first:.1f}: "
        "products of random matrices keep one direction and lose the others.",
        advised("rank_collapse", probe),
    )


def _copies(seen: Examination) -> Finding | None:
    """Units of one layer that are the same function, as constant kernels make them."""
    probe = seen.probe
    rank, wide = probe.effective_rank[seen.features], probe.widths[seen.features] > 2
    several = np.array([(seen.fan_in[list(own)] > 2).any() for own in probe.places], bool)
    if not (wide & (np.abs(rank - 1) < _COPIES)).all():
        return None
    if not (np.nan_to_num(probe.feature_evenness) > _EVEN)[several].any():
        return None
    return Finding(
        "rank_collapse",
        "critical",
        pick(probe.names[seen.features], wide),
        {"effective_rank": float(rank[-1]), "first_layer": float(rank[0])},
        "The units of a layer are copies of one another: their kernels start equal, so do their "
        "gradients, and no step tells them apart.",
        advised("rank_collapse", probe),
    )


def underflow(seen: Examination) -> Finding | None:
    """Gradients lost because their number type has no numbers that small."""
    probe = seen.probe
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = probe.log_gradient_rms - np.log(probe.gradient_rms) > _LOST
    lost &= np.isfinite(probe.log_gradient_rms)
    told = ~np.isnan(probe.log_gradient_rms)  # not of a kernel that is used several times
    tiny = np.array([_log_tiny(dtype) for dtype in probe.dtypes])
    wide = tiny < _log_tiny("float16")
    # What isn't rounded to zero is rounded to the smallest number, or to twice as much. A network
    # closed .5 of its gap at that number, .6 at one and a half, .8 at two, .9 at three.
    lost |= ~wide & (probe.log_gradient_rms < tiny + _LOST)
    # In types of float32's range part of a network is lost only where the cotangent itself vanishes
    # on the way, whatever the loss's scale; all of it is where the loss is too small.
    vanished = seen.reached / 2 < tiny
    lost &= ~wide | vanished | bool(lost[told].all())
    if not lost.any():
        return None
    types = sorted({dtype for dtype, one in zip(probe.dtypes, lost, strict=True) if one})
    narrow = not wide[lost].all()
    only = "" if narrow else " Nothing that acts on gradients helps."
    return Finding(
        "underflow",
        "critical" if lost[told].mean() > 0.5 else "warning",
        pick(probe.names, lost),
        {
            "log_gradient_rms": float(np.min(probe.log_gradient_rms[lost])),
            "log_smallest_number": float(np.max(tiny[lost])),
        },
        f"These gradients are below what {' and '.join(types)} can hold, and arrive as zeros"
        + (" or rounded to its smallest number." if narrow else ".")
        + only,
        advised("underflow", probe)
        if narrow
        else applicable(("slow_looks_linear", "lsuv", "rezero"), probe),
    )


RULES: Mapping[Rule, _Rule] = {
    "nonfinite": nonfinite,
    "dead_units": dead_units,
    "zero_gradient": zero_gradient,
    "saturated_units": saturated_units,
    "mean_collapse": lambda seen: _gravest(
        far_inputs, mean_collapse, uneven_inputs, faint_inputs, of=seen
    ),
    "exploding_gradient": exploding_gradient,
    "vanishing_gradient": vanishing_gradient,
    "rank_collapse": rank_collapse,
    "token_collapse": token_collapse,
    "saturated_attention": saturated_attention,
    "bad_start": lambda seen: bad_start(seen) or far_targets(seen),
    "underflow": lambda seen: _gravest(underflow, lost_squares, of=seen),
    "blind_optimizer": lambda seen: _gravest(blind_optimizer, large_epsilon, of=seen),
    "lost_updates": lost_updates,
    "learning_rate": learning_rate,
    "unmeasured": unmeasured,
    "memory": memory,
    "does_not_learn": lambda seen: high_floor(seen) or does_not_learn(seen.learning),
}
"""The rules in the order in which they explain one another."""

# What is but a consequence of something critical isn't reported beside it.
_EXPLAINS: Mapping[Rule, frozenset[Rule]] = {
    "nonfinite": frozenset(RULES) - {"nonfinite", "exploding_gradient"},
    "dead_units": frozenset(
        {"zero_gradient", "mean_collapse", "vanishing_gradient", "rank_collapse"}
    ),
    "zero_gradient": frozenset(
        {"mean_collapse", "rank_collapse", "vanishing_gradient", "unmeasured"}
    ),
    "mean_collapse": frozenset({"rank_collapse"}),
    "token_collapse": frozenset({"rank_collapse"}),
    "saturated_units": frozenset({"bad_start"}),
    # What a diverging way back does to a hidden solver it does to the kernels before it too.
    "exploding_gradient": frozenset({"bad_start", "unmeasured"}),
}


def apply_rules(seen: Examination) -> tuple[Finding, ...]:
    """Applies every rule.

    Args:
      seen: The measurements.

    Returns:
      The findings, the gravest first, those that explain others before them.
    """
    findings = [found for rule in RULES.values() if (found := rule(seen)) is not None]
    critical = {found.rule for found in findings if found.severity == "critical"}
    if not critical and (found := step_length(seen)) is not None:
        findings.append(found)  # what no other rule explains
    explained = frozenset[Rule]().union(*(_EXPLAINS.get(rule, frozenset()) for rule in critical))
    # A gradient that is far too large or too small makes such steps.
    if critical - {"learning_rate"}:
        explained |= {"learning_rate"}
    left = [found for found in findings if found.rule not in explained]
    return tuple(sorted(left, key=lambda found: _SEVERITIES.index(found.severity)))


def _log_tiny(dtype: str) -> float:
    """The least number that isn't lost: float16 keeps its subnormal numbers, others flush them."""
    info = jnp.finfo(dtype)
    return float(np.log(float(info.smallest_subnormal if dtype == "float16" else info.tiny)))
