"""Largest and least entries, with a gradient that stands it if they are computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from vanishjax._jaxpr.versions import bind, dtype_of

_EXTREMA = ("reduce_max", "reduce_min")
# So many epsilons of itself a number may be away from the same one, computed anew.
_APART = 100


def is_extremum(eqn: JaxprEqn) -> bool:
    """Whether an equation takes the largest or the least of real numbers."""
    known = eqn.primitive.name in _EXTREMA
    return known and bool(jnp.issubdtype(dtype_of(eqn.invars[0]), jnp.floating))


def extremum(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """What such an equation does; its gradient is shared by all that are, but for rounding, it.

    JAX gives it to those that are equal to the result. Where XLA computes the operand a second time
    to compare it, as it does in programs that it doesn't optimize, that rounds in another way: none
    is equal, and the gradient is divided by 0.

    Args:
      eqn: The equation.
      operands: What it takes.

    Returns:
      Its one result.
    """

    @jax.custom_jvp
    def taken(x: Any) -> Any:
        (result,) = bind(eqn, [x])
        return result

    @taken.defjvp
    def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        (x,), (tangent,) = primals, tangents
        axes, result = eqn.params["axes"], taken(x)
        there = jnp.expand_dims(result, axes)
        near = jnp.abs(x - there) <= _APART * jnp.finfo(x.dtype).eps * jnp.abs(there)
        near |= x == there  # infinity is
        count = jnp.maximum(jnp.sum(near, axes, dtype=x.dtype), 1)
        return result, jnp.sum(jnp.where(near, tangent, 0), axes) / count

    return [taken(*operands)]
