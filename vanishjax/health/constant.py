"""The loss that a network reaches whose output is the same for all inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import _jaxpr
from vanishjax.training.scan import scan_steps
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step

_STEPS, _RATE = 150, 0.1


def constant_loss(
    program: _jaxpr.Program, anatomy: _jaxpr.Anatomy, arguments: Sequence[Any]
) -> jax.Array:
    """The least loss that one output for all inputs reaches, in 150 steps of Adam.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      The loss; NaN where the last kernel stands in a loop.
    """
    found = _jaxpr.constant_tail(program, anatomy, arguments)
    if found is None:
        return jnp.full((), jnp.nan)
    tail, start = found
    tx = optax.adam(_RATE)
    step = local_step(lambda constant, _: tail(constant), tx)
    _, metrics = scan_steps(
        step, TrainState.create(start, tx), batch_of=lambda _: (), length=_STEPS
    )
    return jnp.min(metrics["loss"])
