"""Losses and scores of a batch: every one is a mean over the batch, in at least float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

__all__ = ["accuracy", "cross_entropy", "mean_absolute_error", "squared_error"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Mean softmax cross-entropy of integer labels.

    -1/N sum_i log softmax(logits_i)[labels_i].

    Args:
      logits: Scores, ``[..., classes]``; half precision is widened to float32 first.
      labels: Class indices, integers ``[...]``.

    Returns:
      A scalar.

    Raises:
      ValueError: If the labels are not integers or the shapes don't belong together.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(cross_entropy(jnp.zeros([2, 10]), jnp.array([3, 7]))), 4)  # ln 10
      2.3026
    """
    _check_labels("cross_entropy", logits, labels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(_widen(logits), labels).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    r"""Mean squared error, 1/N sum_i (outputs_i - targets_i)^2.

    Args:
      outputs: Predictions, of the targets' shape or with one more axis of size 1.
      targets: True values.

    Returns:
      A scalar.

    Raises:
      ValueError: If the shapes don't belong together.

    Example:
      >>> import jax.numpy as jnp
      >>> float(squared_error(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 4.0])))
      2.0
    """
    outputs = _match_targets("squared_error", outputs, targets)
    return optax.losses.squared_error(_widen(outputs), _widen(targets)).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Fraction of rows whose largest logit is the label's.

    Args:
      logits: Scores, ``[..., classes]``.
      labels: Class indices, integers ``[...]``.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: If the labels are not integers or the shapes don't belong together.

    Example:
      >>> import jax.numpy as jnp
      >>> float(accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])))
      0.5
    """
    _check_labels("accuracy", logits, labels)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def mean_absolute_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    r"""Mean absolute error, 1/N sum_i |outputs_i - targets_i|.

    Args:
      outputs: Predictions, of the targets' shape or with one more axis of size 1.
      targets: True values.

    Returns:
      A scalar.

    Raises:
      ValueError: If the shapes don't belong together.

    Example:
      >>> import jax.numpy as jnp
      >>> float(mean_absolute_error(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 4.0])))
      1.0
    """
    outputs = _match_targets("mean_absolute_error", outputs, targets)
    return jnp.abs(_widen(outputs) - _widen(targets)).mean()


def _widen(values: jax.Array) -> jax.Array:
    return jnp.asarray(values, jnp.promote_types(jnp.result_type(values), jnp.float32))


def _check_labels(name: str, logits: jax.Array, labels: jax.Array) -> None:
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"{name} needs integer class labels, got dtype {jnp.result_type(labels)}: "
            "pass class indices, or use squared_error for real-valued targets"
        )
    if jnp.shape(logits)[:-1] != jnp.shape(labels):
        raise ValueError(
            f"{name} needs logits [..., classes] and labels [...], got logits "
            f"{list(jnp.shape(logits))} and labels {list(jnp.shape(labels))}"
        )


def _match_targets(name: str, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    shape = jnp.shape(targets)
    # [batch, 1] against [batch] would broadcast to [batch, batch] without a word.
    if jnp.shape(outputs) == (*shape, 1):
        return jnp.reshape(outputs, shape)
    if jnp.shape(outputs) != shape:
        raise ValueError(
            f"{name} needs outputs and targets of one shape (or outputs with one more axis of "
            f"size 1), got outputs {list(jnp.shape(outputs))} and targets {list(shape)}"
        )
    return outputs
