"""A diagnosis as text that a person reads from the top: verdict, causes, remedies, layers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vanishjax.foreign import printable_tree
from vanishjax.report import reached

__all__ = ["diagnosis_text", "layer_ranges"]

_MARKS = {"critical": "✗", "warning": "!", "note": "·"}
_WIDTH = 79  # of a terminal, as it is opened
_SHOWN_LAYERS, _LEAST_LAYERS = 12, 4
_LINES = 40  # of a screen
_ADVICE = (9, 3, 2, 1)  # pieces of advice that a finding shows: the most that fit
_USE = re.compile(r"@\d+$")
_BAR, _LEAST_BAR = 8, 6
_DEADLY = 6.5  # decades, 30 nats of energy: an empty bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


def diagnosis_text(verdict: Mapping[str, Any]) -> str:
    """Writes a diagnosis out.

    Args:
      verdict: What `Diagnosis.to_dict` gives: `verdict`, `findings`, `probe`.

    Returns:
      The verdict in a line, every finding with its evidence and remedies, and a table of layers
      with how far the gradient falls on its way to each, as a bar and in decades of its size. All
      but lines of Python fits 80 columns.

    Example:
      >>> finding = {"rule": "dead_units", "severity": "critical", "layers": ["w[0]", "w[1]"],
      ...            "evidence": {"dead_fraction": 1.0}, "cause": "All units are off.",
      ...            "remedies": ["leaky_relu"], "code": ["h = jax.nn.leaky_relu(h)"]}
      >>> probe = {"names": [], "loss": 2.3, "sum_log_chi": 0.0}
      >>> print(diagnosis_text({"verdict": "sick", "findings": [finding], "probe": probe}))
      Won't train: dead units.
      <BLANKLINE>
      ✗ dead units: w[0..1]
          All units are off.
          dead fraction 1
          1. leaky_relu
               h = jax.nn.leaky_relu(h)
    """
    verdict = printable_tree(verdict)
    findings, probe = verdict["findings"], verdict["probe"]
    head = _headline(verdict)
    if verdict.get("is_moved"):
        head += "\nOf the parameters that the optimizer moves to in its first step."
    # As much advice as leaves room for the table on one screen.
    for advice in _ADVICE:
        blocks = [head, *(_finding(one, advice) for one in findings)]
        if verdict.get("learning"):
            blocks.append(_learning(verdict["learning"]))
        if sum(block.count("\n") + 2 for block in blocks) + _LEAST_LAYERS < _LINES:
            break
    if probe["names"]:
        used = sum(block.count("\n") + 2 for block in blocks)
        blocks.append(_layers(probe, max(_LEAST_LAYERS, _LINES - used - 1)))
    share = verdict.get("effectiveness")
    if share and all(value is None for value in share):
        blocks.append(
            "Not measured: the optimizer's steps. It answers no gradient alone (a line search "
            "needs the loss function), or none with a finite step."
        )
    return "\n\n".join(blocks)


def layer_ranges(names: Sequence[str]) -> str:
    """Names of layers, those of consecutive indices drawn together.

    Example:
      >>> layer_ranges(["in", "w[0]", "b[0]", "w[1]", "b[1]", "w[2]", "w[7]"])
      'in, w[0..2], b[0..1], w[7]'
    """
    groups: list[list[str]] = []
    latest: dict[str, list[str]] = {}  # A stack's kernels and biases alternate.
    for name in names:
        stem, index = _index(name)
        group = latest.get(stem)
        if group is not None and index == _index(group[-1])[1] + 1:
            group.append(name)
        else:
            latest[stem] = [name]
            groups.append(latest[stem])
    return ", ".join(
        group[0]
        if len(group) == 1
        else re.sub(r"(\d+)(\D*)$", rf"\1..{_index(group[-1])[1]}\2", group[0])
        for group in groups
    )


def _index(name: str) -> tuple[str, int]:
    """A name without its last number, and that number."""
    match = re.search(r"(\d+)(\D*)$", name)
    return (name[: match.start()] + "#" + match[2], int(match[1])) if match else (name, -2)


def decisive(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The critical findings, or else what keeps the verdict from being known.

    Example:
      >>> blind = {"rule": "unmeasured", "severity": "warning"}
      >>> decisive([blind, {"rule": "dead_units", "severity": "note"}]) == [blind]
      True
    """
    critical = [one for one in findings if one["severity"] == "critical"]
    hidden = [
        one for one in findings if (one["rule"], one["severity"]) == ("unmeasured", "warning")
    ]
    return critical or hidden


def _headline(verdict: Mapping[str, Any]) -> str:
    critical = [one["rule"] for one in verdict["findings"] if one["severity"] == "critical"]
    if critical:
        rules = " and ".join(rule.replace("_", " ") for rule in critical[:2])
        return f"Won't train: {rules}."
    if verdict.get("verdict") == "unknown":
        return "Unknown: what matters couldn't be measured."
    rest = "" if not verdict["findings"] else ", with something to know"
    total = verdict["probe"].get("sum_log_chi") or 0.0
    return f"Healthy{rest}: the first layer's gradient has exp({total:.1f}) of the output's energy."


