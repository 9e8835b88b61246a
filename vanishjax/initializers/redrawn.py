"""Kernels drawn anew, for parameters that are beyond repair."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax.layers import Layers, find_layers

_BIASES = frozenset({"bias", "b"})


def redraw(key: jax.Array, params: Any, layers: Layers | None = None) -> Any:
    r"""Draws every kernel anew, of variance 1 / inputs, and sets biases to 0.

    For parameters from which no re-scaling leads back: zeros, NaN, units that are all alike or
    dead. `lsuv` afterwards gives them their size.

    Args:
      key: Draws the kernels.
      params: The parameters.
      layers: Their layers, which tell a kernel's inputs from its outputs; derived from the
        parameters if None.

    Returns:
      A tree of the same structure; what is neither a kernel nor a bias stays.

    Raises:
      ValueError: The layers are those of another tree.

    Example:
      >>> params = {"dense": {"kernel": jnp.full((100, 50), jnp.nan), "bias": jnp.ones(50)}}
      >>> drawn = redraw(jax.random.key(0), params)["dense"]
      >>> print(f"{drawn['kernel'].std():.2f}", drawn["bias"].sum())
      0.10 0.0

    References:
      LeCun et al., Efficient backprop, 1998, for the variance.
    """
    layers = find_layers(params) if layers is None else layers
    arrays, rebuild = layers.by_path(params)
    drawn = {}
    keys = jax.random.split(key, max(1, len(layers.leaves)))
    for leaf, own in zip(layers.leaves, keys, strict=False):
        x = arrays[leaf.path]
        if leaf.is_matrix:
            fan_in = max(1, math.prod(leaf.shape[axis] for axis in leaf.inputs))
            x = (jax.random.normal(own, x.shape) / fan_in**0.5).astype(x.dtype)
        elif leaf.path.rpartition("/")[-1] in _BIASES:
            x = jnp.zeros_like(x)
        drawn[leaf.path] = x
    return rebuild(drawn)
