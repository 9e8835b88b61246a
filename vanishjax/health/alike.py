"""Reductions of a network's arrays, those that are alike at once: a program of half the size."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax.layers import Layers

# Entries of arrays up to which they are laid side by side; the copies of larger ones cost more
# memory than the compiler's time is worth.
_FEW = 2**14


def reduce_layers(layers: Layers, fn: Callable[..., Any], tree: Any) -> jax.Array:
    """As `layers.reduce(fn, tree)`; faster to compile for a tree that has all leaves.

    Args:
      layers: The division of the tree.
      fn: `fn(leaf, axes=axes)`, as for `Layers.reduce`.
      tree: Arrays.

    Returns:
      `[layers]` array in depth order.

    Example:
      >>> from vanishjax.layers import find_layers
      >>> tree = {"a": jnp.ones(3), "b": 2 * jnp.ones(3), "c": jnp.ones(2)}
      >>> print(reduce_layers(find_layers(tree), lambda x, axes: jnp.sum(x, axes), tree))
      [3. 6. 2.]
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) < len(layers.leaves):
        return layers.reduce(fn, tree)
    keys = [
        (x.shape, x.dtype, leaf.inner_axes) for x, leaf in zip(leaves, layers.leaves, strict=True)
    ]

    def of_one(key: Any) -> Callable[[Any], Any]:
        return lambda x: fn(x, axes=key[-1])

    results = iter(map_alike(of_one, keys, leaves))

    def result_of(_: Any, axes: tuple[int, ...]) -> Any:
        del axes
        return next(results)

    return layers.reduce(result_of, tree)


def map_alike(
    fn_of: Callable[[Any], Callable[[Any], Any]], keys: Sequence[Hashable], arrays: Sequence[Any]
) -> list[Any]:
    """Applies a function to each array, small ones with the same key side by side.

    Args:
      fn_of: `fn_of(key)`, the function of the arrays with a key; it returns a tree of arrays.
      keys: For each array what decides its function; arrays with one key have one shape and type.
      arrays: The arrays.

    Returns:
      The results.
    """
    groups: dict[tuple[Hashable, int | None], list[int]] = {}
    for number, (key, x) in enumerate(zip(keys, arrays, strict=True)):
        small = math.prod(x.shape) <= _FEW
        groups.setdefault((key, None if small else number), []).append(number)
    results: list[Any] = [None] * len(arrays)
    for (key, _), members in groups.items():
        fn = fn_of(key)
        if len(members) == 1:
            results[members[0]] = fn(arrays[members[0]])
            continue
        together = jax.vmap(fn)(jnp.stack([arrays[number] for number in members]))
        for place, number in enumerate(members):
            results[number] = jax.tree.map(lambda x, place=place: x[place], together)
    return results
