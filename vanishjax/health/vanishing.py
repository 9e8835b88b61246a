"""The rule for gradients that shrink on their way back, and where and why they do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import ADAPTIVE_REACH, Examination
from vanishjax.health.finding import Finding, Where, pick
from vanishjax.health.measurements import Probe
from vanishjax.health.step_size import USUAL_STEP
from vanishjax.health.supply import Flags
from vanishjax.health.unmeasured import opaque_behind

# A rate at which kernels move by so much in a step makes up for a gradient that is small in all of
# them, as behind a softmax over many places: momentum trained one from .0014 to .4.
_MOVING = 0.1 * USUAL_STEP

_LARGER = ("larger_kernels", "unit_kernels")


def vanishing_gradient(seen: Examination) -> Finding | None:
    """The cotangent shrinks on its way back, and layers starve that no other path leads past."""
    probe = seen.probe
    made_up = _made_up(seen)
    reach = probe.reach + made_up
    starved = reach < -seen.reach
    finite = starved & np.isfinite(reach)
    blocked = starved & seen.blocked & (finite | vanished_on_the_way(seen))
    if not (blocked & finite).any():
        return _starved_beside_a_path(seen, finite & (reach < -ADAPTIVE_REACH))
    if not (blocked & (reach + seen.won_back < -seen.reach)).any():
        return _held_for_now(seen, blocked, float(np.min(reach[blocked & finite])))
    least = float(np.min(reach[blocked & finite]))
    first = pick(probe.names, blocked)[0]
    frozen = None if made_up else frozen_loss(seen)
    if frozen is not None:
        evidence = {"reach": least, "limit": -seen.reach}
        layers, (where, cause) = pick(probe.names, blocked), frozen
        remedies = ("frozen_slope",)
        return Finding("vanishing_gradient", "critical", layers, evidence, cause, remedies, where)
    place = _one_place(probe, blocked & finite, -least / 2)
    if place is not None and (inside := opaque_behind(probe, place.layer)) is not None:
        return Finding(
            "vanishing_gradient",
            "critical",
            pick(probe.names, blocked),
            {"reach": least, "inside": -place.nats, "limit": -seen.reach},
            f"{first} gets exp({np.min(reach[blocked]):.0f}) of the gradient's energy further "
            f"down, and no other path leads past it: most of it is lost behind {place.before}, in "
            "what can't be looked into.",
            ("derivative", "larger_inside") if inside.kernels else ("derivative",),
            inside.where,
        )
    is_chain = bool(probe.is_chain[blocked].all())
    factors = chain_factors(probe) if is_chain else _branch_factors(probe, blocked, least)
    kernels = "per layer"
    if place is not None:
        factors = place.factors
        how = f"most of it is lost between {place.before} and {place.after or 'the loss'}"
        kernels = f"in {place.after}" if place.after else "there"
    elif factors["chi"] < 1:
        how = f"every layer keeps {factors['chi']:.2g} of it"
    else:
        how = f"it is lost over {int(blocked.sum())} layers"
    _, slope, gain = factors.values()
    if slope < gain:
        why = f"the activation's slope, {np.sqrt(slope):.2g} (rms), is the smaller factor"
        beside_the_point = set(_LARGER)
    else:
        why = f"the weights' gain, {gain:.2g} {kernels}, is the smaller factor"
        beside_the_point = {"unit_slope"}
    advice = advised("vanishing_gradient", probe)
    if place is not None:
        # What is lost at one place, between two kernels, isn't lost from step to step, and larger
        # kernels there do more than paths that lead past the others.
        beside_the_point |= {"long_memory", "orthogonal_cell", "gates"}
        advice = tuple(sorted(advice, key=lambda name: name == "rezero"))
    return Finding(
        "vanishing_gradient",
        "critical",
        pick(probe.names, blocked),
        {
            "reach": least,
            **({"sum_log_chi": probe.sum_log_chi} if is_chain else {}),
            **factors,
            "limit": -seen.reach,
        },
        f"{first} gets exp({np.min(reach[blocked]):.0f}) of the gradient's energy further "
        f"down, and no other path leads past it: {how}; {why}.",
        tuple(name for name in advice if name not in beside_the_point),
    )


class _Place(NamedTuple):
    """Where much of a gradient is lost at once.

    Attributes:
      layer: The number of the layer behind which that is.
      nats: How much.
      before: That layer's kernel.
      after: The kernel after it; "" for the loss.
      factors: As those of a chain.
    """

    layer: int
    nats: float
    before: str
    after: str
    factors: dict[str, float]


def _one_place(probe: Probe, starved: Flags, nats: float) -> _Place | None:
    """Where some layers lose more than so much of the gradient at once; None if nowhere."""
    if probe.supply is None:
        return None
    handed = probe.supply.handed_on()
    gone = np.array([lost for _, lost in handed])
    layer = int(np.argmax(np.where(starved & np.isfinite(gone), gone, -np.inf)))
    most = float(gone[layer])
    if not starved[layer] or not most > nats:
        return None
    before, after = probe.kernels[layer], handed[layer][0]
    own = np.array([name == before for name in probe.kernels])
    chi, slope = float(np.exp(-most)), float(np.mean(probe.slope_rms[own] ** 2))
    factors = {"chi": chi, "slope_square": slope, "weight_gain": chi / max(slope, 1e-30)}
    return _Place(layer, most, before, "" if after < 0 else probe.kernels[after], factors)


def _made_up(seen: Examination) -> float:
    """Nats that even the best-fed kernel lacks, where steps follow the gradient and the rate fits.

    With such steps it is another unit of the rate that all kernels' gradients are small.
    """
    step = seen.relative_step
    if not seen.is_linear or step is None or not step >= _MOVING:
        return 0.0
    known = seen.probe.reach[np.isfinite(seen.probe.reach)]
    return -float(np.max(known)) if len(known) else 0.0


def _starved_beside_a_path(seen: Examination, starved: Flags) -> Finding | None:
    if not starved.any():
        return None
    least = float(np.min(seen.probe.reach[starved]))
    return Finding(
        "vanishing_gradient",
        "note",
        pick(seen.probe.names, starved),
        {"reach": least, "limit": -ADAPTIVE_REACH},
        f"These layers get as little as exp({least:.0f}) of the gradient's energy further down, "
        "but the network trains past them, along a path that avoids them.",
        ("on_purpose",),
    )


def _held_for_now(seen: Examination, held: Flags, least: float) -> Finding:
    probe = seen.probe
    kernel = pick(probe.kernels, seen.nearly_zero)[0]
    return Finding(
        "vanishing_gradient",
        "note",
        pick(probe.names, held),
        {"reach": least, "limit": -seen.reach},
        f"These layers get as little as exp({least:.0f}) of the gradient's energy further down: "
        f"{kernel} is nearly 0 and holds them back for now; it has a gradient itself and will let "
        "go.",
        ("starts_at_zero",),
    )


def vanished_on_the_way(seen: Examination) -> Flags:
    """Layers whose gradient is 0 because what came before in the backward pass was too small."""
    probe = seen.probe
    finite = np.isfinite(probe.reach) & seen.blocked
    least = np.min(probe.reach[finite], initial=0.0)
    return np.isneginf(probe.reach) & seen.blocked & bool(least < -2 * ADAPTIVE_REACH)


def chain_factors(probe: Probe) -> dict[str, float]:
    """A typical layer's chi, and its two factors: the slope's square and the weights' gain."""
    known = np.isfinite(probe.log_chi[:-1])
    chi = float(np.exp(np.mean(probe.log_chi[:-1][known])))
    slopes = probe.slope_rms[:-1][known]
    slope = float(np.exp(np.mean(2 * np.log(np.maximum(slopes, 1e-30)))))
    return {"chi": chi, "slope_square": slope, "weight_gain": chi / slope}


