"""Whether two programs are the same one, traced twice."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from vanishjax._jaxpr.versions import constants, inner_jaxprs, open_jaxpr


def identity(jaxpr: Any) -> Hashable | None:
    """What tells a program from all that compute anything else.

    Args:
      jaxpr: A closed jaxpr.

    Returns:
      Its text, and a hash of the arrays that it holds, which the text hides or cuts short; None
      where even the two don't tell: functions of the host are written by their addresses, and of
      keys and of what is being traced nobody sees the values.

    Example:
      >>> import functools
      >>> one, same, other = (
      ...     identity(jax.make_jaxpr(functools.partial(jnp.multiply, y))(1.0)) for y in (2, 2, 3)
      ... )
      >>> one == same, one == other
      (True, False)
    """
    text = str(jaxpr)
    if "0x" in text:
        return None
    seen = hashlib.sha256()
    for x in arrays_in(jaxpr):
        if isinstance(x, jax.core.Tracer) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return None
        values = np.asarray(x)
        seen.update(f"{values.dtype}{values.shape}".encode())
        seen.update(values.tobytes())
    return text, seen.digest()


def arrays_in(jaxpr: Any) -> Iterator[Any]:
    """The arrays that a jaxpr holds, at any depth: constants, and parameters of its equations."""
    yield from constants(jaxpr)
    for eqn in open_jaxpr(jaxpr).eqns:
        yield from (a.val for a in eqn.invars if isinstance(a, Literal) and np.ndim(a.val))
        values = jax.tree.leaves(list(eqn.params.values()))
        yield from (x for x in values if isinstance(x, np.ndarray | jax.Array))
        for one in inner_jaxprs(eqn):
            yield from arrays_in(one)
