"""The loss of a problem as a function of parameters and a batch, one object for one loss.

What is compiled for a function is found again only for the same object, and a cure looks at many
problems of one loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from vanishjax.problem import Problem
from vanishjax.transforms.loss_scale import find_loss_scale


def plain_loss(problem: Problem) -> Callable[[Any, Any], Any]:
    """`(params, batch) -> loss` in training, from the problem's model state, with one fixed key.

    Args:
      problem: Any.

    Returns:
      The problem's own loss if that takes and gives nothing else.
    """
    return _loss(*_parts(problem), 1.0)


def trained_loss(problem: Problem) -> Callable[[Any, Any], Any]:
    """As `plain_loss`, with the gradient that training differentiates.

    Where the transform scales the loss, the gradient comes back so many times as large.

    Args:
      problem: Any.

    Returns:
      The loss, its value unscaled.
    """
    return _loss(*_parts(problem), loss_scale(problem) or 1.0)


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


class _Same:
    """A value that is equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _parts(problem: Problem) -> tuple[Any, ...]:
    flags = problem.has_aux, problem.with_key, problem.with_state
    return problem.loss_fn, flags, _Same(problem.model_state)


@functools.lru_cache(maxsize=4)
def _loss(
    loss_fn: Callable[..., Any], flags: tuple[bool, bool, bool], state: _Same, scale: float
) -> Callable[[Any, Any], Any]:
    has_aux, with_key, with_state = flags
    problem = Problem(
        loss_fn,
        None,
        model_state=state.value,
        has_aux=has_aux,
        with_key=with_key,
        with_state=with_state,
    )
    if scale == 1:
        return problem.plain_loss

    def scaled(params: Any, batch: Any) -> Any:
        value = problem.plain_loss(params, batch)
        loss = value[0] if isinstance(value, tuple) else value
        # The identity, through which gradients come back so many times as large.
        return loss + (scale - 1) * (loss - jax.lax.stop_gradient(loss))

    return scaled
