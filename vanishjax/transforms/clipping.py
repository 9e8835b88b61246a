"""Clipping by norm that neither overflows nor silently zeroes an update."""

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.validation import check_floating, check_non_negative


def clip_by_global_norm(max_norm: jax.typing.ArrayLike = 1.0) -> optax.GradientTransformation:
    r"""Scales all updates down together so that their global norm is at most `max_norm`.

    .. math:: u = g \min(1, c / \|g\|)

    The norm is kept as a power of two times a rest, so squares that overflow (float32 from 1e+19
    on, float16 from 256 on) don't turn every update into zero.

    Args:
      max_norm: c, the largest 2-norm allowed over the whole tree.

    Returns:
      A stateless transform with `optax.clip_by_global_norm`'s values; updates keep shape and
      type. A gradient that is infinite or NaN somewhere gives NaN there: put `skip_nonfinite`
      before it.

    Raises:
      ValueError: A negative max_norm, or (at `init`) a leaf that is not floating point.

    Example:
      >>> tx = clip_by_global_norm(1.0)
      >>> gradient = jnp.array([3e30, 4e30])
      >>> print(tx.update(gradient, tx.init(gradient))[0].round(3))
      [0.6 0.8]

    References:
      Pascanu et al., On the difficulty of training recurrent neural networks, 2013, algorithm 1.
    """
    check_non_negative("max_norm", max_norm)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        check_floating(params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        scale, rest = numerics.split_global_norm(updates)
        within = scale * rest < max_norm
        inverse = 1 / scale

        def clip(g: jax.Array) -> jax.Array:
            g = numerics.upcast(g)
            return jnp.where(within, g, numerics.divide(g * inverse, rest) * max_norm)

        return numerics.cast_like(jax.tree.map(clip, updates), updates), state

    return optax.GradientTransformation(init_fn, update_fn)
