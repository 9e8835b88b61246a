"""How an epoch's data reach the compiled step: scans over arrays, or one batch after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from vanishjax.training.batches import (
    Arrays,
    chunked,
    count_examples,
    divided,
    example_count,
    rows_of,
    shuffled,
)
from vanishjax.training.layout import Layout
from vanishjax.training.scan import scan_steps
from vanishjax.training.sources import Stream
from vanishjax.training.state import TrainState

_MOST_AHEAD, _BYTES_AHEAD = 16, 2**26

# `step(state, batch, rest) -> (state, out)`, as `local_step`.
Step = Callable[[TrainState, Any, Any], tuple[TrainState, Any]]


class Size(NamedTuple):
    """How many steps, and how many examples each of them sees."""

    steps: int
    examples: int


class Piece(NamedTuple):
    """Some steps, run at once.

    Attributes:
      run: `run(state) -> (state, out)`, out's arrays `[steps, ...]`.
      size: Of what it runs.
      ahead: How many pieces may be under way beside the latest.
    """

    run: Callable[[TrainState], tuple[TrainState, Any]]
    size: Size
    ahead: int = 1


class Feed(Protocol):
    """The pieces of every epoch.

    Attributes:
      compiling_seconds: What compiling has taken since the training began.
    """

    compiling_seconds: float

    def prepare(self, state: TrainState, done: int) -> None:
        """Compiles what can be, for a run that has so many steps of an epoch behind it."""

    def epoch(
        self, number: int, key: jax.Array, first_step: int, done: int, place: Any
    ) -> Iterator[Piece]:
        """The pieces of an epoch that began at a step, after so many steps of it."""

    def place(self) -> Any:
        """What `epoch` takes as place, to go on after the last piece; None where it isn't needed.

        It is asked for before the next piece is.
        """


class ArrayFeed:
    """Scans of steps over batches that are gathered on the device from whole arrays."""

    compiling_seconds = 0.0

    def __init__(
        self,
        step: Step,
        layout: Layout,
        arrays: Arrays,
        batch_size: int,
        chunk: int,
        accumulate: int,
    ) -> None:
        self._arrays, self._parts = layout.put(arrays), layout.devices * accumulate
        self._examples, self._batch_size, self._chunk = count_examples(arrays), batch_size, chunk

        def run_chunk(state: TrainState, data: Arrays, rows: Any, rest: Any) -> Any:
            def gathered(numbers: Any) -> list[Any]:
                return [None if rows is None else rows_of(data, rows) for rows in numbers]

            return scan_steps(lambda s, parts: step(s, *parts), state, (rows, rest), gathered)

        self._compiled = layout.compile(run_chunk, axis=1)
        self._ahead: dict[tuple[int, ...], Callable[..., Any]] = {}

    def prepare(self, state: TrainState, done: int) -> None:
        """See `Feed`."""
        for start in (done, 0):
            order = np.arange(self._examples)
            for rows in chunked(order, self._batch_size, self._chunk, start):
                if rows.shape not in self._ahead:
                    zeros = self._divided(np.zeros(rows.shape, np.int32))
                    ahead = self._compiled.ahead(state, self._arrays, *zeros)
                    self._ahead[rows.shape] = ahead

    def epoch(
        self, number: int, key: jax.Array, first_step: int, done: int, place: Any
    ) -> Iterator[Piece]:
        """See `Feed`."""
        del number, place
        order = shuffled(key, first_step, self._examples)
        for rows in chunked(order, self._batch_size, self._chunk, done):

            def run(state: TrainState, rows: Any = rows) -> Any:
                return self._ahead[rows.shape](state, self._arrays, *self._divided(rows))

            yield Piece(run, Size(*rows.shape))

    def place(self) -> None:
        """See `Feed`."""

    def _divided(self, rows: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        return divided(rows, self._parts, axis=1)


class StreamFeed:
    """One step for every batch of a stream; the next is put on the device while one computes."""

    def __init__(self, step: Step, layout: Layout, stream: Stream, accumulate: int) -> None:
        self._stream, self._layout, self._microbatches = stream, layout, accumulate
        self.compiling_seconds = 0.0
        self._known: set[Any] = set()

        def one(state: TrainState, _: None, batch: Any, rest: Any) -> tuple[TrainState, Any]:
            state, out = step(state, batch, rest)
            return state, jax.tree.map(lambda x: x[None], out)

        self._compiled = layout.compile(one)

    def prepare(self, state: TrainState, done: int) -> None:
        """See `Feed`; the shapes of batches aren't known yet."""

    def epoch(
        self, number: int, key: jax.Array, first_step: int, done: int, place: Any
    ) -> Iterator[Piece]:
        """See `Feed`."""
        del key, first_step
        for count, batch in enumerate(self._stream.epoch(number, done, place), done + 1):
            examples = example_count(batch)
            if not examples:
                raise ValueError(
                    f"batch {count} of epoch {number} of {self._stream.name} has no example"
                )
            yield Piece(self._runner(batch), Size(1, examples), _ahead(batch))

    def place(self) -> Any:
        """See `Feed`."""
        return self._stream.place()

    def _runner(self, batch: Any) -> Callable[[TrainState], Any]:
        parts = self._layout.parts(batch, self._microbatches)
        form = tuple((np.shape(x), getattr(x, "dtype", None)) for x in jax.tree.leaves(parts))

        def run(state: TrainState) -> Any:
            # Arrays of the host go to the device here, and nothing waits for them.
            if form in self._known:
                return self._compiled(state, None, *parts)
            started = time.perf_counter()
            out = self._compiled(state, None, *parts)
            self._known.add(form)
            self.compiling_seconds += time.perf_counter() - started
            return out

        return run


def _ahead(batch: Any) -> int:
    """How many steps may wait for the device, with their batches: waiting for each takes time."""
    size = sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(batch))
    return max(1, min(_MOST_AHEAD, _BYTES_AHEAD // max(size, 1)))
