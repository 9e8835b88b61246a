"""Small functions of a network's many arrays, compiled once for all that are alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from vanishjax.compilation import jit_once

# Programs that are kept: a verdict on a network takes a few.
_KEPT = 32


def call_each(
    fns: Sequence[Callable[..., Any]], arguments: Sequence[tuple[jax.Array, ...]]
) -> list[Any]:
    """Calls each function with its own arguments, alike ones by the same program.

    A network repeats its blocks. Equal functions of arrays of equal shapes and types are a class;
    classes of the same size are compiled together, and that program is run once for each of their
    members: a transformer of any depth takes three or four.

    Args:
      fns: The functions; those that are equal, and have equal hashes, do the same.
      arguments: For each of them its arrays.

    Returns:
      For each of them its result.

    Example:
      >>> import jax.numpy as jnp
      >>> found = call_each([jnp.sum, jnp.sum, jnp.max], [(jnp.ones(n),) for n in (3, 3, 2)])
      >>> [float(x) for x in found]
      [3.0, 3.0, 1.0]
    """
    classes: dict[Hashable, list[int]] = {}
    for number, (fn, own) in enumerate(zip(fns, arguments, strict=True)):
        classes.setdefault((fn, tuple(map(jax.typeof, own))), []).append(number)
    by_size: dict[int, list[list[int]]] = {}
    for members in classes.values():
        by_size.setdefault(len(members), []).append(members)
    results: list[Any] = [None] * len(fns)
    for together in by_size.values():
        for numbers in zip(*together, strict=True):
            found = _call(tuple(fns[i] for i in numbers), [arguments[i] for i in numbers])
            for number, result in zip(numbers, found, strict=True):
                results[number] = result
    return results


@functools.partial(jit_once, static_argnums=0, kept=_KEPT)
def _call(fns: tuple[Callable[..., Any], ...], arguments: list[tuple[jax.Array, ...]]) -> list[Any]:
    return [fn(*own) for fn, own in zip(fns, arguments, strict=True)]
