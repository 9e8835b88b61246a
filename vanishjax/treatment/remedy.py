"""A remedy: a function from a problem to a treated one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import optax

from vanishjax.problem import Problem

# What remedies set; see `Remedy.part`.
KERNELS, CELLS, OPTIMIZER, ROUNDING = "kernels", "cells", "optimizer", "rounding"
RATE, DECAY = "rate", "decay"

# What goes around the optimizer, from the inside out; see `Remedy.wraps`. Rounding sees the steps
# that parameters take, whatever coordinates the optimizer sees; in these a diagnosis looks at it.
CLIPPED, RATED, AROUND, ROUNDED, SCALED = 1, 2, 3, 4, 5


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Something that may help a network to train.

    Attributes:
      name: What to call it.
      apply: Makes the treated problem of the sick one, which it leaves as it is. May raise; a trial
        records that.
      recipe: Lines of Python that do the same to a script's own `loss_fn`, `params`, `batch`, `tx`.
      alone: Whether it starts from the untreated problem, whatever was accepted before, because it
        draws parameters for another architecture.
      part: What it sets, such as "kernels", if a remedy after it that sets the same would undo it:
        that one is tried instead of it, not on top of it.
      safer_than: The name of a remedy of which this is a more careful form. It is tried even where
        that one was all it took, and preferred if it gets as far in the trial, or half as far
        before a long training; where that one raised it isn't tried.
      rate: What it multiplies the updates by, beside what `apply` does.
      local: Whether it changes nothing but what is at fault: it is preferred where it gets about as
        far as any other.
      wraps: Of several remedies those that wrap the most are applied last, so that what they put
        around the optimizer stays around it when another one changes it. Those of less than 0 come
        first: what the others make of the network's inputs and outputs depends on them.
      around: A second part that is applied after the others, by its own `wraps`: what goes around
        whichever optimizer the network ends up with.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> slower = Remedy("slower", lambda p: dataclasses.replace(p, tx=optax.sgd(0.01)))
      >>> problem = Problem(lambda w, x: jnp.sum(w * x), jnp.ones(2), optax.sgd(10.0))
      >>> slower.apply(problem).tx is problem.tx
      False
    """

    name: str
    apply: Callable[[Problem], Problem]
    recipe: str = ""
    alone: bool = False
    part: str | None = None
    safer_than: str | None = None
    rate: float = 1.0
    local: bool = False
    wraps: int = 0
    around: Remedy | None = None

    def treat(self, problem: Problem) -> Problem:
        """The treated problem, its rate included.

        Args:
          problem: The sick one; left as it is.

        Returns:
          Another problem.

        Example:
          >>> import jax.numpy as jnp, optax
          >>> problem = Problem(lambda w, x: jnp.sum(w * x), jnp.ones(2), optax.sgd(1.0))
          >>> tx = Remedy("slower", lambda problem: problem, rate=0.1).treat(problem).tx
          >>> print(tx.update(jnp.ones(2), tx.init(problem.params))[0])
          [-0.1 -0.1]
        """
        treated = self.apply(problem)
        if not isinstance(treated, Problem):
            raise TypeError(f"apply must return a Problem, got {type(treated).__name__}")
        if self.rate != 1:
            treated = dataclasses.replace(treated, tx=_slowed(treated.transform, self.rate))
        return treated if self.around is None else self.around.treat(treated)

    @property
    def lines(self) -> str:
        """The recipe, its rate and its second part included."""
        slowed = f"tx = optax.chain(tx, optax.scale({self.rate!r}))" if self.rate != 1 else ""
        around = "" if self.around is None else self.around.lines
        return "\n".join(filter(None, (self.recipe, slowed, around)))

    def follows(self, accepted: Sequence[Remedy]) -> tuple[Remedy, ...]:
        """Those of the accepted remedies that it leaves in force.

        Args:
          accepted: In the order in which they were accepted.

        Returns:
          Those on top of which to try it.

        Example:
          >>> def kernels(name):
          ...     return Remedy(name, lambda problem: problem, part="kernels")
          >>> other = Remedy("clip", lambda problem: problem)
          >>> [one.name for one in kernels("second").follows([kernels("first"), other])]
          ['clip']
        """
        if self.alone:
            return ()
        return tuple(one for one in accepted if not self.part or one.part != self.part)


def in_order(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """Remedies in the order in which to apply them.

    Args:
      remedies: In the order in which they were accepted.

    Returns:
      Those that wrap what others set come after them.

    Example:
      >>> def remedy(name, wraps=0):
      ...     return Remedy(name, lambda problem: problem, wraps=wraps)
      >>> [one.name for one in in_order([remedy("loss_scale", 2), remedy("adam_atan2")])]
      ['adam_atan2', 'loss_scale']
    """
    return tuple(sorted(remedies, key=lambda remedy: remedy.wraps))


def in_parts(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """Remedies, those of two parts in two, in the order in which to apply them.

    Args:
      remedies: In the order in which they were accepted.

    Returns:
      Their parts.

    Example:
      >>> def same(problem):
      ...     return problem
      >>> units = Remedy("units", same, wraps=-1, around=Remedy("around", same, wraps=1))
      >>> [one.name for one in in_parts([units, Remedy("muon", same)])]
      ['units', 'muon', 'around']
    """
    return in_order(
        part
        for one in remedies
        for part in (dataclasses.replace(one, around=None), one.around)
        if part is not None
    )


# The same object for the same transform, so that problems slowed down can run side by side.
@functools.lru_cache(maxsize=8)
def _slowed(tx: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    return optax.chain(tx, optax.scale(rate))
