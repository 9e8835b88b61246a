"""Optimizers: named chains of transforms that end in the learning rate.

Arguments bear optax's names, in optax's order. A `learning_rate` is a float or an optax schedule.
All keep float32 state at least, so that 16-bit parameters lose no gradient.

- by entry: `sgd`, `adam`, `adamw`, `nadam`, `nadamw`, `adam_atan2`, `rmsprop`, `lion`
- by layer: `lars`, `lamb`, `muon`; they take `layers`, as `vanishjax.find_layers` gives them
- for deep chains: `deep_muon`, `deep_adam`

`vanishjax.catalog` has a line for each: its rates, and what it is told of the run.
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
