"""The loss of a problem as its training differentiates it: scaled, where its transform says so."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vanishjax._jaxpr import split_arrays
from vanishjax.compilation import jit_once
from vanishjax.health import Diagnosis
from vanishjax.health.constant import constant_output
from vanishjax.initializers.network import network
from vanishjax.placement import gathered
from vanishjax.problem import Problem, loss_alone
from vanishjax.transforms.loss_scale import find_loss_scale

# So many batches tell what a constant output reaches.
_JUDGED = 8


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


def as_judged(before: Diagnosis, problem: Problem, held_out: Sequence[Any]) -> Diagnosis:
    """A diagnosis that knows what a constant output reaches where trials are judged.

    That is in evaluation and on held-out batches, of each the one that is best for it: by one that
    is fitted to another batch, labels that can't be learned may look learned.

    Args:
      before: The diagnosis of the problem in training.
      problem: It.
      held_out: What trials are judged by; the first few tell.

    Returns:
      The same, but for the loss of the best constant output: NaN where it can't be told.
    """

    def evaluated(params: Any, batch: Any) -> Any:
        state = problem.model_state
        return problem.evaluate(params, batch, model_state=state, training=False).loss

    loss_fn = problem.plain_loss if problem.evaluate_fn is None else evaluated
    found = network(loss_fn, problem.params, held_out[0])
    measure = jit_once(lambda inputs: constant_output(found.traced, [*found.leaves, *inputs]).loss)
    batches = (gathered(batch) for batch in held_out[:_JUDGED])
    least = float(np.mean([float(measure(split_arrays(batch)[0])) for batch in batches]))
    return dataclasses.replace(before, probe=dataclasses.replace(before.probe, constant_loss=least))


# One function object for one loss, so that what is compiled for it is found again.
@functools.lru_cache(maxsize=4)
def _scaled(loss_fn: Callable[[Any, Any], Any], scale: float) -> Callable[[Any, Any], Any]:
    def scaled(params: Any, batch: Any) -> Any:
        loss = loss_alone(loss_fn(params, batch))
        # The identity, through which gradients come back so many times as large.
        return loss + (scale - 1) * (loss - jax.lax.stop_gradient(loss))

    return scaled
