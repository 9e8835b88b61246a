"""Norms, moments and scalings that neither overflow nor underflow.

Squaring a float32 loses every number below 1e-19 and above 1e+19, half of its range on either
side. What needs a square here takes it of a number divided by a power of two near its own size:
such a division only moves the exponent, so it rounds nothing, and in the normal range the results
are those of the plain formula. Moments of few entries take it of a quotient instead, which is
sooner done. 16-bit numbers are computed in float32 and cast back once.

NaN stays NaN. XLA on a CPU may drop it in a maximum or minimum that is reduced, or fused with a
reduction, once an array has a few thousand entries. So a maximum here only ever chooses a scale,
and what changes a value is a comparison that is false for NaN.
"""

from vanishjax.numerics.arithmetic import (
    arctan2,
    at_least,
    divide,
    divide_by_positive,
    divide_by_sum,
    einsum,
    hypot,
    matmul,
    power_of_two,
    sqrt,
)
from vanishjax.numerics.dtypes import (
    accumulator_dtype,
    cast_like,
    common_dtype,
    saturating_cast,
    upcast,
    zeros_like,
)
from vanishjax.numerics.moments import (
    LIFT,
    add_in_root,
    bias_correction,
    mean_moment,
    root_moment,
)
from vanishjax.numerics.norms import (
    Axes,
    global_norm,
    norm,
    rms,
    scaled_norm,
    split_global_norm,
    split_norm,
    split_rms,
)

__all__ = [
    "LIFT",
    "Axes",
    "accumulator_dtype",
    "add_in_root",
    "arctan2",
    "at_least",
    "bias_correction",
    "cast_like",
    "common_dtype",
    "divide",
    "divide_by_positive",
    "divide_by_sum",
    "einsum",
    "global_norm",
    "hypot",
    "matmul",
    "mean_moment",
    "norm",
    "power_of_two",
    "rms",
    "root_moment",
    "saturating_cast",
    "scaled_norm",
    "split_global_norm",
    "split_norm",
    "split_rms",
    "sqrt",
    "upcast",
    "zeros_like",
]
