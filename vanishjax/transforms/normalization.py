"""Updates brought to a common size or mean, layer by layer."""

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Layers
from vanishjax.transforms.per_layer import per_layer
from vanishjax.validation import check_non_negative


def normalize_by_layer(layers: Layers | None = None) -> optax.GradientTransformation:
    r"""Rescales each layer's update to unit root mean square.

    .. math:: u_l = g_l / \mathrm{rms}(g_l)

    Args:
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      A stateless transform; updates keep shape and type, a layer of zeros stays zero.

    Raises:
      ValueError: At `init`, a leaf that is not floating point, or layers of another tree.

    Example:
      >>> tx = normalize_by_layer()
      >>> gradient = {"a": jnp.full(4, 2.0**-100), "b": jnp.zeros(2)}
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      {'a': Array([1., 1., 1., 1.], dtype=float32), 'b': Array([0., 0.], dtype=float32)}

    References:
      Yu et al., Block-normalized gradient method: an empirical study for training deep neural
      network, 2017, algorithm 1.
    """

    def normalize(update: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        scale, rest = numerics.split_norm(update, axes)
        entries = update.size / max(rest.size, 1)
        return numerics.divide(update * (1 / scale), rest) * entries**0.5

    return per_layer(normalize, layers)


def centralize(
    layers: Layers | None = None, *, output_axis: int = 0
) -> optax.GradientTransformation:
    r"""Takes the mean over its inputs off each output unit's gradient (gradient centralisation).

    .. math:: u_{o,i} = g_{o,i} - \mathrm{mean}_i\, g_{o,i}

    Args:
      layers: Division of the tree into layers; derived from the parameters if None.
      output_axis: The axis of the output units, stack axes not counted; the mean runs over all
        others. 0 is what optax does; Flax's kernels `[in, out]` have theirs at -1.

    Returns:
      A stateless transform; arrays of fewer than two axes (biases) are left as they are.

    Raises:
      ValueError: At `init`, a leaf that is not floating point, or layers of another tree.

    Example:
      >>> tx = centralize(output_axis=-1)
      >>> gradient = jnp.array([[1.0, 10.0], [3.0, 10.0]])
      >>> print(tx.update(gradient, tx.init(gradient))[0])
      [[-1.  0.]
       [ 1.  0.]]

    References:
      Yong et al., Gradient centralization: a new optimization technique for deep neural networks,
      2020, equation (1).
    """

    def centre(update: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        if len(axes) < 2:
            return update
        inputs = tuple(axis for axis in axes if axis != axes[output_axis])
        # The halves' mean: the sum of large numbers of one sign could overflow.
        mean = jnp.mean(update / 2, axis=inputs, keepdims=True, dtype=update.dtype)
        return update - 2 * mean

    return per_layer(centre, layers)


def scale_by_trust_ratio(
    min_norm: jax.typing.ArrayLike = 0.0,
    trust_coefficient: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 0.0,
    *,
    layers: Layers | None = None,
) -> optax.GradientTransformation:
    r"""Scales each layer's update to the size of its parameters.

    .. math:: u_l = g_l \, \frac{c\, \|w_l\|}{\|g_l\| + \epsilon}

    A layer whose parameters or whose update are all zero is left as it is.

    Args:
      min_norm: Least value that either norm may have.
      trust_coefficient: c.
      eps: Added to the update's norm.
      layers: Division of the tree into layers; derived from the parameters if None. In a stack
        every index has its own ratio, where optax has one for the whole array.

    Returns:
      A stateless transform with `optax.scale_by_trust_ratio`'s values on single layers.

    Raises:
      ValueError: A negative argument; at `init`, a leaf that is not floating point, or layers of
        another tree; `update` without parameters.

    Example:
      >>> tx = scale_by_trust_ratio()
      >>> params, gradient = jnp.array([3.0, 4.0]), 2.0**-100 * jnp.array([0.0, 1.0])
      >>> print(tx.update(gradient, tx.init(params), params)[0])
      [0. 5.]

    References:
      You et al., Large batch training of convolutional networks, 2017, equation (6).
    """
    for name, value in (
        ("min_norm", min_norm),
        ("trust_coefficient", trust_coefficient),
        ("eps", eps),
    ):
        check_non_negative(name, value)

    def rescale(update: jax.Array, param: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        scale, rest = numerics.split_norm(update, axes)
        inverse = 1 / scale
        norm = numerics.at_least(rest, min_norm * inverse) + eps * inverse
        target = numerics.at_least(numerics.norm(param, axes, keepdims=True), min_norm)
        scaled = numerics.divide(update * inverse, norm) * (trust_coefficient * target)
        return jnp.where((target == 0) | (norm == 0), update, scaled)

    return per_layer(rescale, layers, with_params=True)
