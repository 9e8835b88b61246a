"""What a monitor sees, as text: a heat row while training goes on, a few lines at the end."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from vanishjax.foreign import printable, printable_tree
from vanishjax.report.plots import OKABE_ITO
from vanishjax.report.verdict_text import layer_ranges

__all__ = ["heat_row", "monitor_headline", "monitor_summary", "weakest_layer"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "12345678"
_ZERO, _NOT_FINITE = "0", "!"
_WIDTH = 79


def heat_row(gradient_rms: Any, columns: int, *, ascii_only: bool = False) -> Text:
    """Shows in a row how large each layer's gradient is beside the largest.

    Args:
      gradient_rms: `[layers]`, from input to output.
      columns: Most characters; where there are more layers, each stands for its worst neighbor.
      ascii_only: Digits 8 to 1 instead of blocks.

    Returns:
      A character for a layer: a full block within a factor of ten of the largest, an eighth less
      for every factor of ten below, "0" where the gradient is zero and "!" where it isn't finite;
      colored from blue (largest) to vermilion.

    Example:
      >>> print(heat_row([0.0, 2e-9, 3e-4, 0.5, float("nan")], 80))
      0▁▅█!
    """
    blocks = _ASCII if ascii_only else _BLOCKS
    row = Text(no_wrap=True)
    for decades in _pooled(_decades_below(gradient_rms), columns):
        if math.isnan(decades):
            row.append(_NOT_FINITE, style=f"bold {OKABE_ITO['vermilion']}")
        elif decades == math.inf:
            row.append(_ZERO, style=f"bold {OKABE_ITO['vermilion']}")
        else:
            level = max(0, len(blocks) - 1 - int(decades))
            row.append(blocks[level], style=_color(level / (len(blocks) - 1)))
    return row


def weakest_layer(names: Sequence[str], gradient_rms: Any) -> str:
    """Names the layer with the least gradient, or the first whose gradient isn't finite.

    Args:
      names: The layers, from input to output.
      gradient_rms: `[layers]`.

    Returns:
      Its name and how it stands beside the largest.

    Example:
      >>> weakest_layer(["a", "b"], [3e-9, 1.0])
      'a: 3e-09 of the largest'
    """
    decades = _decades_below(gradient_rms)
    if np.isnan(decades).any():
        return f"{printable(names[int(np.isnan(decades).argmax())])}: not finite"
    worst = int(decades.argmax())
    name = printable(names[worst])
    if decades[worst] == math.inf:
        return f"{name}: zero"
    return f"{name}: {10 ** -decades[worst]:.0e} of the largest"


def monitor_summary(record: Mapping[str, Any]) -> str:
    """Says in a few lines how the layers fared in training.

    Args:
      record: `layers`, their names; `final`, the last observation with
        `gradient_rms`, `update_ratio` and `still_steps`; `findings`, as dicts, the worst first.

    Returns:
      The findings, each with its first remedy, or that there are none; then the weakest layer.

    Example:
      >>> final = {"gradient_rms": [0.1, 0.2], "update_ratio": [1e-3, 4e-3], "still_steps": [0, 0]}
      >>> print(monitor_summary({"layers": ["a", "b"], "final": final, "findings": []}))
      All 2 layers kept moving, each by 1e-03 to 4e-03 of its weights a step.
      Weakest gradient, a: 5e-01 of the largest.
    """
    names, final = record["layers"], record["final"]
    lines = [line for finding in record["findings"] for line in _finding(finding)]
    weakest = f"Weakest gradient, {weakest_layer(names, final['gradient_rms'])}."
    return "\n".join([*(lines or [monitor_headline(record)]), weakest])


def monitor_headline(record: Mapping[str, Any]) -> str:
    """Names the worst finding and its layers, or says how far the layers move, in one line.

    Args:
      record: As in `monitor_summary`.

    Returns:
      The line, however long.

    Example:
      >>> finding = {"rule": "dead_units", "severity": "warning", "layers": ["w[0]", "w[1]"]}
      >>> monitor_headline({"findings": [finding]})
      'Dead units (warning): w[0..1]'
    """
    if record["findings"]:
        finding = printable_tree(record["findings"][0])
        # Kernels and biases take turns in depth order; ranges want them one after the other.
        stems: dict[str, list[str]] = {}
        for name in finding["layers"]:
            stems.setdefault(re.sub(r"\d+(?=\D*$)", "#", name), []).append(name)
        ranges = layer_ranges([name for group in stems.values() for name in group])
        rule = finding["rule"].replace("_", " ").capitalize()
        return f"{rule} ({finding['severity']}): {ranges}"
    names, final = record["layers"], record["final"]
    still = np.asarray(final["still_steps"]) > 0
    moved = f"{(~still).sum()} of {len(names)} layers moved at the end"
    if not still.any():
        moved = f"All {len(names)} layers kept moving"
    ratios = np.asarray(final["update_ratio"], np.float64)[~still]
    return moved + (f", each by {_span(ratios)} of its weights a step." if ratios.size else ".")


def _finding(finding: Mapping[str, Any]) -> list[str]:
    finding = printable_tree(finding)
    paragraphs = [
        monitor_headline({"findings": [finding]}),
        f"  {finding['cause']}",
        *(f"  Try: {remedy}" for remedy in finding["remedies"][:1]),
    ]
    lines = [
        line
        for text in paragraphs
        for line in textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_long_words=False)
    ]
    # A line of Python stays whole, to be copied.
    return lines + [f"    {code}" for code in finding.get("code", ())[:1] if code]


def _span(values: Any) -> str:
    least, most = f"{values.min():.0e}", f"{values.max():.0e}"
    return least if least == most else f"{least} to {most}"


def _decades_below(gradient_rms: Any) -> Any:
    """Decades below the largest finite layer: infinite where zero, NaN where not finite."""
    rms = np.asarray(gradient_rms, np.float64)
    finite = np.isfinite(rms)
    largest = rms[finite].max(initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.where(rms == 0, np.inf, np.log10(largest) - np.log10(rms))
    return np.where(finite, decades, np.nan)


def _pooled(decades: Any, columns: int) -> list[float]:
    """At most so many; of neighbors the one that is worst off, NaN before infinity."""
    groups = np.array_split(decades, min(len(decades), max(1, columns)))
    return [float(np.max(group)) for group in groups]  # NaN wins in np.max


def _color(share: float) -> str:
    """From vermilion at 0 to blue at 1: legible on black and white, in every color vision."""
    low, high = (
        [int(OKABE_ITO[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("vermilion", "blue")
    )
    mixed = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
