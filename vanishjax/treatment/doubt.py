"""Doubt: what a healthy verdict is worth once the network has trained for the steps of a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vanishjax.health import Diagnosis, Finding
from vanishjax.health.learning import Learning, unlearned
from vanishjax.treatment.trial import Run


def course(untreated: Run, before: Diagnosis) -> Learning:
    """The training of a network as it is.

    Args:
      untreated: Its run.
      before: Its diagnosis.

    Returns:
      The losses of training, the held-out one at the end.
    """
    losses = np.append(untreated.losses, np.mean(untreated.held_out)).astype(np.float64)
    return Learning(losses, None, before.probe.constant_loss, usual=False)


def learns_nothing(untreated: Run, before: Diagnosis) -> Finding:
    """That a network as it is learns nothing, whatever is known to be wrong with it.

    Args:
      untreated: What came of training it as it is.
      before: Its diagnosis.

    Returns:
      The finding.
    """
    return unlearned(course(untreated, before))


def doubted(
    before: Diagnosis,
    untreated: Run,
    batches: Any,
    held_out: Any,
    examine: Callable[[Any], Diagnosis],
) -> tuple[Diagnosis, tuple[str, ...]]:
    """A healthy network's diagnosis, now that it was seen to learn nothing by itself.

    A batch on which the network is sick before any step says more than that it doesn't learn.

    Args:
      before: The diagnosis by the first batch.
      untreated: What came of training it as it is.
      batches: `[steps, ...]`, what it was trained on.
      held_out: `[n, ...]`, what it was judged by.
      examine: Diagnoses the network at its start on another batch.

    Returns:
      That of the first batch whose loss wasn't finite, if the network is sick there, and a note
      that says so; else the one before, with what the steps showed.
    """
    places = (
        (untreated.losses, batches, "that of step"),
        (untreated.held_out, held_out, "held-out batch"),
    )
    for losses, among, which in places:
        wrong = np.flatnonzero(~np.isfinite(losses))
        if not len(wrong):
            continue
        there = examine(jax.tree.map(lambda x, i=wrong[0]: x[i], among))
        if there.verdict == "sick":
            said = "the network looks healthy on the first batch: what is wrong was found on"
            return there, (f"{said} {which} {wrong[0] + 1}",)
    seen = learns_nothing(untreated, before)
    return dataclasses.replace(before, findings=(seen, *before.findings)), ()
