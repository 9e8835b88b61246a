"""What was accepted, or a network as it is, at other rates, and beside what came next.

What leads after a trial may trail at the end, and the other way round: before a training of no more
than a few trials all of them train for as long as several, the rates side by side. So do new
kernels under Muon, which moves those of many layers evenly.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from vanishjax.treatment.acceptance import judge, note
from vanishjax.treatment.judgement import LEFT_OF_RACE, least_without
from vanishjax.treatment.progress import Failure, Progress, Raced, Setting, Wave
from vanishjax.treatment.proposal import treated
from vanishjax.treatment.remedy import AROUND, OPTIMIZER, Remedy, in_parts
from vanishjax.treatment.steps import muon, rate_by_3, rate_by_30, rate_x3, rate_x10, slow_muon
from vanishjax.treatment.trial import Run, race
from vanishjax.treatment.waves import trained

OTHER_RATES = rate_by_30, rate_by_3, rate_x3, rate_x10
_LITTLE = 0.1  # of a constant output's loss


def at_other_rates(setting: Setting, progress: Progress, batches: Any) -> Progress:
    """What comes of other rates for what was accepted, or for the network as it is.

    And of what else came far in a trial, which is too short to tell what leads at the end.

    Args:
      setting: What the cure goes by.
      progress: How far it had come.
      batches: `[steps, ...]`, several trials long.

    Returns:
      How far it has come now.
    """
    rates = tuple(make(setting.context) for make in OTHER_RATES)
    if _has_learned(progress.best or progress.untreated, setting):
        rates = tuple(one for one in rates if one.rate < 1)
    setting = dataclasses.replace(setting, batches=batches, left=LEFT_OF_RACE)
    try:
        as_it_is, *runs = _race(setting, progress, rates)
    except Exception as error:
        failed = tuple(Failure.of(remedy, error) for remedy in rates)
        return judge(setting, progress, Wave((), ()), Raced((), failed))
    others = _under_muon(setting, progress), _next_best(setting, progress)
    failures = tuple(failure for one in others for failure in one.failures)
    beside = dataclasses.replace(
        note(progress, as_it_is, f"{len(as_it_is.losses)} steps, beside other rates"),
        best=None if progress.best is None else as_it_is,
        untreated=as_it_is if progress.best is None else progress.untreated,
        cured=False,
    )
    rated = list(zip(rates, runs, strict=True))
    if _has_learned(as_it_is, setting):
        for remedy, run in rated:
            if remedy.rate > 1:
                beside = note(
                    beside, run, "little is left to learn: not worth larger steps", remedy
                )
        rated = [(remedy, run) for remedy, run in rated if remedy.rate < 1]
    raced = (*rated, *(run for one in others for run in one.runs))
    then = judge(setting, beside, Wave((), ()), Raced(raced, failures))
    then = dataclasses.replace(then, untreated=progress.untreated)
    if then.accepted != progress.accepted:
        return then
    return dataclasses.replace(then, best=progress.best, cured=progress.cured)


def _has_learned(run: Run | None, setting: Setting) -> bool:
    """Whether a network has learned nearly all: nothing to win is worth the risk of larger steps.

    Those of an equilibrium at three times its rate left .005 of its loss after a longer trial, .01
    without, and half of it at the end: it no longer came to rest.
    """
    least = setting.before.probe.constant_loss
    # Of a loss that may be negative no share is little.
    return run is not None and 0 <= float(np.mean(run.held_out)) <= _LITTLE * least


def _under_muon(setting: Setting, progress: Progress) -> Raced:
    """The run of what was accepted, where the optimizer is still the network's own."""
    if not progress.accepted or any(one.part == OPTIMIZER for one in progress.accepted):
        return Raced(())
    slow = any(one.rate != 1 for one in progress.accepted)
    return _alone(setting, progress, (muon if slow else slow_muon)(setting.context))


def _next_best(setting: Setting, progress: Progress) -> Raced:
    """The run of the first that can be trained of what else came far."""
    failures: tuple[Failure, ...] = ()
    for remedy in _leading(setting, progress):
        raced = _alone(setting, progress, remedy)
        failures += raced.failures
        if raced.runs:
            return Raced(raced.runs, failures)
    return Raced((), failures)


def _alone(setting: Setting, progress: Progress, remedy: Remedy) -> Raced:
    """The run of one remedy, or why there is none."""
    try:
        member = remedy, treated(setting, progress, remedy)
    except Exception as error:
        return Raced((), (Failure.of(remedy, error),))
    return trained(setting, (member,))


def _leading(setting: Setting, progress: Progress) -> list[Remedy]:
    """What else came far in a trial, where that is worth a longer one, the farthest first.

    Beside a network that learns by itself it lost less; beside what was accepted, it came half as
    far below that network and a constant output.
    """
    if progress.best is not None:
        least = least_without(progress.untreated, setting.before)
        bound = (least + float(np.mean(progress.best.held_out))) / 2
    elif progress.untreated is not None:
        bound = float(np.mean(progress.untreated.held_out))
    else:
        return []
    accepted = {one.name for one in progress.accepted}
    others = [one for one in progress.reliefs if one.loss < bound]
    return [one.remedy for one in others if one.remedy.name not in accepted]


def _told(setting: Setting) -> tuple[Any, Any, jax.Array]:
    return setting.batches, setting.held_out, setting.key


def _race(setting: Setting, progress: Progress, rates: tuple[Remedy, ...]) -> list[Run]:
    """The network as it is, then at each rate: side by side, where the rate is what comes last."""
    problems = [progress.start, *(treated(setting, progress, one) for one in rates)]
    # Coordinates are linear: a part of the step within is the same part of it outside.
    if all(part.wraps <= AROUND for part in in_parts(progress.accepted)):
        # All at once may be too many for the memory.
        with contextlib.suppress(Exception):
            return race(problems, *_told(setting), rates=[1.0, *(one.rate for one in rates)])
    return [race([one], *_told(setting))[0] for one in problems]
