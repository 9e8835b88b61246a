"""From measurements to findings: one function a rule, each pure.

A threshold is a named constant with its evidence. None depends on the scale of the loss, but for
those of number types and of an optimizer's eps, which do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vanishjax.health.finding import Finding, Rule, Severity
from vanishjax.health.probe import Probe

# What the cotangent's energy may lose or win between the output and a layer, in nats. Of 56
# networks (8 initialisations, 7 depths) Adam trains those with less than 30, momentum those with
# less than 8.4; `benchmarks.diagnosis` tries both on others.
ADAPTIVE_REACH = 30.0
LINEAR_REACH = 8.4

# Share of the last features' energy that tells inputs apart. Adam trains sigmoid networks of depth
# 16 with critical kernels, 1e-7, and none of depth 8 with LeCun's, 3e-11 (`benchmarks.networks`).
COLLAPSED_ENERGY = 1e-8

# Dimensions that the last features differ in. Rectifiers of depth 128 end at 1.0 and hardly train;
# of depth 16, at 1.9, they do. Inputs that lie on a line to begin with don't count.
COLLAPSED_RANK = 1.05
LEAST_INPUT_RANK = 1.5

# Share of a layer's units. A residual rectifier network of depth 24 has a layer with half of its
# units dead on a batch, and trains; with all dead nothing gets through.
DEAD_UNITS = 0.9
SATURATED_UNITS = 0.8

# An optimizer that takes less than this share of its step in most layers is as good as still.
BLIND_STEP = 0.1

# Half of a gradient is gone if it's this much smaller than it would be in a type of more range.
_LOST = np.log(2.0)

_REINIT = "re-initialise from data: initializers.lsuv; or at criticality: critical_orthogonal"
_SLOPE = "check the loss: it must have a slope where the network starts"
_RESIDUAL = "residual connections: mlp_problem(residual='rezero' or 'scaled')"


class Examination(NamedTuple):
    """What the rules see.

    Attributes:
      probe: The measurements.
      effectiveness: For each layer of parameters the share of its step that the optimizer takes at
        the size of its gradient; None without an optimizer.
      degree: For each layer of parameters 1 if the optimizer's step is proportional to the
        gradient, 0 if it doesn't depend on its size; None without an optimizer.
    """

    probe: Probe
    effectiveness: np.ndarray[Any, Any] | None = None
    degree: np.ndarray[Any, Any] | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the optimizer's steps shrink with the gradients (SGD, momentum)."""
        return self.degree is not None and bool(np.median(self.degree) > 0.5)

    @property
    def reach(self) -> float:
        """How many nats may be lost or won on the way back."""
        return LINEAR_REACH if self.is_linear else ADAPTIVE_REACH

    @property
    def features(self) -> slice:
        """The layers whose outputs are features: all but the last."""
        return slice(0, max(0, len(self.probe) - 1))


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
        layers = _pick(parameters.layers.names, broken)
        cause = f"The parameters themselves hold infinity or NaN, {layers[0]} first."
        remedies: tuple[str, ...] = (
            "restore the last checkpoint",
            "skip_nonfinite before the optimizer",
        )
    elif forward.any():
        layers = _pick(probe.names, forward)
        cause = f"The forward pass overflows: from {layers[0]} on activations aren't finite."
        remedies = (_REINIT, "a normalised or residual architecture", "a bounded activation")
    elif not np.isfinite(probe.loss):
        layers = probe.names[-1:]
        cause = (
            "All activations are finite, but the loss isn't: it takes a logarithm, a root or a "
            "quotient of something that is zero or negative."
        )
        remedies = ("compute the loss from logits", "guard its argument with jnp.where")
    else:
        layers = _pick(parameters.layers.names, wrong)
        cause = "The loss is finite, but its gradient isn't: something has an infinite slope."
        remedies = ("guard a root's or quotient's argument with jnp.where", "skip_nonfinite")
    return Finding("nonfinite", "critical", layers, evidence, cause, remedies)


def dead_units(seen: Examination) -> Finding | None:
    """Units whose activation is flat at every input: no gradient gets through them."""
    probe = seen.probe
    # Units that are off because nothing at all comes in aren't dead: `zero_gradient` says why.
    dead = (probe.dead_fraction > DEAD_UNITS) & (probe.preactivation_rms > 0)
    if not dead.any():
        return None
    worst = float(np.max(probe.dead_fraction[dead]))
    return Finding(
        "dead_units",
        "critical" if worst == 1 else "warning",
        _pick(probe.names, dead),
        {"dead_fraction": worst, "preactivation_rms": float(np.max(probe.preactivation_rms[dead]))},
        f"Up to {worst:.0%} of a layer's units are off for every input of the batch, so neither "
        "they nor what lies before them gets a gradient.",
        (
            "draw the dead units' weights anew and set their biases to 0",
            "leaky_relu, elu or gelu instead of relu",
            "a smaller learning rate, if they died during training",
        ),
    )


