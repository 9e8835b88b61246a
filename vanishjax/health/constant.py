"""The loss of a network whose output is the same for all inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import _jaxpr, numerics
from vanishjax.layers.matrices import bias_of
from vanishjax.layers.traced import TracedLoss
from vanishjax.training.scan import scan_steps
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step

_STEPS = 150
# Each of them reaches 100 times as far: targets may be counted in cents, or in meters.
_RATES = 0.1, 10.0, 1e3, 1e5
_SMALL, _LARGE = 2.0**-10, 2.0**10  # beside targets of unit size


class ConstantOutput(NamedTuple):
    """What a network's loss is if the last kernels put out the same for all inputs.

    Attributes:
      loss: The least that was found, in 150 steps of Adam at each of several rates.
      nothing: The loss where all of it is 0.
      growth: The power with which it grows with large outputs: 1 for a cross-entropy, 2 for a
        square, 0 where it doesn't.
    """

    loss: jax.Array
    nothing: jax.Array
    growth: jax.Array


def constant_output(traced: TracedLoss, arguments: Sequence[Any]) -> ConstantOutput:
    """Looks at the loss as a function of one output for all inputs.

    Args:
      traced: The loss.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      What it is; NaN where the last kernel stands in a loop, or meets several inputs without a bias
      beside it.
    """
    leaves = traced.layers.leaves

    def beside(number: int) -> int | None:
        bias = bias_of(leaves[number], leaves)
        return None if bias is None else leaves.index(bias)

    found = _jaxpr.constant_tail(traced.program, traced.trace, traced.anatomy, arguments, beside)
    if found is None:
        return ConstantOutput(*(jnp.full((), jnp.nan) for _ in ConstantOutput._fields))
    tail, zeros = found
    # Of another size for each unit: a softmax doesn't see what all have in common, and zeros, which
    # are tried as well, have no direction.
    # In the accumulator's type: in float16 Adam's eps is 0.
    types = [numerics.accumulator_dtype(x.dtype) for x in zeros]
    pattern = [
        jnp.linspace(-1, 1, x.size).reshape(x.shape).astype(dtype)
        for x, dtype in zip(zeros, types, strict=True)
    ]

    def loss(constants: Sequence[jax.Array]) -> jax.Array:
        own = [x.astype(zero.dtype) for x, zero in zip(constants, zeros, strict=True)]
        value: jax.Array = tail(own)
        return value

    def search(rate: jax.Array) -> jax.Array:
        tx = optax.adam(rate)
        step = local_step(lambda constants, _: loss(constants), tx)
        start = TrainState.create(_times(_SMALL, pattern), tx)
        _, metrics = scan_steps(step, start, batch_of=lambda _: (), length=_STEPS)
        return jnp.nanmin(metrics["loss"])

    once, twice = (jnp.abs(loss(_times(size, pattern))) for size in (_LARGE, 2 * _LARGE))
    nothing, least = tail(zeros), jnp.min(jax.lax.map(search, jnp.array(_RATES)))
    best = jnp.where(nothing < least, nothing, least)
    return ConstantOutput(best, nothing, jnp.log2(twice / once))


def _times(size: float, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    return [size * x for x in arrays]
