"""Whether a network learns: some steps of training, and what is left of the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import _jaxpr
from vanishjax.compilation import jit_recent
from vanishjax.health.finding import Finding
from vanishjax.problem import loss_alone
from vanishjax.training.meshes import adopted
from vanishjax.training.scan import scan_steps
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step
from vanishjax.validation import check_count

Vector = np.ndarray[Any, np.dtype[np.float64]]

# Without an optimizer of the user's.
USUAL_RATE = 1e-3

# How far below the best constant output's loss counts: that one is found in 150 steps of Adam.
_BELOW = 1e-3
# Where that loss is unknown, the share of the first loss that must go.
_FALL = 0.05
# A loss that fell by this share of its whole fall in the last quarter is falling still.
_FALLING = 0.02
# So few steps may go up first, or down from a poor start: they tell nothing.
_FEW = 8
# A loss that was so many times its start on the way has exploded: to fall back is no learning.
_EXPLODED = 1e3


@dataclasses.dataclass(frozen=True, eq=False)
class Learning:
    """Some steps of training on one batch.

    Attributes:
      losses: `[steps + 1]`: before the first step, and after each.
      held_out: The same of the batch held out; None without one.
      constant: The loss of the best constant output; NaN if unknown.
      usual: Whether it was Adam at 1e-3, for want of the user's optimizer.
    """

    losses: Vector
    held_out: Vector | None
    constant: float
    usual: bool

    @property
    def judged(self) -> Vector:
        """The losses that count: of what is held out, or else of the batch."""
        return self.losses if self.held_out is None else self.held_out

    @property
    def start(self) -> float:
        """The loss before the first step."""
        return float(self.judged[0])

    @property
    def end(self) -> float:
        """The loss over the last steps, its jumps evened out."""
        return float(np.median(self._last(10)))

    @property
    def learns(self) -> bool:
        """Whether the loss fell below its start, and below what a constant output reaches."""
        if not np.isfinite(self.end):
            return False
        jumps = np.diff(self._last(4))
        noise = 2 * float(np.std(jumps)) if len(jumps) > 1 else 0.0
        if not math.isfinite(self.constant):
            return self.end < self.start - max(noise, _FALL * abs(self.start))
        margin = noise + _BELOW * abs(self.constant)
        return self.end < min(self.start, self.constant) - margin

    @property
    def has_exploded(self) -> bool:
        """Whether the loss was far above its start on the way."""
        return bool(np.max(self.judged) > _EXPLODED * abs(self.start))

    @property
    def is_falling(self) -> bool:
        """Whether the loss still falls at the end."""
        quarter = len(self.judged) // 4
        if quarter < 2 or not np.isfinite(self.judged).all() or self.has_exploded:
            return False
        last, before = self.judged[-quarter:], self.judged[-2 * quarter : -quarter]
        fall = float(np.mean(before) - np.mean(last))
        return fall > max(_FALLING * (self.start - self.end), float(np.std(np.diff(last))), 0.0)

    def _last(self, part: int) -> Vector:
        return self.judged[-max(1, (len(self.judged) - 1) // part) :]

    def to_dict(self) -> dict[str, Any]:
        """The course and the verdict as JSON types, but for numbers that aren't finite."""
        return {
            "steps": len(self.losses) - 1,
            "losses": self.losses,
            "held_out": self.held_out,
            "start": self.start,
            "end": self.end,
            "constant": self.constant,
            "usual": self.usual,
            "learns": self.learns,
        }


def learn(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    tx: optax.GradientTransformation | None,
    steps: int,
    *,
    constant: float = math.nan,
    held_out: Any = None,
) -> Learning:
    """Trains some steps on one batch, in one compiled loop; the parameters given stay.

    Args:
      loss_fn: As in `probe`.
      params: What to start from.
      batch: What to train on.
      tx: The optimizer; Adam at 1e-3 if None.
      steps: How many.
      constant: The loss of the best constant output.
      held_out: Another batch, to judge by.

    Returns:
      The course.

    Raises:
      ValueError: `steps` isn't a whole number of at least 1.
    """
    check_count("steps", steps)
    optimizer = optax.adam(USUAL_RATE) if tx is None else tx
    params, *batches = adopted([params, batch] + [held_out] * (held_out is not None))
    split = [_jaxpr.split_arrays(one) for one in batches]

    def train(params: Any, arrays: list[list[Any]]) -> tuple[jax.Array, ...]:
        whole = [rebuild(own) for (_, rebuild), own in zip(split, arrays, strict=True)]

        def loss_of(params: Any, batch: Any) -> jax.Array:
            loss: jax.Array = loss_alone(loss_fn(params, batch))
            return loss

        take = local_step(loss_of, optimizer)

        def step(state: TrainState, _: None) -> tuple[TrainState, tuple[jax.Array, ...]]:
            others = tuple(loss_of(state.params, other) for other in whole[1:])
            state, metrics = take(state, whole[0])
            return state, (metrics["loss"], *others)

        start = TrainState.create(params, optimizer)
        end, losses = scan_steps(step, start, length=steps)
        ends = (loss_of(end.params, one) for one in whole)
        return tuple(jnp.append(x, last) for x, last in zip(losses, ends, strict=True))

    losses = jit_recent(train)(jax.tree.map(jnp.asarray, params), [one[0] for one in split])
    own, *rest = (np.asarray(x, np.float64) for x in losses)
    return Learning(own, rest[0] if rest else None, constant, tx is None)


def does_not_learn(learning: Learning | None) -> Finding | None:
    """Steps of training that lead to no better loss than that of a constant output."""
    return None if learning is None or learning.learns else unlearned(learning)


def unlearned(learning: Learning) -> Finding:
    """What to say of steps that led no further than a constant output.

    Args:
      learning: Of these steps.

    Returns:
      A critical finding; a warning where the loss still falls.
    """
    steps = len(learning.losses) - 1
    evidence = {"steps": float(steps), "start": learning.start, "end": learning.end}
    if math.isfinite(learning.constant):
        evidence["constant_loss"] = learning.constant
    wrong = np.flatnonzero(~np.isfinite(learning.losses))
    if len(wrong):
        return Finding(
            "does_not_learn",
            "critical",
            (),
            evidence | {"finite_steps": float(wrong[0])},
            f"The loss is infinite or NaN from step {wrong[0]} of {steps} on.",
            ("smaller_rate", "global_clip"),
        )
    if learning.is_falling or (steps < _FEW and not learning.has_exploded):
        but = "it still falls" if learning.is_falling else "so few tell nothing"
        return Finding(
            "does_not_learn",
            "warning",
            (),
            evidence,
            f"After {steps} step{'s' * (steps > 1)} the loss is no better than a constant output's,"
            f" but {but}.",
            ("more_steps", "larger_rate"),
        )
    if not learning.end < learning.start:
        said = "don't lower the loss."
    elif learning.end < learning.constant:
        said = "get below the best constant output's loss by no more than the noise."
    else:
        said = "get no further than the best constant output."
    return Finding(
        "does_not_learn",
        "critical",
        (),
        evidence,
        f"{steps} steps of training {said}",
        (
            "another_rate",
            "labels",
            "cure",
        ),
    )
