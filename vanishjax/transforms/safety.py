"""Guards: layers that are not finite are skipped and named, a loss is scaled while it can be."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Layers
from vanishjax.transforms.per_layer import check_layers, layers_of


class SkipNonfiniteState(NamedTuple):
    """For each layer, in depth order, how often it was skipped and whether it was just now."""

    skipped: jax.Array
    last: jax.Array
    inner_state: optax.OptState


def skip_nonfinite(
    layers: Layers | None = None, inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """Skips the update of every layer whose gradient is infinite or NaN somewhere.

    The other layers proceed. `read_skipped` names the layers and counts.

    Args:
      layers: Division of the tree into layers; derived from the parameters if None.
      inner: The transform to guard: a skipped layer's update is zero, and its arrays in inner's
        state (moments) stay what they were. Without one, the skipped layer's gradient becomes zero:
        moments further on in the chain stay clean, but decay, and may move the layer.

    Returns:
      A transform; finite layers' updates are inner's own. `SkipNonfiniteState.last` is `[layers]`.

    Raises:
      ValueError: At `init`, a leaf that is not floating point, or layers of another tree.

    Example:
      >>> tx = skip_nonfinite(inner=optax.sgd(1.0, momentum=0.9))
      >>> params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
      >>> gradient = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(1)}
      >>> update, state = tx.update(gradient, tx.init(params), params)
      >>> print(update["a"], update["b"], read_skipped(state, params))
      [0. 0.] [-1.] {'a': 1}
    """
    guarded = optax.with_extra_args_support(inner or optax.identity())

    def init_fn(params: optax.Params) -> SkipNonfiniteState:
        check_layers(layers, params)
        count = len(layers_of(layers, params))
        return SkipNonfiniteState(
            jnp.zeros(count, jnp.int32), jnp.zeros(count, bool), guarded.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: SkipNonfiniteState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, SkipNonfiniteState]:
        found = layers_of(layers, updates)
        bad = found.reduce(lambda g, axes: jnp.any(~jnp.isfinite(g), axis=axes), updates)
        bad = bad.astype(bool)
        masks = found.expand(bad, updates)

        def zero(tree: optax.Updates) -> optax.Updates:
            return jax.tree.map(lambda mask, u: jnp.where(mask, jnp.zeros_like(u), u), masks, tree)

        steps, inner_state = guarded.update(zero(updates), state.inner_state, params, **extra)
        inner_state = _keep_skipped(masks, updates, inner_state, state.inner_state)
        return zero(steps), SkipNonfiniteState(state.skipped + bad, bad, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def read_skipped(opt_state: Any, layers: Layers | Any) -> dict[str, int]:
    """Which layers `skip_nonfinite` skipped so far, and how often.

    Args:
      opt_state: State of a transform that holds `skip_nonfinite` somewhere.
      layers: The layers, or the parameters if none were given to `skip_nonfinite`.

    Returns:
      Layer name -> count, in depth order; only layers that were skipped.

    Raises:
      ValueError: There is no `skip_nonfinite` in the state, or it is of other layers.

    Example:
      >>> params = {"w": jnp.zeros(1)}
      >>> tx = optax.chain(skip_nonfinite(), optax.sgd(0.1))
      >>> _, state = tx.update({"w": jnp.array([jnp.inf])}, tx.init(params))
      >>> read_skipped(state, params)
      {'w': 1}
    """
    state = _find(opt_state, SkipNonfiniteState)
    if state is None:
        raise ValueError("the optimizer's state holds no skip_nonfinite")
    names = layers_of(layers if isinstance(layers, Layers) else None, layers).names
    if len(names) != len(state.skipped):
        raise ValueError(
            f"the state counts {len(state.skipped)} layers, but {len(names)} were given; pass the "
            "layers that skip_nonfinite got"
        )
    return {name: int(count) for name, count in zip(names, state.skipped, strict=True) if count > 0}


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

    Args:
      inner: What gets the unscaled gradient and the parameters, in float32 at least, and whose
        state stays as it was when a step is skipped. Without one, the unscaled gradient itself is
        the update, in its own type, where a 16-bit type may lose what the scale had saved.
      initial_scale: First scale.
      growth_interval: Good steps before the scale grows.
      factor: By which it grows and shrinks.
      min_scale: Least scale.
      max_scale: Largest scale; its inverse must be a normal number, so at most 2^126.

    Returns:
      The transform; updates keep the gradient's shape and type.

    Raises:
      ValueError: A scale or factor that is no power of two, scales out of order, or a
        growth_interval below 1.

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
    guarded = optax.with_extra_args_support(inner or optax.identity())

    def init_fn(params: optax.Params) -> DynamicLossScaleState:
        check_layers(None, params)
        return DynamicLossScaleState(
            jnp.array(initial_scale, jnp.float32),
            jnp.zeros([], jnp.int32),
            jnp.zeros([], jnp.int32),
            guarded.init(jax.tree.map(numerics.upcast, params)),
        )

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
            unscaled = jax.tree.map(lambda g: numerics.upcast(g) * inverse, updates)
            # Parameters too, lest a state of their type alternates with one of the gradient's.
            wide = jax.tree.map(numerics.upcast, params)
            steps, inner_state = guarded.update(unscaled, state.inner_state, wide, **extra)
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


def read_loss_scale(opt_state: Any) -> jax.Array | None:
    """The scale that the next loss is to be multiplied with; None if nothing scales it.

    Example:
      >>> print(read_loss_scale(dynamic_loss_scale(initial_scale=4.0).init(jnp.zeros(1))))
      4.0
      >>> read_loss_scale(optax.sgd(0.1).init(jnp.zeros(1))) is None
      True
    """
    state = _find(opt_state, DynamicLossScaleState)
    return None if state is None else state.scale


def _find(opt_state: Any, kind: type) -> Any:
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return next((state for state in states if isinstance(state, kind)), None)


def _keep_skipped(masks: Any, updates: Any, new: optax.OptState, old: optax.OptState) -> Any:
    """Puts back the old state of skipped layers.

    An array of the state belongs to the parameter whose path its own path ends with, if their
    shapes agree: that holds for moments under chain, masked and partition alike.
    """
    owners = {}
    entries = jax.tree_util.tree_leaves_with_path(updates)
    for (path, update), mask in zip(entries, jax.tree.leaves(masks), strict=True):
        owners[path] = (jnp.shape(update), mask)

    def keep(path: Any, after: jax.Array, before: jax.Array) -> jax.Array:
        for start in range(len(path) + 1):
            owner = owners.get(path[start:])
            if owner is not None and owner[0] == jnp.shape(after):
                return jnp.where(owner[1], before, after)
        return after

    return jax.tree_util.tree_map_with_path(keep, new, old)
