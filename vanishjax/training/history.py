"""Learning curves: what a run measured, epoch by epoch."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class History:
    """The curves of a run; a new epoch gives a new history.

    Attributes:
      records: One mapping an epoch, from a quantity's name to its value; all have the same names.
        "epoch" counts from 1, "seconds" is the epoch's own time.
      interrupted: Whether the run was stopped before the end of its last epoch.
      signal: The number of the signal that asked for the end, 2 for Ctrl-C; 0 if none did.

    Example:
      >>> history = History().add({"epoch": 1, "loss": 2.0}).add({"epoch": 2, "loss": 1.0})
      >>> history.to_dict()
      {'epoch': [1, 2], 'loss': [2.0, 1.0]}
      >>> history.last["loss"]
      1.0
    """

    records: tuple[Mapping[str, float], ...] = ()
    interrupted: bool = False
    signal: int = 0

    def add(self, record: Mapping[str, float]) -> "History":
        """This history and one more epoch."""
        return dataclasses.replace(self, records=(*self.records, dict(record)))

    @property
    def last(self) -> Mapping[str, float]:
        """The last epoch's values; empty before the first."""
        return self.records[-1] if self.records else {}

    def to_dict(self) -> dict[str, list[float]]:
        """Name -> values, epoch by epoch; what plots and JSON take."""
        return {name: [record[name] for record in self.records] for name in self.last}
