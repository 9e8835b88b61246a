"""Compiling what runs but once, and letting go of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxlib import version as jaxlib_version

_Fn = TypeVar("_Fn", bound=Callable[..., Any])

# Compiler options under which a program is ready in a quarter of the time, and slow.
RUNS_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jaxlib_version.__version_info__ < (0, 11):  # later ones have no other code for fused loops
    RUNS_ONCE["xla_cpu_use_fusion_emitters"] = False
# Entries that an operation computes, on average, up to which one call is sooner done. Measured on
# verdicts: an operation takes 1 to 2 ms less to compile, and .4 ns an entry longer to run.
_FEW = 3 * 2**20
# Entries of which that makes a second: nobody should wait so much longer for the same again.
_MANY = 2**31
# As many entries a multiplication counts for in a convolution that XLA has no library for.
_PRODUCT = 8
# As many turns a loop is taken to have that doesn't say.
_TURNS = 100
# Programs that are kept of one function, for calls with the same static arguments and shapes.
_KEPT = 4


def jit_recent(
    fn: _Fn,
    *,
    static_argnums: int | tuple[int, ...] = (),
    kept: int = _KEPT,
    compiler: Callable[..., Any] = jax.jit,
) -> _Fn:
    """As `jax.jit`, but only the last few programs are kept, and what they refer to.

    `jax.jit` keeps every program of a function at module level, and with it every static argument.
    Each program maps memory, of which Linux allows 65,530 maps a process: a sweep over networks
    would end in a crash.

    Args:
      fn: The function; no keyword arguments.
      static_argnums: As in `jax.jit`.
      kept: How many programs are kept.
      compiler: What compiles a function of arrays.

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
        return compiler(varying)

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

    What computes little, on the CPU, the compiler doesn't optimize: that would take longer than it
    saves. What is called again and again is compiled once more, and optimized.

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
    return jit_recent(fn, static_argnums=static_argnums, kept=kept, compiler=_quickly)


def _quickly(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, without optimization for as many calls as that is sooner done.

    All calls have arguments of the same shapes.
    """
    optimized = jax.jit(fn)
    quick = jax.jit(fn, compiler_options=RUNS_ONCE)
    calls = 0
    enough = 0.0

    def call(*arguments: Any) -> Any:
        nonlocal calls, enough
        calls += 1
        if calls == 1 and jax.default_backend() == "cpu":
            # The trace is kept by JAX, and found again when that is compiled.
            enough = calls_in_haste(optimized.trace(*arguments).jaxpr)
        return (quick if calls <= enough else optimized)(*arguments)

    return call


def calls_in_haste(program: Any) -> float:
    """How many calls of a program are sooner done if nobody optimizes it.

    Args:
      program: A jaxpr.

    Returns:
      The less numbers an operation computes, all the turns of loops counted, the more calls; none
      where each would be a second longer.

    Example:
      >>> import jax.numpy as jnp
      >>> calls_in_haste(jax.make_jaxpr(jnp.sin)(jnp.ones(1_000))) > 1_000
      True
      >>> calls_in_haste(jax.make_jaxpr(jnp.sin)(jnp.ones((10_000, 1_000)))) < 1
      True
    """
    operations, entries = _work(program)
    return 0.0 if entries > _MANY else _FEW * operations / max(1.0, entries)


def _work(program: Any) -> tuple[int, float]:
    """How many operations a program has, and how many numbers they compute."""
    operations, entries = 1, 0.0
    for equation in open_jaxpr(program).eqns:
        inner = list(inner_jaxprs(equation))
        turns = equation.params.get("length", _TURNS if equation.primitive.name == "while" else 1)
        for count, computed in map(_work, inner):
            operations += count
            entries += turns * computed
        if not inner:
            operations += 1
            computed = sum(math.prod(getattr(x.aval, "shape", ())) for x in equation.outvars)
            entries += computed * _products(equation)
    return operations, entries


def _products(equation: JaxprEqn) -> int:
    """How much more work an entry is than usual: a kernel larger than its image meets plain loops.

    As XLA's compiler for CPUs has it; other convolutions and products of matrices are a library's,
    which is as fast in a program that isn't optimized.
    """
    if equation.primitive.name != "conv_general_dilated":
        return 1
    image, kernel = (getattr(x.aval, "shape", ()) for x in equation.invars)
    order = equation.params["dimension_numbers"]
    if all(
        kernel[k] <= image[i] for i, k in zip(order.lhs_spec[2:], order.rhs_spec[2:], strict=True)
    ):
        return 1
    return _PRODUCT * math.prod(kernel[axis] for axis in order.rhs_spec[1:])


def open_jaxpr(jaxpr: Any) -> Any:
    """A jaxpr without its constants: from JAX 0.12 on equations hold it open already."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[Any]:
    """The jaxprs that an equation holds, its branches included, open or closed as they are."""
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Jaxpr | ClosedJaxpr):
                yield one
