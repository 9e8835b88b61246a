"""Test accuracy by optimizer and depth, as a map: what trains how deep."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vanishjax.foreign import plot_text
from vanishjax.report.plots import MUTED, OKABE_ITO, png_figure

__all__ = [
    "columns_within",
    "depth_caption",
    "draw_cells",
    "draw_staircase",
    "percentages",
    "trainable_depth",
]

Accuracies = Mapping[tuple[str, int], Sequence[float]]


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
    accuracies = percentages(result["cells"])
    depths = sorted({depth for _, depth in accuracies})
    # The deepest first, so that the line is a staircase; ties in the order of the comparison.
    names = sorted(dict.fromkeys(name for name, _ in accuracies), key=lambda n: -deepest.get(n, 0))

    title = f"How deep each optimizer trains {settings.get('activation', '')} networks"
    size = (max(6.5, 2.6 + 0.8 * len(depths)), 2.1 + 0.55 * len(names))
    with png_figure(path, *size, " ".join(title.split()), depth_caption(settings)) as figure:
        axis = figure.subplots()
        image = draw_cells(axis, accuracies, names, depths)
        draw_staircase(axis, [columns_within(depths, deepest.get(name, 0)) for name in names])
        axis.set_xlabel("depth (hidden layers)")
        axis.set_ylabel("optimizer")
        bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
        bar.set_label("mean test accuracy (%)")
        bar.outline.set_visible(False)


def percentages(cells: Sequence[Mapping[str, Any]]) -> Accuracies:
    """Every seed's test accuracy by optimizer and depth, in percent; NaN where it diverged."""
    return {
        (cell["optimizer"], cell["depth"]): [
            math.nan if value is None else 100 * value for value in cell["test_accuracy"]
        ]
        for cell in cells
    }


def draw_cells(
    axis: Any, accuracies: Accuracies, names: Sequence[str], depths: Sequence[int]
) -> Any:
    """Draws a row of colored cells for every name, a number in each.

    Args:
      axis: What to draw on.
      accuracies: In percent, one a seed; a pair that isn't there wasn't run.
      names: The rows, from the top.
      depths: The columns.

    Returns:
      The image, for a color bar.
    """
    means = np.array([[np.mean(accuracies.get((n, d), [math.nan])) for d in depths] for n in names])
    axis.set_facecolor("#eeeeee")
    image = axis.imshow(means, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, name in enumerate(names):
        for column, depth in enumerate(depths):
            _write_cell(axis, column, row, accuracies.get((name, depth)), image)
    axis.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axis.set_yticks(range(len(names)), [plot_text(name, 40) for name in names])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def columns_within(depths: Sequence[int], deepest: int) -> int:
    """How many of the depths are at most the deepest."""
    return sum(depth <= deepest for depth in depths)


def draw_staircase(axis: Any, columns: Sequence[int]) -> None:
    """Draws the step line right of the first `columns[row]` cells of every row."""
    x = np.repeat(columns, 2) - 0.5
    y = np.repeat(np.arange(len(columns) + 1), 2)[1:-1] - 0.5
    for color, width in (("white", 5.0), (OKABE_ITO["vermilion"], 2.8)):
        axis.plot(x, y, color=color, lw=width, clip_on=False, solid_joinstyle="miter", zorder=5)


def depth_caption(settings: Mapping[str, Any]) -> str:
    """The settings in words, and what the orange line is."""
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
    if "hidden" in settings:
        words.insert(1, f"hidden layers {','.join(map(str, settings['hidden']))}")
    if "seeds" in settings:
        count = len(settings["seeds"])
        words.append("one seed" if count == 1 else f"mean ± standard deviation over {count} seeds")
    if settings.get("decay"):
        words.append("decaying learning rate")
    threshold = 100 * settings["trainable_accuracy"]
    caption = f"{', '.join(words)}. " if words else ""
    caption += f"Orange line: deepest depth that reaches {threshold:.3g} %."
    if settings.get("classes"):
        caption += f" Chance is {100 / settings['classes']:.3g} %."
    return caption


def _write_cell(axis: Any, x: int, y: int, accuracies: Sequence[float] | None, image: Any) -> None:
    if accuracies is None:
        axis.text(x, y, "not run", ha="center", va="center", fontsize=8, color=MUTED)
        return
    mean = float(np.mean(accuracies))
    if not math.isfinite(mean):
        axis.text(x, y, "diverged", ha="center", va="center", fontsize=8, color=MUTED)
        return
    luminance = np.dot([0.2126, 0.7152, 0.0722], np.power(image.cmap(image.norm(mean))[:3], 2.2))
    # Black and white stand out equally well from a ground of this luminance (WCAG 2).
    color = "white" if luminance < 0.179 else "black"
    spread = f"±{np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
    axis.text(
        x,
        y - 0.12 * bool(spread),
        f"{mean:.1f}",
        ha="center",
        va="center",
        color=color,
    )
    axis.text(x, y + 0.24, spread, ha="center", va="center", color=color, fontsize=7)
