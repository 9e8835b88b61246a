"""A diagnosis as a figure: the log-chi waterfall, and the ways to die, each on an axis."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vanishjax.foreign import plot_text
from vanishjax.report import reached
from vanishjax.report.plots import OKABE_ITO, png_figure
from vanishjax.report.verdict_text import decisive

__all__ = ["plot_diagnosis"]

# What a gradient meets on its way down, relative to 1 at the output.
_LINES = {
    "Adam's eps, 1e-8": -8.0,
    "sqrt of the least float32: its square is 0": -18.96,
    "least float32: it is 0 itself": -37.93,
}
# Where the middle of each scale lies: as the rules have it for an adaptive optimizer.
_DEAD_NATS, _DEAD_DECADES, _DEAD_RANK = 30.0, 8.0, 1.05
_DEAD_TOKENS = {"token_energy": 3e-4, "token_detail": 5e-5}
_DEAD_START, _DEAD_STEP, _USUAL_STEP, _STILL_STEP = 1.5, 1.0, 0.01, 1e-4
_DEAD_FLOOR, _DEAD_HELD, _DEAD_SHARE = 0.4, 0.1, 0.25
# A decay, beside one that does no harm; steps to half of the loss, beside the usual: by what is too
# many of them for a rule, and too few.
_DEAD_DECAY, _USUAL_DECAY = 0.035, 1e-3
_USUAL_COUNT, _DEAD_COUNT = 5.0, 0.005
_DEAD_COUNTS = {"vanishing_gradient": 150.0, "learning_rate": 40.0}
_UNITS = {"dead_units": "dead_fraction", "saturated_units": "saturated_fraction"}
# What inputs are far from standard by: which power of it is said, and how.
_INPUTS = {
    "intake_energy": (-0.5, "a mean of {} deviations"),
    "feature_evenness": (-1.0, "most vary by 1 / {} of the largest"),
}


def plot_diagnosis(verdict: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draws what becomes of the gradient layer by layer, and how far each kind of death is.

    Args:
      verdict: What `Diagnosis.to_dict` gives.
      path: The PNG file to write.

    Returns:
      The path.
    """
    probe = verdict["probe"]
    findings = [one for one in verdict["findings"] if one["severity"] == "critical"]
    sick = "Won't train: " + " and ".join(one["rule"].replace("_", " ") for one in findings[:2])
    title = sick if findings else verdict.get("verdict", "healthy").capitalize()
    layers, batch, loss = len(probe["names"]), probe["batch_size"], _number(probe["loss"])
    caption = f"{layers} layers, batch of {batch}, loss {loss}"
    if verdict.get("is_moved"):
        caption += ", of the parameters that the optimizer moves to in its first step"
    with png_figure(path, 10, 4.6, title=title, caption=caption) as figure:
        waterfall, card = figure.subplots(1, 2, width_ratios=[3, 2])
        _waterfall(waterfall, probe)
        _card(card, probe, decisive(verdict["findings"]), verdict["findings"])
    return Path(path)


def _waterfall(axes: Any, probe: Mapping[str, Any]) -> None:
    axes.set_title("What is left of the gradient", loc="left")
    if not probe["names"]:
        nothing = "no kernel's output could be measured"
        axes.text(0.5, 0.5, nothing, ha="center", transform=axes.transAxes)
        axes.axis("off")
        return
    heights = [math.nan if x is None else x for x in reached.decades(probe)]
    for start, stop in reached.towers(probe):
        axes.plot(
            range(start + 1, stop + 1),
            heights[start:stop],
            color=OKABE_ITO["blue"],
            linewidth=2,
            marker="o" if len(heights) <= 40 else None,
            markersize=4,
        )
    known = [x for x in heights if not math.isnan(x)]
    axes.set_ylim(min(-2.0, 1.1 * min(known, default=0.0)), max([1.0, *known]) * 1.1)
    for label, height in _LINES.items():
        if height > axes.get_ylim()[0]:
            axes.axhline(height, color=OKABE_ITO["vermilion"], linewidth=1, linestyle="--")
            axes.annotate(
                label,
                (0.98, height),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=OKABE_ITO["vermilion"],
            )
    axes.set_xlabel("layer, from input to output")
    axes.set_ylabel("decades of its size, relative to the output")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y")


