"""Results that are kept one by one: what a killed run goes on from."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from vanishjax.cli.output import to_json

Record = dict[str, Any]
# A sum over the rest of the line: what a disk makes of a digit may still be a number.
_SUM = re.compile(rb', "checksum": "([0-9a-f]{8})"\}')
_REPLACE = "name another folder with --out, or pass --overwrite to replace it"


@contextlib.contextmanager
def open_journal(
    path: Path,
    settings: Mapping[str, Any],
    identify: Callable[[Record], Hashable],
    *,
    overwrite: bool = False,
) -> Iterator[Journal]:
    """Opens a file of JSON lines, one a result, each on the disk before the next is begun.

    Every line bears the settings that it was measured with; a journal holds but one kind. A last
    line that was cut short is dropped, and a result that is there twice counts once. Whoever opens
    it keeps other processes away: see `vanishjax.files.locked`.

    Args:
      path: The file; its folder must exist. One that stays empty is taken away again.
      settings: What all results have in common.
      identify: Gives what a result is known by; raises ValueError, with what is wrong, for
        something else than a result.
      overwrite: Whether what it holds is replaced, once there is something to replace it with.

    Yields:
      The journal, with what it holds already.

    Raises:
      ValueError: It holds results of other settings, or something else than results; the message
        names the line.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "cells.jsonl")
      ...     with open_journal(path, {"width": 8}, lambda cell: cell["depth"]) as journal:
      ...         _ = journal.append({"depth": 2})
      ...     with open_journal(path, {"width": 8}, lambda cell: cell["depth"]) as journal:
      ...         print(journal.records)
      [{'depth': 2}]
    """
    path.touch()
    with open(path, "r+b") as file:
        try:
            yield Journal(path, file, settings, identify, overwrite)
        finally:
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


class Journal:
    """An open journal, from `open_journal`.

    Attributes:
      records: What it holds, in the order in which it was measured, without the settings.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        settings: Mapping[str, Any],
        identify: Callable[[Record], Hashable],
        overwrite: bool,
    ) -> None:
        self.records: list[Record] = []
        self._path = path
        self._file = file
        self._settings = json.loads(to_json(dict(settings)))
        self._identify = identify
        self._end = 0 if overwrite else self._read()

    def append(self, record: Record) -> Record:
        """Writes a result to the disk and returns it as it will be read."""
        line = to_json({**record, "settings": self._settings}, indent=None).encode()
        self._file.seek(self._end)
        self._file.truncate()
        self._file.write(line[:-1] + f', "checksum": "{zlib.crc32(line):08x}"}}\n'.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end = self._file.tell()
        kept: Record = json.loads(line)
        del kept["settings"]
        self.records.append(kept)
        return kept

    def _read(self) -> int:
        """Reads what is there and returns the length of what is whole."""
        lines = self._file.read().split(b"\n")
        found: dict[Hashable, tuple[int, Record]] = {}
        end = 0
        for number, line in enumerate(lines, start=1):
            record = _parse(line) if number < len(lines) else None
            if record is None:
                if any(line.strip(b"\0") for line in lines[number:]):
                    self._refuse(number, "is no result")
                break
            self._check(number, record.pop("settings"))
            try:
                key = self._identify({n: v for n, v in record.items() if n != "checksum"})
            except ValueError as error:
                self._refuse(number, f"is no result: {error}")
            if not _sums_up(line, record.pop("checksum", None)):
                self._refuse(number, "is damaged: its checksum is another")
            if key not in found:
                found[key] = number, record
            elif _untimed(found[key][1]) != _untimed(record):
                self._refuse(number, f"measures again, otherwise, what line {found[key][0]} does")
            end += len(line) + 1
        self.records = [record for _, record in found.values()]
        return end

    def _check(self, number: int, found: Mapping[str, Any]) -> None:
        for name in {**self._settings, **found}:
            was, asked = found.get(name), self._settings.get(name)
            if was != asked:
                line = f"line {number} " if number > 1 else ""
                raise ValueError(
                    f"{self._path}: {line}was measured with {_shown(name)} {_shown(was)}, not "
                    f"{_shown(asked)}; {_REPLACE}"
                )

    def _refuse(self, number: int, reason: str) -> NoReturn:
        raise ValueError(f"{self._path}: line {number} {reason}; {_REPLACE}")


def check_fields(record: Record, fields: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raises ValueError unless a record has just some fields, each of which its check accepts.

    Args:
      record: The record.
      fields: A check for every name.

    Example:
      >>> check_fields({"depth": "2"}, {"depth": is_number(whole=True, least=1)})
      Traceback (most recent call last):
      ...
      ValueError: depth can't be "2"
    """
    for name in {**fields, **record}:
        if name not in record:
            raise ValueError(f"{name} is missing")
        if name not in fields:
            raise ValueError(f"{_shown(name)} is unknown")
        if not fields[name](record[name]):
            raise ValueError(f"{name} can't be {_shown(record[name], quoted=True)}")


def is_number(
    *,
    whole: bool = False,
    least: float = -math.inf,
    most: float = math.inf,
    optional: bool = False,
) -> Callable[[Any], bool]:
    """A check for a finite number in [least, most], or None if `optional`: JSON knows no NaN."""
    kinds = (int,) if whole else (int, float)

    def check(value: Any) -> bool:
        if value is None:
            return optional
        # A bool is an int, and an int may be too large for a float.
        return type(value) in kinds and abs(value) < math.inf and least <= value <= most

    return check


def _parse(line: bytes) -> Record | None:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("settings"), dict):
            return record
    return None


def _sums_up(line: bytes, checksum: Any) -> bool:
    """Whether a line is as it was written; one of an older version bears no sum."""
    end = len(line) - len(', "checksum": "01234567"}')
    match = _SUM.fullmatch(line, max(end, 0))
    if match is None:
        return checksum is None
    return int(match[1], 16) == zlib.crc32(line[:end] + b"}")


def _untimed(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "seconds"}


def _shown(value: Any, quoted: bool = False) -> str:
    if value is None:
        return "none"
    plain = isinstance(value, str) and value.isprintable() and not quoted
    text = value if plain else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
