"""A loss scaled as far as its gradients' type allows, so that small gradients don't underflow."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.transforms.arguments import as_transform
from vanishjax.transforms.per_layer import check_layers
from vanishjax.transforms.states import (
    find_state,
    find_states,
    inside,
    is_chain,
    outlive,
    refuse_inside_multi_steps,
)

# What may stand around it: it hands every gradient on as it is.
_TRANSPARENT = {"InjectHyperparamsState", "InjectStatefulHyperparamsState"}


class DynamicLossScaleState(NamedTuple):
    """The scale, the good steps since it last changed, and how many steps overflowed."""

    scale: jax.Array
    good_steps: jax.Array
    overflows: jax.Array
    inner_state: optax.OptState


def dynamic_loss_scale(
    inner: optax.GradientTransformation | None = None,
    *,
    initial_scale: float = 2.0**15,
    growth_interval: int = 2000,
    factor: float = 2.0,
    min_scale: float = 1.0,
    max_scale: float = 2.0**126,
) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by the scale that their loss was multiplied with, and adapts the scale.

    Multiply the loss by `read_loss_scale(opt_state)` before differentiating it;
    `vanishjax.make_train_step` does so by itself. A step whose gradient isn't finite is skipped
    and the scale divided by `factor`; after `growth_interval` good steps it is multiplied.
    Scales are powers of two, so that scaling rounds nothing.

    It goes around all the rest, clipping, accumulation and other guards included:
    ``dynamic_loss_scale(optax.chain(clip, optimizer))``. What stands around it or before it would
    see scaled gradients, and may hide an overflow. Such orders are refused, here where they can be
    seen, otherwise by `read_loss_scale`, `TrainState.create` and `make_train_step`.

    Args:
      inner: What gets the unscaled gradient and the parameters, in float32 at least, and whose
        state stays as it was when a step is skipped. Without one, the unscaled gradient itself is
        the update, in its own type, where a 16-bit type may lose what the scale had saved. The
        extra argument `grad` is unscaled too; `value` and `value_fn` are those of the plain loss.
      initial_scale: First scale.
      growth_interval: Good steps before the scale grows.
      factor: By which it grows and shrinks.
      min_scale: Least scale.
      max_scale: Largest scale; its inverse must be a normal number, so at most 2^126.

    Returns:
      The transform; updates keep the gradient's shape and type.

    Raises:
      ValueError: A scale or factor that is no power of two, scales out of order, or a
        growth_interval below 1; at `init`, a leaf that is not floating point, or a second
        dynamic_loss_scale within.
      TypeError: inner is not a gradient transform.

    Example:
      >>> tx = dynamic_loss_scale(optax.sgd(1.0), initial_scale=8.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> update, state = tx.update(jnp.array([8.0]), state)
      >>> skipped, state = tx.update(jnp.array([jnp.inf]), state)
      >>> print(update, skipped, read_loss_scale(state))
      [-1.] [0.] 4.0

    References:
      Micikevicius et al., Mixed precision training, 2018, section 3.2.
    """
    _check_scales(initial_scale, growth_interval, factor, min_scale, max_scale)
    guarded = as_transform(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> DynamicLossScaleState:
        refuse_inside_multi_steps(DynamicLossScaleState)
        check_layers(None, params)
        state = DynamicLossScaleState(
            jnp.array(initial_scale, jnp.float32),
            jnp.zeros([], jnp.int32),
            jnp.zeros([], jnp.int32),
            guarded.init(jax.tree.map(numerics.upcast, params)),
        )
        find_loss_scale(state)
        return state

    def update_fn(
        updates: optax.Updates,
        state: DynamicLossScaleState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, DynamicLossScaleState]:
        finite = jnp.array(True)
        for leaf in jax.tree.leaves(updates):
            finite &= jnp.all(jnp.isfinite(leaf))

        def proceed() -> tuple[optax.Updates, optax.OptState]:
            inverse = 1 / state.scale

            def unscale(tree: Any) -> Any:
                return jax.tree.map(lambda g: numerics.upcast(g) * inverse, tree)

            # Parameters too, lest a state of their type alternates with one of the gradient's.
            wide = jax.tree.map(numerics.upcast, params)
            given = dict(extra)
            if given.get("grad") is not None:
                given["grad"] = unscale(given["grad"])
            if given.get("value_fn") is not None:
                given["value_fn"] = lambda wide: extra["value_fn"](numerics.cast_like(wide, params))
            steps, inner_state = guarded.update(unscale(updates), state.inner_state, wide, **given)
            return numerics.cast_like(steps, updates), inner_state

        def skip() -> tuple[optax.Updates, optax.OptState]:
            return jax.tree.map(
                lambda g: jnp.zeros_like(jnp.asarray(g)), updates
            ), state.inner_state

        steps, inner_state = jax.lax.cond(finite, proceed, skip)
        good = jnp.where(finite, state.good_steps + 1, 0)
        grow = good >= growth_interval
        scale = jnp.where(
            finite,
            jnp.where(grow, jnp.minimum(state.scale * factor, max_scale), state.scale),
            jnp.maximum(state.scale / factor, min_scale),
        )
        return steps, DynamicLossScaleState(
            scale,
            jnp.where(grow, 0, good),
            state.overflows + ~finite,
            inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_scales(initial: Any, interval: Any, factor: Any, least: Any, largest: Any) -> None:
    if not all(isinstance(x, int | float) for x in (initial, interval, factor, least, largest)):
        return  # injected hyperparameters are traced: nothing is known of them here
    named = {
        "initial_scale": initial,
        "factor": factor,
        "min_scale": least,
        "max_scale": largest,
    }
    for name, value in named.items():
        if not (0 < value < math.inf and math.frexp(value)[0] == 0.5):
            raise ValueError(f"{name} must be a power of two, got {value}")
    if not 2.0**-126 <= least <= initial <= largest <= 2.0**126:
        raise ValueError(
            "expected 2^-126 <= min_scale <= initial_scale <= max_scale <= 2^126, got "
            f"{least:g}, {initial:g}, {largest:g}"
        )
    if factor <= 1 or interval < 1:
        raise ValueError(
            f"factor must be above 1 and growth_interval at least 1, got {factor:g} and {interval}"
        )


def read_loss_scale(opt_state: Any) -> jax.Array:
    """The scale that the next loss is to be multiplied with.

    Args:
      opt_state: State of a transform that holds `dynamic_loss_scale`.

    Returns:
      The scale, a float32 scalar that outlives the state.

    Raises:
      ValueError: There is no `dynamic_loss_scale` in the state, or more than one, or it stands
        within or behind what must stand within it.

    Example:
      >>> print(read_loss_scale(dynamic_loss_scale(initial_scale=4.0).init(jnp.zeros(1))))
      4.0
    """
    find_loss_scale(opt_state)
    scale: jax.Array = outlive(find_state(opt_state, DynamicLossScaleState).scale)
    return scale


def find_loss_scale(opt_state: Any) -> DynamicLossScaleState | None:
    """The one state of `dynamic_loss_scale`, None if there is none; refuses a wrong order.

    Raises:
      ValueError: There are several, or gradients don't come to it as the loss gave them.
    """
    found = find_states(opt_state, DynamicLossScaleState)
    if len(found) > 1:
        raise ValueError(
            f"the optimizer's state holds {len(found)} dynamic_loss_scale, but a loss has one "
            "scale: put one around all the rest, such as dynamic_loss_scale(optax.partition(...))"
        )
    for _, around in found:
        for node, before in around:
            if is_chain(node) and before:
                raise ValueError(
                    "dynamic_loss_scale comes after another transform in a chain, which sees "
                    "scaled gradients: the right order is dynamic_loss_scale(optax.chain(...))"
                )
            kind = type(node)
            ours = kind.__module__.startswith(("optax.", "vanishjax.transforms."))
            if ours and hasattr(kind, "_fields") and kind.__name__ not in _TRANSPARENT:
                raise inside(DynamicLossScaleState, kind)
    return found[0].state if found else None
