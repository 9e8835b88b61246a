"""Arrays and JSON in a checkpoint's folder, by orbax: written whole or not at all, read quietly."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

# What orbax calls an unfinished checkpoint, and what this module calls one that is being deleted.
_UNFINISHED, _DELETED = ".orbax-checkpoint-tmp", ".deleted"
_CLEAN = 5  # looks in a row, a twentieth of a second apart, that must find nothing unfinished
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
    handlers: dict[str, Any] = {name: _array_handler() for name in parts}
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
            # Threads of orbax may still be writing there, or be about to begin.
            clean = 0
            for _ in range(40):
                clean = clean + 1 if clean_up(place.parent) else 0
                if clean == _CLEAN:
                    break
                time.sleep(0.05)
        reason = _system_error(error) if isinstance(error, Exception) else None
        if reason is None:
            raise
        said = f"{os.strerror(reason)}, so this checkpoint was not saved"
        raise OSError(reason, said, str(place)) from None


def clean_up(folder: Path) -> bool:
    """Deletes what interrupted saves and deletions left in a folder; whether nothing was there."""
    if jax.process_index():
        return True
    left = [
        path for path in folder.iterdir() if _UNFINISHED in path.name or path.suffix == _DELETED
    ]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return not left


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


def array_names(place: Path, part: str) -> list[str]:
    """The names of the arrays that a part holds.

    Raises:
      Damaged: They can't be read.
      OSError: The file can't be read for another reason than what it holds.
    """
    with _reading(place / part):
        metadata = json.loads((place / part / "_METADATA").read_text())
        # The old format has entries for what is no array as well.
        return [
            ".".join(key["key"] for key in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
            if not entry["value_metadata"]["skip_deserialize"]
        ]


def read_arrays(
    place: Path, part: str, targets: Mapping[str, jax.ShapeDtypeStruct | None]
) -> dict[str, Any]:
    """Arrays by name.

    Args:
      place: The checkpoint's folder.
      part: The part they belong to.
      targets: What each is, for devices if it has a sharding, else for NumPy. None takes a NumPy
        array as it is; else nothing is allocated before shapes and types are compared.

    Raises:
      Damaged: They can't be read, or have other shapes or types.
      OSError: The files can't be read for another reason than what they hold.
    """
    import tensorstore as ts

    # Not by orbax: where it fails, its other reads go on, and complain when they end.
    context = ts.Context()
    with _reading(place / part):
        known = {*array_names(place, part)} if targets else set()
        if not known >= targets.keys():
            raise Damaged(f"{part} lacks an array")
        base = {"driver": "file", "path": f"{place / part}/"}
        opened = [
            ts.open(
                {
                    "driver": "zarr",
                    "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
                    "fill_missing_data_reads": False,
                },
                context=context,
                open=True,
                read=True,
            )
            for name in targets
        ]
        stores = dict(zip(targets, _results(opened), strict=True))
        for name, target in targets.items():
            found = tuple(stores[name].shape), stores[name].dtype.numpy_dtype
            if target is not None and found != (target.shape, target.dtype):
                raise Damaged(f"{part} holds an array of another shape or type")
        regions = [
            (name, region)
            for name, target in targets.items()
            for region in _regions_to_read(target, stores[name].rank)
        ]
        reads = _results([stores[name][_slices(region)].read() for name, region in regions])
        parts = dict(zip(regions, reads, strict=True))
    return {name: _assemble(name, target, parts) for name, target in targets.items()}


def _results(futures: Sequence[Any]) -> list[Any]:
    """What futures give, once all of them are done: one that goes on would outlive its files."""
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]


# Start and stop along every axis.
_Region = tuple[tuple[int | None, int | None], ...]


def _regions_to_read(target: jax.ShapeDtypeStruct | None, rank: int) -> list[_Region]:
    if target is None or target.sharding is None:
        return [((None, None),) * rank]
    places: Any = target.sharding.addressable_devices_indices_map(target.shape).values()
    return list({_bounds(place): None for place in places})


def _bounds(place: Any) -> _Region:
    return tuple((part.start, part.stop) for part in place)


def _slices(region: _Region) -> tuple[slice, ...]:
    return tuple(slice(*bounds) for bounds in region)


def _assemble(
    name: str, target: jax.ShapeDtypeStruct | None, parts: Mapping[tuple[str, _Region], Any]
) -> Any:
    if target is None or target.sharding is None:
        (array,) = (part for (whose, _), part in parts.items() if whose == name)
        return array
    return jax.make_array_from_callback(
        target.shape, target.sharding, lambda place: parts[name, _bounds(place)]
    )


def _array_handler() -> Any:
    import orbax.checkpoint as ocp

    # The format that `read_arrays` reads, whatever orbax's own choice will be.
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)


def _json_handler(part: str) -> Any:
    import orbax.checkpoint as ocp

    return ocp.JsonCheckpointHandler(_METRICS if part == _METRICS else None)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns every way in which damaged files fail into `Damaged`."""
    try:
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
    except BaseException as error:
        # Coroutines and tasks that nobody awaited complain when they are collected.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            traceback.clear_frames(error.__traceback__)
            gc.collect()
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(drop)
