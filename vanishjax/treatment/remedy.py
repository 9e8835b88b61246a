"""A remedy: a function from a problem to a treated one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from vanishjax.problem import Problem


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
        that one was all it took, and preferred if it gets half as far in the trial; where that one
        raised it isn't tried.

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
    part: str = ""
    safer_than: str = ""

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
