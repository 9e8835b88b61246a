"""A treatment as text: what was wrong with the network, every trial, and how to apply the cure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from vanishjax.foreign import printable_lines, printable_tree
from vanishjax.report.verdict_text import decisive

__all__ = ["treatment_text"]

_WIDTH = 79
_HEALTHY = "Healthy: nothing to cure."
_FAR = "It learns, but its inputs or targets are far from zero mean and unit size."
_SHORT = "It learns, and only a short training follows: what may lead it farther was tried."
_MARKS = {"accepted": "✓", "better": "+", "no better": "·", "diverged": "✗", "failed": "✗"}


# Where the problem was made from a model, what a recipe starts from and what becomes of it.
_FROM_MODEL = "loss_fn, params, tx = problem.plain_loss, problem.params, problem.tx"
_TO_MODEL = "model = problem.model(params)"


def treatment_text(treatment: Mapping[str, Any], *, of_model: bool = False) -> str:
    """Writes a treatment out.

    Args:
      treatment: What `Treatment.to_dict` gives.
      of_model: Whether the problem was made from a model: then the recipe says how to come from
        there to a loss and parameters, and back.

    Returns:
      The outcome in a line, the cause, a table of trials, and the recipe.

    Example:
      >>> finding = {"rule": "dead_units", "severity": "critical", "cause": "All units are off."}
      >>> trial = {"remedy": "untreated", "outcome": "untreated", "loss": 2.3, "accuracy": 0.1,
      ...          "rules": ["dead_units"], "reason": ""}
      >>> cured = {"remedy": "lsuv", "outcome": "accepted", "loss": 0.3, "accuracy": 0.9,
      ...          "rules": [], "reason": "no more dead units"}
      >>> print(treatment_text({"accepted": ["lsuv"], "recipe": "params = ...", "steps": 50,
      ...     "cost": 106.0, "trials": [trial, cured], "before": {"findings": [finding]},
      ...     "after": {"healthy": True}}))
      Cured by lsuv, at the cost of 106 training steps.
      <BLANKLINE>
      dead units: All units are off.
      <BLANKLINE>
      after 50 steps  held-out loss  accuracy
        untreated             2.300    10.0 %
      ✓ lsuv                  0.300    90.0 %
          no more dead units
      <BLANKLINE>
      In your own script, with vanishjax as vj, optax, jax, jax.numpy as jnp, and the
      first batch of the usual shape as batch:
        params = ...
    """
    recipe = treatment["recipe"]
    treatment = printable_tree(treatment)
    causes = _causes(treatment)
    notes = [textwrap.fill(f"Note: {note}.", _WIDTH) for note in treatment.get("notes", ())]
    if not (causes or treatment["trials"]):
        return "\n\n".join([_HEALTHY + _learned(treatment), *notes])
    nothing_fits = len(treatment["trials"]) == 1 and not treatment["accepted"]
    words = [_cause(cause) + (_mends(cause) if nothing_fits else "") for cause in causes]
    words = words or [textwrap.fill(_why_tried(treatment), _WIDTH)]
    head = "\n".join([_headline(treatment), *_meaning(treatment)])
    blocks = [head, *words, _table(treatment), *notes]
    if recipe:
        head = (
            "In your own script, with vanishjax as vj, optax, jax, jax.numpy as jnp, and the first "
            "batch of the usual shape as batch"
        )
        if of_model:
            head += ", and your model in a problem (Problem.from_nnx, from_linen or from_equinox)"
            recipe = f"{_FROM_MODEL}\n{recipe}\n{_TO_MODEL}"
        code = textwrap.indent(printable_lines(recipe), "  ")
        blocks.append(f"{textwrap.fill(head + ':', _WIDTH)}\n{code}")
    return "\n\n".join(blocks)


def _headline(treatment: Mapping[str, Any]) -> str:
    cost = f"at the cost of {treatment['cost']:.0f} training steps"
    if not treatment["accepted"]:
        at_first = treatment["before"].get("verdict", "sick")
        if at_first != "sick" and treatment["trials"]:
            return _alone(at_first, treatment["trials"][0], cost)
        if len(treatment["trials"]) == 1:
            return "Nothing to try: no parameters and no optimizer make up for this."
        return f"Nothing helped, {cost}: the network is as it was."
    names = " + ".join(treatment["accepted"])
    left = "" if treatment["after"]["healthy"] else "; it isn't healthy yet"
    if treatment["after"].get("verdict") == "unknown":
        left = "; whether it is healthy now can't be known"
    return textwrap.fill(f"{verb(treatment)} by {names}, {cost}{left}.", _WIDTH)


def _why_tried(treatment: Mapping[str, Any]) -> str:
    """Why remedies were tried on a network of which nothing is known to be wrong."""
    far = any("standardize" in trial["remedy"] for trial in treatment["trials"])
    return _FAR if far else _SHORT


def verb(treatment: Mapping[str, Any]) -> str:
    """What remedies that were taken have done: a network that was sick and is healthy is cured.

    Args:
      treatment: What `Treatment.to_dict` gives.

    Example:
      >>> verb({"before": {"findings": []}, "after": {"healthy": True}})
      'Improved'
    """
    return "Cured" if treatment["after"]["healthy"] and _causes(treatment) else "Improved"


def _causes(treatment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was wrong; nothing with a network that learned by itself."""
    found = treatment["before"]["findings"]
    return decisive(found) or [one for one in found if one["rule"] == "does_not_learn"]