def _card(
    axes: Any,
    probe: Mapping[str, Any],
    findings: Sequence[Mapping[str, Any]],
    noted: Sequence[Mapping[str, Any]],
) -> None:
    """Scales from healthy (left) to dead (right), a mark on each."""
    scales = _scales(probe, {one["rule"]: one["evidence"] for one in findings})
    for row, (name, text, place) in enumerate(scales):
        y = len(scales) - 1 - row
        axes.plot([0, 0.5], [y, y], color=OKABE_ITO["green"], linewidth=6, solid_capstyle="butt")
        axes.plot(
            [0.5, 1], [y, y], color=OKABE_ITO["vermilion"], linewidth=6, solid_capstyle="butt"
        )
        axes.text(0, y + 0.2, name, fontweight="bold")
        axes.text(1, y + 0.2, text, ha="right", fontsize=9)
        if place is not None:
            axes.plot(
                [min(place, 1.0)],
                [y],
                marker="D",
                markersize=9,
                color="white",
                markeredgecolor="black",
            )
    text = "Nothing to mend."
    if findings and findings[0]["remedies"]:
        text = f"First remedy: {findings[0]['remedies'][0]}"
    elif not findings and noted:
        text = f"Noted: {noted[0]['rule'].replace('_', ' ')}"
        text += f"; if that matters: {noted[0]['remedies'][0]}" if noted[0]["remedies"] else ""
    top = len(scales) - 1
    axes.text(0, -0.35, textwrap.fill(plot_text(text), 46), fontsize=9, va="top")
    axes.text(0, top + 0.55, "alive", fontsize=8, color=OKABE_ITO["green"])
    axes.text(1, top + 0.55, "dead", fontsize=8, ha="right", color=OKABE_ITO["vermilion"])
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.4 - 0.2 * len(scales), top + 0.8)
    axes.set_title("Ways to die", loc="left")
    axes.axis("off")


