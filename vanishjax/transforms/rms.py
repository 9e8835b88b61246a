"""RMSProp, plain and centered, with the second moment kept as its root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.validation import check_decay, check_floating, check_non_negative


class ScaleByRmsState(NamedTuple):
    """Count of steps and the root of the second moment, times `numerics.LIFT`."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    nu_root: optax.Updates


class ScaleByStddevState(NamedTuple):
    """Count of steps, first moment and root of the second moment, both times `numerics.LIFT`."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    mu: optax.Updates
    nu_root: optax.Updates


def scale_by_rms(
    decay: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    initial_scale: jax.typing.ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> optax.GradientTransformation:
    r"""Divides each entry by the running root mean square of its gradients.

    .. math:: r \leftarrow \sqrt{d r^2 + (1 - d) g^2}, \quad u = g / \sqrt{r^2 + \epsilon}

    or `g / (r + eps)` with `eps_in_sqrt=False`.

    Args:
      decay: d, in [0, 1).
      eps: Added in the root or to the denominator. In the root it hides gradients below
        sqrt(eps), 1e-4 at the default.
      initial_scale: Initial second moment (its square root is what is kept).
      eps_in_sqrt: Where eps goes.
      bias_correction: Whether to divide r^2 by 1 - d^t.

    Returns:
      A transform with `optax.scale_by_rms`'s values in the normal range; updates keep shape and
      type, and `eps=0` is safe.

    Raises:
      ValueError: decay outside [0, 1), a negative eps or initial_scale, or (at `init`) a leaf
        that is not floating point.

    Example:
      >>> tx = scale_by_rms(decay=0.75, eps=0.0)
      >>> gradient = jnp.array([1e-30, 0.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [2. 0.]

    References:
      Hinton, Neural networks for machine learning, lecture 6e, 2012.
    """
    _check(decay, eps, initial_scale)

    def init_fn(params: optax.Params) -> ScaleByRmsState:
        return ScaleByRmsState(jnp.zeros([], jnp.int32), _initial_root(params, initial_scale))

    def update_fn(
        updates: optax.Updates, state: ScaleByRmsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByRmsState]:
        del params
        count = optax.safe_increment(state.count)
        nu_root = _next_root(updates, state.nu_root, decay)
        correction = jnp.sqrt(numerics.bias_correction(decay, count)) if bias_correction else 1.0
        steps = jax.tree.map(
            lambda g, r: _rescale(g, r / correction, eps, eps_in_sqrt), updates, nu_root
        )
        return numerics.cast_like(steps, updates), ScaleByRmsState(count, nu_root)

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_stddev(
    decay: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    initial_scale: jax.typing.ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> optax.GradientTransformation:
    r"""Divides each entry by the running standard deviation of its gradients (centered RMSProp).

    .. math:: u = g / \sqrt{r^2 - m^2 + \epsilon}

    with m the running mean and r as in `scale_by_rms`. The difference is taken as
    (r - m)(r + m), which does not overflow; the denominator is at least 3e-4 r, since the
    difference is known no better, and a constant gradient would be divided by its rounding.

    Args:
      decay: Decay of both moments, in [0, 1).
      eps: As in `scale_by_rms`.
      initial_scale: As in `scale_by_rms`.
      eps_in_sqrt: As in `scale_by_rms`.
      bias_correction: Whether to correct both moments.

    Returns:
      A transform with `optax.scale_by_stddev`'s values in the normal range.

    Raises:
      ValueError: As in `scale_by_rms`.

    Example:
      >>> tx = scale_by_stddev(decay=0.5, eps=0.0)
      >>> gradient = jnp.array([1e-30, 0.0])
      >>> print(tx.update(gradient, tx.init(gradient))[0].round(3))
      [2. 0.]

    References:
      Graves, Generating sequences with recurrent neural networks, 2013, equations (38-45).
    """
    _check(decay, eps, initial_scale)

    def init_fn(params: optax.Params) -> ScaleByStddevState:
        nu_root = _initial_root(params, initial_scale)
        return ScaleByStddevState(jnp.zeros([], jnp.int32), numerics.zeros_like(params), nu_root)

    def update_fn(
        updates: optax.Updates, state: ScaleByStddevState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByStddevState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda g, m: numerics.mean_moment(m, g, decay), updates, state.mu)
        nu_root = _next_root(updates, state.nu_root, decay)
        correction = numerics.bias_correction(decay, count) if bias_correction else jnp.ones([])

        def scale(g: jax.Array, m: jax.Array, r: jax.Array) -> jax.Array:
            m, r = jnp.abs(m) / correction, r / jnp.sqrt(correction)
            # r >= m but for rounding, and the product of the roots is within r's own range.
            deviation = numerics.sqrt(numerics.at_least(r - m, 0.0)) * numerics.sqrt(r + m)
            # The difference can't be told from zero below this: it would divide by rounding.
            least = jnp.finfo(r.dtype).eps ** 0.5 * r
            return _rescale(g, deviation, eps, eps_in_sqrt, least)

        steps = jax.tree.map(scale, updates, mu, nu_root)
        return numerics.cast_like(steps, updates), ScaleByStddevState(count, mu, nu_root)

    return optax.GradientTransformation(init_fn, update_fn)


def _check(decay: Any, eps: Any, initial_scale: Any) -> None:
    check_decay("decay", decay)
    check_non_negative("eps", eps)
    check_non_negative("initial_scale", initial_scale)


def _initial_root(params: optax.Params, initial_scale: Any) -> optax.Updates:
    check_floating(params)
    root = numerics.LIFT * jnp.sqrt(initial_scale)
    return jax.tree.map(lambda z: z + root.astype(z.dtype), numerics.zeros_like(params))


def _next_root(updates: optax.Updates, roots: optax.Updates, decay: Any) -> optax.Updates:
    return jax.tree.map(lambda g, r: numerics.root_moment(r, g, decay), updates, roots)


def _rescale(
    g: jax.Array, root: jax.Array, eps: Any, eps_in_sqrt: bool, least: jax.Array | None = None
) -> jax.Array:
    if eps_in_sqrt:
        denominator = numerics.add_in_root(root, eps, numerics.LIFT)
    else:
        denominator = root + numerics.LIFT * eps
    if least is not None:
        denominator = numerics.at_least(denominator, least)
    return numerics.divide_by_positive(numerics.LIFT * numerics.upcast(g), denominator, eps)
