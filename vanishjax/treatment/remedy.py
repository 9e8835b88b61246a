"""A remedy: a function from a problem to a treated one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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
