"""What a checkpoint's folder holds, compared with its manifest; all that isn't so is `Damaged`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.training import storage
from vanishjax.training.manifest import (
    OLD_FORMAT,
    Entry,
    Leaf,
    Manifest,
    agree,
    check,
    describe,
    describe_all,
    difference,
    is_key,
    named_leaves,
)
from vanishjax.training.records import json_checksum, plain_json
from vanishjax.training.storage import Damaged

# Parts of a checkpoint: arrays of the state and of the notes; the manifest and other JSON.
_STATE, _ARRAYS, _CONTENT, _RECORD, _METRICS = "state", "arrays", "content", "record", "metrics"
_LOSS = "loss"


def write(
    place: Path,
    step: int,
    state: Any,
    loss: float,
    record: Mapping[str, Any] | None,
    arrays: Mapping[str, Any],
) -> None:
    """Writes all of a checkpoint; `record` is None if it has no notes.

    Raises:
      ValueError: Something can't be saved; the message names it.
      OSError: The disk is full or can't be written.
    """
    leaves = named_leaves(state)
    # Only trees have paths: notes are called what they are called.
    named = {name: np.asarray(array) for name, array in arrays.items()}
    notes = [leaf._replace(name=leaf.top) for leaf in named_leaves(named)]
    records: dict[str, Any] = {_METRICS: {_LOSS: loss}}
    if record is not None:
        records[_RECORD] = plain_json(record, _RECORD)
    checksums = {name: json_checksum(value) for name, value in records.items()}
    manifest = Manifest(describe_all(leaves), describe_all(notes), checksums)
    storage.write(
        place,
        {_STATE: _stored(leaves), _ARRAYS: _stored(notes)},
        {_CONTENT: manifest.to_json(step), **records},
    )


def read_manifest(place: Path, step: int) -> Manifest:
    """What the checkpoint says that it holds."""
    manifest = Manifest.from_json(storage.read_record(place, _CONTENT), step)
    if manifest.format == OLD_FORMAT:
        told = {_old_storage_name(entry.name) for entry in manifest.state}
        if told != {*storage.array_names(place, _STATE)}:
            raise Damaged("content does not tell what state holds")
    return manifest


def _old_storage_name(name: str) -> str:
    return name.replace("/", ".")


def _read_record(place: Path, manifest: Manifest, part: str) -> dict[str, Any]:
    record = storage.read_record(place, part)
    if manifest.format != OLD_FORMAT and json_checksum(record) != manifest.records.get(part):
        raise Damaged(f"{part} does not match its checksum")
    if not isinstance(record, dict):
        raise Damaged(f"{part} holds no names")
    return record


def read_loss(place: Path, step: int) -> float:
    """The loss that it was saved with; infinite if there was none."""
    manifest = read_manifest(place, step)
    if manifest.format == OLD_FORMAT and not (place / _METRICS).exists():
        return math.inf
    loss = _read_record(place, manifest, _METRICS).get(_LOSS)
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        raise Damaged(f"{_METRICS} holds no loss")
    return float(loss)


def read_notes(place: Path, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the arrays that were saved as notes."""
    if manifest.format == OLD_FORMAT:
        record = _read_record(place, manifest, _RECORD) if (place / _RECORD).exists() else {}
        found = _read_as_saved(place, _ARRAYS) if (place / _ARRAYS).exists() else {}
        return record, found
    record = _read_record(place, manifest, _RECORD) if _RECORD in manifest.records else {}
    names = [entry.name for entry in manifest.notes]
    arrays = _read_on_host(place, _ARRAYS, manifest.notes)
    return record, dict(zip(names, arrays, strict=True))


def _read_on_host(place: Path, part: str, entries: Sequence[Entry]) -> list[Any]:
    """All arrays of a part as NumPy arrays, compared with their checksums."""
    stored = {str(number): entry for number, entry in enumerate(entries)}
    targets = {name: entry.in_storage for name, entry in stored.items()}
    return list(_read_arrays(place, part, stored, targets).values())


