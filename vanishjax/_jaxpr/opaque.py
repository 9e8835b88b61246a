"""What can't be looked into: functions with their own derivatives, choices, solvers, callbacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from vanishjax._jaxpr.activation import is_scalar
from vanishjax._jaxpr.examine import inner_jaxprs
from vanishjax._jaxpr.paths import Paths
from vanishjax._jaxpr.uses import CLOSED
from vanishjax._jaxpr.values import Use
from vanishjax._jaxpr.versions import open_jaxpr

_OPAQUE = CLOSED | {"cond", "custom_vjp_call", "custom_vjp_call_jaxpr"}


class Opaque(NamedTuple):
    """An equation that can't be looked into.

    Attributes:
      equation: The equation.
      taps: Those on kernels' outputs that it takes in, with no other kernel in between.
      leaves: The parameters that are kernels inside it.
    """

    equation: JaxprEqn
    taps: tuple[int, ...]
    leaves: tuple[int, ...]


def is_opaque(eqn: JaxprEqn) -> bool:
    """Whether an equation can't be looked into; an activation with its own derivative can."""
    return eqn.primitive.name in _OPAQUE and not is_scalar(eqn)


def opaque_ones(
    nodes: Mapping[int, JaxprEqn], paths: Paths, sites: Sequence[int], kernels: Mapping[int, Use]
) -> tuple[Opaque, ...]:
    """Those of some equations that stand between kernels.

    Args:
      nodes: The equations, by the node of a result.
      paths: The graph.
      sites: Numbers of the taps that stand on kernels' outputs.
      kernels: The uses of kernels, by the identity of their equation.
    """
    feeding = paths.feeding(list(nodes), sites)
    return tuple(
        Opaque(eqn, taps, tuple(sorted({kernels[one].leaf for one in _inside(eqn) & set(kernels)})))
        for eqn, taps in zip(nodes.values(), feeding, strict=True)
        if taps
    )


def _inside(eqn: JaxprEqn) -> set[int]:
    """Identities of the equations inside one."""

    def walk(eqn: JaxprEqn) -> Iterator[int]:
        for inner in inner_jaxprs(eqn):
            for one in open_jaxpr(inner).eqns:
                yield id(one)
                yield from walk(one)

    return set(walk(eqn))
