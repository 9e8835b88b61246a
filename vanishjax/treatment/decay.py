"""Weight decay, as it shows in the steps of a transform: what moves where there is no gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax.transforms.arguments import as_transform


def without_decay(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A transform whose steps take nothing off the parameters.

    It is shown zeros for parameters, of which decay takes nothing, whether it is added to gradients
    (L2) or to steps (AdamW). What else asks for parameters sees zeros too: rates by the size of
    parameters (LARS) take theirs for those that have none.

    Args:
      inner: The transform; its state is the whole state.

    Returns:
      A transform.

    Raises:
      TypeError: It's no transform.

    Example:
      >>> tx = without_decay(optax.sgd(0.1, momentum=0.9))
      >>> decayed = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
      >>> weight, gradient = jnp.array([2.0]), jnp.array([1.0])
      >>> for tx in (decayed, without_decay(decayed)):
      ...     print(tx.update(gradient, tx.init(weight), weight)[0])
      [-0.2]
      [-0.1]
    """
    within = as_transform(inner)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        shown = None if params is None else jax.tree.map(jnp.zeros_like, params)
        steps, state = within.update(updates, state, shown, **extra)
        return steps, state

    return optax.GradientTransformationExtraArgs(within.init, update_fn)
