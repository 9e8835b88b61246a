"""The loss of a problem as its training differentiates it: scaled, where its transform says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

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


# One function object for one loss, so that what is compiled for it is found again.
@functools.lru_cache(maxsize=4)
def _scaled(loss_fn: Callable[[Any, Any], Any], scale: float) -> Callable[[Any, Any], Any]:
    def scaled(params: Any, batch: Any) -> Any:
        loss = loss_alone(loss_fn(params, batch))
        # The identity, through which gradients come back so many times as large.
        return loss + (scale - 1) * (loss - jax.lax.stop_gradient(loss))

    return scaled
