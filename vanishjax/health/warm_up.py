"""Steps that a schedule makes larger later on."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import numerics
from vanishjax.transforms.arguments import as_transform

# Warm-ups are over after one of these numbers of steps, or have come far.
_LATER = (10, 100, 1000, 10_000, 100_000, 1_000_000)
# A gradient's norm between an epsilon and a clip.
_NORM = 2.0**-5


def later_steps(tx: optax.GradientTransformation, params: optax.Params) -> float:
    """How many times as large as the second step a later one is, for the same gradient.

    The counts in a fresh state are moved on. Moments stay those of a first step, so that Adam's
    correction makes its step up to 5 times as large without any schedule.

    Args:
      tx: The transform.
      params: The parameters.

    Returns:
      The largest quotient of several later steps, 1 at least; NaN where none is finite, as where
      the transform wants the loss function.

    Example:
      >>> warm_up = optax.linear_schedule(0.0, 1e-3, 1000)
      >>> later_steps(optax.sgd(warm_up), jnp.ones(3)), later_steps(optax.sgd(1e-3), jnp.ones(3))
      (1000.0, 1.0)
    """
    extended = as_transform(tx, "tx")
    entries = sum(x.size for x in jax.tree.leaves(params))
    gradient = jax.tree.map(lambda x: jnp.full_like(x, _NORM / math.sqrt(entries)), params)
    nothing = jax.tree.map(jnp.zeros_like, params)

    def size(count: jax.Array) -> jax.Array:
        def moved_on(x: jax.Array) -> jax.Array:
            counts = jnp.ndim(x) == 0 and jnp.issubdtype(x.dtype, jnp.integer)
            return jnp.full_like(x, count) if counts else x

        state = jax.tree.map(moved_on, extended.init(params))
        given = {"value": jnp.ones([])}
        # What moves without a gradient is decay, which is no step.
        steps, still = (
            extended.update(own, state, params, **given)[0] for own in (gradient, nothing)
        )
        squares = (
            jnp.sum(jnp.square(numerics.upcast(a) - numerics.upcast(b)))
            for a, b in zip(jax.tree.leaves(steps), jax.tree.leaves(still), strict=True)
        )
        return jnp.sqrt(jnp.sum(jnp.stack(list(squares))))

    try:
        sizes = np.array(jax.lax.map(size, jnp.array((1, *_LATER))), np.float64)
    except TypeError:  # asks for what only a training step can give
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        times = sizes[1:] / sizes[0]
    known = times[np.isfinite(times)]
    return max(1.0, round(float(np.max(known)), 1)) if len(known) else math.nan
