"""Which axes of a kernel are its inputs and outputs, as told by a loss, by biases and by names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from vanishjax import _jaxpr
from vanishjax._jaxpr import Matrix
from vanishjax.layers.division import Layers, Leaf
from vanishjax.layers.paths import BIAS_OF, covers
from vanishjax.naming import named_leaves

# Flax's attention, by the name of the projection: [d, heads, dim] and [heads, dim, d].
_HEADS_OUT = frozenset({"query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj"})
_HEADS_IN = frozenset({"out", "o", "out_proj", "o_proj"})


def with_contraction(leaf: Leaf, uses: Sequence[_jaxpr.Use], *, stacks: bool) -> Leaf:
    """The leaf with the matrices that the first product with the data shows.

    Args:
      leaf: The leaf.
      uses: Its uses.
      stacks: Whether axes of which every index is a matrix become stack axes.
    """
    products = [(use.depths.min(), use.position, use.matrix) for use in uses if use.matrix]
    if not products:
        return leaf
    _, _, matrix = min(products, key=lambda product: product[:2])
    axes = tuple(sorted({*leaf.axes, *matrix.batch})) if stacks else leaf.axes
    return dataclasses.replace(leaf, axes=axes, matrix=matrix)


def with_partners(leaves: Sequence[Leaf]) -> list[Leaf]:
    """Adds what biases and names tell of the kernels of which nothing is known yet: see `Leaf`.

    A bias is no matrix, whatever its shape, and is stacked where its kernel is.
    """
    found = {leaf.path: leaf for leaf in leaves}
    for kernel in leaves:
        bias = bias_of(kernel, leaves)
        if bias is not None and len(kernel.inner_axes) > 1:
            outputs = kernel.outputs if kernel.matrix else _outputs_of(kernel, bias)
            lengths = [*kernel.stack, *(kernel.shape[axis] for axis in outputs)]
            if outputs and kernel.axes and not bias.axes and [*bias.shape] == lengths:
                bias = dataclasses.replace(bias, axes=tuple(range(len(kernel.axes))))
            if outputs and bias_lengths(bias) == lengths[len(kernel.axes) :]:
                found[bias.path] = dataclasses.replace(bias, matrix=Matrix((), bias.inner_axes))
                if kernel.matrix is None:
                    found[kernel.path] = _split(kernel, outputs)
    return [_named(found[leaf.path]) for leaf in leaves]


def with_given(leaves: Sequence[Leaf], given: Any) -> list[Leaf]:
    """The leaves with the matrices that a user states: see `find_layers`."""
    stated = dict(named_leaves(given, is_leaf=_is_stated)[0])
    for place, sides in stated.items():
        if not _is_stated(sides):
            raise ValueError(
                f"matrices: {place or 'at the root'}: expected (inputs, outputs), got {sides!r}"
            )
        if not any(covers(place, leaf.path) for leaf in leaves):
            raise ValueError(f"matrices: there is no parameter {place!r}")

    def own(leaf: Leaf) -> Leaf:
        places = [place for place in stated if covers(place, leaf.path)]
        return _stated(leaf, stated[max(places, key=len)]) if places else leaf

    return [own(leaf) for leaf in leaves]


def bias_of(kernel: Leaf, leaves: Iterable[Leaf]) -> Leaf | None:
    """The bias beside a kernel, if there is one."""
    wanted = _bias_path(kernel)
    return next((leaf for leaf in leaves if leaf.path == wanted), None)


def _bias_path(kernel: Leaf) -> str | None:
    """Where the bias beside a kernel would be."""
    module, _, name = kernel.path.rpartition("/")
    partner = BIAS_OF.get(name)
    return f"{module}/{partner}" if module else partner


def kernel_places(layers: Layers) -> list[int]:
    """The places of kernels among the layers: biases of attention's heads have several axes too."""
    biases = _bias_paths(layers)
    return [
        place
        for place, leaf in enumerate(layers.homes)
        if len(leaf.inner_axes) > 1 and leaf.path not in biases
    ]


def bias_places(layers: Layers) -> list[int]:
    """The places of the biases that stand beside kernels."""
    biases = _bias_paths(layers)
    return [place for place, leaf in enumerate(layers.homes) if leaf.path in biases]


def _bias_paths(layers: Layers) -> set[str]:
    wanted = {_bias_path(leaf) for leaf in layers.leaves if len(leaf.inner_axes) > 1}
    return {leaf.path for leaf in layers.leaves if leaf.path in wanted}


def bias_lengths(bias: Leaf) -> list[int]:
    """A bias's inner lengths; Equinox's convolutions have theirs as [out, 1, 1]."""
    lengths = [bias.shape[axis] for axis in bias.inner_axes]
    while lengths[1:] and lengths[-1] == 1:
        lengths.pop()
    return lengths


def _outputs_of(kernel: Leaf, bias: Leaf) -> tuple[int, ...]:
    """The axes of a kernel that its bias has: the last ones, or the first ones of a weight."""
    lengths, axes = bias_lengths(bias), kernel.inner_axes
    first = axes[: len(lengths)] if _is_weight(kernel.path) else axes[len(axes) - len(lengths) :]
    fits = 0 < len(lengths) < len(axes) and bias.stack == kernel.stack
    return first if fits and [kernel.shape[axis] for axis in first] == lengths else ()


def _named(leaf: Leaf) -> Leaf:
    *_, module, name = ["", *leaf.path.split("/")]
    if leaf.matrix is None and name == "kernel" and len(leaf.inner_axes) == 3:
        if module in _HEADS_OUT:
            return _split(leaf, leaf.inner_axes[1:])
        if module in _HEADS_IN:
            return _split(leaf, leaf.inner_axes[2:])
    return leaf


def _split(leaf: Leaf, outputs: tuple[int, ...]) -> Leaf:
    inputs = tuple(axis for axis in leaf.inner_axes if axis not in outputs)
    return dataclasses.replace(leaf, matrix=Matrix(inputs, outputs))


def _is_weight(path: str) -> bool:
    return path.rpartition("/")[-1] == "weight"


def _is_stated(x: Any) -> bool:
    if x is None:
        return True
    whole = isinstance(x, tuple) and len(x) == 2
    return whole and all(
        isinstance(side, int)
        or (isinstance(side, list | tuple) and all(isinstance(axis, int) for axis in side))
        for side in x
    )


def _stated(leaf: Leaf, sides: Any) -> Leaf:
    if sides is None or len(leaf.shape) < 2:
        return dataclasses.replace(leaf, matrix=Matrix((), leaf.inner_axes))
    rank = len(leaf.shape)
    inputs, outputs = (
        tuple(axis + rank if -rank <= axis < 0 else axis for axis in side)
        for side in ((s,) if isinstance(s, int) else tuple(s) for s in sides)
    )
    own = (*inputs, *outputs)
    if not inputs or not outputs or sorted({*own} & {*range(rank)}) != sorted(own):
        raise ValueError(
            f"{leaf.path}: inputs {inputs} and outputs {outputs} must be different axes of shape "
            f"{leaf.shape}, at least one each"
        )
    stack = tuple(axis for axis in range(rank) if axis in leaf.axes or axis not in own)
    return dataclasses.replace(leaf, axes=stack, matrix=Matrix(inputs, outputs))
