"""Pure gradient transforms in the optax protocol, a file a concept."""

from vanishjax.transforms.adam import ScaleByAdamState, scale_by_adam
from vanishjax.transforms.clipping import clip_by_global_norm
from vanishjax.transforms.momentum import MomentumState, momentum, nesterov
from vanishjax.transforms.rms import (
    ScaleByRmsState,
    ScaleByStddevState,
    scale_by_rms,
    scale_by_stddev,
)
from vanishjax.transforms.sign import ScaleByLionState, scale_by_lion, scale_by_sign

__all__ = [
    "MomentumState",
    "ScaleByAdamState",
    "ScaleByLionState",
    "ScaleByRmsState",
    "ScaleByStddevState",
    "clip_by_global_norm",
    "momentum",
    "nesterov",
    "scale_by_adam",
    "scale_by_lion",
    "scale_by_rms",
    "scale_by_sign",
    "scale_by_stddev",
]
