"""How a parameter tree divides into layers, in the order in which the data meets them."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import _jaxpr, numerics

_STACK_WORD = re.compile("(block|layer|repeat|scan|stack|stage)s?|depth")

Status = Literal["used", "stopped", "unused", "unknown"]


class LayerOrderWarning(UserWarning):
    """The depth of some parameters is unknown, so that their place among the layers is a guess."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter array and the layers it holds.

    Attributes:
      path: Its path, keys joined by "/".
      shape: Its shape.
      axes: The axes along which layers are stacked, ascending; each index is one layer.
      status: "used": data meets it; "stopped": data meets it, but no gradient comes back;
        "unused": no data meets it; "unknown": nothing is known, or its depth couldn't be told.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    status: Status = "unknown"

    @property
    def stack(self) -> tuple[int, ...]:
        """The lengths of the stack axes: () for an array that is a single layer."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes to reduce for one value a layer: all but the stack axes."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)


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
          `[layers]` float32 array in depth order; 0 where the tree has no leaf.

        Raises:
          ValueError: The tree's leaves aren't those of the parameters.

        Example:
          >>> layers = find_layers({"w": jnp.ones((3, 4)), "b": jnp.zeros(4)})
          >>> print(layers.names, layers.norms({"w": 2 * jnp.ones((3, 4)), "b": None}))
          ('b', 'w') [0.       6.928203]
        """
        return self.reduce(numerics.norm, tree).astype(jnp.float32)

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
        dtype = jnp.result_type(*results.values()) if results else jnp.float32
        flat = [
            results[number].ravel() if number in results else jnp.zeros(leaf.stack, dtype).ravel()
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
          >>> params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([2.0])}
          >>> def normalize(x, axes):
          ...     return x / jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
          >>> print(find_layers(params).map(normalize, params)["w"])
          [[0.6 0.8]]
        """
        aligned, structure = self._aligned(tree, rest)
        return jax.tree_util.tree_unflatten(
            structure,
            [
                x if number is None else fn(x, *others, axes=self.leaves[number].inner_axes)
                for number, x, others in aligned
            ],
        )

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
        return {_bare(leaf.path): number for number, leaf in enumerate(self.leaves)}

    def _numbered(self, tree: Any) -> tuple[list[tuple[int | None, Any]], Any]:
        if tree is None and self.leaves:
            raise ValueError("expected a tree of the parameters' structure, got None")
        entries, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_hole)
        found: list[tuple[int | None, Any]] = []
        holes = []
        for path, value in entries:
            name = _name(path)
            if _is_hole(value):
                holes.append(_bare(name))
                found.append((None, value))
                continue
            number = self._numbers.get(_bare(name))
            if number is None:
                raise ValueError(f"{name}: no such parameter when the layers were found")
            shape, expected = np.shape(value), self.leaves[number].shape
            if shape != expected:
                raise ValueError(f"{name}: expected shape {expected}, got {shape}")
            found.append((number, value))
        present = {number for number, _ in found}
        for number, leaf in enumerate(self.leaves):
            if number not in present and not any(_covers(hole, leaf.path) for hole in holes):
                raise ValueError(
                    f"{leaf.path}: expected an array of shape {leaf.shape}, found nothing"
                )
        return found, structure


def find_layers(
    params: Any, loss_fn: Callable[[Any, Any], Any] | None = None, batch: Any = None
) -> Layers:
    """Divides parameters into layers, in the order in which the data meets them.

    With `loss_fn`, a layer's depth is the number of parameters met on the longest path from the
    data to where it is first used, itself included, and layers stand in the order of depth, then of
    the program. Parameters that a `lax.scan` runs along (`nn.scan`, `nnx.scan`) are stacks: one
    layer per index. A term that the loss adds up from parameters alone (weight decay) is no use.

    Without `loss_fn`, layers stand in the order of their paths, numbers sorted as numbers.

    Either way an axis that Flax's metadata names (`nn.Partitioned.names`, `out_sharding` of an nnx
    variable) is a stack axis if one of the name's words is block, layer, repeat, scan, stack or
    stage, their plural, or depth; if a scan runs along another one, the scan is right. Without
    `loss_fn` the outermost module whose parameters are all stacked alike is taken for one stack.

    A parameter without a depth (unused, or with a warning) stands behind the one that precedes it
    in the order of paths, and shares its depth.

    Args:
      params: Pytree of real floating-point arrays or `jax.ShapeDtypeStruct`s.
      loss_fn: `loss_fn(params, batch)` returns a scalar or `(scalar, aux)`. It's traced, never run.
      batch: Any pytree of what `loss_fn` takes; without arrays in it, arrays that `loss_fn` closes
        over are the data.

    Returns:
      The layers; none for a tree without leaves.

    Raises:
      ValueError: A leaf isn't a real floating-point array, or the loss isn't a scalar.

    Warns:
      LayerOrderWarning: The depth of some parameters can't be told: their parts are used at several
        depths (`ravel_pytree` in the loss, `w[i]` in a `fori_loop`), several of them meet the data
        inside one primitive that can't be looked into, or the loss depends on no data.

    Example:
      >>> def loss_fn(params, x):
      ...     y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params["hidden"])
      ...     return jnp.mean(y @ params["a_head"])
      >>> params = {"a_head": jnp.ones((4, 1)), "hidden": jnp.ones((2, 4, 4))}
      >>> find_layers(params, loss_fn, jnp.ones((8, 4))).names
      ('hidden[0]', 'hidden[1]', 'a_head')
    """
    entries = jax.tree_util.tree_flatten_with_path(params)[0]
    for path, value in entries:
        _check_trainable(_name(path), value)
    stacked = _named_stacks(params)
    leaves = []
    for path, value in entries:
        name, shape = _name(path), np.shape(value)
        axes = stacked.get(_bare(name), ())
        leaves.append(Leaf(name, shape, axes if max(axes, default=-1) < len(shape) else ()))
    if loss_fn is None or not leaves:
        return _order_by_path(leaves)
    trace = _jaxpr.parameter_uses(loss_fn, params, batch)
    if not trace.depends_on_data:
        _warn("the loss depends on no data", leaves)
        return _order_by_path(leaves)
    schedules = _schedules(leaves, trace)
    for doubt in dict.fromkeys(one.doubt for one in schedules if one.doubt):
        _warn(doubt, [one.leaf for one in schedules if one.doubt == doubt])
    return _order_by_use(schedules)


class _Schedule(NamedTuple):
    """When the data meets the layers of one parameter."""

    leaf: Leaf
    depths: np.ndarray[Any, Any]  # [*stack]
    positions: np.ndarray[Any, Any]  # [*stack], of the equations
    tied: bool
    doubt: str  # why the depths can't be trusted; "" if they can


def _schedules(leaves: list[Leaf], trace: _jaxpr.Trace) -> list[_Schedule]:
    uses: list[list[_jaxpr.Use]] = [[] for _ in leaves]
    for use in trace.uses:
        uses[use.leaf].append(use)
    return list(map(_schedule, leaves, uses, trace.differentiable))


def _order_by_use(schedules: list[_Schedule]) -> Layers:
    leaves = [one.leaf for one in schedules]
    if not any(leaf.status in ("used", "stopped") for leaf in leaves):
        return _order_by_path(leaves)

    keys: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []  # (when, leaf, index)
    before: tuple[int, ...] = (0, 0, -1, 0)
    for rank, number in enumerate(_path_order(leaves)):
        leaf, depths, positions, _, _ = schedules[number]
        placed = leaf.status in ("used", "stopped")
        own = [
            (
                (int(depths[index]), int(positions[index]), rank, flat)
                if placed
                else (*before, rank, flat),
                number,
                index,
            )
            for flat, index in enumerate(np.ndindex(leaf.stack))
        ]
        keys += own
        if placed:
            before = max(own, default=(before,))[0]
    keys.sort()
    return _layers(
        leaves,
        [(number, index) for _, number, index in keys],
        depths=tuple(key[0] for key, _, _ in keys),
        tied=tuple(one.leaf.path for one in schedules if one.tied),
    )


def _schedule(leaf: Leaf, uses: list[_jaxpr.Use], differentiable: bool) -> _Schedule:
    scanned = {tuple(sorted(use.axes)) for use in uses if use.axes}
    doubt = ""
    if len(scanned) > 1:
        doubt = "scans run along different axes of it"
    elif scanned:
        leaf = dataclasses.replace(leaf, axes=scanned.pop())
    if len(set(_first_depths(uses))) > 1:
        doubt = "parts of it are used at several depths"
    if any(use.opaque for use in uses):
        doubt = "it meets the data together with others inside a primitive that hides their order"

    depths = np.full(leaf.stack, np.inf)
    last = np.full(leaf.stack, -np.inf)
    positions = np.zeros(leaf.stack, int)
    for use in [] if doubt else uses:
        # Over the stack's axes in ascending order; the same at all indices if nothing scanned it.
        own = use.depths.transpose(np.argsort(use.axes)) if use.axes else use.depths
        own = np.broadcast_to(own, leaf.stack)
        first = (own < depths) | ((own == depths) & (use.position < positions))
        positions = np.where(first, use.position, positions)
        depths = np.minimum(depths, own)
        last = np.maximum(last, np.where(np.isfinite(own), own, -np.inf))
    # An index that data never met (it multiplied an initial state of zeros) stands with the first.
    depths = np.where(np.isfinite(depths), depths, depths.min(initial=np.inf))
    status: Status = "unknown" if doubt else "unused" if not uses else "used"
    if status == "used" and not differentiable:
        status = "stopped"
    leaf = dataclasses.replace(leaf, status=status)
    return _Schedule(
        leaf, depths, positions, status != "unused" and bool((last > depths).any()), doubt
    )


def _first_depths(uses: list[_jaxpr.Use]) -> Iterable[float]:
    """For each part of a parameter that stands alone in some use, the depth of the first."""
    first: dict[Any, float] = {}
    for use in uses:
        if use.part is not None:
            first[use.part] = min(first.get(use.part, np.inf), float(use.depths.min()))
    return first.values()


def _order_by_path(leaves: list[Leaf]) -> Layers:
    """Layers in the order of their paths, those of one stack interleaved."""
    order = _path_order(leaves)
    members: dict[str, set[tuple[int, ...]]] = {}  # stacks below each module
    for leaf in leaves:
        for module in _modules(leaf.path):
            members.setdefault(module, set()).add(leaf.stack)
    first: dict[Any, int] = {}
    keys = []
    for rank, number in enumerate(order):
        leaf = leaves[number]
        home: Any = next((m for m in _modules(leaf.path) if len(members[m]) == 1), leaf.path)
        start = first.setdefault(home, rank) if leaf.axes else rank
        keys += [((start, *index, rank), number, index) for index in np.ndindex(leaf.stack)]
    keys.sort()
    return _layers(leaves, [(n, index) for _, n, index in keys], depths=tuple(range(len(keys))))


def _layers(
    leaves: list[Leaf],
    ordered: list[tuple[int, tuple[int, ...]]],
    depths: tuple[int, ...],
    tied: tuple[str, ...] = (),
) -> Layers:
    ends = np.cumsum([0, *(int(np.prod(leaf.stack)) for leaf in leaves)])
    order = (
        int(ends[number] + (np.ravel_multi_index(index, leaves[number].stack) if index else 0))
        for number, index in ordered
    )
    return Layers(tuple(leaves), tuple(order), depths, tied)


# Paths and metadata.


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _bare(name: str) -> str:
    """A path without the key that Flax's boxes add: they come and go with the tree."""
    return name.removesuffix("/value")


