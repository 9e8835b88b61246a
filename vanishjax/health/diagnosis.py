"""A verdict on a network before its first step: which layer starves, why, and what to do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import numerics, report
from vanishjax.compilation import jit_once
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, json_value
from vanishjax.health.first_move import after_the_move
from vanishjax.health.learning import Learning, learn
from vanishjax.health.lost import moved_share
from vanishjax.health.measurements import Probe
from vanishjax.health.origin import fault_of
from vanishjax.health.probe import probe
from vanishjax.health.response import (
    Response,
    Steps,
    effectiveness,
    measure_steps,
    sizes_around,
    trace_steps,
)
from vanishjax.health.rules import apply_rules
from vanishjax.health.step_size import FAINT
from vanishjax.health.warm_up import later_steps
from vanishjax.layers import Layers
from vanishjax.placement import gathered
from vanishjax.problem import MISSING, Problem, network_of
from vanishjax.transforms.coordinates import InCoordinates

_KEPT = 4  # transforms


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What is wrong with a network, if anything.

    Attributes:
      findings: The gravest first.
      probe: The measurements.
      effectiveness: For each layer of parameters (`probe.parameters.layers`) the share of its step
        that the optimizer takes; None if none was given.
      relative_step: One step of the median kernel that moves, as a part of its usual size, .01 or
        so where networks train; NaN if none is known to move, None if no optimizer was given.
      decay: What weight decay takes of every kernel in a step; None if no optimizer was given, or
        what moves without a gradient isn't the same part of all.
      learning: Some steps of training; None if none were asked for.
      is_moved: Whether it is of the parameters that the optimizer moves to in its first step, as
        `deep_adam` and `recondition` do, not of those that were given.

    Example:
      >>> import jax.numpy as jnp
      >>> verdict = diagnose(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones((3, 2)), jnp.eye(3))
      >>> verdict.healthy, verdict.findings
      (True, ())
    """

    findings: tuple[Finding, ...]
    probe: Probe
    effectiveness: np.ndarray[Any, Any] | None = None
    learning: Learning | None = None
    is_moved: bool = False
    relative_step: float | None = None
    decay: float | None = None

    @property
    def losses(self) -> np.ndarray[Any, Any] | None:
        """`[steps + 1]`, the loss over the steps of training; None if none were asked for."""
        return None if self.learning is None else self.learning.losses

    @property
    def verdict(self) -> Literal["healthy", "sick", "unknown"]:
        """Whether it will train.

        "unknown" where something that matters couldn't be measured, unless training showed it.
        """
        if any(finding.severity == "critical" for finding in self.findings):
            return "sick"
        if self.learning is not None and self.learning.learns:
            return "healthy"
        hidden = any(finding.leaves_unknown for finding in self.findings)
        return "unknown" if hidden else "healthy"

    @property
    def healthy(self) -> bool:
        """Whether the verdict is "healthy"."""
        return self.verdict == "healthy"

    def __str__(self) -> str:
        return report.diagnosis_text(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The verdict, the findings and the measurements as JSON types."""
        return {
            "verdict": self.verdict,
            "healthy": self.healthy,
            "findings": [finding.to_dict() for finding in self.findings],
            "probe": self.probe.to_dict(),
            "effectiveness": json_value(self.effectiveness),
            "learning": None if self.learning is None else json_value(self.learning.to_dict()),
            "is_moved": self.is_moved,
            "relative_step": json_value(self.relative_step),
            "decay": json_value(self.decay),
        }

    def plot(self, path: str | Path) -> Path:
        """Draws the log-chi waterfall and the card of what kills networks.

        Args:
          path: Where to write the PNG.

        Returns:
          The path.
        """
        return report.plot_diagnosis(self.to_dict(), Path(path))


# What was traced of one transform serves it again; what was compiled, all that are alike.
_steps_of = functools.lru_cache(maxsize=_KEPT)(
    lambda tx, structure, shapes: trace_steps(tx, jax.tree.unflatten(structure, shapes))
)


@functools.partial(jit_once, static_argnums=(0, 2), kept=_KEPT)
def _response(
    steps: Steps, leaves: list[Any], layers: Layers, rms: Any, sizes: Any
) -> tuple[Response, jax.Array, jax.Array, jax.Array]:
    response, still, most = measure_steps(steps, leaves, layers, sizes)
    return response, effectiveness(response, rms), still, most


def diagnose(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    tx: optax.GradientTransformation | None = None,
    *,
    model_state: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
    steps: int | None = None,
    held_out: Any = None,
) -> Diagnosis:
    """Says whether a network will train, and if not, which layers starve, why, and what helps.

    One `probe`, and rules on what it measured. The verdict doesn't depend on the scale of the loss,
    unless the optimizer or a 16-bit type does.

    `diagnose(problem, batch)` looks at a `Problem` and its transform, in training mode, with one
    fixed key. Masks of dropout count as their means, whatever draws them: see `probe`.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. Or a problem.
      params: Its parameters, as they are now: at initialization or at any later step.
      batch: A few hundred examples tell more than a few.
      tx: The optimizer. Its steps are measured at all sizes of gradient to see what its eps eats,
        and one whose steps shrink with the gradient (SGD) is held to a stricter limit. Where its
        first step moves the parameters to a start of its own, as that of `deep_adam` and
        `recondition` does, that start is judged. By name, if a problem is given: it takes the place
        of the problem's.
      model_state: As in `Problem`.
      has_aux: As in `Problem`.
      with_key: As in `Problem`.
      with_state: As in `Problem`.
      steps: If given, a copy of the network is also trained so many steps on the batch, with `tx`
        or else Adam at 1e-3: `does_not_learn` fires where the loss gets no better than that of the
        best constant output. That decides a verdict that would be "unknown", and takes back no
        other finding.
      held_out: Another batch, whose loss those steps are judged by.

    Returns:
      The verdict: `str()` is a report, `plot(path)` a picture.

    Raises:
      ValueError: See `probe`.
      TypeError: See `probe`.

    Example:
      >>> import jax, vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 24, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), np.arange(64) % 4
      >>> verdict = diagnose(problem, batch)
      >>> verdict.healthy, [finding.rule for finding in verdict.findings]
      (False, ['mean_collapse', 'vanishing_gradient', 'blind_optimizer'])
    """
    problem, batch = network_of(
        loss_fn,
        params,
        batch,
        tx=tx,
        model_state=model_state,
        has_aux=has_aux,
        with_key=with_key,
        with_state=with_state,
    )
    learning = None
    if steps is not None:
        given = problem.plain_loss, gathered(problem.params), batch, problem.tx, steps
        learning = functools.partial(learn, *given, held_out=held_out)
    moved = after_the_move(problem, batch)
    verdict = judge(problem if moved is None else moved, batch, learning)
    return dataclasses.replace(verdict, is_moved=moved is not None)


def judge(
    problem: Problem, batch: Any, learning: Callable[..., Learning] | None = None
) -> Diagnosis:
    """The verdict on a problem's parameters as they are, also where its transform would move them.

    Args:
      problem: The network.
      batch: What it is looked at by.
      learning: Trains for some steps, given the loss of the best constant output as `constant`.

    Returns:
      The verdict.
    """
    problem = _as_seen(problem)
    measured = probe(problem, batch)
    params, tx = gathered(problem.params), problem.tx
    fault = fault_of(measured, problem.plain_loss, params, batch)
    learned = None if learning is None else learning(constant=measured.constant_loss)
    if tx is None:
        seen = Examination(measured, fault=fault, learning=learned)
        return Diagnosis(apply_rules(seen), measured, learning=learned)
    parameters = measured.parameters
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    steps = _steps_of(tx, structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))
    sizes = sizes_around(parameters.rms, numerics.common_dtype(leaves))
    response, left, still, most = _response(steps, leaves, parameters.layers, parameters.rms, sizes)
    share = np.asarray(left, np.float64)
    step = _step_rms(response, parameters.rms)
    moved = moved_share(params, parameters.layers, step, jax.eval_shape(tx.init, params))
    seen = Examination(
        measured,
        share,
        np.asarray(response.degree),
        step,
        fault,
        moved,
        learned,
        still_rms=np.asarray(still, np.float64),
        stored=_types(parameters.layers, leaves),
        most_rms=np.asarray(most, np.float64),
    )
    if seen.relative_step is not None and seen.relative_step < FAINT:
        seen = dataclasses.replace(seen, later_steps=later_steps(tx, params))
    return Diagnosis(
        apply_rules(seen),
        measured,
        share,
        learned,
        relative_step=seen.relative_step,
        decay=seen.decay,
    )


def _types(layers: Layers, leaves: list[jax.Array]) -> tuple[str, ...]:
    """For each layer the name of the type that its parameters are kept in."""
    known = {leaf.path: x.dtype.name for leaf, x in zip(layers.leaves, leaves, strict=True)}
    return tuple(known[leaf.path] for leaf in layers.homes)


def _as_seen(problem: Problem) -> Problem:
    """The network in the units that its transform sees, where these are others than its own.

    There gradients are of the size that steps are made for: in dollars squared they tell nothing.
    """
    tx = problem.tx
    if not isinstance(tx, InCoordinates) or tx.unit == 1:
        return problem
    return Problem(_loss_inside(problem.plain_loss, tx), tx.inside(problem.params), tx.inner)


# The same object for the same loss, so that what is compiled of it is found again.
@functools.lru_cache(maxsize=8)
def _loss_inside(loss_fn: Callable[..., Any], tx: InCoordinates) -> Callable[..., Any]:
    def loss(params: Any, batch: Any) -> Any:
        return loss_fn(tx.outside(params), batch) / tx.unit

    return loss


def _step_rms(response: Response, gradient_rms: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For each layer of parameters the size of one step at the size that its gradient has."""
    sizes = np.log(np.asarray(response.gradient_rms, np.float64))
    with np.errstate(divide="ignore"):
        wanted = np.log(gradient_rms)
    steps = np.asarray(response.update_rms, np.float64)
    places = np.abs(sizes[:, None] - wanted).argmin(axis=0)
    # The sizes are octaves apart: what is proportional to the gradient is so between them too.
    off = np.where(np.isfinite(wanted), wanted - sizes[places], 0.0)
    degree = np.asarray(response.degree, np.float64)
    return np.asarray(steps[places, np.arange(len(gradient_rms))] * np.exp(degree * off))
