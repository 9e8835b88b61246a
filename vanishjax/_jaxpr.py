"""Where data meets the parameters of a loss, read off its jaxpr.

The only file that walks jaxprs, and so the only one that knows how versions of JAX differ in them.

The walk carries an abstract value along every variable: does it depend on the data, how many
parameters lie on the longest path from the data to it (its depth), and which parameters went into
it that no data has met yet (casts, weight normalisation, slices, regularisers). A parameter is
*used* by the equation in which a value made from it alone meets a data-dependent value, and the
depth of that use is one more than the depth of the data. Dead equations are skipped.

A scan is walked for its first iterations only, until its depths grow steadily, and the rest is
extrapolated: time is linear in the equations of the program text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from vanishjax._jaxpr_values import (
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

__all__ = ["Trace", "Use", "parameter_uses"]

_DEAD, _VALUE, _GRADIENT = range(3)  # how a variable reaches the loss
_Levels = tuple[int, ...]

_SUMS = frozenset({"add", "sub", "add_any"})
_SLICES = frozenset({"slice", "dynamic_slice", "gather", "split"})
_OPAQUE = frozenset({"pure_callback", "io_callback", "ffi_call", "custom_linear_solve"})


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


def parameter_uses(loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any = None) -> Trace:
    """Finds where and how deep `loss_fn(params, batch)` uses each parameter.

    A use is a meeting with the data, which are the arrays of `batch` or, if it has none, the
    arrays that `loss_fn` closes over. A term that the loss adds up from parameters alone (a
    regulariser) is no use.

    Args:
      loss_fn: `(params, batch) -> loss` or `-> (loss, aux)` with a scalar loss; it's traced, never
        run.
      params: Parameters: arrays or `jax.ShapeDtypeStruct`s.
      batch: Any pytree; what isn't an array or a `jax.ShapeDtypeStruct` is handed over as it is.

    Returns:
      The uses, and what was learnt about the loss.

    Raises:
      ValueError: The loss isn't a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(params, x):
      ...     return jnp.mean(jnp.tanh(x @ params["out"] * params["gain"]) @ params["in"])
      >>> params = {"gain": jnp.ones(4), "in": jnp.ones((4, 1)), "out": jnp.ones((3, 4))}
      >>> trace = parameter_uses(loss_fn, params, jnp.ones((2, 3)))
      >>> [(use.leaf, use.primitive, float(use.depths)) for use in trace.uses]
      [(2, 'dot_general', 1.0), (0, 'mul', 2.0), (1, 'dot_general', 3.0)]
    """
    leaves, structure = jax.tree_util.tree_flatten(params)
    inputs, batch_structure = jax.tree_util.tree_flatten(batch)
    is_array = [hasattr(x, "shape") and hasattr(x, "dtype") for x in inputs]

    def flat_loss(leaves: list[Any], arrays: list[Any]) -> Any:
        rest = iter(arrays)
        filled = [next(rest) if array else x for x, array in zip(inputs, is_array, strict=True)]
        return loss_fn(
            jax.tree_util.tree_unflatten(structure, leaves),
            jax.tree_util.tree_unflatten(batch_structure, filled),
        )

    arrays = list(itertools.compress(inputs, is_array))
    closed, out = jax.make_jaxpr(flat_loss, return_shape=True)(leaves, arrays)
    loss = out[0] if isinstance(out, tuple) and out else out
    if getattr(loss, "shape", None) != ():
        raise ValueError(
            f"loss_fn must return a scalar or (scalar, aux), got {jax.tree.map(_shape, out)}"
        )

    jaxpr = _open(closed)
    walk = _Walk(constants_are_data=not arrays)
    wanted = (_GRADIENT,) + (_DEAD,) * (len(jaxpr.outvars) - 1)
    values = [whole_parameter(i, np.ndim(x)) for i, x in enumerate(leaves)] + [DATA] * len(arrays)
    results = walk(jaxpr, values, wanted)
    _, reached = walk.reach(jaxpr, wanted)
    return Trace(
        tuple(walk.uses),
        tuple(level == _GRADIENT for level in reached[: len(leaves)]),
        results[0].data,
    )


class _Reach:
    """Backwards through a jaxpr: which variables reach the loss, and which with a gradient."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, _Levels], tuple[list[_Levels], _Levels]] = {}

    def __call__(self, jaxpr: Jaxpr, wanted: _Levels) -> tuple[list[_Levels], _Levels]:
        """For levels `wanted` of the outputs: each equation's outputs', and the inputs'."""
        key = id(jaxpr), wanted
        if key not in self._known:
            found: dict[Var, int] = {}

            def mark(atoms: Iterable[Any], levels: Iterable[int]) -> None:
                for atom, level in zip(atoms, levels, strict=True):
                    if not isinstance(atom, Literal):
                        found[atom] = max(level, found.get(atom, _DEAD))

            mark(jaxpr.outvars, wanted)
            outputs = []
            for eqn in reversed(jaxpr.eqns):
                outputs.append(tuple(min(found.get(v, _DEAD), _best(v)) for v in eqn.outvars))
                if any(outputs[-1]):
                    mark(eqn.invars, self._operands(eqn, outputs[-1]))
            reached = tuple(found.get(v, _DEAD) for v in jaxpr.invars)
            self._known[key] = outputs[::-1], reached
        return self._known[key]

    def _operands(self, eqn: JaxprEqn, outputs: _Levels) -> _Levels:
        name, called = eqn.primitive.name, _called(eqn)
        if name == "stop_gradient":
            return (_VALUE,)
        if name == "scan":
            return self(_open(eqn.params["jaxpr"]), self.carried(eqn, outputs))[1]
        if name == "while":
            n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            body = self(_open(eqn.params["body_jaxpr"]), self.carried(eqn, outputs))[1]
            condition = (_VALUE,) * len(_open(eqn.params["cond_jaxpr"]).invars)
            carry = tuple(map(max, body[n_body:], condition[n_cond:]))
            return condition[:n_cond] + body[:n_body] + carry
        if name == "cond":
            branches = [self(_open(branch), outputs)[1] for branch in eqn.params["branches"]]
            return (_VALUE, *map(max, zip(*branches, strict=True)))
        if called is not None:
            return self(called, outputs)[1]
        return (max(outputs),) * len(eqn.invars)

    def carried(self, eqn: JaxprEqn, outputs: _Levels) -> _Levels:
        """Levels of a loop body's outputs once what the next iteration wants is added."""
        if eqn.primitive.name == "scan":
            body, (first, count) = _open(eqn.params["jaxpr"]), _scan_split(eqn)
        else:
            body, first, count = (
                _open(eqn.params["body_jaxpr"]),
                eqn.params["body_nconsts"],
                len(outputs),
            )
        while True:
            reached = self(body, outputs)[1][first : first + count]
            grown = tuple(map(max, outputs[:count], reached)) + outputs[count:]
            if grown == outputs:
                return outputs
            outputs = grown


