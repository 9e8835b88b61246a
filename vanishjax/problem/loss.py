"""The loss that a user writes for a model: what it asks for beside the model and the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax


def asked(loss_fn: Callable[..., Any], *names: str) -> frozenset[str]:
    """Which of these arguments a loss takes, beside its first two.

    Example:
      >>> sorted(asked(lambda model, batch, *, key: 0.0, "key", "training"))
      ['key']
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, got {type(loss_fn).__name__}")
    try:
        rest = list(inspect.signature(loss_fn).parameters)[2:]
    except (TypeError, ValueError):  # a built-in tells no signature
        rest = []
    return frozenset(rest) & frozenset(names)


def offer(names: frozenset[str], key: jax.Array | None, training: bool) -> dict[str, Any]:
    """Those arguments. A loss that asks for a key gets one, in evaluation always the same."""
    extra: dict[str, Any] = {}
    if "key" in names:
        extra["key"] = jax.random.key(0) if key is None else key
    if "training" in names:
        extra["training"] = training
    return extra


def loss_alone(value: Any) -> Any:
    """The loss, of `loss` or, where no flag says so, `(loss, aux)`.

    Example:
      >>> loss_alone(2.0), loss_alone((2.0, {"accuracy": 1.0}))
      (2.0, 2.0)
    """
    return value[0] if isinstance(value, tuple) else value


def loss_and_metrics(value: Any) -> tuple[Any, Mapping[str, Any]]:
    """What a loss returned, a scalar or `(scalar, metrics)`, as the latter.

    Example:
      >>> loss_and_metrics(2.0), loss_and_metrics((2.0, {"accuracy": 1.0}))
      ((2.0, {}), (2.0, {'accuracy': 1.0}))
    """
    if not isinstance(value, tuple):
        return value, {}
    if len(value) != 2 or not isinstance(value[1], Mapping):
        kinds = ", ".join(type(one).__name__ for one in value)
        raise TypeError(f"loss_fn must return a scalar or (scalar, metrics dict), got ({kinds})")
    return value[0], value[1]