def zero_gradient(seen: Examination) -> Finding | None:
    """Gradients that are exactly zero by construction, not for lack of precision."""
    probe, parameters = seen.probe, seen.probe.parameters
    names = parameters.layers.names
    kernels = np.isin(names, probe.names)
    unused = _of_paths(parameters.layers.unused, names)
    stopped = _of_paths(parameters.layers.stopped, names)
    # A bias alone may be zero by accident: at the start of training its examples' gradients cancel.
    zero = (parameters.rms == 0) & ~np.isfinite(parameters.log_rms)
    zero &= kernels | np.isin(names, unused + stopped) | (len(probe) == 0)
    if not zero.any():
        return None
    layers = _pick(names, zero)
    evidence = {
        "layers": float(zero.sum()),
        "of": float(len(names)),
        "unused": float(len(unused)),
        "stopped": float(len(stopped)),
    }
    # A bias alone trains nothing.
    everything = bool(zero[kernels].all() if kernels.any() else zero.all())
    severity: Severity = "critical" if everything else "warning"
    # A gain or a kernel that is 0 but moves sets the rest free after the first step.
    scalars = np.array([_is_scalar(seen, name) for name in names])
    gates = (parameters.parameter_rms == 0) & (parameters.rms > 0) & (kernels | scalars)
    if len(unused) == len(layers):
        cause = "The loss never uses these parameters."
        remedies: tuple[str, ...] = ("remove them, or find out why the model skips them",)
    elif len(unused) + len(stopped) == len(layers):
        cause = "A stop_gradient, or an integer or comparison, stands between them and the loss."
        remedies = ("leave it if they are frozen on purpose", "remove the stop_gradient")
        severity = "critical" if everything else "note"
    elif gates.any():
        gate = _pick(names, gates)[0]
        cause = f"{gate} is 0 and blocks them for now; it has a gradient itself and will let go."
        remedies = ("nothing to do: ReZero and zero-initialised outputs start like this",)
        severity = "note"
    elif (probe.preactivation_rms == 0).any() and parameters.parameter_rms[kernels].all():
        first = _pick(probe.names, probe.preactivation_rms == 0)[0]
        cause = f"The signal itself shrinks until it is exactly 0, from {first} on."
        remedies = (_REINIT, _RESIDUAL)
    elif everything and not len(probe):
        cause = (
            "The loss doesn't depend on the parameters: it never uses them, or nothing but their "
            "rounded value, their sign or a comparison."
        )
        remedies = (_SLOPE,)
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
        remedies = (("one unit with a sigmoid, or two with a softmax",) if one else ()) + (_SLOPE,)
    else:
        cause = (
            "What multiplies them is exactly 0: where both sides of a product start at 0, neither "
            "ever moves."
        )
        remedies = ("random initial kernels", "zeros in the last kernel only")
    return Finding("zero_gradient", severity, layers, evidence, cause, remedies)


def saturated_units(seen: Examination) -> Finding | None:
    """A bounded activation driven to where it is flat."""
    probe = seen.probe
    saturated = probe.saturated_fraction > SATURATED_UNITS
    if not saturated.any():
        return None
    rms = float(np.median(probe.preactivation_rms[saturated]))
    return Finding(
        "saturated_units",
        "critical",
        _pick(probe.names, saturated),
        {
            "saturated_fraction": float(np.max(probe.saturated_fraction)),
            "preactivation_rms": rms,
        },
        f"Pre-activations of size {rms:.3g} drive the activation to where its slope is below a "
        "twentieth of its steepest.",
        (_REINIT, "standardise the inputs", "normalise pre-activations (LayerNorm)"),
    )


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
    collapsed = energy < np.maximum(COLLAPSED_ENERGY, floor)
    if not collapsed[-1]:
        return None
    return Finding(
        "mean_collapse",
        "critical",
        _pick(probe.names[seen.features], collapsed),
        {"centered_energy": float(energy[-1]), "first_layer": float(energy[0])},
        f"Only {energy[-1]:.1e} of the last features' energy tells inputs apart: the activation's "
        "mean, added up layer by layer, has drowned the rest.",
        (
            "re-initialise and centre: initializers.lsuv",
            "an activation of mean zero (tanh, centered_sigmoid)",
            _RESIDUAL,
            "deep_muon, if model and parameters must stay as they are",
        ),
    )


