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

from vanishjax.compilation import jit_once, jit_recent
from vanishjax.health.finding import json_value
from vanishjax.problem import Problem, loss_alone
from vanishjax.training import TrainState, local_step, scan_steps

Outcome = Literal["untreated", "accepted", "better", "no better", "diverged", "failed"]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What came of a remedy.

    Attributes:
      remedy: Its name; those already accepted come before it, with "+" between them.
      outcome: "accepted": it improved both the cause and the held-out loss by more than the noise,
        more than any other did, and the network learns more than a constant output; "better": it
        did so too, but another did more; "no better": it didn't; "diverged": the loss became
        infinite or NaN; "failed": the remedy raised.
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


class Run(NamedTuple):
    """A network's training in a trial.

    Attributes:
      problem: As it started.
      params: The parameters at the end.
      opt_state: The transform's state at the end.
      model_state: The model state at the end.
      losses: `[steps]`, of training.
      first: The loss of the first batch before any step, in evaluation.
      held_out: `[batches]`, held-out losses at the end, in evaluation, in float64.
      accuracy: Held-out, or None.
    """

    problem: Problem
    params: Any
    opt_state: Any
    model_state: Any
    losses: np.ndarray[Any, Any]
    first: float
    held_out: np.ndarray[Any, Any]
    accuracy: float | None

    @property
    def finite(self) -> bool:
        """Whether it never diverged."""
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.held_out).all())

    @property
    def progress(self) -> float:
        """By how much the loss fell, from the first batch to those held out."""
        return self.first - float(np.mean(self.held_out))


def race(
    problems: Sequence[Problem],
    batches: Any,
    held_out: Any,
    key: jax.Array | None = None,
    *,
    rates: Sequence[float] | None = None,
) -> list[Run]:
    """Trains problems that differ in nothing but their parameters and model state, all at once.

    Or in their rates: each but the first's multiplies the steps of the first's transform.

    Args:
      problems: That run alike (`run_alike`), but for the rates.
      batches: `[steps, ...]`: a batch for each step.
      held_out: `[n, ...]`: what the end is judged on.
      key: What losses draw from; the same for all.
      rates: What each multiplies the steps of the first's transform by, that one by 1; None if all
        have the same transform.

    Returns:
      A run for each.
    """
    key = jax.random.key(0) if key is None else key
    params, model_state = _stacked([(one.params, one.model_state) for one in problems])
    task = _task(problems[0], held_out)
    parts = None if rates is None else jnp.asarray(rates, jnp.float32)
    found = jax.device_get(_run_all(task, params, model_state, parts, batches, held_out, key))
    runs = []
    for number, problem in enumerate(problems):
        params, opt_state, model_state, first, losses, held, accuracy = jax.tree.map(
            lambda x, i=number: x[i], found
        )
        params = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), params, problem.params)
        scored = None if accuracy is None else float(accuracy)
        if rates is not None and rates[number] == 1:
            opt_state = opt_state[0]  # without that of the scale beside it
        opt_state, model_state = jax.tree.map(jnp.asarray, (opt_state, model_state))
        # In doubles: the square of an exploding network's loss may be beyond a float32.
        held = held.astype(np.float64)
        state = params, opt_state, model_state
        runs.append(Run(problem, *state, losses, float(first), held, scored))
    return runs


def run_alike(problem: Problem, other: Problem) -> bool:
    """Whether two problems differ in nothing but the values of parameters and model state."""
    return _task(problem) == _task(other) and all(
        form(a) == form(b)
        for a, b in (
            (problem.params, other.params),
            (problem.model_state, other.model_state),
        )
    )


