"""The loss that a network reaches whose output is the same for all inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import _jaxpr

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

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        constant, state = carry
        value, gradient = jax.value_and_grad(tail)(constant)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(constant, updates), state), value

    _, losses = jax.lax.scan(step, (start, tx.init(start)), None, length=_STEPS)
    return jnp.min(losses)
