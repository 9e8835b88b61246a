"""Updates that keep only the sign: signSGD and Lion."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.validation import check_decay, check_floating


def scale_by_sign() -> optax.GradientTransformation:
    r"""Replaces each entry by its sign.

    Returns:
      A stateless transform; updates keep shape and type, zeros stay zero.

    Example:
      >>> tx = scale_by_sign()
      >>> gradient = jnp.array([1e-30, -3.0, 0.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [ 1. -1.  0.]

    References:
      Bernstein et al., signSGD: compressed optimization for non-convex problems, 2018.
    """

    def init_fn(params: optax.Params) -> optax.EmptyState:
        check_floating(params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        return jax.tree.map(jnp.sign, updates), state

    return optax.GradientTransformation(init_fn, update_fn)


class ScaleByLionState(NamedTuple):
    """Count of steps and the momentum, times `numerics.LIFT`."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    mu: optax.Updates


def scale_by_lion(
    b1: jax.typing.ArrayLike = 0.9, b2: jax.typing.ArrayLike = 0.99, mu_dtype: Any = None
) -> optax.GradientTransformation:
    r"""The sign of a mean of the gradient and its momentum.

    .. math:: u = \mathrm{sign}(b_1 \mu + (1 - b_1) g), \quad \mu \leftarrow b_2 \mu + (1 - b_2) g

    Args:
      b1: Weight of the momentum in the update, in [0, 1).
      b2: Decay of the momentum, in [0, 1).
      mu_dtype: Type of the momentum; None keeps float32 at least.

    Returns:
      A transform with `optax.scale_by_lion`'s values; updates keep shape and type.

    Raises:
      ValueError: A decay outside [0, 1), or (at `init`) a leaf that is not floating point.

    Example:
      >>> tx = scale_by_lion()
      >>> gradient = jnp.array([1e-36, -3.0, 0.0])
      >>> update, state = tx.update(gradient, tx.init(gradient))
      >>> print(tx.update(-0.01 * gradient, state)[0])
      [ 1. -1.  0.]

    References:
      Chen et al., Symbolic discovery of optimization algorithms, 2023, program 1.
    """
    check_decay("b1", b1)
    check_decay("b2", b2)

    def init_fn(params: optax.Params) -> ScaleByLionState:
        check_floating(params)
        return ScaleByLionState(jnp.zeros([], jnp.int32), numerics.zeros_like(params, mu_dtype))

    def update_fn(
        updates: optax.Updates, state: ScaleByLionState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByLionState]:
        del params
        # The sign of numerics.mean_moment: lifted, so that neither term flushes to zero.
        steps = jax.tree.map(
            lambda g, m: jnp.sign(numerics.mean_moment(m, g, b1)), updates, state.mu
        )
        mu = jax.tree.map(lambda g, m: numerics.mean_moment(m, g, b2), updates, state.mu)
        return numerics.cast_like(steps, updates), ScaleByLionState(
            optax.safe_increment(state.count), numerics.cast_like(mu, state.mu)
        )

    return optax.GradientTransformation(init_fn, update_fn)
