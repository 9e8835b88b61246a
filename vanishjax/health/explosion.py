"""Rules for a gradient that grows on its way back: from layer to layer, in time, at one place."""

from __future__ import annotations

import numpy as np

from vanishjax.health.advice import advised, applicable
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, pick
from vanishjax.health.memory import growth
from vanishjax.health.unmeasured import opaque_behind
from vanishjax.health.vanishing import chain_factors
from vanishjax.health.waves import wrapped

# What a layer puts out, over what layers do in the middle: below that normalizations divide by it.
_SMALL = 1e-2


def exploding_gradient(seen: Examination) -> Finding | None:
    """The cotangent grows from layer to layer on its way back."""
    probe = seen.probe
    reached = seen.reached
    flooded = reached > seen.reach
    if not flooded.any():
        return wrapped(probe)
    factors = chain_factors(probe)
    chi, gain = factors["chi"], factors["weight_gain"]
    layers, total = pick(probe.names, flooded), float(np.max(reached))
    for rule in (_grown_inside, _divided_by_little):
        if (found := rule(seen, layers, total)) is not None:
            return found
    if (grows := growth(probe)) is not None and grows.total > total / 2:
        return Finding(
            "exploding_gradient",
            "critical",
            layers,
            {"sum_log_chi": total, **grows.evidence, "limit": seen.reach},
            grows.cause,
            applicable(("long_memory", "orthogonal_cell", "gates", "clip"), probe),
        )
    return Finding(
        "exploding_gradient",
        "critical",
        layers,
        {"sum_log_chi": total, **factors, "limit": seen.reach},
        f"Every layer multiplies the gradient's energy by {chi:.2g}, so the first gets exp("
        f"{total:.0f}) times it: the weights' gain, {gain:.2g}, is too large.",
        advised("exploding_gradient", probe),
    )


def _grown_inside(seen: Examination, layers: tuple[str, ...], total: float) -> Finding | None:
    """What can't be looked into, such as a solver, multiplies the gradient."""
    probe = seen.probe
    step = int(np.argmax(np.where(np.isfinite(probe.log_chi), probe.log_chi, -np.inf)))
    inside, grown = opaque_behind(probe, step), float(probe.log_chi[step])
    if inside is None or not grown > total / 2:
        return None
    return Finding(
        "exploding_gradient",
        "critical",
        inside.kernels or layers,
        {"sum_log_chi": total, "inside": grown, "limit": seen.reach},
        f"Behind {probe.names[step]} the gradient's energy grows by exp({grown:.0f}) in what can't "
        "be looked into: the solver, or its way back, diverges.",
        (("contract", "solve_better") if inside.kernels else ("derivative",)) + ("clip",),
        inside.where,
    )


def _divided_by_little(seen: Examination, layers: tuple[str, ...], total: float) -> Finding | None:
    """The first layers' outputs are tiny, and normalizations divide by their size."""
    probe = seen.probe
    sizes = probe.preactivation_rms
    tiny = (sizes > 0) & (sizes < _SMALL * np.median(sizes))
    count = len(tiny) if tiny.all() else int(np.argmin(tiny))  # of those that come first
    # Up to the next sum of blocks: what is normalized before the block shows only there.
    later = np.flatnonzero(probe.log_chi[count:])
    grown = float(np.nansum(probe.log_chi[: count + 1 + (int(later[0]) if len(later) else 0)]))
    if not count or grown < total / 2:
        return None
    name, size = probe.names[0], float(sizes[0])
    return Finding(
        "exploding_gradient",
        "critical",
        layers,
        {"sum_log_chi": total, "in_the_first_layers": grown, "size": size, "limit": seen.reach},
        f"Behind {name} the gradient's energy grows by exp({grown:.0f}): what {name} puts out, "
        f"{size:.1e}, is divided by its own size, as a normalization does.",
        (
            f"larger values in {name}: its outputs should be of size 1",
            "clip_by_layer_norm or adaptive_clip",
        ),
    )
