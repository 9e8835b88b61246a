"""What a cure goes by, and how far it has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from vanishjax.health import Diagnosis
from vanishjax.problem import Problem
from vanishjax.treatment.context import Context
from vanishjax.treatment.judgement import LEFT_OF_TRIAL
from vanishjax.treatment.remedy import Remedy
from vanishjax.treatment.trial import Run, Trial

# Kernels drawn anew, which are then adjusted, count as the ones that were there.
_ALIKE = {"redraw": "lsuv"}


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What stays the same from the first trial to the last.

    Attributes:
      problem: The sick network.
      before: Its diagnosis.
      remedies: What to try, in order; what fits if None.
      context: What fitting remedies are made for.
      batches: `[steps, ...]`, what every trial trains on.
      held_out: `[n, ...]`, what it is judged by.
      key: What losses draw from.
      length: Trials that the training to follow is as long as; infinity if that isn't known.
      left: Of the loss of a network of which nothing is known, what a treated one may leave.
    """

    problem: Problem
    before: Diagnosis
    remedies: Sequence[Remedy] | None
    context: Context
    batches: Any
    held_out: Any
    key: jax.Array
    length: float
    left: float = LEFT_OF_TRIAL


@dataclasses.dataclass(frozen=True, eq=False)
class Relief:
    """A remedy that took the cause away, and didn't prove itself.

    Attributes:
      remedy: It.
      loss: The held-out loss that its trial ended with.
      after: The diagnosis at its end.
    """

    remedy: Remedy
    loss: float
    after: Diagnosis


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """What was tried and accepted so far.

    Attributes:
      start: The network with what was accepted, before training.
      verdict: Its diagnosis after the steps of its trial.
      accepted: Remedies, in the order in which they were accepted.
      best: The run of what was accepted last.
      untreated: The run of the untreated network.
      tried: Names of the remedies that ran.
      failed: Names of those that raised.
      leading: Names of those whose slower forms are worth a trial.
      relieved: What took the cause away, and didn't prove itself.
      paired: Names of two that were tried together.
      learned: Whether one that proved itself beats a constant output.
      cured: Whether the network is healthy, and learns what the untreated one doesn't.
      trials: All of them.
      cost: In training steps.
    """

    start: Problem
    verdict: Diagnosis
    accepted: tuple[Remedy, ...] = ()
    best: Run | None = None
    untreated: Run | None = None
    tried: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    leading: frozenset[str] = frozenset()
    relieved: tuple[Relief, ...] = ()
    paired: frozenset[tuple[str, str]] = frozenset()
    learned: bool = False
    cured: bool = False
    trials: tuple[Trial, ...] = ()
    cost: float = 0.0

    def is_safer(self, remedy: Remedy) -> bool:
        """Whether a remedy is a more careful form of one that leads, and sets what was accepted."""
        return remedy.safer_than in self.leading and any(
            one.part == remedy.part for one in self.accepted
        )

    def furthest(self, count: int) -> list[Remedy]:
        """So many kinds that took the cause away and came furthest, each in all its forms."""
        forms: dict[str, list[Remedy]] = {}
        for one in self._by_loss:
            forms.setdefault(one.remedy.safer_than or one.remedy.name, []).append(one.remedy)
        kinds: dict[str, list[Remedy]] = {}
        for name, own in forms.items():
            kinds.setdefault(_ALIKE.get(name, name), own)
        return [remedy for own in list(kinds.values())[:count] for remedy in own]

    @property
    def reliefs(self) -> list[Relief]:
        """What took the cause away, but for slower forms, in the order of the losses."""
        return [one for one in self._by_loss if one.remedy.safer_than is None]

    @property
    def _by_loss(self) -> list[Relief]:
        return sorted(self.relieved, key=lambda one: one.loss)

    def name(self, remedy: Remedy) -> str:
        """A trial's name: what it is tried on top of, and the remedy."""
        return " + ".join(one.name for one in (*remedy.follows(self.accepted), remedy))


@dataclasses.dataclass(frozen=True)
class Failure:
    """A remedy that raised, and the reason."""

    remedy: Remedy
    reason: str

    @classmethod
    def of(cls, remedy: Remedy, error: Exception, where: str = "") -> Failure:
        """What a remedy raised: its class, of one of our own the public one, and the first line."""
        kind = next(own.__name__ for own in type(error).__mro__ if own.__name__[0] != "_")
        said = next(iter(str(error).strip().splitlines()), "")
        return cls(remedy, where + kind + (f": {said}" if said else ""))


# A remedy, None for the untreated network, with the problem that it makes.
Member = tuple[Remedy | None, Problem]


@dataclasses.dataclass(frozen=True)
class Wave:
    """Remedies that can run all at once, and those that raised before they could."""

    members: tuple[Member, ...]
    failures: tuple[Failure, ...]


@dataclasses.dataclass(frozen=True)
class Raced:
    """The runs of a wave, and what raised in it."""

    runs: tuple[tuple[Remedy | None, Run], ...]
    failures: tuple[Failure, ...] = ()
