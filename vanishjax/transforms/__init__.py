"""Gradient transforms: compose them with optax's.

Every one is an `optax.GradientTransformation` with optax's names and arguments, so both libraries
mix freely in `optax.chain`, `masked`, `partition`, `MultiSteps`, `inject_hyperparams`, Flax's
`TrainState` and `nnx.Optimizer`. They are right for gradients from 1e-36 to 1e+36:

>>> import jax.numpy as jnp, optax
>>> import vanishjax as vj
>>> tx = optax.chain(
...     vj.clip_by_global_norm(1e-20),
...     vj.scale_by_adam(eps_relative=True),
...     optax.scale_by_learning_rate(1e-3),
... )
>>> params = {"w": jnp.ones(3)}
>>> gradient = {"w": jnp.array([3e-30, -2e25, 1e30])}
>>> updates, state = tx.update(gradient, tx.init(params), params)
>>> print(updates["w"].round(6))
[-0.     0.001 -0.001]

The first entry is honestly zero: clipping a norm of 1e30 to 1e-20 puts 3e-30 below the smallest
float32. On its own it takes a full step, where optax's Adam stands still:

>>> tiny = jnp.array([1e-30])
>>> for adam in (vj.adam(1e-3, eps_relative=True), optax.adam(1e-3)):
...     updates, _ = adam.update(tiny, adam.init(tiny))
...     print(bool(abs(updates[0]) > 0.0009))
True
False

How: the second moment is kept as its root and squared at its own exponent; norms are kept as a
power of two times a rest; state is float32 at least. In the normal range the values are optax's,
and `convert_state` carries a run from one library to the other and back.

- moments: `scale_by_adam` (Nadam by `nesterov=True`; with `eps_relative=True` eps counts in units
  of the layer's own gradients), `scale_by_adam_atan2` (no eps), `scale_by_rms`, `scale_by_stddev`,
  `momentum`, `nesterov`
- signs: `scale_by_sign`, `scale_by_lion`
- layers: `normalize_by_layer`, `centralize`, `scale_by_trust_ratio`, `orthogonalize`,
  `scale_by_muon`, `scale_by_shape`, `scale_by_depth`
- clips: `clip_by_global_norm`, `clip_by_layer_norm`, `adaptive_clip`
- centering: `deflate`, `center`, `recondition`, `polar_growth`, for chains in which all inputs
  arrive at nearly the same point
- 16 bits: `stochastic_round`, `kahan_sum`, last in a chain, so that bfloat16 and float16 parameters
  lose no update to rounding
- guards: `skip_nonfinite` (skips and names the layer, not the whole tree), `dynamic_loss_scale`;
  both go around `optax.MultiSteps`, the loss scale around all the rest; `monitor` is in
  `vanishjax.health`
"""

from vanishjax.transforms.adam import ScaleByAdamState, scale_by_adam, scale_by_adam_atan2
from vanishjax.transforms.centering import CenterState, center, deflate
from vanishjax.transforms.clipping import adaptive_clip, clip_by_global_norm, clip_by_layer_norm
from vanishjax.transforms.conversion import convert_state
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
from vanishjax.transforms.reconditioning import (
    PolarGrowthState,
    ReconditionState,
    polar_growth,
    recondition,
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
