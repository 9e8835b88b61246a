"""The one error of the data layer, and the checks that every file passes before it is opened."""

from __future__ import annotations

from pathlib import Path

from vanishjax.foreign import one_line

MAX_BYTES = 2**32
"""No array read from a file may be larger: 4 GiB, ten times Fashion-MNIST in float64."""

_MOST_INFLATED = 1032


class DataError(ValueError):
    r"""Data that cannot be used; the message is one line: what, where, and what would be right.

    Args:
      message: The message; line breaks in it (from a library's own error) become spaces, other
        control characters (from a file or its name) escapes.

    Example:
      >>> str(DataError("digits.npz: not an .npz file\nsave it with numpy.savez"))
      'digits.npz: not an .npz file save it with numpy.savez'
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DataWarning(UserWarning):
    """Data that can be used, but may not be what was meant."""


def most_inflated(compressed: int) -> int:
    """The most bytes that deflated ones can hold: a file that promises more lies.

    Args:
      compressed: Number of compressed bytes.

    Returns:
      Number of bytes.

    Example:
      >>> most_inflated(1000)
      1032000

    References:
      Deutsch, DEFLATE Compressed Data Format Specification, RFC 1951, 1996: two bits stand for at
      most 258 bytes.
    """
    return _MOST_INFLATED * compressed


def regular_file(path: str | Path, wanted: str) -> Path:
    """Returns the path if an ordinary file lies there.

    Args:
      path: Path to look at.
      wanted: What should lie there, for the message.

    Returns:
      The path.

    Raises:
      DataError: If nothing is there, or a folder, or a device or pipe, which would block or never
        end.

    Example:
      >>> regular_file("no/such/file.png", "an image")
      Traceback (most recent call last):
      ...
      vanishjax.training.data.errors.DataError: no/such/file.png: no such file; give ... an image
    """
    path = Path(path)
    if path.is_file():
        return path
    problem = "is a folder" if path.is_dir() else "not a file" if path.exists() else "no such file"
    raise DataError(f"{path}: {problem}; give the path of {wanted}")
