"""What a training step carries from one batch to the next."""

from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import optax

from vanishjax.problem import Problem
from vanishjax.transforms.arguments import as_transform
from vanishjax.transforms.safety import check_guards


class TrainState(NamedTuple):
    """A pytree: step count, parameters, the transform's state, a random key and a model state.

    The model state is what the network carries beside its parameters, such as the running
    statistics of BatchNorm; None if it has none. The count stays at 2^31 - 1 when it gets there, as
    optax's counts do: from then on all steps draw the same random numbers.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    model_state: Any = None

    @overload
    @classmethod
    def create(cls, params: Problem, tx: jax.Array | None = None) -> "TrainState": ...

    @overload
    @classmethod
    def create(
        cls,
        params: Any,
        tx: optax.GradientTransformation | None = None,
        key: jax.Array | None = None,
        *,
        model_state: Any = None,
    ) -> "TrainState": ...

    @classmethod
    def create(
        cls, params: Any, tx: Any = None, key: jax.Array | None = None, *, model_state: Any = None
    ) -> "TrainState":
        """The state before the first step: `create(problem)` or `create(params, tx)`.

        The parameters, the model state and the key are copied: a step donates its state, and the
        caller's own arrays must outlive that. So are arrays that the transform's state shares with
        them, as some of optax's do: no buffer can be donated twice.

        Args:
          params: A `Problem`, or parameters, any pytree.
          tx: The transform that will train the parameters. A problem has its own; one given beside
            it takes its place.
          key: Source of all randomness in training; `jax.random.key(0)` if None. It may stand next
            to a problem: `create(problem, key)`.
          model_state: With parameters, what the network carries beside them.

        Returns:
          The state, at step 0.

        Raises:
          ValueError: A guard in the transform can't do its work where it stands: see
            `dynamic_loss_scale` and `skip_nonfinite`.
          TypeError: tx is not a gradient transform, or a model state was given beside a problem.

        Example:
          >>> TrainState.create(jnp.ones(3), optax.sgd(0.1)).step
          Array(0, dtype=int32)
        """
        if isinstance(params, Problem):
            if model_state is not None:
                raise TypeError("a Problem has a model state of its own: give model_state to it")
            if isinstance(tx, jax.Array):
                if key is not None:
                    raise TypeError("TrainState.create(problem, key) got two keys")
                tx, key = None, tx
            tx, model_state = params.transform if tx is None else tx, params.model_state
            params = params.params
        elif tx is None:
            raise TypeError(
                "TrainState.create takes parameters and the transform that will train them, or a "
                "vanishjax.Problem: tx is missing"
            )
        key = jax.random.key(0) if key is None else key
        params, model_state = (
            jax.tree.map(lambda x: jnp.array(x, copy=True), tree) for tree in (params, model_state)
        )
        opt_state = as_transform(tx, "tx").init(params)
        check_guards(opt_state)
        return cls(
            jnp.zeros([], jnp.int32),
            params,
            _unshared(opt_state, (params, model_state)),
            jnp.copy(key),
            model_state,
        )


def _unshared(opt_state: Any, params: Any) -> Any:
    """The same state, with a buffer of its own for every array."""
    taken = set(map(id, jax.tree.leaves(params)))

    def own(x: Any) -> Any:
        if id(x) in taken:
            return jnp.array(x, copy=True)
        taken.add(id(x))
        return x

    return jax.tree.map(own, opt_state)
