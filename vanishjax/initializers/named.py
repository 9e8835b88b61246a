"""Initializers by name, as the commands and the atlas take them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax

from vanishjax.activations import Activation
from vanishjax.initializers.critical import critical_bias, critical_normal, critical_orthogonal
from vanishjax.validation import lookup

Initializer = Callable[..., jax.Array]

INITIALIZERS: Mapping[str, Callable[[str | Activation], Initializer]] = MappingProxyType(
    {
        "lecun": lambda _: jax.nn.initializers.lecun_normal(),
        "he": lambda _: jax.nn.initializers.he_normal(),
        "critical_orthogonal": critical_orthogonal,
        "critical_normal": critical_normal,
    }
)
"""Kernels by name, from the activation behind them."""


class Initialization(NamedTuple):
    """How a network's kernels and biases are drawn.

    One that `centers` means `center_biases` to be applied to what was drawn, unless skip
    connections feed the layers: then it is the stream that feeds them, not an activation.
    """

    kernel_init: Initializer
    bias_init: Initializer
    centers: bool


def initialization(name: str, activation: str | Activation) -> Initialization:
    """The initializers of a name.

    Args:
      name: A key of `INITIALIZERS`; "lecun" is Flax's own.
      activation: Of the network's layers.

    Returns:
      The initializers, and whether the biases are to be centered after them.

    Raises:
      ValueError: An unknown name, or an activation without a critical point (softplus).

    Example:
      >>> initialization("critical_normal", "sigmoid").centers
      True
    """
    kernel_init = lookup("initializer", name, INITIALIZERS)(activation)
    if not name.startswith("critical"):
        return Initialization(kernel_init, jax.nn.initializers.zeros, centers=False)
    return Initialization(kernel_init, critical_bias(activation), centers=True)
