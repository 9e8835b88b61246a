"""Seeded damage to files, and what may come of it: the right result, or one clear line."""

import collections
import contextlib
import copy
import math
import random
import signal
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.commands import Ran
from vanishjax.training.data import DataError

# Longest line that a person reads to the end.
LONGEST = 400


def _flip(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)


def _noise(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data))
    length = rng.randint(1, 16)
    data[place : place + length] = rng.randbytes(len(data[place : place + length]))


def _zeros(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data))
    length = rng.randint(1, 64)
    data[place : place + length] = bytes(len(data[place : place + length]))


def _truncation(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _deletion(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randint(1, 64)]


def _insertion(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.randint(1, 64))


def _repetition(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randint(1, 64)]


DAMAGES: dict[str, Callable[[random.Random, bytearray], None]] = {
    "flip": _flip,
    "noise": _noise,
    "zeros": _zeros,
    "truncation": _truncation,
    "deletion": _deletion,
    "insertion": _insertion,
    "repetition": _repetition,
}


def mutations(
    data: bytes, *, seed: int, count: int, head: int | None = None
) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a file's bytes, each with the kind of its damage; the same for a seed.

    Args:
      data: The whole file.
      seed: Of the damage.
      count: How many.
      head: Damage only that many bytes at the beginning, where formats keep what they promise.

    Yields:
      (kind, bytes that differ from `data`).
    """
    rng = random.Random(seed)  # noqa: S311
    kinds = list(DAMAGES)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        damaged = bytearray(data)
        while damaged == data:
            part = bytearray(data[:head])
            DAMAGES[kind](rng, part)
            damaged = part + data[len(data[:head]) :]
        yield kind, bytes(damaged)


class Tally(collections.Counter[str]):
    """How many inputs were tried, and how each ended."""

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.items()))
        return f"{self.total()} tried: {ends}"


def check_command(ran: Ran) -> str:
    """How a command on a damaged file ended; an AssertionError where it may not end so.

    Returns:
      "right" for status 0 (whether the result is right is the caller's to check) or "refused".
    """
    assert "Traceback" not in ran.err + ran.out, ran.err
    assert "\x1b" not in ran.err + ran.out, repr(ran.err)
    if ran.status == 0:
        return "right"
    assert ran.status in (1, 2), (ran.status, ran.err)
    assert len(ran.error) <= LONGEST, f"{len(ran.error)} characters: {ran.error[:200]}"
    return "refused"


# What a field of a JSON document, or of a Python literal, may not be.
ODD = (
    None, True, 0, -1, 1.5, 2**31, 2**63, 10**400, 1e300, math.nan, math.inf, "", "16",
    "\x1b[31m\u202e", "x" * 5000, [], [[]], [None], [0, -1], [10**400, 8], [1e5, 1e5], {}, {"a": 1},
)  # fmt: skip


def json_mutations(value: Any, *, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    """Copies of a nested value, one place of each made odd; the same for a seed.

    Args:
      value: Of dicts, lists, strings and numbers.
      seed: Of the damage.
      count: How many.

    Yields:
      (kind, the copy).
    """
    rng = random.Random(seed)  # noqa: S311
    for _ in range(count):
        top = {"": copy.deepcopy(value)}
        parent, key = rng.choice([*_places(top)])
        kind = rng.choice(("replaced", "removed", "nested", "added", "repeated"))
        if kind == "removed" and parent is not top:
            del parent[key]
        elif kind == "nested":
            for _ in range(rng.choice((1, 3, 100))):
                parent[key] = [parent[key]] if rng.random() < 0.5 else {"": parent[key]}
        elif kind == "added" and isinstance(parent[key], dict):
            parent[key][rng.choice(("", "more", "\x1b[31m", "x" * 5000))] = rng.choice(ODD)
        elif kind == "repeated" and isinstance(parent[key], list | str):
            parent[key] = parent[key] * rng.choice((2, 3000))
        else:
            kind, parent[key] = "replaced", copy.deepcopy(rng.choice(ODD))
        yield kind, top[""]


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in [*pairs]:
        yield container, key
        if isinstance(value, dict | list):
            yield from _places(value)


@contextlib.contextmanager
def bounded(seconds: float = 20.0, megabytes: int = 100) -> Iterator[None]:
    """An AssertionError if a block takes too long, or Python and NumPy more memory than that."""

    def too_long(*_: Any) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert peak < megabytes * 1e6, f"{peak / 1e6:.0f} MB"


def check_load(load: Callable[[Path], Any], path: Path, is_right: Callable[[Any], bool]) -> str:
    """How reading a damaged file ended; an AssertionError where it may not end so.

    Args:
      load: Reads a file.
      path: The file.
      is_right: Whether what came of it is what came of the whole file.

    Returns:
      "right", "other" (the file is whole, but says something else) or "refused".
    """
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("error")  # It would stand on standard error, with a line of code.
        try:
            result = load(path)
        except ValueError as error:
            refusal = error
        else:
            return "right" if is_right(result) else "other"
    # No other kind of ValueError, such as Unicode's: that is a library's, and says nothing.
    assert type(refusal) in (ValueError, DataError), repr(refusal)
    message = str(refusal).replace(str(path), "FILE")
    assert message.isprintable(), repr(message)
    assert 10 < len(message) <= LONGEST, f"{len(message)} characters: {message[:200]}"
    return "refused"
