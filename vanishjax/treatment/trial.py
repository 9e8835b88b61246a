"""A trial: a treated network trained for a few steps beside the untreated one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax.compilation import jit_recent
from vanishjax.health import Diagnosis
from vanishjax.health.finding import json_value
from vanishjax.problem import Problem
from vanishjax.training import TrainState, local_step

Outcome = Literal["untreated", "accepted", "better", "no better", "diverged", "failed"]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What came of a remedy.

    Attributes:
      remedy: Its name; those already accepted come before it, with "+" between them.
      outcome: "accepted": it improved both the cause and the held-out loss by more than the noise,
        more than any other did; "better": it did so too, but another did more; "no better": it
        didn't; "diverged": the loss became infinite or NaN; "failed": the remedy raised.
      loss: Held-out loss after the trial; NaN if it failed.
      accuracy: Held-out accuracy, where the problem has a `predict_fn` and integer labels.
      losses: The training loss at every step.
      rules: What a diagnosis after the trial found critical.
      reason: Why the outcome is what it is.
      steps: Number of training steps that it took.

    Example:
      >>> trial = Trial("lsuv", "no better", 2.3, 0.1, np.array([2.4, np.nan]), (), "", 2)
      >>> trial.to_dict()["losses"]
      [2.4, None]
    """

    remedy: str
    outcome: Outcome
    loss: float
    accuracy: float | None
    losses: np.ndarray[Any, Any]
    rules: tuple[str, ...]
    reason: str
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """The trial as JSON types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        whole: dict[str, Any] = json_value(fields)
        return whole


class Course(NamedTuple):
    """A network's run.

    Attributes:
      problem: As it started.
      params: The parameters at the end.
      opt_state: The transform's state at the end.
      losses: `[steps]`, of training.
      held_out: `[batches]`, held-out losses at the end, in float64.
      accuracy: Held-out, or None.
    """

    problem: Problem
    params: Any
    opt_state: Any
    losses: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]
    accuracy: float | None

    @property
    def finite(self) -> bool:
        """Whether it never diverged."""
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.held_out).all())

    @property
    def progress(self) -> float:
        """By how much the loss fell, from the first batch to those held out."""
        return float(self.losses[0]) - float(np.mean(self.held_out))


def race(problems: Sequence[Problem], batches: Any, held_out: Any) -> list[Course]:
    """Trains problems that differ in nothing but their parameters, all at once.

    Args:
      problems: With the same loss, transform, and shapes of parameters.
      batches: `[steps, ...]`: a batch for each step.
      held_out: `[n, ...]`: what the end is judged on.

    Returns:
      A course for each.
    """
    first = problems[0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.params for p in problems))
    predict_fn = first.predict_fn if _has_labels(held_out) else None
    found = jax.device_get(
        _run_all(first.loss_fn, first.tx, predict_fn, stacked, batches, held_out)
    )
    courses = []
    for number, problem in enumerate(problems):
        params, state, losses, held, accuracy = jax.tree.map(lambda x, i=number: x[i], found)
        params = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), params, problem.params)
        scored = None if accuracy is None else float(accuracy)
        state = jax.tree.map(jnp.asarray, state)
        # In doubles: the square of an exploding network's loss may be beyond a float32.
        held = held.astype(np.float64)
        courses.append(Course(problem, params, state, losses, held, scored))
    return courses


def run_alike(problem: Problem, other: Problem) -> bool:
    """Whether two problems differ in nothing but their parameters' values."""
    return (
        problem.loss_fn is other.loss_fn
        and problem.tx is other.tx
        and form(problem.params) == form(other.params)
    )


