"""Momentum: the decaying sum of gradients, heavy-ball and Nesterov."""

from typing import Any, NamedTuple

import jax
import optax

from vanishjax import numerics
from vanishjax.validation import check_decay, check_floating


class MomentumState(NamedTuple):
    """The decaying sum of past gradients, in float32 at least."""

    trace: optax.Updates


def momentum(
    decay: jax.typing.ArrayLike = 0.9, accumulator_dtype: Any = None
) -> optax.GradientTransformation:
    r"""Replaces each gradient by the decaying sum of all gradients so far (heavy ball).

    .. math:: t \leftarrow d\, t + g, \qquad u = t

    Args:
      decay: d, in [0, 1].
      accumulator_dtype: Type of the sum; None keeps float32 at least, so that 16-bit gradients
        neither overflow nor vanish in it.

    Returns:
      A transform with `optax.trace`'s values; updates keep shape and type, and a finite value
      beyond a 16-bit type's range becomes the largest of that type.

    Raises:
      ValueError: decay outside [0, 1], or (at `init`) a leaf that is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = momentum(0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(2):
      ...     update, state = tx.update(jnp.ones(2), state)
      >>> print(update)
      [1.5 1.5]

    References:
      Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
    """
    return _trace(decay, accumulator_dtype, look_ahead=False)


def nesterov(
    decay: jax.typing.ArrayLike = 0.9, accumulator_dtype: Any = None
) -> optax.GradientTransformation:
    r"""Momentum that looks one step ahead.

    .. math:: t \leftarrow d\, t + g, \qquad u = g + d\, t

    Args:
      decay: d, in [0, 1].
      accumulator_dtype: As in `momentum`.

    Returns:
      A transform with `optax.trace(nesterov=True)`'s values; updates keep shape and type.

    Raises:
      ValueError: As in `momentum`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nesterov(0.5)
      >>> update, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
      >>> print(update)
      [1.5 1.5]

    References:
      Nesterov, A method of solving a convex programming problem with convergence rate O(1/k^2),
      1983; Sutskever et al., On the importance of initialization and momentum in deep learning,
      2013, equations (3, 4).
    """
    return _trace(decay, accumulator_dtype, look_ahead=True)


def _trace(decay: Any, dtype: Any, *, look_ahead: bool) -> optax.GradientTransformation:
    check_decay("decay", decay, one_allowed=True)

    def init_fn(params: optax.Params) -> MomentumState:
        check_floating(params)
        return MomentumState(numerics.zeros_like(params, dtype))

    def update_fn(
        updates: optax.Updates, state: MomentumState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MomentumState]:
        del params
        trace = jax.tree.map(lambda g, t: g + decay * numerics.upcast(t), updates, state.trace)
        step = trace
        if look_ahead:
            step = jax.tree.map(lambda g, t: g + decay * t, updates, trace)
        return (
            numerics.cast_like(step, updates),
            MomentumState(numerics.cast_like(trace, state.trace)),
        )

    return optax.GradientTransformation(init_fn, update_fn)
