"""Checkpoints: the whole training state in a folder, a subfolder a step."""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from vanishjax.training import contents, storage
from vanishjax.training.manifest import Leaf, difference, named_leaves
from vanishjax.training.storage import Damaged

__all__ = [
    "Notes",
    "best_checkpoint",
    "checkpoint_notes",
    "checkpoint_steps",
    "restore_checkpoint",
    "save_checkpoint",
]

_State = TypeVar("_State")


class Notes(NamedTuple):
    """What a checkpoint holds beside the state.

    Attributes:
      record: JSON types, by name.
      arrays: NumPy arrays, by name, whose shapes needn't be known when they're read again.
    """

    record: Mapping[str, Any] = {}
    arrays: Mapping[str, Any] = {}


def save_checkpoint(
    folder: str | os.PathLike[str],
    state: Any,
    *,
    step: int | None = None,
    keep: int | None = 3,
    loss: float | None = None,
    notes: Notes | None = None,
) -> Path:
    """Saves a training state.

    A checkpoint appears whole or not at all; older ones go only once the new one is there. It has
    checksums of all that it holds, which are compared when it's restored.

    Args:
      folder: Where the checkpoints lie; it's made if it doesn't exist.
      state: A `TrainState`, or any pytree of arrays. Sharded arrays are saved as they lie.
      step: The checkpoint's number, at least 0; `state.step` if None.
      keep: How many of the latest to keep; None for all.
      loss: How good it is; the checkpoint of the least loss is kept beside the latest.
      notes: What to save beside the state; `checkpoint_notes` reads it again.

    Returns:
      The checkpoint's folder, `<folder>/<step>`.

    Raises:
      ValueError: A checkpoint of that step is there already, `keep` is below 1, the step is unknown
        or no whole number, two arrays have the same name, or something is no array, or no JSON in
        the notes' record.
      OSError: The disk is full or the folder can't be written. Older checkpoints stay as they are.

    Example:
      >>> import tempfile, optax, jax.numpy as jnp
      >>> from vanishjax.training import TrainState
      >>> state = TrainState.create(jnp.ones(3), optax.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_checkpoint(folder, state)
      ...     again = restore_checkpoint(folder, state)
      ...     print(path.name, again.params)
      0 [1. 1. 1.]
    """
    if keep is not None:
        keep = whole_number("keep", keep, 1)
    number = _step_of(state) if step is None else whole_number("step", step, 0)
    folder = Path(folder).absolute()
    if number in checkpoint_steps(folder):
        raise ValueError(f"{folder}: already holds a checkpoint of step {number}")
    record, arrays = (None, {}) if notes is None else (notes.record, notes.arrays)
    loss = math.inf if loss is None or not math.isfinite(loss) else float(loss)
    folder.mkdir(parents=True, exist_ok=True)
    contents.write(folder / str(number), number, state, loss, record, arrays)
    if keep is not None:
        _delete_old(folder, keep)
    return folder / str(number)


def restore_checkpoint(
    folder: str | os.PathLike[str],
    like: _State,
    *,
    step: int | None = None,
    only: str | Sequence[str] | None = None,
) -> _State:
    """Restores a training state.

    Args:
      folder: Where the checkpoints lie.
      like: A state of the same structure, shapes and types, such as
        ``TrainState.create(params, tx)``. Where its arrays are sharded, the restored ones will be
        sharded alike, on however many devices they were saved.
      step: Which; the latest if None.
      only: Restore nothing but this field of the state, such as "params", or these fields, and
        take the others from `like` as they are: step, key and a fresh `opt_state` too. So
        parameters go on in another chain of transforms.

    Returns:
      The state, bit for bit.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      ValueError: It holds another model or another chain of transforms (the message names the first
        difference), or `only` names no field of it. Or it's damaged: the message says what, and
        which other one is whole.

    Example:
      >>> import tempfile, optax, jax.numpy as jnp
      >>> from vanishjax.training import TrainState
      >>> state = TrainState.create({"w": jnp.ones(3)}, optax.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save_checkpoint(folder, state)
      ...     restore_checkpoint(folder, TrainState.create({"w": jnp.ones(4)}, optax.sgd(0.1)))
      Traceback (most recent call last):
      ...
      ValueError: ...: params/w has shape [3] in the checkpoint, [4] in the state to restore into

      A clip was added to the chain:

      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save_checkpoint(folder, state, step=8)
      ...     tx = optax.chain(optax.clip(1.0), optax.adam(0.1))
      ...     fresh = TrainState.create({"w": jnp.zeros(3)}, tx)
      ...     restored = restore_checkpoint(folder, fresh, only="params")
      >>> print(restored.params["w"], restored.step)
      [1. 1. 1.] 0
    """
    folder = Path(folder).absolute()
    number = _chosen_step(folder, step)
    only = (only,) if isinstance(only, str) else tuple(only or ())
    leaves = named_leaves(like)
    wanted = [leaf for leaf in leaves if not only or leaf.top in only]
    for name in only:
        if name not in {leaf.top for leaf in wanted}:
            raise ValueError(f"only: the state to restore into has no arrays in {name!r}")
    place = folder / str(number)
    with _explained(folder, number, wanted, only):
        manifest = contents.read_manifest(place, number)
        entries = contents.entries_of(wanted, manifest)
        different = difference(manifest.state, entries, only)
        if different:
            raise ValueError(f"{place}: {different}{_advice(different, only)}")
        restored = iter(contents.read_state(place, manifest, wanted))
    values = [next(restored) if not only or leaf.top in only else leaf.value for leaf in leaves]
    state: _State = jax.tree.unflatten(jax.tree.structure(like), values)
    return state


