"""The model state: what a network carries from one step to the next beside its parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def check_same_form(before: Any, after: Any) -> None:
    """Raises TypeError unless a loss gives a model state of the form of the one that it got."""
    given: Any = jax.tree.structure(before)
    if given != jax.tree.structure(after):
        if before is None:
            raise TypeError(
                "loss_fn gives a model state, but the TrainState has none to begin with: make it "
                "with TrainState.create(problem), or model_state="
            )
        raise TypeError(
            "loss_fn must give a model state of the structure that it got: "
            f"{given}, got {jax.tree.structure(after)}"
        )
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        was, now = (f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (old, new))
        if was != now:
            raise TypeError(
                "loss_fn must give a model state of the shapes and types that it got: "
                f"{jax.tree_util.keystr(path)} was {was}, is {now}"
            )


def agreed(model_state: Any, axis: str) -> Any:
    """One model state from those of all devices: means of real numbers, else the first device's."""

    def one(x: jax.Array) -> jax.Array:
        dtype = jnp.result_type(x)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        if jnp.issubdtype(dtype, jnp.inexact):
            mean: jax.Array = jax.lax.pmean(x, axis)
            return mean
        first = jnp.where(jax.lax.axis_index(axis) == 0, x, jnp.zeros_like(x))
        return jnp.asarray(jax.lax.psum(first, axis), dtype)

    return jax.tree.map(one, model_state)
