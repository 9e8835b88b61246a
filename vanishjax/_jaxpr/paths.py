"""The graph along which gradients flow: what lies downstream of a kernel, and what leads past it.

Every variable that carries gradient is a node, and a node has an edge to each that is computed from
it. A loop's body stands in the graph once; what one iteration hands to the next is an edge back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.flow import Flow
from vanishjax._jaxpr.reach import GRADIENT
from vanishjax._jaxpr.versions import open_jaxpr, scan_split

_SUMS = frozenset({"add", "add_any", "sub"})


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """The graph of a program.

    Attributes:
      edges: Pairs (from, to), in the program's order.
      returns: Those from the end of a loop's body back to its start.
      data: For each node, whether it depends on the data.
      descends: For each node, whether it depends on what a kernel puts out.
      sums: The nodes that are sums.
      taps: The nodes of the taps, by their number.
      loss: The loss's node.
    """

    edges: tuple[tuple[int, int], ...]
    returns: tuple[tuple[int, int], ...]
    data: tuple[bool, ...]
    descends: tuple[bool, ...]
    sums: tuple[int, ...]
    taps: tuple[int, ...]
    loss: int

    def downstream(self, *, looping: bool) -> list[int]:
        """For each tap those that its gradient comes from, as the bits of an integer.

        Args:
          looping: Whether later iterations of the loops around a tap count too, or only its own.
        """
        reached = self._reached(self._marks(), looping=looping)
        return [reached[node] for node in self.taps]

    def first(self, sites: Collection[int]) -> frozenset[int]:
        """The kernels' outputs that come after no kernel's, nor after their own in a loop.

        Args:
          sites: Numbers of the taps that stand on kernels' outputs.
        """
        below, later = self.downstream(looping=True), 0
        for tap in sites:
            later |= below[tap]
        return frozenset(tap for tap in sites if not later >> tap & 1)

    def to_loss(self) -> list[bool]:
        """For each tap whether a gradient can reach it from the loss."""
        reached = self._reached({self.loss: 1}, looping=True)
        return [bool(reached[node]) or node == self.loss for node in self.taps]

    def feeding(
        self, nodes: Sequence[int], sites: Collection[int], *, apart: bool = False
    ) -> list[tuple[int, ...]]:
        """For each node the taps that lead to it without another in between.

        Args:
          nodes: The nodes.
          sites: Numbers of the taps that stand on kernels' outputs.
          apart: Whether none of the other nodes may be in between either.

        Returns:
          Their numbers; none for a node after which no other tap comes.
        """
        later = self._reached(self._marks(), looping=False)
        wanted = {node: 1 << i for i, node in enumerate(nodes) if later[node]}
        closed = {self.taps[tap] for tap in sites} | set(nodes if apart else ())
        reached = self._reached(wanted, looping=False, closed=closed)
        return [
            tuple(tap for tap in sites if reached[self.taps[tap]] >> i & 1)
            for i in range(len(nodes))
        ]

    def branch_ends(self, sites: Collection[int]) -> set[int]:
        """The kernels' outputs that are added to what leads past them: ends of residual branches.

        Args:
          sites: Numbers of the taps that stand on kernels' outputs.

        Returns:
          Those after whose output, and before any other kernel, comes a sum whose other operand
          comes from upstream of the kernel on a way past all kernels. A sum after the last kernel
          is the loss's, and doesn't count.
        """
        closed = {self.taps[tap] for tap in sites}
        later = self._reached(dict.fromkeys(closed, 1), looping=False)
        sums = {node: 1 << i for i, node in enumerate(self.sums) if later[node]}
        reached = self._reached(sums, looping=False, closed=closed)
        above = [0] * len(self.data)
        for start, end in self.edges:
            above[end] |= above[start] | (reached[start] if self.descends[start] else 0)
        return {tap for tap in sites if reached[self.taps[tap]] & above[self.taps[tap]]}

    def bypassed(self, starved: Collection[int], sites: Collection[int]) -> set[int]:
        """The starved taps that something gets past.

        A tap is bypassed if some variable upstream of it reaches what isn't starved downstream of
        it on a way that leads past all starved taps: a skip connection, a parallel branch. Where
        nothing downstream is left that isn't starved, what counts is the loss.

        Args:
          starved: Numbers of the taps that get no gradient to speak of.
          sites: Numbers of the taps that stand on kernels' outputs.

        Returns:
          Those of `starved` that are bypassed.
        """
        marks = self._marks()
        below = self._reached(marks, looping=True)
        # Upstream within an iteration: what leads past a loop's layer leads past it in its own.
        before = self._reached(marks, looping=False)
        closed = {self.taps[tap] for tap in starved}
        fed = sum(1 << tap for tap in sites if tap not in starved)
        groups: dict[int, int] = {}  # starved taps by what they could be fed from
        for tap in starved:
            goals = below[self.taps[tap]] & fed
            groups[goals] = groups.get(goals, 0) | 1 << tap
        past = 0
        for goals, members in groups.items():
            ends = {node: 1 for node, mark in marks.items() if mark & goals} or {self.loss: 1}
            starts = self.data if goals else self.descends
            reaches = self._reached(ends, looping=True, closed=closed)
            upstream = 0
            for node, reach in enumerate(reaches):
                if reach and starts[node] and node not in closed:
                    upstream |= before[node]
            past |= upstream & members
        return {tap for tap in starved if past >> tap & 1}

    def _marks(self) -> dict[int, int]:
        marks: dict[int, int] = {}
        for tap, node in enumerate(self.taps):
            marks[node] = marks.get(node, 0) | 1 << tap
        return marks

    def _reached(
        self, marks: Mapping[int, int], *, looping: bool, closed: Collection[int] = ()
    ) -> list[int]:
        """For each node the marks of all nodes that it reaches without passing closed ones."""
        reached = [0] * len(self.data)
        changed = True
        while changed:
            changed = False
            # Backwards through the program; a loop's second round only where it is asked for.
            for start, end in self.returns if looping else ():
                new = marks.get(end, 0) | (0 if end in closed else reached[end])
                changed |= new & ~reached[start] != 0
                reached[start] |= new
            for start, end in reversed(self.edges):
                new = marks.get(end, 0) | (0 if end in closed else reached[end])
                if new & ~reached[start]:
                    reached[start] |= new
                    changed = True
            changed &= looping and bool(self.returns)
        return reached


class PathBuilder:
    """Collects the graph while a program is walked in its own order."""

    def __init__(self) -> None:
        self._nodes: dict[Var, int] = {}
        self._data: list[bool] = []
        self._descends: list[bool] = []
        self._edges: list[tuple[int, int]] = []
        self._returns: list[tuple[int, int]] = []
        self._sums: list[int] = []

    def node(self, variable: Var, flow: Flow) -> int:
        """The variable's node."""
        if variable not in self._nodes:
            self._nodes[variable] = len(self._data)
            self._data.append(variable in flow.data)
            self._descends.append(variable in flow.descends)
        return self._nodes[variable]

    def known(self, variable: Var) -> int | None:
        """The variable's node, if it has one by now."""
        return self._nodes.get(variable)

    def equation(self, index: int, flow: Flow) -> None:
        """Notes an equation that isn't a loop."""
        eqn = flow.frame.jaxpr.eqns[index]
        ends = [
            self.node(v, flow)
            for v, level in zip(eqn.outvars, flow.outputs[index], strict=True)
            if level == GRADIENT
        ]
        for atom, level in zip(eqn.invars, flow.operands[index], strict=True):
            if level == GRADIENT and not isinstance(atom, Literal):
                start = self.node(atom, flow)
                self._edges += [(start, end) for end in ends]
        if eqn.primitive.name in _SUMS:
            self._sums += ends

    def enter(self, eqn: JaxprEqn, outer: Flow, inner: Flow) -> None:
        """Notes what a loop's body takes in; to be called before the body's equations."""
        self._link(eqn.invars, outer, inner.frame.jaxpr.invars, inner)

    def leave(self, eqn: JaxprEqn, outer: Flow) -> None:
        """Notes what a loop hands out, and hands on; to be called after the body's equations."""
        body = open_jaxpr(eqn.params["jaxpr"])
        first, count = scan_split(eqn)
        for inside, outside in zip(body.outvars, eqn.outvars, strict=True):
            if not isinstance(inside, Literal) and inside in self._nodes:
                self._edges.append((self._nodes[inside], self.node(outside, outer)))
        carried = zip(body.outvars[:count], body.invars[first : first + count], strict=True)
        for end, start in carried:
            if not isinstance(end, Literal) and end in self._nodes and start in self._nodes:
                self._returns.append((self._nodes[end], self._nodes[start]))

    def build(self, taps: Sequence[Var], loss: Var | Literal) -> Paths:
        """The graph.

        Args:
          taps: The tapped variables, by the taps' numbers.
          loss: The loss.
        """

        def place(variable: Var | Literal) -> int:
            if not isinstance(variable, Literal) and variable in self._nodes:
                return self._nodes[variable]
            self._data.append(False)
            self._descends.append(False)
            return len(self._data) - 1

        tapped, end = tuple(map(place, taps)), place(loss)
        return Paths(
            tuple(self._edges),
            tuple(self._returns),
            tuple(self._data),
            tuple(self._descends),
            tuple(self._sums),
            tapped,
            end,
        )

    def _link(
        self, starts: Sequence[Var | Literal], outer: Flow, ends: Sequence[Var], inner: Flow
    ) -> None:
        wanted = inner.readers()
        for start, end in zip(starts, ends, strict=True):
            if not isinstance(start, Literal) and end in wanted:
                self._edges.append((self.node(start, outer), self.node(end, inner)))
