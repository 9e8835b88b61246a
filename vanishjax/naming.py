"""What the leaves of a tree are called: their paths, written with "/" between the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def named_leaves(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves of a tree with their names, and the tree's structure.

    Flax's boxes (a `Variable` of nnx, linen's `Partitioned`) add no key: they come and go with the
    tree, while a parameter's name stays.

    Args:
      tree: Any pytree.
      is_leaf: As in `jax.tree.flatten`.

    Returns:
      Pairs of a name and a leaf, and what `jax.tree.unflatten` takes.

    Example:
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> [name for name, _ in named_leaves(model)[0]]
      ['bias', 'kernel']
    """

    def stops(x: Any) -> bool:
        return is_leaf is not None and is_leaf(x)

    entries: list[tuple[Any, Any]] = []
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: stops(x) or _is_box(x))
    for path, node in nodes:
        if stops(node) or not _is_box(node):
            entries.append((path, node))
            continue
        inside = jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf)
        entries += [((*path, *own[1:]), leaf) for own, leaf in inside]
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in entries]
    return named, jax.tree.structure(tree, is_leaf=is_leaf)


def _is_box(x: Any) -> bool:
    """Whether it's one of Flax's boxes, nnx's or linen's: nodes with one child, the value."""
    return any(callable(getattr(x, name, None)) for name in ("get_metadata", "replace_boxed"))
