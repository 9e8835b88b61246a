"""Checks of arguments and trees that every transform shares: clear and early, with the path."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp


def check_floating(params: Any) -> None:
    """Raises ValueError naming the first leaf that is not a real floating-point array.

    Example:
      >>> check_floating({"w": jnp.arange(3)})
      Traceback (most recent call last):
      ...
      ValueError: w: expected a real floating-point leaf, got int32[3]; mask it out with optax.masked
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shape = ",".join(str(n) for n in jnp.shape(leaf))
            raise ValueError(
                f"{name}: expected a real floating-point leaf, got {dtype}[{shape}]; "
                "mask it out with optax.masked"
            )


def check_decay(name: str, value: Any) -> None:
    """Raises ValueError unless a concrete decay rate lies in [0, 1); traced values pass."""
    if isinstance(value, numbers.Real) and not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def check_non_negative(name: str, value: Any) -> None:
    """Raises ValueError for a concrete negative (or NaN) number; traced values pass."""
    if isinstance(value, numbers.Real) and not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")