def form(tree: Any) -> tuple[Any, list[Any]]:
    """The structure of a tree, and the shape and type of every leaf.

    Example:
      >>> form({"w": jnp.ones(2)})[1] == form({"w": jnp.zeros(2)})[1]
      True
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


# Axes of a convolution's kernel.
_CONVOLUTION = 4
# How far a slower run must come. On tuning networks whose kernels were made anew, a third of the
# rate came from .5 of the way (sigmoid x10) to beyond the faster run (tanh x32) in 40 steps, and in
# 1,500 steps to the same accuracy or, where the faster one fell apart, to a far better one.
_HALF = 0.5


# Compiled once for a loss and a transform: pass the same objects again to save that.
@functools.partial(jit_recent, static_argnums=(0, 1, 2))
def _run_all(
    loss_fn: Callable[[Any, Any], Any],
    tx: optax.GradientTransformation,
    predict_fn: Callable[[Any, Any], Any] | None,
    params: Any,
    batches: Any,
    held_out: Any,
) -> tuple[Any, ...]:
    """A run for each of the parameters `[problems, ...]`."""

    def loss_of(params: Any, batch: Any) -> jax.Array:
        value = loss_fn(params, batch)
        return value[0] if isinstance(value, tuple) else value

    step = local_step(loss_of, tx)

    def right(params: Any, batch: Any) -> jax.Array:
        outputs = predict_fn(params, batch[0])  # type: ignore[misc]  # called only if there is one
        return jnp.mean(jnp.argmax(outputs, axis=-1) == batch[1])

    def run(params: Any) -> tuple[Any, ...]:
        # Nothing in these steps is random: the key is never used.
        start = TrainState(jnp.zeros([], jnp.int32), params, tx.init(params), jnp.zeros([]))
        (_, params, state, *_), metrics = jax.lax.scan(step, start, batches)
        held = jax.lax.map(lambda batch: loss_of(params, batch), held_out)
        scored = None
        if predict_fn is not None:
            scored = jnp.mean(jax.lax.map(lambda batch: right(params, batch), held_out))
        return params, state, metrics["loss"], held, scored

    # Side by side, unless there are convolutions: with kernels of their own these are slow.
    if any(leaf.ndim > _CONVOLUTION for leaf in jax.tree.leaves(params)):
        return jax.lax.map(run, params)
    return jax.vmap(run)(params)


def _has_labels(batch: Any) -> bool:
    """Whether a batch is inputs and integer labels."""
    if not (isinstance(batch, tuple) and len(batch) == 2):
        return False
    return isinstance(batch[1], jax.Array) and jnp.issubdtype(batch[1].dtype, jnp.integer)


def improvement(treated: Course, untreated: Course) -> tuple[bool, str]:
    """Whether a treatment lowered the held-out loss by more than the noise.

    The batches are compared pair by pair: the mean difference must exceed two standard errors, and
    one percent of the untreated loss.

    Args:
      treated: Its course.
      untreated: What it is compared with.

    Returns:
      The answer, and the numbers behind it in words.
    """
    if not np.isfinite(untreated.held_out).all():
        return True, "the untreated network diverged"
    gains = untreated.held_out - treated.held_out
    gain, count = float(np.mean(gains)), len(gains)
    error = float(np.std(gains, ddof=1)) / count**0.5 if count > 1 else 0.0
    noise = max(2 * error, 0.01 * float(np.abs(np.mean(untreated.held_out))))
    way = "lower" if gain >= 0 else "higher"
    relation = "more" if abs(gain) > noise else "not more"
    return gain > noise, f"held-out loss {way} by {abs(gain):.3g}, {relation} than {noise:.2g}"


def keeps_up(slow: Course, fast: Course) -> tuple[bool, str]:
    """Whether a slower run came half as far as the best fast one.

    What a slower rate loses in the first steps it may more than win back: a few steps may go well
    at a rate that many don't.

    Args:
      slow: The course of the more careful one.
      fast: That of the other.

    Returns:
      The answer, and the numbers behind it in words.
    """
    kept_up = slow.progress >= min(_HALF * fast.progress, fast.progress)
    relation = "at least" if kept_up else "less than"
    said = f"the loss fell by {slow.progress:.3g}, {relation} half of the faster one's "
    said += f"{fast.progress:.3g}"
    return kept_up, f"{said}, and slower is safer" if kept_up else said


def cause_improved(after: Diagnosis, before: Diagnosis) -> tuple[bool, str]:
    """Whether a network suffers less from what ailed it; a healthy one has but to stay so.

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
        return not left, "still healthy" if not left else f"now {', '.join(sorted(left))}"
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
