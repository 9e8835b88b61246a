"""Arrays of examples: how many, in which order, and which of them a step sees."""

import zlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

Arrays: TypeAlias = Any


def count_examples(arrays: Arrays) -> int:
    """The length that all arrays of a tree share; raises ValueError if they don't or it's 0."""
    return _common_size(arrays, 0, "arrays")


def example_count(batch: Arrays) -> int:
    """How many examples a batch has; a key or a number beside the examples counts none."""
    return next((np.shape(x)[0] for x in jax.tree.leaves(batch) if np.ndim(x)), 1)


def rows_of(arrays: Arrays, rows: Any) -> Arrays:
    """Some rows of every array."""
    return jax.tree.map(lambda a: a[rows], arrays)


def shuffled(key: jax.Array, first_step: int, examples: int) -> np.ndarray:
    """The order of an epoch, which the key and the epoch's first step decide.

    Drawn on the host, where nothing compiles; the epoch can be entered again at any of its steps.
    """
    entropy = [*np.ravel(jax.random.key_data(key)).tolist(), first_step]
    return np.random.default_rng(entropy).permutation(examples).astype(np.int32)


def chunked(order: np.ndarray, batch_size: int, chunk: int, done: int = 0) -> Iterator[np.ndarray]:
    """Rows of the examples as `[steps, batch_size]`, `chunk` steps at a time, then the rest.

    The first `done` steps are left out.
    """
    full = len(order) // batch_size
    rows = order[: full * batch_size].reshape(-1, batch_size)
    for start in range(done, full, chunk):
        yield rows[start : start + chunk]
    if full * batch_size < len(order) and done <= full:
        yield order[None, full * batch_size :]


def fingerprint(arrays: Arrays) -> str:
    """A checksum of what arrays hold, for telling other data from the same."""
    total = 0
    for leaf in jax.tree.leaves(arrays):
        array = np.ascontiguousarray(leaf)
        total = zlib.crc32(f"{array.shape}{array.dtype}".encode(), total)
        total = zlib.crc32(array.reshape(-1).view(np.uint8).data, total)
    return f"{total:08x}"


def divided(arrays: Arrays, parts: int, axis: int = 0) -> tuple[Arrays | None, Arrays | None]:
    """The most examples that divide among so many parts, and those that are left over.

    Args:
      arrays: A pytree of arrays.
      parts: How many parts.
      axis: The examples' axis.

    Returns:
      Both; None for one that is empty.

    Raises:
      ValueError: The arrays' lengths differ, or there is no example.

    Example:
      >>> divided(np.arange(11), 4)
      (array([0, 1, 2, 3, 4, 5, 6, 7]), array([ 8,  9, 10]))
    """
    size = _common_size(arrays, axis, "a batch", "batch")
    whole = size // parts * parts
    if whole == size:
        return arrays, None
    before = (slice(None),) * axis
    rest = jax.tree.map(lambda x: x[(*before, slice(whole, None))], arrays)
    return jax.tree.map(lambda x: x[(*before, slice(whole))], arrays) if whole else None, rest


def _common_size(arrays: Arrays, axis: int, kind: str, name: str = "") -> int:
    """The size that all arrays share along an axis; else a ValueError that names each array."""
    sizes = {
        jax.tree_util.keystr(path): np.shape(leaf)[axis] if np.ndim(leaf) > axis else 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        shown = [f"{name}{path}" or "array" for path in sizes]
        found = ", ".join(map("{}: {}".format, shown, sizes.values())) or "no arrays"
        raise ValueError(f"expected {kind} of one length and at least one example, got {found}")
    return int(next(iter(sizes.values())))
