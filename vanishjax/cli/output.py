"""Where a command's results go: a folder that is checked before the work and written after it."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vanishjax.files import write_atomically
from vanishjax.training.data.errors import DataError


@contextlib.contextmanager
def results_folder(
    command: str, out: str | None, files: Sequence[str], overwrite: bool
) -> Iterator[Path]:
    """The folder for a command's results; one that stays empty is taken away again.

    Args:
      command: Its name: without `out`, the folder is the first free `runs/<command>-NNN`.
      out: The folder the user asked for.
      files: Names of the files that the command will write.
      overwrite: Whether files of those names may be replaced.

    Yields:
      The folder, which exists and can be written.

    Raises:
      DataError: The folder already holds results, or can't be made or written.
    """
    folder = _open_folder(command, out, files, overwrite)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _open_folder(command: str, out: str | None, files: Sequence[str], overwrite: bool) -> Path:
    name = "runs" if out is None else f"--out {out}"
    try:
        if out is None:
            return _next_folder(Path("runs"), command)
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise DataError(f"{name}: is a file; name another folder with --out") from error
    except OSError as error:
        raise DataError(
            f"{name}: can't write there ({error.strerror}); name another folder with --out"
        ) from error
    present = [name for name in files if (folder / name).exists()]
    if present and not overwrite:
        raise DataError(
            f"{name}: already holds {', '.join(present)}; name another folder, or pass "
            "--overwrite to replace them"
        )
    return folder


def latest_folder(command: str, file: str) -> Path | None:
    """The newest `runs/<command>-NNN` that holds a file of that name."""
    found = [path.parent for path in Path("runs").glob(f"{command}-*/{file}")]
    return max(found, default=None, key=lambda folder: folder.stat().st_mtime)


def to_json(value: Any, indent: int | None = 2) -> str:
    """A value as JSON, on one line if `indent` is None; NaN and infinity become null."""
    # Of the control characters JSON escapes all but one.
    return json.dumps(_finite(value), indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def write_json(path: Path, value: Any) -> str:
    """Writes a value as JSON, atomically, and returns the text; NaN and infinity become null."""
    text = to_json(value) + "\n"
    write_atomically(path, text.encode())
    return text


def environment() -> dict[str, Any]:
    """Versions and device: what another machine needs to know to compare a result."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import jax

    def found(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    device = jax.devices()[0]
    packages = ("vanishjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: found(name) for name in packages},
        "device": {"platform": device.platform, "kind": device.device_kind},
    }


def _next_folder(top: Path, command: str) -> Path:
    top.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = top / f"{command}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
