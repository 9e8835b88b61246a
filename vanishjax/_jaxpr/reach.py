"""Backwards through a jaxpr: what reaches its outputs, and what does so with a gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.versions import called, open_jaxpr, scan_split

DEAD, VALUE, GRADIENT = range(3)  # how a variable reaches the loss
Levels: TypeAlias = tuple[int, ...]


class Reach:
    """Backwards through a jaxpr: which variables reach the loss, and which with a gradient."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, Levels], tuple[list[Levels], Levels]] = {}

    def __call__(self, jaxpr: Any, wanted: Levels) -> tuple[list[Levels], Levels]:
        """For levels `wanted` of the outputs: each equation's outputs', and the inputs'."""
        key = id(jaxpr), wanted
        if key not in self._known:
            found: dict[Var, int] = {}

            def mark(atoms: Iterable[Any], levels: Iterable[int]) -> None:
                for atom, level in zip(atoms, levels, strict=True):
                    if not isinstance(atom, Literal):
                        found[atom] = max(level, found.get(atom, DEAD))

            mark(jaxpr.outvars, wanted)
            outputs = []
            for eqn in reversed(jaxpr.eqns):
                outputs.append(tuple(min(found.get(v, DEAD), best(v)) for v in eqn.outvars))
                if any(outputs[-1]):
                    mark(eqn.invars, self.operands(eqn, outputs[-1]))
            reached = tuple(found.get(v, DEAD) for v in jaxpr.invars)
            self._known[key] = outputs[::-1], reached
        return self._known[key]

    def operands(self, eqn: JaxprEqn, outputs: Levels) -> Levels:
        """Levels of an equation's operands, given those of its outputs."""
        name, inner = eqn.primitive.name, called(eqn)
        if name == "stop_gradient":
            return (VALUE,)
        if name == "scan":
            return self(open_jaxpr(eqn.params["jaxpr"]), self.carried(eqn, outputs))[1]
        if name == "while":
            n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            body = self(open_jaxpr(eqn.params["body_jaxpr"]), self.carried(eqn, outputs))[1]
            condition = (VALUE,) * len(open_jaxpr(eqn.params["cond_jaxpr"]).invars)
            carry = tuple(map(max, body[n_body:], condition[n_cond:]))
            return condition[:n_cond] + body[:n_body] + carry
        if name == "cond":
            branches = [self(open_jaxpr(branch), outputs)[1] for branch in eqn.params["branches"]]
            return (VALUE, *map(max, zip(*branches, strict=True)))
        if inner is not None:
            return self(open_jaxpr(inner), outputs)[1]
        return (max(outputs),) * len(eqn.invars)

    def carried(self, eqn: JaxprEqn, outputs: Levels) -> Levels:
        """Levels of a loop body's outputs once what the next iteration wants is added."""
        if eqn.primitive.name == "scan":
            body, (first, count) = open_jaxpr(eqn.params["jaxpr"]), scan_split(eqn)
        else:
            body, first, count = (
                open_jaxpr(eqn.params["body_jaxpr"]),
                eqn.params["body_nconsts"],
                len(outputs),
            )
        while True:
            reached = self(body, outputs)[1][first : first + count]
            grown = tuple(map(max, outputs[:count], reached)) + outputs[count:]
            if grown == outputs:
                return outputs
            outputs = grown


def best(variable: Any) -> int:
    """The most a variable can carry back: no gradient flows through integers or booleans."""
    dtype = getattr(variable.aval, "dtype", None)
    return GRADIENT if dtype is None or jnp.issubdtype(dtype, jnp.inexact) else VALUE
