"""What a run that is monitored keeps, shows while it trains, and says at its end."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from vanishjax.health import Health
    from vanishjax.layers import Layers
    from vanishjax.report import EventFile

# Above this, every other observation is dropped: memory stays bounded, and no figure shows more.
MOST_OBSERVATIONS = 1025
# Redraws a second: more only flicker.
_REDRAW_SECONDS = 0.1
# Columns of the heat row in a log, where no terminal tells how wide it is.
_LOG_COLUMNS = 32


def open_events(folder: str, overwrite: bool, resume: bool = False) -> EventFile:
    """An event file for TensorBoard in a folder of its own.

    Args:
      folder: Made if it doesn't exist.
      overwrite: Whether event files that are there already may be replaced.
      resume: Whether those that are there are of the same run: they stay.

    Returns:
      The file, open.

    Raises:
      ValueError: tensorboardX is missing, the folder holds event files, or can't be written.
    """
    from vanishjax.report import EventFile

    older = [] if resume else list(Path(folder).glob("*.tfevents.*"))
    if older and not overwrite:
        # TensorBoard would draw both runs as one.
        raise ValueError(
            f"--tensorboard {folder}: already holds event files; name another folder, or pass "
            "--overwrite to replace them"
        )
    try:
        for path in older:
            path.unlink()
        return EventFile(folder)
    except FileExistsError as error:
        raise ValueError(f"--tensorboard {folder}: is a file; name a folder") from error
    except OSError as error:
        raise ValueError(
            f"--tensorboard {folder}: can't write there ({error.strerror}); name another folder"
        ) from error


class Observer:
    """Takes a run's observations in; a context in which they are shown on a terminal.

    Args:
      console: Where to show them; lines go to it anyway.
      layers: The layers that the monitor has.
      sizes: `[layers]`, the number of parameters of each.
      every: Steps from one observation to the next.
      steps: Steps of the whole run.
      events: Gets them as scalars, if there is one; closed at the end.
    """

    def __init__(
        self,
        console: Console,
        layers: Layers,
        sizes: Any,
        every: int,
        steps: int,
        events: EventFile | None = None,
    ) -> None:
        self._console, self._events = console, events
        self._names, self._roots = layers.names, np.sqrt(np.asarray(sizes, np.float64))
        self.every, self._steps = every, steps
        self._healths: list[Health] = []
        self._live: Any = None
        self._drawn = 0.0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._events is not None:
            self._stack.enter_context(self._events)
        if self._console.is_interactive:
            from rich.live import Live

            live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live = None
        self._stack.close()

    def take(self, seen: tuple[Any, Any]) -> None:
        """Takes the steps done and the `Health` after each of them: arrays `[steps, ...]`."""
        done, stacked = seen
        before = int(self._healths[-1].step) if self._healths else -1
        for row in np.flatnonzero(np.diff(stacked.step, prepend=before)):
            # Copies: a view would keep the steps between alive, too.
            health = type(stacked)(*(np.array(field[row]) for field in stacked))
            self._healths.append(health)
            if self._events is not None:
                self._events.add(int(health.step), self._scalars(health))
        if len(self._healths) >= MOST_OBSERVATIONS:
            self._healths = _thinned(self._healths)
        if self._live is not None and self._healths:
            now = time.monotonic()
            if now >= self._drawn + _REDRAW_SECONDS or done[-1] == self._steps:
                self._drawn = now
                self._live.update(self._panel(int(done[-1])), refresh=True)

    def arrays(self) -> dict[str, Any]:
        """All that was taken in, as arrays `[observations, ...]` by name; none before the first."""
        if not self._healths:
            return {}
        fields = type(self._healths[0])._fields
        return {
            name: np.stack([np.asarray(getattr(health, name)) for health in self._healths])
            for name in fields
        }

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Takes back what `arrays` gave, in place of what was taken in since."""
        from vanishjax.health import Health

        count = len(arrays["step"]) if arrays else 0
        self._healths = [
            Health(**{name: np.array(arrays[name][row]) for name in Health._fields})  # type: ignore[arg-type]
            for row in range(count)
        ]

    def line(self) -> str:
        """The last observation as part of a line; nothing where a terminal shows it anyway."""
        if self._live is not None or not self._healths:
            return ""
        from rich.text import Text

        rms = self._rms(self._healths[-1])
        return Text.assemble("  gradients ", self._row(rms, _LOG_COLUMNS)).plain + (
            f"  weakest {self._weakest(rms)}"
        )

    def result(self) -> dict[str, Any]:
        """Everything to save: JSON types, NaN and infinity apart."""
        from vanishjax.health import assess

        last = self._healths[-1]
        final = {name: np.asarray(field).tolist() for name, field in last._asdict().items()}
        return {
            "every": self.every,
            "layers": list(self._names),
            "steps": [int(health.step) for health in self._healths],
            "final": {**final, "gradient_rms": self._rms(last).tolist()},
            "findings": [finding.to_dict() for finding in assess(self._healths, self._names)],
        }

    def course(self) -> dict[str, Any]:
        """What a figure needs beyond `result`."""
        return {
            "loss": [float(health.loss) for health in self._healths],
            "gradient_rms": np.stack([self._rms(health) for health in self._healths]),
            "update_ratio": np.stack([health.update_ratio for health in self._healths]),
        }

    def _rms(self, health: Health) -> Any:
        return np.asarray(health.gradient_norm, np.float64) / self._roots

    def _row(self, rms: Any, columns: int) -> Any:
        from vanishjax.report import heat_row

        return heat_row(rms, columns, ascii_only=self._console.options.ascii_only)

    def _weakest(self, rms: Any) -> str:
        from vanishjax.report import weakest_layer

        return weakest_layer(self._names, rms)

    def _panel(self, done: int) -> Any:
        from rich.text import Text

        rms = self._rms(self._healths[-1])
        status = (
            f"step {done:,}/{self._steps:,}  loss {self._healths[-1].loss:.4g}  "
            f"weakest {self._weakest(rms)}"
        )
        ends = "input ", " output"
        row = self._row(rms, self._console.width - sum(map(len, ends)))
        rows = Text("\n").join([Text(status), Text.assemble(ends[0], row, ends[1])])
        rows.no_wrap, rows.overflow = True, "ellipsis"
        return rows

    def _scalars(self, health: Health) -> Mapping[str, float]:
        scalars = {"loss": float(health.loss)}
        for quantity in ("gradient_norm", "update_ratio", "effectiveness"):
            values = getattr(health, quantity).tolist()
            pairs = zip(self._names, values, strict=True)
            scalars |= {f"{quantity}/{name}": value for name, value in pairs}
        return scalars


def _thinned(healths: Sequence[Health]) -> list[Health]:
    """The first, and of every two that follow the second, or the first if only that is broken."""

    def broken(health: Health) -> bool:
        norms = health.gradient_norm + health.update_norm + health.param_norm
        return not np.isfinite(norms).all()

    pairs = itertools.zip_longest(healths[1::2], healths[2::2])
    kept = [a if b is None or (broken(a) and not broken(b)) else b for a, b in pairs]
    return [healths[0], *kept]
