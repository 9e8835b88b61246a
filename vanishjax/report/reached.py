"""How much of the gradient gets to each layer, as reports show it."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Mapping
from typing import Any


def decades(probe: Mapping[str, Any]) -> list[float | None]:
    """Decades of the gradient's size from the output to each layer; None where not known.

    Of a layer that other paths lead past those between the largest gradient downstream and its own.

    Args:
      probe: `vanishjax.health.Probe.to_dict`'s.
    """
    log_chi = probe["log_chi"]
    steps = (math.nan if x is None else x / 2 / math.log(10) for x in reversed(log_chi))
    totals = list(itertools.accumulate(steps))[::-1]
    reach, chained = (probe.get(key) or [None] * len(totals) for key in ("reach", "is_chain"))
    found: list[float | None] = []
    for total, own, chain in zip(totals, reach, chained, strict=True):
        if own is not None and chain is False and not total < (alone := own / 2 / math.log(10)):
            total = alone
        found.append(None if math.isnan(total) else total)
    return found


def towers(probe: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where networks that stand side by side begin and end, as a policy's and a value's layers.

    They are told by their names, each in one run, and by not being one chain.

    Args:
      probe: `vanishjax.health.Probe.to_dict`'s.
    """
    firsts = [name.partition("/")[0] for name in probe["names"]]
    chained = probe.get("is_chain") or [True] * len(firsts)
    counts, last = collections.Counter(firsts), {name: i for i, name in enumerate(firsts)}
    ends = list(itertools.accumulate((last[name] for name in firsts), max))
    starts = [
        i
        for i in range(1, len(firsts))
        if ends[i - 1] < i
        and not (chained[i - 1] and chained[i])
        and counts[firsts[i]] > 1 < counts[firsts[i - 1]]
    ]
    return list(itertools.pairwise([0, *starts, len(firsts)]))
