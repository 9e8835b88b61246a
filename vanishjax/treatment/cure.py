"""Cures: remedies tried beside the untreated network, and kept if they prove themselves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import report
from vanishjax.health import Diagnosis, diagnose
from vanishjax.problem import Problem
from vanishjax.transforms.safety import check_guards
from vanishjax.treatment.remedies import fitting_remedies
from vanishjax.treatment.remedy import Remedy
from vanishjax.treatment.trial import (
    Course,
    Outcome,
    Trial,
    cause_improved,
    form,
    improvement,
    keeps_up,
    race,
    run_alike,
)

# One batch in so many is held out to judge by, two at least where there are three.
_HELD_OUT = 8
_LEAST_BATCHES = 3
_PROBE_STEPS = 3.0  # what a probe costs, in training steps
# A cured network's held-out loss is at most this share of the untreated one's, or more is tried:
# a slow learner may be all that a remedy makes of it.
_LEARNT = 0.5
# So many of the remedies that proved themselves are tried at a slower rate too: the best may be the
# one that bears the rate given worse.
_LEADING = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Treatment:
    """What came of `cure`.

    Attributes:
      problem: The cured problem, its parameters trained by the winning trial's steps; the very
        object that was passed in if nothing was wrong or nothing helped.
      opt_state: The state of `problem.tx` after these steps, to go on with, if there were any.
      start: The cured problem before these steps.
      accepted: The remedies that it took, in order; () if nothing was wrong or nothing helped.
      trials: Every remedy tried, beside the untreated network, which comes first.
      before: The diagnosis before.
      after: That of `problem`.
      steps: Training steps of one trial.
      cost: Of everything, in training steps: trials and probes.
      notes: What was left out of the trials, if anything, in words.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(4, (8, 8), 2, activation="tanh")
      >>> batches = [(jax.random.normal(jax.random.key(i), (32, 4)), jnp.arange(32) % 2)
      ...            for i in range(3)]
      >>> treatment = cure(problem, batches, steps=10)
      >>> print(treatment, treatment.problem is problem, treatment.cost)
      Healthy: nothing to cure. True 3.0
    """

    problem: Problem
    opt_state: Any
    start: Problem
    accepted: tuple[Remedy, ...]
    trials: tuple[Trial, ...]
    before: Diagnosis
    after: Diagnosis
    steps: int
    cost: float
    notes: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """Python that applies the accepted remedies in a script of one's own."""
        return "\n".join(remedy.recipe for remedy in self.accepted)

    def __str__(self) -> str:
        return report.treatment_text(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The treatment as JSON types, with the diagnosis before and after."""
        return {
            "accepted": [remedy.name for remedy in self.accepted],
            "recipe": self.recipe,
            "trials": [trial.to_dict() for trial in self.trials],
            "steps": self.steps,
            "cost": self.cost,
            "notes": list(self.notes),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }

    def plot(self, path: str | Path) -> Path:
        """Draws the race: the training loss of every trial.

        Args:
          path: Where to write the PNG.

        Returns:
          The path.
        """
        return report.plot_treatment(self.to_dict(), Path(path))


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
) -> Treatment:
    """Finds out what makes a network train, by trying it on that network.

    Diagnoses the network; a healthy one is returned as it is. Else the remedies that fit the cause
    are tried, in order: from the same parameters, on the same batches, for the same few steps,
    beside the untreated network (those that change parameters alone run all at once). One that
    improves the cause's statistic and the held-out loss, both by more than the noise, is accepted.
    If what ailed the network is then gone and it learns, that's the end, but for a more careful
    form of what was accepted: a few steps may go well at a rate that many don't. Else what is left
    is tried on top of it. Where nothing helped, the network comes back as it was.

    Args:
      problem: The network, its loss and its transform; left as it is.
      batches: Batches that the loss takes, three at least of one shape. Those of another shape,
        such as a shorter one at the end, are left out, and the treatment says so. Every eighth,
        two at least, is held out to judge by; the others are gone through again and again, in an
        order that the key draws.
      steps: Training steps of each trial: enough for a healthy network to learn something, a few
        tens or a hundred.
      remedies: What to try, in order; what fits the cause if None.
      key: Of the order and of what remedies draw; ``jax.random.key(0)`` if None.
      total_steps: Length of the training to follow, for optimizers whose rate falls with time; ten
        trials if None.
      learning_rate: Of the Adam-like optimizers among the remedies; Muon-like take ten times that.
      on_trial: Called with every trial when it is done.

    Returns:
      The treatment: `problem` and `opt_state` to go on with, and every trial.

    Raises:
      ValueError: Fewer than one step, too few batches, one that holds infinity or NaN, or what
        `vanishjax.probe` refuses.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,) * 24, 4, activation="sigmoid", tx=vj.adam(3e-3))
      >>> x = jax.random.normal(jax.random.key(0), (16, 64, 8))
      >>> batches = [(inputs, jnp.argmax(inputs[:, :4], axis=1)) for inputs in x]
      >>> treatment = cure(problem, batches, steps=60)
      >>> [remedy.name for remedy in treatment.accepted], treatment.after.healthy
      (['lsuv, slower'], True)
      >>> print(treatment.recipe)
      params = vj.initializers.pca(loss_fn, params, batch)
      params = vj.initializers.lsuv(loss_fn, params, batch)
      tx = optax.chain(tx, optax.scale(0.3))
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    key = jax.random.key(0) if key is None else key
    trained_on, held_out, notes = _divide(batches, steps)
    look_at = trained_on[0]
    before = _examine(problem, look_at)
    if before.verdict != "sick":
        return Treatment(problem, None, problem, (), (), before, before, steps, _PROBE_STEPS, notes)

    order_key, remedy_key = jax.random.split(key)
    on = _sequence(trained_on, steps, order_key)
    ward = _Ward(problem, before, look_at, on, _stack(held_out), on_trial or (lambda _: None))
    while True:
        candidates = remedies
        if candidates is None:
            candidates = fitting_remedies(
                (*before.findings, *ward.verdict.findings),
                ward.start,
                look_at,
                learning_rate=learning_rate,
                total_steps=10 * steps if total_steps is None else total_steps,
                key=remedy_key,
            )
        wave = ward.next_wave(candidates)
        if not wave:
            break
        ward.try_out(wave)
    return ward.treatment(before, steps, notes)


