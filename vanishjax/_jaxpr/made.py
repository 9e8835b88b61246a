"""Kernels that are made of parameters before the data meets them, as by weight normalization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Var

from vanishjax import numerics
from vanishjax._jaxpr.adjustment import adjusted_forward
from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.output import MOVES
from vanishjax._jaxpr.program import Program
from vanishjax._jaxpr.uses import Trace
from vanishjax._jaxpr.versions import open_jaxpr

# What leaves a kernel's numbers what they are.
_SAME = MOVES | {
    "copy",
    "dynamic_slice",
    "expand_dims",
    "gather",
    "optimization_barrier",
    "reduce_precision",
    "rev",
    "slice",
}


def made_kernels(program: Program, trace: Trace) -> frozenset[int]:
    """The parameters that meet the data as something else than themselves, moved or cast.

    Args:
      program: The loss.
      trace: The uses of its parameters.

    Returns:
      Their numbers. One inside a function that isn't looked into may be among them.
    """
    jaxpr = program.closed.jaxpr
    numbers = range(len(program.ranks))
    met = set(_met(jaxpr, {jaxpr.invars[number]: frozenset({number}) for number in numbers}))
    return frozenset(
        use.leaf
        for use in trace.uses
        if use.matrix is not None and (use.leaf, id(use.equation)) not in met
    )


def _met(jaxpr: Any, same: dict[Var, frozenset[int]]) -> Iterator[tuple[int, int]]:
    """Parameters and the equations that take them in as they are, moved or cast at most."""
    for eqn in jaxpr.eqns:
        taken = [same.get(atom) for atom in eqn.invars if not isinstance(atom, Literal)]
        own = frozenset[int]().union(*(one for one in taken if one))
        if not own:
            continue
        yield from ((number, id(eqn)) for number in own)
        if eqn.primitive.name in _SAME:
            same |= dict.fromkeys(eqn.outvars, own)
        elif eqn.primitive.name == "scan":
            body = open_jaxpr(eqn.params["jaxpr"])
            inside = {
                one: same[atom]
                for one, atom in zip(body.invars, eqn.invars, strict=True)
                if not isinstance(atom, Literal) and atom in same
            }
            yield from _met(body, inside)


def degrees(
    program: Program,
    anatomy: Anatomy,
    scaled: frozenset[int],
    leaves: Sequence[jax.Array],
    inputs: Sequence[jax.Array],
) -> dict[int, jax.Array]:
    r"""With what power each kernel's output grows with some parameters, all else left as it is.

    Measured at twice the parameters: :math:`y(2 w) = 2^p y(w)`.

    Args:
      program: The loss.
      anatomy: Where its kernels meet the data.
      scaled: The numbers of the parameters.
      leaves: The parameters.
      inputs: The batch's arrays.

    Returns:
      By the sites' taps, loops' lengths leading: 1 for a kernel as it is, 0 for one that is
      normalized; NaN where it puts out nothing.
    """

    def sizes(factor: float) -> dict[int, jax.Array]:
        def keep(_: Site, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            size = numerics.rms(y)
            # What comes after sees the same, whatever the size was.
            return (y / jnp.where(size > 0, size, 1.0)).astype(y.dtype), size

        own = [factor * x if number in scaled else x for number, x in enumerate(leaves)]
        return adjusted_forward(program, anatomy, keep, [*own, *inputs])

    before, after = sizes(1.0), sizes(2.0)
    return {tap: jnp.log2(after[tap] / before[tap]) for tap in before}
