"""Clipping by norm that neither overflows nor silently zeroes an update."""

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Layers, Leaf
from vanishjax.transforms.per_layer import per_layer, per_leaf
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
        norm = numerics.split_global_norm(updates)
        clipped = jax.tree.map(lambda g: _clip(numerics.upcast(g), norm, max_norm), updates)
        return numerics.cast_like(clipped, updates), state

    return optax.GradientTransformation(init_fn, update_fn)


def clip_by_layer_norm(
    max_norm: jax.typing.ArrayLike = 1.0, layers: Layers | None = None
) -> optax.GradientTransformation:
    r"""Scales each layer's update down so that its norm is at most `max_norm`.

    .. math:: u_l = g_l \min(1, c / \|g_l\|)

    Unlike clipping by the global norm, one exploding layer doesn't shrink the others' updates.

    Args:
      max_norm: c, the largest 2-norm of a layer.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      A stateless transform; updates keep shape and type.

    Raises:
      ValueError: A negative max_norm; at `init`, a leaf that is not floating point, or layers of
        another tree.

    Example:
      >>> tx = clip_by_layer_norm(1.0)
      >>> gradient = {"a": jnp.array([3e30, 4e30]), "b": jnp.array([0.5])}
      >>> update, _ = tx.update(gradient, tx.init(gradient))
      >>> print(update["a"].round(3), update["b"])
      [0.6 0.8] [0.5]

    References:
      Pascanu et al., On the difficulty of training recurrent neural networks, 2013, algorithm 1,
      for each layer.
    """
    check_non_negative("max_norm", max_norm)

    def clip(update: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return _clip(update, numerics.split_norm(update, axes), max_norm)

    return per_layer(clip, layers)


def adaptive_clip(
    clipping: jax.typing.ArrayLike = 0.01,
    eps: jax.typing.ArrayLike = 1e-3,
    layers: Layers | None = None,
) -> optax.GradientTransformation:
    r"""Clips each unit's gradient to a share of its parameters' norm (AGC).

    .. math:: u_i = g_i \min\Bigl(1, \frac{\lambda \max(\|w_i\|, \epsilon)}{\|g_i\|}\Bigr)

    A unit is what feeds one output: a column of a kernel `[in, out]` or `[in, heads, dim]`, a
    filter of a convolution `[..., in, out]`, a whole bias. The layers tell a kernel's inputs; where
    only the shape does, a kernel of three axes is `[in, heads, dim]`, as optax takes it.

    Args:
      clipping: lambda, the largest ratio of the norms.
      eps: Least norm that a unit's parameters count for, so that zero ones can move.
      layers: Division of the tree into layers; derived from the parameters if None. Optax takes
        a stack `[layers, in, out]` for one kernel and its layers for the inputs.

    Returns:
      A stateless transform with `optax.adaptive_grad_clip`'s values on single layers.

    Raises:
      ValueError: A negative argument; at `init`, a leaf that is not floating point, or layers of
        another tree; `update` without parameters.

    Example:
      >>> tx = adaptive_clip(0.1)
      >>> params, gradient = jnp.array([3.0, 4.0]), jnp.array([3e30, 4e30])
      >>> print(tx.update(gradient, tx.init(params), params)[0].round(3))
      [0.3 0.4]

    References:
      Brock et al., High-performance large-scale image recognition without normalization, 2021,
      equation (3).
    """
    check_non_negative("clipping", clipping)
    check_non_negative("eps", eps)

    def clip(leaf: Leaf, update: jax.Array, param: jax.Array) -> jax.Array:
        unit = _unit_axes(leaf)
        largest = clipping * numerics.at_least(numerics.norm(param, unit, keepdims=True), eps)
        return _clip(update, numerics.split_norm(update, unit), largest)

    return per_leaf(clip, layers, with_params=True)


def _clip(
    g: jax.Array, norm: tuple[jax.Array, jax.Array], max_norm: jax.typing.ArrayLike
) -> jax.Array:
    """Scales `g`, of the split norm `norm`, down to `max_norm`."""
    scale, rest = norm
    clipped = numerics.divide(g * (1 / scale), rest) * max_norm
    return jnp.where(scale * rest < max_norm, g, clipped)


def _unit_axes(leaf: Leaf) -> tuple[int, ...]:
    axes = leaf.inner_axes
    if sum(leaf.shape[axis] > 1 for axis in axes) <= 1:
        return axes
    if leaf.matrix is not None:
        return leaf.inputs or axes
    return axes[:1] if len(axes) <= 3 else axes[:-1]
