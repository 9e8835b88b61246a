"""Adam and Nadam, with the second moment kept as its root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Layers
from vanishjax.transforms.arguments import check_layers_argument
from vanishjax.transforms.moments import first_moment, second_moment_root
from vanishjax.transforms.per_layer import check_layers, layers_of
from vanishjax.validation import check_decay, check_floating, check_non_negative


class ScaleByAdamState(NamedTuple):
    """Count of steps, first moment and root of the second moment, both times `numerics.LIFT`."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
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
    eps_relative: bool = False,
    layers: Layers | None = None,
) -> optax.GradientTransformation:
    r"""Rescales each entry by its running mean over its running root mean square.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \quad
      r \leftarrow \sqrt{b_2 r^2 + (1 - b_2) g^2}, \quad
      u = \frac{m / (1 - b_1^t)}{\sqrt{r^2 / (1 - b_2^t) + \epsilon_{root}} + \epsilon}

    The squares are taken at the exponent of r or g, or of their quotient, so no gradient between
    1e-37 and 1e+37 is lost and `eps=0` is safe: entries whose gradients were all zero get a zero
    update.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the denominator. A gradient far below it hardly moves its parameter.
      eps_root: Added inside the square root.
      mu_dtype: Type of the first moment; None keeps float32 at least.
      nu_dtype: Type of the second moment's root; None keeps float32 at least. A 16-bit root stops
        decaying, since a step changes it by less than it can resolve.
      nesterov: Whether to look ahead as Nadam does.
      eps_relative: Whether `eps` and the root of `eps_root` count in units of the layer's own
        gradient scale, the RMS of r / sqrt(1 - b2^t) over the layer, so that no gradient is too
        small for them.
      layers: Division of the tree into layers, for `eps_relative`; derived from the parameters if
        None.

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
    check_layers_argument(layers)

    def init_fn(params: optax.Params) -> ScaleByAdamState:
        check_layers(layers, params) if eps_relative else check_floating(params)
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
        mu, mean = first_moment(updates, state.mu, b1, count, look_ahead=nesterov)
        nu_root, root = second_moment_root(updates, state.nu_root, b2, count)

        def scale(m: jax.Array, r: jax.Array, axes: tuple[int, ...] = ()) -> jax.Array:
            unit = numerics.rms(r, axes, keepdims=True) if eps_relative else numerics.LIFT
            r = numerics.add_in_root(r, eps_root, unit)
            return numerics.divide_by_sum(m, r, unit * eps)

        if eps_relative:
            steps = layers_of(layers, updates).map(scale, mean, root)
        else:
            steps = jax.tree.map(scale, mean, root)
        return numerics.cast_like(steps, updates), ScaleByAdamState(
            count, numerics.cast_like(mu, state.mu), numerics.cast_like(nu_root, state.nu_root)
        )

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_adam_atan2(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    *,
    scale: jax.typing.ArrayLike = 1.0,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""Adam with an arc tangent in place of the division, and so without an epsilon.

    .. math:: u = a\, \mathrm{atan2}\Bigl(\frac{m}{1 - b_1^t}, \frac{r}{\sqrt{1 - b_2^t}}\Bigr)

    with m and r as in `scale_by_adam`. The same at every scale of the gradient, and bounded by
    a pi / 2.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      mu_dtype: As in `scale_by_adam`.
      nu_dtype: As in `scale_by_adam`.
      scale: a. With 4 / pi a constant gradient gives 1, as in Adam, instead of pi / 4.
      nesterov: Whether to look ahead as Nadam does.

    Returns:
      A transform; updates keep shape and type, entries whose gradients were all zero stay zero.

    Raises:
      ValueError: A decay outside [0, 1), a negative scale, or (at `init`) a leaf that is not
        floating point.

    Example:
      >>> tx = scale_by_adam_atan2(scale=4 / jnp.pi)
      >>> gradient = jnp.array([1.0, 1e-30, 0.0])
      >>> update, state = tx.update(gradient, tx.init(gradient))
      >>> print(update.round(3))
      [1. 1. 0.]

    References:
      Everett et al., Scaling exponents across parameterizations and optimizers, 2024, equation (4).
    """
    check_decay("b1", b1)
    check_decay("b2", b2)
    check_non_negative("scale", scale)
    init = scale_by_adam(b1, b2, mu_dtype=mu_dtype, nu_dtype=nu_dtype).init

    def update_fn(
        updates: optax.Updates, state: ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu, mean = first_moment(updates, state.mu, b1, count, look_ahead=nesterov)
        nu_root, root = second_moment_root(updates, state.nu_root, b2, count)
        steps = jax.tree.map(lambda m, r: scale * numerics.arctan2(m, r), mean, root)
        return numerics.cast_like(steps, updates), ScaleByAdamState(
            count, numerics.cast_like(mu, state.mu), numerics.cast_like(nu_root, state.nu_root)
        )

    return optax.GradientTransformation(init, update_fn)
