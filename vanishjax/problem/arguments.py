"""A problem, or the parts of one: what functions that look at a network are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from vanishjax.problem.problem import Problem


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""What stands for an argument that was not given, where None is a value."""


def as_problem(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = None,
    tx: optax.GradientTransformation | None = None,
    *,
    model_state: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Problem:
    """One problem from a problem, or from its parts, for functions that take either.

    Args:
      loss_fn: A problem, or a loss.
      params: With a loss, its parameters.
      tx: With a loss, its transform. Given beside a problem, it takes the place of the problem's.
      model_state: As in `Problem`.
      has_aux: As in `Problem`.
      with_key: As in `Problem`.
      with_state: As in `Problem`.

    Returns:
      The problem, the very object if one was given, alone.

    Raises:
      TypeError: Flags beside a problem, which has its own.

    Example:
      >>> problem = Problem(lambda w, x: w * x, 1.0)
      >>> as_problem(problem) is problem, as_problem(lambda w, x: w * x, 1.0).params
      (True, 1.0)
    """
    if not isinstance(loss_fn, Problem):
        return Problem(
            loss_fn,
            params,
            tx,
            model_state=model_state,
            has_aux=has_aux,
            with_key=with_key,
            with_state=with_state,
        )
    if has_aux or with_key or with_state or model_state is not None:
        raise TypeError(
            "a Problem has flags and a model state of its own: give has_aux, with_key, with_state "
            "and model_state to Problem"
        )
    return loss_fn if tx is None else dataclasses.replace(loss_fn, tx=tx)


def network_of(
    loss_fn: Callable[..., Any] | Problem,
    params: Any,
    batch: Any,
    **given: Any,
) -> tuple[Problem, Any]:
    """The problem and the batch of a function that takes `(loss_fn, params, batch)`.

    Beside these it may be given `(problem, batch)`, by position or by name.

    Args:
      loss_fn: A problem, or a loss.
      params: With a loss, its parameters. With a problem, the batch.
      batch: With a loss, the batch.
      **given: Flags and more, as in `as_problem`.

    Returns:
      Both.

    Raises:
      TypeError: Too much or too little was given.

    Example:
      >>> problem, batch = network_of(Problem(lambda w, x: w * x, 2.0), 3.0, MISSING)
      >>> problem.params, batch
      (2.0, 3.0)
    """
    if not isinstance(loss_fn, Problem):
        if params is MISSING or batch is MISSING:
            raise TypeError("expected (loss_fn, params, batch) or (problem, batch)")
        return as_problem(loss_fn, params, **given), batch
    if (params is MISSING) == (batch is MISSING):
        raise TypeError(
            "a Problem has parameters of its own: pass (problem, batch), and all else by name; "
            "for other parameters dataclasses.replace(problem, params=...)"
        )
    return as_problem(loss_fn, **given), params if batch is MISSING else batch
