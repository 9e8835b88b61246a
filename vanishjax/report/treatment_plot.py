"""A treatment as a figure: the race of the trials' training losses."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vanishjax.foreign import plot_text
from vanishjax.report.plots import OKABE_ITO, png_figure
from vanishjax.report.trials_text import trial_name, verb

__all__ = ["plot_treatment"]

_COLORS = ("blue", "vermilion", "green", "purple", "orange", "sky_blue")
_STYLES = ("-", "--", "-.", ":")
_LETTERS = 36  # in a line of the legend
# Trials that are named; the legend of more would leave the curves no room.
_NAMED = 8
_ROOM = 1.1  # above the largest, as a factor
_WIDE = 1000.0  # the largest loss over the least, from which on a linear axis shows but the largest


def plot_treatment(treatment: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draws the training loss of every trial, step by step, and marks what was accepted.

    Args:
      treatment: What `Treatment.to_dict` gives.
      path: The PNG file to write.

    Returns:
      The path.
    """
    accepted = " + ".join(treatment["accepted"])
    title = f"{verb(treatment)} by {accepted}"
    if not accepted:
        sick = treatment["before"].get("verdict", "sick") == "sick"
        title = "Nothing helped" if sick else "No remedy does much better"
    if not treatment["trials"]:
        title = "Healthy: nothing to cure"
    caption = (
        f"training loss of each trial, {treatment['steps']} steps from the same parameters on the "
        f"same batches; all together cost {treatment['cost']:.0f} steps"
    )
    trials = treatment["trials"]
    if not trials:
        trials = _alone(treatment)
        caption = "no remedy was tried" + f": {treatment['steps']} steps as it is" * bool(trials)
    with png_figure(path, 9, 4.8, title=title, caption=caption) as figure:
        axes = figure.subplots()
        if not trials:
            axes.axis("off")
            nothing = "nothing is wrong with it: there is no race"
            axes.text(0.5, 0.5, nothing, ha="center", transform=axes.transAxes)
            return Path(path)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        palette = [OKABE_ITO[name] for name in _COLORS]
        treated = 0
        drawn = [(trial, smooth) for trial in trials if (smooth := _smooth(trial["losses"]))]
        named = _named([trial for trial, _ in drawn])
        others = [smooth for number, (_, smooth) in enumerate(drawn) if number not in named]
        for trial, smooth in (drawn[number] for number in named):
            look: dict[str, Any] = {"color": "0.5", "linewidth": 1.5}
            if trial["outcome"] != "untreated":
                look["color"] = palette[treated % len(palette)]
                look["linestyle"] = _STYLES[treated // len(palette) % len(_STYLES)]
                treated += 1
            if trial["outcome"] == "accepted":
                look["linewidth"] = 3
            label = plot_text(trial_name(trial, treatment["steps"]) + _score(trial))
            # Names of several remedies would leave the curves no room.
            label = textwrap.fill(label, _LETTERS, break_long_words=False)
            axes.plot(range(1, len(smooth) + 1), smooth, label=label, **look)
        # By these is the axis scaled: one of the others that explodes would flatten them.
        losses = [loss for line in axes.lines for loss in line.get_ydata()]
        for number, smooth in enumerate(others):
            name = None if number else f"{len(others)} more"
            faint = {"color": "0.8", "linewidth": 0.8, "zorder": 1}
            axes.plot(range(1, len(smooth) + 1), smooth, label=name, **faint)
        if axes.lines:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
            axes.xaxis.get_major_locator().set_params(integer=True)
            if min(losses) > 0 and max(losses) > _WIDE * min(losses):
                axes.set_yscale("log")
                axes.set_ylim(min(losses) / _ROOM, max(losses) * _ROOM)
            elif min(losses) >= 0:
                axes.set_ylim(0, _ROOM * max(losses) or None)
    return Path(path)


def _named(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which trials to name: untreated, the last that were accepted, and what came next."""

    def order(number: int) -> tuple[bool, float]:
        trial = trials[number]
        loss = trial["loss"]
        if trial["outcome"] in ("untreated", "accepted"):
            return False, -number
        return True, math.inf if loss is None else loss

    first = [number for number, trial in enumerate(trials) if trial["outcome"] == "untreated"][:1]
    rest = sorted(set(range(len(trials))) - set(first), key=order)
    return sorted((first + rest)[:_NAMED])


def _alone(treatment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The training of a healthy network, as a trial."""
    learning = treatment["after"].get("learning")
    if learning is None:
        return []
    *losses, end = learning["losses"]
    seen = {"losses": losses, "loss": end, "accuracy": None, "steps": len(losses)}
    return [{"remedy": "as it is", "outcome": "untreated", **seen}]


def _score(trial: Mapping[str, Any]) -> str:
    """The end, in words."""
    if trial["outcome"] == "diverged":
        return " (diverged)"
    score = f"held-out loss {trial['loss']:.3g}" if trial["loss"] is not None else ""
    if trial["accuracy"] is not None:
        score = f"held-out {100 * trial['accuracy']:.0f} %"
    mark = ", accepted" if trial["outcome"] == "accepted" else ""
    return f" ({score}{mark})" if score else mark


def _smooth(losses: Sequence[float | None]) -> list[float]:
    """Running means over a tenth of the steps, up to the first that isn't finite."""
    window = max(1, len(losses) // 10)
    finite: list[float] = []
    for loss in losses:
        if loss is None or not math.isfinite(loss):
            break
        finite.append(loss)
    return [
        math.fsum(finite[max(0, end - window) : end]) / min(window, end)
        for end in range(1, len(finite) + 1)
    ]
