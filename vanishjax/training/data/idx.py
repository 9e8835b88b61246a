"""IDX, the format of MNIST: a big-endian header, then the array."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from vanishjax.foreign import shown
from vanishjax.training.data.errors import (
    MAX_BYTES,
    DataError,
    most_inflated,
    regular_file,
)
from vanishjax.training.data.raw import Array, RawData, RawExamples

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""dtype for each type code of the format."""

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of MNIST and of every data set made in its image."""

_MAX_RANK = 64  # NumPy's own limit


def read_idx(path: str | Path) -> Array:
    r"""Reads one IDX file, plain or gzipped (told apart by content, not by name).

    The file must be exactly as long as its header says, and never is more decompressed than that.

    Args:
      path: File to read.

    Returns:
      The array, in native byte order.

    Raises:
      DataError: If the file is missing, truncated, too long, damaged or not IDX.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "labels.idx1-ubyte")
      ...     _ = path.write_bytes(b"\0\0\x08\x01" + b"\0\0\0\x03" + b"\7\2\1")
      ...     read_idx(path)
      array([7, 2, 1], dtype=uint8)

    References:
      LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998, "The IDX file
      format".
    """
    path = regular_file(path, "an IDX file")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if not zipped:
                return _parse(file, path, size)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file))
            return _parse(stream, path, most_inflated(size))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: truncated or damaged gzip file ({shown(error, 100)}); get it again"
        ) from error
    except (OSError, MemoryError) as error:
        reason = shown(error, 100) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from error


def read_idx_folder(
    folder: str | Path, *, name: str | None = None, classes: int | None = None
) -> RawData:
    """Reads the four IDX files of a data set made like MNIST.

    Args:
      folder: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the two t10k- files,
        each plain or .gz, with `-idx` or `.idx` in the name.
      name: Name of the data set; the folder's if None.
      classes: Number of classes, if known.

    Returns:
      Training and test part; there is no validation part.

    Raises:
      DataError: If a file is missing or unusable, or holds an array of the wrong kind.

    Example:
      >>> read_idx_folder("no/such/folder")
      Traceback (most recent call last):
      ...
      vanishjax.training.data.errors.DataError: no/such/folder: no such folder; ...
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one that holds {', '.join(FILES)}")
    paths = {file: find_idx(folder, file) for file in FILES}
    missing = [file for file, path in paths.items() if path is None]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing (plain or .gz); put them there, or give the"
            " folder that holds them as data_dir (--data-dir), or name mnist or fashion_mnist"
            " without a folder to download it"
        )
    train, test = (
        RawExamples(
            _read_ubyte(images, rank=3), _read_ubyte(labels, rank=1), str(images), str(labels)
        )
        for images, labels in _pairs([path for path in paths.values() if path is not None])
    )
    if train.image_shape != test.image_shape:
        raise DataError(
            f"{test.inputs_origin}: images of {test.image_shape}, but those of"
            f" {train.inputs_origin} are {train.image_shape}"
        )
    return RawData(name or folder.resolve().name, train, test=test, classes=classes)


def find_idx(folder: Path, file: str) -> Path | None:
    """Finds an IDX file under any of the names it is distributed by.

    Args:
      folder: Folder to look in.
      file: Name as in `FILES`.

    Returns:
      The path, or None.

    Example:
      >>> find_idx(Path("no/such/folder"), FILES[0]) is None
      True
    """
    names = [stem + end for stem in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _pairs(paths: list[Path]) -> list[tuple[Path, Path]]:
    return list(zip(paths[::2], paths[1::2], strict=True))


def _read_ubyte(path: Path, rank: int) -> Array:
    array = read_idx(path)
    if array.ndim != rank or array.dtype != np.uint8:
        raise DataError(
            f"{path}: holds {array.dtype} of rank {array.ndim}, shape {shown(array.shape)};"
            f" this file must hold unsigned bytes of rank {rank}"
        )
    return array


def _parse(stream: BinaryIO, path: Path, most: int) -> Array:
    """Reads an array from a file that holds at most so many bytes."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise DataError(
            f"{path}: not an IDX file: it starts with {magic.hex(' ') or 'nothing'}, where"
            " 00 00, a type code from 08 to 0e and the rank should be"
        )
    dtype, rank = np.dtype(DTYPES[magic[2]]), magic[3]
    if not 1 <= rank <= _MAX_RANK:
        raise DataError(f"{path}: IDX rank {rank} is not between 1 and {_MAX_RANK}")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: truncated within the IDX header; get it again")
    shape = struct.unpack(f">{rank}I", sizes)
    # Zeros count as ones, because NumPy's own limit on a shape ignores them too.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > MAX_BYTES:
        raise DataError(
            f"{path}: the header's shape {shown(shape)} is over the limit of {MAX_BYTES} bytes"
        )
    promised = math.prod(shape) * dtype.itemsize
    # Reading takes the memory that is asked for, however little there is to read.
    data = stream.read(min(promised, most) + 1)
    if len(data) != promised:
        found = f"truncated: {len(data)} are" if len(data) < promised else "too long: more are"
        raise DataError(
            f"{path}: the header promises {promised} bytes for shape {shown(shape)}, but the file"
            f" is {found} there; get it again"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
