"""Many training steps as one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax

from vanishjax.training.state import TrainState


def scan_steps(
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    state: TrainState,
    given: Any = None,
    batch_of: Callable[[Any], Any] | None = None,
    *,
    length: int | None = None,
    observe: Callable[[TrainState], Any] | None = None,
) -> tuple[TrainState, Any]:
    """Takes steps one after the other in a `lax.scan`: to be compiled, mapped or differentiated.

    It is what `fit` runs between two looks at the clock. In a script of one's own it trains a whole
    run without Python in between, and under `jax.vmap` many runs side by side.

    Args:
      step: `step(state, batch) -> (state, out)`, as `local_step` gives it.
      state: Where to start.
      given: What each step gets, a pytree of arrays `[steps, ...]`: its batch, or what its batch is
        made of.
      batch_of: Makes one step's batch inside the loop, where only one of them is held: from row
        numbers, from a key; None where `given` is the batches.
      length: The number of steps, where nothing is given.
      observe: `observe(state)` -> arrays to keep of the state after every step.

    Returns:
      `(state, outs)`: the state after the last step, and each step's out (`local_step`'s metrics),
      arrays `[steps, ...]`; with observe `(outs, observed)` in the place of outs.

    Raises:
      ValueError: Nothing says how many steps there are, or arrays of `given` differ about it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from vanishjax.training import local_step
      >>> data, tx = jnp.array([1.0, 2.0, 3.0]), optax.sgd(0.5)
      >>> step = local_step(lambda w, batch: jnp.mean((w - batch) ** 2), tx)
      >>> start, rows = TrainState.create(jnp.zeros(()), tx), jnp.array([[0, 1], [2, 2]])
      >>> state, metrics = scan_steps(step, start, rows, lambda rows: data[rows])
      >>> print(state.params, metrics["loss"])
      3.0 [2.5  2.25]
    """
    if length is None and not jax.tree.leaves(given):
        raise ValueError("how many steps? Give length, or arrays with an entry for each step")

    def one(state: TrainState, own: Any) -> tuple[TrainState, Any]:
        state, out = step(state, own if batch_of is None else batch_of(own))
        return state, out if observe is None else (out, observe(state))

    return jax.lax.scan(one, state, given, length=length)
