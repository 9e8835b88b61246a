"""Where batches come from: arrays that a run divides itself, or a stream of whole batches."""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vanishjax.training.records import plain_json

_CONTAINERS = (list, tuple, Mapping)


@dataclasses.dataclass
class Stream:
    """Batches in the order of an iterable, or of what a function of the epoch gives.

    Attributes:
      source: An iterable of batches, or a function `epoch -> iterable`; epochs count from 1.
      name: What errors call it.

    Example:
      >>> stream = Stream(lambda epoch: iter([np.full(2, epoch)] * 3), "train")
      >>> [int(batch[0]) for batch in stream.epoch(7)]
      [7, 7, 7]
    """

    source: Any
    name: str
    _iterator: Any = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not (hasattr(self.source, "__iter__") or callable(self.source)):
            raise TypeError(
                f"{self.name} must be arrays with a batch_size, an iterable of batches or a "
                f"function epoch -> iterator, got {type(self.source).__name__}"
            )

    @property
    def _is_function(self) -> bool:
        return not hasattr(self.source, "__iter__")

    def check_epochs(self, epochs: int) -> None:
        """Raises ValueError for an iterator, which gives its batches once, and several epochs."""
        if epochs > 1 and hasattr(self.source, "__next__"):
            raise ValueError(
                f"{self.name} is a {type(self.source).__name__}, which gives its batches only "
                f"once, and epochs is {epochs}: give an iterable that starts anew, such as a list "
                "or a DataLoader, or a function epoch -> iterator"
            )

    def epoch(self, number: int, done: int = 0, place: Any = None) -> Iterator[Any]:
        """The batches of an epoch, torch's tensors and the like as NumPy arrays.

        Args:
          number: Which epoch, from 1.
          done: How many of its batches a run has behind it: they are left out.
          place: What `place` gave after them, for an iterator that can be set there. Else they are
            drawn and thrown away, where a function or a list gives the same ones again.

        Raises:
          ValueError: The batches that are done can't be left out, or there is none at all.
        """
        given = self.source(number) if self._is_function else self.source
        self._iterator = iterator = iter(given)
        if done and place is not None and hasattr(iterator, "set_state"):
            iterator.set_state(_from_json(place))
        elif done:
            if not (self._is_function or isinstance(self.source, list)):
                raise ValueError(
                    f"the run was saved in epoch {number}, after batch {done}, and a "
                    f"{type(given).__name__} can't go on from there: it has no get_state and "
                    f"set_state. Give {self.name} as a function epoch -> iterator, whose first "
                    f"{done} batches will be drawn and left out"
                )
            skipped = sum(1 for _ in itertools.islice(iterator, done))
            if skipped < done:
                raise ValueError(
                    f"the run was saved in epoch {number}, after batch {done}, but {self.name} "
                    f"gives only {skipped}"
                )
        count = done
        for batch in iterator:
            count += 1
            yield jax.tree.map(_as_array, batch)
        if not count:
            raise ValueError(
                f"{self.name} gave no batch in epoch {number}: it is empty, or an iterator that "
                "was used up before"
            )

    def place(self) -> Any:
        """Where the epoch's iterator stands, as JSON takes it; None if it can't tell."""
        if not (hasattr(self._iterator, "get_state") and hasattr(self._iterator, "set_state")):
            return None
        return _to_json(self._iterator.get_state())


def is_tree_of_arrays(data: Any) -> bool:
    """Whether it's a pytree whose leaves are arrays.

    Example:
      >>> is_tree_of_arrays([np.ones(3)]), is_tree_of_arrays(iter([np.ones(3)]))
      (True, False)
    """
    if hasattr(data, "__iter__") and not (is_array(data) or isinstance(data, _CONTAINERS)):
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(map(is_array, leaves))


def is_array(leaf: Any) -> bool:
    """Whether it's an array of any library, or a number."""
    return hasattr(leaf, "__array__") or isinstance(leaf, bool | int | float | complex)


def as_arrays(data: Any) -> Any:
    """The same with arrays that JAX takes, in the place of torch's tensors and the like."""
    return jax.tree.map(_as_array, data)


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic | jax.Array) or not hasattr(leaf, "__array__"):
        return leaf
    if hasattr(leaf, "detach"):
        # A torch tensor, which may lie on a device or belong to a graph.
        leaf = leaf.detach().cpu()
    return np.asarray(leaf)


def _to_json(state: Any) -> Any:
    if isinstance(state, bytes):
        return {"base64": base64.b64encode(state).decode()}
    try:
        plain = plain_json(state, "state")
    except ValueError:
        return None
    # Only what comes back as it was.
    return {"json": plain} if plain == state else None


def _from_json(place: Any) -> Any:
    return base64.b64decode(place["base64"]) if "base64" in place else place["json"]
