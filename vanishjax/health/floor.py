"""What stands between the last kernel and the loss, and lets too little through.

A softmax before a cross-entropy that takes a softmax itself, a tanh under targets of thousands, a
difference of all outputs and all targets: whatever the kernel puts out, the loss can't come down.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.health.constant import ConstantOutput, best_constant, in_types_of, tail_of, wide
from vanishjax.health.finding import Where
from vanishjax.health.measurements import Floor
from vanishjax.layers.traced import TracedLoss

# How far below the constant's loss, in its own size, one without the squashing may lie: an expected
# reward has no end.
_FARTHEST = 3.0

# Sizes of what the kernel puts out: at the small one a normalization's eps is nothing.
_SMALL, _LARGE = 2.0**-4, 2.0**10
# Powers with which something grows with what the kernel puts out.
_BOUNDED, _GROWING = 0.25, 0.5
# By so much of its size what is squashed changes from small outputs to large ones; what is
# normalized doesn't.
_CHANGES = 0.01
# Losses that differ by less of the constant output's are the same.
_SAME = 0.02
# So many of the operations that squash are tried.
_TRIED = 3


class Traceable(Protocol):
    """A loss that can be traced, hashable."""

    def traced(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> TracedLoss:
        """The loss as a program."""
        ...


def find_floor(
    loss: Traceable,
    leaves: list[Any],
    arrays: list[Any],
    constant: ConstantOutput,
    crossed: Sequence[_jaxpr.Place | None],
) -> Floor | None:
    """Looks for what keeps the loss up.

    Only where the loss hardly grows with what the last kernel puts out, or all outputs meet all
    examples: it takes a second or two.

    Args:
      loss: The loss.
      leaves: The parameters' leaves.
      arrays: The batch's arrays.
      constant: What is known of constant outputs (`ConstantOutput`, on the host).
      crossed: Where all outputs meet all examples, if they do.

    Returns:
      A `Floor`; None where nothing that may be one was found.
    """
    if not constant.loss > 0:
        return None
    if crossed:
        least, _ = jax.device_get(_reaching(loss, (), leaves, arrays))
        if constant.loss - least < _SAME * constant.loss:
            where = _where(crossed[0], "broadcast")
            return Floor("crossed", where, float(least), math.nan, math.nan)
    return _squash(loss, leaves, arrays, constant) if constant.growth < _BOUNDED else None


def _squash(
    loss: Traceable, leaves: list[Any], arrays: list[Any], constant: ConstantOutput
) -> Floor | None:
    seen = _stages(loss, leaves, arrays)
    if seen is None:
        return None
    growth, change = (np.asarray(x) for x in seen.numbers)
    bounded = [i for i in np.flatnonzero(growth < _BOUNDED) if change[i] > _CHANGES]
    if not bounded:
        return None
    growing = np.flatnonzero(growth[: bounded[0]] > _GROWING)
    pairs = [
        (int(i), int(min(alike)))
        for i in bounded
        if (alike := [j for j in growing if seen.shapes[j] == seen.shapes[i]])
    ]
    if not pairs:
        return None
    least, others = jax.device_get(_reaching(loss, tuple(pairs[:_TRIED]), leaves, arrays))
    found = [
        Floor("squashed", seen.makers[stage], float(least), float(without), float(power))
        for (stage, _), (without, power) in zip(pairs, others, strict=False)
        if constant.loss - without <= _FARTHEST * abs(constant.loss)
    ]
    lowest = min((one.without for one in found), default=0.0)
    near = lowest + _SAME * abs(constant.loss)
    # What comes after it can be left out as well.
    return next((one for one in found if one.without <= near), None)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["shapes", "makers"]
)
@dataclasses.dataclass
class _Stages:
    """What is made of what the last kernel puts out on the way to the loss.

    Attributes:
      numbers: For each stage the power with which it grows, and by how much of its size it changes.
      shapes: Theirs.
      makers: Of each where in the user's code it is made, and by what.
    """

    numbers: Any
    shapes: Any
    makers: Any


@functools.partial(jit_once, static_argnums=0)
def _stages(loss: Traceable, leaves: list[Any], arrays: list[Any]) -> _Stages | None:
    found = tail_of(loss.traced(leaves, arrays), [*leaves, *arrays])
    if found is None or not found[0].stages:
        return None
    tail, zeros = found
    # Both ways for every unit: what is bounded on one side, as by a ReLU, counts.
    (zero,) = zeros
    (start,) = _shapes(tail.starts)
    units = jnp.linspace(-1, 1, zero.size).reshape(zero.shape)
    ways = jnp.where(jnp.arange(start[0]) % 2, 1.0, -1.0)
    pattern = units * ways.reshape(-1, *[1] * (len(start) - 1)) if start else units
    usual, large, twice = (
        [numerics.upcast(x) for x in tail.values([(size * pattern).astype(zero.dtype)])]
        for size in (_SMALL, _LARGE, 2 * _LARGE)
    )
    positive = jnp.broadcast_to(pattern, start).ravel() > 0
    growth = [
        jnp.minimum(*(_growth(a.ravel(), b.ravel(), own) for own in (positive, ~positive)))
        for a, b in zip(large, twice, strict=True)
    ]
    change = [
        numerics.rms(b.ravel() - a.ravel()) / numerics.rms(b)
        for a, b in zip(usual, large, strict=True)
    ]
    return _Stages(
        (jnp.stack(growth), jnp.stack(change)),
        _shapes(tail.stages),
        tuple(
            None if eqn is None else _where(_jaxpr.place_of(eqn), name)
            for eqn, name in tail.makers()
        ),
    )


def _growth(small: jax.Array, large: jax.Array, there: jax.Array) -> jax.Array:
    """The power with which some entries grow; 0 where they are nothing."""
    sizes = [numerics.rms(jnp.where(there, x, 0.0)) for x in (small, large)]
    return jnp.where(sizes[1] == 0, 0.0, jnp.log2(sizes[1] / sizes[0]))


def _where(place: _jaxpr.Place | None, name: str) -> Where | None:
    return None if place is None else Where.of(place.file, place.line, name)


def _shapes(variables: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(v.aval.shape) for v in variables)


@functools.partial(jit_once, static_argnums=(0, 1))
def _reaching(
    loss: Traceable, pairs: tuple[tuple[int, int], ...], leaves: list[Any], arrays: list[Any]
) -> Any:
    """The least loss of outputs of their own for all examples; without some stages; its growth."""
    found = tail_of(loss.traced(leaves, arrays), [*leaves, *arrays])
    if found is None:
        raise ValueError("nothing is known of what the last kernel puts out")
    tail, zeros = found
    own = [jnp.zeros(shape, x.dtype) for x, shape in zip(zeros, _shapes(tail.starts), strict=True)]

    def least(without: tuple[int, int] | None) -> tuple[jax.Array, jax.Array]:
        of = in_types_of(own, functools.partial(tail, without=without))
        ones = [x + _LARGE for x in wide(own)]
        growth = jnp.log2(jnp.abs(of([2 * x for x in ones])) / jnp.abs(of(ones)))

        def from_there(shift: jax.Array) -> jax.Array:
            return best_constant(lambda y: of([x + shift for x in y]), wide(own))[0]

        # Where a ReLU is 0 there is no slope to go by.
        return jnp.nanmin(jax.lax.map(from_there, jnp.array([0.0, 1.0, -1.0]))), growth

    return least(None)[0], [least(pair) for pair in pairs]
