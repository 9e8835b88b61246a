"""Data as it came from its source: unsplit, unscaled, and checked before anything uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vanishjax.foreign import shown
from vanishjax.training.data.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class RawExamples:
    """Inputs and labels of one part of a source, with the names under which errors report them.

    Args:
      inputs: Numbers of shape `[n, features]`, `[n, height, width]` or `[n, height, width, 1]`.
      labels: `[n]` class labels or `[n]` / `[n, k]` real-valued targets.
      inputs_origin: File, and array in it, that the inputs came from.
      labels_origin: The same for the labels.

    Example:
      >>> examples = RawExamples(np.zeros((5, 8, 8)), np.zeros(5, int), "a.npz: x", "a.npz: y")
      >>> examples.image_shape, examples.features().shape
      ((8, 8), (5, 64))
    """

    inputs: Array
    labels: Array
    inputs_origin: str
    labels_origin: str

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the inputs, or None if they are plain feature vectors."""
        return None if self.inputs.ndim == 2 else (self.inputs.shape[1], self.inputs.shape[2])

    def features(self) -> Array:
        """Checks the inputs and flattens them.

        Returns:
          The inputs as `[n, features]`, in their own dtype.

        Raises:
          DataError: If the shape, the dtype, the number of labels or a value is unusable.
        """
        inputs, origin = self.inputs, self.inputs_origin
        if inputs.dtype.kind not in "biuf":
            raise DataError(f"{origin}: dtype {shown(inputs.dtype)} is not real numbers")
        plain = inputs.ndim in (2, 3) or (inputs.ndim == 4 and inputs.shape[3] == 1)
        if not plain:
            raise DataError(
                f"{origin}: shape {shown(inputs.shape)} is not [n, features], [n, height, width] or"
                " [n, height, width, 1]; reshape it, or make color images gray"
            )
        if inputs.size == 0:
            raise DataError(f"{origin}: shape {inputs.shape} is empty; at least one is needed")
        if self.labels.ndim == 0 or len(self.labels) != len(inputs):
            raise DataError(
                f"{self.labels_origin}: labels of shape {shown(self.labels.shape)} for the"
                f" {len(inputs)} inputs of {origin}; there must be one label for each input"
            )
        check_finite(inputs, origin)
        return inputs.reshape(len(inputs), -1)


@dataclass(frozen=True, eq=False)
class RawData:
    """A whole source; the parts that it does not bring are split off its training part later.

    Args:
      name: Name for reports.
      train: Training part.
      validation: Validation part, if the source has one.
      test: Test part, if the source has one.
      classes: Number of classes where the source is known to have it.
      pixel_max: Value of full ink where the dtype does not tell.

    Example:
      >>> examples = RawExamples(np.zeros((2, 3)), np.zeros(2, int), "x", "y")
      >>> RawData("mine", examples).test is None
      True
    """

    name: str
    train: RawExamples
    validation: RawExamples | None = None
    test: RawExamples | None = None
    classes: int | None = None
    pixel_max: float | None = None


def check_finite(values: Array, origin: str) -> None:
    """Rejects NaN, infinity, and numbers that float32 turns into infinity.

    Args:
      values: Array of numbers.
      origin: Where they came from, for the message.

    Raises:
      DataError: If there are any, with their number and the first index.

    Example:
      >>> check_finite(np.array([[0.0, np.nan]]), "a.npz: x")
      Traceback (most recent call last):
      ...
      vanishjax.training.data.errors.DataError: a.npz: x: 1 of 2 values is not finite in float32,
      the first, nan, at [0, 1]; remove or replace it
    """
    if values.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32, copy=False))
    count = int(np.count_nonzero(bad))
    if count:
        first = np.unravel_index(int(np.argmax(bad)), bad.shape)
        index = ", ".join(str(int(i)) for i in first)
        verb, them = ("is", "it") if count == 1 else ("are", "them")
        raise DataError(
            f"{origin}: {count} of {values.size} values {verb} not finite in float32, the first,"
            f" {values[first]}, at [{index}]; remove or replace {them}"
        )
