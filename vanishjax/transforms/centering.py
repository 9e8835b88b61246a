"""Updates freed of the mean activation: deflated gradients and mean-free coordinates.

The gradient of a kernel in z = h W + b is a sum over the batch of h times the cotangent. Its part
from the mean activation is hbar g_b^T, with g_b the bias's gradient. In a deep sigmoid network,
where all inputs arrive at nearly the same point, that part is all but the whole gradient, and says
nothing about how inputs differ.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Dense, Layers, dense_layers
from vanishjax.transforms.arguments import as_transform, check_layers_argument
from vanishjax.transforms.per_layer import check_layers, layers_of
from vanishjax.validation import check_decay


class MeanActivations(NamedTuple):
    """Running means of the activations that enter each kernel, read off gradients.

    Attributes:
      means: For each pair of kernel and bias, in depth order, `[layers of the stack, inputs]`.
      seen: For each pair `[layers of the stack]`: whether there was any gradient to read.
    """

    means: tuple[jax.Array, ...]
    seen: tuple[jax.Array, ...]


def dense_of(layers: Layers | None, tree: Any) -> tuple[Dense, ...]:
    """The pairs of kernel and bias in a tree; see `vanishjax.layers.dense_layers`."""
    return dense_layers(layers_of(layers, tree), tree)


def mean_type(tree: Any) -> Any:
    """The type that means of a tree's activations are kept in: its own, float32 at least."""
    dtype: Any = jnp.float32
    for leaf in jax.tree.leaves(tree):
        dtype = jnp.promote_types(dtype, jnp.result_type(leaf))
    return dtype


def no_activations(dense: Sequence[Dense], dtype: Any) -> MeanActivations:
    """Nothing seen yet."""
    return MeanActivations(
        tuple(jnp.zeros((len(pair), pair.inputs), dtype) for pair in dense),
        tuple(jnp.zeros(len(pair), bool) for pair in dense),
    )


def read_activations(
    dense: Sequence[Dense],
    gradients: dict[str, jax.Array],
    before: MeanActivations,
    decay: float = 0.95,
    limit: float = 5.0,
) -> MeanActivations:
    """One step of the running means: g_W g_b / |g_b|^2, exact while all inputs look alike.

    Args:
      dense: The pairs.
      gradients: Gradients by path.
      before: The means so far.
      decay: Of the means.
      limit: Largest activation believed: where the bias's gradient cancels, the estimate is noise.

    Returns:
      The means now; a layer without gradient keeps what it had.
    """
    means, seen = [], []
    for pair, mean, known in zip(dense, before.means, before.seen, strict=True):
        kernel_scale, kernel = _unit(pair.matrices(gradients[pair.kernel.path]))
        bias_scale, bias = _unit(pair.vectors(gradients[pair.bias.path])[:, None, :])
        along = _product(kernel, bias)
        ratio = jnp.nan_to_num(numerics.divide(kernel_scale, bias_scale))
        new = jnp.clip(along * ratio[:, 0], -limit, limit)
        alive = (bias_scale[:, 0, 0] > 0) & jnp.isfinite(new).all(axis=-1)
        blended = jnp.where(known[:, None], decay * mean + (1 - decay) * new, new)
        means.append(jnp.where(alive[:, None], blended, mean).astype(mean.dtype))
        seen.append(known | alive)
    return MeanActivations(tuple(means), tuple(seen))


