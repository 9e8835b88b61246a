"""Adam and Nadam, with the second moment kept as its root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.validation import check_decay, check_floating, check_non_negative


class ScaleByAdamState(NamedTuple):
    """Count of steps, first moment and root of the second moment, both times `numerics.LIFT`."""

    count: jax.Array
    mu: optax.Updates
    nu_root: optax.Updates


def scale_by_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""Rescales each entry by its running mean over its running root mean square.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \quad
      r \leftarrow \sqrt{b_2 r^2 + (1 - b_2) g^2}, \quad
      u = \frac{m / (1 - b_1^t)}{\sqrt{r^2 / (1 - b_2^t) + \epsilon_{root}} + \epsilon}

    The squares are taken at the exponent of r or g, so no gradient between 1e-37 and 1e+37 is
    lost and `eps=0` is safe: entries whose gradients were all zero get a zero update.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the denominator. A gradient far below it hardly moves its parameter.
      eps_root: Added inside the square root.
      mu_dtype: Type of the first moment; None keeps float32 at least.
      nu_dtype: Type of the second moment's root; None keeps float32 at least. A 16-bit root stops
        decaying, since a step changes it by less than it can resolve.
      nesterov: Whether to look ahead as Nadam does.

    Returns:
      A transform with `optax.scale_by_adam`'s values in the normal range; updates keep shape and
      type.

    Raises:
      ValueError: A decay outside [0, 1), a negative eps, or (at `init`) a leaf that is not
        floating point.

    Example:
      >>> tx = scale_by_adam(eps=0.0)
      >>> gradient = jnp.array([1.0, 1e-30, 0.0])
      >>> update, state = tx.update(gradient, tx.init(gradient))
      >>> print(update.round(3))
      [1. 1. 0.]

    References:
      Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1;
      Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 2.
    """
    check_decay("b1", b1)
    check_decay("b2", b2)
    check_non_negative("eps", eps)
    check_non_negative("eps_root", eps_root)

    def init_fn(params: optax.Params) -> ScaleByAdamState:
        check_floating(params)
        return ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=numerics.zeros_like(params, mu_dtype),
            nu_root=numerics.zeros_like(params, nu_dtype),
        )

    def update_fn(
        updates: optax.Updates, state: ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda g, m: numerics.mean_moment(m, g, b1), updates, state.mu)
        nu_root = jax.tree.map(lambda g, r: numerics.root_moment(r, g, b2), updates, state.nu_root)
        correction = numerics.bias_correction(b1, count)
        root_correction = jnp.sqrt(numerics.bias_correction(b2, count))
        if nesterov:
            next_correction = numerics.bias_correction(b1, optax.safe_increment(count))
            mean = jax.tree.map(
                lambda g, m: numerics.mean_moment(m / next_correction, g / correction, b1),
                updates,
                mu,
            )
        else:
            mean = jax.tree.map(lambda m: m / correction, mu)

        def scale(m: jax.Array, r: jax.Array) -> jax.Array:
            r = numerics.add_in_root(r / root_correction, numerics.LIFT**2 * eps_root)
            return numerics.divide(m, r + numerics.LIFT * eps)

        steps = jax.tree.map(scale, mean, nu_root)
        return numerics.cast_like(steps, updates), ScaleByAdamState(
            count, numerics.cast_like(mu, state.mu), numerics.cast_like(nu_root, state.nu_root)
        )

    return optax.GradientTransformation(init_fn, update_fn)
