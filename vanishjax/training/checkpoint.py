"""Checkpoints: the whole training state in a folder, a subfolder a step, by orbax."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Notes",
    "best_checkpoint",
    "checkpoint_notes",
    "checkpoint_steps",
    "restore_checkpoint",
    "save_checkpoint",
]

_State = TypeVar("_State")
_STATE, _CONTENT, _RECORD, _ARRAYS = "state", "content", "record", "arrays"
_LOSS = "loss"


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

    A checkpoint appears whole or not at all; older ones go only once the new one is there.

    Args:
      folder: Where the checkpoints lie; it's made if it doesn't exist.
      state: A `TrainState`, or any pytree of arrays. Sharded arrays are saved as they lie.
      step: The checkpoint's number; `state.step` if None.
      keep: How many of the latest to keep; None for all.
      loss: How good it is; the checkpoint of the least loss is kept beside the latest.
      notes: What to save beside the state; `checkpoint_notes` reads it again.

    Returns:
      The checkpoint's folder, `<folder>/<step>`.

    Raises:
      ValueError: A checkpoint of that step is there already, `keep` is below 1, or the step is
        unknown.
      OSError: The folder can't be written.

    Example:
      >>> import tempfile, optax
      >>> from vanishjax.training import TrainState
      >>> state = TrainState.create(jnp.ones(3), optax.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_checkpoint(folder, state)
      ...     again = restore_checkpoint(folder, state)
      ...     print(path.name, again.params)
      0 [1. 1. 1.]
    """
    import orbax.checkpoint as ocp

    if keep is not None and keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    number = _step_of(state) if step is None else step
    folder = Path(folder).absolute()
    if number in checkpoint_steps(folder):
        raise ValueError(f"{folder}: already holds a checkpoint of step {number}")
    items: dict[str, Any] = {
        _STATE: ocp.args.StandardSave(state),
        _CONTENT: ocp.args.JsonSave(_content(state)),
    }
    if notes is not None:
        items[_RECORD] = ocp.args.JsonSave(dict(notes.record))
        if notes.arrays:
            items[_ARRAYS] = ocp.args.StandardSave(dict(notes.arrays))
    known = loss is not None and math.isfinite(loss)
    metrics = {_LOSS: loss if known else math.inf}
    with _manager(folder, keep) as manager:
        manager.save(number, args=ocp.args.Composite(**items), metrics=metrics)
        manager.wait_until_finished()
    return folder / str(number)


