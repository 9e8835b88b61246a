"""Figures as PNG files, readable in print and beside dark text: white ground, safe colors."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vanishjax.files import replacing
from vanishjax.foreign import plot_text

__all__ = ["MUTED", "OKABE_ITO", "learning_curves", "png_figure"]

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky_blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""Eight colors that people of every color vision tell apart (Okabe and Ito, 2008)."""

# More would leave no room for the axes.
_LONGEST_TITLE, _LONGEST_CAPTION = 300, 600

_INK = "#1a1a1a"
MUTED = "#555555"
"""What stands back: ticks, captions, lines that only help."""
_STYLE = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#dddddd",
    "text.color": _INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": _INK,
}


@contextlib.contextmanager
def png_figure(
    path: str | os.PathLike[str], width: float, height: float, title: str = "", caption: str = ""
) -> Iterator[Any]:
    """Hands out an empty figure and writes it to a PNG file when the block ends well.

    The file appears whole or not at all; a reader never sees half of it.

    Args:
      path: The file; its folder is made if it doesn't exist.
      width: Inches, 150 pixels each.
      height: Inches.
      title: What one sees, above the axes; no formulas.
      caption: The settings, below the axes, wrapped to the width; no formulas.

    Yields:
      A `matplotlib.figure.Figure` that lays its axes out by itself.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with png_figure(pathlib.Path(folder, "a.png"), 4, 3, title="A line") as figure:
      ...         _ = figure.subplots().plot([1, 2, 3])
      ...     sorted(os.listdir(folder))
      ['a.png']
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    # The user's own style sheet may write white on white.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        characters = int(width * 14)
        if title:
            wrapped = textwrap.fill(plot_text(title, _LONGEST_TITLE), int(characters * 0.72))
            figure.suptitle(wrapped, x=0.012, ha="left", fontsize=13, fontweight="bold")
        if caption:
            wrapped = textwrap.fill(plot_text(caption, _LONGEST_CAPTION), characters)
            figure.supxlabel(wrapped, x=0.012, ha="left", fontsize=8, color=MUTED)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def learning_curves(
    history: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    title: str,
    caption: str = "",
) -> None:
    """Draws loss and score by epoch, training beside validation, the best epoch marked.

    The best epoch is that of the best validation score, or where there is none of the least
    validation loss, score or loss, in this order.

    Args:
      history: Lists of one length: ``epoch``, ``loss`` and, where there are, ``accuracy`` or
        ``mean_absolute_error``, each also with ``validation_`` before its name.
      path: The PNG file to write.
      title: What one sees.
      caption: The settings of the run.

    Raises:
      ValueError: If ``epoch`` or ``loss`` is missing, or the lists are empty or of unequal length.

    Example:
      >>> import pathlib, tempfile
      >>> history = {"epoch": [1, 2], "loss": [2.3, 0.4], "accuracy": [0.1, 0.9]}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     learning_curves(history, pathlib.Path(folder, "curves.png"), "Adam learns digits")
      ...     os.listdir(folder)
      ['curves.png']
    """
    missing = [name for name in ("epoch", "loss") if name not in history]
    if missing:
        raise ValueError(
            f"history needs epoch and loss, but has no {' or '.join(missing)}: {sorted(history)}"
        )
    lengths = {name: len(values) for name, values in history.items()}
    if len(set(lengths.values())) > 1 or lengths["epoch"] == 0:
        raise ValueError(f"history needs lists of one length, at least 1, got {lengths}")
    score = next((n for n in ("accuracy", "mean_absolute_error") if n in history), None)
    best = _best_epoch(history, score)

    panels = ["loss"] if score is None else ["loss", score]
    with png_figure(path, 5 * len(panels), 4.2, title, caption) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, name in zip(axes, panels, strict=True):
            _draw_curve(axis, history, name, best)


def _best_epoch(
    history: Mapping[str, Sequence[float]], score: str | None
) -> tuple[int, str] | None:
    """Index of the best epoch and what decides, None if nothing in its list is finite."""
    candidates = [f"validation_{score}", "validation_loss", f"{score}", "loss"]
    name = next(n for n in candidates if n in history)
    sign = -1.0 if name.endswith("accuracy") else 1.0
    values = sign * np.asarray(history[name], np.float64)
    values = np.where(np.isfinite(values), values, np.inf)
    judge = name.removeprefix("validation_")
    return (int(values.argmin()), judge) if np.isfinite(values).any() else None


def _draw_curve(
    axis: Any, history: Mapping[str, Sequence[float]], name: str, best: tuple[int, str] | None
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = history["epoch"]
    label = name.replace("_", " ")
    marker = "o" if len(epochs) <= 30 else ""
    shown = []
    for key, color, dashes, who in (
        (name, OKABE_ITO["blue"], "-", "training"),
        (f"validation_{name}", OKABE_ITO["vermilion"], "--", "validation"),
    ):
        if key in history:
            values = np.asarray(history[key], np.float64)
            shown.append(values)
            axis.plot(epochs, values, dashes, color=color, marker=marker, ms=4, lw=2, label=who)
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    if best is not None:
        at, judge = best
        value = shown[-1][at]
        axis.axvline(epochs[at], color=MUTED, lw=1, ls=":")
        text = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"
        by = "" if judge == name else f", by {judge.replace('_', ' ')}"
        axis.plot([], [], ":", color=MUTED, lw=1, label=f"best epoch {epochs[at]}{by}: {text}")
    if name == "accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axis.set_yscale("log")
        label += " (log scale)"
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.grid(visible=True)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=9)
