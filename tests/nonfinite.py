"""One entry that is not finite in an array so large that XLA on a CPU drops NaN in reductions."""

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 256, 256


def broken(shape: tuple[int, ...], dtype: type, bad: float) -> jax.Array:
    """Small gradients, whose squares are flushed to zero, and one bad entry."""
    x = np.full(shape, 1e-30 if dtype != jnp.float16 else 1e-7)
    x.flat[777 % x.size] = bad
    return jnp.asarray(x, dtype)