def checkpoint_notes(folder: str | os.PathLike[str], *, step: int | None = None) -> Notes:
    """What `save_checkpoint` was given as notes; empty if it was given none.

    Args:
      folder: Where the checkpoints lie.
      step: Which; the latest if None.

    Returns:
      The notes.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      ValueError: It's damaged.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     notes = Notes({"epoch": 3}, {"seen": np.arange(2)})
      ...     _ = save_checkpoint(folder, {"w": jnp.ones(3)}, step=7, notes=notes)
      ...     checkpoint_notes(folder)
      Notes(record={'epoch': 3}, arrays={'seen': array([0, 1])})
    """
    folder = Path(folder).absolute()
    number = _chosen_step(folder, step)
    place = folder / str(number)
    with _explained(folder, number):
        return Notes(*contents.read_notes(place, contents.read_manifest(place, number)))


def best_checkpoint(folder: str | os.PathLike[str]) -> int | None:
    """The step of the checkpoint that was saved with the least loss; None if none had one.

    Args:
      folder: Where the checkpoints lie.

    Returns:
      The step, for `restore_checkpoint`.

    Raises:
      ValueError: The loss of one of them is damaged.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for step, loss in enumerate([3.0, 1.0, 2.0, 2.5]):
      ...         _ = save_checkpoint(folder, {"w": jnp.ones(3)}, step=step, loss=loss, keep=1)
      ...     best_checkpoint(folder), checkpoint_steps(folder)
      (1, [1, 3])
    """
    folder = Path(folder).absolute()
    losses: dict[int, float] = {}
    for step in checkpoint_steps(folder):
        with _explained(folder, step):
            losses[step] = contents.read_loss(folder / str(step), step)
    return _best(losses)


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of a folder's whole checkpoints, ascending.

    Example:
      >>> checkpoint_steps("no such folder")
      []
    """
    if not Path(folder).is_dir():
        return []
    # Unfinished checkpoints have another name until they are whole.
    names = (path.name for path in Path(folder).iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def whole_number(name: str, value: Any, least: int) -> int:
    """The number as an int; a ValueError that names it where it's none or is too small."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _step_of(state: Any) -> int:
    step = getattr(state, "step", None)
    if step is None or np.ndim(step):
        raise ValueError("the state has no step of its own: pass step=")
    return whole_number("step", step, 0)


def _chosen_step(folder: Path, step: int | None) -> int:
    number = None if step is None else whole_number("step", step, 0)
    steps = checkpoint_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder}: holds no checkpoint")
    if number is None:
        return steps[-1]
    if number not in steps:
        known = ", ".join(map(str, steps))
        raise FileNotFoundError(f"{folder}: no checkpoint of step {number}; there are {known}")
    return number


def _advice(different: str, only: Sequence[str]) -> str:
    if only or not different.startswith("opt_state"):
        return ""
    return '; restore_checkpoint(..., only="params") takes the parameters alone'


def _best(losses: Mapping[int, float]) -> int | None:
    known = [step for step in sorted(losses) if losses[step] < math.inf]
    return min(known, key=lambda step: losses[step]) if known else None


def _delete_old(folder: Path, keep: int) -> None:
    """Deletes all but the latest and the best; those whose loss can't be told stay as well."""
    steps = checkpoint_steps(folder)
    if len(steps) <= keep or jax.process_index():
        return
    losses: dict[int, float] = {}
    for step in steps:
        with contextlib.suppress(Damaged, OSError):
            losses[step] = contents.read_loss(folder / str(step), step)
    for step in {*losses} - {*steps[-keep:], _best(losses)}:
        storage.delete(folder / str(step))


@contextlib.contextmanager
def _explained(
    folder: Path, step: int, wanted: Sequence[Leaf] | None = None, only: Sequence[str] = ()
) -> Iterator[None]:
    """Turns damage to a checkpoint into a ValueError that says which other one is whole."""
    try:
        yield
    except Damaged as error:
        others = [other for other in reversed(checkpoint_steps(folder)) if other != step]
        whole = next(
            (other for other in others if contents.is_whole(folder, other, wanted, only)),
            None,
        )
        if whole is not None:
            advice = f"delete it to go on from step {whole}"
        else:
            advice = "no other is whole" if others else "no other lies there"
        raise ValueError(f"{folder / str(step)}: is damaged: {error}; {advice}") from None
