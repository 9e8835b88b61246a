"""Paths of parameters in a tree, written with "/" between the keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# The last keys of a kernel's path and of its bias's: Flax; Equinox and Torch; Haiku and by hand.
BIAS_OF = {"kernel": "bias", "weight": "bias", "weights": "biases", "w": "b", "W": "b"}


def modules(path: str) -> list[str]:
    """The paths of all that a parameter lies in, outermost first."""
    keys = path.split("/")
    return ["/".join(keys[:i]) for i in range(len(keys))]


def covers(hole: str, path: str) -> bool:
    """Whether what stands at `hole`, in place of a leaf or a subtree, stands for a parameter."""
    return not hole or path == hole or path.startswith(hole + "/")


def natural_order(paths: Sequence[str]) -> list[int]:
    """The order that sorts paths key by key, numbers as numbers.

    Example:
      >>> natural_order(["layer_10/w", "layer_9/w", "layer_9/b"])
      [2, 1, 0]
    """

    def natural(number: int) -> list[list[Any]]:
        return [
            [int(word) if word.isdigit() else word for word in re.split(r"([0-9]+)", key)]
            for key in paths[number].split("/")
        ]

    return sorted(range(len(paths)), key=natural)
