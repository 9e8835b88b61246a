"""Initializers at the critical point, where gradients neither vanish nor explode.

`critical_orthogonal` and `critical_normal` go where Flax takes a ``kernel_init``, `critical_bias`
where it takes a ``bias_init``. What a bias initializer can't do, because it doesn't see the kernel,
`center_biases` does afterwards: take the mean that a sigmoid adds out of the next layer. `lsuv`
does the same for any model, by looking at data instead of theory; `looks_linear` is for rectifiers.
`redraw` is for parameters beyond repair. `small_branches`, `small_queries` and `small_output` touch
nothing but the kernels that they name: for transformers and other residual networks.
`identity_attention` is for attention without skip connections. `long_memory` is for recurrent cells
in a scan over time: LSTMs and GRUs whose gates start half open, as in most libraries, forget in ten
steps, and learn nothing of what lies further back.
`shaped` goes further, to plain chains of a thousand layers and more; `delta_orthogonal` is for
convolutions. `pca` turns the first kernels of any of these toward what the inputs are made of.
"""

from vanishjax.initializers.attention import identity_attention
from vanishjax.initializers.critical import (
    center_biases,
    critical_bias,
    critical_normal,
    critical_orthogonal,
)
from vanishjax.initializers.mirrored import looks_linear
from vanishjax.initializers.named import INITIALIZERS, Initialization, initialization
from vanishjax.initializers.principal import pca
from vanishjax.initializers.redrawn import redraw
from vanishjax.initializers.remembering import long_memory
from vanishjax.initializers.shaped import shaped
from vanishjax.initializers.shaping import delta_orthogonal
from vanishjax.initializers.small import small_branches, small_output, small_queries
from vanishjax.initializers.unit_variance import lsuv

__all__ = [
    "INITIALIZERS",
    "Initialization",
    "center_biases",
    "critical_bias",
    "critical_normal",
    "critical_orthogonal",
    "delta_orthogonal",
    "identity_attention",
    "initialization",
    "long_memory",
    "looks_linear",
    "lsuv",
    "pca",
    "redraw",
    "shaped",
    "small_branches",
    "small_output",
    "small_queries",
]
