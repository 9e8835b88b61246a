"""What came of a cure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vanishjax import report
from vanishjax.health import REMEDIES, Diagnosis
from vanishjax.problem import Problem
from vanishjax.treatment.remedy import Remedy, in_parts
from vanishjax.treatment.trial import Trial


@dataclasses.dataclass(frozen=True, eq=False)
class Treatment:
    """What came of `cure`.

    Attributes:
      problem: The cured problem, its parameters and model state trained by the winning trial's
        steps; the very object that was passed in if nothing was wrong or nothing helped.
      opt_state: The state of `problem.tx` after these steps, to go on with, if there were any.
      start: The cured problem before these steps.
      batch: What data-dependent remedies looked at: `batch` of the recipe.
      accepted: The remedies that it took, in the order in which they are applied; () if nothing was
        wrong or nothing helped.
      trials: Every remedy tried, beside the untreated network, which comes first; () if none was
        needed.
      before: The diagnosis before.
      after: That of `problem`; of a healthy network with its training for the steps of one trial.
      steps: Training steps of one trial, but for the longer ones where nothing else helped, or
        where rates are compared before a short training.
      cost: Of everything, in training steps: trials and probes.
      notes: What was left out of the trials, if anything, in words.

    Example:
      >>> import jax, jax.numpy as jnp, vanishjax as vj
      >>> problem = vj.mlp_problem(4, (8, 8), 2, activation="tanh")
      >>> batches = [(jax.random.normal(jax.random.key(i), (32, 4)), jnp.arange(32) % 2)
      ...            for i in range(3)]
      >>> treatment = vj.cure(problem, batches, steps=10)
      >>> print(treatment)
      Healthy: nothing to cure. In 10 steps as it is its loss went from 0.752 to 0.658.
      >>> treatment.problem is problem, treatment.trials, treatment.cost
      (True, (), 13.0)
    """

    problem: Problem
    opt_state: Any
    start: Problem
    batch: Any
    accepted: tuple[Remedy, ...]
    trials: tuple[Trial, ...]
    before: Diagnosis
    after: Diagnosis
    steps: int
    cost: float
    notes: tuple[str, ...] = ()

    @property
    def is_needed(self) -> bool:
        """Whether the network is sick; or isn't known to be, and its loss doesn't fall."""
        falls = any(one.loss < one.losses[0] for one in self.trials[:1])
        return self.before.verdict == "sick" or (bool(self.trials) and not falls)

    @property
    def recipe(self) -> str:
        """Python that applies the accepted remedies in a script of one's own.

        It takes `loss_fn`, `params`, `batch` (`Treatment.batch`) and `tx` of the untreated problem,
        with `vj`, `jax`, `jnp` and `optax` imported, and leaves in `params` and `tx` those of
        `start`, to the last bit. `loss_fn` is a function of parameters and a batch
        (`Problem.plain_loss`). What can't be written so, another architecture, is a comment.
        """
        return "\n".join(part.lines for part in in_parts(self.accepted))

    def __str__(self) -> str:
        of_model = self.problem.assemble is not None
        return report.treatment_text(self.to_dict(), of_model=of_model)

    def to_dict(self) -> dict[str, Any]:
        """The treatment as JSON types, with the diagnosis before and after."""
        return {
            "accepted": [remedy.name for remedy in self.accepted],
            "meaning": {
                one.name: REMEDIES[one.name].text for one in self.accepted if one.name in REMEDIES
            },
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