def form(tree: Any) -> tuple[Any, list[Any]]:
    """The structure of a tree, and the shape and type of every leaf.

    Example:
      >>> form({"w": jnp.ones(2)})[1] == form({"w": jnp.zeros(2)})[1]
      True
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


class _Task(NamedTuple):
    """All of a problem but its arrays: hashable, so that what is compiled is found again."""

    loss_fn: Callable[..., Any]
    evaluate_fn: Callable[..., Any] | None
    tx: optax.GradientTransformation
    flags: tuple[bool, bool, bool]
    predict_fn: Callable[[Any, Any], Any] | None

    def problem(self) -> Problem:
        has_aux, with_key, with_state = self.flags
        says_all = has_aux or with_state
        loss_fns = (self.loss_fn, self.evaluate_fn)
        loss_fn, evaluate_fn = loss_fns if says_all else map(_loss_alone, loss_fns)
        return Problem(
            loss_fn,
            None,
            self.tx,
            has_aux=has_aux,
            with_key=with_key,
            with_state=with_state,
            evaluate_fn=evaluate_fn,
        )


def _loss_alone(loss_fn: Callable[..., Any] | None) -> Any:
    """A loss without what it returns beside it, though no flag says so."""

    def loss(*arguments: Any, **settings: Any) -> Any:
        # It is called only if there is one.
        return loss_alone(loss_fn(*arguments, **settings))  # type: ignore[misc]

    return None if loss_fn is None else loss


def _task(problem: Problem, held_out: Any = None) -> _Task:
    flags = problem.has_aux, problem.with_key, problem.with_state
    scored = _has_labels(held_out) and not problem.with_state
    predict_fn = problem.predict_fn if scored else None
    return _Task(problem.loss_fn, problem.evaluate_fn, problem.transform, flags, predict_fn)


@jit_once
def _stacked(trees: list[Any]) -> Any:
    """Trees alike as one, `[trees, ...]`: by one program, where each shape would take its own."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# Axes of a convolution's kernel.
_CONVOLUTION = 4


# Compiled once for a loss and a transform: pass the same objects again to save that.
@functools.partial(jit_recent, static_argnums=0)
def _run_all(
    task: _Task,
    params: Any,
    model_state: Any,
    rates: jax.Array | None,
    batches: Any,
    held_out: Any,
    key: jax.Array,
) -> tuple[Any, ...]:
    """A run for each of the parameters, model states and rates, if any, `[problems, ...]`."""
    problem = task.problem()

    def right(params: Any, batch: Any) -> jax.Array:
        outputs = task.predict_fn(params, batch[0])  # type: ignore[misc]  # called if there is one
        return jnp.mean(jnp.argmax(outputs, axis=-1) == batch[1])

    def run(start: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        params, model_state, rate = start
        tx = task.tx if rate is None else optax.chain(task.tx, _scale(rate))
        state = TrainState.create(params, tx, key, model_state=model_state)
        state, metrics = scan_steps(local_step(dataclasses.replace(problem, tx=tx)), state, batches)

        def evaluated(params: Any, model_state: Any, batch: Any) -> jax.Array:
            return problem.evaluate(params, batch, model_state=model_state, training=False).loss

        first = metrics["loss"][0]
        if task.evaluate_fn is not None or problem.with_key:
            first = evaluated(params, model_state, jax.tree.map(lambda x: x[0], batches))
        held = _each(evaluated, held_out, state.params, state.model_state)
        scored = None
        if task.predict_fn is not None:
            scored = jnp.mean(_each(right, held_out, state.params))
        carried = state.params, state.opt_state, state.model_state
        return *carried, first, metrics["loss"], held, scored

    # Side by side, unless there are convolutions: with kernels of their own these are slow.
    if any(leaf.ndim > _CONVOLUTION for leaf in jax.tree.leaves(params)):
        return jax.lax.map(run, (params, model_state, rates))
    return jax.vmap(run)((params, model_state, rates))


def _scale(rate: jax.Array) -> optax.GradientTransformation:
    """`optax.scale` of a traced number, with the types of the steps."""

    def scale(steps: Any, _: Any) -> Any:
        return jax.tree.map(lambda x: rate.astype(x.dtype) * x, steps)

    return optax.stateless(scale)


def _each(measure: Callable[..., jax.Array], batches: Any, *of: Any) -> jax.Array:
    """What is measured of some trees on each batch."""
    # A variable of nnx belongs to the trace it was made in: in a loop it must be made anew.
    return jax.lax.map(lambda batch: measure(*jax.tree.map(lambda x: x, of), batch), batches)


def _has_labels(batch: Any) -> bool:
    """Whether a batch is inputs and integer labels."""
    if not (isinstance(batch, tuple) and len(batch) == 2):
        return False
    return isinstance(batch[1], jax.Array) and jnp.issubdtype(batch[1].dtype, jnp.integer)
