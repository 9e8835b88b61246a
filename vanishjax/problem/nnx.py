"""A problem from a Flax nnx module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vanishjax.problem.loss import asked, loss_and_metrics, offer
from vanishjax.problem.nesting import Path, nested, taken
from vanishjax.problem.problem import Problem


def problem_from_nnx(
    model: nnx.Module,
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation | None = None,
) -> Problem:
    """See `Problem.from_nnx`."""
    if not isinstance(model, nnx.Module):
        got = type(model).__name__
        if isinstance(model, nnx.State):
            got += ", which has no code: pass the model itself, or nnx.merge(graphdef, state)"
        raise TypeError(f"model must be a flax.nnx.Module, got {got}")
    parts = _Parts(model)
    names = asked(loss_fn, "key", "training")

    def form(training: bool) -> Callable[..., Any]:
        def whole_loss(params: Any, batch: Any, *, key: Any = None, state: Any = None) -> Any:
            model = parts.model(params, state, key)
            if not training:
                model.eval()
            value = loss_fn(model, batch, **offer(names, key, training))
            loss, metrics = loss_and_metrics(value)
            if not parts.state:
                return loss, metrics
            return loss, (parts.state_of(model) if training else state, metrics)

        return whole_loss

    return Problem(
        form(True),
        nested(parts.params),
        tx,
        model_state=nested(parts.state) if parts.state else None,
        has_aux=True,
        with_key=bool(parts.keys) or "key" in names,
        with_state=bool(parts.state),
        evaluate_fn=form(False),
        assemble=parts.model,
    )


class _Parts:
    """A model taken apart: parameters, state and keys by path, and how they go together."""

    def __init__(self, model: nnx.Module) -> None:
        copy = nnx.clone(model)
        nnx.pop(copy, nnx.Intermediate)  # each call would add to what `sow` left
        for _, module in nnx.iter_modules(copy):
            for name in ("deterministic", "use_running_average"):
                if getattr(module, name, False) is None:  # attention's own default
                    setattr(module, name, False)
        self._graph, state = nnx.split(copy)
        self._variables: dict[Path, Any] = dict(nnx.to_flat_state(state))
        self.params: dict[Path, Any] = {}
        self.state: dict[Path, Any] = {}
        self.keys: dict[Path, Any] = {}
        for path, variable in self._variables.items():
            value = _value(variable)
            if isinstance(variable, nnx.RngState):
                self.keys[path] = value
            elif isinstance(variable, nnx.Param) and _is_floating(value):
                self.params[path] = value
            else:
                self.state[path] = value

    def model(self, params: Any, state: Any, key: jax.Array | None = None) -> Any:
        """A new model; with a key, one whose own keys are folded with it."""
        values = taken(params, self.params) | taken(state, self.state) | self.keys
        if key is not None:
            values |= {path: _folded(x, key) for path, x in self.keys.items()}
        flat = [
            (
                path,
                variable.replace(values[path])
                if isinstance(variable, nnx.Variable)
                else values[path],
            )
            for path, variable in self._variables.items()
        ]
        return nnx.merge(self._graph, nnx.from_flat_state(flat))

    def state_of(self, model: nnx.Module) -> Any:
        """The state of a model after a call; what the call has added is left out."""
        after = dict(nnx.to_flat_state(nnx.state(model)))
        return nested({path: _value(after[path]) for path in self.state})


def _value(variable: Any) -> Any:
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable


def _is_floating(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves)


def _folded(own: Any, key: jax.Array) -> Any:
    """Keys of the model, made other ones by a step's key; counts stay."""
    if not jnp.issubdtype(own.dtype, jax.dtypes.prng_key):
        return own
    number = jax.random.bits(key)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return fold(own.reshape(-1), number).reshape(own.shape)
