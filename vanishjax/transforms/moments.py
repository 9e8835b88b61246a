"""Running moments of a tree of gradients, shared by Adam and its relatives."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics


def first_moment(
    updates: optax.Updates, mu: optax.Updates, decay: Any, count: jax.Array, *, look_ahead: bool
) -> tuple[optax.Updates, optax.Updates]:
    """One step of the first moment, and its bias-corrected value.

    Args:
      updates: Gradients.
      mu: The moment so far, times `numerics.LIFT`.
      decay: Its decay.
      count: Number of steps, this one included.
      look_ahead: Whether the corrected value looks one step ahead, as Nadam's does.

    Returns:
      The next moment and the corrected one, both times `numerics.LIFT`, in float32 at least.

    Example:
      >>> mu, mean = first_moment(jnp.ones(1), jnp.zeros(1), 0.75, jnp.array(1), look_ahead=False)
      >>> print(mu / numerics.LIFT, mean / numerics.LIFT)
      [0.25] [1.]
    """
    mu = jax.tree.map(lambda g, m: numerics.mean_moment(m, g, decay), updates, mu)
    correction = numerics.bias_correction(decay, count)
    if not look_ahead:
        return mu, jax.tree.map(lambda m: m / correction, mu)
    ahead = numerics.bias_correction(decay, optax.safe_increment(count))
    mean = jax.tree.map(
        lambda g, m: numerics.mean_moment(m / ahead, numerics.upcast(g) / correction, decay),
        updates,
        mu,
    )
    return mu, mean


def second_moment_root(
    updates: optax.Updates, nu_root: optax.Updates, decay: Any, count: jax.Array
) -> tuple[optax.Updates, optax.Updates]:
    """One step of the second moment's root, and its bias-corrected value.

    Args:
      updates: Gradients.
      nu_root: The root so far, times `numerics.LIFT`.
      decay: Decay of the second moment.
      count: Number of steps, this one included.

    Returns:
      The next root and the corrected one, both times `numerics.LIFT`, in float32 at least.

    Example:
      >>> root, corrected = second_moment_root(jnp.ones(1), jnp.zeros(1), 0.75, jnp.array(1))
      >>> print((root / numerics.LIFT).round(3), (corrected / numerics.LIFT).round(3))
      [0.5] [1.]
    """
    nu_root = jax.tree.map(lambda g, r: numerics.root_moment(r, g, decay), updates, nu_root)
    correction = jnp.sqrt(numerics.bias_correction(decay, count))
    return nu_root, jax.tree.map(lambda r: r / correction, nu_root)
