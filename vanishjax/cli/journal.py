"""Results that are kept one by one: what a killed run goes on from."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vanishjax.cli.output import to_json

Record = dict[str, Any]


@contextlib.contextmanager
def open_journal(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Journal]:
    """Opens a file of JSON lines, one a result, each on the disk before the next is begun.

    Every line bears the settings that it was measured with; a journal holds but one kind. A last
    line that was cut short is dropped. Only one process at a time may have it open.

    Args:
      path: The file; its folder must exist. One that stays empty is taken away again.
      settings: What all results have in common.
      overwrite: Whether what it holds is replaced, once there is something to replace it with.

    Yields:
      The journal, with what it holds already.

    Raises:
      ValueError: It holds results of other settings, something else than results, or another
        process has it open.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "cells.jsonl")
      ...     with open_journal(path, {"width": 8}) as journal:
      ...         _ = journal.append({"depth": 2})
      ...     with open_journal(path, {"width": 8}) as journal:
      ...         print(journal.records)
      [{'depth': 2}]
    """
    path.touch()
    with open(path, "r+b") as file:
        _lock(path, file)
        try:
            yield Journal(path, file, settings, overwrite)
        finally:
            # Before the lock goes: then it may be another process's.
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


class Journal:
    """An open journal, from `open_journal`.

    Attributes:
      records: What it holds, in the order in which it was measured, without the settings.
    """

    def __init__(
        self, path: Path, file: BinaryIO, settings: Mapping[str, Any], overwrite: bool
    ) -> None:
        self.records: list[Record] = []
        self._path = path
        self._file = file
        self._settings = json.loads(to_json(dict(settings)))
        self._end = 0 if overwrite else self._read()

    def append(self, record: Record) -> Record:
        """Writes a result to the disk and returns it as it will be read."""
        line = to_json({**record, "settings": self._settings}, indent=None)
        self._file.seek(self._end)
        self._file.truncate()
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end = self._file.tell()
        kept = _without_settings(json.loads(line))
        self.records.append(kept)
        return kept

    def _read(self) -> int:
        """Reads what is there and returns the length of what is whole."""
        lines = self._file.read().split(b"\n")
        end = 0
        for number, line in enumerate(lines, start=1):
            record = _parse(line) if number < len(lines) else None
            if record is None:
                if any(line.strip(b"\0") for line in lines[number:]):
                    raise ValueError(
                        f"{self._path}: line {number} is no result; name another folder with "
                        "--out, or pass --overwrite to replace it"
                    )
                break
            self._check(record["settings"])
            self.records.append(_without_settings(record))
            end += len(line) + 1
        return end

    def _check(self, found: Mapping[str, Any]) -> None:
        for name in {**self._settings, **found}:
            was, asked = found.get(name), self._settings.get(name)
            if was != asked:
                raise ValueError(
                    f"{self._path}: was measured with {name} {_shown(was)}, not {_shown(asked)}; "
                    "name another folder with --out, or pass --overwrite to replace it"
                )


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    # Some network drives know no locks.
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{path}: another run is writing it; name another folder with --out"
            ) from error


def _parse(line: bytes) -> Record | None:
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("settings"), dict):
            return record
    return None


def _without_settings(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "settings"}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)
