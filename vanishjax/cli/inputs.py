"""The data that a command trains on, checked before anything heavy is imported."""

import argparse
import sys
import warnings
from typing import Literal

from vanishjax.cli.options import warn
from vanishjax.foreign import printable
from vanishjax.training.data import DataError, Dataset, DataWarning, load_dataset


def load_data(
    options: argparse.Namespace,
    targets: Literal["classes", "real"],
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Dataset:
    """Loads the data set that the options name.

    Args:
      options: With those of `add_data_options`, and `seed`.
      targets: What the labels are.
      dtype: Of the inputs.

    Returns:
      The data set: of two classes at least, if it is one of classes.

    Raises:
      DataError: It can't be used, or not with these options.
    """
    if options.data == "digits" and options.data_dir is not None:
        raise DataError(
            "--data-dir: the digits come with the package; say which set the folder holds, such as "
            "--data mnist"
        )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        dataset = load_dataset(
            options.data,
            data_dir=options.data_dir,
            validation_split=options.validation_split,
            seed=options.seed,
            dtype=dtype,
            targets=targets,
            progress=_show_download,
        )
    for one in told:
        warn(f"warning: {one.message}")
    if dataset.classes == 1:
        raise DataError(f"{dataset.name}: all labels are 0; it takes two classes to tell apart")
    if options.batch_size > len(dataset.train):
        raise DataError(
            f"--batch-size {options.batch_size}: there are only {len(dataset.train)} training "
            "examples"
        )
    return dataset


def _show_download(file: str, done: int, total: int) -> None:
    finished = done == total
    if finished or sys.stderr.isatty():
        start, end = ("\r" if sys.stderr.isatty() else ""), ("\n" if finished else "")
        line = f"downloading {printable(file)}: {done / 1e6:.1f} of {total / 1e6:.1f} MB"
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)