class _Walk:
    """Forwards through a jaxpr: abstract values, and the uses they give rise to."""

    def __init__(self, *, constants_are_data: bool) -> None:
        self.reach = _Reach()
        self.uses: list[Use] = []
        self._constants_are_data = constants_are_data
        self._position = 0
        self._serial = itertools.count()
        self._settled: set[Use] = set()

    def __call__(self, jaxpr: Jaxpr, values: Sequence[Value], wanted: _Levels) -> list[Value]:
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
        is_array = getattr(atom.aval, "ndim", 0) > 0 or _is_key(atom.aval)
        return DATA if self._constants_are_data and is_array else NOTHING

    def _equation(self, eqn: JaxprEqn, operands: list[Value], outputs: _Levels) -> Sequence[Value]:
        name, called = eqn.primitive.name, _called(eqn)
        if name == "scan":
            return self._scan(eqn, operands, self.reach.carried(eqn, outputs))
        if name == "while":
            return self._while(eqn, operands, self.reach.carried(eqn, outputs))
        if name == "cond":
            branches = [
                self(_open(branch), operands[1:], outputs) for branch in eqn.params["branches"]
            ]
            chosen = [join(values) for values in zip(*branches, strict=True)]
            return [self._meet(eqn, join([operands[0], value])) for value in chosen]
        if called is not None:
            return self(called, operands, outputs)
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
            return [self._meet(eqn, joined, is_sum=is_sum)] * len(eqn.outvars)
        return [
            join([self._carry(eqn, i, value, out) for i, value in enumerate(operands)])
            for out in range(len(eqn.outvars))
        ]

    def _carry(self, eqn: JaxprEqn, operand: int, value: Value, out: int) -> Value:
        """What an operand made from parameters alone contributes to an equation's output."""
        old, new = _shape(eqn.invars[operand].aval), _shape(eqn.outvars[out].aval)
        name = eqn.primitive.name
        if not value.pieces or (name in ELEMENTWISE and len(old) == len(new)):
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
            pieces[leaf] = Piece(dims, piece.loops, part if part and told_apart else piece.part)
        return value._replace(pieces=pieces)

    def _meet(self, eqn: JaxprEqn, value: Value, *, is_sum: bool = False) -> Value:
        if not (value.data and value.pieces):
            return value
        name, depth = eqn.primitive.name, value.depth + 1
        opaque = len(value.pieces) > 1 and (name in _OPAQUE or _has_jaxpr(eqn))
        pending = set(value.pending)
        for leaf, (dims, loops, part) in value.pieces.items():
            depths = np.array(float(depth))
            use = Use(leaf, self._position, name, (), depths, part, opaque, loops)
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

    def _scan(self, eqn: JaxprEqn, operands: list[Value], wanted: _Levels) -> list[Value]:
        first, count = _scan_split(eqn)
        body, length = _open(eqn.params["jaxpr"]), eqn.params["length"]
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
            self._leave(value, loop, stacked=True)._replace(depth=value.depth + left * growth)
            for value in stacked
        ]

    def _while(self, eqn: JaxprEqn, operands: list[Value], wanted: _Levels) -> list[Value]:
        # How often it runs is unknown and its condition has no gradient: the body alone counts.
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        constants, carry = operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
        histories = [carry]
        start = self._position
        while not is_steady(histories, []) and len(histories) <= len(carry) + 3:
            self._position = start
            body = _open(eqn.params["body_jaxpr"])
            histories.append(self(body, [*constants, *histories[-1]], wanted))
        return histories[-1]

    def _element(self, value: Value, loop: int) -> Value:
        """What one iteration of a scan sees of a sequence."""
        if not value.pieces:
            return value
        pieces = {}
        for leaf, (dims, loops, part) in value.pieces.items():
            if dims[0] >= 0:
                loops = (*loops, (dims[0], loop))
            elif dims[0] == MIXED and (len(value.pieces) > 1 or not loops):
                part = (self._position, next(self._serial))
            pieces[leaf] = Piece(dims[1:], loops, part)
        return value._replace(pieces=pieces)

    def _leave(self, value: Value, loop: int, *, stacked: bool = False) -> Value:
        """What a scan's iteration hands on: to the next one, or `stacked` to the outside."""
        pieces = {}
        for leaf, (dims, loops, part) in value.pieces.items():
            axis = {scan: axis for axis, scan in loops}.get(loop)
            if stacked:
                dims = (WHOLE if axis is None else axis, *dims)
            elif axis is not None:  # only this iteration's index of the parameter
                dims, part = (MIXED,) * len(dims), (self._position, next(self._serial))
            pieces[leaf] = Piece(dims, tuple(pair for pair in loops if pair[1] != loop), part)
        pending = (dataclasses.replace(use, loops=()) for use in value.pending if use.loops)
        others = (use for use in value.pending if not use.loops)
        return value._replace(pieces=pieces, pending=frozenset([*pending, *others]))


