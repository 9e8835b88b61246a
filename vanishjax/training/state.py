"""What a training step carries from one batch to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """A pytree: the step count, the parameters, the transform's state and a random key."""

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
        arrays must outlive that.

        Args:
          params: Parameters, any pytree.
          tx: The transform that will train them.
          key: Source of all randomness in training; `jax.random.key(0)` if None.

        Returns:
          The state, at step 0.

        Example:
          >>> TrainState.create(jnp.ones(3), optax.sgd(0.1)).step
          Array(0, dtype=int32)
        """
        key = jax.random.key(0) if key is None else key
        copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        return cls(jnp.zeros([], jnp.int32), copy, tx.init(copy), jnp.copy(key))
