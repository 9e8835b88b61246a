"""How much of the gradient gets to every kernel, along the paths on which it flows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vanishjax import _jaxpr

Vector = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
# Two uses in turn are those of a table at both ends of a network, and no loop.
LEAST_STEPS = 3


class Instance(NamedTuple):
    """A tap that the data passes, in one iteration of the loops around it."""

    event: _jaxpr.Passing
    turns: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Supply:
    """The gradient's energy at every tap.

    Attributes:
      reach: For each tap, in each iteration of the loops around it, the nats between its own
        gradient's energy and the largest downstream of it. A kernel that is used many times has
        that of its best supplied use everywhere: it learns from that one.
      taps: The taps' numbers.
      is_site: Whether a tap stands on a kernel's output.
      paths: The graph.
    """

    reach: Vector
    taps: np.ndarray[Any, np.dtype[np.int64]]
    is_site: np.ndarray[Any, np.dtype[np.bool_]]
    paths: _jaxpr.Paths

    @classmethod
    def of(
        cls, passed: Sequence[Instance], log_norm: Vector, places: Iterable[int], paths: Any
    ) -> Supply:
        """Compares each tap's gradient with what lies downstream of it.

        Args:
          passed: The taps in the order in which the data passes them.
          log_norm: The logarithms of their gradients' norms.
          places: Of the taps on kernels' outputs the kernels, as numbers.
          paths: The graph.
        """
        taps = np.array([one.event.tap for one in passed], int)
        is_site = np.array([one.event.leaf >= 0 for one in passed], bool)
        largest = np.maximum(log_norm, _largest_downstream(passed, log_norm, paths))
        with np.errstate(invalid="ignore"):
            reach = np.where(np.isneginf(log_norm), -np.inf, 2 * (log_norm - largest))
        reach = np.where(np.isnan(reach), 0.0, reach)
        kernels = iter(places)
        # A loop that runs along the kernels' own axes is a stack of layers; any other one is time.
        stacked = {one.turns[: len(one.event.axes)] for one in passed if one.event.axes}
        depths = {len(turns) for turns in stacked}
        groups: dict[Hashable, list[int]] = {}
        for i, one in enumerate(passed):
            layer = one.turns if any(one.turns[:depth] in stacked for depth in depths) else ()
            key = (next(kernels),) if is_site[i] else ("between", int(taps[i]), layer)
            groups.setdefault(key, []).append(i)
        for members in groups.values():
            reach[members] = np.max(reach[members])
        return cls(reach, taps, is_site, paths)

    def around(self, place: int) -> tuple[Flags, Flags]:
        """Which kernels' outputs lie before that of one of them, and which behind.

        Args:
          place: Its own, among the taps on kernels' outputs.

        Returns:
          For each such tap, in the order in which the data passes them, whether it is one.
        """
        taps = [int(tap) for tap in self.taps[self.is_site]]
        later, own = self.paths.downstream(looping=False), taps[place]
        before = [bool(later[tap] >> own & 1) and tap != own for tap in taps]
        behind = [bool(later[own] >> tap & 1) and tap != own for tap in taps]
        return np.array(before, bool), np.array(behind, bool)

    def blocked(
        self, limit: float, still: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether a layer gets less than exp(-limit), and nothing leads past what holds it back.

        Args:
          limit: Nats of energy that may be lost.
          still: For each tap on a kernel's output whether the kernel gets no gradient for another
            reason, such as an input of zeros.

        Returns:
          For each tap on a kernel's output, in the order in which the data passes them.
        """
        # What the loss has no slope in gets nothing from anywhere: it holds nothing back either.
        fed = self.reach >= -limit
        if still is not None:
            fed[self.is_site] &= ~still
        to_loss = self.paths.to_loss()
        starved = {int(tap) for tap in self.taps[~fed] if to_loss[tap]}
        sites = {int(tap) for tap in self.taps[self.is_site]}
        past = self.paths.bypassed(starved, sites)
        held = np.isin(self.taps, list(starved - past)) & ~fed
        return np.asarray(held[self.is_site])

    def handed_on(self) -> list[tuple[int, float]]:
        """What each layer hands its gradient on from, and how much of that is lost on the way.

        Returns:
          For each tap on a kernel's output, in the order in which the data passes them, the first
          one of the kernel right after it, of several of the one that gets most, and the nats
          between their reaches. The loss, as -1, where no kernel comes after it.
        """
        sites = self.taps[self.is_site]
        reach = dict(zip(sites.tolist(), self.reach[self.is_site].tolist(), strict=True))
        first = {tap: int(np.argmax(sites == tap)) for tap in reach}
        below = self.paths.downstream(looping=False)
        kernels = sum(1 << tap for tap in reach)
        found = {}
        for tap in reach:
            # Taps are numbered in the data's order: of those that are left the first comes next.
            later, right_after = below[tap] & kernels, []
            while later:
                right_after.append((later & -later).bit_length() - 1)
                later &= ~(below[right_after[-1]] | later & -later)
            best = max(right_after, key=reach.__getitem__, default=None)
            fed = 0.0 if best is None else reach[best]
            gone = fed - reach[tap] if np.isfinite([fed, reach[tap]]).all() else np.nan
            found[tap] = (-1 if best is None else first[best]), gone
        return [found[tap] for tap in sites.tolist()]


