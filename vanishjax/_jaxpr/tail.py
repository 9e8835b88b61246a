"""What comes after a network's last kernel, as a function of what that kernel puts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal, Var

from vanishjax._jaxpr.anatomy import Anatomy
from vanishjax._jaxpr.program import Program, on_device
from vanishjax._jaxpr.versions import bind, dtype_of, shape_of


def constant_tail(
    program: Program, anatomy: Anatomy, arguments: Sequence[Any]
) -> tuple[Callable[[Any], Any], Any] | None:
    """The loss if the last kernel put out the same for all inputs, as a function of that.

    What doesn't depend on it is computed once, here.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      The function of one output, and zeros of its shape; None where the last kernel stands in a
      loop, or none does.
    """
    site = anatomy.last_site
    if site is None:
        return None
    shape = shape_of(site.output.aval)
    one = tuple(1 if axis in site.output_samples else n for axis, n in enumerate(shape))
    before, after = _divide(program.closed.jaxpr, site.output)
    fixed: dict[Var, Any] = {}
    jaxpr = program.closed.jaxpr
    fixed.update(zip(jaxpr.constvars, map(on_device, program.closed.consts), strict=True))
    fixed.update(zip(jaxpr.invars, arguments, strict=True))
    _run(before, fixed)

    def tail(constant: Any) -> Any:
        environment = {**fixed, site.output: jnp.broadcast_to(constant, shape)}
        _run(after, environment)
        (loss,) = jaxpr.outvars
        return loss.val if isinstance(loss, Literal) else environment[loss]

    return tail, jnp.zeros(one, dtype_of(site.output))


def _divide(jaxpr: Any, start: Var) -> tuple[list[Any], list[Any]]:
    """The equations that the loss needs: those that don't depend on `start`, and those that do."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if start in eqn.outvars or not needed.intersection(eqn.outvars):
            continue
        kept.append(eqn)
        needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    depends = {start}
    before, after = [], []
    for eqn in reversed(kept):
        if depends.intersection(v for v in eqn.invars if not isinstance(v, Literal)):
            depends.update(eqn.outvars)
            after.append(eqn)
        else:
            before.append(eqn)
    return before, after


def _run(equations: Sequence[Any], environment: dict[Var, Any]) -> None:
    for eqn in equations:
        operands = [
            on_device(atom.val) if isinstance(atom, Literal) else environment[atom]
            for atom in eqn.invars
        ]
        environment.update(zip(eqn.outvars, bind(eqn, operands), strict=True))
