"""A loss as a program, with what it tells of the parameters: traced once, for all that ask."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr
from vanishjax.layers.division import Layers
from vanishjax.layers.order import layers_met, parameter_leaves


@dataclasses.dataclass(frozen=True, eq=False)
class TracedLoss:
    """A traced loss.

    Attributes:
      program: Its equations, with calls written out and dropout's masks taken out.
      trace: Where the data meets the parameters.
      layers: The parameters' layers, in the order in which the data meets them.
    """

    program: _jaxpr.Program
    trace: _jaxpr.Trace
    layers: Layers

    @functools.cached_property
    def anatomy(self) -> _jaxpr.Anatomy:
        """Its sites and bottlenecks."""
        return _jaxpr.dissect(self.program, self.trace)


class KeptTrace:
    """A loss whose traces are kept: whoever asks for that of the same shapes gets the same one.

    Compiled programs of a trace can then be found again. For a loss that a piece of code asks about
    again and again, and lets go of.

    Args:
      loss_fn: The loss.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = KeptTrace(lambda w, x: jnp.mean(x @ w))
      >>> x = jnp.ones((5, 3))
      >>> traced_loss(loss, jnp.ones((3, 2)), x) is traced_loss(loss, jnp.zeros((3, 2)), x)
      True
    """

    def __init__(self, loss_fn: Callable[[Any, Any], Any]) -> None:
        self._loss_fn = loss_fn
        self._kept: list[tuple[Any, TracedLoss]] = []

    def __call__(self, params: Any, batch: Any) -> Any:
        """The loss."""
        return self._loss_fn(params, batch)

    def traced(self, params: Any, batch: Any) -> TracedLoss:
        """The trace for parameters and a batch."""
        seen = _form(params), _form(batch)
        for form, kept in self._kept:
            if form == seen:
                return kept
        traced = traced_loss(self._loss_fn, params, batch)
        self._kept.append((seen, traced))
        return traced


def _form(tree: Any) -> tuple[Any, list[Any]]:
    """All that a trace sees of a tree: of arrays the shapes and types, and what is none."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jax.typeof(x) if _jaxpr.is_array(x) else x for x in leaves]


def _is_list_of_batches(batch: Any) -> bool:
    """Whether it may be several batches, where one is wanted."""
    if not isinstance(batch, list) or len(batch) < 2:
        return False
    forms = [
        (jax.tree.structure(one), [jnp.shape(x) for x in jax.tree.leaves(one)]) for one in batch
    ]
    return all(form == forms[0] and len(form[1]) > 1 for form in forms)


def traced_loss(loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any) -> TracedLoss:
    """Traces a loss; nothing is computed. Dropout's masks count as their means.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`.
      params: Its parameters.
      batch: What it takes.

    Returns:
      The program and the layers.

    Raises:
      ValueError: The loss isn't a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> found = traced_loss(lambda w, x: jnp.mean(x @ w), jnp.ones((3, 2)), jnp.ones((5, 3)))
      >>> len(found.layers), len(found.anatomy.sites)
      (1, 1)
    """
    if isinstance(loss_fn, KeptTrace):
        return loss_fn.traced(params, batch)
    try:
        traced = _jaxpr.trace_loss(loss_fn, params, batch)
    except Exception as error:
        if _is_list_of_batches(batch):
            error.add_note(
                f"The batch is a list of {len(batch)} that look alike: if these are batches, pass "
                "one of them."
            )
        raise
    program = _jaxpr.without_dropout(_jaxpr.flatten(traced))
    trace = _jaxpr.parameter_uses(program)
    return TracedLoss(program, trace, layers_met(parameter_leaves(params), trace))