def _scales(
    probe: Mapping[str, Any], critical: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, str, float | None]]:
    """What is measured, its value in words, and its place from 0 to 1; from .5 on it's dead."""
    features = slice(0, max(1, len(probe["names"]) - 1))
    energy = _last(probe["centered_energy"][features])
    rank = _last(probe["effective_rank"][features])
    total = probe["sum_log_chi"] if probe["names"] else None
    magnitude = f"sum ln chi {_number(total)}", _place(total, _nats)
    starved = critical.get("vanishing_gradient", {})
    if "reach" in starved and not (total is not None and total <= starved["reach"]):
        # Of a branch that starves, whatever the others get.
        nats, limit = starved["reach"], starved["limit"]
        magnitude = f"reach {_number(nats)}", min(1.0, nats / (2 * limit))
    scales = [
        ("magnitude", *magnitude),
        ("mean", f"centered energy {_number(energy)}", _place(energy, _decades)),
        ("rank", f"effective rank {_number(rank)}", _place(rank, _rank)),
    ]
    tokens = {
        name: math.log(max(probe[name], 1e-30)) / math.log(limit) / 2
        for name, limit in _DEAD_TOKENS.items()
        if probe.get(name) is not None
    }
    if tokens:
        name, place = max(tokens.items(), key=lambda one: one[1])
        said = f"{name.replace('_', ' ')} {_number(probe[name])}"
        # Where it's but noted, what comes after makes up for it.
        if place < 0.5 or "token_collapse" in critical:
            scales.append(("positions", said, max(place, 0.0)))
    shares = [share for _, share in probe.get("softmaxes", ()) if share is not None]
    if shares:
        share = math.fsum(shares) / len(shares)
        if share < 0.5 or "saturated_attention" in critical:
            scales.append(("attention", f"one-hot rows {share:.0%}", share))
    for rule, field in _UNITS.items():
        if rule in critical:
            share = max((x for x in probe[field] if x is not None), default=0.0)
            scales.append(("units", f"{field.removesuffix('_fraction')} {share:.0%}", share))
    if "bad_start" in critical:
        ratio = critical["bad_start"]["loss_ratio"]
        said = f"loss {_number(ratio)} times a constant's"
        scales.append(("start", said, _logarithm(ratio, _DEAD_START)))
    waves = critical.get("exploding_gradient", {})
    if "radians" in waves:
        said = f"{_number(waves['radians'])} radians"
        scales.append(("sines", said, _logarithm(waves["radians"], waves["limit"])))
    far = critical.get("mean_collapse", {})
    for field, (power, said) in _INPUTS.items():
        if field in far:
            place = math.log(far[field]) / (2 * math.log(far["limit"]))
            scales.append(("inputs", said.format(_number(far[field] ** power)), min(place, 1.0)))
    rate = critical.get("learning_rate", {})
    if rate.get("held", 0.0) > _DEAD_HELD:
        said = f"{_number(rate['decay'])} of all kernels a step"
        place = _logarithm(rate["decay"] / _USUAL_DECAY, _DEAD_DECAY / _USUAL_DECAY)
        scales.append(("decay", said, place))
    elif "held" in rate:
        said = f"held at {_number(rate['held'])} by steps"
        scales.append(("decay", said, _logarithm(max(rate["held"], 1e-16), _DEAD_HELD)))
    for rule, evidence in critical.items():
        if "steps_to_half" in evidence:
            count = evidence["steps_to_half"]
            dead = _DEAD_COUNT if count < _USUAL_COUNT else _DEAD_COUNTS[rule]
            place = _logarithm(count / _USUAL_COUNT, dead / _USUAL_COUNT)
            scales.append(("way", f"{_number(count)} steps to half of the loss", place))
    if "relative_step" in rate and "steps_to_half" not in rate:
        step = rate["relative_step"]
        dead = _DEAD_STEP if step > _USUAL_STEP else _STILL_STEP
        place = _logarithm(step / _USUAL_STEP, dead / _USUAL_STEP)
        scales.append(("rate", f"a step of {_number(step)} kernels", place))
    if "blind_optimizer" in critical:
        left = max(critical["blind_optimizer"]["effectiveness"], 1e-16)
        said = f"{_number(left)} of a step is left"
        scales.append(("step", said, _logarithm(left, _DEAD_SHARE)))
    floor = critical.get("does_not_learn", {})
    if "least_loss" in floor:
        least, constant = floor["least_loss"], floor["constant_loss"]
        end = floor.get("least_loss_without", 0.0)
        missing = (least - end) / (constant - end)
        said = f"no lower than {_number(least)}, a constant's {_number(constant)}"
        scales.append(("loss", said, min(missing / (2 * _DEAD_FLOOR), 1.0)))
    if critical:
        return scales
    # The rules know more than the whole network's number: inputs that lie on a line, skips.
    return [scale for scale in scales if scale[2] is None or scale[2] < 0.5]


def _logarithm(value: float, dead: float) -> float:
    return min(max(math.log(value) / (2 * math.log(dead)), 0.0), 1.0)


def _place(value: float | None, scale: Callable[[float], float]) -> float | None:
    return None if value is None else min(scale(value), 1.0)


def _nats(total: float) -> float:
    return abs(total) / (2 * _DEAD_NATS)


def _decades(energy: float) -> float:
    return -math.log10(max(energy, 1e-16)) / (2 * _DEAD_DECADES)


def _rank(rank: float) -> float:
    if rank > _DEAD_RANK:
        return 0.5 * _DEAD_RANK / rank
    return 1 - 0.5 * (max(rank, 1.0) - 1) / (_DEAD_RANK - 1)


def _last(values: Sequence[float | None]) -> float | None:
    return values[-1] if values else None


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
