"""How data and gradients flow through one jaxpr: a loss, or the body of a loop in it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.reach import GRADIENT, Levels, Reach
from vanishjax._jaxpr.versions import is_key, open_jaxpr, scan_split


class Frame(NamedTuple):
    """A jaxpr with what is known of its inputs and outputs.

    Attributes:
      jaxpr: The jaxpr.
      wanted: How its outputs reach the loss.
      data: For each input, whether it depends on the data.
      descends: For each input, whether it depends on the output of a site.
      constants_are_data: Whether the arrays that the loss closes over are the data.
    """

    jaxpr: Any
    wanted: Levels
    data: tuple[bool, ...]
    descends: tuple[bool, ...]
    constants_are_data: bool


class Flow(NamedTuple):
    """What becomes of a frame's inputs.

    Attributes:
      frame: The frame.
      outputs: For each equation how its outputs reach the loss.
      operands: The same of its operands.
      data: The variables that depend on the data.
      descends: Those that depend on the output of a site.
    """

    frame: Frame
    outputs: list[Levels]
    operands: list[Levels]
    data: set[Var]
    descends: set[Var]

    def readers(self) -> dict[Var, list[int]]:
        """For each variable the equations that carry gradient back to it; -1 for the outside."""
        readers: dict[Var, list[int]] = {}
        for index, eqn in enumerate(self.frame.jaxpr.eqns):
            for variable in _with_gradient(eqn.invars, self.operands[index]):
                readers.setdefault(variable, []).append(index)
        for variable in _with_gradient(self.frame.jaxpr.outvars, self.frame.wanted):
            readers.setdefault(variable, []).append(-1)
        return readers

    def lifetimes(self, readers: Mapping[Var, Sequence[int]]) -> dict[Var, float]:
        """For each variable that carries gradient to a site, the last equation that reads it."""
        return {
            variable: math.inf if indices[-1] < 0 else indices[-1]
            for variable, indices in readers.items()
            if variable in self.descends
        }


def flow_through(frame: Frame, sites: Collection[int], reach: Reach) -> Flow:
    """Follows the data and the sites' outputs through a frame.

    Args:
      frame: The frame.
      sites: Identities of the equations that are sites.
      reach: How variables reach the loss.

    Returns:
      The flow.
    """
    jaxpr = frame.jaxpr
    data = {v for v, one in zip(jaxpr.invars, frame.data, strict=True) if one}
    descends = {v for v, one in zip(jaxpr.invars, frame.descends, strict=True) if one}
    if frame.constants_are_data:
        data |= {v for v in jaxpr.constvars if v.aval.ndim > 0 or is_key(v.aval)}
    outputs = reach(jaxpr, frame.wanted)[0]
    operands = []
    for eqn, levels in zip(jaxpr.eqns, outputs, strict=True):
        operands.append(reach.operands(eqn, levels) if any(levels) else (0,) * len(eqn.invars))
        if eqn.primitive.name == "scan":
            so_far = Flow(frame, outputs, operands, data, descends)
            ends = _ends(loop_body(eqn, levels, so_far, sites, reach), sites, reach)
            data.update(v for v, one in zip(eqn.outvars, ends[0], strict=True) if one)
            descends.update(v for v, one in zip(eqn.outvars, ends[1], strict=True) if one)
            continue
        if any(among(eqn, data)):
            data.update(eqn.outvars)
        if id(eqn) in sites or any(among(eqn, descends)):
            descends.update(eqn.outvars)
    return Flow(frame, outputs, operands, data, descends)


def loop_body(
    eqn: JaxprEqn, levels: Levels, flow: Flow, sites: Collection[int], reach: Reach
) -> Frame:
    """A scan's body, its carried values known to be what they become once it has gone round."""
    first, count = scan_split(eqn)
    data, descends = among(eqn, flow.data), among(eqn, flow.descends)

    def round_again(inside: tuple[bool, ...], ends: Sequence[bool]) -> tuple[bool, ...]:
        carry = (a or b for a, b in zip(inside[first : first + count], ends[:count], strict=True))
        return (*inside[:first], *carry, *inside[first + count :])

    while True:
        body = Frame(
            open_jaxpr(eqn.params["jaxpr"]),
            reach.carried(eqn, levels),
            data,
            descends,
            flow.frame.constants_are_data,
        )
        ends = _ends(body, sites, reach)
        grown = round_again(data, ends[0]), round_again(descends, ends[1])
        if grown == (data, descends):
            return body
        data, descends = grown


def among(eqn: JaxprEqn, variables: set[Var]) -> tuple[bool, ...]:
    """For each operand, whether it is one of the variables."""
    return tuple(not isinstance(atom, Literal) and atom in variables for atom in eqn.invars)


def _ends(frame: Frame, sites: Collection[int], reach: Reach) -> tuple[list[bool], list[bool]]:
    flow = flow_through(frame, sites, reach)
    ends = [atom if not isinstance(atom, Literal) else None for atom in frame.jaxpr.outvars]
    return [v in flow.data for v in ends], [v in flow.descends for v in ends]


def _with_gradient(atoms: Sequence[Any], levels: Levels) -> list[Var]:
    pairs = zip(atoms, levels, strict=True)
    return [a for a, level in pairs if level == GRADIENT and not isinstance(a, Literal)]
