"""The atlas as a picture: what was measured, and over it what theory predicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from vanishjax.foreign import plot_text
from vanishjax.report.depth_map import (
    columns_within,
    depth_caption,
    draw_cells,
    draw_staircase,
    percentages,
)
from vanishjax.report.plots import MUTED, OKABE_ITO, png_figure

__all__ = ["plot_atlas"]

# Of the legend on one line, in inches.
_LEGEND_WIDTH = 7.2

# Of the contours, by reach. Black on white shows on all of the map's colors.
_DASHES = ((0, (1, 1)), (0, (4, 1.5)))
_CONTOUR_WIDTH = 4.0


def plot_atlas(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws a map of test accuracy for every kind of network, with contours of the prediction.

    A panel has a row for each optimizer and a column for each depth. Above it stands the predicted
    sum of ln chi; lines go where it passes the optimizers' reaches.

    Args:
      result: What ``vanishjax atlas`` found: ``settings``, ``cells``, ``trainable_depth``,
        ``predicted_depth`` and ``reaches``.
      path: The PNG file to write.

    Raises:
      ValueError: If there are no cells.

    Example:
      >>> import pathlib, tempfile
      >>> cell = {"activation": "relu", "init": "he", "optimizer": "adam", "depth": 2,
      ...         "test_accuracy": [0.9, 0.92], "sum_log_chi": -0.7}
      >>> result = {
      ...     "settings": {"optimizers": ["adam"], "trainable_accuracy": 0.5}, "cells": [cell],
      ...     "trainable_depth": {"relu": {"he": {"adam": 2}}},
      ...     "predicted_depth": {"relu": {"he": {"Adam": 2}}}, "reaches": {"Adam": 30.0},
      ... }
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     plot_atlas(result, pathlib.Path(folder, "atlas.png"))
      ...     os.listdir(folder)
      ['atlas.png']
    """
    if not result["cells"]:
        raise ValueError("result has no cells to draw: measure at least one")
    settings = result["settings"]
    rows = list(result["trainable_depth"])
    columns = list(dict.fromkeys(init for row in rows for init in result["trainable_depth"][row]))
    names = settings["optimizers"]
    depths = sorted({cell["depth"] for cell in result["cells"]})
    width = max(6.5, 2.2 + len(columns) * (0.5 + max(2.2, 0.62 * len(depths))))
    row_height = 0.9 + 0.42 * len(names)
    legend_lines = 1 if width >= _LEGEND_WIDTH else 3
    legend_height = 0.25 * legend_lines
    height = 1.5 + legend_height + len(rows) * row_height
    title = "How deep each optimizer trains, measured and predicted"
    with png_figure(path, width, height, title, depth_caption(settings)) as figure:
        figure.get_layout_engine().set(wspace=0.05, hspace=0.05)
        heights = [legend_height, *(row_height for _ in rows)]
        places = figure.add_gridspec(len(rows) + 1, len(columns), height_ratios=heights)
        panels = []
        for y, activation in enumerate(rows):
            for x, init in enumerate(columns):
                axis = figure.add_subplot(places[y + 1, x])
                image = _draw_panel(axis, result, activation, init, names, depths)
                axis.set_title(plot_text(f"{activation}, {init}"), loc="left", fontsize=10)
                if x:
                    axis.set_yticklabels([])
                else:
                    _name_strip(axis)
                if y == len(rows) - 1:
                    axis.set_xlabel("depth (hidden layers)")
                panels.append(axis)
        bar = figure.colorbar(image, ax=panels, fraction=0.05, pad=0.02)
        bar.set_label("mean test accuracy (%)")
        bar.outline.set_visible(False)
        _draw_legend(figure, figure.add_subplot(places[0, :]), result, 3 // legend_lines)


def _draw_panel(
    axis: Any,
    result: Mapping[str, Any],
    activation: str,
    init: str,
    names: Sequence[str],
    depths: Sequence[int],
) -> Any:
    """The cells of one kind of network, and the lines between them."""
    kind = (activation, init)
    cells = [cell for cell in result["cells"] if (cell["activation"], cell["init"]) == kind]
    image = draw_cells(axis, percentages(cells), names, depths)
    deepest = result["trainable_depth"][activation].get(init, {})
    draw_staircase(axis, [columns_within(depths, deepest.get(name, 0)) for name in names])
    _draw_prediction(axis, {cell["depth"]: cell["sum_log_chi"] for cell in cells}, depths)
    predicted = result["predicted_depth"][activation].get(init, {})
    passed = [columns_within(depths, predicted.get(who, 0)) for who in result["reaches"]]
    for number, (column, dashes) in enumerate(zip(passed, _DASHES, strict=False)):
        # Where all is within reach nothing passes it.
        if cells and column < len(depths):
            # Beside the staircase and one another, which may stand at the same place.
            aside = _CONTOUR_WIDTH * (1 + number * (passed.count(column) > 1))
            _draw_contour(axis, column - 0.5, aside, dashes)
    return image


def _draw_prediction(axis: Any, sums: Mapping[int, float | None], depths: Sequence[int]) -> None:
    """Writes the sum of ln chi above every column."""
    strip = axis.secondary_xaxis("top")
    strip.set_xticks(range(len(depths)), [_nats(sums[d]) if d in sums else "" for d in depths])
    strip.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    strip.spines[:].set_visible(False)


def _name_strip(axis: Any) -> None:
    place = {"xytext": (-3, 4), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axis.annotate("sum of ln χ", (0, 1), xycoords="axes fraction", fontsize=8, color=MUTED, **place)


def _nats(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.0f}" if abs(value) >= 9.95 else f"{round(value, 1) + 0.0:.1f}"


def _draw_contour(axis: Any, x: float, aside: float, dashes: Any) -> None:
    from matplotlib.transforms import offset_copy

    place = offset_copy(axis.get_xaxis_transform(), axis.figure, aside, units="points")
    for color, width, style in (("white", _CONTOUR_WIDTH, "-"), ("black", 2.0, dashes)):
        axis.plot([x, x], [0, 1], color=color, lw=width, ls=style, transform=place, zorder=4)


def _draw_legend(figure: Any, axis: Any, result: Mapping[str, Any], columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.transforms import blended_transform_factory

    threshold = 100 * result["settings"]["trainable_accuracy"]
    lines = [Line2D([], [], color=OKABE_ITO["vermilion"], lw=2.8)]
    labels = [f"measured: {threshold:.3g} % accuracy"]
    for (who, reach), dashes in zip(result["reaches"].items(), _DASHES, strict=False):
        lines.append(Line2D([], [], color="black", lw=2, ls=dashes))
        labels.append(f"predicted: ±{reach:g} nats ({who})")
    axis.axis("off")
    # Under the title, wherever the panels begin.
    legend = axis.legend(
        lines,
        labels,
        loc="center left",
        bbox_to_anchor=(0.012, 0.5),
        bbox_transform=blended_transform_factory(figure.transFigure, axis.transAxes),
        borderaxespad=0.0,
        borderpad=0.0,
        ncols=columns,
        columnspacing=1.5,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
    )
    legend.set_in_layout(False)
