"""The places in a traced loss where a probe measures: sites and bottlenecks.

A *site* is an equation in which a kernel meets the data: a matrix product, a convolution, a lookup.
A *bottleneck* is a variable through which every gradient passes on its way to all sites before it.
There the cotangent can be rescaled without changing the ratio of any two gradients further up. In a
chain of layers every output is one, in a residual network every block's sum.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from jax.extend.core import JaxprEqn, Var

from vanishjax._jaxpr.activation import Activation, Shape, find_activations
from vanishjax._jaxpr.flow import Flow, Frame, among, flow_through, loop_body
from vanishjax._jaxpr.opaque import Opaque, is_opaque, opaque_ones
from vanishjax._jaxpr.output import LOOKUPS, PRODUCTS, Output, follow_output
from vanishjax._jaxpr.paths import PathBuilder, Paths
from vanishjax._jaxpr.program import Program
from vanishjax._jaxpr.reach import GRADIENT, Reach
from vanishjax._jaxpr.uses import Trace
from vanishjax._jaxpr.values import Use
from vanishjax._jaxpr.versions import dtype_of, scan_split, shape_of
from vanishjax._jaxpr.watched import Softmax, Watched, features_of, find_softmaxes, intake_of

_GATES: dict[str, Literal["tanh", "logistic"]] = {"tanh": "tanh", "logistic": "logistic"}


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a kernel meets the data.

    Attributes:
      leaf: Index of the parameter.
      axes: The parameter's axes that the loops around the site run along, outermost first.
      tap: Number of the tap on its output.
      activation: The nonlinear function of its output; None if none comes before other sites.
      samples: Axes of what is measured that tell inputs apart, the first one counts the batch.
      units: Its other axes.
      output: The kernel's own output, before its bias.
      output_samples: Axes of that which tell inputs apart.
      looks_up: Whether the data is the number of a row of the kernel.
    """

    leaf: int
    axes: tuple[int, ...]
    tap: int
    activation: Activation | None
    samples: tuple[int, ...]
    units: tuple[int, ...]
    output: Var
    output_samples: tuple[int, ...]
    looks_up: bool

    @property
    def dtype(self) -> str:
        """The number type of the kernel's output, and so of its cotangent."""
        return str(dtype_of(self.output))

    @property
    def period(self) -> float:
        """Of the activation, if it is a wave."""
        return math.inf if self.activation is None else self.activation.period

    @property
    def output_units(self) -> int:
        """How many numbers the kernel puts out for one input."""
        shape = enumerate(shape_of(self.output.aval))
        return math.prod(n for axis, n in shape if axis not in self.output_samples)


class Passing(NamedTuple):
    """An event: a tap is passed, on a site's output or else on a bottleneck between sites.

    Attributes:
      tap: Its number.
      size: Of the tapped array.
      normalizes: Whether the tap stands at a bottleneck, and so may rescale the cotangent.
      leaf: The kernel of the site; -1 if the tap is at none.
      axes: `Site.axes`.
    """

    tap: int
    size: int
    normalizes: bool
    leaf: int = -1
    axes: tuple[int, ...] = ()


class Looping(NamedTuple):
    """An event: a loop."""

    length: int
    reverse: bool
    events: tuple[Any, ...]


