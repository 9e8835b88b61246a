"""Cures: remedies tried beside the untreated network, and kept if they prove themselves.

Wave after wave: `propose` says what to try, `race` trains it, `judge` says what came of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vanishjax.health import Diagnosis, diagnose
from vanishjax.problem import Problem
from vanishjax.training.meshes import adopted, is_explicit
from vanishjax.treatment.acceptance import PROBE_STEPS, judge
from vanishjax.treatment.batches import divide, sequence, stack
from vanishjax.treatment.context import Context
from vanishjax.treatment.doubt import course, doubted, learns_nothing
from vanishjax.treatment.judgement import SHORT, learns_by_itself
from vanishjax.treatment.loss import as_judged, loss_scale, trained_loss
from vanishjax.treatment.progress import Failure, Progress, Setting, Wave
from vanishjax.treatment.proposal import propose, waiting
from vanishjax.treatment.rates import at_other_rates
from vanishjax.treatment.remedies import (
    fitting_remedies,
    larger_rates,
    output_standardizing_remedies,
    rivals,
    standardizing_remedies,
    warned_remedies,
)
from vanishjax.treatment.remedy import Remedy, in_order
from vanishjax.treatment.together import pairs
from vanishjax.treatment.treatment import Treatment
from vanishjax.treatment.trial import Trial
from vanishjax.treatment.waves import trained
from vanishjax.validation import check_count

# Where nothing proved itself, so many kinds that took the cause away get so many times the steps:
# new kernels start with outputs that guess, and what lasts may first cost some loss.
_RETRIED, _LONGER = 3, 4


class _Told(NamedTuple):
    """Who is told how far a cure has come."""

    on_trial: Callable[[Trial], None] | None
    on_wave: Callable[[tuple[str, ...], int], None] | None

    def trials(self, trials: Iterable[Trial]) -> None:
        if self.on_trial is not None:
            for trial in trials:
                self.on_trial(trial)

    def wave(self, names: tuple[str, ...], waiting: int) -> None:
        if self.on_wave is not None:
            self.on_wave(names, waiting)


def cure(
    problem: Problem,
    batches: Iterable[Any],
    *,
    steps: int,
    remedies: Sequence[Remedy] | None = None,
    key: jax.Array | None = None,
    total_steps: int | None = None,
    learning_rate: float = 1e-3,
    on_trial: Callable[[Trial], None] | None = None,
    on_wave: Callable[[tuple[str, ...], int], None] | None = None,
) -> Treatment:
    """Finds out what makes a network train, by trying it on that network.

    A healthy network that is seen to learn in the steps of one trial comes back as it is, unless
    one of these lets it learn twice as much or leaves little of its loss: standardized inputs and
    targets, where these are in units of their own; where only a short training follows, other
    rates, other kernels and other steps. So does one of which that can't be known, or
    that seems healthy and learns too little, unless a remedy lets it learn twice as much.

    Else the remedies that fit the cause are tried, in order: from the same parameters, on the same
    batches, for the same few steps, beside the untreated network (those that change parameters
    alone run all at once). Inputs and targets in units of their own are standardized together
    first. What improves the cause's statistic and the held-out loss, both by more than the noise,
    is accepted, once the network learns more than one output for all inputs. If what was wrong is
    then gone and the loss is half of the untreated one's and of a constant output's, that's the
    end, but for a more careful form of what was accepted: a few steps may go well at a rate that
    many don't. Else what is left is tried on top of it.

    What took the cause away and didn't prove itself is tried together with what mends another fault
    that is measured, inputs far from standard or a rate far off. Where nothing is accepted, the
    three kinds that took the cause away and came furthest are tried once more, in all their forms,
    for four times as many steps. Where nothing helped, the network comes back as it was. Where only
    a short training follows, what was accepted, or the network as it is, is tried at a thirtieth, a
    third, three and ten times its rate (these where it leaves more than a tenth of a constant
    output's loss), for as long as four trials, and with what came next.

    Args:
      problem: The network, its loss in any form and its transform; left as it is. It is judged by
        its loss in evaluation, on held-out batches, and trains with the model state that it has.
      batches: Batches that the loss takes, three at least of one shape. Those of another shape,
        such as a shorter one at the end, are left out, and the treatment says so. Every fourth,
        two at least, is held out to judge by; the others are gone through again and again, in an
        order that the key draws.
      steps: Training steps of each trial: enough for a healthy network to learn something, a few
        tens or a hundred.
      remedies: What to try, in order; what fits the cause if None.
      key: Of the order, of what remedies draw and of what the loss draws; ``jax.random.key(0)`` if
        None.
      total_steps: Length of the training to follow. A short one, of up to ten trials, is no place
        for a slower rate that learns less in a trial. If None, optimizers whose rate falls
        with time are given ten trials.
      learning_rate: Of the Adam-like optimizers among the remedies; Muon-like take ten times that.
      on_trial: Called with every trial when it is done.
      on_wave: Called before remedies are trained side by side, with their names and the number of
        others that are to follow as far as is known: fewer do once the network is cured, and more
        where nothing helps.

    Returns:
      The treatment: `problem` and `opt_state` to go on with, every trial, and a `recipe` in Python.

    Raises:
      TypeError: No problem, no batches, or something else than remedies.
      ValueError: Fewer than one step, no positive learning rate, too few batches, one that holds
        infinity or NaN, or what `vanishjax.probe` refuses.

    Example:
      >>> import jax.numpy as jnp, vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,) * 24, 4, activation="sigmoid", tx=vj.adam(3e-3))
      >>> x = jax.random.normal(jax.random.key(0), (16, 64, 8))
      >>> batches = [(inputs, jnp.argmax(inputs[:, :4], axis=1)) for inputs in x]
      >>> treatment = cure(problem, batches, steps=60)
      >>> [remedy.name for remedy in treatment.accepted], treatment.after.healthy
      (['slow_lsuv'], True)
      >>> print(treatment.recipe)
      params = vj.initializers.pca(loss_fn, params, batch)
      params = vj.initializers.lsuv(loss_fn, params, batch)
      params = vj.treatment.match_targets(loss_fn, params, batch, below=0.4)
      tx = optax.chain(tx, optax.scale(0.3))
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"cure takes a Problem first, got {type(problem).__name__}: make one with "
            "vanishjax.Problem.from_nnx(model, loss_fn, tx), from_linen or from_equinox, or with "
            "Problem(loss_fn, params, tx)"
        )
    check_count("steps", steps)
    if total_steps is not None:
        check_count("total_steps", total_steps)
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate must be a positive number, got {learning_rate!r}")
    for one in remedies or ():
        if not isinstance(one, Remedy):
            raise TypeError(f"remedies must be vanishjax.Remedy, got {type(one).__name__}")
    key = jax.random.key(0) if key is None else key
    problem = _placed(problem)
    trained_on, held_out, notes = divide(batches, steps)
    told = _Told(on_trial, on_wave)
    first = _examine(problem, trained_on[0])
    before = as_judged(first, problem, held_out)
    order_key, remedy_key = jax.random.split(key)
    length = np.inf if total_steps is None else total_steps / steps
    setting = Setting(
        problem,
        before,
        remedies,
        Context(
            problem,
            trained_on[0],
            learning_rate=float(learning_rate),
            total_steps=10 * steps if total_steps is None else total_steps,
            short=length <= SHORT,
            key=remedy_key,
            probe=before.probe,
            relative_step=before.relative_step,
            decay=before.decay,
            loss_scale=loss_scale(problem),
        ),
        sequence(trained_on, steps, order_key),
        stack(held_out),
        jax.random.fold_in(key, steps),
        length,
    )
    progress = Progress(problem, before, cost=PROBE_STEPS)
    if before.verdict == "healthy":
        setting, progress, said = _seen_alone(setting, progress, told)
        before, notes = setting.before, (*said, *notes)
    if before.verdict != "healthy" or progress.trials:
        if remedies is None:
            # Inputs and targets in units of their own hide each other, and either may be enough for
            # a part of the loss: they are mended together first.
            progress = _tried_in_pairs(setting, progress, told)
        progress = _tried(setting, progress, told)
        stuck = before.verdict == "sick" and progress.best is None
        if stuck and remedies is None and progress.untreated is not None and progress.tried:
            # What was found may not be all that is wrong: on to what fits where nothing is found.
            # Not where nothing fits, as where the user's own code is to be mended.
            found = [learns_nothing(progress.untreated, before)]
            others = fitting_remedies(found, setting.context)
            progress = _tried(dataclasses.replace(setting, remedies=others), progress, told)
        if before.verdict == "sick" and progress.best is None and progress.relieved:
            longer = dataclasses.replace(
                setting,
                remedies=progress.furthest(_RETRIED),
                batches=sequence(trained_on, _LONGER * steps, order_key),
                length=setting.length / _LONGER,
            )
            again = Progress(problem, before, trials=progress.trials, cost=progress.cost)
            setting, progress = longer, _tried(longer, again, told)
    # Not where nothing fits, as where the user's own code is to be mended.
    nothing_fits = before.verdict == "sick" and not (progress.tried or progress.failed)
    if remedies is None and setting.length <= SHORT and not nothing_fits:
        told.wave(("other rates",), 0)
        several = min(_LONGER * steps, max(steps, setting.context.total_steps))
        then = at_other_rates(setting, progress, sequence(trained_on, several, order_key))
        told.trials(then.trials[len(progress.trials) :])
        progress = then
    setting.context.made.clear()  # parameters that nothing else holds
    cured, opt_state = problem, None
    if progress.best is not None:
        run = progress.best
        cured = dataclasses.replace(progress.start, params=run.params, model_state=run.model_state)
        opt_state = run.opt_state
    return Treatment(
        cured,
        opt_state,
        progress.start,
        trained_on[0],
        in_order(progress.accepted),
        progress.trials,
        dataclasses.replace(before, probe=first.probe),
        progress.verdict,
        steps,
        progress.cost,
        notes,
    )


