"""Nested dictionaries of arrays, by their paths: the plain trees that models are taken apart to."""

from collections.abc import Iterable, Mapping
from typing import Any

Path = tuple[Any, ...]


def nested(values: Mapping[Path, Any]) -> Any:
    """The tree with these values at these paths.

    Example:
      >>> nested({("layers", 0, "bias"): 1, ("layers", 1, "bias"): 2})
      {'layers': {0: {'bias': 1}, 1: {'bias': 2}}}
    """
    if set(values) == {()}:
        return values[()]
    tree: dict[Any, Any] = {}
    for path, value in values.items():
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return tree


def taken(tree: Any, paths: Iterable[Path]) -> dict[Path, Any]:
    """What stands in a nested tree at these paths: the reverse of `nested`.

    Example:
      >>> taken({"layers": {0: {"bias": 1}}}, [("layers", 0, "bias")])
      {('layers', 0, 'bias'): 1}
    """
    return {path: _at(tree, path) for path in paths}


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree
