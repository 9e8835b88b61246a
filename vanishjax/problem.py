"""A training problem: what is learned, from which loss, by which transform."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

__all__ = ["Evaluated", "Problem", "as_problem"]


class Evaluated(NamedTuple):
    """What a loss gives, whatever its form.

    Attributes:
      loss: The scalar.
      model_state: The next model state; the one that went in if the loss gives none.
      metrics: Its metrics; empty if it gives none.
    """

    loss: jax.Array
    model_state: Any
    metrics: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """All that training, a diagnosis or a cure needs to know about a network.

    Three flags say what the loss takes and returns beside `loss_fn(params, batch) -> loss`:

    ==============  =========================  ===========================================
    flag            the loss also takes        it returns
    ==============  =========================  ===========================================
    has_aux         nothing                    `(loss, metrics)`
    with_key        `key=`                     the same
    with_state      `state=`                   `(loss, new_state)`
    both            `state=`                   `(loss, (new_state, metrics))`
    ==============  =========================  ===========================================

    Swap a part with ``dataclasses.replace(problem, tx=...)``; change the network's architecture
    with `rebuild`, which works where ``factory`` is set, as `vanishjax.mlp_problem` does.

    Attributes:
      loss_fn: The loss, a function of the parameters and a batch: see above.
      params: The parameters, any pytree.
      tx: The gradient transform that trains them; None where none is needed.
      model_state: What the network carries beside its parameters, such as the running statistics of
        BatchNorm: any pytree.
      has_aux: Whether the loss gives metrics, a dictionary of scalars (means over the batch).
      with_key: Whether the loss takes `key=`, for dropout. In evaluation it gets None.
      with_state: Whether the loss takes `state=` and gives the next one.
      evaluate_fn: The loss in evaluation, in the same form as `loss_fn`: without dropout, with
        BatchNorm's running statistics. None if that is `loss_fn` itself.
      assemble: `assemble(params, model_state)` makes the user's model of them, for `model`.
      predict_fn: ``predict_fn(params, inputs) -> outputs``, where there is one.
      factory: Makes a problem of this kind: ``factory(**config, tx=tx) -> Problem``.
      config: The factory's arguments, `tx` apart, that made this problem.

    Raises:
      TypeError: loss_fn is no function, or tx no gradient transform.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> problem = Problem(lambda w, batch: jnp.sum(w * batch), jnp.ones(3), optax.sgd(0.1))
      >>> float(problem.loss_fn(problem.params, jnp.ones(3)))
      3.0
    """

    loss_fn: Callable[..., Any]
    params: Any
    tx: optax.GradientTransformation | None = None
    _: dataclasses.KW_ONLY
    model_state: Any = None
    has_aux: bool = False
    with_key: bool = False
    with_state: bool = False
    evaluate_fn: Callable[..., Any] | None = None
    assemble: Callable[[Any, Any], Any] | None = dataclasses.field(default=None, repr=False)
    predict_fn: Callable[[Any, Any], jax.Array] | None = None
    factory: Callable[..., Problem] | None = dataclasses.field(default=None, repr=False)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.loss_fn):
            raise TypeError(
                "loss_fn must be a function loss_fn(params, batch) -> scalar, "
                f"got {type(self.loss_fn).__name__}"
            )
        if self.tx is not None and not (hasattr(self.tx, "init") and hasattr(self.tx, "update")):
            raise TypeError(
                "tx must be a gradient transform with init and update, such as "
                f"vanishjax.adam(1e-3), got {type(self.tx).__name__}"
            )

    @property
    def transform(self) -> optax.GradientTransformation:
        """The gradient transform; ValueError if there is none."""
        if self.tx is None:
            raise ValueError(
                "this problem has no transform: make it with tx, or dataclasses.replace(problem, "
                "tx=vanishjax.adam(1e-3))"
            )
        return self.tx

    def evaluate(
        self,
        params: Any,
        batch: Any,
        *,
        model_state: Any = None,
        key: jax.Array | None = None,
        training: bool = True,
    ) -> Evaluated:
        """The loss, the next model state and the metrics, whatever the form of the loss.

        Args:
          params: The parameters.
          batch: What the loss takes.
          model_state: The model state to start from.
          key: Source of randomness; None in evaluation.
          training: Whether to take `loss_fn`, or else `evaluate_fn`.

        Returns:
          All three.

        Raises:
          TypeError: The loss doesn't return what its flags say.

        Example:
          >>> import jax.numpy as jnp
          >>> def loss_fn(w, x, *, state):
          ...     return jnp.mean(w * x), (state + 1, {"largest": jnp.max(x)})
          >>> problem = Problem(loss_fn, 2.0, model_state=0, has_aux=True, with_state=True)
          >>> loss, state, metrics = problem.evaluate(2.0, jnp.arange(3.0), model_state=0)
          >>> float(loss), state, float(metrics["largest"])
          (2.0, 1, 2.0)
        """
        extra: dict[str, Any] = {"state": model_state} if self.with_state else {}
        if self.with_key:
            extra["key"] = key
        loss_fn = self.loss_fn if training or self.evaluate_fn is None else self.evaluate_fn
        value = loss_fn(params, batch, **extra)
        if not (self.has_aux or self.with_state):
            return Evaluated(value, model_state, {})
        if not (isinstance(value, tuple) and len(value) == 2):
            raise TypeError(f"loss_fn must return {self._returns}, got {type(value).__name__}")
        loss, rest = value
        if not self.with_state:
            return Evaluated(loss, model_state, self._checked(rest))
        if not self.has_aux:
            return Evaluated(loss, rest, {})
        if not (isinstance(rest, tuple) and len(rest) == 2):
            raise TypeError(
                f"loss_fn must return {self._returns}, got (loss, {type(rest).__name__})"
            )
        return Evaluated(loss, rest[0], self._checked(rest[1]))

    @property
    def _returns(self) -> str:
        if self.has_aux and self.with_state:
            return "(loss, (new_state, metrics)), as has_aux and with_state say"
        if self.has_aux:
            return "(loss, metrics), as has_aux says"
        return "(loss, new_state), as with_state says"

    def _checked(self, metrics: Any) -> Mapping[str, Any]:
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"loss_fn must return {self._returns}, metrics a dict, got {type(metrics).__name__}"
            )
        return metrics

    @functools.cached_property
    def plain_loss(self) -> Callable[[Any, Any], jax.Array]:
        """`(params, batch) -> loss`: in training mode, from this model state, with one fixed key.

        The same function object at every use, so that what is compiled for it is found again.
        """
        if not (self.has_aux or self.with_key or self.with_state):
            return self.loss_fn

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            key = jax.random.key(0) if self.with_key else None
            return self.evaluate(params, batch, model_state=self.model_state, key=key).loss

        return loss_fn

    def model(self, params: Any = None, model_state: Any = None) -> Any:
        """The user's model with parameters in it.

        Args:
          params: The parameters; the problem's own if None.
          model_state: The model state, given with the parameters; the problem's own if None.

        Returns:
          What `from_nnx` and the like were given, with these arrays.

        Raises:
          ValueError: The problem was not made from a model.
        """
        if self.assemble is None:
            raise ValueError(
                "this problem was not made from a model: make it with Problem.from_linen, "
                "from_nnx or from_equinox"
            )
        return self.assemble(
            self.params if params is None else params,
            self.model_state if model_state is None else model_state,
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


def as_problem(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = None,
    tx: optax.GradientTransformation | None = None,
    *,
    model_state: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Problem:
    """One problem from a problem, or from its parts, for functions that take either.

    Args:
      loss_fn: A problem, or a loss.
      params: With a loss, its parameters.
      tx: With a loss, its transform. Given beside a problem, it takes the place of the problem's.
      model_state: As in `Problem`.
      has_aux: As in `Problem`.
      with_key: As in `Problem`.
      with_state: As in `Problem`.

    Returns:
      The problem, the very object if one was given, alone.

    Raises:
      TypeError: Flags beside a problem, which has its own.

    Example:
      >>> problem = Problem(lambda w, x: w * x, 1.0)
      >>> as_problem(problem) is problem, as_problem(lambda w, x: w * x, 1.0).params
      (True, 1.0)
    """
    if not isinstance(loss_fn, Problem):
        return Problem(
            loss_fn,
            params,
            tx,
            model_state=model_state,
            has_aux=has_aux,
            with_key=with_key,
            with_state=with_state,
        )
    if has_aux or with_key or with_state or model_state is not None:
        raise TypeError(
            "a Problem has flags and a model state of its own: give has_aux, with_key, with_state "
            "and model_state to Problem"
        )
    return loss_fn if tx is None else dataclasses.replace(loss_fn, tx=tx)
