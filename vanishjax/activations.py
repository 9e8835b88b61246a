"""Activations by name, each a function of one array, elementwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from vanishjax.validation import lookup

__all__ = ["ACTIVATIONS", "Activation", "resolve_activation"]

Activation = Callable[[jax.Array], jax.Array]


def _centered_sigmoid(x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x) - 0.5


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _identity(x: jax.Array) -> jax.Array:
    return x


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "centered_sigmoid": _centered_sigmoid,
        "elu": jax.nn.elu,
        "erf": jax.lax.erf,
        "gelu": _gelu,
        "hard_tanh": jax.nn.hard_tanh,
        "identity": _identity,
        "leaky_relu": jax.nn.leaky_relu,
        "relu": jax.nn.relu,
        "selu": jax.nn.selu,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "softplus": jax.nn.softplus,
        "softsign": jax.nn.soft_sign,
        "tanh": jnp.tanh,
    }
)
"""Activations by name; ``centered_sigmoid`` is sigmoid(x) - 1/2, ``gelu`` the exact erf form."""


def resolve_activation(activation: str | Activation) -> Activation:
    """Turns the name of an activation into its function.

    Args:
      activation: A key of `ACTIVATIONS`, or a function, which is returned as it is.

    Returns:
      A function of one array, elementwise.

    Raises:
      ValueError: If the name is unknown; the message suggests the nearest one.

    Example:
      >>> float(resolve_activation("centered_sigmoid")(0.0))
      0.0
      >>> resolve_activation("sigmiod")
      Traceback (most recent call last):
      ...
      ValueError: unknown activation 'sigmiod': did you mean 'sigmoid'? Known: ...
    """
    if callable(activation):
        return activation
    return lookup("activation", activation, ACTIVATIONS)