def fading(
    passed: Sequence[Instance], log_norm: Vector, paths: _jaxpr.Paths
) -> dict[int, tuple[float, int]]:
    """How fast the gradient fades from step to step where one kernel is used anew in each.

    Args:
      passed: The taps in the order in which the data passes them.
      log_norm: The logarithms of their gradients' norms.
      paths: The graph.

    Returns:
      By the tap on a kernel's output, the first one of a loop that is written out, the nats of
      energy lost in a step back, and the steps; loops inside loops left out. What is lost is that
      of the steps after the last one that gets none.
    """
    steps: dict[int, list[float]] = {}
    written_out: dict[int, dict[int, float]] = {}  # by kernel and tap
    for one, log in zip(passed, log_norm, strict=True):
        if one.event.leaf < 0 or one.event.axes:
            continue
        if len(one.turns) == 1:
            steps.setdefault(one.event.tap, []).append(float(log))
        elif not one.turns:
            written_out.setdefault(one.event.leaf, {})[one.event.tap] = float(log)
    for own in _in_steps(written_out.values(), paths):
        steps[next(iter(own))] = list(own.values())
    found = {}
    for tap, logs in steps.items():
        lost = np.flatnonzero(~np.isfinite(logs))
        left = logs[int(lost[-1]) + 1 if len(lost) else 0 :]
        if len(left) > 1 and not np.isnan(logs).any():
            found[tap] = 2 * (left[-1] - left[0]) / (len(left) - 1), len(logs)
    return found


def _in_steps(
    kernels: Iterable[dict[int, float]], paths: _jaxpr.Paths
) -> Iterator[dict[int, float]]:
    """Of kernels' uses outside loops those that are the steps of a loop that is written out.

    A cell's kernel takes in its own work, use after use. Beside it stands what each step takes in:
    of each use of that kernel more of the cell's lie downstream than of the next one.
    """
    many = [own for own in kernels if len(own) >= LEAST_STEPS]
    if not many:
        return
    below = paths.downstream(looping=False)

    def in_turn(own: dict[int, float]) -> bool:
        return all(below[tap] >> later & 1 for tap, later in itertools.pairwise(own))

    cells = sum(1 << tap for own in many if in_turn(own) for tap in own)
    for own in many:
        later = [below[tap] & cells for tap in own]
        if all(a != b and a & b == b for a, b in itertools.pairwise(later)):
            yield own


def _largest_downstream(passed: Sequence[Instance], log_norm: Vector, paths: Any) -> Vector:
    """For each tap the largest norm of a gradient downstream of it."""
    own, later = paths.downstream(looping=False), paths.downstream(looping=True)
    count = len(own)

    def members(bits: int) -> np.ndarray[Any, Any]:
        read = np.frombuffer(bits.to_bytes(count // 8 + 1, "little"), np.uint8)
        return np.flatnonzero(np.unpackbits(read, bitorder="little"))

    same, following = [members(bits) for bits in own], [members(bits) for bits in later]
    largest = np.full(len(passed), -np.inf)
    best = np.full(count, -np.inf)  # by tap, over all that was passed after this iteration
    finite = np.where(np.isnan(log_norm), -np.inf, log_norm)
    end = len(passed)
    # An iteration of the innermost loop at a time, from the loss back.
    while end:
        begin = end - 1
        while begin and passed[begin - 1].turns == passed[end - 1].turns:
            begin -= 1
        current = np.full(count, -np.inf)
        for i in range(end - 1, begin - 1, -1):
            tap = passed[i].event.tap
            largest[i] = max(
                np.max(current[same[tap]], initial=-np.inf),
                np.max(best[following[tap]], initial=-np.inf),
            )
            current[tap] = finite[i]
        best = np.maximum(best, current)
        end = begin
    return largest