def vanishing_gradient(seen: Examination) -> Finding | None:
    """The cotangent shrinks from layer to layer on its way back."""
    probe = seen.probe
    reached = _reached(probe)
    starved = reached < -seen.reach
    if not starved.any():
        return None
    factors = _factors(probe)
    chi, slope, gain = factors.values()
    if slope < gain:
        why = f"the activation's slope, {np.sqrt(slope):.2g} (rms), is the smaller factor"
        cure = "an activation of slope 1 at its centre (tanh, relu)"
    else:
        why = f"the weights' gain, {gain:.2g} per layer, is the smaller factor"
        cure = "larger weights: He's scale for relu, sigma_w^2 = 1 for tanh"
    return Finding(
        "vanishing_gradient",
        "critical",
        _pick(probe.names, starved),
        {"sum_log_chi": float(np.min(reached)), **factors, "limit": -seen.reach},
        f"Every layer keeps {chi:.2g} of the gradient's energy, so the first gets exp("
        f"{np.min(reached):.0f}) of it; {why}.",
        (
            _REINIT,
            _RESIDUAL,
            cure,
            "an optimizer that rescales each layer: muon, adam_atan2, normalize_by_layer",
        ),
    )


def exploding_gradient(seen: Examination) -> Finding | None:
    """The cotangent grows from layer to layer on its way back."""
    probe = seen.probe
    reached = _reached(probe)
    flooded = reached > seen.reach
    if not flooded.any():
        return None
    factors = _factors(probe)
    chi, gain = factors["chi"], factors["weight_gain"]
    return Finding(
        "exploding_gradient",
        "critical",
        _pick(probe.names, flooded),
        {"sum_log_chi": float(np.max(reached)), **factors, "limit": seen.reach},
        f"Every layer multiplies the gradient's energy by {chi:.2g}, so the first gets exp("
        f"{np.max(reached):.0f}) times it: the weights' gain, {gain:.2g}, is too large.",
        (_REINIT, "clip_by_layer_norm or adaptive_clip", _RESIDUAL, "a smaller learning rate"),
    )


def rank_collapse(seen: Examination) -> Finding | None:
    """What is left of the inputs' differences is one direction."""
    probe = seen.probe
    rank = probe.effective_rank[seen.features]
    collapsed = (rank < COLLAPSED_RANK) & (probe.widths[seen.features] > 2)
    if not len(rank) or not collapsed[-1] or not rank[0] > LEAST_INPUT_RANK:
        return None
    return Finding(
        "rank_collapse",
        "critical",
        _pick(probe.names[seen.features], collapsed),
        {"effective_rank": float(rank[-1]), "first_layer": float(rank[0])},
        f"The last features differ in {rank[-1]:.2f} dimensions, the first in {rank[0]:.1f}: "
        "products of random matrices keep one direction and lose the others.",
        (
            "orthogonal kernels: initializers.lsuv; of a rectifier: initializers.looks_linear",
            _RESIDUAL,
            "orthogonalised updates: muon",
        ),
    )


def underflow(seen: Examination) -> Finding | None:
    """Gradients lost because their number type has no numbers that small."""
    probe = seen.probe
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = probe.log_gradient_rms - np.log(probe.gradient_rms) > _LOST
    lost &= np.isfinite(probe.log_gradient_rms)
    tiny = np.array([_log_tiny(dtype) for dtype in probe.dtypes])
    wide = tiny < _log_tiny("float16")
    # In types of float32's range part of a network is lost only where the cotangent itself vanishes
    # on the way, whatever the loss's scale; all of it is where the loss is too small.
    vanished = _reached(probe) / 2 < tiny
    lost &= ~wide | vanished | bool(lost.all())
    if not lost.any():
        return None
    types = sorted({dtype for dtype, one in zip(probe.dtypes, lost, strict=True) if one})
    return Finding(
        "underflow",
        "critical" if lost.mean() > 0.5 else "warning",
        _pick(probe.names, lost),
        {
            "log_gradient_rms": float(np.min(probe.log_gradient_rms[lost])),
            "log_smallest_number": float(np.max(tiny[lost])),
        },
        f"These gradients are below what {' and '.join(types)} can hold, and arrive as zeros.",
        (
            ("scale the loss: dynamic_loss_scale", "bfloat16, which has float32's range")
            if not wide[lost].all()
            else (_REINIT, _RESIDUAL, "nothing that acts on gradients: they are exactly 0")
        ),
    )


