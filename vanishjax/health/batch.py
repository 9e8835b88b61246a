"""The batch that a network is looked at with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr


def check_batch(batch: Any) -> None:
    """Raises ValueError, with the place, for arrays that are empty, no numbers, infinite or NaN."""
    for path, x in jax.tree_util.tree_flatten_with_path(batch)[0]:
        if not _jaxpr.is_array(x):
            continue
        name = "batch" + jax.tree_util.keystr(path)
        if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool or _is_key(x)):
            raise ValueError(f"{name} is an array of {x.dtype}: pass numbers")
        if x.size == 0:
            raise ValueError(f"{name} is empty: its shape is {tuple(x.shape)}")
        if jnp.issubdtype(x.dtype, jnp.inexact):
            # In the type that the loss will get: without x64, a float64 of 1e45 is infinite in it.
            with np.errstate(over="ignore"):
                held = np.asarray(x).astype(jax.dtypes.canonicalize_dtype(x.dtype))
            wrong = np.argwhere(~np.isfinite(held))
            if len(wrong):
                raise ValueError(
                    f"{name} holds {len(wrong)} values that are infinite or NaN, the first at "
                    f"index {tuple(map(int, wrong[0]))}: clean the input"
                )


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def batch_size(batch: Any) -> int:
    """Length of the first array's first axis; 0 if it has none."""
    shapes = [np.shape(x) for x in jax.tree.leaves(batch) if _jaxpr.is_array(x)]
    return shapes[0][0] if shapes and shapes[0] else 0
