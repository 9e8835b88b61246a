"""The loss of a problem as its training differentiates it: scaled, where its transform says so."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from vanishjax.compilation import jit_once
from vanishjax.health import Diagnosis
from vanishjax.health.constant import constant_output
from vanishjax.initializers.network import network
from vanishjax.placement import gathered
from vanishjax.problem import Problem, loss_alone
from vanishjax.transforms.loss_scale import find_loss_scale


def trained_loss(problem: Problem) -> Callable[[Any, Any], Any]:
    """As `Problem.plain_loss`, with the gradient that training differentiates.

    Where the transform scales the loss, the gradient comes back so many times as large.

    Args:
      problem: Any.

    Returns:
      The loss, its value unscaled.
    """
    scale = loss_scale(problem)
    return problem.plain_loss if scale is None else _scaled(problem.plain_loss, scale)


def loss_scale(problem: Problem) -> float | None:
    """What the problem's transform wants its loss to be multiplied by at first.

    Args:
      problem: Any.

    Returns:
      The scale of its `dynamic_loss_scale`; None without one.
    """
    init = problem.transform.init
    if find_loss_scale(jax.eval_shape(init, problem.params)) is None:
        return None
    found = find_loss_scale(init(problem.params))
    return None if found is None else float(found.scale)


def as_evaluated(before: Diagnosis, problem: Problem, batch: Any) -> Diagnosis:
    """A diagnosis that knows what a constant output reaches in evaluation, by which trials go.

    Args:
      before: The diagnosis of the problem in training.
      problem: It.
      batch: What it was looked at by.

    Returns:
      The same, but for the loss of the best constant output: NaN where it can't be told.
    """
    if problem.evaluate_fn is None:
        return before

    def evaluated(params: Any, batch: Any) -> Any:
        state = problem.model_state
        return problem.evaluate(params, batch, model_state=state, training=False).loss

    found = network(evaluated, problem.params, gathered(batch))
    measure = jit_once(lambda arguments: constant_output(found.traced, arguments).loss)
    least = float(measure([*found.leaves, *found.inputs]))
    return dataclasses.replace(before, probe=dataclasses.replace(before.probe, constant_loss=least))


# One function object for one loss, so that what is compiled for it is found again.
@functools.lru_cache(maxsize=4)
def _scaled(loss_fn: Callable[[Any, Any], Any], scale: float) -> Callable[[Any, Any], Any]:
    def scaled(params: Any, batch: Any) -> Any:
        loss = loss_alone(loss_fn(params, batch))
        # The identity, through which gradients come back so many times as large.
        return loss + (scale - 1) * (loss - jax.lax.stop_gradient(loss))

    return scaled
