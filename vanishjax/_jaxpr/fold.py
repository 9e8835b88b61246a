"""Folds a program: what it computes twice is computed once, and what is alike side by side.

An optimizer does the same to each of a network's hundreds of arrays. Written out, that takes the
compiler minutes; with arrays of the same shape stacked, it takes as long as for a few of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from vanishjax._jaxpr.identity import arrays_in
from vanishjax._jaxpr.program import INLINED, on_device
from vanishjax._jaxpr.versions import bind, called, constants, open_jaxpr

Numbers = tuple[int, ...]  # of values


class Folded:
    """A folded program.

    Attributes:
      places: For each output of the program the array that holds it, of those that a call returns,
        and its row there.
      shapes: Of the arrays that a call returns.

    Example:
      >>> def program(a, b, c):
      ...     return jnp.sin(a), jnp.sin(b), jnp.sin(a), jnp.cos(c)
      >>> folded = Folded(jax.make_jaxpr(program)(jnp.ones(2), jnp.zeros(2), jnp.ones(3)))
      >>> folded.places
      ((0, 0), (0, 1), (0, 0), (1, 0))
      >>> [x.shape for x in folded(jnp.ones(2), jnp.zeros(2), jnp.ones(3))]
      [(2, 2), (1, 3)]
    """

    def __init__(self, closed: ClosedJaxpr) -> None:
        self._known: dict[int, Any] = {}  # constants, by value
        self._depths: list[int] = []  # of the values
        self._colors: list[int] = []
        self._palette: dict[Hashable, int] = {}
        # By equation and operands the results; by color and depth the operations.
        self._results: dict[Hashable, Numbers] = {}
        self._operations: dict[tuple[int, int], list[tuple[JaxprEqn, Numbers, Numbers]]] = {}
        self._constants: dict[Hashable, int] = {}
        self._texts: dict[int, tuple[Any, str]] = {}
        jaxpr = closed.jaxpr
        self._arguments = [self._value(0, ("argument", v.aval)) for v in jaxpr.invars]
        outputs = self._walk(jaxpr, closed.consts, self._arguments)
        self._groups = [self._operations[key] for key in sorted(self._operations)]
        homes = {
            number: (results, row)
            for group in self._groups
            if len(group) > 1
            for results in zip(*(results for _, _, results in group), strict=True)
            for row, number in enumerate(results)
        }
        arrays: dict[Numbers, int] = {}
        self.places = tuple(
            (arrays.setdefault(members, len(arrays)), row)
            for members, row in (homes.get(number, ((number,), 0)) for number in outputs)
        )
        self._outputs = tuple(arrays)
        avals = {array: v.aval for v, (array, _) in zip(jaxpr.outvars, self.places, strict=True)}
        self.shapes = tuple(
            jax.ShapeDtypeStruct((len(members), *avals[array].shape), avals[array].dtype)
            for members, array in arrays.items()
        )

    def __call__(self, *arguments: Any) -> list[jax.Array]:
        """Evaluates it.

        Args:
          arguments: The program's.

        Returns:
          Arrays of outputs that are alike, `[outputs, ...]` each.
        """
        values = _Values(self._known | dict(zip(self._arguments, arguments, strict=True)))
        for group in self._groups:
            values.apply(group)
        return [values.together(members) for members in self._outputs]

    def _walk(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[int]) -> list[int]:
        """Numbers the values of a jaxpr, calls written out; returns its outputs' numbers."""
        numbers: dict[Var, int] = dict(zip(jaxpr.invars, arguments, strict=True))
        numbers |= zip(jaxpr.constvars, map(self._constant, consts), strict=True)

        def number(atom: Any) -> int:
            return self._literal(atom) if isinstance(atom, Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            operands = tuple(map(number, eqn.invars))
            inner = called(eqn) if eqn.primitive.name in INLINED else None
            if inner is not None:
                results = self._walk(open_jaxpr(inner), constants(inner), operands)
            else:
                results = list(self._operation(eqn, operands))
            numbers.update(zip(eqn.outvars, results, strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def _operation(self, eqn: JaxprEqn, operands: Numbers) -> Numbers:
        # What has effects, such as printing, is done as often as it stands there.
        own: Hashable = id(eqn) if eqn.effects else self._text(eqn)
        if (own, operands) in self._results:
            return self._results[own, operands]
        depth = 1 + max((self._depths[x] for x in operands), default=0)
        color = self._color((own, tuple(self._colors[x] for x in operands)))
        results = tuple(self._value(depth, (color, i)) for i in range(len(eqn.outvars)))
        self._results[own, operands] = results
        # Operations of one color are as deep: none of them needs another's result.
        self._operations.setdefault((depth, color), []).append((eqn, operands, results))
        return results

    def _text(self, eqn: JaxprEqn) -> Hashable:
        """What an equation does, the same for those that do the same."""
        texts = []
        for name, value in eqn.params.items():
            # The same function, traced once, has one jaxpr: it's written out but once.
            if id(value) not in self._texts:
                self._texts[id(value)] = value, _text(value)
            texts.append((name, self._texts[id(value)][1]))
        return eqn.primitive.name, tuple(texts)

    def _value(self, depth: int, color: Hashable) -> int:
        self._depths.append(depth)
        self._colors.append(self._color(color))
        return len(self._depths) - 1

    def _color(self, key: Hashable) -> int:
        return self._palette.setdefault(key, len(self._palette))

    def _constant(self, x: Any) -> int:
        return self._known_value(("constant", id(x)), x)

    def _literal(self, literal: Any) -> int:
        if np.ndim(literal.val):
            return self._known_value(("constant", id(literal.val)), literal.val)
        # The bytes, since NaN isn't equal to itself, and -0 is equal to 0.
        text = np.asarray(literal.val).tobytes()
        return self._known_value(("literal", text, literal.aval), literal.val)

    def _known_value(self, key: Hashable, x: Any) -> int:
        if key not in self._constants:
            number = self._constants[key] = self._value(0, key)
            self._known[number] = on_device(x)
        return self._constants[key]


class _Values:
    """The values of one evaluation: singly, or as rows of arrays."""

    def __init__(self, singles: dict[int, Any]) -> None:
        self._singles = singles
        self._rows: dict[int, tuple[Numbers, int]] = {}
        self._arrays: dict[Numbers, jax.Array] = {}

    def apply(self, group: Sequence[tuple[JaxprEqn, Numbers, Numbers]]) -> None:
        """Carries out operations that are alike."""
        eqn = group[0][0]
        operands = list(zip(*(own for _, own, _ in group), strict=True))
        results = list(zip(*(own for _, _, own in group), strict=True))
        if len(group) == 1:
            found = bind(eqn, [self._single(one[0]) for one in operands])
            self._singles.update(zip((one[0] for one in results), found, strict=True))
            return
        shared = [len(set(numbers)) == 1 for numbers in operands]
        given = [
            self._single(numbers[0]) if one else self.together(numbers)
            for one, numbers in zip(shared, operands, strict=True)
        ]
        axes = [None if one else 0 for one in shared]
        found = jax.vmap(lambda *rows: bind(eqn, rows), axes)(*given)
        for numbers, x in zip(results, found, strict=True):
            self._arrays[numbers] = x
            self._rows.update((number, (numbers, row)) for row, number in enumerate(numbers))

    def together(self, numbers: Numbers) -> jax.Array:
        """An array of values, one a row."""
        if numbers not in self._arrays:
            homes = {self._rows[number][0] if number in self._rows else None for number in numbers}
            home = homes.pop()
            if homes or home is None:
                self._arrays[numbers] = jnp.stack([self._single(number) for number in numbers])
            else:
                rows = [self._rows[number][1] for number in numbers]
                self._arrays[numbers] = self._arrays[home][np.array(rows)]
        return self._arrays[numbers]

    def _single(self, number: int) -> Any:
        if number not in self._singles:
            numbers, row = self._rows[number]
            self._singles[number] = self._arrays[numbers][row]
        return self._singles[number]


def _text(value: Any) -> str:
    """A parameter of an equation as text; what that doesn't show is told apart by its identity."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    if isinstance(open_jaxpr(value), Jaxpr):
        return f"{value} {list(map(id, arrays_in(value)))}"
    if callable(value) or isinstance(value, np.ndarray | jax.Array):
        return f"{type(value).__name__} {id(value)}"
    return str(value)
