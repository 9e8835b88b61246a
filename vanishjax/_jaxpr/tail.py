"""What comes after a network's last kernels, as a function of what those put out."""

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
) -> tuple[Callable[[Any], Any], list[Any]] | None:
    """The loss if the last kernels put out the same for all inputs, as a function of that.

    What doesn't depend on it is computed once, here.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      The function of one output for each last kernel, and zeros of their shapes; None where the
      last kernel stands in a loop, or there is none.
    """
    sites = anatomy.last_sites
    if not sites:
        return None
    shapes = {site.output: shape_of(site.output.aval) for site in sites}
    before, after = _divide(program.closed.jaxpr, set(shapes))
    fixed: dict[Var, Any] = {}
    jaxpr = program.closed.jaxpr
    fixed.update(zip(jaxpr.constvars, map(on_device, program.closed.consts), strict=True))
    fixed.update(zip(jaxpr.invars, arguments, strict=True))
    _run(before, fixed)

    def tail(constants: Any) -> Any:
        outputs = map(jnp.broadcast_to, constants, shapes.values())
        environment = {**fixed, **dict(zip(shapes, outputs, strict=True))}
        _run(after, environment)
        (loss,) = jaxpr.outvars
        return loss.val if isinstance(loss, Literal) else environment[loss]

    return tail, [
        jnp.zeros(
            tuple(1 if axis in site.output_samples else n for axis, n in enumerate(shape)),
            dtype_of(site.output),
        )
        for site, shape in zip(sites, shapes.values(), strict=True)
    ]


def _divide(jaxpr: Any, starts: set[Var]) -> tuple[list[Any], list[Any]]:
    """The equations that the loss needs: those that don't depend on `starts`, and those that do."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if starts.intersection(eqn.outvars) or not needed.intersection(eqn.outvars):
            continue
        kept.append(eqn)
        needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    depends = set(starts)
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
