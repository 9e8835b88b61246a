"""One pure training step, and its wrappers for one device, a sharded jit, shard_map and pmap."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vanishjax.problem import Problem, as_problem
from vanishjax.training.batches import divided, example_count
from vanishjax.training.carried import agreed, check_same_form
from vanishjax.training.layout import Parallel, Sharded, make_layout
from vanishjax.training.meshes import adopted, is_explicit
from vanishjax.training.parts import WEIGHT, Part, counted, counted_part
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
    loss_fn: Callable[..., Any] | Problem,
    tx: optax.GradientTransformation | None = None,
    *,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
    axis: str | None = None,
    accumulate: int = 1,
) -> LocalStep:
    """The pure step on one device's share of the batch; nothing is compiled here.

    Args:
      loss_fn: See `make_train_step`.
      tx: See `make_train_step`.
      has_aux: See `make_train_step`.
      with_key: See `make_train_step`.
      with_state: See `make_train_step`.
      axis: Name of the mapped axis over which gradients and metrics are averaged; None for none.
      accumulate: See `make_train_step`; it must divide the batch.

    Returns:
      A function (state, batch, rest=None) -> (state, metrics). All devices see the same rest: the
      examples of the whole batch that don't divide among them, each counted as often as the others.

    Raises:
      ValueError: accumulate below 1, or a problem without a transform.
      TypeError: See `make_train_step`.

    Example:
      >>> tx = optax.sgd(0.5)
      >>> step = local_step(lambda w, batch: jnp.mean((w - batch) ** 2), tx)
      >>> state, metrics = step(TrainState.create(jnp.zeros(()), tx), jnp.ones(4))
      >>> print(state.params, metrics["loss"])
      1.0 1.0
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    problem = problem_to_train(
        loss_fn, tx, has_aux=has_aux, with_key=with_key, with_state=with_state
    )
    transform = as_transform(problem.transform, "tx")

    def part_of(
        params: Any, model_state: Any, batch: Any, key: jax.Array | None, scale: jax.Array | None
    ) -> tuple[Part, Any]:
        """Gradient and metrics, means over some examples; and the model state after them."""

        def scaled_loss(params: Any) -> tuple[jax.Array, Any]:
            loss, after, metrics = problem.evaluate(params, batch, model_state=model_state, key=key)
            return loss if scale is None else loss * scale, ({"loss": loss, **metrics}, after)

        gradient, (metrics, after) = jax.grad(scaled_loss, has_aux=True)(params)
        if problem.with_state:
            check_same_form(model_state, after)
        if WEIGHT not in metrics:
            return Part((gradient, metrics)), after
        weight = metrics.pop(WEIGHT)
        part = counted_part((gradient, metrics), weight)
        return part, counted(weight, after, model_state) if problem.with_state else after

    def accumulated(
        params: Any, model_state: Any, batch: Any, key: jax.Array | None, scale: jax.Array | None
    ) -> tuple[Part, Any]:
        # Every K-th example, so that a batch that lies on several devices stays where it is.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch
        )

        def one(model_state: Any, numbered: tuple[jax.Array, Any]) -> tuple[Part, Any]:
            number, part = numbered
            own = None if key is None else jax.random.fold_in(key, number)
            found, after = part_of(params, model_state, part, own, scale)
            return found, _surely_varying(after, axis)

        numbers = jnp.arange(accumulate)
        first, _ = jax.eval_shape(
            lambda: one(model_state, jax.tree.map(lambda x: x[0], (numbers, parts)))
        )

        def add(carry: tuple[Part, Any], numbered: Any) -> tuple[tuple[Part, Any], None]:
            total, model_state = carry
            part, model_state = one(model_state, numbered)
            if part.weight is None:
                return (Part(jax.tree.map(jnp.add, total.means, part.means)), model_state), None
            return (total.join(part), model_state), None

        def zero(x: Any) -> jax.Array:
            wide = jnp.promote_types(x.dtype, jnp.float32)
            zeros: jax.Array = _varying(jnp.zeros(x.shape, wide), axis)
            return zeros

        def mean(x: jax.Array, like: Any) -> jax.Array:
            x = x if first.weight is not None else x / accumulate
            return x.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.inexact) else x

        start = jax.tree.map(zero, first), model_state
        (total, model_state), _ = jax.lax.scan(add, start, (numbers, parts))
        return Part(jax.tree.map(mean, total.means, first.means), total.weight), model_state

    def step(state: TrainState, batch: Any, rest: Any = None) -> tuple[TrainState, Metrics]:
        key, key_of_rest = None, None
        if problem.with_key:
            key = jax.random.fold_in(state.key, state.step)
            key_of_rest = jax.random.fold_in(key, _REST)
            if axis is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        check_guards(state.opt_state)
        scaled = find_loss_scale(state.opt_state)

        def of_whole_batch(params: Any, scale: jax.Array | None = None) -> tuple[Any, Metrics, Any]:
            # Else the gradient of a replicated parameter arrives already summed over the axis, and
            # its mean is that sum: too large by the number of devices.
            params, model_state = _varying((params, state.model_state), axis)
            devices, parts = 1 if axis is None else jax.lax.axis_size(axis), []
            if batch is not None:
                compute = part_of if accumulate == 1 else accumulated
                part, model_state = compute(params, model_state, batch, key, scale)
                parts.append(part)
            if rest is not None:
                part, model_state = part_of(params, model_state, rest, key_of_rest, scale)
                if part.weight is not None:
                    # Every device has it, and all devices are summed.
                    part = part._replace(weight=part.weight / devices)
                parts.append(part)
            whole = parts[0]
            if len(parts) > 1:
                size = example_count(batch) * devices
                whole = whole.join(parts[1], size / (size + example_count(rest)))
            if axis is not None:
                whole = whole.over(axis)
                if problem.with_state:
                    model_state = agreed(model_state, axis)
            (gradient, metrics), weight = whole
            if weight is not None:
                metrics = {**metrics, WEIGHT: weight}
            # JAX's gradient of a complex number is the conjugate of the steepest ascent.
            return jax.tree.map(jnp.conj, gradient), metrics, model_state

        gradient, metrics, model_state = of_whole_batch(
            state.params, None if scaled is None else scaled.scale
        )
        updates, opt_state = transform.update(
            gradient,
            state.opt_state,
            state.params,
            value=metrics["loss"],
            grad=gradient,
            value_fn=_value_fn(of_whole_batch),
        )
        params = optax.apply_updates(state.params, updates)
        if not problem.with_state:
            model_state = state.model_state
        count = optax.safe_increment(state.step)
        return TrainState(count, params, opt_state, state.key, model_state), metrics

    return step


