"""Parts of a batch, and the means over the whole of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

WEIGHT = "weight"
"""The metric that says how much a part counts, such as its number of tokens."""


class Part(NamedTuple):
    """Means over a part of a batch.

    Attributes:
      means: A pytree of means over the part.
      weight: How much the part counts; None if that is its number of examples.
    """

    means: Any
    weight: jax.Array | None = None

    def join(self, other: Part, share: float = 1.0) -> Part:
        """Both parts together.

        Args:
          other: The other part.
          share: This part's share of the examples, where these are what counts.

        Example:
          >>> print(Part(1.0).join(Part(5.0), share=3 / 4).means)
          2.0
          >>> print(Part(1.0, jnp.array(1)).join(Part(5.0, jnp.array(3))).means)
          4.0
        """
        if self.weight is None or other.weight is None:
            return Part(_mean(share, self.means, other.means))
        total = self.weight + other.weight
        return Part(_mean(self.weight / _divisor(total), self.means, other.means), total)

    def over(self, axis: str) -> Part:
        """The parts of all devices together; each device gets the whole."""
        if self.weight is None:
            return Part(jax.lax.pmean(self.means, axis))
        total = jax.lax.psum(self.weight, axis)
        share = self.weight / _divisor(total)
        shares = jax.tree.map(lambda x: _typed(share * x, x), self.means)
        return Part(jax.lax.psum(shares, axis), total)


def counted_part(means: Any, weight: Any) -> Part:
    """A part with a weight of its own; of a part that counts nothing the means are 0, not NaN.

    Raises:
      ValueError: The weight is no scalar.
    """
    if jnp.shape(weight):
        raise ValueError(
            f"the metric {WEIGHT!r} must be a scalar, how many examples or tokens the batch "
            f"counts for, got shape {list(jnp.shape(weight))}"
        )
    # Counts are whole numbers, which a mean is not.
    wide = jnp.asarray(weight, jnp.promote_types(jnp.result_type(weight), jnp.float32))
    return Part(counted(wide, means, jax.tree.map(jnp.zeros_like, means)), wide)


def counted(weight: jax.Array, tree: Any, otherwise: Any) -> Any:
    """A tree, or the other one where the weight is 0."""
    return jax.tree.map(lambda x, other: jnp.where(weight == 0, other, x), tree, otherwise)


def _divisor(total: jax.Array) -> jax.Array:
    """The total, or 1 where all parts are empty."""
    return jnp.where(total == 0, 1, total)


def _mean(share: Any, first: Any, second: Any) -> Any:
    return jax.tree.map(lambda x, y: _typed(share * x + (1 - share) * y, x), first, second)


def _typed(mean: Any, like: Any) -> jax.Array:
    """In the type of what it is a mean of; but the mean of whole numbers is none."""
    dtype = jnp.result_type(like)
    return jnp.asarray(mean, dtype if jnp.issubdtype(dtype, jnp.inexact) else None)
