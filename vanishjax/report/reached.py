"""How much of the gradient gets to each layer, as reports show it."""

from __future__ import annotations

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
