"""What was accepted, or a network as it is, at other rates.

A rate that leads after a trial may trail at the end, and the other way round: before a training of
no more than a few trials all of them train for as long as several, side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from vanishjax.treatment.acceptance import judge, note
from vanishjax.treatment.progress import Failure, Member, Progress, Raced, Setting, Wave
from vanishjax.treatment.proposal import treated
from vanishjax.treatment.remedy import AROUND, Remedy, in_parts
from vanishjax.treatment.steps import rate_by_3, rate_by_30, rate_x3, rate_x10
from vanishjax.treatment.trial import Run, race

OTHER_RATES = rate_by_30, rate_by_3, rate_x3, rate_x10


def at_other_rates(setting: Setting, progress: Progress, batches: Any) -> Progress:
    """What comes of other rates for what was accepted, or for the network as it is.

    Args:
      setting: What the cure goes by.
      progress: How far it had come.
      batches: `[steps, ...]`, several trials long.

    Returns:
      How far it has come now.
    """
    remedies = tuple(make(setting.context) for make in OTHER_RATES)
    try:
        as_it_is, *runs = _race(setting, progress, remedies, batches)
    except Exception as error:
        failures = tuple(Failure.of(remedy, error) for remedy in remedies)
        return judge(setting, progress, Wave((), failures), Raced(()))
    raced = tuple(zip(remedies, runs, strict=True))
    members: tuple[Member, ...] = tuple((remedy, run.problem) for remedy, run in raced)
    beside = dataclasses.replace(
        note(progress, as_it_is, f"{len(as_it_is.losses)} steps, beside other rates"),
        best=None if progress.best is None else as_it_is,
        untreated=as_it_is if progress.best is None else progress.untreated,
        cured=False,
    )
    then = judge(setting, beside, Wave(members, ()), Raced(raced))
    then = dataclasses.replace(then, untreated=progress.untreated)
    if then.accepted != progress.accepted:
        return then
    return dataclasses.replace(then, best=progress.best, cured=progress.cured)


def _race(
    setting: Setting, progress: Progress, remedies: tuple[Remedy, ...], batches: Any
) -> list[Run]:
    """The network as it is, then at each rate: side by side, where the rate is what comes last."""
    problems = [progress.start, *(treated(setting, progress, one) for one in remedies)]
    told = batches, setting.held_out, setting.key
    # Coordinates are linear: a part of the step within is the same part of it outside.
    if all(part.wraps <= AROUND for part in in_parts(progress.accepted)):
        # All at once may be too many for the memory.
        with contextlib.suppress(Exception):
            return race(problems, *told, rates=[1.0, *(one.rate for one in remedies)])
    return [race([one], *told)[0] for one in problems]
