"""An optimizer by its name, at the rate that the commands take for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optax

    from vanishjax.layers import Layers

# Those of Keras, which most readers of the literature start from; Lion wants a tenth of Adam's.
LEARNING_RATES = {
    "sgd": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
    "nadam": 0.001,
    "nadamw": 0.001,
    "rmsprop": 0.001,
    "lion": 0.0001,
    "adam_atan2": 0.001,
    "lars": 1.0,
    "lamb": 0.001,
    "muon": 0.02,
    "deep_muon": 0.02,
}
# What these do to a layer depends on where it ends: they are told.
_SEE_LAYERS = ("lars", "lamb", "muon", "deep_muon")
# Their rate falls over the run.
_SEE_HORIZON = ("deep_muon",)


def make_optimizer(
    name: str, learning_rate: float | None, layers: Layers, total_steps: int, **arguments: Any
) -> optax.GradientTransformation:
    """The optimizer of a name.

    Args:
      name: One of `options.OPTIMIZERS`.
      learning_rate: None for that of `LEARNING_RATES`.
      layers: Of the network.
      total_steps: Length of the run.
      **arguments: More of the optimizer's own.

    Returns:
      The transform.
    """
    from vanishjax import optimizers

    if name in _SEE_LAYERS:
        arguments["layers"] = layers
    if name in _SEE_HORIZON:
        arguments["total_steps"] = total_steps
    made: optax.GradientTransformation = getattr(optimizers, name)(
        learning_rate or LEARNING_RATES[name], **arguments
    )
    return made
