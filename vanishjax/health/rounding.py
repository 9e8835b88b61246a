"""Gradients that are 0 but for rounding, where the network's form lets nothing through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# As a share of the gradient of the kernel in the same module. In a small BERT the keys' biases are
# below it and nothing else is.
_ROUNDED = 3e-6


def rounding_noise(
    names: Sequence[str], sizes: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Biases whose gradient is 0 but for rounding, though the kernel beside them gets one.

    What a key's bias adds is the same for all that a softmax compares, and what a bias adds before
    a normalization is taken off again.

    Args:
      names: Of the layers of parameters.
      sizes: Of their gradients.

    Returns:
      The answer for each.
    """
    largest: dict[str, float] = {}
    for name, size in zip(names, sizes, strict=True):
        module = _module(name)
        largest[module] = max(size, largest.get(module, 0.0))
    beside = np.array([largest[_module(name)] for name in names])
    return np.asarray(sizes < _ROUNDED * beside) & np.array(
        [_is_bias(name) for name in names], bool
    )


def _is_bias(name: str) -> bool:
    """Whether a layer is one, by its last key: bias, b, bk, bias_k."""
    return name.partition("[")[0].rpartition("/")[2].startswith("b")


def _module(name: str) -> str:
    """A layer's path without the parameter's own name, its index in a stack kept."""
    path, bracket, index = name.partition("[")
    return path.rpartition("/")[0] + bracket + index
