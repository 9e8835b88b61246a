"""What a loss's kernels take in: the data as it is where it meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.program import Evaluator, Program
from vanishjax._jaxpr.versions import shape_of


def kernel_inputs(program: Program, anatomy: Anatomy, arguments: Sequence[Any]) -> dict[int, Any]:
    """Runs the loss once and keeps what its kernels take in.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      By the kernel's number among the leaves `[..., inputs]`. Kernels inside loops aren't there,
      nor are those that meet the data in anything but a product along one axis.
    """
    sites = {site.output: site for site in anatomy.sites.values() if not anatomy.lengths[site.tap]}
    looking = _Looking(sites)
    looking(program.closed.jaxpr, program.closed.consts, arguments)
    return looking.seen


class _Looking(Evaluator):
    def __init__(self, sites: Mapping[Var, Site]) -> None:
        self.seen: dict[int, Any] = {}
        self._sites = sites

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        site = self._sites.get(eqn.outvars[0]) if eqn.outvars else None
        if site is not None and eqn.primitive.name == "dot_general":
            contracted, (batched, _) = eqn.params["dimension_numbers"]
            left = len(shape_of(eqn.invars[0].aval)) - len(contracted[0])
            # Where the data's axes come in the output tells on which side it stands.
            side = 0 if site.output_samples == tuple(range(left)) else 1
            if len(contracted[side]) == 1 and not batched:
                self.seen[site.leaf] = jnp.moveaxis(operands[side], contracted[side][0], -1)
        return super().apply(eqn, operands)
