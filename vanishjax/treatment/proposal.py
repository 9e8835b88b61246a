"""What a cure tries next."""

from __future__ import annotations

import dataclasses
import functools

import jax

from vanishjax.problem import Problem
from vanishjax.transforms.safety import check_guards
from vanishjax.treatment.judgement import learns_by_itself
from vanishjax.treatment.progress import Failure, Member, Progress, Setting, Wave
from vanishjax.treatment.remedies import fitting_remedies
from vanishjax.treatment.remedy import Remedy, in_order, in_parts
from vanishjax.treatment.trial import run_alike


def propose(setting: Setting, progress: Progress) -> Wave | None:
    """The next remedies to try; None if nothing is left.

    The untreated network comes first of all, with those that leave its loss and transform alone.
    Where nothing is known to be wrong, it may learn by itself, and then nothing else is tried.
    Once the network is cured, what is left is a safer form of what cured it.
    """
    untreated = progress.untreated
    if setting.before.verdict == "unknown" and progress.best is None:
        if untreated is None:
            return Wave(((None, setting.problem),), ())
        if learns_by_itself(untreated, setting.before):
            return None
    members: list[Member] = [(None, setting.problem)] if untreated is None else []
    failures = []
    for remedy in waiting(setting, progress):
        if remedy.safer_than in progress.failed:
            continue
        if progress.cured and not progress.is_safer(remedy):
            continue
        try:
            made = treated(setting, progress, remedy)
            # What it refuses, it refuses now.
            check_guards(jax.eval_shape(made.transform.init, made.params))
        except Exception as error:
            failures.append(Failure.of(remedy, error))
            continue
        if members and not run_alike(members[0][1], made):
            break
        members.append((remedy, made))
    return Wave(tuple(members), tuple(failures)) if members or failures else None


def waiting(setting: Setting, progress: Progress) -> list[Remedy]:
    """The remedies that weren't tried yet, in order."""
    candidates = setting.remedies
    if candidates is None:
        candidates = fitting_remedies(
            (*setting.before.findings, *progress.verdict.findings),
            dataclasses.replace(setting.context, problem=progress.start),
        )
    done = progress.tried | progress.failed | {one.name for one in progress.accepted}
    return [remedy for remedy in candidates if remedy.name not in done]


def treated(setting: Setting, progress: Progress, remedy: Remedy) -> Problem:
    """The network with a remedy and those accepted before that it leaves in force.

    Args:
      setting: What the cure goes by.
      progress: How far it has come.
      remedy: The new one.

    Returns:
      The network, before training.
    """
    kept = remedy.follows(progress.accepted)
    goes_last = in_order((*kept, remedy))[-1] is remedy and all(one.around is None for one in kept)
    if kept == progress.accepted and goes_last:
        return remedy.treat(progress.start)
    parts = in_parts((*kept, remedy))
    return functools.reduce(lambda problem, one: one.treat(problem), parts, setting.problem)
