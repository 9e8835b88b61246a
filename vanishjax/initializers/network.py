"""A network as data-dependent initializers take it: on one device, traced, its arrays apart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from vanishjax import _jaxpr
from vanishjax.compilation import jit_once
from vanishjax.layers.traced import TracedLoss, traced_loss
from vanishjax.placement import gathered, placed_like
from vanishjax.problem import network_of
from vanishjax.validation import check_floating


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network that is about to get other parameters.

    Attributes:
      loss_fn: `(params, batch) -> loss`.
      params: Its parameters, on one device.
      batch: The batch, on one device.
      leaves: The parameters' arrays.
      inputs: The batch's arrays.
      traced: The loss as a program.
      given: The parameters as they were given.
    """

    loss_fn: Callable[[Any, Any], Any]
    params: Any
    batch: Any
    leaves: list[Any]
    inputs: list[Any]
    traced: TracedLoss
    given: Any

    def losses(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """The loss on the batch of the parameters given, and of others."""
        others = jax.tree.leaves(gathered(params))
        before, after = (
            _loss(self.traced, [*leaves, *self.inputs]) for leaves in (self.leaves, others)
        )
        return before, after

    def with_leaves(self, leaves: Sequence[Any]) -> Any:
        """Parameters of other arrays, where those given lie."""
        structure = jax.tree_util.tree_structure(self.params)
        return placed_like(jax.tree_util.tree_unflatten(structure, leaves), self.given)


@functools.partial(jit_once, static_argnums=0)
def _loss(traced: TracedLoss, arguments: list[Any]) -> jax.Array:
    loss: jax.Array = jaxpr_as_fun(traced.program.closed)(*arguments)[0]
    return loss


def network(loss_fn: Any, params: Any, batch: Any) -> Network:
    """The network of a loss, parameters and a batch, or of a problem and a batch.

    Args:
      loss_fn: A loss, or a problem.
      params: With a loss its parameters.
      batch: What it takes.

    Returns:
      The network, its loss traced.

    Raises:
      ValueError: The loss isn't a scalar, or a parameter isn't a real floating-point array.
    """
    given, batch = network_of(loss_fn, params, batch)
    problem, batch = given.gathered(), gathered(batch)
    check_floating(problem.params)
    return Network(
        problem.plain_loss,
        problem.params,
        batch,
        jax.tree.leaves(problem.params),
        _jaxpr.split_arrays(batch)[0],
        traced_loss(problem.plain_loss, problem.params, batch),
        given.params,
    )
