"""Which axes of a tree's arrays stack layers, as far as the parameters tell it without a loss."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from vanishjax.layers.division import Leaf
from vanishjax.layers.paths import BIAS_OF
from vanishjax.naming import named_leaves

_STACK_WORD = re.compile("(block|layer|repeat|scan|stack|stage)s?|depth")


def named_stacks(params: Any) -> dict[str, tuple[int, ...]]:
    """The stack axes that Flax's boxes name, by path."""
    return {
        path: tuple(axis for axis, name in enumerate(names) if _is_stack(name))
        for path, names in _names_by_path(params).items()
    }


def paired_stacks(params: Any, leaves: list[Leaf]) -> list[Leaf]:
    """Adds the stack axes that kernels and the biases beside them prove: see `find_layers`.

    What Flax's boxes say comes first: an array with a named stack axis, or whose first axis has
    another name, stays as it is.
    """
    names = _names_by_path(params)
    modules: dict[str, dict[str, Leaf]] = {}
    for leaf in leaves:
        path = leaf.path
        if not leaf.axes and names.get(path, ())[:1] in ((), (None,)):
            module, _, name = path.rpartition("/")
            modules.setdefault(module, {})[name] = leaf
    stacked = {path for members in modules.values() for path in _stacked(members)}
    return [
        dataclasses.replace(leaf, axes=(0,)) if leaf.path in stacked else leaf for leaf in leaves
    ]


def _stacked(members: dict[str, Leaf]) -> set[str]:
    """The paths of those of a module's arrays, given by name, that are stacks."""
    pairs = {
        name: (kernel, members[BIAS_OF[name]])
        for name, kernel in members.items()
        if BIAS_OF.get(name) in members
    }
    proven = [pair for name, pair in pairs.items() if _proves_a_stack(name, *pair)]
    stacked = {leaf.path for pair in proven for leaf in pair}
    paired = {leaf.path for pair in pairs.values() for leaf in pair}
    lengths = {kernel.shape[:1] for kernel, _ in proven}
    alike = len({leaf.shape[:1] for leaf in members.values()}) == 1
    for leaf in members.values():
        # Among arrays of other lengths an [L, n] may as well be one matrix of L inputs.
        if leaf.path not in paired and (alike or len(leaf.shape) == 1):
            stacked |= {leaf.path} if leaf.shape[:1] in lengths else set()
    return stacked


def _proves_a_stack(name: str, kernel: Leaf, bias: Leaf) -> bool:
    """Whether both can only be read with layers along their first axes."""
    (length, *outputs), shape = bias.shape or (0,), kernel.shape
    if not outputs or len(shape) <= len(bias.shape) or not shape[0] == length > 0:
        return False
    one_layer = shape[-len(bias.shape) :] == bias.shape
    if name == "weight":  # Equinox: outputs first; a convolution's bias is [out, 1, 1]
        stack = [shape[1]] + [1] * (len(outputs) - 1) == outputs
        one_layer |= set(outputs) == {1}
    else:
        stack = list(shape[-len(outputs) :]) == outputs
    return stack and not one_layer


def _names_by_path(params: Any) -> dict[str, tuple[Any, ...]]:
    """The names that Flax's boxes give to axes, by path."""
    boxes, _ = named_leaves(params, is_leaf=lambda x: bool(_axis_names(x)))
    return {name: _axis_names(box) for name, box in boxes}


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