def _modules(path: str) -> list[str]:
    """The paths of all that a parameter lies in, outermost first."""
    keys = path.split("/")
    return ["/".join(keys[:i]) for i in range(len(keys))]


def _path_order(leaves: list[Leaf]) -> list[int]:
    def natural(number: int) -> list[list[Any]]:
        return [
            [int(word) if word.isdigit() else word for word in re.split(r"([0-9]+)", key)]
            for key in leaves[number].path.split("/")
        ]

    return sorted(range(len(leaves)), key=natural)


def _covers(hole: str, path: str) -> bool:
    return not hole or _bare(path) == hole or path.startswith(hole + "/")


def _is_hole(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def _named_stacks(params: Any) -> dict[str, tuple[int, ...]]:
    """The stack axes that Flax's boxes name, by path."""
    boxes = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: bool(_axis_names(x)))
    return {
        _name(path): tuple(axis for axis, name in enumerate(_axis_names(box)) if _is_stack(name))
        for path, box in boxes
    }


def _axis_names(box: Any) -> tuple[Any, ...]:
    """Names of a parameter's axes, if it's one of Flax's boxes (linen's or nnx's) and has them."""
    if callable(getattr(box, "get_metadata", None)):
        names = box.get_metadata().get("out_sharding")
    else:
        names = getattr(box, "names", None) if hasattr(box, "value") else None
    return tuple(names) if isinstance(names, tuple | jax.sharding.PartitionSpec) else ()


def _is_stack(name: Any) -> bool:
    words = re.split("[^a-z]+", name.lower()) if isinstance(name, str) else ()
    return any(map(_STACK_WORD.fullmatch, words))


def _check_trainable(name: str, value: Any) -> None:
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name or 'params'}: expected a real floating-point array, got {dtype} of shape "
            f"{np.shape(value)}; keep what isn't trained out of the parameters"
        )


def _warn(doubt: str, leaves: list[Leaf]) -> None:
    names = ", ".join(leaf.path for leaf in leaves[:8]) + (", ..." if len(leaves) > 8 else "")
    warnings.warn(
        f"depth order unknown for {names}: {doubt}; placed in the order of paths instead",
        LayerOrderWarning,
        stacklevel=3,
    )
