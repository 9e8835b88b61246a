"""What the layers of a network in training do, measured inside the training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax._jaxpr import Update
from vanishjax.health.observation import Health, Observation, first_health
from vanishjax.health.response import Response, gradient_sizes, step_response
from vanishjax.layers import Layers
from vanishjax.transforms.per_layer import check_layers, layers_of

# Models of more entries are sampled: so many in all, or a few thousand of a layer.
SAMPLE = 2**17


class MonitorState(NamedTuple):
    """The last observation, the number of updates, the transform's response and its state."""

    health: Health
    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    response: Response
    inner_state: optax.OptState


def monitor(
    tx: optax.GradientTransformation,
    layers: Layers | None = None,
    every: int = 1,
    *,
    sample: int | None = SAMPLE,
) -> optax.GradientTransformationExtraArgs:
    """Observes gradients, updates and parameters, layer by layer; `read_health` gives the result.

    Updates and inner state are those of `tx`. Wrap the whole chain, or what is further out is not
    seen. At `init` the transform's response to gradients of all sizes is measured once: see
    `vanishjax.health.response.step_response` for what that costs.

    Args:
      tx: The transform to observe.
      layers: Division of the tree into layers; derived from the parameters if None.
      every: Observes updates 0, every, 2 every, ...; between them nothing is computed.
      sample: Models of more entries are estimated from evenly spaced rows that hold about so many
        in all, or 4,096 of a layer: the same rows at every step, of gradient, update and
        parameters. None measures everything, for norms to the last digit or to see a single
        infinite entry; it reads gradient, update and parameters once more from memory.

    Returns:
      The transform; `update` needs the parameters, hands extra arguments on to `tx`, and takes the
      loss as `value`. Its state holds arrays of fixed shape and type only.

    Raises:
      ValueError: `every` or `sample` is no integer above 0; at `init`, a leaf that is not floating
        point, a tree without leaves, or layers of another tree; at `update`, no parameters, or a
        `value` that is not a scalar.
      TypeError: `tx` is not a gradient transform.

    Example:
      >>> tx = monitor(optax.adam(1e-3))
      >>> params = {"w": jnp.ones((2, 2))}
      >>> _, state = tx.update({"w": jnp.full((2, 2), 1e-12)}, tx.init(params), params)
      >>> health = read_health(state)
      >>> print(health.step, health.gradient_norm, health.effectiveness.round(6))
      0 [2.e-12] [0.0001]
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be a gradient transform, got {type(tx).__name__}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be an integer of at least 1, got {every!r}")
    if sample is not None and (
        isinstance(sample, bool) or not isinstance(sample, int) or sample < 1
    ):
        raise ValueError(f"sample must be None or an integer of at least 1, got {sample!r}")
    inner = optax.with_extra_args_support(tx)

    def init_fn(params: optax.Params) -> MonitorState:
        check_layers(layers, params)
        count = len(layers_of(layers, params))
        dtype = numerics.common_dtype(params)
        try:
            response = step_response(tx, params, layers)
        except TypeError:  # a line search wants the loss function
            response = _unknown_response(count, dtype)
        return MonitorState(
            first_health(count, dtype), jnp.zeros([], jnp.int32), response, inner.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        if params is None:
            raise ValueError("monitor needs the parameters: call update(updates, state, params)")
        loss = jnp.asarray(extra.get("value", 0.0), state.health.loss.dtype)
        if loss.shape != ():
            raise ValueError(f"value must be a scalar, the loss, got shape {loss.shape}")
        updates, params = jax.tree.map(jnp.asarray, (updates, params))
        found = layers_of(layers, params)
        update = Update(inner.update, updates, state.inner_state, params, extra)
        size = sum(map(jnp.size, jax.tree.leaves(params)))
        share = 1.0 if sample is None else min(1.0, sample / max(1, size))
        if every == 1 and share == 1:
            update.write_steps(jnp.where(state.count >= 0, 1.0, jnp.nan))
        seen = Observation(found, share, update, updates, params)
        due = None if every == 1 else state.count % every == 0

        def if_due(look: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
            return look() if due is None else jax.lax.cond(due, look, otherwise)

        of_params = if_due(seen.of_params, seen.of_no_params)
        health = if_due(
            lambda: seen.health(state.health, state.response, state.count, loss, of_params),
            lambda: state.health,
        )
        # XLA on a CPU would copy the parameters, lest they be overwritten before they are seen; it
        # doesn't know that no size is negative.
        known = jnp.all(~(of_params.norm < 0))
        steps = jax.tree.map(lambda u: jnp.where(known, u, jnp.zeros_like(u)), update.steps)
        count = optax.safe_increment(state.count)
        return steps, MonitorState(health, count, state.response, update.state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def read_health(opt_state: Any) -> Health:
    """The last observation of `monitor`.

    Args:
      opt_state: State of a transform that holds `monitor` somewhere, or a tree that has it, such as
        a `vanishjax.TrainState`. If several hold one, the first in the tree's order is read.

    Returns:
      The observation: jax arrays.

    Raises:
      ValueError: There is no `monitor` in the state.

    Example:
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), monitor(optax.sgd(0.1)))
      >>> print(read_health(tx.init(jnp.ones(3))).step)
      -1
    """
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, MonitorState))
    for state in states:
        if isinstance(state, MonitorState):
            return state.health
    raise ValueError("the optimizer's state holds no monitor: wrap the transform in monitor(tx)")


def _unknown_response(count: int, dtype: Any) -> Response:
    sizes = jnp.array(gradient_sizes(dtype), dtype)
    unknown = jnp.full((len(sizes), count), jnp.nan, dtype)
    return Response(
        sizes,
        unknown,
        jnp.full(count, jnp.nan, dtype),
        jnp.copy(unknown),
    )
