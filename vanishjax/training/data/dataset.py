"""Data sets: from a name or a path to training, validation and test examples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from vanishjax.training.data.digits import read_digits
from vanishjax.training.data.download import REMOTES, Progress, fetch
from vanishjax.training.data.errors import DataError, DataWarning
from vanishjax.training.data.idx import FILES, find_idx, read_idx_folder
from vanishjax.training.data.ink import Framing, measure_framing
from vanishjax.training.data.labels import class_labels, real_targets
from vanishjax.training.data.normalization import (
    Normalization,
    NormalizationKind,
    fit_normalization,
)
from vanishjax.training.data.npz import read_npz
from vanishjax.training.data.raw import Array, RawData, RawExamples
from vanishjax.training.data.split import check_fraction, hold_out

# The folders of torchvision's data sets, in which the files lie under "raw".
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}

DType = Literal["float32", "bfloat16"]
Targets = Literal["auto", "classes", "real"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their labels.

    Args:
      inputs: `[n, features]`.
      labels: int32 `[n]` classes, or float32 `[n]` or `[n, k]` targets.

    Example:
      >>> len(Examples(np.zeros((5, 2)), np.zeros(5, np.int32)))
      5
    """

    inputs: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: slice | Array) -> Examples:
        return Examples(self.inputs[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready to train on.

    Args:
      name: Its name.
      train: Training examples.
      validation: Validation examples.
      test: Test examples.
      image_shape: Height and width of the inputs, None if they are no images.
      classes: Number of classes, None if the labels are real-valued.
      normalization: How raw inputs became the inputs here; apply it to new ones.
      pixel_max: The raw value of a white pixel, None if the raw inputs have no such scale.
      framing: Where the ink lies in the training images; None if they show no ink on a dark ground.

    Example:
      >>> data = load_dataset("digits")
      >>> data.image_shape, data.classes
      ((8, 8), 10)
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    image_shape: tuple[int, int] | None
    classes: int | None
    normalization: Normalization
    pixel_max: float | None = None
    framing: Framing | None = None


def load_dataset(
    source: str | Path = "digits",
    *,
    data_dir: str | Path | None = None,
    validation_split: float = 0.2,
    test_split: float = 0.2,
    seed: int = 0,
    dtype: DType = "float32",
    normalization: NormalizationKind = "auto",
    targets: Targets = "auto",
    progress: Progress | None = None,
) -> Dataset:
    """Loads a data set, checks all of it, splits it and normalizes it.

    A part that the source has not got is split off its training part, the same class mix in each:
    first `test_split` of it, then `validation_split` of the rest.

    Args:
      source: `"digits"` (comes with the package), `"mnist"` or `"fashion_mnist"` (from `data_dir`,
        else downloaded once), or the path of an .npz file or of a folder with four IDX files.
      data_dir: Folder with the IDX files of mnist or fashion_mnist, or with a folder named so, such
        as the root of torchvision's data sets; relative paths in `source` start from it.
      validation_split: Fraction to validate on, between 0 and 1.
      test_split: Fraction to test on, between 0 and 1.
      seed: Decides the splits; the test part does not depend on `validation_split`.
      dtype: dtype of the inputs.
      normalization: `"unit"`, `"standard"`, `"none"`, or `"auto"`: see `fit_normalization`. Only
        training inputs decide it.
      targets: `"classes"`, `"real"`, or `"auto"`: floats are real-valued, integers are classes.
      progress: Called with file, bytes done and bytes in all while downloading.

    Returns:
      The data set.

    Raises:
      DataError: If an argument or the data cannot be used.

    Warns:
      DataWarning: Some classes have no training example, or class labels are stored as floats.

    Example:
      >>> data = load_dataset("digits", validation_split=0.25)
      >>> len(data.train), len(data.validation), len(data.test), data.train.inputs.shape[1]
      (1078, 360, 359, 64)
    """
    check_fraction("validation_split", validation_split)
    check_fraction("test_split", test_split)
    _check_choice("dtype", dtype, get_args(DType))
    _check_choice("normalization", normalization, get_args(NormalizationKind))
    _check_choice("targets", targets, get_args(Targets))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(f"seed is {seed!r}; it must be a whole number of at least 0")

    raw = _read(source, data_dir, progress)
    parts, classes = _checked(raw, targets)
    rng = np.random.default_rng(seed)
    splits = {"test": test_split, "validation": validation_split}
    missing = [part for part in splits if part not in parts]
    for keep, part in zip(range(len(missing), 0, -1), missing, strict=True):
        train = parts["train"]
        strata = train.labels if classes is not None else np.zeros(len(train), int)
        try:
            stay, held = hold_out(strata, splits[part], rng, name=f"{part}_split", keep=keep)
        except DataError as error:
            raise DataError(f"{raw.train.labels_origin}: {error}") from error
        parts["train"], parts[part] = train[stay], train[held]

    shape = raw.train.image_shape
    framing = None if shape is None else measure_framing(parts["train"].inputs.reshape(-1, *shape))
    fitted = fit_normalization(normalization, parts["train"].inputs, raw.pixel_max)
    parts = {
        part: replace(examples, inputs=_finish(fitted.apply(examples.inputs), dtype, raw, part))
        for part, examples in parts.items()
    }
    return Dataset(
        raw.name,
        parts["train"],
        parts["validation"],
        parts["test"],
        shape,
        classes,
        fitted,
        raw.pixel_max,
        framing,
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"{name} {value!r} is unknown; use one of {', '.join(choices)}")


def _read(source: str | Path, data_dir: str | Path | None, progress: Progress | None) -> RawData:
    name = str(source).replace("-", "_")
    if name == "digits":
        return read_digits()
    if name in REMOTES:
        folder = fetch(name, progress=progress) if data_dir is None else _within(data_dir, name)
        return read_idx_folder(folder, name=name, classes=10)
    path = Path(data_dir or "", source)
    if path.is_dir():
        return read_idx_folder(path)
    if path.suffix == ".npz":
        return read_npz(path)
    problem = "neither an .npz file nor a folder" if path.exists() else "no such data set or file"
    raise DataError(
        f"{path}: {problem}; use digits, {', '.join(REMOTES)}, the path of an .npz file, or that of"
        f" a folder with the four IDX files {', '.join(FILES)}"
    )


def _within(data_dir: str | Path, name: str) -> Path:
    top = Path(data_dir)
    own = (top / folder for folder in (name, name.replace("_", "-"), f"{_TORCHVISION[name]}/raw"))
    folders = (top, *own, top / "raw")
    return next((f for f in folders if any(find_idx(f, file) for file in FILES)), top)


def _checked(raw: RawData, targets: Targets) -> tuple[dict[str, Examples], int | None]:
    given = {"train": raw.train, "validation": raw.validation, "test": raw.test}
    parts = {part: examples for part, examples in given.items() if examples is not None}
    inputs = {part: examples.features() for part, examples in parts.items()}
    for examples in parts.values():
        _check_same_shape(raw.train, examples)
    real = raw.train.labels.dtype.kind == "f" and raw.classes is None
    if targets == "real" or (targets == "auto" and real):
        labels = {part: real_targets(e.labels, e.labels_origin) for part, e in parts.items()}
        widths = {part: array.shape[1:] for part, array in labels.items()}
        for part, width in widths.items():
            if width != widths["train"]:
                raise DataError(
                    f"{parts[part].labels_origin}: targets of shape {width} for each example, but"
                    f" {widths['train']} in training"
                )
        return {part: Examples(inputs[part], labels[part]) for part in parts}, None
    limit = sum(len(array) for array in inputs.values())
    labels = {
        part: class_labels(e.labels, e.labels_origin, classes=raw.classes, limit=limit)
        for part, e in parts.items()
    }
    classes = raw.classes or 1 + max(int(array.max()) for array in labels.values())
    _tell_of_labels(raw, labels["train"], classes)
    return {part: Examples(inputs[part], labels[part]) for part in parts}, classes


def _tell_of_labels(raw: RawData, labels: Array, classes: int) -> None:
    origin = raw.train.labels_origin
    if raw.train.labels.dtype.kind == "f":
        text = f"{origin}: whole numbers stored as {raw.train.labels.dtype} are taken for classes"
        warnings.warn(f"{text} 0 to {classes - 1}", DataWarning, stacklevel=4)
    empty = np.setdiff1d(np.arange(classes), labels)
    if len(empty):
        named = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        start = "; are they numbered from 1?" if empty[0] == 0 and len(empty) == 1 else ""
        text = f"{origin}: {len(empty)} of {classes} classes have no training example ({named})"
        warnings.warn(text + start, DataWarning, stacklevel=4)


def _check_same_shape(train: RawExamples, other: RawExamples) -> None:
    if train.inputs.shape[1:] != other.inputs.shape[1:]:
        raise DataError(
            f"{other.inputs_origin}: inputs of shape {other.inputs.shape[1:]}, but those of"
            f" {train.inputs_origin} are {train.inputs.shape[1:]}"
        )


def _finish(inputs: Array, dtype: DType, raw: RawData, part: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        inputs = inputs.astype(ml_dtypes.bfloat16)
    if not np.isfinite(inputs).all():
        raise DataError(
            f"{raw.train.inputs_origin}: normalized {part} inputs overflow {dtype}; scale them, or"
            " remove features that hardly vary in training"
        )
    return inputs
