"""Where a run stands, the checkpoints that hold it, and how the next one goes on from there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vanishjax.training.checkpoint import (
    Notes,
    checkpoint_notes,
    checkpoint_steps,
    restore_checkpoint,
    save_checkpoint,
    whole_number,
)
from vanishjax.training.evaluation import Means
from vanishjax.training.history import History
from vanishjax.training.records import json_checksum, plain_json
from vanishjax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands beside its `TrainState`.

    Attributes:
      history: The epochs that are whole.
      means: Of the current epoch's steps so far; their number tells where in the data it stands.
      seconds: What the current epoch has taken so far.
      place: Where in its data the current epoch stands, where the data can tell; as JSON takes it.

    Example:
      >>> half = Position(History().add({"epoch": 1, "loss": 2.0}), Means(3, 12, {"loss": 18.0}))
      >>> Position.from_dict(half.to_dict()) == half
      True
    """

    history: History = dataclasses.field(default_factory=History)
    means: Means = dataclasses.field(default_factory=Means)
    seconds: float = 0.0
    place: Any = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; floats survive that bit for bit."""
        return {
            "records": [dict(record) for record in self.history.records],
            "means": self.means._asdict(),
            "seconds": self.seconds,
            "place": self.place,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Position:
        """What `to_dict` gave."""
        return cls(
            History(tuple(saved["records"])),
            Means(**saved["means"]),
            float(saved["seconds"]),
            saved.get("place"),
        )


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run: hand it to `fit`.

    A run that goes on from one ends with the same bits as one that was never interrupted.

    Attributes:
      folder: Where they lie.
      every: Steps from one to the next; None for one after every epoch. The run's end and Ctrl-C
        save too.
      keep: How many of the latest stay. The one with the least validation loss stays as well.
      resume: Whether to go on from the latest; without one, the run starts at its beginning.
      settings: What a run must share with the one it goes on from, by name: what `plain_json`
        takes, and kept as it gives it. `fit` adds the batch size, the key and checksums of the
        data; parameters and transform state are compared anyway.
      also: Gives arrays to be kept beside the state.
      on_resume: Gets the arrays of `also` when the run goes on from a checkpoint.

    Raises:
      ValueError: `every` or `keep` is below 1, or JSON can't hold a setting, which is named.

    Example:
      >>> import tempfile, optax, jax.numpy as jnp
      >>> from vanishjax.training import fit
      >>> loss_fn, tx = lambda w, batch: jnp.mean((w - batch) ** 2), optax.sgd(0.1)
      >>> def train(epochs, folder, resume=False):
      ...     state = TrainState.create(jnp.zeros(()), tx)
      ...     kept = Checkpoints(folder, resume=resume)
      ...     return fit(
      ...         loss_fn, tx, state, jnp.arange(6.0), epochs=epochs, batch_size=4, checkpoints=kept
      ...     )
      >>> with tempfile.TemporaryDirectory() as once, tempfile.TemporaryDirectory() as twice:
      ...     whole, _ = train(3, once)
      ...     _ = train(1, twice)
      ...     state, history = train(3, twice, resume=True)
      >>> bool(state.params == whole.params), history.to_dict()["epoch"]
      (True, [1, 2, 3])
    """

    folder: str | os.PathLike[str]
    every: int | None = None
    keep: int = 3
    resume: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    also: Callable[[], Mapping[str, Any]] | None = None
    on_resume: Callable[[Mapping[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if value is not None:
                whole_number(name, value, 1)
        # Now, as they will be read again: at the first checkpoint, work would be lost.
        object.__setattr__(self, "settings", plain_json(self.settings, "settings"))

    def due(self, steps: int, epoch_ended: bool) -> bool:
        """Whether it's time for the next one, so many steps after the last."""
        return epoch_ended if self.every is None else steps >= self.every

    def save(self, state: TrainState, position: Position) -> None:
        """Saves a state and where it stands, unless that step is saved already."""
        step = int(state.step)
        if step in checkpoint_steps(self.folder):
            return
        record = {"settings": self.settings, "position": position.to_dict()}
        arrays = {} if self.also is None else dict(self.also())
        between_epochs = not position.means.steps
        loss = position.history.last.get("validation_loss") if between_epochs else None
        notes = Notes(record, arrays)
        save_checkpoint(self.folder, state, step=step, keep=self.keep, loss=loss, notes=notes)

    def restore(self, state: TrainState) -> tuple[TrainState, Position]:
        """The latest state and where it stands; the given one if there is nothing to go on from.

        Raises:
          ValueError: There are checkpoints already but `resume` is false; they were made with
            other settings; or they hold another model or chain.
        """
        steps = checkpoint_steps(self.folder)
        if not steps:
            return state, Position()
        place = Path(self.folder)
        if not self.resume:
            raise ValueError(
                f"{place}: already holds checkpoints; go on from them with resume=True, or name "
                "another folder"
            )
        notes = checkpoint_notes(self.folder, step=steps[-1])
        try:
            position = Position.from_dict(notes.record["position"])
            settings = dict(notes.record["settings"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{place / str(steps[-1])}: no checkpoint of a run of fit") from None
        _check_settings(place, settings, self.settings)
        restored = restore_checkpoint(self.folder, state, step=steps[-1])
        if self.on_resume is not None:
            self.on_resume(notes.arrays)
        return restored, position


def key_numbers(key: jax.Array) -> list[int]:
    """A key as JSON takes it."""
    numbers: list[int] = np.ravel(jax.random.key_data(key)).tolist()
    return numbers


def _check_settings(place: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in {**asked, **saved}:
        was, now = saved.get(name), asked.get(name)
        # A NaN differs from itself, but not its text.
        if was != now and json_checksum(was) != json_checksum(now):
            raise ValueError(
                f"{place}: was saved with {name} {_shown(was)}, not {_shown(now)}; give what it "
                "was, or train in another folder"
            )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
