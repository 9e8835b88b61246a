"""Text for a terminal: tables, summaries and one progress line an epoch."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from vanishjax.foreign import printable

__all__ = ["compare_summary", "compare_table", "epoch_line", "probability_table"]

_BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


def compare_table(result: Mapping[str, Any]) -> Table:
    """Shows a comparison of optimizers, a row for each optimizer and depth.

    Args:
      result: What ``vanishjax compare`` found: ``settings``, ``cells`` and ``trainable_depth``.

    Returns:
      A table of the best learning rate, validation and test accuracy in percent (mean ± standard
      deviation over seeds), the rms of the first and the last layer's gradient at initialization,
      and a verdict in words and color: "trains", "starves" or "diverges", with the number of
      seeds that train where they disagree.

    Example:
      >>> from rich.console import Console
      >>> cell = {"optimizer": "adam", "depth": 2, "learning_rate": 0.003,
      ...         "validation_accuracy": [0.9, 0.92], "test_accuracy": [0.91, 0.93],
      ...         "first_layer_gradient": 1e-3, "last_layer_gradient": 1e-2}
      >>> result = {"settings": {"trainable_accuracy": 0.5}, "cells": [cell],
      ...           "trainable_depth": {"adam": 2}}
      >>> Console(width=80).print(compare_table(result))
                               validation        test    gradient
      optimizer  depth   rate           %           %  first/last  ratio  verdict
      ───────────────────────────────────────────────────────────────────────────
      adam           2  0.003  91.0 ± 1.4  92.0 ± 1.4   1e-3/1e-2   1e-1  trains
    """
    settings = result["settings"]
    table = Table(
        title=Text(settings_line(settings), style="bold"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("\noptimizer", no_wrap=True)
    for header in (
        "\ndepth",
        "\nrate",
        "validation\n%",
        "test\n%",
        "gradient\nfirst/last",
        "\nratio",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("\nverdict")
    previous = None
    for cell in result["cells"]:
        if previous not in (None, cell["optimizer"]):
            table.add_section()
        previous = cell["optimizer"]
        first, last = cell["first_layer_gradient"], cell["last_layer_gradient"]
        table.add_row(
            Text(printable(cell["optimizer"])),
            str(cell["depth"]),
            f"{cell['learning_rate']:g}",
            _mean_and_sd(cell["validation_accuracy"]),
            _mean_and_sd(cell["test_accuracy"]),
            f"{_scientific(first)}/{_scientific(last)}",
            _scientific(_ratio(first, last)),
            _verdict(cell["test_accuracy"], settings["trainable_accuracy"]),
        )
    return table


def compare_summary(result: Mapping[str, Any]) -> str:
    """Says in plain English how deep each optimizer trains and what to try next.

    Args:
      result: What ``vanishjax compare`` found: ``settings``, ``cells`` and ``trainable_depth``.

    Returns:
      A few lines of text.

    Example:
      >>> cell = {"optimizer": "adam", "depth": 8, "test_accuracy": [0.1],
      ...         "first_layer_gradient": 1e-12, "last_layer_gradient": 1e-2}
      >>> print(compare_summary({"settings": {"trainable_accuracy": 0.5, "classes": 10},
      ...                        "cells": [cell], "trainable_depth": {"adam": 0}}))
      Deepest network trained to a mean test accuracy of 50 % (chance is 10 %):
        adam  none of the depths tried (8)
      At depth 8 the first layer's gradient starts at 1e-10 of the last layer's: it vanishes.
      Next: compare at depth 8 with `--activation relu` or `--residual rezero`.
    """
    settings, cells, deepest = result["settings"], result["cells"], result["trainable_depth"]
    depths = sorted({cell["depth"] for cell in cells})
    chance = f" (chance is {100 / settings['classes']:.3g} %)" if settings.get("classes") else ""
    lines = [
        f"Deepest network trained to a mean test accuracy of "
        f"{100 * settings['trainable_accuracy']:.3g} %{chance}:"
    ]
    width = max(map(len, deepest))
    for name, depth in sorted(deepest.items(), key=lambda item: (-item[1], item[0])):
        if depth == 0:
            reached = f"none of the depths tried ({', '.join(map(str, depths))})"
        else:
            reached = f"depth {depth}" + (", the deepest tried" if depth == depths[-1] else "")
        lines.append(f"  {name:<{width}}  {reached}")

    beyond = [depth for depth in depths if depth > max(deepest.values())]
    if not beyond:
        best = ", ".join(name for name, depth in deepest.items() if depth == depths[-1])
        deeper = f"{2 * depths[-1]},{4 * depths[-1]}"
        lines.append(f"Next: compare with `--depths {deeper}`; {best} trained every depth tried.")
        return "\n".join(lines)
    failing = beyond[0]
    cell = next(cell for cell in cells if cell["depth"] == failing)
    ratio = _ratio(cell["first_layer_gradient"], cell["last_layer_gradient"])
    if ratio < 1e-3:
        story = "it vanishes."
    elif ratio > 1e3:
        story = "it explodes."
    else:
        story = "its size is not the trouble."
    lines.append(
        f"At depth {failing} the first layer's gradient starts at {_scientific(ratio)} of the "
        f"last layer's: {story}"
    )
    lines.append(f"Next: {_next_step(settings, deepest, failing)}.")
    return "\n".join(lines)


def epoch_line(
    epoch: int,
    epochs: int,
    metrics: Mapping[str, float],
    steps_per_second: float,
    remaining_seconds: float,
) -> str:
    """Says how an epoch went in one line.

    Args:
      epoch: Number of the epoch, from 1.
      epochs: Number of epochs.
      metrics: Values by name, in the order to show them.
      steps_per_second: Training speed.
      remaining_seconds: Estimate of the time left; left out if not finite.

    Returns:
      A line without a line break.

    Example:
      >>> epoch_line(2, 5, {"loss": 0.22134, "validation_accuracy": 0.9467}, 3091.2, 42.0)
      'epoch 2/5  loss 0.2213  validation accuracy 0.9467  3,091 steps/s  left 0:42'
    """
    parts = [f"epoch {epoch:{len(str(epochs))}}/{epochs}"]
    parts += [
        f"{printable(name).replace('_', ' ')} {_number(value)}" for name, value in metrics.items()
    ]
    parts.append(f"{steps_per_second:,.{0 if steps_per_second >= 10 else 1}f} steps/s")
    if math.isfinite(remaining_seconds):
        minutes, seconds = divmod(round(remaining_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(
            f"left {hours}:{minutes:02}:{seconds:02}" if hours else f"left {minutes}:{seconds:02}"
        )
    return "  ".join(parts)


def probability_table(
    probabilities: Any,
    class_names: Sequence[str] | None = None,
) -> Table:
    """Shows predicted class probabilities as bars.

    Args:
      probabilities: ``[classes]`` or ``[inputs, classes]``. One input gives a row for each
        class; several give a row for each input, with its likeliest class and the runner-up.
      class_names: Names of the classes; their indices if None.

    Returns:
      A table with the likeliest class of every input.

    Raises:
      ValueError: If the shape is another one or the names don't match the classes.

    Example:
      >>> from rich.console import Console
      >>> Console(width=60).print(probability_table([0.25, 0.75], ["cat", "dog"]))
      class   probability
      ────────────────────────────────────────────────────
      cat          25.0 %   ██████
      dog          75.0 %   ██████████████████   likeliest
    """
    rows = np.atleast_2d(np.asarray(probabilities, np.float64))
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(
            "probabilities must have shape [classes] or [inputs, classes], "
            f"got {list(np.shape(probabilities))}"
        )
    classes = rows.shape[1]
    given = map(str, range(classes)) if class_names is None else class_names
    names = [printable(name) for name in given]
    if len(names) != classes:
        raise ValueError(f"class_names has {len(names)} names for {classes} classes")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    if len(rows) == 1:
        for header in ("class", "probability", "", ""):
            table.add_column(header, justify="right" if header == "probability" else "left")
        top = int(rows[0].argmax())
        for i, probability in enumerate(rows[0]):
            mark = ("bold", "likeliest") if i == top else ("", "")
            table.add_row(
                Text(names[i]), _percent(probability), _bar(probability), mark[1], style=mark[0]
            )
        return table
    for header in ("input", "class", "probability", "", "runner-up"):
        table.add_column(header, justify="right" if header in ("input", "probability") else "left")
    for number, row in enumerate(rows):
        top, second = (*np.argsort(-row, kind="stable")[:2], None)[:2]
        runner_up = "" if second is None else f"{names[second]} {_percent(row[second])}"
        table.add_row(
            str(number), Text(names[top]), _percent(row[top]), _bar(row[top]), Text(runner_up)
        )
    return table


def _next_step(settings: Mapping[str, Any], deepest: Mapping[str, int], failing: int) -> str:
    untried = ["`--activation relu`"] if settings.get("activation") != "relu" else []
    untried += ["`--residual rezero`"] if settings.get("residual") is None else []
    steps = [f"compare at depth {failing} with {' or '.join(untried)}"] if untried else []
    deep = max(deepest.values())
    if deep:
        best = " or ".join(name for name, depth in deepest.items() if depth == deep)
        steps.append(f"train at depth {deep} with {best}")
    return ", or ".join(steps) or "compare shallower networks"


def settings_line(settings: Mapping[str, Any]) -> str:
    """The settings of a grid, in words."""
    words = [str(settings[key]) for key in ("data", "activation") if key in settings]
    if "hidden" in settings:
        words.append(f"hidden layers {','.join(map(str, settings['hidden']))}")
    words += [
        f"{name} {settings[key]}"
        for key, name in (("width", "width"), ("epochs", "epochs"), ("batch_size", "batch size"))
        if key in settings
    ]
    if "seeds" in settings:
        words.append(f"{len(settings['seeds'])} seed{'s' * (len(settings['seeds']) != 1)}")
    if settings.get("decay"):
        words.append("decaying rate")
    return printable(", ".join(words))


def _verdict(accuracies: Sequence[float | None], trainable: float) -> Text:
    values = _floats(accuracies)
    if not all(map(math.isfinite, values)):
        return Text.assemble(("diverges", "magenta"))
    trained = sum(value >= trainable for value in values)
    word = ("trains", "green") if statistics.fmean(values) >= trainable else ("starves", "red")
    return Text.assemble(word, f" {trained}/{len(values)}" if 0 < trained < len(values) else "")


def _mean_and_sd(fractions: Sequence[float | None]) -> str:
    values = [100 * value for value in _floats(fractions)]
    if not all(map(math.isfinite, values)):
        return "not finite"
    mean = f"{statistics.fmean(values):.1f}"
    if len(values) == 1:
        return mean
    deviation = statistics.stdev(values)
    return f"{mean} ± {deviation:.{0 if deviation >= 10 else 1}f}"


def _floats(values: Sequence[float | None]) -> list[float]:
    # JSON has no NaN: a diverged run arrives as null.
    return [math.nan if value is None else float(value) for value in values]


def _ratio(first: float, last: float) -> float:
    return first / last if last else (math.inf if first else math.nan)


def _scientific(value: float) -> str:
    return "0" if value == 0 else re.sub("e([-+])0", r"e\1", f"{value:.0e}")


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or not abs(value) < 1e-3 else f"{value:.2e}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _bar(fraction: float) -> str:
    full, eighths = (
        divmod(round(fraction * _BAR_WIDTH * 8), 8) if math.isfinite(fraction) else (0, 0)
    )
    return ("█" * full + _EIGHTHS[eighths]).rstrip()
