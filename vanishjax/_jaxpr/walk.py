"""The way back from the results of a program to what made the infinity or NaN that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from vanishjax._jaxpr.examine import Path, Record, inner_jaxprs
from vanishjax._jaxpr.versions import open_jaxpr, scan_split

INFINITE, NAN = 1, 2  # the worst that an array holds: its code


class Scope(NamedTuple):
    """A jaxpr that was evaluated, in one iteration of the loops around it."""

    jaxpr: Any
    record: Record
    makers: dict[int, Mapping[Any, tuple[int, int]]]  # of every jaxpr of the program
    path: Path = ()
    turns: tuple[int, ...] = ()
    order: tuple[int, ...] = ()  # of the path and the turns, in the order of execution
    calls: tuple[JaxprEqn, ...] = ()
    parent: Scope | None = None
    number: int = -1  # of the equation in the parent

    def code(self, atom: Any) -> int:
        """What a variable holds."""
        if isinstance(atom, Literal):
            value = np.asarray(atom.val)
            if value.dtype.kind not in "fcV":  # V: bfloat16 and the like
                return 0
            value = value.astype(np.complex128)
            return NAN if np.isnan(value).any() else INFINITE * int(np.isinf(value).any())
        number, place = self.maker(atom)
        if number < 0:
            return self._read(self.record.arguments[place])
        codes = self.record.equations[number][0]
        return self._read(codes[place]) if codes else self.code(self.jaxpr.eqns[number].invars[0])

    def operand_codes(self, number: int) -> list[int]:
        """What an equation's operands hold; of a choice, where they are taken."""
        taken = self.record.equations[number][1]
        if taken:
            return [0, *map(self._read, taken)]
        return [self.code(atom) for atom in self.jaxpr.eqns[number].invars]

    def result_code(self, number: int) -> int:
        """What an equation's results hold."""
        return max(map(self.code, self.jaxpr.eqns[number].outvars))

    def _read(self, code: Any) -> int:
        return 0 if isinstance(code, tuple) else int(np.asarray(code)[self.turns])

    def inside(self, number: int, branch: int = 0, turn: tuple[int, int] | None = None) -> Scope:
        """The jaxpr that an equation calls or runs; in a scan in one iteration: (index, order)."""
        eqn = self.jaxpr.eqns[number]
        inner = open_jaxpr(inner_jaxprs(eqn)[branch])
        path = (*self.path, number, *((branch,) if eqn.primitive.name == "cond" else ()))
        turns, order = self.turns, (*self.order, number)
        if turn is not None:
            turns, order = (*turns, turn[0]), (*order, turn[1])
        record = self.record.inner[number][branch]
        calls = (*self.calls, eqn)
        return Scope(inner, record, self.makers, path, turns, order, calls, self, number)

    def maker(self, variable: Any) -> tuple[int, int]:
        """The equation that makes a variable, -1 for an argument, and its place in the results."""
        key = id(self.jaxpr)
        if key not in self.makers:
            found = {v: (-1, i) for i, v in enumerate([*self.jaxpr.constvars, *self.jaxpr.invars])}
            for number, eqn in enumerate(self.jaxpr.eqns):
                found |= {v: (number, i) for i, v in enumerate(eqn.outvars)}
            self.makers[key] = found
        return self.makers[key][variable]


class Walk:
    """From the results back to all equations that made what they hold.

    Attributes:
      made: Equations that made infinity or NaN of numbers.
      made_of_infinity: Those that made NaN of infinity.
      made_of_constants: Those that a constant went into that isn't finite.
    """

    def __init__(self, scope: Scope) -> None:
        self.made: list[tuple[Scope, int]] = []
        self.made_of_infinity: list[tuple[Scope, int]] = []
        self.made_of_constants: list[tuple[Scope, int]] = []
        self._seen: set[Any] = set()
        self._waiting: list[tuple[Scope, Any, tuple[Scope, int] | None]] = []
        for atom in scope.jaxpr.outvars:
            self._follow(scope, atom, None)
        while self._waiting:
            self._visit(*self._waiting.pop())

    def _follow(self, scope: Scope, atom: Any, reader: tuple[Scope, int] | None) -> None:
        if not scope.code(atom):
            return
        if isinstance(atom, Literal):
            self.made_of_constants += [reader] if reader is not None else []
            return
        key = scope.path, scope.turns, atom
        if key not in self._seen:
            self._seen.add(key)
            self._waiting.append((scope, atom, reader))

    def _visit(self, scope: Scope, atom: Any, reader: tuple[Scope, int] | None) -> None:
        number, place = scope.maker(atom)
        if number < 0:
            self._leave(scope, place, reader)
            return
        entered = self._enter(scope, number, place)
        if entered is not None and entered[0].code(entered[1]):
            self._follow(*entered, reader)
            return
        codes, result = scope.operand_codes(number), scope.result_code(number)
        wanted = [code == NAN for code in codes] if result == NAN else codes
        if result == NAN and not any(wanted):
            wanted = codes
            if any(codes):
                self.made_of_infinity.append((scope, number))
        if not any(wanted):
            self.made.append((scope, number))
        for operand, code in zip(scope.jaxpr.eqns[number].invars, wanted, strict=True):
            if code:
                self._follow(scope, operand, (scope, number))

    def _enter(self, scope: Scope, number: int, place: int) -> tuple[Scope, Any] | None:
        """The variable inside an equation's own jaxpr that a result of it is."""
        eqn = scope.jaxpr.eqns[number]
        inner = inner_jaxprs(eqn)
        if not inner:
            return None
        name = eqn.primitive.name
        if name == "scan":
            length = eqn.params["length"]
            _, count = scan_split(eqn)
            turns = range(length)[:: -1 if eqn.params["reverse"] else 1]
            if place < count:
                turns = turns[-1:]
            for order, turn in enumerate(turns, length - len(turns)):
                found = scope.inside(number, turn=(turn, order))
                if found.code(found.jaxpr.outvars[place]):
                    return found, found.jaxpr.outvars[place]
            return None
        for branch in range(len(inner)):
            found = scope.inside(number, branch)
            if found.code(found.jaxpr.outvars[place]):
                return found, found.jaxpr.outvars[place]
        return None

    def _leave(self, scope: Scope, place: int, reader: tuple[Scope, int] | None) -> None:
        """From an argument of a jaxpr to what was handed to it."""
        place -= len(scope.jaxpr.constvars)
        if place < 0 and reader is not None:
            self.made_of_constants.append(reader)
        if place < 0 or scope.parent is None:
            return
        parent, eqn = scope.parent, scope.calls[-1]
        offset = 0
        if eqn.primitive.name == "cond":
            offset = 1
        elif eqn.primitive.name == "while":
            offset = eqn.params["cond_nconsts"]
        elif eqn.primitive.name == "scan":
            first, count = scan_split(eqn)
            order = scope.order[-1]
            if first <= place < first + count and order:
                turn = scope.turns[-1] + (1 if eqn.params["reverse"] else -1)
                before = parent.inside(scope.number, turn=(turn, order - 1))
                self._follow(before, before.jaxpr.outvars[place - first], reader)
                return
        self._follow(parent, eqn.invars[place + offset], reader)
