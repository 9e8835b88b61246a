"""2-norms and root mean squares of arrays and trees."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from vanishjax.numerics.arithmetic import power_of_two, sqrt, square_or_infinite
from vanishjax.numerics.dtypes import common_dtype, upcast

Axes: TypeAlias = tuple[int, ...] | None


def branches_are_cheap() -> bool:
    """Whether a branch costs nothing: the host waits for an accelerator to tell which one to take.

    What is computed is the same in both cases.
    """
    return jax.default_backend() == "cpu"


def _scaled_sum(
    x: jax.Array, axes: Axes = None, *, keepdims: bool = False
) -> tuple[jax.Array, jax.Array]:
    """A power of two near the largest number, and the sum of the squares divided by that of it."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=keepdims, initial=0.0)
    scale, inverse = power_of_two(largest)
    return scale, jnp.sum(square_or_infinite(x, inverse), axis=axes, keepdims=keepdims)


def _squeezed(kept: jax.Array, axes: Axes) -> jax.Array:
    """Without the axes of size 1 that were summed over."""
    return jnp.squeeze(kept, axis=tuple(range(kept.ndim)) if axes is None else axes)


def _split_norm(
    squares: Callable[[jax.Array | None], jax.Array],
    scaled: Callable[[], tuple[jax.Array, jax.Array]],
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """`(scale, rest)` with norm = scale * rest, from a sum of squares that takes an inverse scale.

    `scaled` gives what `_scaled_sum` does. The data is read a second time only if the plain sum has
    overflowed, or is so small that squares flushed to zero could have mattered. Where branches
    aren't cheap it is read once, for three sums, two of them at scales far off: one of the three is
    right.
    """
    plain = squares(None)
    info = jnp.finfo(plain.dtype)
    least = size * float(info.tiny) / float(info.eps)
    enough, finite = plain >= least, plain <= float(info.max)
    if not branches_are_cheap():
        far = jnp.asarray(2.0 ** (5 * info.maxexp // 8), plain.dtype)
        # A sum that isn't finite is one at the larger scale, and a NaN is one at any.
        small, large = squares(far), squares(1 / far)
        scale = jnp.where(plain < least, 1 / far, jnp.where(finite, 1.0, far))
        return scale, sqrt(jnp.where(plain < least, small, jnp.where(finite, plain, large)))

    def as_is() -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(plain), sqrt(plain)

    def rescaled() -> tuple[jax.Array, jax.Array]:
        scale, total = scaled()
        return scale, sqrt(total)

    return jax.lax.cond(jnp.all(enough & finite), as_is, rescaled)


# Compiled as a whole, so that outside a jit the branches aren't compiled anew at every call.
@functools.partial(jax.jit, static_argnames="axes", inline=True)
def split_norm(x: jax.typing.ArrayLike, axes: Axes = None) -> tuple[jax.Array, jax.Array]:
    """The 2-norm over `axes` as `(scale, rest)`, norm = scale * rest, scale a power of two.

    The product itself may lie beyond the type's range; `x / scale / rest` never does.

    Args:
      x: Array of any float or complex type.
      axes: Axes to sum over; None for all.

    Returns:
      Two real arrays in the accumulator type, with the summed axes kept as 1.

    Example:
      >>> scale, rest = split_norm(jnp.full(4, 3e38))
      >>> print(jnp.full(4, 3e38) / scale / rest)
      [0.5 0.5 0.5 0.5]
    """
    x = upcast(x)
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    axes = tuple(range(x.ndim)) if axes is None else axes
    size = 1
    for axis in axes:
        size *= x.shape[axis]

    def squares(inverse: jax.Array | None) -> jax.Array:
        each = x * x if inverse is None else square_or_infinite(x, inverse)
        return jnp.sum(each, axis=axes, keepdims=True)

    def scaled() -> tuple[jax.Array, jax.Array]:
        return _scaled_sum(x, axes, keepdims=True)

    return _split_norm(squares, scaled, size)


def norm(x: jax.typing.ArrayLike, axes: Axes = None, keepdims: bool = False) -> jax.Array:
    """The 2-norm over `axes`, right from the smallest to the largest normal number.

    Args:
      x: Array of any float type.
      axes: Axes to sum over; None for all.
      keepdims: Whether the summed axes stay, with size 1.

    Returns:
      The norm in the accumulator type (float32 for 16-bit types).

    Example:
      >>> print(norm(jnp.array([3e-30, 4e-30])))
      5e-30
    """
    scale, rest = split_norm(x, axes)
    return scale * rest if keepdims else _squeezed(scale * rest, axes)


def scaled_norm(x: jax.typing.ArrayLike, axes: Axes = None) -> jax.Array:
    """The 2-norm over `axes`, without a branch: the data is always read twice.

    For programs with many arrays, where a branch for each takes long to compile and to start.

    Args:
      x: Array of any float type.
      axes: Axes to sum over; None for all.

    Returns:
      The norm in the accumulator type.

    Example:
      >>> print(scaled_norm(jnp.array([3e-30, 4e-30])))
      5e-30
    """
    scale, total = _scaled_sum(upcast(x), axes, keepdims=True)
    return _squeezed(scale * sqrt(total), axes)


def rms(x: jax.typing.ArrayLike, axes: Axes = None, keepdims: bool = False) -> jax.Array:
    """The root mean square over `axes`; see `norm`. Zero for an empty array.

    Example:
      >>> print(rms(jnp.full((2, 8), 1e-30), axes=(1,)))
      [1.e-30 1.e-30]
    """
    x = jnp.asarray(x)
    scale, rest = split_norm(x, axes)
    count = max(1, x.size // max(1, rest.size))
    mean = scale * (rest / count**0.5)
    return mean if keepdims else _squeezed(mean, axes)


def split_rms(x: jax.typing.ArrayLike, axes: Axes = None) -> tuple[jax.Array, jax.Array]:
    """The root mean square over `axes` as `(scale, rest)`, scale a power of two.

    As `rms`, but without a branch: the data is always read twice. For programs that run a few
    times, where a branch for each of many arrays takes long to compile.

    Args:
      x: Array of any float type.
      axes: Axes to average over; None for all.

    Returns:
      Two arrays in the accumulator type, with the averaged axes kept as 1.

    Example:
      >>> scale, rest = split_rms(jnp.full(4, 3e-30))
      >>> print(scale * rest)
      [3.e-30]
    """
    x = upcast(x)
    scale, total = _scaled_sum(x, axes, keepdims=True)
    return scale, sqrt(total / max(1, x.size // max(1, scale.size)))


@functools.partial(jax.jit, inline=True)
def split_global_norm(tree: Any) -> tuple[jax.Array, jax.Array]:
    """The 2-norm of all leaves together as `(scale, rest)`: see `split_norm`."""
    leaves = [upcast(x) for x in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.ones(()), jnp.zeros(())
    # One type for all: what is small enough to be flushed depends on the type of the squares.
    dtype = common_dtype(leaves)
    leaves = [x.astype(dtype) for x in leaves]

    def squares(inverse: jax.Array | None) -> jax.Array:
        each = (x * x if inverse is None else square_or_infinite(x, inverse) for x in leaves)
        return sum(map(jnp.sum, each), start=jnp.zeros((), dtype))

    def scaled() -> tuple[jax.Array, jax.Array]:
        # Each leaf at a scale of its own: one for all XLA would compute anew for every leaf, from
        # all of them, and 256 leaves took half a minute to compile.
        scales, totals = map(jnp.stack, zip(*map(_scaled_sum, leaves), strict=True))
        scale = jnp.max(scales)
        return scale, jnp.sum(totals * (scales / scale) ** 2)

    return _split_norm(squares, scaled, sum(x.size for x in leaves))


def global_norm(tree: Any) -> jax.Array:
    """The 2-norm of all leaves together, in float32 at least.

    Example:
      >>> print(global_norm({"a": jnp.array(3e-30), "b": jnp.array([4e-30])}))
      5e-30
    """
    scale, rest = split_global_norm(tree)
    return scale * rest