def _seen_alone(
    setting: Setting, progress: Progress, told: _Told
) -> tuple[Setting, Progress, tuple[str, ...]]:
    """Trains a network that looks healthy as it is, and doubts the verdict if it learns nothing.

    If it learns, that isn't one of the trials, which are of remedies: its diagnosis tells it. But
    where inputs or targets are far from standard, standardizing them is; and other rates, kernels
    and steps, where only a short training follows.
    """
    alone = _tried(dataclasses.replace(setting, remedies=()), progress, _Told(None, told.on_wave))
    (trial,), untreated = alone.trials, alone.untreated
    if untreated is None or learns_by_itself(untreated, setting.before):
        learned = untreated and course(untreated, setting.before)
        verdict = dataclasses.replace(setting.before, learning=learned)
        others: tuple[Remedy, ...] = ()
        if setting.remedies is None and untreated is not None:
            # In units of their own inputs may hold back a part of the network that no rule knows
            # of; and a short training may be too short for small steps.
            others = standardizing_remedies(setting.context)
            others += output_standardizing_remedies(setting.context)
            if setting.length <= SHORT:
                warned = warned_remedies(setting.before.findings, setting.context)
                others += larger_rates(setting.context) + warned
                names = {one.name for one in others}
                others += tuple(one for one in rivals(setting.context) if one.name not in names)
        if not others and (setting.remedies is not None or setting.length > SHORT):
            return setting, dataclasses.replace(progress, verdict=verdict, cost=alone.cost), ()
        told.trials((trial,))
        setting = dataclasses.replace(setting, before=verdict, remedies=others)
        return setting, dataclasses.replace(alone, verdict=verdict), ()
    examine = functools.partial(_examine, setting.problem)
    verdict, notes = doubted(setting.before, untreated, setting.batches, setting.held_out, examine)
    told.trials((trial,))
    doubting = dataclasses.replace(setting, before=verdict)
    cost = alone.cost + PROBE_STEPS * len(notes)
    return doubting, dataclasses.replace(alone, verdict=verdict, cost=cost), notes


