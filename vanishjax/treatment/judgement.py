"""Whether a remedy proved itself: by the held-out loss, and by what was wrong with the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vanishjax.health import Diagnosis
from vanishjax.treatment.trial import Run

# How far a slower run must come in a long training. On tuning networks whose kernels were made
# anew, a third of the rate came from .5 of the way (sigmoid x10) to beyond the faster run (tanh
# x32) in 40 steps, and in 1,500 steps to the same accuracy or, where the faster one fell apart, to
# a far better one.
_HALF = 0.5
# Trials up to which a training is short, and a slower run must come all the way. Of 13 tuning
# networks whose slower run came .5 to .98 as far in 40 steps, 11 went farther by the faster one in
# the 200 to 300 steps after that, by up to .3 of the gap to a healthy network, the others .03 less.
SHORT = 10
# How far what changes less must come to be about as far as the best run. On tuning networks whose
# start or attention was at fault, what changed that alone came .84 to .91 as far in 40 steps as
# kernels made anew, or farther than these, and as far by the end; where all kernels were at fault,
# not below the start of the new ones.
_NEARLY = 0.8
_FARTHER = 2.0  # times as much as a network of which nothing is known learns by itself
LEFT_OF_TRIAL, LEFT_OF_RACE = 0.1, 0.5  # or the share of the loss that it leaves at the end
_LEARNED = 0.5  # share of the untreated network's held-out loss
_ERRORS = 2.0  # standard errors that chance doesn't bridge
# Of a constant output's loss: who is below it by less, though by the same on every batch, has moved
# a few last digits. Codes of inputs that are alike to six digits fell by 2e-6 in a trial, and no
# further in a training.
_FAINT = 1e-4


def improvement(treated: Run, untreated: Run, before: Diagnosis | None = None) -> tuple[bool, str]:
    """Whether a treatment lowered the held-out loss by more than the noise.

    The batches are compared pair by pair: the mean difference must exceed two standard errors, and
    one percent of the untreated loss. Where that is large and differs from batch to batch, it is
    enough that it is less than half on every batch; or that the treated network beats a constant
    output by more than its own noise, on no batch with half of what the untreated one, which
    doesn't, loses on average: what has exploded is right by chance on some batch.

    Args:
      treated: Its run.
      untreated: What it is compared with.
      before: The diagnosis of the untreated network, which knows what a constant output reaches;
        None where that doesn't count.

    Returns:
      The answer, and the numbers behind it in words.
    """
    if not np.isfinite(untreated.held_out).all():
        return True, "the untreated network diverged"
    gains = untreated.held_out - treated.held_out
    gain = float(np.mean(gains))
    least = 0.01 * float(np.abs(np.mean(untreated.held_out)))
    noise = max(_ERRORS * _standard_error(gains), least)
    way = "lower" if gain >= 0 else "higher"
    halved = (treated.held_out >= 0) & (treated.held_out < _LEARNED * untreated.held_out)
    if gain <= noise and halved.all():
        return True, f"held-out loss lower by {gain:.3g}, and less than half on every batch"
    if gain <= noise and before is not None and _learns_beside(treated, untreated, before):
        return True, f"held-out loss lower by {gain:.3g}, and below that of a constant output"
    relation = "more" if abs(gain) > noise else "not more"
    return gain > noise, f"held-out loss {way} by {abs(gain):.3g}, {relation} than {noise:.2g}"


def _learns_beside(treated: Run, untreated: Run, before: Diagnosis) -> bool:
    """Whether a network learns for sure, and another is known not to and loses twice as much."""
    if beats_constant(untreated, before) or not beats_constant(treated, before, _ERRORS):
        return False
    return bool(np.max(treated.held_out) < _LEARNED * np.mean(untreated.held_out))


def keeps_up(slow: Run, fast: Run, length: float, before: Diagnosis) -> tuple[bool, str]:
    """Whether a slower run came far enough beside the best fast one.

    What a slower rate loses in the first steps it may more than win back: a few steps may go well
    at a rate that many don't. In a short training it has no time to: there it must come as far as
    the fast one, and in one of twice the length or more half as far. Both are counted from the
    lower of their starts: the faster one may be of other kernels. Where that lies above what a
    constant output reaches, and the fast one got below it, both are counted from there: the way
    down to it is that of an output bias.

    Args:
      slow: The run of the more careful one.
      fast: That of the other.
      length: Trials that the training to follow is as long as.
      before: The diagnosis of the untreated network, which knows what a constant output reaches.

    Returns:
      The answer, and the numbers behind it in words.
    """
    share = min(max(SHORT / length, _HALF), 1.0)
    constant = _constant_loss(before) if beats_constant(fast, before) else np.nan
    start, came, most = _below_start(slow, fast, constant)
    kept_up = came >= min(share * most, most)
    relation = "at least" if kept_up else "less than"
    part = {1.0: "the", _HALF: "half of the"}.get(share, f"{share:.2g} of the")
    said = f"the loss came {came:.3g} below {start:.3g}, {relation} {part} faster one's {most:.3g}"
    return kept_up, f"{said}, and slower is safer" if kept_up else said


def gets_as_far(local: Run, best: Run, before: Diagnosis) -> bool:
    """Whether what changes less got about as far as the best run.

    That is within the noise; or it beats a constant output, and came about as far from the lower of
    both starts. The untreated network's loss may lie so far above that the way down from there says
    nothing, and the best constant output of one batch isn't sure enough to count from.

    Args:
      local: The run of what changes nothing but what is at fault.
      best: That with the least held-out loss.
      before: The diagnosis of the untreated network, which knows what a constant output reaches.

    Returns:
      The answer.
    """
    if not improvement(best, local)[0]:
        return True
    _, came, most = _below_start(local, best)
    return beats_constant(local, before) and came >= _NEARLY * most


def _below_start(one: Run, other: Run, constant: float = np.nan) -> tuple[float, float, float]:
    """The lower of two runs' starts and of a constant, and how far below it each of them came."""
    start = float(np.fmin(min(one.first, other.first), constant))
    ends = (float(np.mean(run.held_out)) for run in (one, other))
    return start, start - next(ends), start - next(ends)


