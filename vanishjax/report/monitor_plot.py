"""A monitored run as a figure: the loss, every layer's gradient over time, and its steps."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vanishjax.foreign import plot_text
from vanishjax.report.monitor_text import monitor_headline
from vanishjax.report.plots import OKABE_ITO, png_figure

__all__ = ["plot_monitor"]

# A healthy network should look calm: its one or two decades are not stretched over all colors.
_LEAST_DECADES = 6.0
_MOST_DECADES = 20.0
_HEALTHY_RATIO = 1e-3
_MOST_COLUMNS = 600
_MOST_NAMES = 26
_LONGEST_TITLE = 200
_LONGEST_NAME = 60


def plot_monitor(
    record: Mapping[str, Any], path: str | os.PathLike[str], caption: str = ""
) -> Path:
    """Draws the loss, the layers' gradients over time, and how far their steps take them.

    Args:
      record: `layers`, their names; `steps` and `loss`, one for each observation; `gradient_rms`
        and `update_ratio`, `[observations][layers]`; `final` and `findings`, as `monitor_summary`
        takes them.
      path: The PNG file to write.
      caption: The settings of the run.

    Returns:
      The path.

    Raises:
      ValueError: There is no observation.

    Example:
      >>> import tempfile
      >>> record = {"layers": ["a", "b"], "steps": [0, 16], "loss": [2.3, 1.9], "findings": [],
      ...           "gradient_rms": [[1e-9, 1.0], [1e-9, 0.5]],
      ...           "update_ratio": [[1e-3, 1e-3], [1e-3, 2e-3]],
      ...           "final": {"gradient_rms": [1e-9, 0.5], "update_ratio": [1e-3, 2e-3],
      ...                     "still_steps": [0, 0]}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     print(plot_monitor(record, Path(folder, "monitor.png")).name)
      monitor.png
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names, steps = record["layers"], np.asarray(record["steps"], np.float64)
    if not len(steps):
        raise ValueError("record has no observations to draw")
    gradients = np.asarray(record["gradient_rms"], np.float64)
    ratios = np.asarray(record["update_ratio"], np.float64)
    title = textwrap.shorten(monitor_headline(record), _LONGEST_TITLE, placeholder=" ...")
    height = 4.4 + 0.2 * min(len(names), _MOST_NAMES)
    with png_figure(path, 11, height, title=title, caption=caption) as figure:
        (loss, corner), (heat, profile) = figure.subplots(
            2, 2, width_ratios=[3, 1.6], height_ratios=[1.3, height - 2.6], sharex="col"
        )
        corner.axis("off")
        profile.sharey(heat)
        _loss(loss, steps, record["loss"])
        colors = _heat(heat, steps, gradients, names)
        # Beside both, so that loss and heat map keep the same steps above one another.
        bar = figure.colorbar(
            colors,
            ax=[loss, heat],
            fraction=0.03,
            pad=0.02,
            shrink=0.8,
            anchor=(0.0, 0.0),
            ticks=MaxNLocator(7, integer=True),
            format=FuncFormatter(lambda x, _: f"$10^{{{x:.0f}}}$"),
        )
        bar.outline.set_visible(False)
        _profile(profile, corner, ratios)
    return Path(path)


def _loss(axes: Any, steps: Any, values: Sequence[float]) -> None:
    loss = np.asarray(values, np.float64)
    finite = np.isfinite(loss)
    marker = "o" if finite.sum() <= 30 else ""
    axes.plot(steps, np.where(finite, loss, np.nan), color=OKABE_ITO["blue"], marker=marker, ms=3)
    if not finite.all():
        first = steps[(~finite).argmax()]
        axes.axvline(first, color=OKABE_ITO["vermilion"], ls="--", label="not finite from here")
        axes.legend(frameon=False, fontsize=9)
    seen = loss[finite]
    if seen.size and seen.min() > 0 and seen.max() > 10 * seen.min():
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.set_title("Loss of the observed batches", loc="left")
    axes.tick_params(labelbottom=False)
    axes.grid(visible=True)


def _heat(axes: Any, steps: Any, gradients: Any, names: Sequence[str]) -> Any:
    """Draws the map; returns its scale of colors."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    # Even columns, each with the last observation before it: some are further apart than others.
    end = steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)
    count = int(min(_MOST_COLUMNS, max(1, end - steps[0])))
    columns = np.searchsorted(steps, np.linspace(steps[0], end, count, endpoint=False), "right") - 1
    seen = gradients[columns].T
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(np.isfinite(seen), np.log10(seen), np.nan)
    known = logs[np.isfinite(logs)]
    top = math.ceil(known.max()) if known.size else 0
    span = math.ceil(top - known.min()) if known.size else 0
    bottom = top - min(max(span, _LEAST_DECADES), _MOST_DECADES)
    norm = Normalize(bottom, top)
    colors = colormaps["cividis"]
    pixels = colors(norm(np.where(np.isfinite(logs), logs, bottom)))
    patches = []
    for mask, name, label in (
        (seen == 0, "sky_blue", "exactly zero"),
        (~np.isfinite(seen), "vermilion", "not finite"),
    ):
        if mask.any():
            color = OKABE_ITO[name]
            pixels[mask, :3] = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            patches.append(Patch(color=color, label=label))
    axes.imshow(
        pixels,
        aspect="auto",
        interpolation="nearest" if len(names) <= 200 else "antialiased",
        extent=(steps[0], end, len(names) - 0.5, -0.5),
    )
    if patches:
        axes.legend(handles=patches, loc="lower right", fontsize=8)
    stride = math.ceil(len(names) / _MOST_NAMES)
    shown = [plot_text(name, _LONGEST_NAME) for name in names[::stride]]
    axes.set_yticks(range(0, len(names), stride), shown, fontsize=8)
    axes.set_ylabel("layer, from input (top) to output")
    axes.set_xlabel("training step")
    axes.set_title("Every layer's gradient, root mean square", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ScalarMappable(norm, colors)


def _profile(axes: Any, corner: Any, ratios: Any) -> None:
    """Of every layer the middle half of its update ratios, and the last one."""
    rows = np.arange(ratios.shape[1])
    low, middle, high = (
        np.array([_quantile(column, share) for column in ratios.T]) for share in (0.25, 0.5, 0.75)
    )
    axes.set_xscale("log")
    if np.ptp([_HEALTHY_RATIO, *middle[np.isfinite(middle)]]) == 0:
        axes.set_xlim(_HEALTHY_RATIO / 10, _HEALTHY_RATIO * 10)
    usual = axes.axvline(_HEALTHY_RATIO, color=OKABE_ITO["vermilion"], ls="--", lw=1.5)
    half = axes.hlines(rows, low, high, color=OKABE_ITO["sky_blue"], lw=4)
    (median,) = axes.plot(middle, rows, "|", color=OKABE_ITO["blue"], ms=8, mew=2)
    last = np.where(ratios[-1] > 0, ratios[-1], np.nan)
    (end,) = axes.plot(last, rows, "o", color=OKABE_ITO["black"], ms=4)
    corner.legend(
        [usual, half, median, end],
        ["1e-3, the rule of thumb", "middle half of the run", "its median", "at the end"],
        loc="lower left",
        frameon=False,
        fontsize=9,
    )
    axes.tick_params(labelleft=False)
    axes.set_xlabel("update / weight")
    axes.set_title("How far a step takes a layer", loc="left")
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _quantile(values: Any, share: float) -> float:
    known = values[np.isfinite(values) & (values > 0)]
    return float(np.quantile(known, share)) if known.size else math.nan