def _tried(setting: Setting, progress: Progress, told: _Told) -> Progress:
    """What comes of wave after wave, until nothing is left to try."""
    while (wave := propose(setting, progress)) is not None:
        told.wave(*_announced(setting, progress, wave))
        progress = _tried_at_once(setting, progress, wave, told)
        if setting.remedies is not None or progress.best is not None:
            continue
        # First everything is tried alone, but for slower forms.
        if all(remedy.safer_than is not None for remedy in waiting(setting, progress)):
            progress = _tried_in_pairs(setting, progress, told)
    return progress


def _announced(setting: Setting, progress: Progress, wave: Wave) -> tuple[tuple[str, ...], int]:
    """What a wave trains, and how many other remedies wait."""
    names = tuple("untreated" if one is None else one.name for one, _ in wave.members)
    taken = {*names, *(one.remedy.name for one in wave.failures)}
    return names, sum(one.name not in taken for one in waiting(setting, progress))


def _tried_at_once(setting: Setting, progress: Progress, wave: Wave, told: _Told) -> Progress:
    """What comes of one wave."""
    then = judge(setting, progress, wave, trained(setting, wave.members))
    told.trials(then.trials[len(progress.trials) :])
    return then


def _tried_in_pairs(setting: Setting, progress: Progress, told: _Told) -> Progress:
    """What comes of remedies that took the cause away beside what mends another fault."""
    for given, candidates in pairs(progress.reliefs, setting.context):
        names = [(given.name, one.name) for one in candidates]
        others = [one for one in candidates if (given.name, one.name) not in progress.paired]
        if given.name in progress.failed or not others:
            continue
        try:
            start = given.treat(setting.problem)
        except Exception as error:
            wave = Wave((), (Failure.of(given, error),))
            progress = _tried_at_once(setting, progress, wave, told)
            continue
        beside = dataclasses.replace(
            progress, start=start, accepted=(given,), tried=frozenset[str]()
        )
        pair = _tried(dataclasses.replace(setting, remedies=others), beside, told)
        if pair.best is not None:
            return dataclasses.replace(pair, tried=progress.tried | pair.tried)
        progress = dataclasses.replace(
            progress, trials=pair.trials, cost=pair.cost, paired=progress.paired.union(names)
        )
    return progress


def _placed(problem: Problem) -> Problem:
    """The problem, its arrays on the axes on which a train step takes them."""
    arrays = problem.params, problem.model_state
    if not any(map(is_explicit, jax.tree.leaves(arrays))):
        return problem
    params, model_state = adopted(arrays)
    return dataclasses.replace(problem, params=params, model_state=model_state)


def _examine(problem: Problem, batch: Any) -> Diagnosis:
    return diagnose(trained_loss(problem), problem.params, batch, problem.tx)
