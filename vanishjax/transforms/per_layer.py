"""Transforms that treat every layer by itself, stacked or not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Layers, Leaf, find_layers
from vanishjax.transforms.arguments import check_layers_argument


def layers_of(layers: Layers | None, tree: Any) -> Layers:
    """`layers`, or the tree's own division where none was given."""
    return find_layers(tree) if layers is None else layers


def on_layers(
    build: Callable[[Layers], optax.GradientTransformationExtraArgs],
    layers: Layers | None,
    matrices: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """`build(layers)`, or a transform that divides each whole tree before any part of it is hidden.

    For what is made with `optax.partition`: an array alone doesn't tell whether it's a stack.
    `matrices` as in `find_layers`, or a function of the tree that gives it.
    """
    check_layers_argument(layers)
    if layers is not None:
        return build(layers)
    build(Layers((), (), ()))  # a bad argument is refused now, not at `init`

    def divided(tree: Any) -> Layers:
        return find_layers(tree, matrices=matrices(tree) if callable(matrices) else matrices)

    def init_fn(params: optax.Params) -> optax.OptState:
        return build(divided(params)).init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return build(divided(updates)).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_layers(layers: Layers | None, params: Any) -> None:
    """Raises ValueError, naming the path, unless the layers are those of the parameters."""
    find_layers(params)
    if layers is None:
        return
    for leaf in layers.leaves:
        for axis in leaf.axes:
            if not 0 <= axis < len(leaf.shape):
                raise ValueError(f"{leaf.path}: stack axis {axis} isn't one of shape {leaf.shape}")
    layers.expand(jnp.zeros(len(layers)), params)


def check_given(params: Any) -> None:
    """Raises ValueError unless `update` got the parameters."""
    if params is None:
        raise ValueError("this transform needs the parameters: call update(updates, state, params)")


def per_layer(
    fn: Callable[..., jax.Array], layers: Layers | None, *, with_params: bool = False
) -> optax.GradientTransformation:
    """The stateless transform that applies a function to every array of the tree.

    Args:
      fn: `fn(update, axes=axes)`, or `fn(update, param, axes=axes)`: gets float32 at least, and
        `axes`, all but the stack axes; returns the new update.
      layers: Division of the tree into layers; derived from the parameters if None.
      with_params: Whether `fn` takes the parameter.

    Returns:
      The transform; updates keep shape and type.

    Example:
      >>> tx = per_layer(lambda u, axes: u - jnp.mean(u, axes, keepdims=True), None)
      >>> print(tx.update(jnp.array([1.0, 3.0]), tx.init(jnp.zeros(2)))[0])
      [-1.  1.]
    """
    return per_leaf(
        lambda leaf, *arrays: fn(*arrays, axes=leaf.inner_axes), layers, with_params=with_params
    )


def per_leaf(
    fn: Callable[..., jax.Array], layers: Layers | None, *, with_params: bool = False
) -> optax.GradientTransformation:
    """As `per_layer`, for functions that need more of the `Leaf` than its axes.

    Args:
      fn: `fn(leaf, update)`, or `fn(leaf, update, param)`: gets float32 at least, returns the new
        update.
      layers: Division of the tree into layers; derived from the parameters if None.
      with_params: Whether `fn` takes the parameter.

    Returns:
      The transform; updates keep shape and type.
    """
    check_layers_argument(layers)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        check_layers(layers, params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if with_params:
            check_given(params)
        rest = (params,) if with_params else ()

        def apply(leaf: Leaf, *arrays: jax.Array) -> jax.Array:
            return fn(leaf, *map(numerics.upcast, arrays))

        steps = layers_of(layers, updates).map_leaves(apply, updates, *rest)
        return numerics.cast_like(steps, updates), state

    return optax.GradientTransformation(init_fn, update_fn)
