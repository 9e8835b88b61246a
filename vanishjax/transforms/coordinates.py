"""A transform that sees parameters and gradients in other coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from vanishjax.transforms.arguments import as_transform


class InCoordinates(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax is untyped
    """A transform that knows what it wraps, so that a diagnosis can look at what that sees.

    Attributes:
      inner: The transform that it wraps.
      inside: Parameters as that sees them, of those outside.
      outside: The way back.
      unit: What the loss is divided by inside.
    """

    inner: optax.GradientTransformationExtraArgs
    inside: Callable[[Any], Any]
    outside: Callable[[Any], Any]
    unit: float


def in_coordinates(
    inner: optax.GradientTransformation,
    inside: Callable[[Any], Any],
    outside: Callable[[Any], Any],
    gradient: Callable[[Any], Any],
    unit: float = 1.0,
) -> InCoordinates:
    """A transform that sees parameters and gradients in other coordinates.

    Args:
      inner: The transform; its state is the whole state.
      inside: Parameters in the coordinates that it is to see, of those outside.
      outside: The way back, of steps too: it is linear.
      gradient: The gradient inside, of that outside.
      unit: What the loss is divided by inside.

    Returns:
      A transform of what is outside, which needs the parameters.

    Raises:
      TypeError: It's no transform.
      ValueError: `update` without parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = in_coordinates(optax.sgd(1.0), lambda p: p / 2, lambda p: 2 * p, lambda g: 2 * g)
      >>> print(tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0])
      [-4. -4.]
    """
    within = as_transform(inner)

    def init_fn(params: optax.Params) -> optax.OptState:
        return within.init(inside(params))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("other coordinates need params: update(grads, state, params)")
        if "value_fn" in extra:
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda seen: value_fn(outside(seen)) / unit
        if "value" in extra:
            extra["value"] = extra["value"] / unit
        if "grad" in extra:
            extra["grad"] = gradient(extra["grad"])
        steps, state = within.update(gradient(updates), state, inside(params), **extra)
        return outside(steps), state

    made = InCoordinates(init_fn, update_fn)
    made.inner, made.inside, made.outside, made.unit = within, inside, outside, unit
    return made
