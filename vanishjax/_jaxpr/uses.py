"""Where data meets the parameters of a loss, read off its jaxpr.

The walk carries an abstract value along every variable: does it depend on the data, how many
parameters lie on the longest path from the data to it (its depth), and which parameters went into
it that no data has met yet (casts, weight normalization, slices, regularizers). A parameter is
*used* by the equation in which a value made from it alone meets a data-dependent value, and the
depth of that use is one more than the depth of the data. Dead equations are skipped.

A scan is walked for its first iterations only, until its depths grow steadily, and the rest is
extrapolated: time is linear in the equations of the program text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from vanishjax._jaxpr.contraction import Matrix, Part, carried, matrix_of
from vanishjax._jaxpr.program import Program
from vanishjax._jaxpr.reach import DEAD, GRADIENT, Levels, Reach
from vanishjax._jaxpr.values import (
    DATA,
    ELEMENTWISE,
    MIXED,
    NOTHING,
    WHOLE,
    Piece,
    Use,
    Value,
    growths,
    is_steady,
    join,
    keeps_sums,
    output_dims,
    picks_one,
    unroll,
    whole_parameter,
)
from vanishjax._jaxpr.versions import called, has_jaxpr, is_key, open_jaxpr, scan_split, shape_of

_SUMS = frozenset({"add", "sub", "add_any"})
_SLICES = frozenset({"slice", "dynamic_slice", "gather", "split"})
CLOSED = frozenset({"pure_callback", "io_callback", "ffi_call", "custom_linear_solve"})


class Trace(NamedTuple):
    """What a walk found.

    Attributes:
      uses: Every meeting of a parameter with the data, in program order.
      differentiable: For each parameter, whether a gradient can reach it from the loss.
      depends_on_data: Whether the loss depends on any data.
    """

    uses: tuple[Use, ...]
    differentiable: tuple[bool, ...]
    depends_on_data: bool


def parameter_uses(program: Program) -> Trace:
    """Finds where and how deep a loss uses each parameter.

    A use is a meeting with the data, which are the arrays of the batch or, if it has none, the
    arrays that the loss closes over. A term that the loss adds up from parameters alone (a
    regularizer) is no use.

    Args:
      program: The loss.

    Returns:
      The uses, and what was learned about the loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from vanishjax._jaxpr.program import trace_loss
      >>> def loss_fn(params, x):
      ...     return jnp.mean(jnp.tanh(x @ params["out"] * params["gain"]) @ params["in"])
      >>> params = {"gain": jnp.ones(4), "in": jnp.ones((4, 1)), "out": jnp.ones((3, 4))}
      >>> trace = parameter_uses(trace_loss(loss_fn, params, jnp.ones((2, 3))))
      >>> [(use.leaf, use.equation.primitive.name, float(use.depths)) for use in trace.uses]
      [(2, 'dot_general', 1.0), (0, 'mul', 2.0), (1, 'dot_general', 3.0)]
    """
    jaxpr, (_, ranks, arrays) = program.closed.jaxpr, program
    shapes = [shape_of(v.aval) for v in jaxpr.invars[: len(ranks)]]
    walk = _Walk(shapes, constants_are_data=not arrays)
    wanted = (GRADIENT,) + (DEAD,) * (len(jaxpr.outvars) - 1)
    values = [whole_parameter(i, shape) for i, shape in enumerate(shapes)] + [DATA] * arrays
    results = walk(jaxpr, values, wanted)
    _, reached = walk.reach(jaxpr, wanted)
    return Trace(
        tuple(walk.uses),
        tuple(level == GRADIENT for level in reached[: len(ranks)]),
        results[0].data,
    )


class _Entry(NamedTuple):
    """How a parameter enters an equation: see `Use`."""

    matrix: Matrix | None
    operand: int
    dims: tuple[int, ...]


class _Walk:
    """Forwards through a jaxpr: abstract values, and the uses they give rise to."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], *, constants_are_data: bool) -> None:
        self._shapes = shapes
        self.reach = Reach()
        self.uses: list[Use] = []
        self._constants_are_data = constants_are_data
        self._position = 0
        self._serial = itertools.count()
        self._settled: set[Use] = set()

    def __call__(self, jaxpr: Any, values: Sequence[Value], wanted: Levels) -> list[Value]:
        env = {v: self._constant(v) for v in jaxpr.constvars}
        env.update(zip(jaxpr.invars, values, strict=True))

        def read(atom: Any) -> Value:
            return self._constant(atom) if isinstance(atom, Literal) else env.get(atom, NOTHING)

        for eqn, outputs in zip(jaxpr.eqns, self.reach(jaxpr, wanted)[0], strict=True):
            self._position += 1
            if any(outputs):
                results = self._equation(eqn, [read(atom) for atom in eqn.invars], outputs)
                env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _constant(self, atom: Any) -> Value:
        is_array = getattr(atom.aval, "ndim", 0) > 0 or is_key(atom.aval)
        return DATA if self._constants_are_data and is_array else NOTHING

    def _equation(self, eqn: JaxprEqn, operands: list[Value], outputs: Levels) -> Sequence[Value]:
        name, inner = eqn.primitive.name, called(eqn)
        if name == "scan":
            return self._scan(eqn, operands, self.reach.carried(eqn, outputs))
        if name == "while":
            return self._while(eqn, operands, self.reach.carried(eqn, outputs))
        if name == "cond":
            branches = [
                self(open_jaxpr(branch), operands[1:], outputs) for branch in eqn.params["branches"]
            ]
            chosen = [join(values) for values in zip(*branches, strict=True)]
            return [self._meet(eqn, join([operands[0], value])) for value in chosen]
        if inner is not None:
            return self(open_jaxpr(inner), operands, outputs)
        if name == "optimization_barrier":
            return operands
        return self._ordinary(eqn, operands)

    def _ordinary(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        if all(value is NOTHING for value in operands):
            return [NOTHING] * len(eqn.outvars)
        name = eqn.primitive.name
        joined = join(operands)
        if joined.pending and not keeps_sums(name, operands):
            self._settle(joined.pending)
            joined = joined._replace(pending=frozenset())
        if joined.data:
            is_sum = name in _SUMS and not any(v.data and v.pieces for v in operands)
            entries = self._entries(eqn, operands)
            return [self._meet(eqn, joined, entries, is_sum=is_sum)] * len(eqn.outvars)
        return [
            join([self._carry(eqn, i, value, out) for i, value in enumerate(operands)])
            for out in range(len(eqn.outvars))
        ]

    def _carry(self, eqn: JaxprEqn, operand: int, value: Value, out: int) -> Value:
        """What an operand made from parameters alone contributes to an equation's output."""
        old, new = shape_of(eqn.invars[operand].aval), shape_of(eqn.outvars[out].aval)
        name = eqn.primitive.name
        if not value.pieces or (name in ELEMENTWISE and old == new):
            return value
        part: tuple[int, ...] | None = None
        # Parts are told apart where they could be layers: those of several parameters laid
        # together, or single indices of one that no scan has divided already.
        if name in _SLICES and old != new:
            part = (self._position, out)
            if not all(isinstance(start, Literal) for start in eqn.invars[1:]):
                part += (next(self._serial),)  # may differ every time this equation runs
        pieces = {}
        for leaf, piece in value.pieces.items():
            told_apart = len(value.pieces) > 1 or (
                not piece.loops and picks_one(piece.dims, old, new)
            )
            dims = output_dims(name, eqn.params, operand, piece.dims, old, new)
            layout = carried(eqn, operand, piece.layout, out) if piece.layout else ()
            own = part if part and told_apart else piece.part
            pieces[leaf] = Piece(dims, piece.loops, own, layout)
        return value._replace(pieces=pieces)

    def _entries(self, eqn: JaxprEqn, operands: list[Value]) -> dict[int, _Entry]:
        """How each parameter enters an equation with the data."""
        entries: dict[int, _Entry] = {}
        for number, value in enumerate(operands):
            for leaf, piece in value.pieces.items():
                scanned = [axis for axis, _ in piece.loops]
                matrix = matrix_of(eqn, number, piece.layout, self._shapes[leaf], scanned)
                once = leaf not in entries
                entries[leaf] = _Entry(matrix, number if once else -1, piece.dims if once else ())
        return entries

    def _meet(
        self,
        eqn: JaxprEqn,
        value: Value,
        entries: Mapping[int, _Entry] = MappingProxyType({}),
        *,
        is_sum: bool = False,
    ) -> Value:
        if not (value.data and value.pieces):
            return value
        name, depth = eqn.primitive.name, value.depth + 1
        opaque = len(value.pieces) > 1 and (name in CLOSED or has_jaxpr(eqn))
        pending = set(value.pending)
        for leaf, (dims, loops, part, _) in value.pieces.items():
            depths = np.array(float(depth))
            entry = entries.get(leaf, _Entry(None, -1, ()))
            use = Use(leaf, self._position, eqn, (), depths, part, opaque, loops, *entry)
            if is_sum and all(dim == WHOLE for dim in dims):
                pending.add(use)
            else:
                self.uses.append(use)
        return Value(data=True, depth=depth, pieces={}, pending=frozenset(pending))

    def _settle(self, pending: Iterable[Use]) -> None:
        new = [use for use in pending if use not in self._settled]
        self._settled.update(new)
        self.uses += sorted(new, key=lambda use: use.position)

    # Loops.

    def _scan(self, eqn: JaxprEqn, operands: list[Value], wanted: Levels) -> list[Value]:
        first, count = scan_split(eqn)
        body, length = open_jaxpr(eqn.params["jaxpr"]), eqn.params["length"]
        loop = next(self._serial)
        constants, sequences = operands[:first], operands[first + count :]
        histories = [operands[first : first + count]]
        iterations: list[list[Use]] = []
        stacked: list[Value] = [NOTHING] * (len(eqn.outvars) - count)
        start, outer = self._position, self.uses
        fixed = [value.depth for value in constants + sequences if value.data]
        while len(iterations) < length and not is_steady(histories, fixed):
            self._position, self.uses = start, []
            elements = [self._element(value, loop) for value in sequences]
            results = self(body, [*constants, *histories[-1], *elements], wanted)
            iterations.append(self.uses)
            histories.append([self._leave(value, loop) for value in results[:count]])
            stacked = results[count:]
        left = length - len(iterations)
        self.uses = outer + unroll(iterations, loop, length, reverse=eqn.params["reverse"])
        growth = max(growths(histories), default=0) if left else 0
        carry = [
            value._replace(depth=value.depth + left * step)
            for value, step in zip(histories[-1], growths(histories), strict=True)
        ]
        return carry + [
            self._leave(value, loop, stacked=length)._replace(depth=value.depth + left * growth)
            for value in stacked
        ]

    def _while(self, eqn: JaxprEqn, operands: list[Value], wanted: Levels) -> list[Value]:
        # How often it runs is unknown and its condition has no gradient: the body alone counts.
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        constants, carry = operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
        histories = [carry]
        start = self._position
        while not is_steady(histories, []) and len(histories) <= len(carry) + 3:
            self._position = start
            body = open_jaxpr(eqn.params["body_jaxpr"])
            histories.append(self(body, [*constants, *histories[-1]], wanted))
        return histories[-1]

    def _element(self, value: Value, loop: int) -> Value:
        """What one iteration of a scan sees of a sequence."""
        if not value.pieces:
            return value
        pieces = {}
        for leaf, (dims, loops, part, layout) in value.pieces.items():
            if dims[0] >= 0:
                loops = (*loops, (dims[0], loop))
            elif dims[0] == MIXED and (len(value.pieces) > 1 or not loops):
                part = (self._position, next(self._serial))
            pieces[leaf] = Piece(dims[1:], loops, part, layout[1:])
        return value._replace(pieces=pieces)

    def _leave(self, value: Value, loop: int, *, stacked: int | None = None) -> Value:
        """What a scan's iteration hands on: to the next one, or `stacked` to the outside."""
        pieces = {}
        for leaf, (dims, loops, part, layout) in value.pieces.items():
            axis = {scan: axis for axis, scan in loops}.get(loop)
            if stacked is not None:
                dims = (WHOLE if axis is None else axis, *dims)
                layout = (() if axis is None else (Part((axis,), stacked),), *layout)
            elif axis is not None:  # only this iteration's index of the parameter
                dims, part = (MIXED,) * len(dims), (self._position, next(self._serial))
            rest = tuple(pair for pair in loops if pair[1] != loop)
            pieces[leaf] = Piece(dims, rest, part, layout)
        pending = (dataclasses.replace(use, loops=()) for use in value.pending if use.loops)
        others = (use for use in value.pending if not use.loops)
        return value._replace(pieces=pieces, pending=frozenset([*pending, *others]))
