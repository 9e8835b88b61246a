"""Evaluates a loss while changing what kernels put out, so that later layers see the change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Var

from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.program import Evaluator, Program

Adjust = Callable[[Site, jax.Array], tuple[jax.Array, Any]]


def adjusted_forward(
    program: Program, anatomy: Anatomy, adjust: Adjust, arguments: Sequence[Any]
) -> dict[int, Any]:
    """Runs the loss once, with every kernel's output replaced.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      adjust: `adjust(site, output)` of the kernel's output before its bias: returns what to put in
        its place, and anything to keep.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      By the sites' taps what was kept, loops' lengths leading.
    """
    sites = {site.output: site for site in anatomy.sites.values()}
    adjusted = _Adjusted(anatomy, sites, adjust)
    adjusted(program.closed.jaxpr, program.closed.consts, arguments)
    return adjusted.kept


class _Adjusted(Evaluator):
    def __init__(self, anatomy: Anatomy, sites: Mapping[Var, Site], adjust: Adjust) -> None:
        self.kept: dict[int, Any] = {}
        self._anatomy, self._sites, self._adjust = anatomy, sites, adjust

    def value(self, variable: Var, x: Any, environment: Mapping[Var, Any]) -> Any:
        del environment
        site = self._sites.get(variable)
        if site is None:
            return x
        y, self.kept[site.tap] = self._adjust(site, x)
        return y

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        if id(eqn) not in self._anatomy.loops:
            return super().scan(eqn, operands)

        def step(arguments: Sequence[Any], _: None) -> tuple[list[Any], Any]:
            inner = _Adjusted(self._anatomy, self._sites, self._adjust)
            return inner.body(eqn, arguments), inner.kept

        results, kept = self.loop(eqn, operands, None, step)
        self.kept.update(kept)
        return results
