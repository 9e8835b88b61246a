"""Files that are either wholly written or not at all, and folders that one process writes."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file beside its place and moves it there; a failure leaves an older file alone.

    Args:
      path: The file; its folder must exist.
      content: All of it.

    Raises:
      OSError: The folder doesn't exist or can't be written, or the disk is full.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "a.txt")
      ...     write_atomically(path, b"whole")
      ...     print(path.read_text(), os.listdir(folder))
      whole ['a.txt']
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file beside a place, which is moved there at the end, unless something is raised.

    Args:
      path: The place; its folder must exist.

    Yields:
      The new file, empty and of a name that no other process has: a process number may come twice.

    Raises:
      OSError: As `write_atomically`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with replacing(Path(folder, "a.txt")) as temporary:
      ...         _ = temporary.write_text("whole")
      ...     print(os.listdir(folder))
      ['a.txt']
    """
    path = Path(path)
    try:
        temporary = _made_beside(path)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        # The user knows the file by its own name, and a full disk names none.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _made_beside(path: Path) -> Path:
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        # Not mkstemp: its files are for one user's eyes, whatever the umask says.
        with contextlib.suppress(FileExistsError):
            temporary.touch(exist_ok=False)
            return temporary


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[bool]:
    """Keeps a folder for this process; the kernel lets go of it when the process ends.

    The folder itself is locked. A network drive that only locks files gets a file `.lock` for it,
    which stays.

    Args:
      folder: It must exist.

    Yields:
      Whether it is locked: Windows and some network drives know no such locks.

    Raises:
      BlockingIOError: Another process has it, or this one has it already.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder, locked(folder):
      ...     with locked(folder):
      ...         pass
      Traceback (most recent call last):
      ...
      BlockingIOError: [Errno 11] another run is writing there: '...'
    """
    with contextlib.ExitStack() as stack:
        yield _lock(Path(folder), stack)


def _lock(folder: Path, stack: contextlib.ExitStack) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    for path, flags in ((folder, os.O_RDONLY), (folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)):
        descriptor = os.open(path, flags, 0o666)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(
                error.errno, "another run is writing there", str(folder)
            ) from error
        except OSError:
            continue
    return False
