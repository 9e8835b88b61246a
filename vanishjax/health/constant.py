"""The loss of a network whose output is the same for all inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

# Targets may be counted in cents, or in meters, and a unit beside them be the logarithm of a width:
# steps that grow by so much come to any size soon, each unit's to its own. Of logits that are
# multiplied by thousands they overshoot again and again: from the best of them on they grow less.
_STEPS, _FIRST_STEP, _GROWTH, _LONGEST = 150, 0.01, (1.3, 1.1), 1e30
# Where the best of a unit is at infinity, so near to the least loss, as a part of it, is as good.
_NEAR = 0.02
_SMALL, _LARGE = 2.0**-10, 2.0**10  # beside targets of unit size


class ConstantOutput(NamedTuple):
    """What a network's loss is if the last kernels put out the same for all inputs.

    Attributes:
      loss: The least that was found; see `best_constant`.
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
    found = loss_of_constant(traced, arguments)
    if found is None:
        return ConstantOutput(*(jnp.full((), jnp.nan) for _ in ConstantOutput._fields))
    loss, zeros = found
    pattern = _pattern(zeros)
    once, twice = (jnp.abs(loss(_times(size, pattern))) for size in (_LARGE, 2 * _LARGE))
    least, _ = best_constant(loss, zeros)
    return ConstantOutput(least, loss(zeros), jnp.log2(twice / once))


def loss_of_constant(
    traced: TracedLoss, arguments: Sequence[Any]
) -> tuple[Callable[[Sequence[jax.Array]], jax.Array], list[jax.Array]] | None:
    """The loss as a function of what the last kernels put out, biases beside them not counted.

    Args:
      traced: The loss.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      The function of one array for each last kernel, and zeros of the shapes of one output for all
      inputs, in the type to compute in; None where `constant_output` knows nothing.
    """
    found = tail_of(traced, arguments)
    if found is None:
        return None
    tail, zeros = found
    return in_types_of(zeros, tail), wide(zeros)


def tail_of(
    traced: TracedLoss, arguments: Sequence[Any]
) -> tuple[_jaxpr.Tail, list[jax.Array]] | None:
    """The same with the equations in sight, and zeros in the types of the outputs."""
    leaves = traced.layers.leaves

    def beside(number: int) -> int | None:
        bias = bias_of(leaves[number], leaves)
        return None if bias is None else leaves.index(bias)

    return _jaxpr.constant_tail(traced.program, traced.trace, traced.anatomy, arguments, beside)


def in_types_of(
    zeros: Sequence[jax.Array], tail: Callable[[Sequence[jax.Array]], Any]
) -> Callable[[Sequence[jax.Array]], jax.Array]:
    """A function of outputs that casts them to some types first."""

    def loss(outputs: Sequence[jax.Array]) -> jax.Array:
        value: jax.Array = tail(
            [x.astype(zero.dtype) for x, zero in zip(outputs, zeros, strict=True)]
        )
        return value

    return loss


def wide(zeros: Sequence[jax.Array]) -> list[jax.Array]:
    """Outputs in the accumulator's type, to compute in: in float16 Adam's eps is 0."""
    return [x.astype(numerics.accumulator_dtype(x.dtype)) for x in zeros]


def best_constant(
    loss: Callable[[Sequence[jax.Array]], jax.Array], zeros: Sequence[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """The least loss that one output for all inputs reaches, and that output.

    Args:
      loss: As `loss_of_constant` gives it.
      zeros: As there.

    Returns:
      The best of 0 and of 300 steps of Rprop, of which each unit's grow or shrink on their own. A
      unit that never turned back has its best at infinity, as a class has that isn't in the batch:
      it goes as far as brings the loss within 2% of the least.
    """

    def search(start: list[jax.Array], growth: jax.Array) -> tuple[list[jax.Array], Any]:
        tx = optax.rprop(_FIRST_STEP, eta_plus=growth, min_step_size=0.0, max_step_size=_LONGEST)
        # Each step tells where it was.
        step = local_step(lambda x, _: (loss(x), {"output": x}), tx, has_aux=True)
        first = TrainState.create(start, tx)
        _, seen = scan_steps(step, first, batch_of=lambda _: (), length=_STEPS)
        best = jnp.nanargmin(seen["loss"])
        return [x[best] for x in seen["output"]], seen

    start = _times(_SMALL, _pattern(zeros))
    _, seen = jax.lax.scan(search, start, jnp.asarray(_GROWTH, start[0].dtype))
    moves = [jnp.diff(x[0], axis=0) for x in seen["output"]]
    seen = jax.tree.map(jnp.concatenate, seen)
    lowest, nothing = jnp.nanmin(seen["loss"]), loss(zeros)
    least = jnp.where(nothing < lowest, nothing, lowest)

    def reached(bound: jax.Array) -> list[jax.Array]:
        first = jnp.argmax(seen["loss"] <= bound)
        return [
            jnp.where(nothing <= bound, zero, x[first])
            for zero, x in zip(zeros, seen["output"], strict=True)
        ]

    outputs = [
        jnp.where((move > 0).any(axis=0) & (move < 0).any(axis=0), best, near)
        for move, best, near in zip(
            moves, reached(least), reached(least + _NEAR * jnp.abs(least)), strict=True
        )
    ]
    return least, outputs


def _pattern(zeros: Sequence[jax.Array]) -> list[jax.Array]:
    """Of another size for each unit: a softmax doesn't see what all have in common.

    Zeros, which are tried as well, have no direction.
    """
    return [jnp.linspace(-1, 1, x.size).reshape(x.shape).astype(x.dtype) for x in zeros]


def _times(size: float, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    return [size * x for x in arrays]