def beats_constant(run: Run, before: Diagnosis, errors: float = 0.0) -> bool:
    """Whether a network has learned more than one output for all inputs.

    An output bias that moves lowers the loss too, also where the labels can't be learned.

    Args:
      run: Its run.
      before: The diagnosis of the untreated network, which knows what a constant output reaches.
      errors: By how many standard errors of the held-out loss it must do so, and by more than a
        ten-thousandth of the constant's; 0 for any difference.

    Returns:
      The answer; True where it isn't known.
    """
    constant = _constant_loss(before)
    if not np.isfinite(constant):
        return True
    margin = 0.0
    if errors:
        margin = max(errors * _standard_error(run.held_out), _FAINT * abs(constant))
    return float(np.mean(run.held_out)) < constant - margin


def _constant_loss(before: Diagnosis) -> float:
    """What a constant output reaches; NaN where it isn't known.

    Exactly 0 says as little: all targets are one, or what tells them apart is lost in rounding, as
    behind a critic that has collapsed. Nothing would ever be below.
    """
    constant = before.probe.constant_loss
    return np.nan if constant == 0 else constant


def _standard_error(values: np.ndarray[Any, Any]) -> float:
    """Of the mean; 0 where one value alone tells nothing of it."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def least_without(untreated: Run | None, before: Diagnosis) -> float:
    """What is to be beaten: the held-out loss of a network as it is, or of a constant output.

    Args:
      untreated: The network's run.
      before: Its diagnosis, which knows what a constant output reaches.

    Returns:
      The lesser; NaN where neither is known.
    """
    alone = np.nan if untreated is None else float(np.mean(untreated.held_out))
    return float(np.fmin(alone, _constant_loss(before)))


def learns(run: Run, untreated: Run | None, before: Diagnosis) -> bool:
    """Whether a cured network's loss is well below the untreated one's, or more is to be tried.

    A slow learner may be all that a remedy makes of it. Where the untreated one exploded, half of
    its loss says nothing: what a constant output reaches counts, where that is less.

    Args:
      run: Of the cured network.
      untreated: Of the other.
      before: The diagnosis of the other, which knows what a constant output reaches.

    Returns:
      Whether the held-out loss is at most half; True where there is nothing to compare it with.
    """
    least = least_without(untreated, before)
    return not np.isfinite(least) or bool(np.mean(run.held_out) < _LEARNED * least)


def learns_by_itself(untreated: Run, before: Diagnosis) -> bool:
    """Whether a network that isn't known to be sick is seen to learn without any help.

    Args:
      untreated: Its run.
      before: Its diagnosis.

    Returns:
      Whether its loss fell, and below that of the best constant output by more than the noise: the
      other is that of one batch, and a guess may be a little better on those held out. What looks
      healthy and has learned already, so that it starts at half of that, need not learn more; and
      where that isn't known it gets the benefit of the doubt, if its loss is finite.
    """
    if not (untreated.finite and beats_constant(untreated, before, _ERRORS)):
        return False
    constant, falls = before.probe.constant_loss, untreated.progress > 0
    if not np.isfinite(constant):
        return before.verdict == "healthy"
    has_learned = untreated.first < constant - _LEARNED * abs(constant)
    return falls or (before.verdict == "healthy" and has_learned)


def goes_farther(treated: Run, untreated: Run, share: float) -> tuple[bool, str]:
    """Whether a treatment lets a network of which nothing is known learn twice as much.

    Both are counted from the lower of their starts: what starts at 1e20 falls far and learns
    nothing. What learns more than half of what there is can't be doubled: to leave a part of its
    loss is as much.

    Args:
      treated: Its run.
      untreated: That of the other.
      share: That part.

    Returns:
      The answer, and the numbers behind it in words.
    """
    lower, said = improvement(treated, untreated)
    if not (lower and untreated.finite):
        return lower, said
    left, most = float(np.mean(treated.held_out)), share * float(np.mean(untreated.held_out))
    if 0 <= left < most:
        return True, f"{said}; less than {share:g} of it is left"
    start, came, alone = _below_start(treated, untreated)
    farther = came > _FARTHER * max(alone, 0.0)
    relation = "more" if farther else "not more"
    return farther, f"{said}; {relation} than {_FARTHER:.0f} times as far below {start:.3g}"


def cause_improved(after: Diagnosis, before: Diagnosis) -> tuple[bool, str]:
    """Whether a network suffers less from what ailed it; without a cause none may come.

    Args:
      after: Its diagnosis now.
      before: Its diagnosis then.

    Returns:
      The answer, and the numbers behind it in words.
    """
    left, had = (
        {finding.rule for finding in verdict.findings if finding.severity == "critical"}
        for verdict in (after, before)
    )
    if not had:
        return not left, "nothing critical" if not left else f"now {', '.join(sorted(left))}"
    if had - left:
        gone = ", ".join(sorted(rule.replace("_", " ") for rule in had - left))
        return True, f"no more {gone}"
    for name, measure in _STATISTICS.items():
        if had & _RULES[name]:
            old, new = measure(before), measure(after)
            if np.isfinite([old, new]).all() and new < 0.9 * old:
                return True, f"{name} {old:.3g} -> {new:.3g}"
    return False, "the cause is still there"


def _sum_log_chi(verdict: Diagnosis) -> float:
    return abs(verdict.probe.sum_log_chi)


def _collapse(verdict: Diagnosis) -> float:
    """Decades of energy that tells inputs apart, lost."""
    energy = verdict.probe.centered_energy[:-1]
    return float(-np.log10(max(energy[-1], 1e-30))) if len(energy) else float("nan")


def _dead(verdict: Diagnosis) -> float:
    probe = verdict.probe
    return float(np.nanmax(np.maximum(probe.dead_fraction, probe.saturated_fraction), initial=0.0))


def _blind(verdict: Diagnosis) -> float:
    share = verdict.effectiveness
    return float("nan") if share is None else 1.0 - float(np.min(share))


# Statistics that are the smaller the better, and the rules that they stand for.
_STATISTICS: dict[str, Callable[[Diagnosis], float]] = {
    "|sum of ln chi|": _sum_log_chi,
    "decades of collapse": _collapse,
    "dead or saturated units": _dead,
    "share of steps lost": _blind,
}
_RULES = {
    "|sum of ln chi|": {"vanishing_gradient", "exploding_gradient", "underflow"},
    "decades of collapse": {"mean_collapse", "rank_collapse"},
    "dead or saturated units": {"dead_units", "saturated_units"},
    "share of steps lost": {"blind_optimizer"},
}
