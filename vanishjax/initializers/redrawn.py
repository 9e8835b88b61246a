"""Kernels drawn anew, for parameters that are beyond repair."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax.layers import Layers, find_layers

_BIASES = frozenset({"bias", "b"})
_GAINS = frozenset({"scale", "gain", "gamma", "weight"})


def redraw(key: jax.Array, params: Any, layers: Layers | None = None) -> Any:
    r"""Draws every kernel anew, of variance 1 / inputs, and sets biases to 0, dead gains to 1.

    For parameters from which no re-scaling leads back: zeros, NaN, units that are all alike or
    dead. `lsuv` afterwards gives them their size.

    Args:
      key: Draws the kernels.
      params: The parameters.
      layers: Their layers, which tell a kernel's inputs from its outputs; derived from the
        parameters if None.

    Returns:
      A tree of the same structure. Gains (of normalizations: vectors that are named so) stay, but
      for those that aren't finite, and where all of them are 0 or not finite, all; so does what is
      none of the three.

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
    alive = {
        leaf.path: jnp.isfinite(arrays[leaf.path]).all() & arrays[leaf.path].any()
        for leaf in layers.leaves
        if not leaf.is_matrix and _name(leaf.path) in _GAINS
    }
    any_alive = functools.reduce(jnp.logical_or, alive.values(), jnp.array(False))
    drawn = {}
    keys = jax.random.split(key, max(1, len(layers.leaves)))
    for leaf, own in zip(layers.leaves, keys, strict=False):
        x = arrays[leaf.path]
        if leaf.is_matrix:
            fan_in = max(1, math.prod(leaf.shape[axis] for axis in leaf.inputs))
            x = (jax.random.normal(own, x.shape) / fan_in**0.5).astype(x.dtype)
        elif _name(leaf.path) in _BIASES:
            x = jnp.zeros_like(x)
        elif leaf.path in alive:
            kept = any_alive & jnp.isfinite(x).all()
            x = jnp.where(kept, x, jnp.ones_like(x))
        drawn[leaf.path] = x
    return rebuild(drawn)


def _name(path: str) -> str:
    return path.rpartition("/")[-1]
