"""Downloads of the classic data sets, verified by SHA-256 and kept in a cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vanishjax.foreign import shown
from vanishjax.training.data.errors import DataError
from vanishjax.training.data.idx import FILES

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of it that are there, and those it will have."""

_CHUNK = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """What a file is once decompressed; mirrors compress it differently.

    Args:
      name: Name in the cache; a mirror has it with `.gz` behind.
      size: Bytes, decompressed.
      sha256: Hexadecimal SHA-256 of those bytes.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Remote:
    """A data set on the network.

    Args:
      mirrors: Addresses of folders that hold the files, tried in order.
      files: The files.
    """

    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


def _idx_files(*digests: str) -> tuple[RemoteFile, ...]:
    sizes = (47040016, 60008, 7840016, 10008)
    return tuple(RemoteFile(*file) for file in zip(FILES, sizes, digests, strict=True))


REMOTES = {
    "mnist": Remote(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
        _idx_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": Remote(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            # This mirror has no https; the digests make that safe.
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        _idx_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}
"""The data sets that `fetch` knows."""


def fetch(
    name: str,
    cache_dir: str | Path | None = None,
    *,
    mirrors: Sequence[str] | None = None,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> Path:
    """Downloads a data set unless the cache has it, its SHA-256 being right every time it is used.

    Each file is decompressed and hashed as it arrives, into a temporary file that takes its name
    only once its SHA-256 is right; a mirror that fails in any way is followed by the next.

    Args:
      name: `"mnist"` or `"fashion_mnist"`.
      cache_dir: Cache; if None `$VANISHJAX_CACHE`, else `$XDG_CACHE_HOME/vanishjax`, else
        `~/.cache/vanishjax`.
      mirrors: Addresses to use in place of the data set's own.
      timeout: Seconds that a mirror may stay silent.
      progress: Called as each file arrives.

    Returns:
      The folder with the four IDX files.

    Raises:
      DataError: If the name is unknown, the cache cannot be written, or no mirror has the file.

    Example:
      >>> fetch("cifar")
      Traceback (most recent call last):
      ...
      vanishjax.training.data.errors.DataError: cannot download 'cifar'; only mnist, fashion_mnist
    """
    remote = REMOTES.get(name)
    if remote is None:
        raise DataError(f"cannot download {name!r}; only {', '.join(REMOTES)}")
    folder = cache_folder(cache_dir) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot make the cache ({error.strerror}); set VANISHJAX_CACHE to a folder"
            " that can be written"
        ) from error
    for file in remote.files:
        if not _is_whole(folder / file.name, file):
            _fetch_file(name, file, folder, mirrors or remote.mirrors, timeout, progress)
    return folder


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Returns the folder that downloads are kept in.

    Args:
      cache_dir: The folder itself, or None to take it from the environment.

    Returns:
      The folder; it may not exist yet.

    Example:
      >>> cache_folder("here").name
      'here'
    """
    if cache_dir is not None:
        return Path(cache_dir)
    if own := os.environ.get("VANISHJAX_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "vanishjax"


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file of the cache is there and has the bytes that it should have."""
    try:
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); delete it, or set VANISHJAX_CACHE to"
            " another folder"
        ) from error


def _fetch_file(
    name: str,
    file: RemoteFile,
    folder: Path,
    mirrors: Sequence[str],
    timeout: float,
    progress: Progress | None,
) -> None:
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}.gz"
        try:
            _download(url, file, folder, timeout, progress)
        except (OSError, http.client.HTTPException, zlib.error, DataError) as error:
            failures.append(f"{url} ({shown(error, 200) or type(error).__name__})")
        else:
            return
    path = folder / file.name
    spoilt = f"{path} is not the file it should be, and " if path.exists() else ""
    raise DataError(
        f"{spoilt}cannot download {name}: tried {'; '.join(failures)}. Without a network, put"
        f" {', '.join(FILES)} (plain or .gz) into a folder and give it as data_dir (--data-dir),"
        " or use the built-in digits"
    )


def _download(
    url: str, file: RemoteFile, folder: Path, timeout: float, progress: Progress | None
) -> None:
    if not url.startswith(("https://", "http://")):  # urllib would open file:// as well
        raise DataError("not an http address")
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{file.name}.") as temporary:
        part = Path(temporary, file.name)
        with (
            urllib.request.urlopen(url, timeout=timeout) as response,  # noqa: S310
            part.open("wb") as output,
        ):
            _inflate(response, output, file, progress)
        os.replace(part, folder / file.name)


def _inflate(
    response: IO[bytes], output: IO[bytes], file: RemoteFile, progress: Progress | None
) -> None:
    inflater, digest = zlib.decompressobj(wbits=31), hashlib.sha256()
    received = done = 0
    while not inflater.eof and (chunk := response.read(_CHUNK)):
        received += len(chunk)
        data = inflater.decompress(chunk, file.size - done + 1)
        done += len(data)
        if done > file.size or received > file.size + _CHUNK:
            raise DataError(f"more than the {file.size} bytes it should have")
        digest.update(data)
        output.write(data)
        if progress is not None:
            progress(file.name, done, file.size)
    if not inflater.eof or done != file.size:
        raise DataError(f"truncated: {done} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        raise DataError(f"corrupted: SHA-256 {digest.hexdigest()} instead of {file.sha256}")
