"""A training problem: what is learned, from which loss, by which transform."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from vanishjax import placement

__all__ = ["Evaluated", "Problem"]


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

    `from_linen`, `from_nnx` and `from_equinox` make one from a model of a framework.

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
            got = type(self.tx).__name__
            if hasattr(getattr(self.tx, "tx", None), "update"):
                got += ": pass the transform in it, optimizer.tx"
            raise TypeError(
                "tx must be a gradient transform with init and update, such as "
                f"vanishjax.adam(1e-3), got {got}"
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
          model_state: The model state to start from; the problem's own if None.
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
        model_state = self.model_state if model_state is None else model_state
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

        Equal for problems with the same loss and model state, so that what is compiled for it is
        found again.
        """
        if not (self.has_aux or self.with_key or self.with_state):
            return self.loss_fn
        return _PlainLoss(self)

    def model(self, params: Any = None, model_state: Any = None) -> Any:
        """The user's model with parameters in it.

        Args:
          params: The parameters; the problem's own if None.
          model_state: The model state, given with the parameters; the problem's own if None.

        Returns:
          For `from_linen` the variables, `{"params": ..., "batch_stats": ...}`; for `from_nnx` a
          new model; for `from_equinox` the model, or `(model, state)` if a state was given.

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

    @staticmethod
    def from_linen(
        module: Any,
        variables: Mapping[str, Any],
        loss_fn: Callable[..., Any],
        tx: optax.GradientTransformation | None = None,
    ) -> Problem:
        """A problem from a Flax linen module.

        BatchNorm's statistics and every other collection beside "params" are the model state: each
        step carries on what the last one wrote. (What `sow` wrote is dropped; `mutable=` gets it.)
        Every step has a key of its own, for dropout and for all that draws from another stream.

        Training and evaluation are told apart by what the called method takes, or by the module's
        own fields of that name: `train`, `training` or `is_training`, and `deterministic` or
        `use_running_average`. In training a value that the loss gives itself holds; in evaluation
        it is replaced, there are no keys, and no statistics are written. A module that would
        write them or draw from a key even so raises ValueError in evaluation.

        Args:
          module: The module, unbound.
          variables: What `module.init` returned.
          loss_fn: `loss_fn(apply, batch)` returns a scalar or `(scalar, metrics)`. `apply` is
            `module.apply` without the variables: `apply(x)`, `apply(x, method="encode")`. It may be
            called several times; `apply.variables` are the variables. If the loss also takes `key`
            or `training`, it is given them; in evaluation the key is always the same.
          tx: The gradient transform.

        Returns:
          The problem: `params` is `variables["params"]`, without Flax's boxes.

        Raises:
          TypeError: No module, no variables, or no function.

        Example:
          >>> import flax.linen as nn, jax.numpy as jnp
          >>> class Net(nn.Module):
          ...     @nn.compact
          ...     def __call__(self, x, train):
          ...         x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
          ...         return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
          >>> x = jnp.arange(12.0).reshape(4, 3)
          >>> variables = Net().init(jax.random.key(0), x, train=False)
          >>> problem = Problem.from_linen(Net(), variables, lambda apply, x: jnp.mean(apply(x)))
          >>> key = jax.random.key(1)
          >>> loss, state, _ = problem.evaluate(problem.params, x, key=key)
          >>> sorted(problem.model(problem.params, state))
          ['batch_stats', 'params']
        """
        from vanishjax.problem.linen import problem_from_linen

        return problem_from_linen(module, variables, loss_fn, tx)

    @staticmethod
    def from_nnx(
        model: Any, loss_fn: Callable[..., Any], tx: optax.GradientTransformation | None = None
    ) -> Problem:
        """A problem from a Flax nnx model.

        Its floating-point `nnx.Param`s are the parameters. Every other Variable, such as
        BatchNorm's statistics, is the model state: each step carries on what the last one wrote.
        The keys of its `nnx.Rngs` are folded with each step's key; in evaluation they are as they
        were. The model itself is never changed.

        In training the model is in the mode in which it was given, and in training mode where it
        has none; in evaluation a copy of it is put in evaluation mode by `model.eval()`.

        Args:
          model: The model.
          loss_fn: `loss_fn(model, batch)` returns a scalar or `(scalar, metrics)`. If it also takes
            `key` or `training`, it is given them; in evaluation the key is always the same.
          tx: The gradient transform.

        Returns:
          The problem: `params` is a nested dictionary of arrays, by the model's attributes.

        Raises:
          TypeError: No model, or no function.

        Example:
          >>> import jax.numpy as jnp
          >>> from flax import nnx
          >>> class Net(nnx.Module):
          ...     def __init__(self, rngs):
          ...         self.dense = nnx.Linear(3, 4, rngs=rngs)
          ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
          ...         self.dropout = nnx.Dropout(0.5, rngs=rngs)
          ...     def __call__(self, x):
          ...         return self.dropout(self.norm(self.dense(x)))
          >>> problem = Problem.from_nnx(Net(nnx.Rngs(0)), lambda model, x: jnp.mean(model(x) ** 2))
          >>> jax.tree.map(jnp.shape, problem.params["dense"]), sorted(problem.model_state["norm"])
          ({'bias': (4,), 'kernel': (3, 4)}, ['mean', 'var'])
          >>> problem.evaluate(problem.params, jnp.ones((2, 3)), training=False).loss.shape
          ()
          >>> type(problem.model()).__name__
          'Net'
        """
        from vanishjax.problem.nnx import problem_from_nnx

        return problem_from_nnx(model, loss_fn, tx)

    @staticmethod
    def from_equinox(
        model: Any,
        loss_fn: Callable[..., Any],
        tx: optax.GradientTransformation | None = None,
        *,
        state: Any = None,
    ) -> Problem:
        """A problem from an Equinox model.

        Its floating-point arrays are the parameters; all else stays as it is. In training the model
        is in the mode in which it was given; in evaluation it goes through
        `equinox.nn.inference_mode`, and its state isn't changed.

        Args:
          model: The model.
          loss_fn: `loss_fn(model, batch)` returns a scalar or `(scalar, metrics)`. If it also takes
            `key`, for dropout, or `training`, it is given them; in evaluation the key is always the
            same. If it takes `state`, it returns `(scalar, new_state)` or
            `(scalar, (new_state, metrics))`.
          tx: The gradient transform.
          state: The model's `equinox.nn.State`, for BatchNorm: what `equinox.nn.make_with_state`
            returns beside the model.

        Returns:
          The problem: `params` is a nested dictionary of arrays, by the model's fields.

        Raises:
          TypeError: No model, no function, or a state without a loss that takes one.
          ImportError: Equinox isn't installed.

        Example:
          >>> import equinox as eqx, jax.numpy as jnp
          >>> model = eqx.nn.MLP(3, 1, 8, 2, key=jax.random.key(0))
          >>> problem = Problem.from_equinox(model, lambda m, x: jnp.mean(jax.vmap(m)(x) ** 2))
          >>> problem.params["layers"][0]["weight"].shape
          (8, 3)
          >>> problem.model().layers[0].weight.shape
          (8, 3)
        """
        from vanishjax.problem.equinox import problem_from_equinox

        return problem_from_equinox(model, loss_fn, tx, state=state)

    def gathered(self) -> Problem:
        """The problem with parameters and a model state that lie on one device.

        Returns:
          A problem for looking at; this very one if nothing lies on several devices.

        Example:
          >>> problem = Problem(lambda w, x: w * x, 1.0)
          >>> problem.gathered() is problem
          True
        """
        parts = (self.params, self.model_state)
        found = placement.gathered(parts)
        if found is parts:
            return self
        return dataclasses.replace(self, params=found[0], model_state=found[1])

    def rebuild(self, **changes: Any) -> Problem:
        """Makes the problem anew with some of its arguments changed.

        The transform is kept unless `tx` is among the changes; the parameters are drawn afresh,
        because another architecture or initializer needs others.

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


class _PlainLoss:
    """The loss of a problem, whatever its form, as `loss_fn(params, batch)`."""

    def __init__(self, problem: Problem) -> None:
        # What keeps the loss shouldn't keep the parameters with it.
        self._problem = dataclasses.replace(problem, params=None, tx=None)

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        key = jax.random.key(0) if self._problem.with_key else None
        return self._problem.evaluate(params, batch, key=key).loss

    def _parts(self) -> tuple[Any, ...]:
        one = self._problem
        flags = one.has_aux, one.with_key, one.with_state
        # Arrays can't be compared in a key: those that this loss holds on to keep their numbers.
        return one.loss_fn, flags, tuple(map(id, jax.tree.leaves(one.model_state)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PlainLoss) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())
