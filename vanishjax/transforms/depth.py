"""Steps that shrink with the depth of the network."""

from typing import Any

import jax
import numpy as np
import optax

from vanishjax import numerics
from vanishjax.layers import Layers
from vanishjax.layers.matrices import bias_of, kernel_places
from vanishjax.transforms.arguments import check_layers_argument
from vanishjax.transforms.per_layer import check_layers, layers_of


def scale_by_depth(layers: Layers | None = None) -> optax.GradientTransformation:
    r"""Divides the updates of all layers between the first kernel and the last by the depth.

    For L + 1 kernels, that is L layers with an activation behind them, :math:`u \leftarrow u / L`
    for hidden layers; the first kernel, the last one and their biases keep what they have. A step
    then changes what the network does by as much at every depth, so that one learning rate serves
    them all. Put it behind the transform that gives updates their size.

    Args:
      layers: Division of the tree into layers; derived from the parameters if None, which takes
        the order of paths for the order of layers. A kernel is an array of two axes or more.

    Returns:
      A stateless transform; updates keep shape and type.

    Raises:
      ValueError: At `init`, a leaf that is not floating point, or layers of another tree.
      TypeError: layers is no `Layers`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_depth()
      >>> params = {"layer_0": jnp.ones((1, 1)), "layer_1": jnp.ones((8, 1, 1))[0]}
      >>> params |= {"layer_2": jnp.ones((1, 1)), "layer_3": jnp.ones((1, 1))}
      >>> update, _ = tx.update(params, tx.init(params))
      >>> print(*(round(float(u[0, 0]), 2) for u in update.values()))
      1.0 0.33 0.33 1.0

    References:
      Dey et al., Don't be lazy: CompleteP enables compute-efficient deep transformers, 2025, arXiv
      2505.01618; Jelassi et al., Depth dependence of muP learning rates in ReLU MLPs, 2023.
    """
    check_layers_argument(layers)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        check_layers(layers, params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        found = layers_of(layers, updates)
        factors = found.expand(_factors(found), updates)

        def scale(update: Any, factor: Any) -> Any:
            return numerics.upcast(update) * numerics.upcast(factor)

        steps = jax.tree.map(scale, updates, factors)
        return numerics.cast_like(steps, updates), state

    return optax.GradientTransformation(init_fn, update_fn)


def _factors(layers: Layers) -> np.ndarray[Any, Any]:
    """1 / L for hidden layers and 1 for the others, `[layers]`."""
    kernels = kernel_places(layers)
    factors = np.ones(len(layers), np.float32)
    if len(kernels) > 2:
        first, last = kernels[0], kernels[-1]
        factors[first + 1 : last] = 1 / (len(kernels) - 1)
        for place in (first, last):
            bias = bias_of(layers.homes[place], layers.leaves)
            if bias is not None and not bias.axes:
                factors[layers.homes.index(bias)] = 1.0
    return factors
