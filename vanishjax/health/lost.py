"""Steps too small for the type of the parameters that they are added to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import numerics
from vanishjax.compilation import jit_once
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding
from vanishjax.health.remedies import FITTING
from vanishjax.layers import Layers
from vanishjax.transforms.rounding import KahanSumState, StochasticRoundState
from vanishjax.transforms.states import find_states

# Share of the 16-bit entries that a step moves. In bfloat16 Adam's loss falls by two thirds of what
# it falls by in float32 where .27 move (a rate of 1e-4 on LeCun's kernels), by a third at .06, by a
# tenth at .03 and by a hundredth at .006. Of the networks of `benchmarks.real_networks` with less
# than .42 none learns enough (.56 and .38 of the gap at .36 and .38), and of those that do none has
# less than half.
MOVED_SHARE = 0.5
STILL_SHARE = 0.4


def moved_share(
    params: Any, layers: Layers, step_rms: np.ndarray[Any, Any], state: Any
) -> np.ndarray[Any, Any] | None:
    """For each layer the share of its entries that one step moves to another number.

    Args:
      params: The parameters.
      layers: Their division into layers.
      step_rms: `[layers]`, the root mean square of one step; every entry's is taken to be that.
      state: The optimizer's, or its shapes.

    Returns:
      `[layers]`; NaN for types of 32 bits and more. None where nothing is lost: without narrower
      types, or where `stochastic_round` or `kahan_sum` keeps it.
    """
    narrow = any(jnp.dtype(x.dtype).itemsize < 4 for x in jax.tree.leaves(params))
    kept = (find_states(state, kind) for kind in (StochasticRoundState, KahanSumState))
    if not narrow or any(kept):
        return None
    steps = np.where(np.isfinite(step_rms), step_rms, 0.0)
    return np.asarray(_moved_share(layers, params, jnp.asarray(steps, jnp.float32)), np.float64)


def _share(layers: Layers, params: Any, steps: jax.Array) -> jax.Array:
    def moved(x: jax.Array, step: jax.Array) -> jax.Array:
        info = jnp.finfo(x.dtype)
        if info.bits >= 32:
            return jnp.full(x.shape, jnp.nan)
        least = float(info.smallest_normal)
        size = jnp.maximum(jnp.abs(x.astype(jnp.float32)), least)
        # Half the distance to the next number; below it the sum is rounded back.
        half = numerics.power_of_two(size)[0] * 2.0 ** -(info.nmant + 1)
        return (step > half).astype(jnp.float32)

    moves = jax.tree.map(moved, params, layers.expand(steps, params))
    return layers.reduce(lambda x, axes: jnp.mean(x, axes), moves)


_moved_share = jit_once(_share, static_argnums=0)


def lost_updates(seen: Examination) -> Finding | None:
    """16-bit parameters that are so large beside the step that it is rounded away."""
    if seen.moved is None or seen.step_rms is None:
        return None
    parameters = seen.probe.parameters
    known = np.isfinite(seen.moved) & (seen.step_rms > 0) & np.isfinite(seen.step_rms)
    lost = known & (seen.moved < MOVED_SHARE)
    if not lost.any():
        return None
    # Biases that start at 0 move by any step, and train nothing alone.
    counted = known & (parameters.parameter_rms > 0)
    sizes = seen.sizes[counted]
    moved = float(np.sum(seen.moved[counted] * sizes) / np.sum(sizes))
    step = float(np.max(seen.step_rms[lost]))
    return Finding(
        "lost_updates",
        "critical" if moved < STILL_SHARE else "warning",
        _named(parameters.layers, lost),
        {"moved_share": moved, "least_moved": float(np.min(seen.moved[lost])), "step_rms": step},
        f"Only {moved:.1%} of the 16-bit entries move: a step of {step:.1e} is less than half the "
        "distance to the next number, and is rounded away.",
        FITTING["lost_updates"].advised,
    )


def _named(layers: Layers, lost: np.ndarray[Any, Any]) -> tuple[str, ...]:
    return tuple(name for name, one in zip(layers.names, lost, strict=True) if one)


def lost_squares(seen: Examination) -> Finding | None:
    """A second moment that float16 has no numbers for, and an eps that is 0 there.

    It shows where the gradient is 0: the step is 0 / 0, and infinite beside it.
    """
    if seen.still_rms is None:
        return None
    lost = seen.kernels & np.isnan(seen.still_rms) & (np.array(seen.stored) == "float16")
    if not lost.any():
        return None
    return Finding(
        "underflow",
        "critical",
        _named(seen.probe.parameters.layers, lost),
        {"smallest_number": float(jnp.finfo(jnp.float16).smallest_subnormal)},
        "Where the gradient is 0 the optimizer's step is NaN, and where it is small infinite: kept "
        "in float16, its squares and the optimizer's eps are 0.",
        FITTING["underflow"].advised,
    )
