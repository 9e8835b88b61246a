"""Initializers at the critical point of mean-field theory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.activations import Activation, resolve_activation
from vanishjax.layers import Layers, Leaf, find_layers
from vanishjax.naming import named_leaves
from vanishjax.theory import CriticalPoint, critical_point
from vanishjax.theory.quadrature import activation_name, evaluate

__all__ = ["center_biases", "critical_bias", "critical_normal", "critical_orthogonal"]

Initializer = Callable[..., jax.Array]

# Small enough to leave the biases at zero (tanh: chi = 1.002), and large enough for the variance
# not to die out: at 0 it would as 1 / depth.
_SIGMA_B2 = 1e-4


def critical_orthogonal(activation: str | Activation, sigma_b2: float | None = None) -> Initializer:
    r"""Orthogonal kernels with the gain at which gradients keep their size.

    W = sqrt(sigma_w2 max(1, out / in)) Q, the columns of Q (rows, if out > in) orthonormal and
    sigma_w2 the activation's critical one: an entry has the variance sigma_w2 / in either way, as
    the theory asks, while all singular values are equal, so that no direction is lost.

    An activation with f(0) != 0 (a sigmoid) is taken without that mean: f - f(0). For that to be
    so, apply `center_biases` to the parameters; without it a sigmoid's layers saturate.

    Args:
      activation: Name of the activation behind the kernel, or a continuous elementwise function.
      sigma_b2: Variance of the biases; None for 1e-4, at which zero biases will do as well, or what
        is nearest to it where the activation is critical only elsewhere (ReLU 0, GELU .17, SiLU
        .56: pass `critical_bias` too).

    Returns:
      ``init(key, shape, dtype=float32)`` for kernels ``[..., in, out]``; the axes before the last
      are the fan-in, so stack layers by `vmap` or `scan`, as Flax does. Drawn in float32 at least.

    Raises:
      ValueError: If the activation has no critical point (softplus), or none with this sigma_b2.

    Example:
      >>> kernel = critical_orthogonal("relu")(jax.random.key(0), (8, 8))
      >>> bool(jnp.allclose(kernel @ kernel.T, 2 * jnp.eye(8), atol=1e-5))
      True

    References:
      Saxe et al., Exact solutions to the nonlinear dynamics of learning in deep linear neural
      networks, 2014; Pennington et al. 2017, section 2.4.
    """
    sigma_w2 = _point(activation, sigma_b2).sigma_w2

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        fan_in = _fan_in(shape)
        gain = math.sqrt(sigma_w2 * max(1.0, shape[-1] / fan_in))
        return _drawn(jax.nn.initializers.orthogonal(gain), key, shape, dtype)

    return init


def critical_normal(activation: str | Activation, sigma_b2: float | None = None) -> Initializer:
    """Gaussian kernels with the variance at which gradients keep their size: sigma_w2 / fan-in.

    Products of Gaussian matrices lose one direction after another: in networks of more than some
    30 layers prefer `critical_orthogonal`.

    Args:
      activation: As in `critical_orthogonal`.
      sigma_b2: As in `critical_orthogonal`.

    Returns:
      ``init(key, shape, dtype=float32)`` for kernels ``[..., in, out]``.

    Raises:
      ValueError: If the activation has no critical point (softplus), or none with this sigma_b2.

    Example:
      >>> kernel = critical_normal("relu")(jax.random.key(0), (256, 256))
      >>> print(jnp.var(kernel).round(4), 2 / 256)
      0.0078 0.0078125

    References:
      Schoenholz et al. 2017, section 3; for ReLU He et al., Delving deep into rectifiers, 2015.
    """
    sigma_w2 = _point(activation, sigma_b2).sigma_w2

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        scale = math.sqrt(sigma_w2 / _fan_in(shape))
        return _drawn(jax.nn.initializers.normal(scale), key, shape, dtype)

    return init


def critical_bias(activation: str | Activation, sigma_b2: float | None = None) -> Initializer:
    """Gaussian biases of the variance that the critical kernels reckon with.

    Args:
      activation: As in `critical_orthogonal`.
      sigma_b2: As in `critical_orthogonal`.

    Returns:
      ``init(key, shape, dtype=float32)``.

    Raises:
      ValueError: If the activation has no critical point (softplus), or none with this sigma_b2.

    Example:
      >>> bias = critical_bias("tanh", 0.04)(jax.random.key(0), (10_000,))
      >>> print(f"{jnp.std(bias):.2f}")
      0.20
    """
    scale = math.sqrt(_point(activation, sigma_b2).sigma_b2)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return _drawn(jax.nn.initializers.normal(scale), key, shape, dtype)

    return init


def center_biases(
    params: Any, activation: str | Activation = "sigmoid", layers: Layers | None = None
) -> Any:
    """Takes the mean that an activation adds out of the layers that it feeds.

    b <- b - f(0) sum_i W_i, so that W f(x) + b becomes W (f(x) - f(0)) + b: with critical kernels a
    sigmoid network starts as the critical network of sigmoid(x) - 1/2. The function that the
    network can learn is the same; only its start is moved.

    Pairs of arrays named ``kernel`` and ``bias`` side by side are changed, the rest is returned as
    it is. The kernels that the data meets first are left out: no activation feeds them. It can't be
    seen from parameters what else lies between two layers: leave out of `params` those that
    another activation, a normalization or a skip connection feeds. A padded convolution's border is
    centered too much.

    Args:
      params: Any tree of parameters, of linen or nnx.
      activation: What feeds the layers: a name or an elementwise function.
      layers: Division of the tree into layers; from its paths and shapes if None. Where those don't
        tell which arrays are stacks pass ``find_layers(params, loss_fn, batch)``.

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: If a bias doesn't fit its kernel unless they are stacks that `layers` doesn't
        know.

    Example:
      >>> params = {
      ...     "layer_0": {"kernel": jnp.ones([2, 3]), "bias": jnp.zeros(3)},
      ...     "layer_1": {"kernel": jnp.ones([3, 1]), "bias": jnp.zeros(1)},
      ... }
      >>> centered = center_biases(params, "sigmoid")
      >>> print(centered["layer_0"]["bias"], centered["layer_1"]["bias"])
      [0. 0. 0.] [-1.5]
    """
    layers = find_layers(params) if layers is None else layers
    mean = _at_zero(resolve_activation(activation))
    entries, structure = named_leaves(params)
    with jax.ensure_compile_time_eval():
        expanded = jax.tree.leaves(layers.expand(np.array(layers.depths), params))
        depths = [np.asarray(depth) for depth in expanded]
    numbers = {path: number for number, (path, _) in enumerate(entries)}
    known = {leaf.path: leaf for leaf in layers.leaves}
    values = [value for _, value in entries]
    kernels = [
        path
        for path in numbers
        if path.split("/")[-1] == "kernel" and path.removesuffix("kernel") + "bias" in numbers
    ]
    first = min((depths[numbers[path]].min() for path in kernels), default=0)
    for path in kernels:
        number, partner = numbers[path], numbers[path.removesuffix("kernel") + "bias"]
        kernel, bias = values[number], values[partner]
        wide = jnp.promote_types(bias.dtype, jnp.float32)
        summed = _summed_axes(known[path], known[path.removesuffix("kernel") + "bias"])
        fed = np.where(depths[number] > first, mean, 0.0)
        shift = jnp.sum(kernel.astype(wide) * fed.astype(wide), axis=summed)
        values[partner] = (bias - shift).astype(bias.dtype)
    return jax.tree.unflatten(structure, values)


def _summed_axes(kernel: Leaf, bias: Leaf) -> tuple[int, ...]:
    """The kernel's input axes: what is left without its stack and the bias's own axes."""
    axes, features = kernel.inner_axes, len(bias.inner_axes)
    inputs, outputs = axes[: len(axes) - features], axes[len(axes) - features :]
    fits = [kernel.shape[i] for i in outputs] == [bias.shape[i] for i in bias.inner_axes]
    may_be_stack = features > 1 and not bias.axes and kernel.shape[0] == bias.shape[0]
    if not fits or may_be_stack or not inputs:
        raise ValueError(
            f"{bias.path} of shape {bias.shape} doesn't tell its layers in {kernel.path} of shape "
            f"{kernel.shape}: pass layers=find_layers(params, loss_fn, batch), which knows stacks"
        )
    return inputs


def _fan_in(shape: Any) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"a critical kernel needs a shape of two axes at least, [..., in, out], got "
            f"{tuple(shape)}"
        )
    return max(1, math.prod(shape[:-1]))


def _drawn(init: Initializer, key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    """Draws in float32 at least: there is no QR in 16 bits."""
    return init(key, shape, jnp.promote_types(dtype, jnp.float32)).astype(dtype)


def _point(activation: str | Activation, sigma_b2: float | None) -> CriticalPoint:
    centered = _centered(resolve_activation(activation))
    if sigma_b2 is not None:
        return critical_point(centered, sigma_b2)
    least = critical_point(centered)
    try:
        return critical_point(centered, _SIGMA_B2)
    except ValueError:
        return least


def _at_zero(f: Activation) -> float:
    return float(evaluate(f, np.zeros(1))[0][0])


@functools.lru_cache(maxsize=64)
def _centered(f: Activation) -> Activation:
    mean = _at_zero(f)
    if mean == 0:
        return f

    def centered(x: jax.Array) -> jax.Array:
        return f(x) - mean

    centered.__name__ = f"{activation_name(f)} - {mean:.6g}"
    return centered
