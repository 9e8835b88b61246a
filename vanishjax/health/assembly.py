"""From taps to layers: what was measured at every tap, as each layer's own."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr
from vanishjax.health.batch import batch_size
from vanishjax.health.finding import Where
from vanishjax.health.measurements import (
    Frozen,
    Opaque,
    ParameterGradients,
    Probe,
    Vector,
    together,
)
from vanishjax.health.measuring import Plan, Values, underflow_free
from vanishjax.health.statistics import Statistics
from vanishjax.health.supply import Instance, Supply, fading
from vanishjax.layers import Layers


def _instances(events: Sequence[_jaxpr.Event], index: tuple[int, ...] = ()) -> Iterator[Instance]:
    for event in events:
        if isinstance(event, _jaxpr.Passing):
            yield Instance(event, index)
        else:
            turns = range(event.length)
            for turn in reversed(turns) if event.reverse else turns:
                yield from _instances(event.events, (*index, turn))


def assemble(values: Values, plan: Plan, batch: Any) -> Probe:
    """The measurements by layer, from what was measured by tap.

    Args:
      values: What running the loss told.
      plan: What was known before.
      batch: What it ran on.

    Returns:
      Everything, layer by layer.
    """
    passed = list(_instances(plan.events))
    own = np.array([values.log_rms[one.event.tap][one.turns] for one in passed], np.float64)
    normalizes = np.array([one.event.normalizes for one in passed], bool)
    # What the bottlenecks further down took out.
    out = np.where(normalizes & values.normalized, own, 0.0)
    taken = np.concatenate([np.cumsum(out[::-1])[::-1], [0.0]])
    taken -= float(values.log_scale)
    log_rms = own + taken[1:]
    log_norm = log_rms + 0.5 * np.log([max(1, one.event.size) for one in passed])
    stream = _stream(log_norm, normalizes)

    sites = np.array([i for i, one in enumerate(passed) if one.event.leaf >= 0], int)
    flows = stream[sites]
    with np.errstate(invalid="ignore"):
        log_chi = np.append(2 * (flows[:-1] - flows[1:]), 0.0)[: len(sites)]
        total = float(2 * (flows[0] - flows[-1])) if len(sites) else 0.0
    names, places = _names(plan.layers, [passed[i] for i in sites])
    firsts = [own[0] for own in places]
    widths, activations, types = dict(plan.widths), dict(plan.activations), dict(plan.types)
    periods = dict(plan.periods)
    dtypes = tuple(
        _narrower(types[passed[i].event.tap], plan.dtypes[place])
        for i, place in zip(sites, firsts, strict=True)
    )
    parameters = _parameters(values, plan, places, taken[:-1][sites], log_rms[sites], dtypes)
    watched = _watched(values, plan, [passed[i] for i in sites], names)
    supply = Supply.of(passed, log_norm, firsts, plan.paths)

    def of_sites(field: str) -> Vector:
        return np.array(
            [
                getattr(values.statistics[passed[i].event.tap], field)[passed[i].turns]
                for i in sites
            ],
            np.float64,
        )

    return Probe(
        names=names,
        log_chi=log_chi,
        sum_log_chi=total,
        gradient_rms=together(parameters.rms, places),
        log_gradient_rms=_log_together(parameters.log_rms, places),
        backward_rms=np.exp(log_rms[sites]),
        log_backward_rms=log_rms[sites],
        **{field: of_sites(field) for field in Statistics._fields},
        widths=np.array([widths[passed[i].event.tap] for i in sites], int),
        is_chain=normalizes[sites],
        dtypes=dtypes,
        loss=float(values.loss),
        batch_size=batch_size(batch),
        parameters=parameters,
        places=places,
        activations=tuple(activations[passed[i].event.tap] for i in sites),
        periods=tuple(periods[passed[i].event.tap] for i in sites),
        unmeasured=plan.unmeasured,
        reach=supply.reach[sites],
        factors=plan.factors,
        feature_evenness=_evenness(values, plan, [passed[i] for i in sites]),
        token_energy=watched.token_energy,
        token_detail=watched.token_detail,
        token_layer=watched.token_layer,
        softmaxes=watched.softmaxes,
        choices=watched.choices,
        gates=watched.gates,
        heads=tuple(
            name for name, i in zip(names, sites, strict=True) if passed[i].event.tap in plan.heads
        ),
        constant_loss=float(values.constant.loss),
        nothing_loss=float(values.constant.nothing),
        loss_growth=float(values.constant.growth),
        floor=values.floor,
        memory=_memory(passed, log_norm, plan),
        opaque=_opaque(plan, [passed[i] for i in sites], names),
        frozen=_frozen(passed[sites[-1] + 1 :] if len(sites) else [], values, supply, plan),
        supply=supply,
    )


def _stream(log_norm: Vector, normalizes: np.ndarray[Any, Any]) -> Vector:
    """For each tap the norm at the nearest bottleneck, itself or further up.

    What lies before the first bottleneck counts as one group, with the largest of its norms.
    """
    nearest = np.maximum.accumulate(np.where(normalizes, np.arange(len(log_norm)), -1))
    group = np.max(log_norm[nearest < 0], initial=-np.inf)
    return np.where(nearest >= 0, log_norm[nearest], group)


def _names(
    layers: Layers, sites: Sequence[Instance]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """A name for each site, and the places of its kernel: see `Probe`."""
    ends = np.cumsum([0, *(int(np.prod(leaf.stack)) for leaf in layers.leaves)])
    ranks = np.argsort(np.array(layers.order, int))
    names, places = [], []
    for (_, _, _, number, axes), index in sites:
        leaf = layers.leaves[number]
        own = tuple(np.array(index, int)[np.argsort(axes)]) if len(axes) == len(index) else ()
        matches = tuple(sorted(axes)) == leaf.axes and len(own) == len(leaf.axes)
        start, stop = ends[number : number + 2]
        if matches:
            start += int(np.ravel_multi_index(own, leaf.stack)) if own else 0
            stop = start + 1
        places.append(tuple(map(int, ranks[start:stop])))
        names.append(layers.names[places[-1][0]] if matches else leaf.path)
    total, seen = collections.Counter(names), collections.Counter[str]()
    for i, name in enumerate(names):
        if total[name] > 1:
            names[i] = f"{name}@{seen[name]}"
            seen[name] += 1
    return tuple(names), tuple(places)


def _log_together(logs: Vector, places: Sequence[tuple[int, ...]]) -> Vector:
    """As `together`, of logarithms."""
    with np.errstate(invalid="ignore"):
        sums = [np.logaddexp.reduce(2 * logs[list(own)]) for own in places]
    return (np.array(sums, np.float64) - np.log([max(1, len(own)) for own in places])) / 2


def _memory(
    passed: Sequence[Instance], log_norm: Vector, plan: Plan
) -> tuple[tuple[str, float, int], ...]:
    leaves = {one.event.tap: one.event.leaf for one in passed}
    return tuple(
        (plan.layers.leaves[leaves[tap]].path, nats, steps)
        for tap, (nats, steps) in fading(passed, log_norm, plan.paths).items()
    )


def _frozen(
    later: Sequence[Instance], values: Values, supply: Supply, plan: Plan
) -> tuple[Frozen, ...]:
    """The products after the last kernel with what isn't trained."""
    places = dict(plan.frozen)
    found = []
    for one, nats in zip(later, supply.reach[len(supply.reach) - len(later) :], strict=True):
        tap = one.event.tap
        if tap not in places:
            continue
        place, own = places[tap], values.statistics.get(tap)
        where = place and Where.of(place.file, place.line, "product")
        flat = math.nan if own is None else float(np.asarray(own.saturated_fraction)[one.turns])
        found.append(Frozen(where, float(nats), flat))
    return tuple(found)


