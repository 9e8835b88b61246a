"""One pure training step, and its wrappers for one device, a sharded jit, shard_map and pmap."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vanishjax.training.batches import divided
from vanishjax.training.layout import Parallel, Sharded, make_layout
from vanishjax.training.state import TrainState
from vanishjax.transforms.arguments import as_transform
from vanishjax.transforms.loss_scale import find_loss_scale
from vanishjax.transforms.safety import check_guards

Metrics: TypeAlias = Mapping[str, jax.Array]
Step: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, Metrics]]

# Folded into the step's key for the examples that all devices see: the number of no device.
_REST = 2**32 - 1


class LocalStep(Protocol):
    """What `local_step` gives."""

    def __call__(
        self, state: TrainState, batch: Any, rest: Any = None
    ) -> tuple[TrainState, Metrics]:
        """One step."""


def local_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    with_key: bool = False,
    axis: str | None = None,
    accumulate: int = 1,
) -> LocalStep:
    """The pure step on one device's share of the batch; nothing is compiled here.

    Args:
      loss_fn: See `make_train_step`.
      tx: See `make_train_step`.
      has_aux: See `make_train_step`.
      with_key: See `make_train_step`.
      axis: Name of the mapped axis over which gradients and metrics are averaged; None for none.
      accumulate: See `make_train_step`; it must divide the batch.

    Returns:
      A function (state, batch, rest=None) -> (state, metrics). All devices see the same rest: the
      examples of the whole batch that don't divide among them, each counted as often as the others.

    Raises:
      ValueError: accumulate below 1.

    Example:
      >>> tx = optax.sgd(0.5)
      >>> step = local_step(lambda w, batch: jnp.mean((w - batch) ** 2), tx)
      >>> state, metrics = step(TrainState.create(jnp.zeros(()), tx), jnp.ones(4))
      >>> print(state.params, metrics["loss"])
      1.0 1.0
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    transform = as_transform(tx, "tx")

    def gradients(
        params: Any, batch: Any, key: jax.Array | None, scale: jax.Array | None
    ) -> tuple[Any, Metrics]:
        def scaled_loss(params: Any) -> tuple[jax.Array, Metrics]:
            value = loss_fn(params, batch, **({"key": key} if with_key else {}))
            loss, aux = value if has_aux else (value, {})
            return loss if scale is None else loss * scale, {"loss": loss, **aux}

        return jax.grad(scaled_loss, has_aux=True)(params)

    def accumulated(
        params: Any, batch: Any, key: jax.Array | None, scale: jax.Array | None
    ) -> tuple[Any, Metrics]:
        # Every K-th example, so that a batch that lies on several devices stays where it is.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch
        )

        def one(_: None, numbered: tuple[jax.Array, Any]) -> tuple[None, tuple[Any, Metrics]]:
            number, part = numbered
            own = None if key is None else jax.random.fold_in(key, number)
            return None, gradients(params, part, own, scale)

        numbers = jnp.arange(accumulate)
        first = jax.eval_shape(lambda: one(None, jax.tree.map(lambda x: x[0], (numbers, parts)))[1])

        def add(total: Any, numbered: tuple[jax.Array, Any]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(None, numbered)[1]), None

        def zero(x: Any) -> jax.Array:
            wide = jnp.promote_types(x.dtype, jnp.float32)
            zeros: jax.Array = _varying(jnp.zeros(x.shape, wide), axis)
            return zeros

        total, _ = jax.lax.scan(add, jax.tree.map(zero, first), (numbers, parts))
        return jax.tree.map(lambda x, like: (x / accumulate).astype(like.dtype), total, first)

    def step(state: TrainState, batch: Any, rest: Any = None) -> tuple[TrainState, Metrics]:
        key, key_of_rest = None, None
        if with_key:
            key = jax.random.fold_in(state.key, state.step)
            key_of_rest = jax.random.fold_in(key, _REST)
            if axis is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        check_guards(state.opt_state)
        scaled = find_loss_scale(state.opt_state)

        def of_whole_batch(params: Any, scale: jax.Array | None = None) -> tuple[Any, Metrics]:
            # Else the gradient of a replicated parameter arrives already summed over the axis, and
            # its mean is that sum: too large by the number of devices.
            params, found = _varying(params, axis), []
            if batch is not None:
                compute = gradients if accumulate == 1 else accumulated
                devices = 1 if axis is None else jax.lax.axis_size(axis)
                found.append((_examples(batch) * devices, compute(params, batch, key, scale)))
            if rest is not None:
                found.append((_examples(rest), gradients(params, rest, key_of_rest, scale)))
            gradient, metrics = _weighted_mean(found)
            if axis is not None:
                gradient, metrics = jax.lax.pmean((gradient, metrics), axis)
            # JAX's gradient of a complex number is the conjugate of the steepest ascent.
            return jax.tree.map(jnp.conj, gradient), metrics

        gradient, metrics = of_whole_batch(state.params, None if scaled is None else scaled.scale)
        updates, opt_state = transform.update(
            gradient,
            state.opt_state,
            state.params,
            value=metrics["loss"],
            grad=gradient,
            value_fn=_value_fn(of_whole_batch),
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(optax.safe_increment(state.step), params, opt_state, state.key), metrics

    return step


def make_train_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    parallel: Parallel | None = None,
    mesh: Mesh | None = None,
    shard_state: Sharded | None = None,
    accumulate: int = 1,
    has_aux: bool = False,
    with_key: bool = False,
) -> Step:
    """Compiles one training step.

    The state is donated and comes back in the same order: XLA pairs donated inputs with outputs
    by order, and a crossed order would copy every buffer.

    Every example counts once, also in a batch that doesn't divide: the examples that are left over
    are computed by all devices alike, and weigh as much as the others. That is exact for a loss
    that is a mean over examples. One that looks across examples, as batch normalisation does, sees
    a device's own part of the batch under "shard_map" and "pmap", and a microbatch of an
    accumulated one.

    Complex parameters get conjugated gradients, the direction of steepest ascent, as optax wants
    them.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar, the mean over the batch.
      tx: The gradient transform. If it holds a `dynamic_loss_scale`, the loss is scaled by it. One
        that takes extra arguments gets the loss, its gradient and the loss of the same batch as a
        function of the parameters, as `value`, `grad` and `value_fn`: line searches need them.
      parallel: None runs on one device. "jit" shards the batch and lets the compiler write the
        collectives, "shard_map" and "pmap" average the gradients themselves; all three take the
        whole batch and the same state, wherever it lies.
      mesh: Devices for `parallel`, one axis; all devices if None.
      shard_state: For "jit": None keeps the state whole on every device, "zero1" divides the
        transform's state among them, "fsdp" the parameters too: see `vanishjax.training.
        shard_state`.
      accumulate: Into how many microbatches to divide the batch, one computed after the other, for
        less memory; the transforms see the mean gradient once. Fewer examples than devices times
        microbatches are left over, and are computed in one go.
      has_aux: Whether loss_fn gives `(loss, metrics)`, metrics a dict of scalars (batch means).
      with_key: Whether loss_fn takes a `key=` argument (dropout); every step, every device and
        every microbatch gets its own.

    Returns:
      `step(state, batch) -> (state, metrics)`; metrics holds "loss" and loss_fn's own. The state
      handed in is used up.

    Raises:
      ValueError: An unknown `parallel` or `shard_state`, one that doesn't go with the other, a mesh
        of several axes, accumulate below 1, or (when called) a batch of arrays of different
        lengths, or guards in an order in which they can't work (see `dynamic_loss_scale` and
        `skip_nonfinite`).
      TypeError: tx is not a gradient transform.

    Example:
      >>> tx = optax.sgd(0.5)
      >>> step = make_train_step(lambda w, batch: jnp.mean((w - batch) ** 2), tx)
      >>> state, metrics = step(TrainState.create(jnp.zeros(()), tx), jnp.ones(4))
      >>> print(state.params, metrics["loss"])
      1.0 1.0
    """
    layout = make_layout(parallel, mesh, shard_state)
    step = local_step(
        loss_fn,
        tx,
        has_aux=has_aux,
        with_key=with_key,
        axis=layout.axis,
        accumulate=accumulate,
    )
    if layout.mesh is None:

        def alone(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            return (
                step(state, *divided(batch, accumulate)) if accumulate > 1 else step(state, batch)
            )

        return jax.jit(alone, donate_argnums=0)
    compiled = layout.compile(lambda state, _, batch, rest: step(state, batch, rest))

    def spread(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        state, metrics = compiled(
            layout.place(state), None, *divided(batch, layout.devices * accumulate)
        )
        return state, metrics

    return spread


def _varying(tree: Any, axis: str | None) -> Any:
    """The same values, marked as a device's own; vmap, as in a fake pmap, has no such mark."""
    if axis not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return jax.lax.pcast(tree, axis, to="varying")


def _value_fn(of_whole_batch: Callable[[Any], tuple[Any, Metrics]]) -> Callable[[Any], jax.Array]:
    """The loss of the whole batch as a function of the parameters, for line searches.

    Its gradient is that of the step, also on several devices and of a divided batch.
    """

    def loss(params: Any) -> jax.Array:
        return of_whole_batch(params)[1]["loss"]

    def forward(params: Any) -> tuple[jax.Array, Any]:
        gradient, metrics = of_whole_batch(params)
        return metrics["loss"], jax.tree.map(jnp.conj, gradient)

    def backward(gradient: Any, cotangent: jax.Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), gradient),)

    value_fn: jax.custom_vjp[jax.Array] = jax.custom_vjp(loss)
    value_fn.defvjp(forward, backward)
    return value_fn


def _examples(batch: Any) -> int:
    # A key or a number beside the examples counts none.
    return next((len(x) for x in jax.tree.leaves(batch) if jnp.ndim(x)), 1)


def _weighted_mean(found: list[tuple[int, Any]]) -> Any:
    """The mean of trees, each weighted by its examples."""
    if len(found) == 1:
        return found[0][1]
    (first, a), (second, b) = found
    share = first / (first + second)
    return jax.tree.map(lambda x, y: (share * x + (1 - share) * y).astype(x.dtype), a, b)
