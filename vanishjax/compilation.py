"""Compiling what runs but once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

_Fn = TypeVar("_Fn", bound=Callable[..., Any])

# Compiler options under which a program is ready in half the time, and slow.
RUNS_ONCE = {"xla_backend_optimization_level": 0}
# Entries of arrays up to which that pays: measured with `step_response`, where an optimised program
# takes 1.3 s longer to compile and a quick one 1 us longer an entry to run.
_FEW = 2**18


def jit_once(fn: _Fn, *, static_argnums: int | tuple[int, ...] = ()) -> _Fn:
    """As `jax.jit`, for what is mostly called once with arrays of the same shapes.

    On small arrays, on the CPU, the compiler optimises nothing: the optimisation would take longer
    than it saves.

    Args:
      fn: The function; no keyword arguments.
      static_argnums: As in `jax.jit`.

    Returns:
      The function, compiled for every new combination of shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> jit_once(jnp.sum)(jnp.ones(3))
      Array(3., dtype=float32)
    """
    optimised = jax.jit(fn, static_argnums=static_argnums)
    quick = jax.jit(fn, static_argnums=static_argnums, compiler_options=RUNS_ONCE)
    static = {static_argnums} if isinstance(static_argnums, int) else set(static_argnums)

    @functools.wraps(fn)
    def call(*arguments: Any) -> Any:
        leaves = jax.tree.leaves([x for i, x in enumerate(arguments) if i not in static])
        # Within another program the options are that one's.
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        few = sum(getattr(leaf, "size", 1) for leaf in leaves) < _FEW
        small = few and not inside and jax.default_backend() == "cpu"
        return (quick if small else optimised)(*arguments)

    return call  # type: ignore[return-value]  # the same arguments and results
