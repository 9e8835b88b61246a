"""A problem from an Equinox model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from vanishjax.problem.loss import asked, loss_and_metrics, offer
from vanishjax.problem.nesting import nested, taken
from vanishjax.problem.problem import Problem

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError("Problem.from_equinox needs Equinox: pip install equinox") from error


def problem_from_equinox(
    model: Any,
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation | None = None,
    *,
    state: Any = None,
) -> Problem:
    """See `Problem.from_equinox`."""
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    flat, structure = jax.tree_util.tree_flatten_with_path(arrays)
    params = {tuple(map(_key, path)): leaf for path, leaf in flat}
    if not params:
        raise TypeError(
            "model must be an equinox.Module with floating-point arrays, got "
            f"{type(model).__name__}"
        )
    leaves, state_structure = jax.tree.flatten(state)
    names = asked(loss_fn, "key", "state", "training")
    with_state = "state" in names
    if with_state != (state is not None):
        raise TypeError(
            "loss_fn takes state=, so give from_equinox the model's state, as "
            "equinox.nn.make_with_state returns it: state=state"
            if with_state
            else "from_equinox was given a state: loss_fn must take state= and return "
            "(loss, new_state) or (loss, (new_state, metrics))"
        )

    def assembled(params: Any) -> Any:
        values = taken(params, paths).values()
        return eqx.combine(jax.tree.unflatten(structure, list(values)), rest)

    def form(training: bool) -> Callable[..., Any]:
        def whole_loss(params: Any, batch: Any, *, key: Any = None, state: Any = None) -> Any:
            model = assembled(params)
            if not training:
                model = eqx.nn.inference_mode(model)
            extra = offer(names, key, training)
            if not with_state:
                return loss_and_metrics(loss_fn(model, batch, **extra))
            extra["state"] = jax.tree.unflatten(state_structure, state)
            loss, after, metrics = _with_state(loss_fn(model, batch, **extra))
            return loss, (tuple(jax.tree.leaves(after)) if training else state, metrics)

        return whole_loss

    def whole(params: Any, state: Any) -> Any:
        model = assembled(params)
        return (model, jax.tree.unflatten(state_structure, state)) if with_state else model

    paths = list(params)
    return Problem(
        form(True),
        nested(params),
        tx,
        model_state=tuple(leaves) if with_state else None,
        has_aux=True,
        with_key="key" in names,
        with_state=with_state,
        evaluate_fn=form(False),
        assemble=whole,
    )


def _with_state(value: Any) -> tuple[Any, Any, Mapping[str, Any]]:
    """The loss, the new state and the metrics of a loss that takes a state."""
    if isinstance(value, tuple) and len(value) == 2:
        loss, rest = value
        if isinstance(rest, eqx.nn.State):
            return loss, rest, {}
        if isinstance(rest, tuple) and len(rest) == 2 and isinstance(rest[0], eqx.nn.State):
            loss, metrics = loss_and_metrics((loss, rest[1]))
            return loss, rest[0], metrics
    kinds = type(value).__name__
    if isinstance(value, tuple):
        kinds = f"({', '.join(type(one).__name__ for one in value)})"
    raise TypeError(
        "a loss_fn that takes state= must return (loss, new_state) or (loss, (new_state, "
        f"metrics)), got {kinds}"
    )


def _key(key: Any) -> Any:
    """What a key of a path is called: a field's name, an index, a dictionary's key."""
    for attribute in ("name", "idx", "key"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)
