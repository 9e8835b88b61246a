"""What loops keep: how much of a value gates hand on, and what is added to it in a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax import numerics
from vanishjax._jaxpr.cells import Cell, Gate, slope
from vanishjax._jaxpr.output import PRODUCTS
from vanishjax._jaxpr.program import Evaluator, Program
from vanishjax._jaxpr.versions import bind, scan_split, shape_of


def kept_by(program: Program, gates: Sequence[Gate], arguments: Sequence[Any]) -> list[jax.Array]:
    """How much more of a carried value a step keeps, the larger a gate's arguments are.

    Args:
      program: The loss, flattened.
      gates: The sigmoids.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      For each `[units]`, summed over all else: positive, negative, or 0 of what is no gate on what
      its own loop hands on.
    """
    loops: dict[int, list[JaxprEqn]] = {}
    for gate in gates:
        loops.setdefault(id(gate.loop), []).append(gate.sigmoid)
    run = _Keeping(loops)
    run(program.closed.jaxpr, program.closed.consts, arguments)
    return [run.found.get(id(gate.sigmoid), jnp.zeros(gate.units)) for gate in gates]


def summed(
    program: Program, variables: Mapping[Var, JaxprEqn], arguments: Sequence[Any]
) -> dict[Var, jax.Array]:
    """The sums of what variables hold in the first two steps of their loops, as if each began anew.

    Args:
      program: The loss, flattened.
      variables: In the body of which loop each of them stands.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      The sums. In their gradient counts what is added to the variables in a step, no step before.
    """
    run = _Summing(variables)
    run(program.closed.jaxpr, program.closed.consts, arguments)
    return run.found


def fed(program: Program, cells: Sequence[Cell], arguments: Sequence[Any]) -> list[jax.Array]:
    """What is added to a cell's product with the value before, in all steps.

    Args:
      program: The loss, flattened.
      cells: The cells.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      For each an array, the axes of loops first, with what the kernel makes of other features.
      Nothing that came of steps before counts in its derivative.
    """
    run = _Feeding(cells, cut=True)
    run(program.closed.jaxpr, program.closed.consts, arguments)
    return [run.found[cell.argument][0] for cell in cells]


class Response(NamedTuple):
    """What goes on in a cell over all steps and examples, for each of its stacked kernels.

    Attributes:
      fed: The mean of what is added to its product: `[*stack, units]`.
      spread: The root mean square of what is added, less its mean: `[*stack]`.
      slope: The root mean square of the activation's slope: `[*stack]`.
    """

    fed: jax.Array
    spread: jax.Array
    slope: jax.Array


def responses(
    program: Program, cells: Sequence[Cell], stacks: Sequence[int], arguments: Sequence[Any]
) -> list[Response]:
    """What goes on in cells.

    Args:
      program: The loss, flattened.
      cells: The cells.
      stacks: Along how many axes the kernel of each is stacked.
      arguments: The parameters' leaves, then the batch's arrays.
    """
    run = _Feeding(cells, cut=False)
    run(program.closed.jaxpr, program.closed.consts, arguments)
    found = []
    for cell, stack in zip(cells, stacks, strict=True):
        added, slopes = run.found[cell.argument]
        samples = tuple(range(stack, added.ndim - 1))
        own = (*samples, added.ndim - 1)
        mean = jnp.mean(added, axis=samples, keepdims=True)
        spread, slope = (numerics.rms(x, axes=own) for x in (added - mean, slopes))
        found.append(Response(jnp.squeeze(mean, samples), spread, slope))
    return found


class _Keeping(Evaluator):
    """Notes for each gate what a larger argument keeps of the values of its own loop."""

    def __init__(self, loops: Mapping[int, Sequence[JaxprEqn]]) -> None:
        self.found: dict[int, jax.Array] = {}
        self._loops = loops

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        def step(arguments: Sequence[Any], _: None) -> tuple[list[Any], dict[int, jax.Array]]:
            inner = _Keeping(self._loops)
            outputs = inner.body(eqn, arguments)
            sigmoids = self._loops.get(id(eqn), ())
            return outputs, inner.found | _shares(eqn, sigmoids, arguments)

        results, found = self.loop(eqn, operands, None, step)
        self.found |= {number: jnp.sum(share, axis=0) for number, share in found.items()}
        return results


def _shares(
    loop: JaxprEqn, sigmoids: Sequence[JaxprEqn], arguments: Sequence[Any]
) -> dict[int, jax.Array]:
    """For each sigmoid the derivative of what one step keeps of what it was handed."""
    if not sigmoids:
        return {}
    first, count = scan_split(loop)
    own = {id(eqn): number for number, eqn in enumerate(sigmoids)}
    carried = [
        place
        for place in range(first, first + count)
        if jnp.issubdtype(arguments[place].dtype, jnp.floating)
    ]

    def kept(deltas: list[jax.Array]) -> jax.Array:
        total = jnp.zeros(())
        for place in carried:

            def handed_on(x: Any, place: int = place) -> Any:
                taken = [*arguments[:place], x, *arguments[place + 1 :]]
                return _Loose(own, deltas).body(loop, taken)[place - first]

            x = arguments[place]
            _, share = jax.jvp(handed_on, (x,), (jnp.ones_like(x),))
            total = total + jnp.sum(share.astype(jnp.float32))
        return total

    zeros = [jnp.zeros(shape_of(eqn.outvars[0].aval)[-1]) for eqn in sigmoids]
    slopes = jax.grad(kept)(zeros)
    return {id(eqn): slope for eqn, slope in zip(sigmoids, slopes, strict=True)}


class _Loose(Evaluator):
    """Evaluates a loop's body with sigmoids' arguments moved; nothing gets through products."""

    def __init__(self, own: Mapping[int, int], deltas: Sequence[jax.Array]) -> None:
        self._own, self._deltas = own, deltas

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        number = self._own.get(id(eqn))
        if number is not None:
            (x,) = operands
            operands = [jax.lax.stop_gradient(x) + self._deltas[number].astype(x.dtype)]
        results = bind(eqn, operands)
        if eqn.primitive.name in PRODUCTS:
            return [jax.lax.stop_gradient(x) for x in results]
        return results


class _Summing(Evaluator):
    """Sums what variables hold in the first two steps of the loops in whose bodies they stand."""

    def __init__(self, variables: Mapping[Var, JaxprEqn]) -> None:
        self.found: dict[Var, jax.Array] = {}
        self._variables = variables

    def value(self, variable: Var, x: Any, environment: Mapping[Var, Any]) -> Any:
        del environment
        if variable in self._variables:
            self.found[variable] = jnp.sum(x.astype(jnp.float32))
        return x

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        own = {v for v, loop in self._variables.items() if loop is eqn}
        # Two tell what is added in each: many that are alike would be lost in a 16-bit sum.
        first = jnp.zeros(eqn.params["length"]).at[:2].set(1.0)

        def step(arguments: Sequence[Any], weight: Any) -> tuple[list[Any], dict[int, jax.Array]]:
            inner = _Summing(self._variables)
            outputs = inner.body(eqn, _cut(eqn, arguments))
            found = {v: weight * x if v in own else x for v, x in inner.found.items()}
            return outputs, _numbered(found, self._variables)

        results, found = self.loop(eqn, operands, first, step)
        self.found |= {v: jnp.sum(x) for v, x in _named(found, self._variables).items()}
        return results


class _Feeding(Evaluator):
    """Keeps for each cell's argument what was added, and the activation's slope there."""

    def __init__(self, cells: Collection[Cell], *, cut: bool) -> None:
        self.found: dict[Var, tuple[jax.Array, ...]] = {}
        self._cells, self._cut = cells, cut
        self._own = {cell.argument: cell for cell in cells}

    def value(self, variable: Var, x: Any, environment: Mapping[Var, Any]) -> Any:
        cell = self._own.get(variable)
        if cell is not None:
            operands = [
                v.val if isinstance(v, Literal) else environment[v] for v in cell.product.invars
            ]
            ((axis,), _) = (sides[cell.side] for sides in cell.product.params["dimension_numbers"])
            features = jax.lax.broadcasted_iota(int, operands[cell.side].shape, axis)
            own = (features >= cell.first) & (features < cell.first + cell.units)
            operands[cell.side] = jnp.where(own, operands[cell.side], 0)
            (kept,) = bind(cell.product, operands)
            added = numerics.upcast(x) - numerics.upcast(kept)
            self.found[variable] = added, numerics.upcast(slope(cell, x))
        return x

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        def step(arguments: Sequence[Any], _: None) -> tuple[list[Any], Any]:
            inner = _Feeding(self._cells, cut=self._cut)
            outputs = inner.body(eqn, _cut(eqn, arguments) if self._cut else arguments)
            return outputs, _numbered(inner.found, self._own)

        results, found = self.loop(eqn, operands, None, step)
        self.found |= _named(found, self._own)
        return results


def _cut(loop: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """A step's arguments, without a derivative with respect to what the step before handed on."""
    first, count = scan_split(loop)
    own = range(first, first + count)
    return [jax.lax.stop_gradient(x) if i in own else x for i, x in enumerate(arguments)]


# Variables can't be sorted, as the keys of a tree must be.
def _numbered(found: Mapping[Var, Any], order: Mapping[Var, Any]) -> dict[int, Any]:
    return {number: found[v] for number, v in enumerate(order) if v in found}


def _named(found: Mapping[int, Any], order: Mapping[Var, Any]) -> dict[Var, Any]:
    variables = list(order)
    return {variables[number]: x for number, x in found.items()}
