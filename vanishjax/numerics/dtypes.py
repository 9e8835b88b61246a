"""Types in which sums are kept, and casts to and from them."""

from typing import Any

import jax
import jax.numpy as jnp


def accumulator_dtype(dtype: Any) -> jnp.dtype:
    """The float type in which sums over `dtype` are kept: float32 at least.

    Example:
      >>> str(accumulator_dtype(jnp.bfloat16)), str(accumulator_dtype(jnp.float32))
      ('float32', 'float32')
    """
    return jnp.promote_types(dtype, jnp.float32)


def common_dtype(tree: Any) -> jnp.dtype:
    """The float type that holds sums over any leaf.

    Example:
      >>> str(common_dtype({"a": jnp.ones(2, jnp.bfloat16), "b": 1.0}))
      'float32'
    """
    # Of the types, since of two arrays a weakly typed double would give way to a float32.
    types = (jnp.dtype(jnp.result_type(x)) for x in jax.tree.leaves(tree))
    return jnp.result_type(jnp.float32, *types)


def upcast(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in its accumulator type."""
    x = jnp.asarray(x)
    return x.astype(accumulator_dtype(x.dtype))


def saturating_cast(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts to `dtype`; finite values beyond its range become its largest, not infinite.

    Example:
      >>> print(saturating_cast(jnp.array([1e6, -jnp.inf]), jnp.float16))
      [6.55e+04     -inf]
    """
    dtype = jnp.dtype(dtype)
    if dtype == x.dtype:
        return x
    largest = float(jnp.finfo(dtype).max)
    if largest < float(jnp.finfo(x.dtype).max):
        beyond = (jnp.abs(x) > largest) & jnp.isfinite(x)
        x = jnp.where(beyond, jnp.copysign(jnp.asarray(largest, x.dtype), x), x)
    return x.astype(dtype)


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """Zeros of each leaf's shape, in `dtype` or its accumulator type.

    Example:
      >>> zeros_like({"w": jnp.ones(2, jnp.float16)})["w"].dtype
      dtype('float32')
    """
    return jax.tree.map(
        lambda x: jnp.zeros_like(x, dtype=dtype or accumulator_dtype(jnp.result_type(x))), tree
    )


def cast_like(tree: Any, target: Any) -> Any:
    """Casts each leaf to its partner's type, saturating: see `saturating_cast`."""
    return jax.tree.map(lambda x, like: saturating_cast(x, jnp.result_type(like)), tree, target)
