"""Parameters that an optimizer moves before it trains them: what is judged is where they go."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax import numerics
from vanishjax.compilation import jit_once
from vanishjax.optimizers.deep_adam import DeepAdamState
from vanishjax.placement import gathered
from vanishjax.problem import Problem
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step
from vanishjax.transforms.reconditioning import ReconditionState
from vanishjax.transforms.states import find_states

_MOVERS = (ReconditionState, DeepAdamState)
# A step of training changes kernels by a hundredth or so; a move to another start by their size.
_FAR = 0.1


def after_the_move(problem: Problem, batch: Any) -> Problem | None:
    """The network once its optimizer has moved the parameters to a start of its own.

    `deep_adam` and `recondition` do so in their first step, whatever the parameters were.

    Args:
      problem: The network.
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
    states = jax.eval_shape(problem.tx.init, problem.params)
    if not any(find_states(states, kind) for kind in _MOVERS):
        return None
    whole = problem.gathered()
    step = local_step(whole.plain_loss, whole.transform)

    def first(params: Any, batch: Any) -> tuple[Any, jax.Array]:
        state, _ = step(TrainState.create(params, whole.transform), batch)
        pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True)
        far = [numerics.rms(y - x) > _FAR * numerics.rms(x) for y, x in pairs if jnp.ndim(x) > 1]
        return state.params, jnp.any(jnp.stack(far))

    params, moved = jit_once(first)(whole.params, gathered(batch))
    return dataclasses.replace(problem, params=params) if moved else None
