"""Parameters that an optimizer moves before it trains them: what is judged is where they go."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.compilation import jit_once
from vanishjax.optimizers.deep_adam import DeepAdamState
from vanishjax.problem import Problem, loss_alone
from vanishjax.transforms.reconditioning import ReconditionState
from vanishjax.transforms.states import find_states

_MOVERS = (ReconditionState, DeepAdamState)
# A step of training changes kernels by a hundredth or so; a move to another start by their size.
_FAR = 0.1


def after_the_move(problem: Problem, batch: Any) -> Problem | None:
    """The network once its optimizer has moved the parameters to a start of its own.

    `deep_adam` and `recondition` do so in their first step, whatever the parameters were.

    Args:
      problem: The network, on one device.
      batch: What the first step sees.

    Returns:
      The problem with other parameters; None where the optimizer makes no such move.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(4, (8,) * 3, 2, activation="tanh", tx=vj.adam(1e-3))
      >>> after_the_move(problem, (jnp.ones((2, 4)), jnp.zeros(2, int))) is None
      True
    """
    if problem.tx is None:
        return None
    tx, loss_fn = optax.with_extra_args_support(problem.tx), problem.plain_loss
    states = jax.eval_shape(tx.init, problem.params)
    if not any(find_states(states, kind) for kind in _MOVERS):
        return None

    def first(params: Any, batch: Any) -> tuple[Any, jax.Array]:
        def value(params: Any) -> jax.Array:
            loss: jax.Array = loss_alone(loss_fn(params, batch))
            return loss

        loss, gradient = jax.value_and_grad(value)(params)
        updates, _ = tx.update(gradient, tx.init(params), params, value=loss)
        pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
        far = [numerics.rms(step) > _FAR * numerics.rms(x) for step, x in pairs if jnp.ndim(x) > 1]
        return optax.apply_updates(params, updates), jnp.any(jnp.stack(far))

    params, moved = jit_once(first)(problem.params, batch)
    return dataclasses.replace(problem, params=params) if moved else None
