"""Figures as PNG files, readable in print and beside dark text: white ground, safe colours."""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["OKABE_ITO", "learning_curves", "png_figure", "trainable_depth"]

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
"""Eight colours that people of every colour vision tell apart (Okabe and Ito, 2008)."""

_INK = "#1a1a1a"
_MUTED = "#555555"
_STYLE = {
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#dddddd",
    "text.color": _INK,
    "xtick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": _MUTED,
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
      title: What one sees, above the axes.
      caption: The settings, below the axes, wrapped to the width.

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
            wrapped = textwrap.fill(title, int(characters * 0.72))
            figure.suptitle(wrapped, x=0.012, ha="left", fontsize=13, fontweight="bold")
        if caption:
            wrapped = textwrap.fill(caption, characters)
            figure.supxlabel(wrapped, x=0.012, ha="left", fontsize=8, color=_MUTED)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            figure.savefig(temporary, format="png")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


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


def trainable_depth(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws test accuracy by optimizer and depth, with a line at the deepest depth that trains.

    Args:
      result: What ``vanishjax compare`` found: ``settings``, ``cells`` and ``trainable_depth``.
      path: The PNG file to write.

    Raises:
      ValueError: If there are no cells.

    Example:
      >>> import pathlib, tempfile
      >>> cell = {"optimizer": "adam", "depth": 2, "test_accuracy": [0.9, 0.92]}
      >>> result = {"settings": {"trainable_accuracy": 0.5, "classes": 10}, "cells": [cell],
      ...           "trainable_depth": {"adam": 2}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     trainable_depth(result, pathlib.Path(folder, "depth.png"))
      ...     os.listdir(folder)
      ['depth.png']
    """
    if not result["cells"]:
        raise ValueError("result has no cells to draw: compare at least one optimizer and depth")
    settings, deepest = result["settings"], result["trainable_depth"]
    accuracies = {
        (cell["optimizer"], cell["depth"]): [
            math.nan if value is None else 100 * value for value in cell["test_accuracy"]
        ]
        for cell in result["cells"]
    }
    depths = sorted({depth for _, depth in accuracies})
    # The deepest first, so that the line is a staircase; ties in the order of the comparison.
    names = sorted(dict.fromkeys(name for name, _ in accuracies), key=lambda n: -deepest.get(n, 0))
    means = np.array([[np.mean(accuracies.get((n, d), [math.nan])) for d in depths] for n in names])

    title = f"How deep each optimizer trains {settings.get('activation', '')} networks"
    size = (max(6.5, 2.6 + 0.8 * len(depths)), 2.1 + 0.55 * len(names))
    with png_figure(path, *size, " ".join(title.split()), _depth_caption(settings)) as figure:
        axis = figure.subplots()
        axis.set_facecolor("#eeeeee")
        image = axis.imshow(means, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, name in enumerate(names):
            for column, depth in enumerate(depths):
                _write_cell(axis, column, row, accuracies.get((name, depth)), image)
        _draw_staircase(axis, [_columns_within(depths, deepest.get(name, 0)) for name in names])
        axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("depth (hidden layers)")
        axis.set_ylabel("optimizer")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
        bar.set_label("mean test accuracy (%)")
        bar.outline.set_visible(False)


def _best_epoch(history: Mapping[str, Sequence[float]], score: str | None) -> int | None:
    """Index of the best epoch, None if nothing in the deciding list is finite."""
    candidates = [f"validation_{score}", "validation_loss", f"{score}", "loss"]
    name = next(n for n in candidates if n in history)
    sign = -1.0 if name.endswith("accuracy") else 1.0
    values = sign * np.asarray(history[name], np.float64)
    values = np.where(np.isfinite(values), values, np.inf)
    return int(values.argmin()) if np.isfinite(values).any() else None


def _draw_curve(
    axis: Any, history: Mapping[str, Sequence[float]], name: str, best: int | None
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = history["epoch"]
    label = name.replace("_", " ")
    marker = "o" if len(epochs) <= 30 else ""
    shown = []
    for key, colour, dashes, who in (
        (name, OKABE_ITO["blue"], "-", "training"),
        (f"validation_{name}", OKABE_ITO["vermilion"], "--", "validation"),
    ):
        if key in history:
            values = np.asarray(history[key], np.float64)
            shown.append(values)
            axis.plot(epochs, values, dashes, color=colour, marker=marker, ms=4, lw=2, label=who)
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    if best is not None:
        value = shown[-1][best]
        axis.axvline(epochs[best], color=_MUTED, lw=1, ls=":")
        text = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"
        axis.plot([], [], ":", color=_MUTED, lw=1, label=f"best epoch {epochs[best]}: {text}")
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


def _depth_caption(settings: Mapping[str, Any]) -> str:
    words = [
        f"{label} {settings[key]}"
        for key, label in (
            ("data", "Data"),
            ("width", "width"),
            ("epochs", "epochs"),
            ("batch_size", "batch size"),
        )
        if key in settings
    ]
    if "seeds" in settings:
        count = len(settings["seeds"])
        words.append("one seed" if count == 1 else f"mean ± standard deviation over {count} seeds")
    threshold = 100 * settings["trainable_accuracy"]
    caption = f"{', '.join(words)}. " if words else ""
    caption += f"Orange line: deepest depth that reaches {threshold:.3g} %."
    if settings.get("classes"):
        caption += f" Chance is {100 / settings['classes']:.3g} %."
    return caption


def _write_cell(axis: Any, x: int, y: int, accuracies: Sequence[float] | None, image: Any) -> None:
    if accuracies is None:
        axis.text(x, y, "not run", ha="center", va="center", fontsize=8, color=_MUTED)
        return
    mean = float(np.mean(accuracies))
    if not math.isfinite(mean):
        axis.text(x, y, "diverged", ha="center", va="center", fontsize=8, color=_MUTED)
        return
    luminance = np.dot([0.2126, 0.7152, 0.0722], np.power(image.cmap(image.norm(mean))[:3], 2.2))
    # Black and white stand out equally well from a ground of this luminance (WCAG 2).
    colour = "white" if luminance < 0.179 else "black"
    spread = f"±{np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
    axis.text(
        x,
        y - 0.12 * bool(spread),
        f"{mean:.1f}",
        ha="center",
        va="center",
        color=colour,
    )
    axis.text(x, y + 0.24, spread, ha="center", va="center", color=colour, fontsize=7)


def _columns_within(depths: Sequence[int], deepest: int) -> int:
    return sum(depth <= deepest for depth in depths)


def _draw_staircase(axis: Any, columns: Sequence[int]) -> None:
    """Draws the step line right of the first `columns[row]` cells of every row."""
    x = np.repeat(columns, 2) - 0.5
    y = np.repeat(np.arange(len(columns) + 1), 2)[1:-1] - 0.5
    for colour, width in (("white", 5.0), (OKABE_ITO["vermilion"], 2.8)):
        axis.plot(x, y, color=colour, lw=width, clip_on=False, solid_joinstyle="miter", zorder=5)
