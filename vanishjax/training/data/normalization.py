"""The affine map from raw inputs to what the network sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from vanishjax.foreign import shown
from vanishjax.training.data.errors import DataError
from vanishjax.training.data.raw import Array

NormalizationKind = Literal["auto", "unit", "standard", "none"]


@dataclass(frozen=True, eq=False)
class Normalization:
    """inputs = (raw - offset) / scale.

    Args:
      offset: Scalar or `[features]`.
      scale: Scalar or `[features]`, not zero.

    Raises:
      DataError: If a value is not finite, a scale is zero, or a shape is neither of the two.

    Example:
      >>> unit = Normalization(offset=0.0, scale=255.0)
      >>> unit.apply(np.array([[0, 51, 255]], np.uint8))
      array([[0. , 0.2, 1. ]], dtype=float32)
      >>> Normalization.from_dict(unit.to_dict()).to_dict()
      {'offset': 0.0, 'scale': 255.0}
    """

    offset: float | Array
    scale: float | Array

    def __post_init__(self) -> None:
        for name in ("offset", "scale"):
            value = np.asarray(getattr(self, name))
            usable = value.dtype.kind in "iuf" and value.ndim <= 1 and np.isfinite(value).all()
            if not usable or (name == "scale" and not value.all()):
                raise DataError(
                    f"normalization: {name} must be a finite number or a list of them"
                    + (", none of them zero" if name == "scale" else "")
                )

    def apply(self, raw: Array) -> Array:
        """Normalizes raw inputs.

        Args:
          raw: `[n, features]` of any real dtype.

        Returns:
          float32 array of the same shape.

        Raises:
          DataError: If the inputs do not have the features of offset and scale.
        """
        for value in (self.offset, self.scale):
            if np.ndim(value) and np.shape(value)[0] != np.shape(raw)[-1]:
                raise DataError(
                    f"normalization: for {np.shape(value)[0]} features, but the inputs have"
                    f" {np.shape(raw)[-1]}"
                )
        # uint8 and float32 need no float64 copy, which for MNIST would take 400 MB.
        working = np.result_type(np.asarray(raw).dtype, np.float32)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            inputs = np.subtract(raw, self.offset, dtype=working)
            inputs /= self.scale
            return inputs.astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, float | list[float]]:
        """Returns plain numbers and lists, ready for JSON."""
        return {
            "offset": np.asarray(self.offset, np.float64).tolist(),
            "scale": np.asarray(self.scale, np.float64).tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalization:
        """Reads what `to_dict` wrote.

        Args:
          values: Mapping with `offset` and `scale`.

        Returns:
          The normalization.

        Raises:
          DataError: If a key is missing or a value is not a number or a list of numbers.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"normalization: {shown(values)} instead of offset and scale")
        missing = [name for name in ("offset", "scale") if name not in values]
        if missing:
            raise DataError(f"normalization: {' and '.join(missing)} missing")
        try:
            offset, scale = (np.asarray(values[name]) for name in ("offset", "scale"))
        except (ValueError, RecursionError, OverflowError) as error:
            raise DataError(f"normalization: not numbers ({shown(error)})") from error
        return cls(*(v.item() if v.ndim == 0 else v for v in (offset, scale)))


def fit_normalization(
    kind: NormalizationKind, train: Array, pixel_max: float | None = None
) -> Normalization:
    """Chooses the normalization of a data set from its training inputs alone.

    Args:
      kind: `"unit"`: to [0, 1], by `pixel_max`, else by 255 for uint8, else by the range of the
        training inputs. `"standard"`: each feature to mean 0 and standard deviation 1; constant
        features keep scale 1. `"none"`: unchanged. `"auto"`: integers as `"unit"`, floats within
        [0, 1] as `"none"`, other floats as `"standard"`.
      train: `[n, features]` training inputs, finite.
      pixel_max: Raw value of full ink, where known.

    Returns:
      The normalization.

    Raises:
      DataError: If the kind is unknown.

    Example:
      >>> fit_normalization("auto", np.array([[0, 255]], np.uint8)).to_dict()
      {'offset': 0.0, 'scale': 255.0}
      >>> fit_normalization("auto", np.array([[-1.0, 7.0], [3.0, 7.0]])).to_dict()
      {'offset': [1.0, 7.0], 'scale': [2.0, 1.0]}
    """
    if kind not in get_args(NormalizationKind):
        kinds = ", ".join(get_args(NormalizationKind))
        raise DataError(f"normalization {kind!r} is unknown; use one of {kinds}")
    low, high = float(train.min()), float(train.max())
    real = train.dtype.kind == "f"
    if kind == "auto":
        kind = "unit" if not real else "none" if low >= 0 and high <= 1 else "standard"
    if kind == "standard":
        deviation = train.std(axis=0, dtype=np.float64)
        # Rounding gives a constant feature a deviation of 1e-17 instead of 0, so compare its ends.
        constant = (train.min(axis=0) == train.max(axis=0)) | (deviation == 0)
        return Normalization(
            train.mean(axis=0, dtype=np.float64), np.where(constant, 1.0, deviation)
        )
    if kind == "none" or train.dtype.kind == "b" or (real and low >= 0 and high <= 1):
        return Normalization(0.0, 1.0)
    if pixel_max is not None or train.dtype == np.uint8:
        return Normalization(0.0, pixel_max or 255.0)
    return Normalization(low, high - low or 1.0)
