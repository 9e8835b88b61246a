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
    return Manifest.from_json(storage.read_record(place, _CONTENT), step)


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
        found = storage.read_all(place, _ARRAYS) if (place / _ARRAYS).exists() else {}
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


def read_state(
    place: Path, manifest: Manifest, like: Any, wanted: Sequence[Leaf], only: Sequence[str]
) -> list[Any]:
    """What a checkpoint holds of leaves of `like`."""
    if manifest.format == OLD_FORMAT:
        arrays = _read_old_state(place, like, wanted, only)
    else:
        names = {entry.name: str(number) for number, entry in enumerate(manifest.state)}
        stored = {names[leaf.name]: manifest.state[int(names[leaf.name])] for leaf in wanted}
        targets = {names[leaf.name]: _target(leaf.value) for leaf in wanted}
        arrays = list(_read_arrays(place, _STATE, stored, targets).values())
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


def _read_old_state(
    place: Path, like: Any, wanted: Sequence[Leaf], only: Sequence[str]
) -> list[Any]:
    """The same from the old format, where arrays lie under their paths."""
    if not only:
        return jax.tree.leaves(storage.read_arrays(place, _STATE, jax.tree.map(_target, like)))
    fields = {
        jax.tree_util.keystr(keys, simple=True): jax.tree.map(_target, field)
        for keys, field in jax.tree_util.tree_leaves_with_path(
            like, is_leaf=lambda node: node is not like
        )
    }
    tree = storage.read_arrays(place, _STATE, {name: fields[name] for name in only})
    arrays = {name: iter(jax.tree.leaves(tree[name])) for name in only}
    return [next(arrays[leaf.top]) for leaf in wanted]


def _target(value: Any) -> jax.ShapeDtypeStruct:
    """How to read an array: for devices as `value` lies there, or as a NumPy array."""
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        sharding = value.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype)


def _empty(target: jax.ShapeDtypeStruct) -> Any:
    """An array without elements, which storage doesn't take."""
    if target.sharding is None:
        return np.zeros(target.shape, target.dtype)
    if not jnp.issubdtype(target.dtype, jax.dtypes.prng_key):
        return jnp.zeros(target.shape, target.dtype, device=target.sharding)
    return jax.jit(lambda: jnp.empty(target.shape, target.dtype))()


def _as_like(value: Any, array: Any) -> Any:
    if isinstance(value, np.generic):
        return array[()]
    if isinstance(value, bool | int | float | complex):
        return type(value)(array.item())
    return array


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
            storage.read_all(place, _STATE)
        else:
            _read_on_host(place, _STATE, manifest.state)
    except (Damaged, OSError, MemoryError):
        return False
    return True
