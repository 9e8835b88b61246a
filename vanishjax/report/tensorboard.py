"""Scalars for TensorBoard, written by tensorboardX, which is an optional dependency."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["EventFile"]

_FLUSH_SECONDS = 5.0


class EventFile:
    """An event file in a folder; closes at the end of its `with` block.

    Args:
      folder: Made if it doesn't exist.

    Raises:
      ModuleNotFoundError: tensorboardX isn't installed.
      OSError: The folder can't be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with EventFile(folder) as events:
      ...         events.add(0, {"loss": 2.3, "gradient_norm/w": 0.1})
      ...     print(len(list(Path(folder).glob("events.out.tfevents.*"))))
      1
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event

        # Absolute, since it would take a folder named "s3:" for something else.
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        place = f"{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        # Not its SummaryWriter: that writes in a thread, and waits for ever when the disk is full.
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{place}"))
        self._flushed = time.monotonic()
        self._records.write(
            Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
        )

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes values of one step, by tag; what stands before the first slash groups them."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._records.write(event.SerializeToString())
        if time.monotonic() > self._flushed + _FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
