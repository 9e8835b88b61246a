"""A guard: layers whose gradients are not finite are skipped and named."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax.layers import Layers
from vanishjax.transforms.arguments import as_transform, check_layers_argument
from vanishjax.transforms.loss_scale import find_loss_scale
from vanishjax.transforms.per_layer import check_layers, layers_of
from vanishjax.transforms.states import (
    find_state,
    find_states,
    inside,
    refuse_inside_multi_steps,
)


class SkipNonfiniteState(NamedTuple):
    """How often each layer was skipped, which were skipped just now, and the state inside.

    Attributes:
      skipped: `[layers]` counts in the order of the tree, which is the same for all who divide it
        alike: `read_skipped` names them from the parameters alone.
      last: `[layers]` in depth order: whether the last update skipped the layer.
      inner_state: Of the transform inside.
    """

    skipped: jax.Array
    last: jax.Array
    inner_state: optax.OptState


def skip_nonfinite(
    inner: optax.GradientTransformation | None = None, *, layers: Layers | None = None
) -> optax.GradientTransformationExtraArgs:
    """Skips the update of every layer whose gradient is infinite or NaN somewhere.

    The other layers proceed. `read_skipped` names the layers and counts. Where every layer is
    skipped, the step leaves all of inner's state as it was, counts and schedules included.

    Around `optax.MultiSteps`, a skipped layer keeps its accumulated gradient as it was; skipped in
    the last microbatch of several, it doesn't move with the others. Inside it, a NaN would stay in
    the accumulated gradient for ever, so that order is refused.

    Args:
      inner: The transform to guard: a skipped layer's update is zero, and its arrays in inner's
        state (moments) stay what they were. Without one, the skipped layer's gradient becomes zero:
        moments further on in the chain stay clean, but decay, and may move the layer.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      A transform; finite layers' updates are inner's own. `SkipNonfiniteState.last` is `[layers]`.

    Raises:
      ValueError: At `init`, a leaf that is not floating point, layers of another tree, a
        `dynamic_loss_scale` within (which would never see an overflow), or `optax.MultiSteps`
        around.
      TypeError: inner is not a gradient transform, or layers no `Layers`.

    Example:
      >>> tx = skip_nonfinite(optax.sgd(1.0, momentum=0.9))
      >>> params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
      >>> gradient = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(1)}
      >>> update, state = tx.update(gradient, tx.init(params), params)
      >>> print(update["a"], update["b"], read_skipped(state, params))
      [0. 0.] [-1.] {'a': 1}
    """
    check_layers_argument(layers)
    guarded = as_transform(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> SkipNonfiniteState:
        refuse_inside_multi_steps(SkipNonfiniteState)
        check_layers(layers, params)
        count = len(layers_of(layers, params))
        state = SkipNonfiniteState(
            jnp.zeros(count, jnp.int32), jnp.zeros(count, bool), guarded.init(params)
        )
        find_loss_scale(state)
        return state

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

        steps, inner_state = guarded.update(
            _zeroed(masks, updates), state.inner_state, params, **_guarded(extra, masks)
        )
        filled = found.reduce(_is_filled, updates).astype(bool)
        nothing_moves = jnp.all(bad | ~filled) & jnp.any(filled)
        inner_state = _keep_skipped(masks, nothing_moves, updates, inner_state, state.inner_state)
        in_tree_order = bad[np.argsort(np.array(found.order, int))]
        return _zeroed(masks, steps), SkipNonfiniteState(
            state.skipped + in_tree_order, bad, inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def read_skipped(opt_state: Any, layers: Layers | Any) -> dict[str, int]:
    """Which layers `skip_nonfinite` skipped so far, and how often.

    Args:
      opt_state: State of a transform that holds `skip_nonfinite` somewhere.
      layers: The layers that `skip_nonfinite` got; or the parameters, which do as well unless the
        layers name stacks that the parameters alone don't tell.

    Returns:
      Layer name -> count, in depth order; only layers that were skipped.

    Raises:
      ValueError: There is no `skip_nonfinite` in the state, there are several, or it is of other
        layers, or inside `optax.MultiSteps`.

    Example:
      >>> params = {"w": jnp.zeros(1)}
      >>> tx = optax.chain(skip_nonfinite(), optax.sgd(0.1))
      >>> _, state = tx.update({"w": jnp.array([jnp.inf])}, tx.init(params))
      >>> read_skipped(state, params)
      {'w': 1}
    """
    check_guards(opt_state)
    state = find_state(opt_state, SkipNonfiniteState)
    several = len(find_states(opt_state, SkipNonfiniteState))
    if several > 1:
        raise ValueError(
            f"the optimizer's state holds {several} skip_nonfinite: pass the part of it with the "
            "one you mean"
        )
    known = layers_of(layers if isinstance(layers, Layers) else None, layers)
    if len(known) != len(state.skipped):
        raise ValueError(
            f"the state counts {len(state.skipped)} layers, but {len(known)} were given; pass the "
            "layers that skip_nonfinite got"
        )
    counts = np.asarray(state.skipped)[np.array(known.order, int)]
    return {name: int(count) for name, count in zip(known.names, counts, strict=True) if count > 0}


def check_guards(opt_state: Any) -> None:
    """Raises ValueError, with the right order, where a guard in the state can't do its work."""
    find_loss_scale(opt_state)
    for _, around in find_states(opt_state, SkipNonfiniteState):
        if any(isinstance(node, optax.MultiStepsState) for node, _ in around):
            raise inside(SkipNonfiniteState, optax.MultiStepsState)


def _guarded(extra: dict[str, Any], masks: Any) -> dict[str, Any]:
    """What a line search gets, with the gradients of bad layers zero; of a whole tree only."""
    given, value_fn = dict(extra), extra.get("value_fn")
    whole: Any = jax.tree.structure(masks)
    if jax.tree.structure(extra.get("grad")) == whole:
        given["grad"] = _zeroed(masks, extra["grad"])
    if value_fn is not None:

        def without_bad_slopes(params: Any) -> Any:
            if jax.tree.structure(params) == whole:
                params = jax.tree.map(
                    lambda mask, x: jnp.where(mask, jax.lax.stop_gradient(x), x), masks, params
                )
            return value_fn(params)

        given["value_fn"] = without_bad_slopes
    return given


def _zeroed(masks: Any, tree: Any) -> Any:
    return jax.tree.map(lambda mask, u: jnp.where(mask, jnp.zeros_like(u), u), masks, tree)


def _is_filled(g: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Whether the layers of an array have entries."""
    stack = [n for axis, n in enumerate(jnp.shape(g)) if axis not in axes]
    return jnp.full(stack, jnp.size(g) > 0)


def _keep_skipped(
    masks: Any, all_skipped: jax.Array, updates: Any, new: optax.OptState, old: optax.OptState
) -> Any:
    """Puts back the old state of skipped layers, and all of it where every layer was skipped.

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
        return jnp.where(all_skipped, before, after)

    return jax.tree_util.tree_map_with_path(keep, new, old)
