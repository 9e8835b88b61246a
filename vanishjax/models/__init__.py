"""Multi-layer perceptrons in Flax, linen and nnx, unrolled and scanned.

Both models name their layers alike, in depth order under a natural sort: ``hidden_0`` (input to
width), ``hidden_1`` ... ``hidden_{D-1}`` when unrolled or one ``hidden_stack`` whose leaves have
shape ``[D-1, ...]`` when scanned, and ``output``. Each holds ``kernel [in, out]`` and ``bias
[out]``; a ReZero layer also a scalar ``alpha``.
"""

from vanishjax.activations import Activation
from vanishjax.models.architecture import Residual, parameter_shapes
from vanishjax.models.linen import MLP
from vanishjax.models.mlp import mlp_problem
from vanishjax.models.nnx import NnxMLP
from vanishjax.models.stacking import stack_params, unstack_params

__all__ = [
    "MLP",
    "Activation",
    "NnxMLP",
    "Residual",
    "mlp_problem",
    "parameter_shapes",
    "stack_params",
    "unstack_params",
]