def _opaque(plan: Plan, sites: Sequence[Instance], names: Sequence[str]) -> tuple[Opaque, ...]:
    """What lies between kernels and can't be looked into, with the layers that lead there."""
    return tuple(
        Opaque(
            place and Where.of(place.file, place.line, "function"),
            tuple(name for name, site in zip(names, sites, strict=True) if site.event.tap in taps),
            kernels,
        )
        for place, taps, kernels in plan.opaque
    )


class _Sequences(NamedTuple):
    token_energy: float = math.nan
    token_detail: float = math.nan
    token_layer: int = -1
    softmaxes: tuple[tuple[tuple[str, ...], float], ...] = ()
    choices: tuple[tuple[tuple[str, ...], float], ...] = ()
    gates: tuple[tuple[tuple[str, ...], float], ...] = ()


def _watched(
    values: Values, plan: Plan, sites: Sequence[Instance], names: Sequence[str]
) -> _Sequences:
    """What was seen of softmaxes, and of the positions that the last such kernel takes in."""
    found = _Sequences()
    softmaxes: list[tuple[tuple[str, ...], float]] = []
    choices: list[tuple[tuple[str, ...], float]] = []
    gates: list[tuple[tuple[str, ...], float]] = []
    first = math.nan
    for one in plan.watched:
        seen = np.asarray(values.watched[one.number], np.float64)
        if one.kind == "features":
            continue
        if one.kind == "intake":
            places = [i for i, site in enumerate(sites) if site.event.tap == one.taps[0]]
            energy, apart = seen.reshape(-1, 2).T
            first = apart[0] if found.token_layer < 0 else first
            with np.errstate(divide="ignore", invalid="ignore"):
                found = _Sequences(float(energy[-1]), float(apart[-1] / first), places[-1])
            continue
        feeding: dict[tuple[int, ...], list[str]] = {}
        for name, site in zip(names, sites, strict=True):
            if site.event.tap in one.taps:
                feeding.setdefault(site.turns[: seen.ndim], []).append(name)
        into = gates if one.kind != "softmax" else softmaxes if one.compares else choices
        into += [
            (tuple(own), float(seen[turns]))
            for turns, own in feeding.items()
            if len(turns) == seen.ndim
        ]
    return found._replace(softmaxes=tuple(softmaxes), choices=tuple(choices), gates=tuple(gates))


