"""Optimizers: named chains of transforms that end in the learning rate.

Arguments bear optax's names, in optax's order. A `learning_rate` is a float or an optax schedule.
All keep float32 state at least, so that 16-bit parameters lose no gradient.
"""

from vanishjax.optimizers.deep import deep_muon
from vanishjax.optimizers.deep_adam import deep_adam
from vanishjax.optimizers.elementwise import (
    adam,
    adam_atan2,
    adamw,
    lion,
    nadam,
    nadamw,
    rmsprop,
    sgd,
)
from vanishjax.optimizers.layerwise import lamb, lars, muon

__all__ = [
    "adam",
    "adam_atan2",
    "adamw",
    "deep_adam",
    "deep_muon",
    "lamb",
    "lars",
    "lion",
    "muon",
    "nadam",
    "nadamw",
    "rmsprop",
    "sgd",
]
