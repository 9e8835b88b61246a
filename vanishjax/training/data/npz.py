"""NumPy archives, read without trusting them: no pickles, no more memory than they admit to."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vanishjax.training.data.errors import MAX_BYTES, DataError, regular_file
from vanishjax.training.data.raw import Array, RawData, RawExamples

_TRAIN = (("x_train", "y_train"), ("x", "y"), ("inputs", "labels"))
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: str | Path) -> RawData:
    """Reads a data set from an .npz file.

    Args:
      path: Archive with the arrays `x, y` or `inputs, labels` or `x_train, y_train`, and
        optionally `x_test, y_test` and `x_validation, y_validation`. Other arrays are left alone.

    Returns:
      The parts that the file has.

    Raises:
      DataError: If the file is missing, damaged, not an archive, or lacks an array.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "mine.npz")
      ...     np.savez(path, x=np.zeros((6, 4)), y=np.zeros(6, int))
      ...     data = read_npz(path)
      >>> data.name, data.train.inputs.shape, data.test
      ('mine', (6, 4), None)
    """
    path = regular_file(path, "an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            train = next((pair for pair in _TRAIN if names.issuperset(pair)), None)
            if train is None:
                raise DataError(
                    f"{path}: holds the arrays {', '.join(sorted(names)) or 'none'}; it needs"
                    " x and y, inputs and labels, or x_train and y_train"
                )
            return RawData(
                path.stem,
                _examples(archive, path, *train),
                _optional(archive, path, names, "x_validation", "y_validation"),
                _optional(archive, path, names, "x_test", "y_test"),
            )
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: not an .npz archive, or a damaged one ({error}); save it with numpy.savez"
        ) from error
    except (OSError, EOFError, RuntimeError, zlib.error, MemoryError) as error:
        raise DataError(f"{path}: cannot be read ({error or type(error).__name__})") from error


def _optional(
    archive: zipfile.ZipFile, path: Path, names: set[str], x: str, y: str
) -> RawExamples | None:
    if (x in names) != (y in names):
        there, missing = (x, y) if x in names else (y, x)
        raise DataError(f"{path}: has {there} but not {missing}; save both or neither")
    return _examples(archive, path, x, y) if x in names else None


def _examples(archive: zipfile.ZipFile, path: Path, x: str, y: str) -> RawExamples:
    return RawExamples(
        _array(archive, path, x), _array(archive, path, y), f"{path}: {x}", f"{path}: {y}"
    )


def _array(archive: zipfile.ZipFile, path: Path, name: str) -> Array:
    origin = f"{path}: {name}"
    try:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as file:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{origin}: compressed in a way that NumPy never uses")
            header = _HEADERS.get(np.lib.format.read_magic(file))
            if header is None:
                raise DataError(f"{origin}: must be a plain array of numbers")
            shape, _, dtype = header(file)
            if dtype.hasobject:
                raise DataError(
                    f"{origin}: an array of Python objects, which would be unpickled and so could"
                    " run any code; save numbers, for example with astype('float32')"
                )
            size = math.prod(shape) * dtype.itemsize
            # Compared before reading: an archive of a few kB can promise any number of bytes.
            if max(size, info.file_size) > MAX_BYTES:
                raise DataError(f"{origin}: shape {shape} is over the limit of {MAX_BYTES} bytes")
            if file.tell() + size != info.file_size:
                raise DataError(f"{origin}: truncated or damaged: its size does not fit {shape}")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except (KeyError, ValueError) as error:
        raise DataError(f"{origin}: not a NumPy array ({error})") from error
