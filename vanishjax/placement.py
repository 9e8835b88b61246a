"""Where arrays lie: what is spread over a mesh, brought together on one device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def gathered(tree: Any) -> Any:
    """The same tree, its arrays that lie on several devices copied to one.

    They are left uncommitted, so that they go where the program's other arrays are. Arrays of
    which a process holds only a part stay as they are.

    Args:
      tree: Any pytree. `jax.ShapeDtypeStruct`s lose their sharding.

    Returns:
      The tree; the very object if nothing in it is spread.

    Example:
      >>> x = jnp.ones(3)
      >>> gathered({"x": x})["x"] is x
      True
    """
    leaves, structure = jax.tree.flatten(tree)
    found = [_gathered(x) for x in leaves]
    if all(one is other for one, other in zip(found, leaves, strict=True)):
        return tree
    return jax.tree.unflatten(structure, found)


def _gathered(x: Any) -> Any:
    sharding = getattr(x, "sharding", None)
    if isinstance(x, jax.core.Tracer) or sharding is None or len(sharding.device_set) == 1:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    if not x.is_fully_addressable:
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(x)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jnp.asarray(np.asarray(x))


def placed_like(tree: Any, other: Any) -> Any:
    """A tree with its arrays where those of another, like it, lie, if that is on several devices.

    Example:
      >>> placed_like(jnp.ones(3), jnp.zeros(3))
      Array([1., 1., 1.], dtype=float32)
    """

    def place(x: Any, like: Any) -> Any:
        return x if _gathered(like) is like else jax.device_put(x, like.sharding)

    return jax.tree.map(place, tree, other)


def unsharded(x: jax.Array) -> jax.Array:
    """A value in a program whose type is spread over the explicit axes of a mesh, made whole.

    Example:
      >>> unsharded(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)
    """
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