class _Ward:
    """A sick network, what was tried on it, and what was accepted so far."""

    def __init__(
        self,
        problem: Problem,
        verdict: Diagnosis,
        look_at: Any,
        batches: Any,
        held_out: Any,
        tell: Callable[[Trial], None],
    ) -> None:
        self.verdict = verdict
        self.start = problem
        self._tried: set[str] = set()
        self._failed: set[str] = set()
        self._leading: set[str] = set()
        self._problem, self._look_at, self._tell = problem, look_at, tell
        self._batches, self._held_out = batches, held_out
        self._untreated: Course | None = None
        self._best: Course | None = None  # of what was accepted last
        self._accepted: tuple[Remedy, ...] = ()
        self._cured = False  # the network is healthy, and learns what the untreated one doesn't
        self._trials: list[Trial] = []
        self._failures: list[Trial] = []  # not told yet: the untreated network comes first
        self._cost = _PROBE_STEPS

    def next_wave(self, candidates: Sequence[Remedy]) -> list[tuple[Remedy | None, Problem]]:
        """The next remedies that can run all at once, each with the problem that it makes.

        The untreated network comes first of all, with those that leave its loss and transform
        alone. Once the network is cured, what is left is a safer form of what cured it. Remedies
        that raise are recorded.
        """
        untried = [
            one
            for one in candidates
            if one.name not in self._tried | self._failed and one.safer_than not in self._failed
        ]
        if self._cured:
            untried = [one for one in untried if self._is_safer(one)]
        wave: list[tuple[Remedy | None, Problem]] = []
        if self._untreated is None:
            wave.append((None, self._problem))
        for remedy in untried:
            try:
                treated = remedy.apply(self._before(remedy))
                # What it refuses, it refuses now.
                check_guards(jax.eval_shape(treated.transform.init, treated.params))
            except Exception as error:
                self._fail(remedy, error)
                continue
            if wave and not run_alike(wave[0][1], treated):
                break
            wave.append((remedy, treated))
        return wave

    def try_out(self, wave: Sequence[tuple[Remedy | None, Problem]]) -> None:
        """Trains a wave, judges it, and accepts the best of what proves itself."""
        run = self._run(wave)
        proven: list[tuple[Remedy, Course, Diagnosis, str]] = []
        for remedy, course in run:
            self._cost += len(course.losses)
            if remedy is None:
                self._untreated = course
                self._record(_trial("untreated", "untreated", course, self.verdict, ""))
                continue
            self._tried.add(remedy.name)
            if not course.finite:
                reason = "the loss isn't finite"
                self._record(_trial(self._name(remedy), "diverged", course, None, reason))
                continue
            try:
                after = _examine(
                    dataclasses.replace(course.problem, params=course.params), self._look_at
                )
            except Exception as error:
                self._fail(remedy, error)
                continue
            self._cost += _PROBE_STEPS
            # The untreated network leads the first wave.
            rival = self._best or self._untreated or run[0][1]
            judge = keeps_up if self._is_safer(remedy) else improvement
            lower, by = judge(course, rival)
            better, how = cause_improved(after, self.verdict)
            if lower and better:
                proven.append((remedy, course, after, f"{by}; {how}"))
            else:
                trial = _trial(self._name(remedy), "no better", course, after, f"{by}; {how}")
                self._record(trial)
        # A safer one that keeps up comes first, whatever is ahead of it.
        proven.sort(key=lambda one: (not self._is_safer(one[0]), np.mean(one[1].held_out)))
        names = [self._name(remedy) for remedy, *_ in proven]
        self._leading.update(remedy.name for remedy, *_ in proven[:_LEADING])
        for rank, (remedy, course, after, reason) in enumerate(proven):
            outcome: Outcome = "better" if rank else "accepted"
            self._record(_trial(names[rank], outcome, course, after, reason))
            if not rank:
                self._best, self.verdict, self.start = course, after, course.problem
                self._accepted = (*remedy.follows(self._accepted), remedy)
                # A slower form that keeps up with what cured the network has cured it too.
                self._cured = self._cured or (after.verdict != "sick" and self._learns(course))
        self._record_failures()

    def _run(
        self, wave: Sequence[tuple[Remedy | None, Problem]]
    ) -> list[tuple[Remedy | None, Course]]:
        """The courses of those that run; the others are recorded."""
        try:
            courses = race([treated for _, treated in wave], self._batches, self._held_out)
            return list(zip([remedy for remedy, _ in wave], courses, strict=True))
        except Exception as error:
            if len(wave) > 1:
                # One of them can't be run, or all at once are too many for the memory.
                return [one for member in wave for one in self._run([member])]
            ((remedy, treated),) = wave
            if remedy is None:
                raise
            changed = form(treated.params) != form(self._before(remedy).params)
            self._fail(remedy, error, "with the parameters it makes, " if changed else "")
            return []

    def treatment(self, before: Diagnosis, steps: int, notes: tuple[str, ...]) -> Treatment:
        """What came of it."""
        self._record_failures()
        if self._best is None:
            cured, opt_state = self._problem, None
        else:
            cured = dataclasses.replace(self.start, params=self._best.params)
            opt_state = self._best.opt_state
        return Treatment(
            cured,
            opt_state,
            self.start,
            self._accepted,
            tuple(self._trials),
            before,
            self.verdict,
            steps,
            self._cost,
            notes,
        )

    def _learns(self, course: Course) -> bool:
        before = np.mean(self._untreated.held_out) if self._untreated else np.inf
        return not np.isfinite(before) or bool(np.mean(course.held_out) < _LEARNT * before)

    def _is_safer(self, remedy: Remedy) -> bool:
        return remedy.safer_than in self._leading

    def _name(self, remedy: Remedy) -> str:
        return " + ".join(one.name for one in (*remedy.follows(self._accepted), remedy))

    def _before(self, remedy: Remedy) -> Problem:
        """The problem that a remedy treats: with those accepted before that it leaves in force."""
        left = remedy.follows(self._accepted)
        if left == self._accepted:
            return self.start
        problem = self._problem
        for one in left:
            problem = one.apply(problem)
        return problem

    def _fail(self, remedy: Remedy, error: Exception, circumstance: str = "") -> None:
        self._failed.add(remedy.name)
        said = next(iter(str(error).strip().splitlines()), "")
        reason = f"{circumstance}{type(error).__name__}" + (f": {said}" if said else "")
        name = self._name(remedy)
        trial = Trial(name, "failed", float("nan"), None, np.zeros(0), (), reason, 0)
        self._failures.append(trial)

    def _record_failures(self) -> None:
        for trial in self._failures:
            self._record(trial)
        self._failures.clear()

    def _record(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._tell(trial)


def _examine(problem: Problem, batch: Any) -> Diagnosis:
    return diagnose(problem.loss_fn, problem.params, batch, problem.tx)


def _trial(
    name: str, outcome: Outcome, course: Course, after: Diagnosis | None, reason: str
) -> Trial:
    findings = () if after is None else after.findings
    rules = tuple(finding.rule for finding in findings if finding.severity == "critical")
    loss = float(np.mean(course.held_out))
    return Trial(
        name, outcome, loss, course.accuracy, course.losses, rules, reason, len(course.losses)
    )


def _divide(batches: Iterable[Any], steps: int) -> tuple[list[Any], list[Any], tuple[str, ...]]:
    """What is trained on and what is held out, no more than a trial can use; what was left out."""
    most = steps + max(2, steps // (_HELD_OUT - 1))
    taken = list(itertools.islice(batches, most))
    shapes = [_shapes(batch) for batch in taken]
    usual = max(shapes, key=shapes.count, default=None)
    alike = [number for number, shape in enumerate(shapes) if shape == usual]
    for number in alike:
        _check_finite(taken[number], number)
    odd = [shape for shape in shapes if shape != usual]
    left_out = ""
    if odd:
        left_out = (
            f"{len(odd)} of {len(taken)} batches were left out: {_worded(odd[0])} where the others "
            f"have {_worded(usual)}"
        )
    if len(alike) < _LEAST_BATCHES:
        raise ValueError(
            f"cure needs {_LEAST_BATCHES} batches of one shape or more, to hold some out, got "
            f"{len(alike)}: a list of batches, each what loss_fn takes"
            + (f"; {left_out}" if left_out else "")
        )
    held = {*range(_HELD_OUT - 1, len(alike), _HELD_OUT), len(alike) - 1}
    if len(held) < 2 and len(alike) > _LEAST_BATCHES:
        held.add(len(alike) - 2)
    return (
        [taken[at] for number, at in enumerate(alike) if number not in held],
        [taken[at] for number, at in enumerate(alike) if number in held],
        (left_out,) if left_out else (),
    )


def _shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}


def _worded(shapes: Any) -> str:
    """The shapes of a batch's arrays, as far as a person wants to read them."""
    words = ", ".join(str(list(shape)) for shape in shapes.values()) or "nothing"
    return words if len(words) <= 100 else f"{words[:97]}..."


def _check_finite(batch: Any, number: int) -> None:
    """Raises ValueError if a batch holds infinity or NaN: every trial would diverge on it."""
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            # A NumPy array stays one: its doubles may be beyond what JAX makes of them.
            finite = jnp.isfinite(x) if isinstance(x, jax.Array) else np.isfinite(x)
            wrong = int((~finite).sum())
            if wrong:
                raise ValueError(
                    f"batch {number}{jax.tree_util.keystr(path)} (counted from 0) holds {wrong} "
                    "values that are infinite or NaN: clean the input"
                )


def _sequence(batches: Sequence[Any], steps: int, key: jax.Array) -> Any:
    """A batch for every step, `[steps, ...]`: pass after pass, each in an order of its own."""
    passes = -(-steps // len(batches))
    keys = jax.random.split(key, passes)
    orders = [jax.random.permutation(own, len(batches)) for own in keys]
    order = jnp.concatenate(orders)[:steps]
    return jax.tree.map(lambda x: x[order], _stack(batches))


def _stack(batches: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)
