"""A problem from a Flax linen module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.core import scope, unfreeze
from flax.errors import InvalidRngError, ModifyScopeVariableError

from vanishjax.problem.loss import asked, loss_and_metrics, offer
from vanishjax.problem.problem import Problem

# How modules call what tells training from evaluation, and what it is in training.
_SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
# Only training may write to it: a module that does so in evaluation was not told.
_STATISTICS = "batch_stats"


def problem_from_linen(
    module: nn.Module,
    variables: Mapping[str, Any],
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation | None = None,
) -> Problem:
    """See `Problem.from_linen`."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {type(module).__name__}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise TypeError(
            f"variables must be what module.init returns, a dict with 'params' in it, got {got}"
        )
    collections = nn.meta.unbox(unfreeze(variables))
    params = collections.pop("params")
    state = {name: one for name, one in collections.items() if not _is_sown(one)}
    names = asked(loss_fn, "key", "training")

    def form(training: bool) -> Callable[..., Any]:
        def whole_loss(params: Any, batch: Any, *, key: Any = None, state: Any = None) -> Any:
            apply = Apply(module, params, state or {}, key, training)
            value = loss_fn(apply, batch, **offer(names, key, training))
            loss, metrics = loss_and_metrics(value)
            if not state:
                return loss, metrics
            return loss, (apply.state if training else state, metrics)

        return whole_loss

    return Problem(
        form(True),
        params,
        tx,
        model_state=state or None,
        has_aux=True,
        with_key=True,
        with_state=bool(state),
        evaluate_fn=form(False),
        assemble=lambda params, state: {"params": params, **(state or {})},
    )


def _is_sown(collection: Any) -> bool:
    """Whether `Module.sow` wrote it: each call would make its tuples longer."""
    leaves = jax.tree.leaves(collection, is_leaf=lambda x: isinstance(x, tuple))
    return any(isinstance(leaf, tuple) for leaf in leaves)


class Apply:
    """`module.apply` with parameters, state, keys and mode filled in: what `loss_fn` is given.

    Attributes:
      variables: The parameters and the state, as of the last call.
    """

    def __init__(
        self, module: nn.Module, params: Any, state: Any, key: jax.Array | None, training: bool
    ) -> None:
        self.state = state
        self._module, self._params = module, params
        self._key, self._training, self._calls = key, training, 0

    @property
    def variables(self) -> dict[str, Any]:
        """The parameters and the state, as of the last call."""
        return {"params": self._params, **self.state}

    def __call__(
        self,
        *args: Any,
        method: Any = None,
        rngs: Mapping[str, Any] | None = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """The module's output; `(output, updates)` if `mutable` is given, as in `Module.apply`."""
        module, args, kwargs = _switched(self._module, method, args, kwargs, self._training)
        carried = [name for name in self.state if self._training or name != _STATISTICS]
        try:
            out, updates = module.apply(
                self.variables,
                *args,
                method=method,
                rngs={**self._keys(), **(rngs or {})},
                mutable=scope.union_filters(carried, mutable) if mutable else carried,
                **kwargs,
            )
        except (InvalidRngError, ModifyScopeVariableError) as error:
            if self._training:
                raise
            said = str(error).splitlines()[0].partition(" (https:")[0].rstrip(". ")
            raise ValueError(
                f"the module can't be evaluated: {said}. Give its __call__ an argument train or "
                "deterministic, or let loss_fn take training= (or key=, for rngs=) and hand it on"
            ) from error
        self.state = {name: updates.get(name, one) for name, one in self.state.items()}
        if mutable is False:
            return out
        return out, {k: v for k, v in updates.items() if scope.in_filter(mutable, k)}

    def _keys(self) -> dict[str, jax.Array]:
        """Keys for this call: linen draws from "params" what no stream of its own is given for."""
        if self._key is None or not self._training:
            return {}
        key = jax.random.fold_in(self._key, self._calls) if self._calls else self._key
        self._calls += 1
        return {"dropout": key, "params": jax.random.fold_in(key, 2**31)}


def _switched(
    module: nn.Module, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A module and the arguments of a call of it, in training or in evaluation.

    What the call itself says holds in training.
    """
    function = method if callable(method) else getattr(module, method or "__call__")
    taken = list(inspect.signature(function).parameters)
    if callable(method) and not inspect.ismethod(method):
        taken = taken[1:]  # the module itself
    fields, values = {}, list(args)
    for name, of_training in _SWITCHES.items():
        mode = of_training if training else not of_training
        if isinstance(getattr(module, name, None), bool):
            fields[name] = mode
        elif name in taken and taken.index(name) < len(args):
            place = taken.index(name)
            values[place] = values[place] if training else mode
        elif name in taken:
            kwargs[name] = kwargs.get(name, mode) if training else mode
    return (module.clone(**fields) if fields else module), tuple(values), kwargs
