"""A parameter tree's division into layers, and what is done to trees layer by layer."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import numerics
from vanishjax._jaxpr import Matrix
from vanishjax.layers.paths import covers
from vanishjax.naming import named_leaves

Status = Literal["used", "stopped", "unused", "unknown"]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter array and the layers it holds.

    Attributes:
      path: Its path, keys joined by "/".
      shape: Its shape.
      axes: The axes along which layers are stacked, ascending; each index is one layer.
      status: "used": data meets it; "stopped": data meets it, but no gradient comes back;
        "unused": no data meets it; "unknown": nothing is known, or its depth couldn't be told.
      matrix: Which axes are inputs and which outputs, if more than the shape told it.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    status: Status = "unknown"
    matrix: Matrix | None = None

    @property
    def stack(self) -> tuple[int, ...]:
        """The lengths of the stack axes: () for an array that is a single layer."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes to reduce for one value a layer: all but the stack axes."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The axes over which a layer sums where the data meets it; () if it's no matrix.

        Where nothing but the shape is known all inner axes but the last, or, of what is called
        weight (Equinox, Torch), all but the first.
        """
        if self.matrix is not None:
            return tuple(axis for axis in self.matrix.inputs if axis not in self.axes)
        outputs = self.outputs
        return tuple(axis for axis in self.inner_axes if axis not in outputs)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The axes of a layer's units: see `inputs`."""
        if self.matrix is not None:
            return tuple(axis for axis in self.matrix.outputs if axis not in self.axes)
        axes = self.inner_axes
        return axes[:1] if self.path.rpartition("/")[-1] == "weight" else axes[-1:]

    @property
    def is_matrix(self) -> bool:
        """Whether a layer multiplies: it has inputs and outputs."""
        return bool(self.inputs and self.outputs)

    def matrices(self, x: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """An array of this shape as the matrices that multiply the data.

        Args:
          x: The parameter, its gradient or its update.

        Returns:
          `[*stack, inputs, outputs]`, or `[*stack, groups, inputs, outputs]` where the matrices are
          told apart by more than the stack axes (grouped convolutions), and the function that lays
          such an array out as x.

        Example:
          >>> query = Leaf("query/kernel", (8, 2, 4), matrix=Matrix((0,), (1, 2)))
          >>> matrices, laid_out = query.matrices(jnp.ones((8, 2, 4)))
          >>> matrices.shape, laid_out(matrices).shape
          ((8, 8), (8, 2, 4))
        """
        counts = dict(self.matrix.groups) if self.matrix else {}
        cut: list[int] = []  # the shape, axes with groups cut in two
        heads, places = [], {}  # of the groups, and of every axis, in that shape
        for axis, size in enumerate(self.shape):
            if axis in counts and axis not in self.axes:
                heads.append(len(cut))
                cut.append(counts[axis])
                size //= max(1, counts[axis])
            places[axis] = len(cut)
            cut.append(size)
        sides = [places[axis] for axis in self.inputs], [places[axis] for axis in self.outputs]
        first = [places[axis] for axis in self.axes]
        apart = [
            *heads,
            *(i for i in range(len(cut)) if i not in {*first, *heads, *sides[0], *sides[1]}),
        ]
        order = [*first, *apart, *sides[0], *sides[1]]
        lengths = [math.prod(cut[i] for i in part) for part in (apart, *sides)]
        shape = (*self.stack, *(lengths if apart else lengths[1:]))

        def laid_out(matrices: jax.Array) -> jax.Array:
            inverse = sorted(range(len(order)), key=order.__getitem__)
            split = matrices.reshape([cut[i] for i in order])
            return jnp.transpose(split, inverse).reshape(self.shape)

        return jnp.transpose(x.reshape(cut), order).reshape(shape), laid_out


@dataclasses.dataclass(frozen=True)
class Layers:
    """Division of a parameter tree into layers, in depth order.

    A layer is one parameter array, or one index of a stacked one. Hashable, so that it can be a
    static argument; made by `find_layers`. Trees that its methods take have the parameters'
    structure, but `None` or `optax.MaskedNode` may stand in place of a leaf or a subtree: what
    they cover is skipped.

    Attributes:
      leaves: The parameter arrays, in the tree's order.
      order: For each layer in depth order its place when the leaves' layers are laid end to end.
      depths: For each layer the number of parameters met on the longest path from the data, itself
        included; its position if no loss told.
      tied: Paths of the parameters that are used at several depths.
    """

    leaves: tuple[Leaf, ...]
    order: tuple[int, ...]
    depths: tuple[int, ...]
    tied: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.order)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each layer: its path, and its index if it is one of a stack."""
        names = [
            leaf.path + (f"[{','.join(map(str, index))}]" if leaf.axes else "")
            for leaf in self.leaves
            for index in np.ndindex(leaf.stack)
        ]
        return tuple(names[place] for place in self.order)

    @functools.cached_property
    def homes(self) -> tuple[Leaf, ...]:
        """The parameter array that each layer is, or is an index of."""
        homes = [leaf for leaf in self.leaves for _ in np.ndindex(leaf.stack)]
        return tuple(homes[place] for place in self.order)

    @property
    def unused(self) -> tuple[str, ...]:
        """Paths of the parameters that no data meets on its way to the loss."""
        return tuple(leaf.path for leaf in self.leaves if leaf.status == "unused")

    @property
    def stopped(self) -> tuple[str, ...]:
        """Paths of the parameters that data meets, but that no gradient can reach."""
        return tuple(leaf.path for leaf in self.leaves if leaf.status == "stopped")

    def norms(self, tree: Any) -> jax.Array:
        """The 2-norm of each layer.

        Args:
          tree: Parameters, gradients or updates.

        Returns:
          `[layers]` array in depth order, float32 at least; 0 where the tree has no leaf.

        Raises:
          ValueError: The tree's leaves aren't those of the parameters.

        Example:
          >>> from vanishjax.layers import find_layers
          >>> layers = find_layers({"w": jnp.ones((3, 4)), "b": jnp.zeros(4)})
          >>> print(layers.names, layers.norms({"w": 2 * jnp.ones((3, 4)), "b": None}))
          ('b', 'w') [0.       6.928203]
        """
        return self.reduce(numerics.norm, tree)

    def reduce(self, fn: Callable[..., jax.Array], tree: Any, *rest: Any) -> jax.Array:
        """Reduces every layer to one number.

        Args:
          fn: `fn(leaf, *rest_leaves, axes=axes)`, called once an array: reduces `axes`, all but the
            stack axes, and returns an array of the stack's shape.
          tree: Tree of the parameters' structure.
          *rest: More of them, with a leaf wherever `tree` has one.

        Returns:
          `[layers]` array in depth order; 0 where the tree has no leaf.

        Raises:
          ValueError: A tree's leaves aren't those of the parameters, or `fn` returned another
            shape.

        Example:
          >>> from vanishjax.layers import find_layers
          >>> layers = find_layers({"w": jnp.ones((3, 4)), "b": jnp.zeros(4)})
          >>> def largest(x, axes):
          ...     return jnp.max(jnp.abs(x), axis=axes)
          >>> print(layers.reduce(largest, {"w": -jnp.ones((3, 4)), "b": jnp.zeros(4)}))
          [0. 1.]
        """
        results: dict[int, jax.Array] = {}
        for number, value, others in self._aligned(tree, rest)[0]:
            if number is not None:
                leaf = self.leaves[number]
                result = jnp.asarray(fn(value, *others, axes=leaf.inner_axes))
                if result.shape != leaf.stack:
                    raise ValueError(
                        f"{leaf.path}: fn must return an array of shape {leaf.stack}, one value a "
                        f"layer, got shape {result.shape}"
                    )
                results[number] = result
        # Of the types: of two arrays, a weakly typed double would give way to a float32.
        types = {result.dtype for result in results.values()} or {jnp.dtype(jnp.float32)}
        dtype = jnp.result_type(*types)
        flat = [
            jnp.asarray(results.get(number, jnp.zeros(leaf.stack)), dtype).ravel()
            for number, leaf in enumerate(self.leaves)
        ]
        return jnp.concatenate(flat)[np.array(self.order)] if flat else jnp.zeros(0, dtype)

    def expand(self, values: jax.typing.ArrayLike, tree: Any) -> Any:
        """Lays one value a layer out along a tree.

        Args:
          values: `[layers]` array in depth order.
          tree: Tree of the parameters' structure.

        Returns:
          A tree of arrays that broadcast against the tree's leaves: their stack axes, and 1
          elsewhere.

        Raises:
          ValueError: The tree's leaves aren't those of the parameters, or there are more or fewer
            values than layers.

        Example:
          >>> from vanishjax.layers import find_layers
          >>> params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}
          >>> scales = find_layers(params).expand(jnp.array([1.0, 2.0]), params)
          >>> print(scales["b"], scales["w"])
          [1.] [[2.]]
        """
        values = jnp.asarray(values)
        if values.shape != (len(self),):
            raise ValueError(f"expected values of shape ({len(self)},), got {values.shape}")
        flat = values[np.argsort(np.array(self.order, int))]
        ends = np.cumsum([0, *(np.prod(leaf.stack, dtype=int) for leaf in self.leaves)]).tolist()

        def of(number: int) -> jax.Array:
            leaf = self.leaves[number]
            kept = (n if axis in leaf.axes else 1 for axis, n in enumerate(leaf.shape))
            return flat[ends[number] : ends[number + 1]].reshape(*kept)

        aligned, structure = self._aligned(tree, ())
        return jax.tree_util.tree_unflatten(
            structure, [x if number is None else of(number) for number, x, _ in aligned]
        )

    def map(self, fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
        """Applies a function to every array, telling it which axes belong to one layer.

        Args:
          fn: `fn(leaf, *rest_leaves, axes=axes)`, called once an array with `axes` all but the
            stack axes.
          tree: Tree of the parameters' structure.
          *rest: More of them, with a leaf wherever `tree` has one.

        Returns:
          A tree of the structure of `tree`; what it has in place of a leaf stays.

        Raises:
          ValueError: A tree's leaves aren't those of the parameters.

        Example:
          >>> from vanishjax.layers import find_layers
          >>> params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([2.0])}
          >>> def normalize(x, axes):
          ...     return x / jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
          >>> print(find_layers(params).map(normalize, params)["w"])
          [[0.6 0.8]]
        """
        return self.map_leaves(lambda leaf, *arrays: fn(*arrays, axes=leaf.inner_axes), tree, *rest)

    def map_leaves(self, fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
        """Applies `fn(leaf, array, *rest_arrays)` to every array: `map`, with all that is known.

        Args:
          fn: Gets the `Leaf` first, then the arrays.
          tree: Tree of the parameters' structure.
          *rest: More of them, with a leaf wherever `tree` has one.

        Returns:
          A tree of the structure of `tree`; what it has in place of a leaf stays.

        Raises:
          ValueError: A tree's leaves aren't those of the parameters.

        Example:
          >>> from vanishjax.layers import find_layers
          >>> params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}
          >>> find_layers(params).map_leaves(lambda leaf, x: leaf.inputs, params)
          {'b': (), 'w': (0,)}
        """
        aligned, structure = self._aligned(tree, rest)
        return jax.tree_util.tree_unflatten(
            structure,
            [x if n is None else fn(self.leaves[n], x, *others) for n, x, others in aligned],
        )

    def by_path(self, tree: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
        """Takes a tree's arrays by their paths, for what concerns several of them together.

        Args:
          tree: Tree of the parameters' structure.

        Returns:
          `(arrays, rebuild)`: path -> array, and the function that makes the tree from such a
          mapping; what the tree has in place of a leaf isn't in the one and stays in the other.

        Raises:
          ValueError: The tree's leaves aren't those of the parameters.

        Example:
          >>> from vanishjax.layers import find_layers
          >>> params = {"w": jnp.ones((1, 2)), "b": jnp.zeros(2)}
          >>> arrays, rebuild = find_layers(params).by_path(params)
          >>> print(rebuild(arrays | {"w": 2 * arrays["w"]})["w"])
          [[2. 2.]]
        """
        aligned, structure = self._aligned(tree, ())
        paths = [None if number is None else self.leaves[number].path for number, _, _ in aligned]

        def rebuild(arrays: dict[str, Any]) -> Any:
            values = (
                x if path is None else arrays[path]
                for path, (_, x, _) in zip(paths, aligned, strict=True)
            )
            return jax.tree_util.tree_unflatten(structure, list(values))

        arrays = {
            path: x if hasattr(x, "shape") else jnp.asarray(x)
            for path, (_, x, _) in zip(paths, aligned, strict=True)
            if path is not None
        }
        return arrays, rebuild

    def _aligned(
        self, tree: Any, rest: Sequence[Any]
    ) -> tuple[list[tuple[int | None, Any, list[Any]]], Any]:
        """The tree's leaves with their numbers (None: a hole) and partners, and its structure."""
        found, structure = self._numbered(tree)
        others = [dict(self._numbered(other)[0]) for other in rest]
        for number, _ in found:
            if number is not None and any(number not in other for other in others):
                raise ValueError(f"{self.leaves[number].path}: missing in one tree of several")
        return [(n, x, [] if n is None else [o[n] for o in others]) for n, x in found], structure

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {leaf.path: number for number, leaf in enumerate(self.leaves)}

    def _numbered(self, tree: Any) -> tuple[list[tuple[int | None, Any]], Any]:
        if tree is None and self.leaves:
            raise ValueError("expected a tree of the parameters' structure, got None")
        entries, structure = named_leaves(tree, is_leaf=_is_hole)
        found: list[tuple[int | None, Any]] = []
        holes = []
        for name, value in entries:
            if _is_hole(value):
                holes.append(name)
                found.append((None, value))
                continue
            number = self._numbers.get(name)
            if number is None:
                raise ValueError(
                    f"{name}: no such parameter when the layers were found; find_layers finds "
                    "those of this network"
                )
            shape, expected = np.shape(value), self.leaves[number].shape
            if shape != expected:
                raise ValueError(f"{name}: expected shape {expected}, got {shape}")
            found.append((number, value))
        present = {number for number, _ in found}
        for number, leaf in enumerate(self.leaves):
            if number not in present and not any(covers(hole, leaf.path) for hole in holes):
                raise ValueError(
                    f"{leaf.path}: expected an array of shape {leaf.shape}, found nothing"
                )
        return found, structure


def _is_hole(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)
