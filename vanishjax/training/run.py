"""A training under way: its epochs of steps, what they gave, and when it is saved."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from vanishjax.training.evaluation import Means
from vanishjax.training.feeds import Feed, Piece, Size
from vanishjax.training.interruption import Stop
from vanishjax.training.resumption import Checkpoints, Position
from vanishjax.training.state import TrainState


class Epoch(NamedTuple):
    """What an epoch gave.

    Attributes:
      means: Of the loss and the metrics over its examples.
      seconds: What it took, compilation apart.
      is_whole: Whether all of its batches were visited.
      signal: What asked for the run's end; 0 if nothing did.
    """

    means: Means
    seconds: float
    is_whole: bool
    signal: int


class Run:
    """A training under way.

    Attributes:
      state: What the steps so far have led to.
      history: Of the epochs that are whole; `record` adds one.
    """

    def __init__(
        self,
        feed: Feed,
        state: TrainState,
        position: Position,
        asked: Stop,
        *,
        chunk: int,
        checkpoints: Checkpoints | None,
        on_observed: Callable[[Any], None] | None,
    ) -> None:
        """See `fit`.

        Args:
          feed: The data.
          state: Where to start.
          position: What an earlier run had done of the epoch that comes first.
          asked: Whether the run shall end.
          chunk: After how many steps to fetch what they gave.
          checkpoints: Where to save the run.
          on_observed: Gets what was observed.
        """
        self.state, self.history = state, position.history
        self._feed, self._position, self._asked, self._chunk = feed, position, asked, chunk
        self._checkpoints, self._on_observed = checkpoints, on_observed
        self._step = self._saved_at = int(state.step)

    def epoch(self, number: int) -> Epoch:
        """Takes the steps of an epoch, counted from 1, or those up to a signal."""
        feed, done, self._position = self._feed, self._position, Position()
        started = time.perf_counter() - done.seconds - feed.compiling_seconds
        outcomes = _Outcomes(done.means, self._chunk, self._on_observed)
        first_step = self._step - done.means.steps
        pieces = feed.epoch(number, self.state.key, first_step, done.means.steps, done.place)

        def seconds() -> float:
            return time.perf_counter() - started - feed.compiling_seconds

        piece, signal = next(pieces, None), 0
        while piece is not None and not signal:
            self.state, out = piece.run(self.state)
            self._step += piece.size.steps
            outcomes.add(piece, out)
            if jax.process_count() > 1:
                # Two programs that wait for other processes must not run at once: each process
                # might take them in another order, and all would wait for ever.
                jax.block_until_ready((self.state, out))
            signal = self.signal()
            saves = self._is_due(signal, epoch_ended=False)
            # Before the next piece is drawn, which the saved run has yet to see.
            place = feed.place() if saves else None
            piece = next(pieces, None)
            if saves:
                means = outcomes.means()
                # Between two epochs the record comes first.
                if piece is not None:
                    self._save(Position(self.history, means, seconds(), place))
        return Epoch(outcomes.means(), seconds(), piece is None, signal)

    def record(self, record: dict[str, float]) -> None:
        """Adds an epoch's record to the history."""
        self.history = self.history.add(record)

    def save(self, is_last: bool) -> None:
        """Saves the run between two epochs, if it is time for that or the run ends here."""
        if self._is_due(is_last, epoch_ended=True):
            self._save(Position(self.history))

    def signal(self) -> int:
        """The signal that any of the processes got, or 0: all must stop at the same step."""
        own = self._asked.signal
        if jax.process_count() == 1:
            return own
        return int(multihost_utils.process_allgather(np.array(own)).max())

    def _is_due(self, is_last: int, *, epoch_ended: bool) -> bool:
        if self._checkpoints is None:
            return False
        return bool(is_last) or self._checkpoints.due(self._step - self._saved_at, epoch_ended)

    def _save(self, position: Position) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(self.state, position)
            self._saved_at = self._step


class _Outcomes:
    """What an epoch's steps gave: on the device at first, later in the means."""

    def __init__(self, means: Means, chunk: int, on_observed: Callable[[Any], None] | None) -> None:
        self._means, self._chunk, self._on_observed = means, chunk, on_observed
        self._waiting: list[tuple[Size, Any]] = []
        self._under_way: list[Any] = []

    def add(self, piece: Piece, out: Any) -> None:
        """Takes in what a piece gives, which may still be computed."""
        # Some pieces wait for the device while the next is loaded, never many.
        self._under_way.append(out)
        if len(self._under_way) > piece.ahead:
            over = len(self._under_way) - (piece.ahead + 1) // 2
            jax.block_until_ready(self._under_way[over - 1])
            del self._under_way[:over]
        if sum(size.steps for size, _ in self._waiting) >= self._chunk:
            self.means()
        self._waiting.append((piece.size, out))

    def means(self) -> Means:
        """Over all steps so far, once they are computed; what they observed is handed out."""
        if self._waiting:
            metrics, observed = _joined(jax.device_get([out for _, out in self._waiting]))
            if self._on_observed is not None:
                self._on_observed(observed)
            sizes = [(size.examples, size.steps) for size, _ in self._waiting]
            self._means = self._means.add(np.repeat(*np.transpose(sizes)), metrics)
            self._waiting = []
        return self._means


def _joined(outs: list[Any]) -> Any:
    """What some pieces gave, in arrays over all of their steps."""
    return outs[0] if len(outs) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *outs)
