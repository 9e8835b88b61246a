"""The optimizers by name: one line each, from which commands, atlas, help and tests are made.

Nothing here imports JAX, so that a command knows its options at once.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["CONTENDERS", "OPTIMIZERS", "VARIANTS", "Entry"]


class Entry(NamedTuple):
    """What is known of an optimizer.

    Attributes:
      learning_rate: Where to start: Keras's for what Keras has.
      rates: Learning rates to choose from on validation data.
      told: What its factory must be told of the run: "layers", "total_steps" or "activation".
      options: What else a user may set: "momentum", "weight_decay".
      plain: Whether it is for chains without skip connections alone.
      factory: Its name in `vanishjax.optimizers`, where that isn't the name it's listed under.
      arguments: What the factory is always given.
    """

    learning_rate: float
    rates: tuple[float, ...]
    told: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    plain: bool = False
    factory: str | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})


_SGD = (0.03, 0.1, 0.3, 1.0)
_MOMENTUM = (0.003, 0.01, 0.03, 0.1)
_ADAM = (0.001, 0.003, 0.01, 0.03)
_SIGN = (0.0003, 0.001, 0.003, 0.01)
_LARS = (1.0, 3.0, 10.0, 30.0)
_MUON = (0.005, 0.01, 0.02, 0.03)
_CHAIN = (0.03, 0.1)

# What these do to a layer depends on where it ends; the rate of the deep ones falls over the run.
_LAYERS = ("layers",)
_RUN = ("layers", "total_steps")
_DECAY = ("weight_decay",)

OPTIMIZERS: Mapping[str, Entry] = MappingProxyType(
    {
        "sgd": Entry(0.01, _SGD, options=("momentum",)),
        "adam": Entry(0.001, _ADAM),
        "adamw": Entry(0.001, _ADAM, options=_DECAY),
        "nadam": Entry(0.001, _ADAM),
        "nadamw": Entry(0.001, _ADAM, options=_DECAY),
        "rmsprop": Entry(0.001, _ADAM, options=("momentum",)),
        "lion": Entry(0.0001, _SIGN, options=_DECAY),
        "adam_atan2": Entry(0.001, _ADAM, options=_DECAY),
        "lars": Entry(1.0, _LARS, _LAYERS, ("momentum", *_DECAY)),
        "lamb": Entry(0.001, _ADAM, _LAYERS, _DECAY),
        "muon": Entry(0.02, _ADAM, _LAYERS, _DECAY),
        "deep_muon": Entry(0.02, _MUON, _RUN),
        "deep_adam": Entry(0.1, _CHAIN, (*_RUN, "activation"), plain=True),
    }
)
"""Every optimizer of `vanishjax.optimizers`, by its name there."""

VARIANTS: Mapping[str, Entry] = MappingProxyType(
    {
        "momentum": Entry(0.01, _MOMENTUM, factory="sgd", arguments={"momentum": 0.9}),
        "nesterov": Entry(
            0.01, _MOMENTUM, factory="sgd", arguments={"momentum": 0.9, "nesterov": True}
        ),
    }
)
"""Forms of these that `compare` and `atlas` know by a name of their own."""

CONTENDERS: Mapping[str, Entry] = MappingProxyType({**OPTIMIZERS, **VARIANTS})
"""Both: all that can be compared."""