def restore_checkpoint(
    folder: str | os.PathLike[str], like: _State, *, step: int | None = None
) -> _State:
    """Restores a training state.

    Args:
      folder: Where the checkpoints lie.
      like: A state of the same structure, shapes and types, such as
        ``TrainState.create(params, tx)``. Where its arrays are sharded, the restored ones will be
        sharded alike, on however many devices they were saved.
      step: Which; the latest if None.

    Returns:
      The state, bit for bit.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      ValueError: It holds another model or another chain of transforms (the message names the first
        difference), or it's damaged.

    Example:
      >>> import tempfile, optax
      >>> from vanishjax.training import TrainState
      >>> state = TrainState.create({"w": jnp.ones(3)}, optax.sgd(0.1))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save_checkpoint(folder, state)
      ...     restore_checkpoint(folder, TrainState.create({"w": jnp.ones(4)}, optax.sgd(0.1)))
      Traceback (most recent call last):
      ...
      ValueError: ...: params/w has shape [3] in the checkpoint, [4] in the state to restore into
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    number = _chosen_step(folder, step)
    with _manager(folder, None) as manager:
        content = _read(manager, folder, number, {_CONTENT: ocp.args.JsonRestore()})[_CONTENT]
        difference = _difference(content, _content(like))
        if difference:
            raise ValueError(f"{folder / str(number)}: {difference}")
        target = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        restored: _State = _read(manager, folder, number, {_STATE: target})[_STATE]
    return restored


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
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     notes = Notes({"epoch": 3}, {"seen": np.arange(2)})
      ...     _ = save_checkpoint(folder, {"w": jnp.ones(3)}, step=7, notes=notes)
      ...     checkpoint_notes(folder)
      Notes(record={'epoch': 3}, arrays={'seen': array([0, 1])})
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    number = _chosen_step(folder, step)
    present = {path.name for path in (folder / str(number)).iterdir()}
    readers = {_RECORD: ocp.args.JsonRestore(), _ARRAYS: ocp.args.StandardRestore()}
    items = {name: reader for name, reader in readers.items() if name in present}
    if not items:
        return Notes()
    with _manager(folder, None) as manager:
        found = _read(manager, folder, number, items)
    return Notes(found.get(_RECORD) or {}, found.get(_ARRAYS) or {})


def _read(manager: Any, folder: Path, number: int, items: dict[str, Any]) -> Any:
    """Parts of a checkpoint that lies there; raises ValueError if they can't be read."""
    import orbax.checkpoint as ocp

    try:
        return manager.restore(number, args=ocp.args.Composite(**items))
    except (OSError, ValueError, KeyError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        others = [step for step in checkpoint_steps(folder) if step != number]
        raise ValueError(
            f"{folder / str(number)}: is damaged, for it can't be read ({said[:100]}); "
            + (f"delete it to go on from step {others[-1]}" if others else "no other lies there")
        ) from error


def best_checkpoint(folder: str | os.PathLike[str]) -> int | None:
    """The step of the checkpoint that was saved with the least loss; None if none had one.

    Args:
      folder: Where the checkpoints lie.

    Returns:
      The step, for `restore_checkpoint`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for step, loss in enumerate([3.0, 1.0, 2.0, 2.5]):
      ...         _ = save_checkpoint(folder, {"w": jnp.ones(3)}, step=step, loss=loss, keep=1)
      ...     best_checkpoint(folder), checkpoint_steps(folder)
      (1, [1, 3])
    """
    steps = checkpoint_steps(folder)
    if not steps:
        return None
    with _manager(Path(folder).absolute(), None) as manager:
        losses = {step: _loss_of(manager.metrics(step)) for step in steps}
    known = [step for step in steps if losses[step] < math.inf]
    return min(known, key=lambda step: losses[step]) if known else None


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of a folder's whole checkpoints, ascending.

    Example:
      >>> checkpoint_steps("no such folder")
      []
    """
    import orbax.checkpoint as ocp

    if not Path(folder).is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(Path(folder).absolute()))


@contextlib.contextmanager
def _manager(folder: Path, keep: int | None) -> Iterator[Any]:
    # A folder beside which the next one is finished and renamed: a kill in between loses nothing,
    # where orbax's own overwriting of one path loses the old checkpoint.
    import orbax.checkpoint as ocp

    policies = ocp.checkpoint_managers
    best = policies.BestN(get_metric_fn=_loss_of, reverse=True, n=1)
    preserved = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preserved if keep is not None else None,
        best_fn=_loss_of,
        create=True,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
    )
    manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield manager
    finally:
        manager.close()


def _loss_of(metrics: Mapping[str, float] | None) -> float:
    return math.inf if metrics is None else float(metrics[_LOSS])


def _chosen_step(folder: Path, step: int | None) -> int:
    steps = checkpoint_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder}: holds no checkpoint")
    number = steps[-1] if step is None else step
    if number not in steps:
        known = ", ".join(map(str, steps))
        raise FileNotFoundError(f"{folder}: no checkpoint of step {number}; there are {known}")
    return number


def _step_of(state: Any) -> int:
    step = getattr(state, "step", None)
    if step is None or np.ndim(step):
        raise ValueError("the state has no step of its own: pass step=")
    return int(step)


def _content(state: Any) -> list[list[Any]]:
    """Path, shape and type of every array."""
    return [
        [
            jax.tree_util.keystr(path, simple=True, separator="/"),
            list(jnp.shape(x)),
            str(jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype),
        ]
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    ]


def _difference(saved: list[list[Any]], wanted: list[list[Any]]) -> str:
    """The first difference of two contents, in words; "" if there is none."""
    known = {path: (shape, dtype) for path, shape, dtype in saved}
    for path, shape, dtype in wanted:
        if path not in known:
            return f"{path} is missing in the checkpoint"
        old_shape, old_dtype = known.pop(path)
        if old_shape != shape:
            return (
                f"{path} has shape {old_shape} in the checkpoint, {shape} in the state to restore "
                "into"
            )
        if old_dtype != dtype:
            return (
                f"{path} has type {old_dtype} in the checkpoint, {dtype} in the state to restore "
                "into"
            )
    return f"{next(iter(known))} is only in the checkpoint" if known else ""


def _abstract(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return x
