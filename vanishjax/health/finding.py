"""What an examination of a network found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Rule = Literal[
    "vanishing_gradient",
    "exploding_gradient",
    "mean_collapse",
    "rank_collapse",
    "saturated_units",
    "dead_units",
    "zero_gradient",
    "underflow",
    "blind_optimizer",
    "nonfinite",
    "stalled_layer",
]
Severity = Literal["critical", "warning", "note"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a network.

    Attributes:
      rule: The rule that fired.
      severity: "critical": the network won't train; "warning": it will train badly or in part;
        "note": harmless by itself, but worth knowing.
      layers: Names of the layers concerned, in depth order.
      evidence: The numbers that the rule saw, by name.
      cause: One plain sentence.
      remedies: What to do, the best first.
    """

    rule: Rule
    severity: Severity
    layers: tuple[str, ...]
    evidence: Mapping[str, float]
    cause: str
    remedies: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types.

        Example:
          >>> finding = Finding("dead_units", "warning", ("w",), {"dead": 0.5}, "Half is dead.")
          >>> finding.to_dict()["layers"]
          ['w']
        """
        return {
            **dataclasses.asdict(self),
            "layers": list(self.layers),
            "evidence": dict(self.evidence),
            "remedies": list(self.remedies),
        }
