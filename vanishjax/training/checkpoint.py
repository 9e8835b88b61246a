"""Checkpoints: the whole training state in a folder, a subfolder a step, by orbax."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["checkpoint_steps", "restore_checkpoint", "save_checkpoint"]

_State = TypeVar("_State")
_STATE, _CONTENT = "state", "content"


def save_checkpoint(
    folder: str | os.PathLike[str], state: Any, *, step: int | None = None, keep: int | None = 3
) -> Path:
    """Saves a training state.

    A checkpoint appears whole or not at all; older ones go only once the new one is there.

    Args:
      folder: Where the checkpoints lie; it's made if it doesn't exist.
      state: A `TrainState`, or any pytree of arrays. Sharded arrays are saved as they lie.
      step: The checkpoint's number; `state.step` if None.
      keep: How many of the latest to keep; None for all.

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
    with _manager(folder, keep) as manager:
        manager.save(
            number,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardSave(state),
                    _CONTENT: ocp.args.JsonSave(_content(state)),
                }
            ),
        )
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
      ValueError: It holds another model or another chain of transforms; the message names the first
        difference.

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
    steps = checkpoint_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder}: holds no checkpoint")
    number = steps[-1] if step is None else step
    if number not in steps:
        known = ", ".join(map(str, steps))
        raise FileNotFoundError(f"{folder}: no checkpoint of step {number}; there are {known}")
    with _manager(folder, None) as manager:
        content = manager.restore(
            number, args=ocp.args.Composite(**{_CONTENT: ocp.args.JsonRestore()})
        )[_CONTENT]
        difference = _difference(content, _content(like))
        if difference:
            raise ValueError(f"{folder / str(number)}: {difference}")
        target = jax.tree.map(_abstract, like)
        restored: _State = manager.restore(
            number, args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(target)})
        )[_STATE]
    return restored


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

    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield manager
    finally:
        manager.close()


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
