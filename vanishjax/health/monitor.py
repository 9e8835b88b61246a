"""What the layers of a network in training do, measured inside the training step."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.health.response import GRADIENT_RMS, Response, effectiveness, step_response
from vanishjax.layers import Layers
from vanishjax.transforms.per_layer import check_layers, layers_of

# A layer of whose step less than this share gets into the parameters stands still.
STILL = 0.1
# Models of more entries are sampled: so many in all, and no fewer of a layer than the second
# number, which gives its norms within a few percent.
SAMPLE = 2**17
_LEAST_OF_A_LAYER = 2**12


class Health(NamedTuple):
    """What was seen at one training step; `[layers]` arrays are float32, in depth order.

    Attributes:
      step: Scalar int32, the number of updates before the one that was observed; -1 before any.
      loss: Scalar float32, the loss, if it was passed to update as `value`; 0 if not.
      first_loss: The loss that was observed first.
      best_loss: The least that was observed.
      gradient_norm: `[layers]`, 2-norm of the gradient that came in.
      update_norm: `[layers]`, 2-norm of the update that went out.
      param_norm: `[layers]`, 2-norm of the parameters before the update.
      update_ratio: `[layers]`, update_norm / param_norm; 0 where the parameters are 0.
      zero_fraction: `[layers]`, share of the gradient's entries that are exactly 0.
      effectiveness: `[layers]`, share in [0, 1] of the step that survives epsilon and underflow:
        see `vanishjax.health.response.effectiveness`. NaN if the transform couldn't be measured.
      applied_fraction: `[layers]`, share in [0, 1] of the update that survives being added to the
        parameters in their type: erf(2 update_ratio / eps), with eps the type's, which is right
        within a factor of two if the parameters are normally distributed.
      still_steps: `[layers]` int32, for how many observations in a row the layer hasn't moved:
        the update was zero, or less than a tenth of it survived being added.

    Example:
      >>> health = read_health(monitor(optax.sgd(0.1)).init(jnp.ones(3)))
      >>> print(health.step, health.update_norm, health.effectiveness)
      -1 [0.] [1.]
    """

    step: jax.Array
    loss: jax.Array
    first_loss: jax.Array
    best_loss: jax.Array
    gradient_norm: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array
    update_ratio: jax.Array
    zero_fraction: jax.Array
    effectiveness: jax.Array
    applied_fraction: jax.Array
    still_steps: jax.Array


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
      every: Observes updates 0, every, 2 every, ...; between them only rows are laid aside.
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
        try:
            response = step_response(tx, params, layers)
        except TypeError:  # a line search wants the loss function
            response = _unknown_response(count)
        return MonitorState(
            _first_health(count), jnp.zeros([], jnp.int32), response, inner.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        if params is None:
            raise ValueError("monitor needs the parameters: call update(updates, state, params)")
        loss = jnp.asarray(extra.get("value", 0.0), jnp.float32)
        if loss.shape != ():
            raise ValueError(f"value must be a scalar, the loss, got shape {loss.shape}")
        found = layers_of(layers, params)
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra)
        updates, steps, params = jax.tree.map(jnp.asarray, (updates, steps, params))
        total = sum(map(jnp.size, jax.tree.leaves(params)))
        share = 1.0 if sample is None else sample / max(1, total)
        if share >= 1:
            # XLA on a CPU would otherwise compute all updates twice, for here and for the
            # parameters; it doesn't know that this is one.
            one = jnp.where(state.count >= 0, 1.0, jnp.nan)
            steps = jax.tree.map(lambda u: u / one.astype(u.dtype), steps)
        trees = (updates, steps, params)
        seen = [found.map(functools.partial(_thinned, share=share), tree) for tree in trees]
        entries = _constants(found, params, _entries)
        observe = functools.partial(_observe, _thinned_layers(found, share), entries, state, loss)
        if every == 1:
            health = observe(*seen)
        else:
            health = jax.lax.cond(state.count % every == 0, observe, lambda *_: state.health, *seen)
        # XLA on a CPU would copy the parameters, lest they be overwritten before they are seen; it
        # doesn't know that no size is negative. A layer of which only rows are seen waits for
        # these alone: until all layers are seen its gradient would have left the cache.
        if share >= 1:
            steps = jax.tree.map(functools.partial(_once_seen, health.param_norm), steps)
        else:
            steps = found.map(functools.partial(_once_thinned, share=share), steps, params)
        count = optax.safe_increment(state.count)
        return steps, MonitorState(health, count, state.response, inner_state)

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


def _first_health(count: int) -> Health:
    def nothing() -> jax.Array:
        return jnp.zeros(count, jnp.float32)

    return Health(
        step=jnp.full([], -1, jnp.int32),
        loss=jnp.zeros([], jnp.float32),
        first_loss=jnp.zeros([], jnp.float32),
        best_loss=jnp.zeros([], jnp.float32),
        gradient_norm=nothing(),
        update_norm=nothing(),
        param_norm=nothing(),
        update_ratio=nothing(),
        zero_fraction=nothing(),
        effectiveness=jnp.ones(count, jnp.float32),
        applied_fraction=jnp.ones(count, jnp.float32),
        still_steps=jnp.zeros(count, jnp.int32),
    )


def _unknown_response(count: int) -> Response:
    unknown = jnp.full((len(GRADIENT_RMS), count), jnp.nan, jnp.float32)
    return Response(
        jnp.array(GRADIENT_RMS, jnp.float32),
        unknown,
        jnp.full(count, jnp.nan, jnp.float32),
        jnp.copy(unknown),
    )


def _observe(
    layers: Layers,
    entries: jax.Array,
    state: MonitorState,
    loss: jax.Array,
    gradient: Any,
    step: Any,
    params: Any,
) -> Health:
    before = state.health
    seen = _constants(layers, params, _entries)
    eps = _constants(layers, params, lambda x, _: float(jnp.finfo(x.dtype).eps))
    zeros = layers.reduce(_zeros, gradient)
    norms = _norms(layers, seen, zeros == seen, gradient, step, params)
    gradient_norm, update_norm, param_norm = norms * jnp.sqrt(entries / seen)
    ratio = numerics.divide(update_norm, param_norm)
    nothing_to_lose = (param_norm == 0) | (update_norm == 0)
    applied = jnp.where(nothing_to_lose, 1.0, jax.lax.erf(2 * ratio / eps))
    still = (update_norm == 0) | (applied < STILL)
    return Health(
        step=state.count,
        loss=loss,
        first_loss=jnp.where(before.step < 0, loss, before.first_loss),
        best_loss=jnp.where(before.step < 0, loss, jnp.fmin(before.best_loss, loss)),
        gradient_norm=gradient_norm,
        update_norm=update_norm,
        param_norm=param_norm,
        update_ratio=ratio,
        zero_fraction=zeros / seen,
        effectiveness=effectiveness(state.response, gradient_norm / jnp.sqrt(entries)),
        applied_fraction=applied,
        still_steps=jnp.where(still, before.still_steps + 1, 0),
    )


def _norms(layers: Layers, entries: jax.Array, zero_gradient: jax.Array, *trees: Any) -> jax.Array:
    """`[trees, layers]` 2-norms of the gradient and others; a second look at all, or at none.

    `Layers.norms` decides for every array by itself: a branch for each of a thousand layers.
    """
    squares = jnp.stack([layers.reduce(_sum_of_squares, tree) for tree in trees])
    info = jnp.finfo(squares.dtype)
    # As in `vanishjax.numerics`: below this, squares flushed to zero could have mattered.
    least = entries * float(info.tiny) / float(info.eps)
    trusted = (squares >= least) & (squares <= float(info.max))
    trusted = trusted.at[0].set(trusted[0] | zero_gradient)

    def as_is(*_: Any) -> jax.Array:
        return jnp.sqrt(squares).astype(jnp.float32)

    def with_care(*trees: Any) -> jax.Array:
        return jnp.stack([layers.norms(tree) for tree in trees])

    return jax.lax.cond(jnp.all(trusted), as_is, with_care, *trees)


def _rows(shape: tuple[int, ...], axes: tuple[int, ...], share: float) -> tuple[int, int]:
    """An axis and the stride along it that leave a share of every layer's entries."""
    entries = math.prod(shape[axis] for axis in axes)
    stride = int(entries // max(_LEAST_OF_A_LAYER, share * entries))
    if stride < 2:
        return 0, 1
    # Along the longest axis but the last, whose entries lie side by side in memory.
    axis = max(axes[:-1] or axes, key=lambda axis: shape[axis])
    return axis, min(stride, shape[axis])


def _thinned(x: jax.Array, axes: tuple[int, ...], share: float) -> jax.Array:
    """Evenly spaced rows of every layer."""
    axis, stride = _rows(x.shape, axes, share)
    return x if stride == 1 else jax.lax.slice_in_dim(x, 0, None, stride, axis)


def _once_seen(sizes: jax.Array, step: jax.Array) -> jax.Array:
    """The step, from when these are known, which can't be negative."""
    return jnp.where(jnp.all(~(sizes < 0)), step, jnp.zeros_like(step))


def _once_thinned(
    step: jax.Array, param: jax.Array, axes: tuple[int, ...], share: float
) -> jax.Array:
    """The step, from when the parameter's rows have been read."""
    return _once_seen(_sum_of_squares(_thinned(param, axes, share), axes), step)


def _thinned_layers(layers: Layers, share: float) -> Layers:
    """The layers of what `_thinned` leaves."""
    leaves = []
    for leaf in layers.leaves:
        axis, stride = _rows(leaf.shape, leaf.inner_axes, share)
        shape = tuple(-(-n // stride) if i == axis else n for i, n in enumerate(leaf.shape))
        leaves.append(dataclasses.replace(leaf, shape=shape))
    return dataclasses.replace(layers, leaves=tuple(leaves))


def _sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # A dot product, since XLA would share a plain square with Adam's, and write it to memory.
    stack = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return jax.lax.dot_general(
        x,
        x,
        ((axes, axes), (stack, stack)),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=numerics.accumulator_dtype(x.dtype),
    )


def _zeros(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # Zeros and ones fit in a bfloat16, and half the bytes are half the time.
    return jnp.sum((x == 0).astype(jnp.bfloat16), axis=axes, dtype=jnp.float32)


def _entries(x: jax.Array, axes: tuple[int, ...]) -> int:
    return max(1, math.prod(x.shape[axis] for axis in axes))


def _constants(layers: Layers, params: Any, fn: Callable[..., float]) -> jax.Array:
    """`[layers]` float32 of `fn(leaf, axes)`; 1 where the parameters have a hole."""

    def constant(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        stack = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
        return jnp.full(stack, fn(x, axes), jnp.float32)

    found = layers.reduce(constant, params)
    return jnp.where(found == 0, 1.0, found)