def _branch_factors(probe: Probe, blocked: Flags, least: float) -> dict[str, float]:
    """The same of a branch of the network: of what lies between its starved layers and the loss."""
    worst = int(np.argmin(np.where(blocked & np.isfinite(probe.reach), probe.reach, np.inf)))
    behind = blocked if probe.supply is None else probe.supply.around(worst)[1]
    chi = float(np.exp(least / max(1, behind.sum())))
    slopes = probe.slope_rms[behind | blocked]
    slope = float(np.exp(np.nanmean(2 * np.log(np.maximum(slopes, 1e-30)))))
    return {"chi": chi, "slope_square": slope, "weight_gain": chi / slope}


def frozen_loss(seen: Examination) -> tuple[Where | None, str] | None:
    """Where a frozen network after the last layer loses the gradient, and a sentence on it."""
    probe = seen.probe
    if not probe.frozen or not probe.reach[-1] < -seen.reach:
        return None
    places = [one.where for one in probe.frozen]
    reach = np.maximum([probe.reach[-1], *(one.reach for one in probe.frozen)], -1e30)
    gone = np.append(np.diff(reach), -reach[-1])  # behind the last layer, and behind each product
    step = int(np.argmax(gone))
    where = places[max(0, step - 1)]
    line = "" if where is None else f" ({where.file}:{where.line})"
    place = f"behind product {step} of {len(places)} with it{line}" if step else f"before it{line}"
    cause = (
        "A frozen network, or whatever else is multiplied with what these layers put out and isn't "
        f"trained, keeps the gradient from them: it is lost {place}."
    )
    return where, cause
