"""What a training step carries from one batch to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax.transforms.arguments import as_transform
from vanishjax.transforms.safety import check_guards


class TrainState(NamedTuple):
    """A pytree: the step count, the parameters, the transform's state and a random key.

    The count stays at 2^31 - 1 when it gets there, as optax's counts do: from then on all steps
    draw the same random numbers.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array

    @classmethod
    def create(
        cls, params: Any, tx: optax.GradientTransformation, key: jax.Array | None = None
    ) -> "TrainState":
        """The state before the first step.

        The parameters and the key are copied: a step donates its state, and the caller's own
        arrays must outlive that. So are arrays that the transform's state shares with the
        parameters, as some of optax's do: no buffer can be donated twice.

        Args:
          params: Parameters, any pytree.
          tx: The transform that will train them.
          key: Source of all randomness in training; `jax.random.key(0)` if None.

        Returns:
          The state, at step 0.

        Raises:
          ValueError: A guard in the transform can't do its work where it stands: see
            `dynamic_loss_scale` and `skip_nonfinite`.
          TypeError: tx is not a gradient transform.

        Example:
          >>> TrainState.create(jnp.ones(3), optax.sgd(0.1)).step
          Array(0, dtype=int32)
        """
        key = jax.random.key(0) if key is None else key
        copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        opt_state = as_transform(tx, "tx").init(copy)
        check_guards(opt_state)
        return cls(jnp.zeros([], jnp.int32), copy, _unshared(opt_state, copy), jnp.copy(key))


def _unshared(opt_state: Any, params: Any) -> Any:
    """The same state, with a buffer of its own for every array."""
    taken = set(map(id, jax.tree.leaves(params)))

    def own(x: Any) -> Any:
        if id(x) in taken:
            return jnp.array(x, copy=True)
        taken.add(id(x))
        return x

    return jax.tree.map(own, opt_state)
