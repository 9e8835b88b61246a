"""What trials train on and what they are judged by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.training.meshes import adopted

# One batch in so many is held out to judge by, two at least where there are three.
_HELD_OUT = 4
_LEAST_BATCHES = 3


def divide(batches: Iterable[Any], steps: int) -> tuple[list[Any], list[Any], tuple[str, ...]]:
    """What is trained on and what is held out, no more than a trial can use; what was left out.

    Args:
      batches: Any, also without an end.
      steps: Of a trial.

    Returns:
      The batches to train on, those held out, and in words what was left out.

    Raises:
      TypeError: Nothing to go through, or a single batch.
      ValueError: Too few batches of one shape, or one that holds infinity or NaN.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping | str):
        given = type(batches).__name__
        raise TypeError(f"batches must be a list of what loss_fn takes, got {given}")
    most = steps + max(2, steps // (_HELD_OUT - 1) + 1)
    taken = list(map(adopted, itertools.islice(batches, most)))
    shapes = [_shapes(batch) for batch in taken]
    usual = max(shapes, key=shapes.count, default=None)
    alike = [number for number, shape in enumerate(shapes) if shape == usual]
    for number in alike:
        _check_finite(taken[number], number)
    odd = [shape for shape in shapes if shape != usual]
    left_out = ""
    if odd:
        left_out = (
            f"{len(odd)} of {len(taken)} batches were left out: {_worded(odd[0])} where the others "
            f"have {_worded(usual)}"
        )
    if len(alike) < _LEAST_BATCHES:
        raise ValueError(
            f"cure needs {_LEAST_BATCHES} batches of one shape or more, to hold some out, got "
            f"{len(alike)}: a list of batches, each what loss_fn takes"
            + (f"; {left_out}" if left_out else "")
        )
    held = {*range(_HELD_OUT - 1, len(alike), _HELD_OUT), len(alike) - 1}
    if len(held) < 2 and len(alike) > _LEAST_BATCHES:
        held.add(len(alike) - 2)
    return (
        [taken[at] for number, at in enumerate(alike) if number not in held],
        [taken[at] for number, at in enumerate(alike) if number in held],
        (left_out,) if left_out else (),
    )


def _shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}


def _worded(shapes: Any) -> str:
    """The shapes of a batch's arrays, as far as a person wants to read them."""
    words = ", ".join(str(list(shape)) for shape in shapes.values()) or "nothing"
    return words if len(words) <= 100 else f"{words[:97]}..."


def _check_finite(batch: Any, number: int) -> None:
    """Raises ValueError if a batch holds infinity or NaN: every trial would diverge on it."""
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            # A NumPy array stays one: its doubles may be beyond what JAX makes of them.
            finite = jnp.isfinite(x) if isinstance(x, jax.Array) else np.isfinite(x)
            wrong = int((~finite).sum())
            if wrong:
                raise ValueError(
                    f"batch {number}{jax.tree_util.keystr(path)} (counted from 0) holds {wrong} "
                    "values that are infinite or NaN: clean the input"
                )


def sequence(batches: Sequence[Any], steps: int, key: jax.Array) -> Any:
    """A batch for every step: pass after pass, each in an order of its own.

    Args:
      batches: Of one shape.
      steps: How many are needed.
      key: Draws the orders.

    Returns:
      The batches, `[steps, ...]`.
    """
    passes = -(-steps // len(batches))
    keys = jax.random.split(key, passes)
    orders = [jax.random.permutation(own, len(batches)) for own in keys]
    order = jnp.concatenate(orders)[:steps]
    return jax.tree.map(lambda x: x[order], stack(batches))


def stack(batches: Sequence[Any]) -> Any:
    """Batches of one shape as one tree, `[batches, ...]`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)