Event: TypeAlias = Passing | Looping


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """All that a probe needs to know of a program.

    Attributes:
      sites: By the variable that is measured: the activation's argument or the kernel's output.
      taps: For each tapped variable the tap's number and whether it normalizes.
      loops: For each scan with taps inside, by identity, the numbers of its taps.
      lengths: For each tap the lengths of the loops around it.
      events: What the data passes, in order.
      hidden: Indices of kernels that also meet the data where nothing can be measured.
      paths: The graph along which gradients flow from tap to tap.
      first: The taps on kernels that come after no other, lookups left out: a table's rows learn
        one by one, and what all inputs look up holds back none of the others.
      watched: Equations to look at, by their first result.
      frozen: The taps on products of the signal with something that isn't trained, such as the
        kernels of a discriminator that the loss closes over, and the equations.
      frozen_sites: Such products with a constant, as sites without a parameter.
      opaque: What stands between sites and can't be looked into.
    """

    sites: dict[Var, Site]
    taps: dict[Var, tuple[int, bool]]
    loops: dict[int, tuple[int, ...]]
    lengths: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    hidden: tuple[int, ...]
    paths: Paths
    first: frozenset[int]
    watched: dict[Var, tuple[Watched, ...]]
    frozen: dict[int, JaxprEqn]
    frozen_sites: dict[Var, Site]
    opaque: tuple[Opaque, ...]

    @property
    def watches(self) -> tuple[Watched, ...]:
        """All that is looked at, by number."""
        watches = (one for own in self.watched.values() for one in own)
        return tuple(sorted(watches, key=lambda one: one.number))

    @functools.cached_property
    def last_sites(self) -> tuple[Site, ...]:
        """Where the last kernels meet the data, those of heads side by side, in the data's order.

        A kernel comes several times where it meets other inputs or stands in a derivative. None
        where the last is in a loop, or none does.
        """
        sites = {site.tap: site for site in self.sites.values()}
        last = None
        for event in reversed(self.events):
            # A tap that stands between kernels belongs to none of them.
            if not isinstance(event, Passing):
                return ()
            if event.tap in sites:
                last = sites[event.tap]
                break
        if last is None:
            return ()
        later, reaches = self.paths.downstream(looping=False), self.paths.to_loss()
        bits = sum(1 << tap for tap in sites)
        heads = [
            site
            for tap, site in sorted(sites.items())
            if reaches[tap] and not later[tap] & bits & ~(1 << tap)
        ]
        outside = not any(self.lengths[site.tap] for site in heads)
        return tuple(heads) if last in heads and outside else (last,)


def dissect(program: Program, trace: Trace) -> Anatomy:
    """Finds the sites and bottlenecks of a loss.

    Args:
      program: The loss, flattened: see `program.flatten`.
      trace: The uses of its parameters.

    Returns:
      Where to measure.
    """
    kernels: dict[int, Use] = {}
    for use in trace.uses:
        name, other = use.equation.primitive.name, kernels.get(id(use.equation))
        lookup = name in LOOKUPS and program.ranks[use.leaf] - len(use.axes) == 2
        larger = other is None or program.ranks[other.leaf] < program.ranks[use.leaf]
        if larger and (name in PRODUCTS or lookup):
            kernels[id(use.equation)] = use
    surgeon = _Surgeon(kernels)
    inputs = (False,) * len(program.ranks) + (True,) * program.arrays
    nothing = (False,) * len(inputs)
    frame = Frame(program.closed.jaxpr, (GRADIENT,), inputs, nothing, not program.arrays)
    events = surgeon.explore(frame, (), beside=False)
    paths = surgeon.paths.build(list(surgeon.taps), program.closed.jaxpr.outvars[0])
    taps = {site.tap: site.looks_up for site in surgeon.sites.values()}
    first = frozenset(tap for tap in paths.first(taps) if not taps[tap])
    return Anatomy(
        surgeon.sites,
        surgeon.taps,
        surgeon.loops,
        tuple(surgeon.lengths),
        tuple(events),
        tuple(sorted({use.leaf for key, use in kernels.items() if key not in surgeon.met})),
        paths,
        first,
        surgeon.watch(paths, first),
        surgeon.frozen,
        surgeon.frozen_sites,
        opaque_ones(surgeon.opaque, paths, list(taps), kernels),
    )


