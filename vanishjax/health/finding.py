"""What an examination of a network found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

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
    "token_collapse",
    "saturated_attention",
    "bad_start",
    "unmeasured",
    "memory",
    "lost_updates",
    "does_not_learn",
]
Severity = Literal["critical", "warning", "note"]


class Where(NamedTuple):
    """A line of the user's code, and the operation there.

    Example:
      >>> print(Where("train.py", 12, "log"))
      train.py:12 log
    """

    file: str
    line: int
    operation: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.operation}"


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
      where: The line and the operation in the user's own code, where there is one.
    """

    rule: Rule
    severity: Severity
    layers: tuple[str, ...]
    evidence: Mapping[str, float]
    cause: str
    remedies: tuple[str, ...] = ()
    where: Where | None = None

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
            "evidence": json_value(dict(self.evidence)),
            "remedies": list(self.remedies),
            "where": None if self.where is None else str(self.where),
        }


def json_value(value: Any) -> Any:
    """Arrays, tuples and mappings as JSON types; None where a number isn't finite.

    Example:
      >>> json_value({"a": np.array([1.0, np.inf]), "b": (2,)})
      {'a': [1.0, None], 'b': [2]}
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_value(one) for key, one in value.items()}
    return [json_value(one) for one in value] if isinstance(value, list | tuple) else value