def problem_to_train(
    loss_fn: Callable[..., Any] | Problem,
    tx: Any,
    *,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Problem:
    """The problem of the first two arguments of `make_train_step` and its flags.

    Raises:
      TypeError: tx is missing or no gradient transform, or there are flags beside a problem.
      ValueError: The problem has no transform.
    """
    if isinstance(loss_fn, TrainState):
        raise TypeError("loss_fn must be a loss or a vanishjax.Problem, got a TrainState")
    if not isinstance(loss_fn, Problem) and tx is None:
        raise TypeError("a loss comes with the transform that trains it: tx is missing")
    transform = None if tx is None else as_transform(tx, "tx")
    problem = as_problem(
        loss_fn,
        None,
        transform,
        has_aux=has_aux,
        with_key=with_key,
        with_state=with_state,
    )
    as_transform(problem.transform, "tx")
    return problem


def make_train_step(
    loss_fn: Callable[..., Any] | Problem,
    tx: optax.GradientTransformation | None = None,
    *,
    parallel: Parallel | None = None,
    mesh: Mesh | None = None,
    shard_state: Sharded | None = None,
    accumulate: int = 1,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Step:
    """Compiles one training step: `make_train_step(problem)` or `make_train_step(loss_fn, tx)`.

    The state is donated and comes back in the same order: XLA pairs donated inputs with outputs
    by order, and a crossed order would copy every buffer.

    Every example counts once, also in a batch that doesn't divide: the examples that are left over
    are computed by all devices alike, and weigh as much as the others. That is exact for a loss
    that is a mean over examples. One that looks across examples, as batch normalization does, sees
    a device's own part of the batch under "shard_map" and "pmap", and a microbatch of an
    accumulated one. Its model state goes from one microbatch to the next, and to the examples that
    are left over; then "shard_map" and "pmap" average its floating-point arrays over the devices
    and take the others from the first, so that all devices agree. A step that a guard skips keeps
    the new model state.

    A loss that is a mean over something else, such as the tokens that a mask leaves, says with a
    metric named `weight` over how many: gradients, loss and the other metrics are then weighted by
    it wherever a batch is divided, so that they are those of the whole batch. A part of weight 0
    counts nothing, even if its loss is NaN. The reported `weight` is the sum.

    Complex parameters get conjugated gradients, the direction of steepest ascent, as optax wants
    them.

    Args:
      loss_fn: `loss_fn(params, batch)` -> a scalar, the mean over the batch; or a `Problem`, which
        has the transform and the flags as well.
      tx: The gradient transform; beside a problem it takes the place of the problem's. If it holds
        a `dynamic_loss_scale`, the loss is scaled by it. One that takes extra arguments gets the
        loss, its gradient and the loss of the same batch as a function of the parameters, as
        `value`, `grad` and `value_fn`: line searches need them.
      parallel: None runs on one device. "jit" shards the batch and lets the compiler write the
        collectives, "shard_map" and "pmap" average the gradients themselves; all three take the
        whole batch and the same state, wherever it lies.
      mesh: Devices for `parallel`; all if None. Of several axes, the one named "batch" or "data",
        or else the first, divides the batch, and the others repeat the work ("pmap" leaves them
        out). Explicit axes are taken as automatic ones: the state comes back on these.
      shard_state: For "jit": None keeps the state whole on every device, "zero1" divides the
        transform's state among them, "fsdp" the parameters too: see `vanishjax.training.
        shard_state`.
      accumulate: Into how many microbatches to divide the batch, one computed after the other, for
        less memory; the transforms see the mean gradient once. Fewer examples than devices times
        microbatches are left over, and are computed in one go.
      has_aux: Whether loss_fn gives `(loss, metrics)`, metrics a dict of scalars (batch means).
      with_key: Whether loss_fn takes a `key=` argument (dropout); every step, every device and
        every microbatch gets its own.
      with_state: Whether loss_fn takes a `state=` argument, the model state, and gives the next one
        too: `(loss, new_state)`, or with has_aux `(loss, (new_state, metrics))`.

    Returns:
      `step(state, batch) -> (state, metrics)`; metrics holds "loss" and loss_fn's own. The state
      handed in is used up.

    Raises:
      ValueError: An unknown `parallel` or `shard_state`, one that doesn't go with the other,
        accumulate below 1, or (when called) a batch of arrays of different
        lengths, or guards in an order in which they can't work (see `dynamic_loss_scale` and
        `skip_nonfinite`), or a weight that is no scalar.
      TypeError: tx is missing or not a gradient transform, there are flags beside a problem, or
        (when called) the loss doesn't return what the flags say, or a model state of another form.

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
        with_state=with_state,
        axis=layout.axis,
        accumulate=accumulate,
    )
    if layout.mesh is None:

        def alone(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            return (
                step(state, *divided(batch, accumulate)) if accumulate > 1 else step(state, batch)
            )

        jitted = jax.jit(alone, donate_argnums=0)

        def on_one_device(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            if any(map(is_explicit, jax.tree.leaves(batch))):
                state, batch = adopted((state, batch))
            stepped: tuple[TrainState, Metrics] = jitted(state, batch)
            return stepped

        on_one_device.lower = jitted.lower  # type: ignore[attr-defined]
        return on_one_device
    compiled = layout.compile(lambda state, _, batch, rest: step(state, batch, rest))

    def spread(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        state, metrics = compiled(layout.place(state), None, *layout.parts(batch, accumulate))
        return state, metrics

    return spread


def _varying(tree: Any, axis: str | None) -> Any:
    """The same values, marked as a device's own; vmap, as in a fake pmap, has no such mark."""
    return jax.lax.pcast(tree, axis, to="varying") if _is_manual(axis) else tree


def _surely_varying(tree: Any, axis: str | None) -> Any:
    """The same of values that may be marked already, which pcast refuses."""
    if not _is_manual(axis):
        return tree
    here = jax.lax.axis_index(axis) >= 0
    return jax.tree.map(lambda x: jnp.where(here, x, x), tree)


def _is_manual(axis: str | None) -> bool:
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def _value_fn(
    of_whole_batch: Callable[[Any], tuple[Any, Metrics, Any]],
) -> Callable[[Any], jax.Array]:
    """The loss of the whole batch as a function of the parameters, for line searches.

    Its gradient is that of the step, also on several devices and of a divided batch.
    """

    def loss(params: Any) -> jax.Array:
        return of_whole_batch(params)[1]["loss"]

    def forward(params: Any) -> tuple[jax.Array, Any]:
        gradient, metrics, _ = of_whole_batch(params)
        return metrics["loss"], jax.tree.map(jnp.conj, gradient)

    def backward(gradient: Any, cotangent: jax.Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), gradient),)

    value_fn: jax.custom_vjp[jax.Array] = jax.custom_vjp(loss)
    value_fn.defvjp(forward, backward)
    return value_fn
