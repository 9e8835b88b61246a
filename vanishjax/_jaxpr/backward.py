"""What a gradient's infinity or NaN has to do with the program forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Var

from vanishjax._jaxpr.examine import inner_jaxprs
from vanishjax._jaxpr.origin import Step, place_of, run_codes, steps_of, user_place
from vanishjax._jaxpr.program import Program, flatten
from vanishjax._jaxpr.versions import Place, called_back, open_jaxpr


def is_dropped(closed: ClosedJaxpr, arguments: Sequence[Any], step: Step) -> bool:
    """Whether a choice, as of a `where`, drops the infinity that an operation makes forward.

    Args:
      closed: The program forward, its result finite.
      arguments: Its arguments.
      step: The operation, of the gradient's program.

    Returns:
      The answer; False where the program forward has no such operation on that line.
    """
    flat = flatten(Program(closed, (), 0)).closed
    name, place = step.equation.primitive.name, user_place(step)
    return _drops(flat.jaxpr, run_codes(flat, arguments), name, place)


def _drops(jaxpr: Any, record: Any, name: str, place: Place | None) -> bool:
    infinite: set[Var] = set()  # what came of the operation, and is infinite
    for number, eqn in enumerate(jaxpr.eqns):
        results, taken = record.equations[number]
        fed = [isinstance(atom, Var) and atom in infinite for atom in eqn.invars]
        if any(one and not np.any(code) for one, code in zip(fed[1:], taken, strict=False)):
            return True
        for branch, inner in enumerate(inner_jaxprs(eqn)):
            if _drops(open_jaxpr(inner), record.inner[number][branch], name, place):
                return True
        # Inside a jitted function there may be no line of the user's.
        makes = eqn.primitive.name == name and place_of(eqn) in (place, None)
        # What only moves what goes in has no code of its own.
        if (makes or any(fed)) and (not results or any(map(np.any, results))):
            infinite |= set(eqn.outvars)
    return False


def rule_step(step: Step, gradient: ClosedJaxpr, call: Step) -> Step | None:
    """The operation in the rule of a `custom_vjp` that one of the gradient's program is.

    JAX gives all of the rule the line of the call. Traced alone, the rule has lines of its own.

    Args:
      step: An operation of the gradient's program, on the line of a call.
      gradient: That program.
      call: The call, of the program forward.

    Returns:
      The same operation, with the line in the rule; None if it can't be told.
    """
    rule = called_back(call.equation)
    if rule is None:
        return None
    place = user_place(step)
    here = [one for one, _ in steps_of(gradient.jaxpr) if _alike(one, step)]
    here = [one for one in here if user_place(one) == place]
    own = [one for one, _ in steps_of(rule.jaxpr) if _alike(one, step)]
    at = next((i for i, one in enumerate(here) if one.equation is step.equation), None)
    if at is None or not own:
        return None
    # The rule runs last, and several calls may stand on one line.
    return own[(at - len(here)) % len(own)]


def _alike(a: Step, b: Step) -> bool:
    return a.equation.primitive is b.equation.primitive and [
        v.aval for v in a.equation.outvars
    ] == [v.aval for v in b.equation.outvars]
