"""What a checkpoint says that it holds: name, shape, type and checksums of every array."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vanishjax.training.records import json_checksum
from vanishjax.training.storage import Damaged

FORMAT, OLD_FORMAT = 2, 1
# Start and stop along every axis; () for a whole array, however it is divided among devices.
Region = tuple[tuple[int, int], ...]


class Entry(NamedTuple):
    """An array, as a checkpoint describes it.

    Attributes:
      name: Its path in the tree, as in `Leaf`.
      shape: Its shape.
      dtype: The name of its type.
      checksums: Of its regions; none for an empty array, and in the old format.
      key_shape: The shape of a random key's numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    checksums: tuple[tuple[Region, int], ...] = ()
    key_shape: tuple[int, ...] = ()

    @property
    def in_storage(self) -> jax.ShapeDtypeStruct:
        """The shape and type of what storage holds of it."""
        if self.key_shape:
            return jax.ShapeDtypeStruct(self.key_shape, np.uint32)
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    @property
    def empty(self) -> bool:
        """Whether it has no elements: there is nothing to store then."""
        return 0 in self.shape


class Manifest(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: The state's arrays; an array's place here is its name in storage.
      notes: The notes' arrays, likewise.
      records: Checksums of the JSON parts that there are, by name.
      format: `OLD_FORMAT` for checkpoints from before there were checksums.
    """

    state: tuple[Entry, ...]
    notes: tuple[Entry, ...] = ()
    records: Mapping[str, int] = {}
    format: int = FORMAT

    def to_json(self, step: int) -> dict[str, Any]:
        """With the checkpoint's step and a checksum of its own."""
        body = {
            "format": FORMAT,
            "step": step,
            "state": [list(entry) for entry in self.state],
            "notes": [list(entry) for entry in self.notes],
            "records": dict(self.records),
        }
        return {**body, "checksum": json_checksum(body)}

    @classmethod
    def from_json(cls, saved: Any, step: int) -> Manifest:
        """What `to_json` gave for a step, or what the old format has in its place.

        Raises:
          Damaged: It's something else.
        """
        try:
            if isinstance(saved, list):
                return cls(tuple(_entry(*entry) for entry in saved), format=OLD_FORMAT)
            body = {name: saved[name] for name in saved if name != "checksum"}
            if saved["checksum"] != json_checksum(body):
                raise Damaged("content does not match its checksum")
            if body["format"] != FORMAT:
                raise Damaged(f"this version can't read format {body['format']}")
            if body["step"] != step:
                raise Damaged(f"content is that of step {body['step']}")
            state, notes = (
                tuple(_entry(*entry) for entry in body[part]) for part in ("state", "notes")
            )
            return cls(state, notes, {str(name): int(n) for name, n in body["records"].items()})
        except (TypeError, ValueError, KeyError, AttributeError):
            raise Damaged("content is not that of a checkpoint") from None


def _entry(name: str, shape: Any, dtype: str, checksums: Any = (), key_shape: Any = ()) -> Entry:
    if not (isinstance(name, str) and isinstance(dtype, str)):
        raise TypeError
    regions = tuple(
        (tuple((int(start), int(stop)) for start, stop in region), int(checksum))
        for region, checksum in checksums
    )
    entry = Entry(name, _lengths(shape), dtype, regions, _lengths(key_shape))
    # A type that NumPy doesn't know is a TypeError.
    if not (dtype.startswith("key<") or _is_saved(entry.in_storage)):
        raise TypeError
    return entry


def _lengths(shape: Any) -> tuple[int, ...]:
    lengths = tuple(int(length) for length in shape)
    if min(lengths, default=0) < 0:
        raise ValueError
    return lengths


class Leaf(NamedTuple):
    """An array of a tree with its names.

    Attributes:
      name: The parts of its path joined by "/"; parts that hold a "/" themselves are quoted, so
        that no two paths have one name.
      old_name: The same without quotes, as the old format has it.
      top: The first part.
      value: The array or number.
    """

    name: str
    old_name: str
    top: str
    value: Any


def named_leaves(tree: Any) -> list[Leaf]:
    """The arrays of a tree with their names.

    Raises:
      ValueError: Two have one name, or one is no array and no number.

    Example:
      >>> [leaf.name for leaf in named_leaves({"a": {"b": 1.0}, "a/b": 2.0})]
      ['a/b', "'a/b'"]
    """
    leaves: dict[str, Leaf] = {}
    paths: dict[str, str] = {}
    for keys, value in jax.tree_util.tree_leaves_with_path(tree):
        parts = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        name, path = "/".join(map(_quoted, parts)), jax.tree_util.keystr(keys)
        if name in leaves:
            raise ValueError(
                f"{paths[name]} and {path} have the same name in a checkpoint, {name}: rename one"
            )
        if not _is_saved(value):
            kind = getattr(value, "dtype", type(value).__name__)
            raise ValueError(f"{name} is of type {kind}: a checkpoint holds arrays and numbers")
        leaves[name] = Leaf(name, "/".join(parts), parts[0] if parts else "", value)
        paths[name] = path
    return list(leaves.values())


def _quoted(part: str) -> str:
    plain = part.isprintable() and "/" not in part and not part.startswith(("'", '"'))
    return part if plain else repr(part)


def _is_saved(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return isinstance(value, bool | int | float | complex)
    return any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_, jax.dtypes.prng_key))


