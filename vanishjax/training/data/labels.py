"""Labels: whole numbers from 0 for classes, or finite float32 targets for regression."""

from __future__ import annotations

import numpy as np

from vanishjax.foreign import shown
from vanishjax.training.data.errors import DataError
from vanishjax.training.data.raw import Array, check_finite


def class_labels(labels: Array, origin: str, *, classes: int | None, limit: int) -> Array:
    """Checks class labels.

    Args:
      labels: `[n]` or `[n, 1]` whole numbers, of any dtype.
      origin: Where they came from, for the messages.
      classes: Number of classes, if known.
      limit: Largest number of classes to believe in if it is not known.

    Returns:
      The labels as int32 `[n]`.

    Raises:
      DataError: If a label is not a whole number from 0 to the number of classes - 1.

    Example:
      >>> class_labels(np.array([[0.0], [2.0]]), "a.npz: y", classes=3, limit=2)
      array([0, 2], dtype=int32)
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{origin}: shape {shown(labels.shape)} is not one class label for each example, [n];"
            " for one-hot labels save labels.argmax(axis=1)"
        )
    if labels.dtype.kind not in "biuf":
        raise DataError(
            f"{origin}: dtype {shown(labels.dtype)} is not class numbers; number them from 0"
        )
    if labels.dtype.kind == "f":
        _reject(labels, labels != np.floor(labels), origin, "is not a whole number")
        _reject(labels, ~np.isfinite(labels), origin, "is not a class")
    _reject(labels, labels < 0, origin, "is negative; classes are numbered from 0")
    if classes is not None:
        _reject(
            labels, labels >= classes, origin, f"is out of range; classes are 0 to {classes - 1}"
        )
    _reject(
        labels,
        labels >= max(limit, classes or 0),
        origin,
        f"is out of range for {limit} examples; number the classes from 0 without gaps",
    )
    return labels.astype(np.int32)


def real_targets(labels: Array, origin: str) -> Array:
    """Checks real-valued targets.

    Args:
      labels: `[n]` or `[n, k]` numbers.
      origin: Where they came from, for the messages.

    Returns:
      The targets as float32, in their shape.

    Raises:
      DataError: If they are not finite numbers of that shape.

    Example:
      >>> real_targets(np.array([1, 2]), "a.npz: y")
      array([1., 2.], dtype=float32)
    """
    if labels.ndim not in (1, 2) or labels.size == 0:
        raise DataError(f"{origin}: shape {shown(labels.shape)} is not [n] or [n, k] targets")
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{origin}: dtype {shown(labels.dtype)} is not real numbers")
    check_finite(labels, origin)
    return labels.astype(np.float32)


def _reject(labels: Array, bad: Array, origin: str, why: str) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        raise DataError(f"{origin}: label {labels[first]} at index {first} {why}")