def deflate(
    layers: Layers | None = None, *, normalize: bool = False
) -> optax.GradientTransformation:
    r"""Takes the part that the mean activation makes out of every kernel's gradient.

    With :math:`u = g_b / |g_b|`, the direction of the gradient of the kernel's bias,

    .. math:: g_W \leftarrow g_W (I - u u^T)

    for kernels `[in, out]`. As g_W = hbar g_b^T + sum (h - hbar)(delta - mean delta)^T over the
    batch, this takes the first term out, all of it, and what the second has along u: a tenth to a
    quarter of its energy, measured at all depths of a sigmoid network. In the first layer, whose
    inputs have no mean to speak of beside their spread, what is taken out is noise. It is for
    networks whose mean has collapsed (deep sigmoids), under `orthogonalize` or `scale_by_muon`;
    where it hasn't, what is taken out may be signal.

    Args:
      layers: Division of the tree into layers; derived from the parameters if None.
      normalize: Whether each kernel's gradient is then brought to unit root mean square, as
        `normalize_by_layer` would, but before what is left could underflow.

    Returns:
      A stateless transform; biases and what has no kernel beside it are left as they are.

    Raises:
      ValueError: At `init`, a kernel without a bias beside it, a leaf that is not floating point,
        or layers of another tree.

    Example:
      >>> tx = deflate()
      >>> hbar, delta = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
      >>> gradient = {"w": jnp.outer(hbar, delta) + jnp.eye(2), "b": delta}
      >>> left, _ = tx.update(gradient, tx.init(gradient))
      >>> bool(abs(left["w"] @ delta).max() < 1e-5)
      True

    References:
      With the true mean of a layer's inputs this is the gradient of mean-normalized SGD (Wiesler et
      al., Mean-normalized stochastic gradient for large-scale deep learning, ICASSP 2014), the
      enhanced gradient of Boltzmann machines (Cho et al. 2011), centering (Montavon and Mueller
      2012; Melchior et al., JMLR 17(99), 2016), and a part of K-FAC with explicit biases (George
      2017) and of PRONG (Desjardins et al. 2015). That gradients alone tell it, so that no model
      is asked, and that it comes before orthogonalization, is this package's, as far as we know.
    """
    check_layers_argument(layers)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        check_layers(layers, params)
        dense_of(layers, params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        gradients, rebuild = layers_of(layers, updates).by_path(updates)
        deflated = _deflated(dense_of(layers, updates), gradients, normalize=normalize)
        return rebuild(deflated), state

    return optax.GradientTransformation(init_fn, update_fn)


class CenterState(NamedTuple):
    """The mean activations, and the state of the transform inside."""

    activations: MeanActivations
    inner_state: optax.OptState


def center(
    inner: optax.GradientTransformation | None = None,
    *,
    layers: Layers | None = None,
    decay: float = 0.95,
    normalize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs a transform in coordinates in which activations have no mean.

    A dense layer z = h W + b is the same function as z = (h - hbar) W + b', b' = b + hbar W. The
    gradient of W in these coordinates is `deflate`'s, nearly; a step of W that leaves b' where it
    is moves b as well:

    .. math:: U_W = \mathrm{inner}(\mathrm{deflate}(g))_W, \qquad U_b \leftarrow U_b - hbar^T U_W

    so that moving a weight doesn't shift the mean of what comes out. hbar is read off the gradients
    (g_W g_b / |g_b|^2): neither model, loss nor initialization is touched.

    Args:
      inner: Makes the updates, learning rate included; None passes gradients through.
      layers: Division of the tree into layers; derived from the parameters if None.
      decay: Of the running mean of hbar, in [0, 1).
      normalize: As in `deflate`.

    Returns:
      A transform; the state keeps means of float32 at least, one number an input.

    Raises:
      ValueError: As in `deflate`, or decay outside [0, 1).
      TypeError: inner is not a gradient transform, or layers no `Layers`.

    Example:
      >>> tx = center(optax.sgd(1.0))
      >>> params = {"w": jnp.eye(2), "b": jnp.zeros(2)}
      >>> gradient = {"w": jnp.outer(jnp.array([1.0, 2.0]), jnp.ones(2)), "b": jnp.ones(2)}
      >>> update, state = tx.update(gradient, tx.init(params), params)
      >>> print(state.activations.means[0], abs(update["w"]).max() < 1e-6)
      [[1. 2.]] True

    References:
      With SGD inside this is mean-normalized SGD (Wiesler et al., Mean-normalized stochastic
      gradient for large-scale deep learning, ICASSP 2014), but for where hbar comes from: there
      from the forward pass, here from gradients. See `deflate` for its relatives; for centered
      activations LeCun et al., Efficient backprop, 1998, section 4.3, Schraudolph 1998 and Raiko et
      al. 2012.
    """
    check_decay("decay", decay)
    check_layers_argument(layers)
    within = as_transform(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> CenterState:
        check_layers(layers, params)
        nothing = no_activations(dense_of(layers, params), mean_type(params))
        return CenterState(nothing, within.init(params))

    def update_fn(
        updates: optax.Updates,
        state: CenterState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, CenterState]:
        found, dense = layers_of(layers, updates), dense_of(layers, updates)
        gradients, rebuild = found.by_path(updates)
        activations = read_activations(dense, gradients, state.activations, decay)
        deflated = rebuild(_deflated(dense, gradients, normalize=normalize))
        steps, inner_state = within.update(deflated, state.inner_state, params, **extra)
        moved, rebuild = found.by_path(steps)
        moved |= compensated(dense, moved, activations)
        return numerics.cast_like(rebuild(moved), updates), CenterState(activations, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def compensated(
    dense: Sequence[Dense], steps: dict[str, jax.Array], activations: MeanActivations
) -> dict[str, jax.Array]:
    """The steps of the biases that keep the mean of every output where it is: U_b - hbar^T U_W."""
    biases = {}
    for pair, mean in zip(dense, activations.means, strict=True):
        kernel = numerics.upcast(pair.matrices(steps[pair.kernel.path]))
        bias = numerics.upcast(pair.vectors(steps[pair.bias.path]))
        shift = numerics.einsum("li,lio->lo", mean, kernel)
        biases[pair.bias.path] = pair.biases(bias - shift)
    return biases


def _deflated(
    dense: Sequence[Dense], gradients: dict[str, jax.Array], *, normalize: bool
) -> dict[str, jax.Array]:
    deflated = dict(gradients)
    for pair in dense:
        gradient = gradients[pair.kernel.path]
        matrices = numerics.upcast(pair.matrices(gradient))
        scale, rest = numerics.split_norm(matrices, (1, 2))
        kernel = numerics.divide(matrices * (1 / scale), rest)
        _, bias = _unit(pair.vectors(gradients[pair.bias.path])[:, None, :])
        # Twice, because what the first leaves may be as small as its rounding errors.
        for _ in range(2):
            kernel = kernel - _product(kernel, bias)[..., None] * bias
        if normalize:
            kernel = _unit(kernel)[1] * (kernel.shape[1] * kernel.shape[2]) ** 0.5
        else:
            kernel = kernel * rest * scale
        deflated[pair.kernel.path] = numerics.saturating_cast(pair.kernels(kernel), gradient.dtype)
    return deflated


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The norms `[stack, 1, 1]` of a stack of matrices, and the matrices divided by them."""
    scale, rest = numerics.split_norm(x, (1, 2))
    return scale * rest, numerics.divide(numerics.upcast(x) * (1 / scale), rest)


def _product(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`[stack, in, out]` times `[stack, 1, out]`: `[stack, in]`."""
    return numerics.einsum("lio,lxo->li", kernel, bias)
