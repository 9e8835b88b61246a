"""What is wrong with a network in training, by its course: observations one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vanishjax.health.finding import Finding
from vanishjax.health.observation import Health
from vanishjax.health.rounding import rounding_noise
from vanishjax.layers import Layers

# Converged: the loss fell to less than a tenth of the first. Cross-entropy over ten classes has
# then come from 2.3 to 0.23, which is past nine examples in ten; a mean square that has explained
# nine tenths of the variance is there too.
CONVERGED_LOSS = 0.1
# Vanishing: a layer's gradient fell by this much more than that of the layer that kept most. Layers
# of healthy networks drift apart by one order, batches differ by half of one; a layer that falls
# three orders behind takes a thousandth of the others' steps.
VANISHED = 1e-3
# Eight observations at least: the medians over the first and last quarter have two each.
LEAST_OBSERVATIONS = 8
# Blind: nine tenths of a layer's step are lost. At half, where the gradient is epsilon itself, Adam
# still trains.
BLIND_EFFECTIVENESS = 0.1
# Stalled: observations in a row without a move. One is an empty batch, two a skipped overflow.
STALLED_OBSERVATIONS = 3
# Dead units: another quarter of the entries has lost its gradient, and most have none. Units of a
# ReLU network start silent for half of the examples, but few for a whole batch; inputs whose pixels
# are always dark are zero from the start, and rise by nothing.
DEAD_RISE = 0.25
DEAD_FRACTION = 0.5

# A gradient this much smaller than the largest may be lost in the optimizer; a larger one is held
# back on purpose where no update comes of it.
LOST_GRADIENT = 1e-6

_ORDER = {"critical": 0, "warning": 1, "note": 2}


def assess(healths: Sequence[Health], layers: Layers | Sequence[str]) -> list[Finding]:
    """Finds out what goes wrong in training from what `monitor` saw.

    Only ratios of gradients, updates and losses count, so multiplying the loss by a number changes
    nothing (but an optimizer's epsilon doesn't scale with the loss: `blind_optimizer` tells). Small
    gradients are no ailment by themselves: where all layers' have fallen alike, or the loss has
    fallen to a tenth, training has converged.

    Rules: `nonfinite`, `stalled_layer`, `underflow` (updates too small for the parameters' type),
    `blind_optimizer`, `vanishing_gradient` (in time), `dead_units` (ever more of them).

    Args:
      healths: Observations of one run, oldest first; those of no update yet, and repeated ones, are
        left out. Rules on change need eight.
      layers: The layers that `monitor` had, or their names.

    Returns:
      The findings, the worst first; none if all is well.

    Raises:
      ValueError: An observation has more or fewer layers than there are names.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> from vanishjax.health.monitor import monitor, read_health
      >>> tx = monitor(optax.adam(1e-3))
      >>> params = {"w": jnp.ones(4)}
      >>> _, state = tx.update({"w": jnp.full(4, 1e-12)}, tx.init(params), params)
      >>> for finding in assess([read_health(state)], ["w"]):
      ...     print(finding.rule, finding.layers)
      blind_optimizer ('w',)
    """
    course = _course(healths, layers)
    if course is None:
        return []
    findings = _nonfinite(course)
    if not course.converged:
        for rule in (_stalled, _blind, _vanishing, _dead):
            findings += rule(course)
    return sorted(findings, key=lambda finding: _ORDER[finding.severity])


@dataclasses.dataclass(frozen=True)
class _Course:
    """The observations, each field stacked along time, in float64."""

    names: tuple[str, ...]
    seen: Health

    @property
    def converged(self) -> bool:
        """Whether the loss fell far below its start; False where it isn't known."""
        first = float(self.seen.first_loss[-1])
        return bool(first > 0 and self._median(self.seen.loss, -1) <= CONVERGED_LOSS * first)

    @property
    def long_enough(self) -> bool:
        return len(self.seen.step) >= LEAST_OBSERVATIONS

    def early(self, values: Any) -> Any:
        """The median over the first quarter: one batch is no trend."""
        return self._median(values, 1)

    def late(self, values: Any) -> Any:
        return self._median(values, -1)

    def _median(self, values: Any, sign: int) -> Any:
        quarter = max(1, len(values) // 4)
        return np.median(values[:quarter] if sign > 0 else values[-quarter:], axis=0)

    def named(self, mask: Any) -> tuple[str, ...]:
        return tuple(name for name, hit in zip(self.names, mask, strict=True) if hit)


def _course(healths: Sequence[Health], layers: Layers | Sequence[str]) -> _Course | None:
    names = tuple(layers.names if isinstance(layers, Layers) else layers)
    by_step: dict[int, Health] = {}
    for number, health in enumerate(jax.device_get(list(healths))):
        if np.shape(health.gradient_norm) != (len(names),):
            raise ValueError(
                f"observation {number} has {np.size(health.gradient_norm)} layers, but "
                f"{len(names)} were named; pass the layers that monitor got"
            )
        if health.step >= 0:
            by_step.setdefault(int(health.step), health)
    if not by_step or not names:
        return None
    seen = jax.tree.map(lambda *x: np.stack(x).astype(np.float64), *by_step.values())
    return _Course(names, seen)


def _severity(mask: Any) -> Any:
    return "critical" if np.all(mask) else "warning"


def _nonfinite(course: _Course) -> list[Finding]:
    seen = course.seen
    norms = np.stack([seen.gradient_norm, seen.update_norm, seen.param_norm])
    bad = np.any(~np.isfinite(norms), axis=0)
    if not bad.any():
        return []
    lasting = bad[-1].any()
    return [
        Finding(
            "nonfinite",
            "critical" if lasting else "warning",
            course.named(bad.any(axis=0)),
            {
                "first_step": float(seen.step[bad.any(axis=1).argmax()]),
                "observations": float(bad.any(axis=1).sum()),
            },
            "A gradient, an update or a parameter was infinite or not a number"
            + (", and still is." if lasting else "; it has passed."),
            ("skip_nonfinite", "global_clip", "smaller_rate", "loss_scale"),
        )
    ]


def _stalled(course: _Course) -> list[Finding]:
    seen = course.seen
    stalled = seen.still_steps[-1] >= STALLED_OBSERVATIONS
    rounded = stalled & (seen.update_norm[-1] > 0)
    findings = []
    frozen = stalled & ~rounded & _frozen(course)
    if frozen.any():
        findings.append(
            Finding(
                "stalled_layer",
                "note",
                course.named(frozen),
                {"still_observations": float(seen.still_steps[-1][frozen].min())},
                "They have had no update from the start, while others move: frozen, it seems.",
                ("nothing, if they are frozen on purpose", "else diagnose the network"),
            )
        )
    if (stalled & ~rounded & ~frozen).any():
        mask = stalled & ~rounded & ~frozen
        findings.append(
            Finding(
                "stalled_layer",
                _severity(mask),
                course.named(mask),
                {
                    "still_observations": float(seen.still_steps[-1][mask].min()),
                    "largest_gradient_norm": float(seen.gradient_norm[-1][mask].max()),
                },
                "The layers get no update at all.",
                ("diagnose", "mask"),
            )
        )
    if rounded.any():
        findings.append(
            Finding(
                "underflow",
                _severity(rounded),
                course.named(rounded),
                {
                    "still_observations": float(seen.still_steps[-1][rounded].min()),
                    "largest_update_ratio": float(seen.update_ratio[-1][rounded].max()),
                    "applied_fraction": float(seen.applied_fraction[-1][rounded].max()),
                },
                "The updates are too small to change the parameters in their type.",
                ("float32", "kahan_sum", "larger_rate"),
            )
        )
    return findings


def _frozen(course: _Course) -> Any:
    """Layers that never had an update, and whose gradient isn't so small that it could be why."""
    seen = course.seen
    still = (seen.update_norm == 0).all(axis=0) & (seen.update_norm[-1] > 0).any()
    largest = seen.gradient_norm.max(axis=1, keepdims=True)
    stopped = (seen.gradient_norm == 0).all(axis=0)
    return still & (stopped | (seen.gradient_norm > LOST_GRADIENT * largest).all(axis=0))


def _blind(course: _Course) -> list[Finding]:
    left = course.late(course.seen.effectiveness)
    size = course.late(course.seen.gradient_norm)
    mask = (left < BLIND_EFFECTIVENESS) & (size > 0) & ~rounding_noise(course.names, size)
    if not mask.any():
        return []
    return [
        Finding(
            "blind_optimizer",
            _severity(mask),
            course.named(mask),
            {
                "least_effectiveness": float(left[mask].min()),
                "largest_gradient_norm": float(size[mask].max()),
            },
            "The optimizer's epsilon, or underflow in it, takes most of the step.",
            ("eps_relative", "adam_atan2", "normalize"),
        )
    ]


def _vanishing(course: _Course) -> list[Finding]:
    norms = course.seen.gradient_norm
    before, after = course.early(norms), course.late(norms)
    known = np.isfinite(before) & np.isfinite(after) & (before > 0)
    if not course.long_enough or not known.any():
        return []
    kept = np.where(known, after / np.where(known, before, 1.0), 1.0)
    # Behind its own past, and behind the layer that kept most: all together is convergence.
    relative = kept / max(kept[known].max(), np.finfo(np.float64).tiny)
    mask = known & (kept < VANISHED) & (relative < VANISHED)
    if not mask.any():
        return []
    return [
        Finding(
            "vanishing_gradient",
            "critical" if mask.sum() > len(mask) / 2 else "warning",
            course.named(mask),
            {"least_share_kept": float(kept[mask].min()), "most_kept": float(kept[known].max())},
            "The layers' gradients fell by orders of magnitude in training, the others' did not.",
            ("normalize", "muon", "diagnose"),
        )
    ]


def _dead(course: _Course) -> list[Finding]:
    zeros = course.seen.zero_fraction
    before, after = course.early(zeros), course.late(zeros)
    mask = (after - before >= DEAD_RISE) & (after >= DEAD_FRACTION)
    if not course.long_enough or not mask.any():
        return []
    return [
        Finding(
            "dead_units",
            "critical" if (after[mask] >= 1).any() else "warning",
            course.named(mask),
            {
                "zero_fraction": float(after[mask].max()),
                "zero_fraction_before": float(before[mask].min()),
            },
            "Ever more units get a gradient of exactly zero: they have died in training.",
            ("smaller_rate", "adaptive_clip", "leaky_relu"),
        )
    ]
