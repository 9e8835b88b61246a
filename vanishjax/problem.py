"""A training problem: what is learnt, from which loss, by which transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

__all__ = ["Problem"]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """All that a trial, a diagnosis or a cure needs to know about a network.

    Swap a part with ``dataclasses.replace(problem, tx=...)``; change the network's architecture
    with `rebuild`, which works where ``factory`` is set, as `vanishjax.mlp_problem` does.

    Attributes:
      loss_fn: ``loss_fn(params, batch) -> scalar``.
      params: The parameters, any pytree.
      tx: The gradient transform that trains them.
      predict_fn: ``predict_fn(params, inputs) -> outputs``, where there is one.
      factory: Makes a problem of this kind: ``factory(**config, tx=tx) -> Problem``.
      config: The factory's arguments, `tx` apart, that made this problem.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> problem = Problem(lambda w, batch: jnp.sum(w * batch), jnp.ones(3), optax.sgd(0.1))
      >>> float(problem.loss_fn(problem.params, jnp.ones(3)))
      3.0
    """

    loss_fn: Callable[[Any, Any], jax.Array]
    params: Any
    tx: optax.GradientTransformation
    predict_fn: Callable[[Any, Any], jax.Array] | None = None
    factory: Callable[..., Problem] | None = dataclasses.field(default=None, repr=False)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.loss_fn):
            raise TypeError(
                "loss_fn must be a function loss_fn(params, batch) -> scalar, "
                f"got {type(self.loss_fn).__name__}"
            )
        if not (hasattr(self.tx, "init") and hasattr(self.tx, "update")):
            raise TypeError(
                "tx must be a gradient transform with init and update, such as "
                f"vanishjax.adam(1e-3), got {type(self.tx).__name__}"
            )

    def rebuild(self, **changes: Any) -> Problem:
        """Makes the problem anew with some of its arguments changed.

        The transform is kept unless `tx` is among the changes; the parameters are drawn afresh,
        because another architecture or initialiser needs others.

        Args:
          **changes: Arguments of `factory` to replace, such as ``residual="rezero"``.

        Returns:
          A new problem; this one is left as it is.

        Raises:
          ValueError: If the problem doesn't know how it was built.
          TypeError: If a change is no argument of the factory.

        Example:
          >>> import optax
          >>> from vanishjax.models import mlp_problem
          >>> problem = mlp_problem(4, (8, 8), 3, tx=optax.sgd(0.1))
          >>> problem.rebuild(residual="rezero").config["residual"]
          'rezero'
        """
        if self.factory is None:
            raise ValueError(
                "this problem can't be rebuilt, because it has no factory: make it with "
                "vanishjax.mlp_problem, or pass factory= and config= to Problem"
            )
        unknown = sorted(set(changes) - set(self.config) - {"tx"})
        if unknown:
            raise TypeError(
                f"rebuild got unknown {', '.join(unknown)}; it can change "
                f"{', '.join(sorted({*self.config, 'tx'}))}"
            )
        return self.factory(**{**self.config, "tx": self.tx, **changes})
