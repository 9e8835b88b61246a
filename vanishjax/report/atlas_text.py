"""The atlas for a terminal: how deep each optimizer trains which networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vanishjax.foreign import printable, printable_lines

__all__ = ["atlas_legend", "atlas_table"]


def atlas_table(result: Mapping[str, Any]) -> Table:
    """Shows the depth that each optimizer trains, a column for each kind of network.

    Args:
      result: What ``vanishjax atlas`` found: ``settings``, ``trainable_depth``,
        ``predicted_depth`` and ``reaches``.

    Returns:
      A table, below the measured depths those that the sum of ln chi predicts.

    Example:
      >>> from rich.console import Console
      >>> result = {
      ...     "settings": {"optimizers": ["adam"], "depths": [2, 8], "trainable_accuracy": 0.5},
      ...     "trainable_depth": {"sigmoid": {"lecun": {"adam": 2}, "he": {"adam": 8}}},
      ...     "predicted_depth": {"sigmoid": {"lecun": {"Adam": 2}, "he": {"Adam": 2}}},
      ...     "reaches": {"Adam": 30.0},
      ... }
      >>> Console(width=64).print(atlas_table(result))
                          sigmoid  sigmoid
      optimizer             lecun       he
      ────────────────────────────────────
      adam                      2       8+
      <BLANKLINE>
      predicted, 30 nats        2        2
    """
    settings, trained, predicted = (
        result[name] for name in ("settings", "trainable_depth", "predicted_depth")
    )
    kinds = [(activation, init) for activation, inits in trained.items() for init in inits]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    lines = max((init.count("_") for _, init in kinds), default=0)
    table.add_column("\n" * (lines + 1) + "optimizer", no_wrap=True)
    for activation, init in kinds:
        words = init.split("_")
        above = "\n" * (lines + 1 - len(words))
        table.add_column(
            Text(printable_lines("\n".join([above + activation, *words]))), justify="right"
        )
    deepest = max(settings["depths"])
    for name in settings["optimizers"]:
        depths = (trained[activation][init].get(name) for activation, init in kinds)
        table.add_row(Text(printable(name)), *(_shown(depth, deepest) for depth in depths))
    table.add_section()
    for who, reach in result["reaches"].items():
        depths = (predicted[activation][init].get(who) for activation, init in kinds)
        table.add_row(f"predicted, {reach:g} nats", *(_shown(depth, deepest) for depth in depths))
    return table


def atlas_legend(result: Mapping[str, Any]) -> str:
    """Says what the numbers of `atlas_table` are.

    Args:
      result: What ``vanishjax atlas`` found: ``settings`` and ``reaches``.

    Returns:
      Two lines.

    Example:
      >>> print(atlas_legend({"settings": {"trainable_accuracy": 0.5}, "reaches": {"Adam": 30.0}}))
      Deepest network trained to a mean test accuracy of 50 % (+: the deepest tried).
      Predicted: the deepest whose first gradient changes by at most 30 nats (Adam) on its way.
    """
    reaches = result["reaches"].items()
    within = " or ".join(f"{reach:g} nats ({who})" for who, reach in reaches)
    return (
        f"Deepest network trained to a mean test accuracy of "
        f"{100 * result['settings']['trainable_accuracy']:.3g} % (+: the deepest tried).\n"
        f"Predicted: the deepest whose first gradient changes by at most {within} on its way."
    )


def _shown(depth: int | None, deepest: int) -> str:
    if depth is None:
        return "not run"
    return f"{depth}+" if depth == deepest else str(depth or "none")