def describe(leaf: Leaf) -> Entry:
    """An array's entry, without checksums."""
    value = leaf.value
    dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(value)
    key_shape = jax.eval_shape(jax.random.key_data, value).shape if is_key(value) else ()
    return Entry(leaf.name, tuple(jnp.shape(value)), dtype.name, (), key_shape)


def describe_all(leaves: Sequence[Leaf]) -> tuple[Entry, ...]:
    """The entries of arrays with checksums; in several processes, all of them must call this."""
    arrays = [leaf.value for leaf in leaves]
    regions = [_regions(x) for x in arrays]
    known = np.array([checksum or 0 for checksum in _checksums(arrays, regions)], np.uint32)
    if any(map(_is_spread, arrays)):
        # Of a region that only other processes have, this one knows nothing.
        known = multihost_utils.process_allgather(known).max(0)
    checksums = iter(known.tolist())
    return tuple(
        describe(leaf)._replace(checksums=tuple((region, next(checksums)) for region in own))
        for leaf, own in zip(leaves, regions, strict=True)
    )


def difference(saved: Sequence[Entry], wanted: Sequence[Entry], only: Collection[str] = ()) -> str:
    """The first difference of two sets of arrays, in words; "" if there is none."""
    known = {entry.name: entry for entry in saved}
    for entry in wanted:
        old = known.pop(entry.name, None)
        if old is None:
            return f"{entry.name} is missing in the checkpoint"
        for what, was, now in (
            ("shape", list(old.shape), list(entry.shape)),
            ("type", old.dtype, entry.dtype),
        ):
            if was != now:
                return (
                    f"{entry.name} has {what} {was} in the checkpoint, {now} in the state to "
                    "restore into"
                )
    return f"{next(iter(known))} is only in the checkpoint" if known and not only else ""


def check(entries: Sequence[Entry], arrays: Sequence[Any]) -> None:
    """Compares arrays with their checksums; in several processes, all of them must call this.

    Raises:
      Damaged: One is another; the message names it.
    """
    regions = [[region for region, _ in entry.checksums] for entry in entries]
    arrays = [
        multihost_utils.process_allgather(x, tiled=True)
        if _is_spread(x) and {*own} != {*_regions(x)}
        else x
        for x, own in zip(arrays, regions, strict=True)
    ]
    expected = [(entry.name, checksum) for entry in entries for _, checksum in entry.checksums]
    wrong = [
        name
        for (name, checksum), found in zip(expected, _checksums(arrays, regions), strict=True)
        if found not in (None, checksum)
    ]
    agree(f"{wrong[0]} does not match its checksum" if wrong else None)


def agree(damage: str | None) -> None:
    """Raises `Damaged` in every process if one of them found damage: else the others would wait."""
    if jax.process_count() > 1:
        anywhere = multihost_utils.process_allgather(np.array(damage is not None)).any()
        damage = damage or ("another process can't read it" if anywhere else None)
    if damage is not None:
        raise Damaged(damage)


def _is_spread(x: Any) -> bool:
    """Whether no process has the whole array."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _regions(x: Any) -> list[Region]:
    """The parts of an array that get checksums of their own."""
    if 0 in jnp.shape(x):
        return []
    if not _is_spread(x):
        return [()]
    places = x.sharding.devices_indices_map(x.shape).values()
    return sorted({_bounds(place, x.shape) for place in places})


def _bounds(place: Sequence[slice], shape: Sequence[int]) -> Region:
    return tuple(part.indices(length)[:2] for part, length in zip(place, shape, strict=True))


def _checksums(arrays: Sequence[Any], regions: Sequence[Sequence[Region]]) -> list[int | None]:
    """Checksums of regions of arrays, one after the other; None if another process has it."""
    arrays = [jax.random.key_data(x) if is_key(x) else x for x in arrays]
    work = [(x, region) for x, own in zip(arrays, regions, strict=True) for region in own]
    # CRC-32 runs outside Python's lock.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_checksum, work))


def is_key(x: Any) -> bool:
    """Whether it's an array of random keys."""
    kinds = jax.Array | jax.ShapeDtypeStruct
    return isinstance(x, kinds) and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _checksum(work: tuple[Any, Region]) -> int | None:
    x, region = work
    if _is_spread(x):
        shards = (s for s in x.addressable_shards if _bounds(s.index, x.shape) == region)
        shard = next(shards, None)
        if shard is None:
            return None
        part = np.asarray(shard.data)
    else:
        whole = x.addressable_data(0) if isinstance(x, jax.Array) and x.is_fully_replicated else x
        part = np.asarray(whole)[tuple(slice(*bounds) for bounds in region)]
    part = np.asarray(part, part.dtype.newbyteorder("="), order="C")
    start = zlib.crc32(f"{part.dtype.name}{part.shape}".encode())
    return zlib.crc32(part.reshape(-1).view(np.uint8).data, start)
