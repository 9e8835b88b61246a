"""Arrays and JSON in a checkpoint's folder, by orbax: written whole or not at all, read quietly."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

# What orbax calls an unfinished checkpoint, and what this module calls one that is being deleted.
_UNFINISHED, _DELETED = ".orbax-checkpoint-tmp", ".deleted"
_METRICS = "metrics"
# Errors that say something about the machine, not about what lies on its disk.
_MACHINE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Damaged(Exception):  # noqa: N818
    """What a checkpoint's folder holds isn't what was saved; the message is a short reason."""


def write(
    place: Path,
    arrays: Mapping[str, Mapping[str, Any]],
    records: Mapping[str, Any],
) -> None:
    """Writes a checkpoint's folder, which appears whole or not at all.

    Args:
      place: The folder, which must not exist.
      arrays: Arrays by name, by the name of their part.
      records: JSON values, by the name of their part.

    Raises:
      OSError: The disk is full or can't be written; the message says so and names the folder.
    """
    import orbax.checkpoint as ocp

    clean_up(place.parent)
    # A part without arrays is nothing that orbax writes.
    parts: dict[str, Any] = {name: ocp.args.PyTreeSave(dict(a)) for name, a in arrays.items() if a}
    handlers: dict[str, Any] = {name: ocp.PyTreeCheckpointHandler() for name in parts}
    parts |= {name: ocp.args.JsonSave(record) for name, record in records.items()}
    handlers |= {name: _json_handler(name) for name in records}
    try:
        with (
            _quiet(),
            ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer,
        ):
            checkpointer.save(place, args=ocp.args.Composite(**parts))
    except BaseException as error:
        with contextlib.suppress(OSError):
            clean_up(place.parent)
        reason = _system_error(error) if isinstance(error, Exception) else None
        if reason is None:
            raise
        said = f"{os.strerror(reason)}, so this checkpoint was not saved"
        raise OSError(reason, said, str(place)) from None


def clean_up(folder: Path) -> None:
    """Deletes what interrupted saves and deletions left in a folder of checkpoints."""
    if jax.process_index():
        return
    for path in folder.iterdir():
        if _UNFINISHED in path.name or path.name.endswith(_DELETED):
            shutil.rmtree(path, ignore_errors=True)


def delete(place: Path) -> None:
    """Deletes a checkpoint; an interrupted deletion leaves none that looks whole."""
    if jax.process_index():
        return
    doomed = place.with_name(place.name + _DELETED)
    place.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def read_record(place: Path, part: str) -> Any:
    """A JSON value.

    Raises:
      Damaged: It isn't there or is no JSON.
      OSError: The file can't be read for another reason than what it holds.
    """
    with _reading(place / part):
        return _json_handler(part).restore(place / part)


def read_arrays(place: Path, part: str, targets: Any) -> Any:
    """Arrays that were saved by name, or a tree of them from before they had names of their own.

    Args:
      place: The checkpoint's folder.
      part: The part they belong to.
      targets: A tree with a `jax.ShapeDtypeStruct` for every array to read; one without a sharding
        is read as a NumPy array. Nothing is allocated before shapes are compared.

    Returns:
      A tree of arrays like `targets`.

    Raises:
      Damaged: They can't be read, or have other shapes.
      OSError: The files can't be read for another reason than what they hold.
    """
    import orbax.checkpoint as ocp

    if not jax.tree.leaves(targets):
        return targets
    folder, handler = place / part, ocp.PyTreeCheckpointHandler()
    # Orbax itself compares the shapes of arrays for devices, but not those of NumPy arrays.
    on_host = {
        jax.tree_util.keystr(path, simple=True, separator="/"): target.shape
        for path, target in jax.tree_util.tree_leaves_with_path(targets)
        if target.sharding is None
    }
    with _reading(place / part):
        if on_host:
            stored = {
                jax.tree_util.keystr(path, simple=True, separator="/"): tuple(array.shape)
                for path, array in jax.tree_util.tree_leaves_with_path(
                    handler.metadata(folder).tree
                )
            }
            for name, shape in on_host.items():
                if stored[name] != shape:
                    raise Damaged(f"{part} has an array of another shape")
        restore = ocp.args.PyTreeRestore(
            jax.tree.map(_stand_in, targets),
            restore_args=jax.tree.map(_restore_arguments, targets),
            partial_restore=True,
        )
        return handler.restore(folder, args=restore)


def read_all(place: Path, part: str) -> Any:
    """Arrays as they were saved, where no manifest tells what they are.

    Raises:
      Damaged: They can't be read.
      OSError: The files can't be read for another reason than what they hold.
    """
    import orbax.checkpoint as ocp

    with _reading(place / part):
        return ocp.PyTreeCheckpointHandler().restore(place / part)


def _stand_in(target: jax.ShapeDtypeStruct) -> Any:
    """What orbax takes for an array to read, without the memory of one."""
    if target.sharding is not None:
        return target
    return np.broadcast_to(np.zeros((), target.dtype), target.shape)


def _restore_arguments(target: jax.ShapeDtypeStruct) -> Any:
    import orbax.checkpoint as ocp

    if target.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        sharding=target.sharding,
        global_shape=target.shape,
        dtype=target.dtype,
    )


def _json_handler(part: str) -> Any:
    import orbax.checkpoint as ocp

    return ocp.JsonCheckpointHandler(_METRICS if part == _METRICS else None)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns every way in which damaged files fail into `Damaged`."""
    try:
        with _quiet():
            yield
    except (Damaged, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = _system_error(error)
        if reason in _MACHINE:
            raise OSError(reason, os.strerror(reason), str(path)) from None
        raise Damaged(f"{path.name} can't be read") from None


def _system_error(error: BaseException) -> int | None:
    """The errno at the bottom of an error, which tensorstore only tells in its message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        told = re.search(r"os_error_code='(\d+)'|OS error (\d+)", str(cause))
        if told and isinstance(cause, ValueError):
            return int(told[1] or told[2])
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what orbax logs beside what it raises."""

    def drop(record: logging.LogRecord) -> bool:
        del record
        return False

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    except BaseException:
        # Tasks that nobody awaited complain when they are collected.
        gc.collect()
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(drop)