# What differs between versions of JAX.


def _open(jaxpr: Any) -> Jaxpr:
    """A jaxpr without its constants: from JAX 0.12 on equations hold it open already."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _scan_split(eqn: JaxprEqn) -> tuple[int, int]:
    """Number of constants and of carried values of a scan.

    Read off the ranks, as the parameter that says so was renamed: a sequence has one dimension more
    outside than inside.
    """
    body = _open(eqn.params["jaxpr"])

    def carried(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))

    count = carried(eqn.outvars, body.outvars)
    return carried(eqn.invars, body.invars) - count, count


def _called(eqn: JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation applies to its operands one to one, if there is one."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = _open(eqn.params.get(key))
        if (
            isinstance(inner, Jaxpr)
            and len(inner.invars) == len(eqn.invars)
            and len(inner.outvars) == len(eqn.outvars)
            and (
                eqn.primitive.name == "shard_map"
                or all(
                    _shape(a.aval) == _shape(b.aval)
                    for a, b in zip(inner.invars, eqn.invars, strict=True)
                )
            )
        ):
            return inner
    return None


def _has_jaxpr(eqn: JaxprEqn) -> bool:
    return any(isinstance(value, Jaxpr | ClosedJaxpr) for value in eqn.params.values())


def _shape(x: Any) -> Any:
    return getattr(x, "shape", x)


def _is_key(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _best(variable: Any) -> int:
    """The most a variable can carry back: no gradient flows through integers or booleans."""
    dtype = getattr(variable.aval, "dtype", None)
    return _GRADIENT if dtype is None or jnp.issubdtype(dtype, jnp.inexact) else _VALUE
