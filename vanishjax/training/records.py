"""JSON values: as they will be read again, or refused by name; and their checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def plain_json(value: Any, name: str) -> Any:
    """A value as it will be read again after it was saved.

    Tuples become lists, names that are numbers become text, NumPy and JAX scalars become numbers.

    Args:
      value: What to save.
      name: What an error calls it.

    Returns:
      The same in dicts, lists, text, numbers, booleans and None.

    Raises:
      ValueError: It holds something else; the message says where.

    Example:
      >>> plain_json({"rate": np.float64(0.5), 2: (1, 2)}, "settings")
      {'rate': 0.5, '2': [1, 2]}
      >>> plain_json({"f": print}, "settings")
      Traceback (most recent call last):
      ...
      ValueError: settings/f is a builtin_function_or_method, which JSON can't hold; ...
    """
    try:
        return _plain(value, name)
    except RecursionError:
        raise ValueError(f"{name} holds itself, or is nested too deeply") from None


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0:
        return _plain(value.item(), name)
    if isinstance(value, int | float):
        # Also of enumerations and other subclasses, whose own text JSON wouldn't take.
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}/{place}") for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for key, item in value.items():
            # JSON has names that are text only; it says true and null for these.
            if isinstance(key, bool) or not isinstance(key, str | int | float):
                raise ValueError(f"{name} has the name {key!r}; names must be text")
            if str(key) in plain:
                raise ValueError(f"{name} has the name {key!r} twice, as text and as a number")
            plain[str(key)] = _plain(item, f"{name}/{key}")
        return plain
    raise ValueError(
        f"{name} is a {type(value).__name__}, which JSON can't hold; give numbers, text, booleans, "
        "None, lists or dicts"
    )


def json_checksum(value: Any) -> int:
    """A checksum of a plain JSON value, whatever the order of its names.

    Example:
      >>> json_checksum({"a": 1, "b": 2.5}) == json_checksum({"b": 2.5, "a": 1})
      True
    """
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
