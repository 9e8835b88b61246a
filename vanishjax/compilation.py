"""Compiling what runs but once, and letting go of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

_Fn = TypeVar("_Fn", bound=Callable[..., Any])

# Compiler options under which a program is ready in half the time, and slow.
RUNS_ONCE = {"xla_backend_optimization_level": 0}
# Entries of arrays up to which that pays: measured with `step_response`, where an optimized program
# takes 1.3 s longer to compile and a quick one 1 us longer an entry to run.
_FEW = 2**18
# Programs that are kept of one function, for calls with the same static arguments and shapes.
_KEPT = 4


def jit_recent(
    fn: _Fn,
    *,
    static_argnums: int | tuple[int, ...] = (),
    options: Any = None,
    kept: int = _KEPT,
) -> _Fn:
    """As `jax.jit`, but only the last few programs are kept, and what they refer to.

    `jax.jit` keeps every program of a function at module level, and with it every static argument.
    Each program maps memory, of which Linux allows 65,530 maps a process: a sweep over networks
    would end in a crash.

    Args:
      fn: The function; no keyword arguments.
      static_argnums: As in `jax.jit`.
      options: Compiler options.
      kept: How many programs are kept.

    Returns:
      The function, compiled for every new combination of static arguments and shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> print(jit_recent(jnp.power, static_argnums=1)(jnp.array(3.0), 2))
      9.0
    """
    static = {static_argnums} if isinstance(static_argnums, int) else set(static_argnums)

    @functools.lru_cache(maxsize=kept)
    def program(fixed: tuple[Any, ...], _: Hashable) -> Any:
        # A function object of its own: when that is gone, JAX lets go of the program.
        def varying(*rest: Any) -> Any:
            fixed_ones, others = iter(fixed), iter(rest)
            count = len(fixed) + len(rest)
            return fn(*(next(fixed_ones if i in static else others) for i in range(count)))

        # Profiles and the compiler's log show the function.
        varying.__name__ = getattr(fn, "__name__", varying.__name__)
        return jax.jit(varying, compiler_options=options)

    @functools.wraps(fn)
    def call(*arguments: Any) -> Any:
        fixed = tuple(x for i, x in enumerate(arguments) if i in static)
        rest = [x for i, x in enumerate(arguments) if i not in static]
        leaves, structure = jax.tree.flatten(rest)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return fn(*arguments)  # a part of the program that is being traced
        signature = structure, tuple(map(jax.typeof, leaves))
        return program(fixed, signature)(*rest)

    return call  # type: ignore[return-value]  # the same arguments and results


def jit_once(fn: _Fn, *, static_argnums: int | tuple[int, ...] = (), kept: int = _KEPT) -> _Fn:
    """As `jit_recent`, for what is mostly called once with arrays of the same shapes.

    On small arrays, on the CPU, the compiler optimizes nothing: the optimization would take longer
    than it saves.

    Args:
      fn: The function; no keyword arguments.
      static_argnums: As in `jax.jit`.
      kept: How many programs are kept.

    Returns:
      The function, compiled for every new combination of static arguments and shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> jit_once(jnp.sum)(jnp.ones(3))
      Array(3., dtype=float32)
    """
    optimized = jit_recent(fn, static_argnums=static_argnums, kept=kept)
    quick = jit_recent(fn, static_argnums=static_argnums, options=RUNS_ONCE, kept=kept)

    @functools.wraps(fn)
    def call(*arguments: Any) -> Any:
        few = sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(arguments)) < _FEW
        small = few and jax.default_backend() == "cpu"
        return (quick if small else optimized)(*arguments)

    return call  # type: ignore[return-value]  # the same arguments and results
