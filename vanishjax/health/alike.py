"""What is reduced to one number a layer, for arrays that are alike at once.

The arrays of a deep network have few shapes. Small ones of one shape are stacked before they are
reduced: a program of a few operations on larger arrays starts sooner, runs sooner and is compiled
sooner than one of a few operations for every array.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax._jaxpr import Cut
from vanishjax.layers import Layers

# Of more entries the copy takes longer than what it saves.
_MOST = 2**15


class Kind(NamedTuple):
    """Arrays that are alike.

    Attributes:
      numbers: Of their leaves in the division.
      arrays: Whole, of one type.
      cut: The rows that are looked at.
      inner_axes: The axes of one of them to reduce.
    """

    numbers: tuple[int, ...]
    arrays: tuple[Any, ...]
    cut: Cut
    inner_axes: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes to reduce of the stack, or of the single array."""
        return tuple(axis + (len(self.arrays) > 1) for axis in self.inner_axes)


@dataclasses.dataclass(frozen=True)
class Kinds:
    """A tree's arrays by kind."""

    layers: Layers
    kinds: tuple[Kind, ...]

    def rows(self) -> list[jax.Array]:
        """The rows of each kind's arrays, stacked if there are several."""
        return [stacked([kind.cut(x) for x in kind.arrays]) for kind in self.kinds]

    def reduce(self, fn: Callable[..., jax.Array], rows: Sequence[jax.Array]) -> jax.Array:
        """Reduces every layer to one number.

        Args:
          fn: `fn(array, axes)`: reduces `axes`, and returns an array of the others' shape.
          rows: For each kind, as `rows` gives them.

        Returns:
          `[layers]` array in depth order; 0 where the tree has no leaf.
        """
        results, places, count = [], dict[int, Any](), 0
        for kind, array in zip(self.kinds, rows, strict=True):
            result = fn(array, kind.axes)
            results.append(result.ravel())
            size = result.size // len(kind.numbers)
            places |= {n: count + size * i + np.arange(size) for i, n in enumerate(kind.numbers)}
            count += result.size
        dtype = jnp.result_type(*({x.dtype for x in results} or {jnp.dtype(jnp.float32)}))
        # The last one is that of what isn't there.
        flat = jnp.concatenate([*(x.astype(dtype) for x in results), jnp.zeros(1, dtype)])
        none = [np.full(math.prod(leaf.stack), count) for leaf in self.layers.leaves]
        order = [places.get(number, nothing) for number, nothing in enumerate(none)]
        return flat[np.concatenate(order)[np.array(self.layers.order)]]


def kinds_of(layers: Layers, tree: Any, cuts: Mapping[str, Cut]) -> Kinds:
    """Sorts a tree's arrays by kind.

    Args:
      layers: The division of the tree.
      tree: Of the parameters' structure.
      cuts: Which rows of an array are looked at, by its path.

    Returns:
      The kinds, each array in one of them.

    Raises:
      ValueError: The tree's leaves aren't those of the parameters.
    """
    arrays, _ = layers.by_path(tree)
    found: dict[Any, list[int]] = {}
    for number, leaf in enumerate(layers.leaves):
        if (x := arrays.get(leaf.path)) is not None:
            cut = cuts[leaf.path]
            # What is sharded in another way, or differs from device to device, is of another kind.
            is_small = math.prod(cut.shape(x.shape)) <= _MOST
            kind = (jax.typeof(x), leaf.inner_axes, cut) if is_small else number
            found.setdefault(kind, []).append(number)
    kinds = []
    for numbers in found.values():
        leaves = [layers.leaves[number] for number in numbers]
        alike = tuple(arrays[leaf.path] for leaf in leaves)
        kinds.append(Kind(tuple(numbers), alike, cuts[leaves[0].path], leaves[0].inner_axes))
    return Kinds(layers, tuple(kinds))


def stacked(arrays: Sequence[jax.Array]) -> jax.Array:
    """Arrays with a new first axis; a single one stays as it is."""
    return arrays[0] if len(arrays) == 1 else jnp.stack(arrays)
