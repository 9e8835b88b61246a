"""One pure training step, and its wrappers for one device, a sharded jit, shard_map and pmap."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vanishjax.training.state import TrainState
from vanishjax.transforms import read_loss_scale

Metrics: TypeAlias = Mapping[str, jax.Array]
Step: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Parallel: TypeAlias = Literal["jit", "pmap", "shard_map"]

_AXIS = "batch"


def local_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    with_key: bool = False,
    axis: str | None = None,
) -> Step:
    """The pure step on one device's share of the batch; nothing is compiled here.

    Args:
      loss_fn: See `make_train_step`.
      tx: See `make_train_step`.
      has_aux: See `make_train_step`.
      with_key: See `make_train_step`.
      axis: Name of the mapped axis over which gradients and metrics are averaged; None for none.

    Returns:
      A function (state, batch) -> (state, metrics).

    Example:
      >>> tx = optax.sgd(0.5)
      >>> step = local_step(lambda w, batch: jnp.mean((w - batch) ** 2), tx)
      >>> state, metrics = step(TrainState.create(jnp.zeros(()), tx), jnp.ones(4))
      >>> print(state.params, metrics["loss"])
      1.0 1.0
    """
    extended = optax.with_extra_args_support(tx)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        params, arguments = state.params, {}
        if axis is not None:
            # Else the gradient of a replicated parameter arrives already summed over the axis,
            # and its mean is that sum: too large by the number of devices.
            params = jax.lax.pcast(params, axis, to="varying")
        if with_key:
            key = jax.random.fold_in(state.key, state.step)
            arguments["key"] = (
                key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))
            )
        scale = read_loss_scale(state.opt_state)

        def scaled_loss(params: Any) -> tuple[jax.Array, Metrics]:
            value = loss_fn(params, batch, **arguments)
            loss, aux = value if has_aux else (value, {})
            return loss if scale is None else loss * scale, {"loss": loss, **aux}

        gradients, metrics = jax.grad(scaled_loss, has_aux=True)(params)
        if axis is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis)
        updates, opt_state = extended.update(
            gradients, state.opt_state, state.params, value=metrics["loss"]
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return step


def make_train_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    parallel: Parallel | None = None,
    mesh: Mesh | None = None,
    has_aux: bool = False,
    with_key: bool = False,
) -> Step:
    """Compiles one training step.

    The state is donated and comes back in the same order: XLA pairs donated inputs with outputs
    by order, and a crossed order would copy every buffer.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar, the mean over the batch.
      tx: The gradient transform. If it holds a `dynamic_loss_scale`, the loss is scaled by it.
      parallel: None runs on one device. "jit" shards the batch and lets the compiler write the
        collectives, "shard_map" and "pmap" average the gradients themselves; all three keep the
        state replicated and take the whole batch.
      mesh: Devices for `parallel`, one axis; all devices if None.
      has_aux: Whether loss_fn gives `(loss, metrics)`, metrics a dict of scalars (batch means).
      with_key: Whether loss_fn takes a `key=` argument (dropout); every step and every device
        gets its own.

    Returns:
      `step(state, batch) -> (state, metrics)`; metrics holds "loss" and loss_fn's own. The state
      handed in is used up.

    Raises:
      ValueError: An unknown `parallel`, a mesh of several axes, or (when called) a batch that
        doesn't divide among the devices.

    Example:
      >>> tx = optax.sgd(0.5)
      >>> step = make_train_step(lambda w, batch: jnp.mean((w - batch) ** 2), tx)
      >>> state, metrics = step(TrainState.create(jnp.zeros(()), tx), jnp.ones(4))
      >>> print(state.params, metrics["loss"])
      1.0 1.0
    """
    axis = _AXIS if parallel in ("pmap", "shard_map") else None
    step = local_step(loss_fn, tx, has_aux=has_aux, with_key=with_key, axis=axis)
    if parallel is None:
        return jax.jit(step, donate_argnums=0)
    if parallel not in ("jit", "pmap", "shard_map"):
        raise ValueError(f"parallel must be None, 'jit', 'pmap' or 'shard_map', got {parallel!r}")
    devices = jax.devices() if mesh is None else list(mesh.devices.flat)
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    mesh = Mesh(devices, (_AXIS,))
    replicated, split = PartitionSpec(), PartitionSpec(_AXIS)

    if parallel == "pmap":
        mapped = jax.pmap(
            step,
            axis_name=_AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )
        return lambda state, batch: mapped(state, _divide_batch(batch, len(devices), stack=True))
    if parallel == "shard_map":
        step = jax.shard_map(
            step, mesh=mesh, in_specs=(replicated, split), out_specs=(replicated, replicated)
        )
    whole, part = NamedSharding(mesh, replicated), NamedSharding(mesh, split)
    compiled = jax.jit(
        step, in_shardings=(whole, part), out_shardings=(whole, whole), donate_argnums=0
    )
    return lambda state, batch: compiled(state, _divide_batch(batch, len(devices), stack=False))


def _divide_batch(batch: Any, parts: int, *, stack: bool) -> Any:
    def divide(path: Any, x: Any) -> Any:
        size = jnp.shape(x)[0] if jnp.ndim(x) else 0
        if size == 0 or size % parts:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)}: {size} examples don't divide among {parts} "
                f"devices; use a multiple of {parts}"
            )
        return jnp.reshape(x, (parts, size // parts, *jnp.shape(x)[1:])) if stack else x

    return jax.tree_util.tree_map_with_path(divide, batch)
