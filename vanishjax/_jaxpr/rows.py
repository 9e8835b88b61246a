"""Rows of a transform's updates, from what is in memory anyway.

An update goes into the parameters in the loop that computes it, and is never written to memory.
Taking rows from the update itself would make XLA write all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from vanishjax._jaxpr.program import Evaluator, split_arrays
from vanishjax._jaxpr.values import ELEMENTWISE
from vanishjax._jaxpr.versions import bind, shape_of

# Elementwise as well; no walk in search of layers follows these, so that its list has none of them.
_FURTHER = frozenset(["atan", "atan2", "eq", "ge", "gt", "is_finite", "le", "lt", "ne"])
_AGAIN = (ELEMENTWISE | _FURTHER | {"broadcast_in_dim"}) - {"reshard", "sharding_constraint"}


@dataclasses.dataclass(frozen=True)
class Cut:
    """Which rows: every `stride`-th index along an axis."""

    axis: int
    stride: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """These rows of an array."""
        return x if self.stride == 1 else jax.lax.slice_in_dim(x, 0, None, self.stride, self.axis)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of these rows of an array of that shape."""
        return tuple(-(-n // self.stride) if i == self.axis else n for i, n in enumerate(shape))


WHOLE = Cut(0, 1)


class Update:
    """What a transform returned, and rows of it.

    Rows are computed again, elementwise, from the gradient, the new state, the parameters and
    results that no loop is fused with, such as sums and products of matrices.

    Attributes:
      steps: The updates.
      state: The transform's new state.
    """

    def __init__(
        self,
        update_fn: Callable[..., tuple[Any, Any]],
        updates: Any,
        state: Any,
        params: Any,
        extra: Mapping[str, Any],
    ) -> None:
        """Calls `update_fn(updates, state, params, **extra)`."""
        arrays, rebuild = split_arrays((updates, state, params, dict(extra)))

        def flat(arrays: list[Any]) -> tuple[Any, Any]:
            *positional, named = rebuild(arrays)
            return update_fn(*positional, **named)

        closed, out = jax.make_jaxpr(flat, return_shape=True)(arrays)
        recorder = _Recorder()
        results = recorder(closed.jaxpr, closed.consts, arrays)
        self.steps, self.state = jax.tree.unflatten(jax.tree.structure(out), results)
        self._made, self._again = recorder.made, dict[int, bool]()
        self._params = {id(x): number for number, x in enumerate(jax.tree.leaves(params))}
        self._lasting = {id(x) for x in jax.tree.leaves((updates, self.state))}
        # The new state overwrites these: who reads them later makes XLA copy them.
        self._expiring = {id(x) for x in jax.tree.leaves(state)} - self._lasting
        self._kept = arrays, results  # lest another value gets the identity of one of them

    def write_steps(self, one: jax.Array) -> None:
        """Has the steps pass through memory, for readers that need all of them anyway.

        Args:
          one: A 1 of which XLA doesn't know that it is.
        """
        self.steps = jax.tree.map(lambda u: u / one.astype(jnp.result_type(u)), self.steps)

    def reads(self, steps: Iterable[tuple[Any, Cut]]) -> list[tuple[int, Cut]]:
        """Which rows of which parameters, by their numbers, `rows` needs.

        Args:
          steps: Leaves of the updates, each with its cut.

        Returns:
          Numbers of the parameters' leaves, each with a cut.
        """
        needed: dict[tuple[int, Cut], None] = {}
        seen = set()
        left = list(steps)
        while left:
            x, cut = left.pop()
            if (id(x), cut) in seen:
                continue
            seen.add((id(x), cut))
            if self._is_again(x):
                left.extend(self._operands(x, cut))
            elif id(x) in self._params:
                needed[self._params[id(x)], cut] = None
        return list(needed)

    def rows(
        self, steps: Iterable[tuple[Any, Cut]], given: Mapping[tuple[int, Cut], jax.Array]
    ) -> list[jax.Array]:
        """The updates' rows.

        Args:
          steps: Leaves of the updates, each with its cut.
          given: The parameters' rows that `reads` told.

        Returns:
          The rows of each.
        """
        known: dict[tuple[int, Cut], Any] = {}

        def rows(x: Any, cut: Cut) -> Any:
            if jnp.ndim(x) == 0:
                return x
            key = id(x), cut
            if key not in known:
                if self._is_again(x):
                    operands = [rows(*operand) for operand in self._operands(x, cut)]
                    known[key] = _thinned(self._made[id(x)].eqn, operands, cut)
                elif id(x) in self._params:
                    known[key] = given[self._params[id(x)], cut]
                else:
                    known[key] = cut(x)
            return known[key]

        return [rows(*step) for step in steps]

    def _is_again(self, x: Any) -> bool:
        """Whether a value's rows are computed again, rather than read."""
        if id(x) not in self._again:
            made = None if id(x) in self._lasting else self._made.get(id(x))
            self._again[id(x)] = made is not None and all(map(self._is_readable, made.operands))
        return self._again[id(x)]

    def _is_readable(self, x: Any) -> bool:
        return id(x) not in self._expiring or jnp.ndim(x) == 0

    def _operands(self, x: Any, cut: Cut) -> list[tuple[Any, Cut]]:
        """What makes these rows of a value, each with its own rows."""
        eqn, operands, _ = self._made[id(x)]
        if eqn.primitive.name != "broadcast_in_dim":
            return [(one, cut) for one in operands]
        (operand,), dims = operands, eqn.params["broadcast_dimensions"]
        if cut.axis not in dims or operand.shape[dims.index(cut.axis)] == 1:
            return [(operand, WHOLE)]
        return [(operand, Cut(dims.index(cut.axis), cut.stride))]


class _Made(NamedTuple):
    """How a value was made; it is kept, lest another gets its identity."""

    eqn: JaxprEqn
    operands: Sequence[Any]
    value: Any


class _Recorder(Evaluator):
    """Evaluates, and remembers how what is elementwise was made."""

    def __init__(self) -> None:
        self.made: dict[int, _Made] = {}

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        results = super().apply(eqn, operands)
        if eqn.primitive.name in _AGAIN and _is_elementwise(eqn):
            self.made[id(results[0])] = _Made(eqn, operands, results[0])
        return results


def _is_elementwise(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name == "broadcast_in_dim":
        return len(eqn.invars) == 1  # of fixed shape
    shape = shape_of(eqn.outvars[0].aval)
    return bool(shape) and all(shape_of(x.aval) in ((), shape) for x in eqn.invars)


def _thinned(eqn: JaxprEqn, operands: Sequence[Any], cut: Cut) -> jax.Array:
    """An elementwise equation's result, given rows of its operands."""
    if eqn.primitive.name == "broadcast_in_dim":
        shape = cut.shape(eqn.params["shape"])
        return jax.lax.broadcast_in_dim(operands[0], shape, eqn.params["broadcast_dimensions"])
    return bind(eqn, operands)[0]