def _meaning(treatment: Mapping[str, Any]) -> list[str]:
    """What the remedies that were taken do, a line for each."""
    return [
        textwrap.fill(f"  {name}: {text}", _WIDTH, subsequent_indent="    ")
        for name, text in treatment.get("meaning", {}).items()
    ]


def _learned(treatment: Mapping[str, Any]) -> str:
    """How a healthy network learned."""
    learning = treatment["after"].get("learning")
    if learning is None:
        return ""
    start, end = learning["losses"][0], learning["losses"][-1]
    return f" In {learning['steps']} steps as it is its loss went from {start:.3g} to {end:.3g}."


def _alone(at_first: str, untreated: Mapping[str, Any], cost: str) -> str:
    """Of a network that isn't known to be sick, and that is as it was."""
    start, end = (
        "infinity or NaN" if loss is None else f"{loss:.3g}"
        for loss in (untreated["losses"][0], untreated["loss"])
    )
    return textwrap.fill(
        f"{at_first.capitalize()} at first sight, and no remedy lets it learn twice as much, "
        f"{cost}: the network is as it was. In {untreated['steps']} steps its loss went from "
        f"{start} to {end}.",
        _WIDTH,
    )


def _cause(finding: Mapping[str, Any]) -> str:
    text = f"{finding['rule'].replace('_', ' ')}: {finding['cause']}"
    where = f"\n    at {finding['where']}" if finding.get("where") else ""
    return textwrap.fill(text, _WIDTH, subsequent_indent="    ") + where


def _mends(finding: Mapping[str, Any]) -> str:
    """What a person can do, in lines."""
    return "".join(f"\n{_filled(text, '    ')}" for text in finding.get("remedies", ()))


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _table(treatment: Mapping[str, Any]) -> str:
    trials = treatment["trials"]
    scored = any(trial["accuracy"] is not None for trial in trials)
    first = f"after {treatment['steps']} steps"
    names = [trial_name(trial, treatment["steps"]) for trial in trials]
    width = max(len(first) - 2, *map(len, names))
    head = f"{first:<{width + 2}}  held-out loss" + ("  accuracy" if scored else "")
    lines = [head]
    for trial, name in zip(trials, names, strict=True):
        mark = _MARKS.get(trial["outcome"], " ")
        loss = "" if trial["loss"] is None else _loss(trial["loss"])
        line = f"{mark} {name:<{width}}  {loss or '-':>13}"
        if scored:
            share = trial["accuracy"]
            line += f"  {'-' if share is None else f'{100 * share:.1f} %':>8}"
        lines.append(line.rstrip())
        if trial["reason"]:
            lines.append(_filled(trial["reason"], "    "))
    return "\n".join(lines)


def trial_name(trial: Mapping[str, Any], steps: int) -> str:
    """A trial's name, and how long it was if that isn't as long as usual.

    Args:
      trial: What `Trial.to_dict` gives.
      steps: How long trials are.

    Example:
      >>> trial_name({"remedy": "lsuv", "steps": 160}, 40)
      'lsuv, 160 steps'
    """
    own = trial.get("steps") or steps
    return trial["remedy"] + (f", {own} steps" if own != steps else "")


def _loss(value: float) -> str:
    """A loss in few characters, in dollars squared or in volts squared too."""
    usual = value == 0 or 1e-2 <= abs(value) < 1e5
    return f"{value:.3f}" if usual else f"{value:.3g}"