def _evenness(values: Values, plan: Plan, sites: Sequence[Instance]) -> Vector:
    """That of the features that each layer takes in; see `Probe.feature_evenness`."""
    seen = {
        one.taps[0]: values.watched[one.number] for one in plan.watched if one.kind == "features"
    }
    found = [
        seen[site.event.tap][site.turns] if site.event.tap in seen else np.nan for site in sites
    ]
    return np.array(found, np.float64)


def _parameters(
    values: Values,
    plan: Plan,
    places: Sequence[tuple[int, ...]],
    taken: Vector,
    cotangents: Vector,
    dtypes: Sequence[str],
) -> ParameterGradients:
    """The gradients of all parameters; a kernel with a single tap is right where it underflows.

    Of one with several it is unknown then what its gradient would have been.
    """
    rms = np.asarray(values.rms, np.float64)
    with np.errstate(divide="ignore"):
        log_rms = np.log(rms)
    uses = collections.Counter(place for own in places for place in own)
    tapped = np.asarray(values.log_tapped_rms, np.float64)
    for own, log_scale, cotangent, dtype in zip(places, taken, cotangents, dtypes, strict=True):
        least = underflow_free(dtype)
        for place in own:
            followed = tapped[place] + log_scale
            if uses[place] == 1 and not rms[place] > least and not np.isnan(followed):
                log_rms[place] = followed
            elif uses[place] > 1 and rms[place] == 0 and -np.inf < cotangent < math.log(least):
                log_rms[place] = np.nan
    return ParameterGradients(
        plan.layers,
        rms,
        log_rms,
        np.asarray(values.zero_fraction, np.float64),
        np.asarray(values.nonfinite, bool),
        np.asarray(values.parameter_rms, np.float64),
    )


def _narrower(a: str, b: str) -> str:
    """Of two number types the one that holds no numbers as small, or else the coarser one."""
    return max(a, b, key=lambda x: (float(jnp.finfo(x).tiny), float(jnp.finfo(x).eps)))