def _read_as_saved(place: Path, part: str) -> dict[str, Any]:
    """All arrays of a part of the old format, where no manifest tells what they are."""
    return storage.read_arrays(place, part, dict.fromkeys(storage.array_names(place, part)))


def read_state(place: Path, manifest: Manifest, wanted: Sequence[Leaf]) -> list[Any]:
    """What a checkpoint holds of leaves of a state: arrays like theirs."""
    if manifest.format == OLD_FORMAT:
        names = {leaf.old_name: _old_storage_name(leaf.old_name) for leaf in wanted}
        stored = {names[entry.name]: entry for entry in entries_of(wanted, manifest)}
    else:
        numbers = {entry.name: number for number, entry in enumerate(manifest.state)}
        stored = {str(numbers[leaf.name]): manifest.state[numbers[leaf.name]] for leaf in wanted}
    targets = dict(zip(stored, (_target(leaf.value) for leaf in wanted), strict=True))
    arrays = _read_arrays(place, _STATE, stored, targets).values()
    return [_as_like(leaf.value, array) for leaf, array in zip(wanted, arrays, strict=True)]


def _read_arrays(
    place: Path, part: str, stored: Mapping[str, Entry], targets: Mapping[str, Any]
) -> dict[str, Any]:
    """Arrays by their names in storage, compared with their checksums."""
    full = {name: target for name, target in targets.items() if not stored[name].empty}
    read: dict[str, Any] = {}
    damage = None
    try:
        read = storage.read_arrays(place, part, full)
    except Damaged as error:
        damage = str(error)
    agree(damage)
    check([stored[name] for name in full], [read[name] for name in full])
    return {name: read[name] if name in full else _empty(targets[name]) for name in targets}


def _target(value: Any) -> jax.ShapeDtypeStruct:
    """How to read an array: for devices as `value` lies there, or as a NumPy array."""
    if not isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype)
    sharding = value.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if is_key(value):
        # Storage holds the numbers of a key. Their additional axis lies whole on each device.
        value = jax.eval_shape(jax.random.key_data, value)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)


def _as_like(value: Any, array: Any) -> Any:
    if isinstance(value, np.generic):
        return array[()]
    if isinstance(value, bool | int | float | complex):
        return type(value)(array.item())
    return (
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(value)) if is_key(value) else array
    )


def _empty(target: jax.ShapeDtypeStruct) -> Any:
    """An array without elements, which storage doesn't take."""
    if target.sharding is None:
        return np.zeros(target.shape, target.dtype)
    return jnp.zeros(target.shape, target.dtype, device=target.sharding)


def _stored(leaves: Sequence[Leaf]) -> dict[str, Any]:
    """Arrays by their names in storage."""
    return {
        str(number): leaf.value if isinstance(leaf.value, jax.Array) else np.asarray(leaf.value)
        for number, leaf in enumerate(leaves)
        if 0 not in np.shape(leaf.value)
    }


def entries_of(leaves: Sequence[Leaf], manifest: Manifest) -> list[Entry]:
    """What a checkpoint should say of leaves."""
    old = manifest.format == OLD_FORMAT
    return [describe(leaf._replace(name=leaf.old_name) if old else leaf) for leaf in leaves]


def is_whole(folder: Path, step: int, wanted: Sequence[Leaf] | None, only: Sequence[str]) -> bool:
    """Whether all of a checkpoint can be read and, where its state is known, is of that state."""
    place = folder / str(step)
    try:
        manifest = read_manifest(place, step)
        if wanted is not None and difference(manifest.state, entries_of(wanted, manifest), only):
            return False
        read_notes(place, manifest)
        read_loss(place, step)
        if manifest.format == OLD_FORMAT:
            _read_as_saved(place, _STATE)
        else:
            _read_on_host(place, _STATE, manifest.state)
    except (Damaged, OSError, MemoryError):
        return False
    return True
