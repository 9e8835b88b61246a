"""Pure gradient transforms in the optax protocol, a file a concept."""

from vanishjax.transforms.adam import ScaleByAdamState, scale_by_adam, scale_by_adam_atan2
from vanishjax.transforms.centering import CenterState, center, deflate
from vanishjax.transforms.clipping import adaptive_clip, clip_by_global_norm, clip_by_layer_norm
from vanishjax.transforms.conversion import convert_state
from vanishjax.transforms.criticality import (
    PolarGrowthState,
    ReconditionState,
    polar_growth,
    recondition,
)
from vanishjax.transforms.depth import scale_by_depth
from vanishjax.transforms.loss_scale import (
    DynamicLossScaleState,
    dynamic_loss_scale,
    read_loss_scale,
)
from vanishjax.transforms.momentum import MomentumState, momentum, nesterov
from vanishjax.transforms.normalization import (
    centralize,
    normalize_by_layer,
    scale_by_trust_ratio,
)
from vanishjax.transforms.orthogonalization import (
    NEWTON_SCHULZ,
    Coefficients,
    ScaleByMuonState,
    orthogonalize,
    scale_by_muon,
    scale_by_shape,
)
from vanishjax.transforms.rms import (
    ScaleByRmsState,
    ScaleByStddevState,
    scale_by_rms,
    scale_by_stddev,
)
from vanishjax.transforms.rounding import (
    KahanSumState,
    StochasticRoundState,
    kahan_sum,
    stochastic_round,
)
from vanishjax.transforms.safety import SkipNonfiniteState, read_skipped, skip_nonfinite
from vanishjax.transforms.sign import ScaleByLionState, scale_by_lion, scale_by_sign

__all__ = [
    "NEWTON_SCHULZ",
    "CenterState",
    "Coefficients",
    "DynamicLossScaleState",
    "KahanSumState",
    "MomentumState",
    "PolarGrowthState",
    "ReconditionState",
    "ScaleByAdamState",
    "ScaleByLionState",
    "ScaleByMuonState",
    "ScaleByRmsState",
    "ScaleByStddevState",
    "SkipNonfiniteState",
    "StochasticRoundState",
    "adaptive_clip",
    "center",
    "centralize",
    "clip_by_global_norm",
    "clip_by_layer_norm",
    "convert_state",
    "deflate",
    "dynamic_loss_scale",
    "kahan_sum",
    "momentum",
    "nesterov",
    "normalize_by_layer",
    "orthogonalize",
    "polar_growth",
    "read_loss_scale",
    "read_skipped",
    "recondition",
    "scale_by_adam",
    "scale_by_adam_atan2",
    "scale_by_depth",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_rms",
    "scale_by_shape",
    "scale_by_sign",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "skip_nonfinite",
    "stochastic_round",
]