def _finding(finding: Mapping[str, Any], advice: int) -> str:
    """A finding with the first pieces of advice."""
    names = layer_ranges(finding["layers"])
    head = f"{_MARKS[finding['severity']]} {finding['rule'].replace('_', ' ')}"
    head += f": {names}" if names else ""
    evidence = " · ".join(
        f"{name.replace('_', ' ')} {_number(value)}" for name, value in finding["evidence"].items()
    )
    lines = [
        textwrap.fill(head, _WIDTH, subsequent_indent="    "),
        textwrap.fill(finding["cause"], _WIDTH, initial_indent="    ", subsequent_indent="    "),
        f"    at {finding['where']}" if finding.get("where") else "",
        textwrap.fill(evidence, _WIDTH, initial_indent="    ", subsequent_indent="    "),
    ]
    codes = finding.get("code", ())
    for number, remedy in enumerate(finding["remedies"][:advice], 1):
        lines.append(
            textwrap.fill(
                f"{number}. {remedy}", _WIDTH, initial_indent="    ", subsequent_indent="       "
            )
        )
        # A line of Python stays whole, to be copied.
        code = codes[number - 1] if number <= len(codes) else None
        lines += [f"         {line}" for line in (code or "").split("; ")]
    return "\n".join(line for line in lines if line.strip())


def _learning(learning: Mapping[str, Any]) -> str:
    """What some steps of training came to, in a line."""
    steps = learning["steps"]
    how = " with Adam at 1e-3" if learning["usual"] else ""
    loss = "loss" if learning["held_out"] is None else "held-out loss"
    line = (
        f"Trained {steps} step{'s' if steps > 1 else ''}{how}: {loss} {_number(learning['start'])} "
        f"to {_number(learning['end'])}"
    )
    if learning["constant"] is not None:
        line += f", best constant output {_number(learning['constant'])}"
    if not learning["learns"]:
        line += ": it doesn't learn."
    elif learning["held_out"] is None:
        line += ": it learns these examples, if only by heart."
    else:
        line += ": it learns."
    return textwrap.fill(line, _WIDTH)


def _layers(probe: Mapping[str, Any], lines: int) -> str:
    """A table of layers, the middle of a deep network left out."""
    names, decades = probe["names"], reached.decades(probe)
    shown = _shown(len(names), min(lines - 1, _SHOWN_LAYERS))
    there = [i for i in shown if i is not None]
    columns = [
        ("ln chi", [_fixed(probe["log_chi"][i], 1) for i in there]),
        ("decades", [_fixed(decades[i], 1) for i in there]),
        ("gradient", [_number(probe["gradient_rms"][i]) for i in there]),
        ("input", [_number(probe["preactivation_rms"][i]) for i in there]),
        ("centered", [_number(probe["centered_energy"][i]) for i in there]),
        ("rank", [_fixed(probe["effective_rank"][i], 1) for i in there]),
    ]
    for head, key in (("dead", "dead_fraction"), ("sat.", "saturated_fraction")):
        shares = [_percent(share) for share in probe[key]]
        if set(shares) - {"0%", "-"}:
            columns.append((head, [shares[i] for i in there]))
    widths = [max(len(head), *map(len, cells)) for head, cells in columns]
    left = _WIDTH - sum(widths) - len(widths)
    width = max(5, min(left, max(len(names[i]) for i in there)))
    bar = min(_BAR, left - width - 1)
    longest = max(_DEADLY, *(abs(x) for x in decades if x is not None))

    def row(name: str, decades: str | None, cells: Sequence[str]) -> str:
        ln_chi, *rest = (f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        bars = [] if bar < _LEAST_BAR else [decades or " " * bar]
        return " ".join([f"{_shortened(name, width):{width}}", ln_chi, *bars, *rest])

    rows = [row("layer", "reaches".ljust(bar), [head for head, _ in columns])]
    cells = iter(zip(*(cells for _, cells in columns), strict=True))
    for i in shown:
        if i is None:
            rows.append("...")
        else:
            rows.append(row(names[i], _bar(decades[i], longest, bar), next(cells)))
    if any(_USE.search(names[i]) for i in there):
        rows.append("@: a kernel's uses in turn, as for other inputs, in derivatives or in time")
    return "\n".join(rows)


def _shortened(name: str, width: int) -> str:
    """A name that fits, its middle left out."""
    if len(name) <= width:
        return name
    start = (width - 1) // 2
    return f"{name[:start]}…{name[len(name) - (width - 1 - start) :]}"


def _shown(count: int, most: int) -> list[int | None]:
    if count <= most:
        return list(range(count))
    half = most // 2
    return [*range(half), None, *range(count - half, count)]


def _bar(decades: float | None, longest: float, width: int) -> str:
    """A bar that is full where nothing is lost."""
    if decades is None:
        return " " * width
    eighths = round(width * 8 * (1 - min(abs(decades) / longest, 1.0)))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == round(value) and abs(value) < 10000:
        return f"{value:.0f}"
    if 0.001 <= abs(value) < 10000:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
