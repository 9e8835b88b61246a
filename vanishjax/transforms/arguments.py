"""What the arguments `inner` and `layers` may be, refused in the factory and not at `init`."""

from typing import Any

import optax

from vanishjax.layers import Layers


def as_transform(inner: Any, name: str = "inner") -> optax.GradientTransformationExtraArgs:
    """What a wrapper wraps, which takes any extra arguments; raises TypeError for anything else.

    `optax.MultiSteps` is an object with a method that gives the transform: it is taken as well.

    Example:
      >>> as_transform(optax.MultiSteps(optax.sgd(0.1), 2)).update is not None
      True
    """
    if isinstance(inner, Layers):
        raise TypeError(f"{name} must be a gradient transform, got Layers: pass them as layers=...")
    if isinstance(inner, optax.MultiSteps):
        inner = inner.gradient_transformation()
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise TypeError(f"{name} must be a gradient transform, got {type(inner).__name__}")
    return optax.with_extra_args_support(inner)


def check_layers_argument(layers: Any) -> None:
    """Raises TypeError unless it's a `Layers` or None."""
    if layers is None or isinstance(layers, Layers):
        return
    if hasattr(layers, "init") and hasattr(layers, "update"):
        raise TypeError(
            "layers must be a Layers (vanishjax.find_layers) or None, got a gradient transform: a "
            "wrapper takes it first, by position; otherwise join the two with optax.chain"
        )
    raise TypeError(
        f"layers must be a Layers (vanishjax.find_layers) or None, got {type(layers).__name__}"
    )
