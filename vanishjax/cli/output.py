"""Where a command's results go: a folder that is checked before the work and written after it."""

import contextlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vanishjax.cli.options import warn
from vanishjax.files import locked, write_atomically
from vanishjax.training.data.errors import DataError


@contextlib.contextmanager
def results_folder(
    command: str, out: str | None, files: Sequence[str], overwrite: bool
) -> Iterator[Path]:
    """The folder for a command's results, which no other run can open at the same time.

    One that is made here and stays empty is taken away again.

    Args:
      command: Its name: without `out`, the folder is the first free `runs/<command>-NNN`.
      out: The folder the user asked for.
      files: Names of the files that the command will write.
      overwrite: Whether files of those names may be replaced.

    Yields:
      The folder, which exists and can be written.

    Raises:
      DataError: The folder already holds results, another run is writing there, or it can't be
        made or written.
    """
    with contextlib.ExitStack() as stack:
        yield _open_folder(command, out, files, overwrite, stack)


def _open_folder(
    command: str,
    out: str | None,
    files: Sequence[str],
    overwrite: bool,
    stack: contextlib.ExitStack,
) -> Path:
    name = "runs" if out is None else f"--out {out}"
    elsewhere = "name another folder with --out"
    try:
        folder, made = _next_folder(Path("runs"), command) if out is None else _made(Path(out))
        if made:
            stack.callback(_take_away, folder)
        if not stack.enter_context(locked(folder)):
            warn(f"{name}: can't be locked; see to it that no other run writes there")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except BlockingIOError as error:
        raise DataError(f"{name}: another run is writing there; {elsewhere}") from error
    except FileExistsError as error:
        raise DataError(f"{name}: is a file; {elsewhere}") from error
    except OSError as error:
        raise DataError(f"{name}: can't write there ({error.strerror}); {elsewhere}") from error
    present = [file for file in files if (folder / file).exists()]
    if present and not overwrite:
        raise DataError(
            f"{name}: already holds {', '.join(present)}; name another folder, or pass "
            "--overwrite to replace them"
        )
    return folder


def write_each(*steps: Callable[[], object]) -> None:
    """Runs every step, whatever becomes of the others; the first error is raised at the end.

    Example:
      >>> try:
      ...     write_each(lambda: 1 / 0, lambda: print("written"))
      ... except ZeroDivisionError as error:
      ...     print(error)
      written
      division by zero
    """
    errors = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


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


def _next_folder(top: Path, command: str) -> tuple[Path, bool]:
    top.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder, made = _made(top / f"{command}-{number:03d}", parents=False)
        if made:
            break
    return folder, made


def _made(folder: Path, parents: bool = True) -> tuple[Path, bool]:
    """A folder, and whether it is new."""
    try:
        folder.mkdir(parents=parents)
    except FileExistsError:
        if not folder.is_dir() and parents:
            raise
        return folder, False
    return folder, True


def _take_away(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
