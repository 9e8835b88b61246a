"""Files that are either wholly written or not at all."""

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file beside its place and moves it there; a failure leaves an older file alone.

    Args:
      path: The file; its folder must exist.
      content: All of it.

    Raises:
      OSError: The folder doesn't exist or can't be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "a.txt")
      ...     write_atomically(path, b"whole")
      ...     print(path.read_text(), os.listdir(folder))
      whole ['a.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