class _Surgeon:
    """Goes through a program, numbering taps and noting sites."""

    def __init__(self, kernels: dict[int, Use]) -> None:
        self.sites: dict[Var, Site] = {}
        self.taps: dict[Var, tuple[int, bool]] = {}
        self.loops: dict[int, tuple[int, ...]] = {}
        self.lengths: list[tuple[int, ...]] = []
        self.met: set[int] = set()
        self.frozen: dict[int, JaxprEqn] = {}
        self.frozen_sites: dict[Var, Site] = {}
        self.opaque: dict[int, JaxprEqn] = {}  # by the node of a result
        self.paths = PathBuilder()
        self._softmaxes: dict[Var, Softmax] = {}
        self._gates: dict[Var, JaxprEqn] = {}
        self._intakes: list[tuple[Var, JaxprEqn, tuple[int, ...], int]] = []
        self._kernels = kernels
        self._reach = Reach()
        self._slopes: dict[Any, Shape] = {}

    def explore(
        self,
        frame: Frame,
        loops: tuple[int, ...],
        *,
        beside: bool,
        inside: tuple[JaxprEqn, Flow] | None = None,
    ) -> list[Event]:
        """Lists what the data passes in a frame.

        Args:
          frame: The frame.
          inside: The loop whose body it is, and the flow around that.
          loops: Lengths of the loops around it.
          beside: Whether gradient also gets past it, so that it has no bottlenecks.

        Returns:
          The events, in order.
        """
        flow = flow_through(frame, self._kernels, self._reach)
        if inside is not None:
            self.paths.enter(*inside, flow)
        self._softmaxes.update(find_softmaxes(frame.jaxpr))
        readers = flow.readers()
        lifetimes = flow.lifetimes(readers)
        activations = find_activations(
            frame.jaxpr, flow.outputs, readers, flow.descends, self._slopes
        )
        live = {v for v in frame.jaxpr.invars if v in lifetimes}
        outputs: dict[Var, tuple[Use, Output]] = {}  # of the sites met, where they are tapped
        events: list[Event] = []
        bottleneck: tuple[int, Var] | None = None  # the last one, and its place among the events
        branched = False  # whether a site since then was none

        def tap_bottleneck() -> None:
            if bottleneck is not None and bottleneck[1] not in self.taps:
                place, variable = bottleneck
                events.insert(place, self._tap(variable, loops, normalizes=True))

        for index, (eqn, levels) in enumerate(zip(frame.jaxpr.eqns, flow.outputs, strict=True)):
            live = {v for v in live if lifetimes[v] > index}
            if eqn.primitive.name == "scan" and any(levels):
                inner = self._loop(index, flow, loops, beside=beside or bool(live))
                self.paths.leave(eqn, flow)
                if inner is not None:
                    if not _first(inner).normalizes:
                        tap_bottleneck()
                    events.append(inner)
                    bottleneck, branched = None, not _last(inner).normalizes
            elif any(levels):
                self.paths.equation(index, flow)
                if is_opaque(eqn):
                    nodes = map(self.paths.known, eqn.outvars)
                    self.opaque |= {node: eqn for node in nodes if node is not None}
            if id(eqn) in self._kernels and any(levels):
                self.met.add(id(eqn))
                output = follow_output(index, flow, readers, activations, self._kernels, self.sites)
                outputs[output.variable] = self._kernels[id(eqn)], output
            live |= {v for v in eqn.outvars if v in lifetimes}
            for variable in eqn.outvars:
                narrow = live == {variable} and not beside
                if variable in outputs:
                    use, output = outputs[variable]
                    if not narrow:
                        tap_bottleneck()
                    event = self._tap(variable, loops, normalizes=narrow)
                    events.append(event._replace(leaf=use.leaf, axes=use.axes))
                    self._intakes.append(
                        (output.bare, output.equation, output.bare_samples, event.tap)
                    )
                    self.sites[output.measured] = _site(
                        use.leaf, use.axes, event.tap, output, activations
                    )
                    bottleneck, branched = None if narrow else bottleneck, not narrow
                elif _is_frozen(eqn, flow, index):
                    if not narrow:
                        tap_bottleneck()
                    event = self._tap(variable, loops, normalizes=narrow)
                    events.append(event)
                    self.frozen[event.tap] = eqn
                    if among(eqn, flow.data).count(True) == 1:
                        taken = {**self.sites, **self.frozen_sites}
                        output = follow_output(
                            index, flow, readers, activations, self._kernels, taken
                        )
                        self.frozen_sites[output.measured] = _site(
                            -1, (), event.tap, output, activations
                        )
                    bottleneck, branched = None if narrow else bottleneck, not narrow
                elif narrow:
                    bottleneck = len(events), variable
                    if branched:
                        tap_bottleneck()
                        branched = False
        own = [activations[v] for v in (*self.sites, *self.frozen_sites) if v in activations]
        known = {id(eqn) for activation in own for eqn in activation.equations}
        for eqn, levels in zip(frame.jaxpr.eqns, flow.outputs, strict=True):
            if eqn.primitive.name in _GATES and GRADIENT in levels and id(eqn) not in known:
                self._gates[eqn.outvars[0]] = eqn
        return events

    def watch(self, paths: Paths, first: frozenset[int]) -> dict[Var, tuple[Watched, ...]]:
        """The softmaxes inside the network, and what its first and its last kernels get.

        Of kernels of positions that is what the first and the last one gets, of kernels of features
        what all those get that come after no other.

        Args:
          paths: The finished graph.
          first: See `Anatomy`.
        """
        found: list[tuple[Var, Watched]] = []
        sites = [site.tap for site in self.sites.values()]
        nodes = {v: self.paths.known(v) for v in self._softmaxes}
        known = {v: node for v, node in nodes.items() if node is not None}
        feeding = paths.feeding(list(known.values()), sites)
        for variable, taps in zip(known, feeding, strict=True):
            if taps:
                axes, positions, width, compares = self._softmaxes[variable]
                one = Watched(
                    len(found),
                    "softmax",
                    axes,
                    taps=taps,
                    positions=positions,
                    width=width,
                    compares=compares or len(taps) > 1,
                )
                found.append((variable, one))
        gates = {v: node for v in self._gates if (node := self.paths.known(v)) is not None}
        # A tanh of what gates let through, such as an LSTM's of its cell, is no gate of a kernel's.
        feeding = paths.feeding(list(gates.values()), sites, apart=True)
        for variable, taps in zip(gates, feeding, strict=True):
            if taps:
                kind = _GATES[self._gates[variable].primitive.name]
                found.append((variable, Watched(len(found), kind, (), taps=taps)))
        ends: dict[Var, Watched] = {}
        for intakes in (self._intakes, reversed(self._intakes)):
            for variable, eqn, samples, tap in intakes:
                intake = intake_of(eqn, samples, len(found) + len(ends), tap)
                if intake is not None:
                    ends.setdefault(variable, intake)
                    break
        found += ends.items()
        for variable, eqn, samples, tap in self._intakes:
            features = features_of(eqn, samples, len(found), tap) if tap in first else None
            if features is not None:
                found.append((variable, features))
        watched: dict[Var, tuple[Watched, ...]] = {}
        for variable, one in found:
            watched[variable] = (*watched.get(variable, ()), one)
        return watched

    def _loop(
        self, index: int, flow: Flow, loops: tuple[int, ...], *, beside: bool
    ) -> Looping | None:
        eqn, levels = flow.frame.jaxpr.eqns[index], flow.outputs[index]
        first, count = scan_split(eqn)
        # What every iteration reads, and what every iteration hands out, lives beside the carry.
        read = zip(among(eqn, flow.descends), flow.operands[index], strict=True)
        handed = zip(eqn.outvars[count:], levels[count:], strict=True)
        beside = (
            beside
            or any(
                one and level == GRADIENT
                for place, (one, level) in enumerate(read)
                if not first <= place < first + count
            )
            or any(v in flow.descends and level == GRADIENT for v, level in handed)
        )
        body = loop_body(eqn, levels, flow, self._kernels, self._reach)
        length, before = eqn.params["length"], len(self.lengths)
        events = self.explore(body, (*loops, length), beside=beside, inside=(eqn, flow))
        if not events:
            return None
        self.loops[id(eqn)] = tuple(range(before, len(self.lengths)))
        return Looping(length, eqn.params["reverse"], tuple(events))

    def _tap(self, variable: Var, loops: tuple[int, ...], *, normalizes: bool) -> Passing:
        number = len(self.lengths)
        self.lengths.append(loops)
        self.taps[variable] = number, normalizes
        return Passing(number, math.prod(shape_of(variable.aval)), normalizes)


def _site(
    leaf: int,
    axes: tuple[int, ...],
    tap: int,
    output: Output,
    activations: Mapping[Var, Activation],
) -> Site:
    return Site(
        leaf,
        axes,
        tap,
        activations.get(output.measured),
        output.samples,
        output.units,
        output.bare,
        output.bare_samples,
        output.equation.primitive.name in LOOKUPS,
    )


def _is_frozen(eqn: JaxprEqn, flow: Flow, index: int) -> bool:
    """Whether an equation multiplies what comes from kernels with what doesn't."""
    if eqn.primitive.name not in PRODUCTS:
        return False
    pairs = zip(among(eqn, flow.descends), flow.operands[index], strict=True)
    return [one and level == GRADIENT for one, level in pairs].count(True) == 1


def _first(event: Event) -> Passing:
    return event if isinstance(event, Passing) else _first(event.events[0])


def _last(event: Event) -> Passing:
    return event if isinstance(event, Passing) else _last(event.events[-1])
