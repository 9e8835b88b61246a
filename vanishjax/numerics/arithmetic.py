"""Scalings, squares, roots and quotients of single numbers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax.numerics.dtypes import upcast

# Products to the precision of their type: accelerators round the factors of a float32 product to
# ten bits of mantissa or seven, where nothing is said.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


# Inlined, but traced once for all arrays of a shape: a tree has many of the same.
_traced_once = functools.partial(jax.jit, inline=True)


# The unsigned integers that have a float's size.
_BITS = {4: jnp.uint32, 8: jnp.uint64}


def power_of_two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The power of two at the exponent of `x >= 0`, and its exact inverse.

    Read off the exponent's bits. Kept where both are normal numbers, so that zero, infinity and
    NaN get a finite scale as well.

    Args:
      x: Non-negative float32 or float64 array.

    Returns:
      `(k, 1 / k)`, of x's shape and type, with 1 <= x / k < 2 for all but the very ends of the
      range (there x / k < 4).

    Example:
      >>> k, inverse = power_of_two(jnp.array([3.0, 1e-30]))
      >>> print(k * inverse, 1 <= 3.0 / k[0] < 2)
      [1. 1.] True
    """
    return _powers(_exponent(x), x.dtype)


def _exponent(x: jax.Array) -> jax.Array:
    """The bits of the exponent of either sign's numbers, where they stand: that saves shifts."""
    info, bits = jnp.finfo(x.dtype), _BITS[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, bits) & bits((2 * info.maxexp - 1) << info.nmant)


def _powers(exponent: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """`power_of_two` of the bits of an exponent."""
    info, bits = jnp.finfo(dtype), _BITS[jnp.dtype(dtype).itemsize]
    mantissa, bias = info.nmant, info.maxexp - 1
    exponent = jax.lax.clamp(bits(1 << mantissa), exponent, bits((2 * bias - 1) << mantissa))
    scale = jax.lax.bitcast_convert_type(exponent, dtype)
    return scale, jax.lax.bitcast_convert_type(bits((2 * bias) << mantissa) - exponent, dtype)


def _instead(constant: float, where: jax.Array, x: jax.Array) -> jax.Array:
    """`jnp.where(where, constant, x)` for arrays of one shape, in two lines of a program.

    `jnp.where` writes a function and a call of it, which a tree of a thousand leaves pays for.
    """
    return jax.lax.select(where, jax.lax.full_like(x, constant), x)


def at_least(x: jax.Array, least: jax.typing.ArrayLike) -> jax.Array:
    """The larger of two numbers, where a NaN in `x` stays one: see above.

    Example:
      >>> print(at_least(jnp.array([-1.0, 2.0, jnp.nan]), 0.0))
      [ 0.  2. nan]
    """
    return jnp.where(x < least, least, x)


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0: an infinite one times 0 would be NaN.

    Example:
      >>> print(jax.grad(lambda x: sqrt(x * x))(0.0))
      0.0
    """
    return jnp.sqrt(x)


@sqrt.defjvp
def _derivative_of_sqrt(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    root, (tangent,) = sqrt(*primals), tangents
    zero = root == 0
    return root, jnp.where(zero, 0.0, 0.5 * tangent / jnp.where(zero, 1.0, root))


def scaled_square(x: jax.Array, inverse: jax.Array) -> jax.Array:
    """`(x inverse)^2`, multiplied in this order.

    Of a constant x XLA would make x^2 inverse^2, 0 times infinity as like as not. The selection,
    which changes no number, keeps it from that and costs nothing.
    """
    scaled = jnp.abs(x) * inverse
    scaled = _instead(0.0, scaled < 0, scaled)
    return scaled * scaled


def square_or_infinite(x: jax.Array, inverse: jax.Array) -> jax.Array:
    """As `scaled_square`, but beyond the type's range a constant, which derivatives can ignore."""
    scaled = jnp.abs(x) * inverse
    beyond = scaled >= 2.0 ** (jnp.finfo(x.dtype).maxexp // 2)
    scaled = jnp.where(beyond, jnp.inf, scaled)
    return scaled * scaled


@_traced_once
def weighted_hypot(a: jax.Array, b: jax.Array, wa: Any, wb: Any) -> jax.Array:
    """`sqrt(wa a^2 + wb b^2)` at any magnitude, in the wider of two accumulator types."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    # The larger exponent: of integers the maximum is one instruction, which can't lose a NaN.
    scale, inverse = _powers(jnp.maximum(_exponent(a), _exponent(b)), dtype)
    return scale * sqrt(wa * scaled_square(a, inverse) + wb * scaled_square(b, inverse))


def hypot(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> jax.Array:
    """`sqrt(a^2 + b^2)` at any magnitude, exact where `jnp.hypot` is biased by 2e-5.

    Example:
      >>> print(hypot(3e-30, 4e-30))
      5e-30
    """
    return weighted_hypot(upcast(a), upcast(b), 1.0, 1.0)


def arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of (x, y) for x >= 0, 0 at the origin; its derivative is right at any magnitude.

    Of the quotient, in less time than XLA's own takes.

    Example:
      >>> print(jax.grad(arctan2)(1e-30, 1e-30) / 1e30, arctan2(0.0, 0.0))
      0.5 0.0
    """
    # The derivative of a quotient has the square of its denominator in it.
    x, y = jnp.asarray(x), jnp.asarray(y)
    _, inverse = power_of_two(x)
    origin = (x == 0) & (y == 0)
    x, y = jnp.where(origin, 1.0, x * inverse), jnp.where(origin, 0.0, y * inverse)
    return jnp.arctan(y / x)


@_traced_once
def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, and 0 where the denominator is 0.

    Example:
      >>> print(divide(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])))
      [0.5 0. ]
    """
    zero = denominator == 0
    quotient = numerator / _instead(1.0, zero, denominator)
    return _instead(0.0, jnp.broadcast_to(zero, quotient.shape), quotient)


def divide_by_sum(numerator: jax.Array, root: jax.Array, added: jax.typing.ArrayLike) -> jax.Array:
    """`divide(numerator, root + added)` for a root that isn't negative.

    Example:
      >>> print(divide_by_sum(jnp.array([1.0, 0.0]), jnp.array([1.5, 0.0]), 0.5))
      [0.5 0. ]
    """
    return divide_by_positive(numerator, root + added, added)


def divide_by_positive(
    numerator: jax.Array, denominator: jax.Array, part: jax.typing.ArrayLike
) -> jax.Array:
    """`divide` by a sum of what isn't negative, of which `part` is known.

    Where that is a positive Python number there is no denominator of 0 to look for.

    Example:
      >>> print(divide_by_positive(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.5]), 0.5))
      [0.5 0. ]
    """
    if isinstance(part, int | float) and part >= float(jnp.finfo(denominator.dtype).tiny):
        return numerator / denominator
    return divide(numerator, denominator)
