"""What an examination of a network found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vanishjax.health.remedies import REMEDIES

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
    "learning_rate",
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

    @classmethod
    def of(cls, file: str, line: int, operation: str) -> Where:
        """A line whose file is named from the current folder on, if it is in there."""
        path = Path(file)
        if path.is_absolute() and path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return cls(str(path), line, operation)


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
      remedy_ids: What to do, the best first: ids of `vanishjax.health.REMEDIES`, or a sentence for
        what mends one operation alone.
      where: The line and the operation in the user's own code, where there is one.

    Raises:
      ValueError: An id that isn't in that table.
    """

    rule: Rule
    severity: Severity
    layers: tuple[str, ...]
    evidence: Mapping[str, float]
    cause: str
    remedy_ids: tuple[str, ...] = ()
    where: Where | None = None

    def __post_init__(self) -> None:
        unknown = [one for one in self.remedy_ids if one not in REMEDIES and " " not in one]
        if unknown:
            raise ValueError(
                f"{self.rule}: remedy_ids must be ids of vanishjax.health.REMEDIES, got {unknown}"
            )

    @property
    def leaves_unknown(self) -> bool:
        """Whether it says that something that matters couldn't be measured."""
        return self.rule == "unmeasured" and self.severity == "warning"

    @property
    def remedies(self) -> tuple[str, ...]:
        """What to do, in words, the best first."""
        return tuple(REMEDIES[one].text if one in REMEDIES else one for one in self.remedy_ids)

    @property
    def code(self) -> tuple[str | None, ...]:
        """Each remedy as a line of Python, where it is one."""
        return tuple(REMEDIES[one].code if one in REMEDIES else None for one in self.remedy_ids)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types.

        Example:
          >>> evidence = {"dead": 0.5}
          >>> finding = Finding("dead_units", "warning", ("w",), evidence, "Dead.", ("leaky_relu",))
          >>> finding.to_dict()["remedies"], finding.to_dict()["code"]
          (['leaky_relu, whose slope is nowhere 0'], ['h = jax.nn.leaky_relu(h)'])
        """
        return {
            **dataclasses.asdict(self),
            "layers": list(self.layers),
            "evidence": json_value(dict(self.evidence)),
            "remedy_ids": list(self.remedy_ids),
            "remedies": list(self.remedies),
            "code": list(self.code),
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


def pick(names: tuple[str, ...], chosen: np.ndarray[Any, Any]) -> tuple[str, ...]:
    """The chosen names."""
    return tuple(name for name, one in zip(names, chosen, strict=True) if one)


def feeding(found: Iterable[tuple[tuple[str, ...], float]], above: float) -> tuple[str, ...]:
    """The names of the layers that feed what has a share above a limit, each once."""
    return tuple(dict.fromkeys(name for names, share in found if share > above for name in names))