def blind_optimizer(seen: Examination) -> Finding | None:
    """The optimizer's eps, or moments that flush to zero, eat the step."""
    if seen.effectiveness is None:
        return None
    probe, parameters = seen.probe, seen.probe.parameters
    share = seen.effectiveness
    blind = (share < BLIND_STEP) & (parameters.rms > 0)
    if not blind.any():
        return None
    worst = float(np.nanmin(np.where(blind, share, np.inf)))
    kernels = np.isin(parameters.layers.names, probe.names) | (len(probe) == 0)
    named = blind & kernels if (blind & kernels).any() else blind
    return Finding(
        "blind_optimizer",
        "critical" if blind[kernels].mean() > 0.5 else "warning",
        _pick(parameters.layers.names, named),
        {"effectiveness": worst, "gradient_rms": float(np.min(parameters.rms[blind]))},
        f"The optimizer takes {worst:.1e} of its step where the gradient is "
        f"{np.min(parameters.rms[blind]):.1e}: its eps is larger than that.",
        (
            "adam(eps_relative=True), whose eps counts in units of each layer's gradient",
            "adam_atan2, which has no eps",
            "multiply the loss by a constant",
        ),
    )


RULES: Mapping[Rule, Callable[[Examination], Finding | None]] = {
    "nonfinite": nonfinite,
    "dead_units": dead_units,
    "zero_gradient": zero_gradient,
    "saturated_units": saturated_units,
    "mean_collapse": mean_collapse,
    "exploding_gradient": exploding_gradient,
    "vanishing_gradient": vanishing_gradient,
    "rank_collapse": rank_collapse,
    "underflow": underflow,
    "blind_optimizer": blind_optimizer,
}
"""The rules in the order in which they explain one another."""

# What is but a consequence of something critical isn't reported beside it.
_EXPLAINS: Mapping[Rule, frozenset[Rule]] = {
    "nonfinite": frozenset(RULES) - {"nonfinite", "exploding_gradient"},
    "dead_units": frozenset(
        {"zero_gradient", "mean_collapse", "vanishing_gradient", "rank_collapse"}
    ),
    "zero_gradient": frozenset({"mean_collapse", "rank_collapse", "vanishing_gradient"}),
    "mean_collapse": frozenset({"rank_collapse"}),
}
_SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")


def apply_rules(seen: Examination) -> tuple[Finding, ...]:
    """Applies every rule.

    Args:
      seen: The measurements.

    Returns:
      The findings, the gravest first, those that explain others before them.
    """
    findings = [found for rule in RULES.values() if (found := rule(seen)) is not None]
    critical = {found.rule for found in findings if found.severity == "critical"}
    explained = frozenset[Rule]().union(*(_EXPLAINS.get(rule, frozenset()) for rule in critical))
    left = [found for found in findings if found.rule not in explained]
    return tuple(sorted(left, key=lambda found: _SEVERITIES.index(found.severity)))


def _reached(probe: Probe) -> np.ndarray[Any, Any]:
    """For each layer the nats between the output's cotangent and its own; 0 where unknown."""
    known = np.where(np.isfinite(probe.log_chi), probe.log_chi, 0.0)
    return np.asarray(np.cumsum(known[::-1])[::-1])


def _factors(probe: Probe) -> dict[str, float]:
    """A typical layer's chi, and its two factors: the slope's square and the weights' gain."""
    known = np.isfinite(probe.log_chi[:-1])
    chi = float(np.exp(np.mean(probe.log_chi[:-1][known])))
    slopes = probe.slope_rms[:-1][known]
    slope = float(np.exp(np.mean(2 * np.log(np.maximum(slopes, 1e-30)))))
    return {"chi": chi, "slope_square": slope, "weight_gain": chi / slope}


def _log_tiny(dtype: str) -> float:
    """The least number that isn't lost: float16 keeps its subnormal numbers, others flush them."""
    info = jnp.finfo(dtype)
    return float(np.log(float(info.smallest_subnormal if dtype == "float16" else info.tiny)))


def _pick(names: tuple[str, ...], chosen: np.ndarray[Any, Any]) -> tuple[str, ...]:
    return tuple(name for name, one in zip(names, chosen, strict=True) if one)


def _of_paths(paths: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """The layers that belong to some parameters."""
    return tuple(name for name in names if name in paths or name.rpartition("[")[0] in paths)


def _is_scalar(seen: Examination, name: str) -> bool:
    layers = seen.probe.parameters.layers
    return any(
        int(np.prod([leaf.shape[axis] for axis in leaf.inner_axes])) == 1
        for leaf in layers.leaves
        if name == leaf.path or name.startswith(leaf.path + "[")
    )
