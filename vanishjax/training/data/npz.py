"""NumPy archives, read without trusting them: no pickles, no more memory than they admit to."""

from __future__ import annotations

import collections
import math
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from vanishjax.foreign import listed, shown
from vanishjax.training.data.errors import (
    MAX_BYTES,
    DataError,
    most_inflated,
    regular_file,
)
from vanishjax.training.data.raw import Array, RawData, RawExamples

_TRAIN = (("x_train", "y_train"), ("x", "y"), ("inputs", "labels"))
_VALIDATION, _TEST = ("x_validation", "y_validation"), ("x_test", "y_test")
_ARRAYS = {name for pair in (*_TRAIN, _VALIDATION, _TEST) for name in pair}

# For each version of the format, the reader of the header and the bytes that hold its length.
_HEADERS = {
    (1, 0): (np.lib.format.read_array_header_1_0, 2),
    (2, 0): (np.lib.format.read_array_header_2_0, 4),
}
_LONGEST_HEADER = 10_000  # NumPy's own limit, which it looks at when all of it is read
_MOST_AXES = 32  # NumPy's own limit up to version 1

# What the libraries raise on damaged archives, from reading many of them.
_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, OverflowError, MemoryError, IndexError,
    struct.error, zlib.error,
)  # fmt: skip


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
            return _read(archive, path)
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: not an .npz archive, or a damaged one ({shown(error, 100)}); save it with"
            " numpy.savez"
        ) from error
    except _UNREADABLE as error:
        reason = shown(error, 100) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from error


def _read(archive: zipfile.ZipFile, path: Path) -> RawData:
    members = collections.Counter(info.filename for info in archive.infolist())
    names = {name.removesuffix(".npy") for name in members if name.endswith(".npy")}
    for name in sorted(names & _ARRAYS):
        if members[f"{name}.npy"] > 1:
            raise DataError(f"{path}: holds {name} {members[f'{name}.npy']} times; save it once")
    train = next((pair for pair in _TRAIN if names.issuperset(pair)), None)
    if train is None:
        raise DataError(
            f"{path}: holds {f'the arrays {listed(sorted(names))}' if names else 'no arrays'}; it"
            " needs x and y, inputs and labels, or x_train and y_train"
        )
    return RawData(
        path.stem,
        _examples(archive, path, *train),
        _optional(archive, path, names, *_VALIDATION),
        _optional(archive, path, names, *_TEST),
    )


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
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{origin}: compressed in a way that NumPy never uses")
    with archive.open(info) as file:
        shape, fortran_order, dtype = _header(file, origin)
        promised = math.prod(shape) * dtype.itemsize
        # Zeros count as ones, because NumPy's own limit on a shape ignores them too. All this is
        # compared before reading: an archive of a few kB can promise any number of bytes.
        most = math.prod(max(size, 1) for size in shape) * dtype.itemsize
        if max(most, info.file_size) > MAX_BYTES:
            raise DataError(
                f"{origin}: shape {shown(shape)} is over the limit of {MAX_BYTES} bytes"
            )
        inflated = info.compress_size
        if info.compress_type == zipfile.ZIP_DEFLATED:
            inflated = most_inflated(inflated)
        if file.tell() + promised != info.file_size or info.file_size > inflated:
            raise DataError(f"{origin}: truncated or damaged: its size does not fit {shown(shape)}")
        data = file.read(promised)
        if len(data) != promised or file.read(1):
            raise DataError(f"{origin}: truncated: {len(data)} of {promised} bytes")
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _header(file: IO[bytes], origin: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array, from a header that may hold any text."""
    try:
        version = np.lib.format.read_magic(file)
        read, length = _HEADERS.get(version, (None, 0))
        if read is None:
            raise DataError(f"{origin}: must be a plain array of numbers")
        start = file.tell()
        if int.from_bytes(file.read(length), "little") > _LONGEST_HEADER:
            raise DataError(f"{origin}: must be a plain array of numbers: its header is too long")
        file.seek(start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = read(file)
    except DataError:
        raise
    except Exception as error:
        # Its text is parsed as Python's own literals, which fail in many ways.
        raise DataError(
            f"{origin}: not a NumPy array ({shown(error, 100) or type(error).__name__})"
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{origin}: an array of Python objects, which would be unpickled and so could"
            " run any code; save numbers, for example with astype('float32')"
        )
    if dtype.kind == "V" or dtype.itemsize == 0:
        raise DataError(f"{origin}: dtype {shown(dtype)} is not real numbers")
    if len(shape) > _MOST_AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise DataError(f"{origin}: not a NumPy array: it has no shape like {shown(shape)}")
    return shape, fortran_order, dtype
