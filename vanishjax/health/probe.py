"""One look at a network: what goes forward and what comes back, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr
from vanishjax.health.assembly import assemble
from vanishjax.health.batch import check_batch
from vanishjax.health.measurements import Probe
from vanishjax.health.measuring import Loss, Setting, measure
from vanishjax.placement import gathered
from vanishjax.problem import MISSING, Problem, network_of
from vanishjax.validation import check_floating


def probe(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    *,
    model_state: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Probe:
    """Measures a network on one batch, in one compiled forward and backward pass.

    The loss is traced, and taps are put on every kernel's output. At every output through which all
    gradient passes the tap rescales the cotangent to root mean square 1 and keeps the logarithm of
    what it was, so that the numbers are right at depth 1,000, where every gradient is exactly 0. A
    second, plain backward pass gives the gradients as an optimizer gets them. It's compiled once
    for each `loss_fn`: pass the same function object again to save that.

    `probe(problem, batch)` looks at a `Problem`, in training mode, with one fixed key. Arrays that
    are spread over a mesh are brought together on one device, unless the loss lays down how they
    are spread.

    Masks that depend on random numbers alone, as dropout's, count as their means: noise of its own
    for each input makes inputs look different that the network no longer tells apart.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`, differentiable; any JAX code.
        Or a problem.
      params: Its parameters, real floating-point arrays.
      batch: What it takes; arrays have the batch first.
      model_state: As in `Problem`.
      has_aux: As in `Problem`.
      with_key: As in `Problem`.
      with_state: As in `Problem`.

    Returns:
      The measurements.

    Raises:
      ValueError: There are no parameters, the loss isn't one number, can't be differentiated, or
        the batch is empty or holds NaN or infinity.
      TypeError: The loss doesn't return what the flags say, or a problem came with parts of one.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 200, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (32, 8)), jnp.arange(32) % 4
      >>> found = probe(problem.loss_fn, problem.params, batch)
      >>> print(found.names[1], round(found.sum_log_chi / 200, 1), found.gradient_rms[0])
      hidden_stack/kernel[0] -2.9 0.0
    """
    problem, batch = network_of(
        loss_fn,
        params,
        batch,
        model_state=model_state,
        has_aux=has_aux,
        with_key=with_key,
        with_state=with_state,
    )
    check_floating(problem.params)
    if not jax.tree.leaves(problem.params):
        raise ValueError("params holds no arrays: pass the parameters that loss_fn is trained by")
    check_batch(batch)
    alone = problem.gathered(), gathered(batch)
    if alone[0] is problem and alone[1] is batch:
        return _probe(problem, batch)
    try:
        return _probe(*alone)
    except Exception:
        # A loss may lay down how its arrays are spread (shard_map): then they must be.
        return _probe(problem, batch)


def _probe(problem: Problem, batch: Any) -> Probe:
    leaves, structure = jax.tree_util.tree_flatten(problem.params)
    inputs, batch_structure = jax.tree_util.tree_flatten(batch)
    arrays = [x for x in inputs if _jaxpr.is_array(x)]
    settings = tuple(None if _jaxpr.is_array(x) else Setting(x) for x in inputs)
    loss = Loss(problem.plain_loss, structure, batch_structure, settings)
    return assemble(*measure(loss, [jnp.asarray(x) for x in leaves], arrays), batch)
