"""Parameters of an unrolled MLP as those of the scanned one, and back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def stack_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the parameters of an unrolled MLP into those of the scanned one.

    Args:
      params: ``variables["params"]`` of `MLP`, or the pure dictionary of `NnxMLP`'s state.

    Returns:
      ``hidden_1`` ... ``hidden_{D-1}`` as one ``hidden_stack``, the other layers as they were.

    Raises:
      ValueError: If the hidden layers after the first differ in shape.

    Example:
      >>> from vanishjax.models import MLP
      >>> import jax, jax.numpy as jnp
      >>> params = MLP((8, 8, 8), 3).init(jax.random.key(0), jnp.ones([1, 4]))["params"]
      >>> stack_params(params)["hidden_stack"]["kernel"].shape
      (2, 8, 8)
    """
    names = [*itertools.takewhile(params.__contains__, (f"hidden_{i}" for i in range(1, 1 << 30)))]
    rest = {name: layer for name, layer in params.items() if name not in names}
    if not names:
        return rest
    shapes = {name: jax.tree.map(jnp.shape, params[name]) for name in names}
    for name in names:
        if shapes[name] != shapes[names[0]]:
            raise ValueError(
                f"only layers of one shape can be stacked: {name} has {shapes[name]}, "
                f"{names[0]} has {shapes[names[0]]}"
            )
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    return {**rest, "hidden_stack": stack}


def unstack_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the parameters of a scanned MLP into those of the unrolled one.

    Args:
      params: ``variables["params"]`` of `MLP`, or the pure dictionary of `NnxMLP`'s state.

    Returns:
      ``hidden_stack`` as ``hidden_1`` ... ``hidden_{D-1}``, the other layers as they were.

    Example:
      >>> from vanishjax.models import MLP
      >>> import jax, jax.numpy as jnp
      >>> model = MLP((8, 8, 8), 3, scan=True)
      >>> params = model.init(jax.random.key(0), jnp.ones([1, 4]))["params"]
      >>> sorted(unstack_params(params))
      ['hidden_0', 'hidden_1', 'hidden_2', 'output']
    """
    rest = {name: layer for name, layer in params.items() if name != "hidden_stack"}
    stack = params.get("hidden_stack", {})
    length = len(jax.tree.leaves(stack)[0]) if stack else 0
    for index in range(length):
        rest[f"hidden_{index + 1}"] = jax.tree.map(lambda leaf, i=index: leaf[i], stack)
    return rest
