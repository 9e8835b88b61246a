"""Seeded damage to files, and what may come of it: the right result, or one clear line."""

import collections
import random
from collections.abc import Callable, Iterator

from tests.commands import Ran

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
