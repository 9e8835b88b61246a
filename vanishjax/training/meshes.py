"""Meshes of the user's: which axis divides the batch, and arrays and contexts that refer to them.

A step computes on automatic axes: where the user's mesh has explicit ones, on a mesh like it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = "batch"
_NAMES = (BATCH, "data")


def batch_axis(mesh: Mesh) -> str:
    """The axis that divides the batch: the one named "batch" or "data", or else the first.

    Example:
      >>> batch_axis(Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("model", "data")))
      'data'
    """
    return next((name for name in _NAMES if name in mesh.axis_names), str(mesh.axis_names[0]))


def automatic(mesh: Mesh | None) -> Mesh:
    """The same mesh with automatic axes; one axis over all devices if None."""
    if mesh is None:
        return Mesh(jax.devices(), (BATCH,))
    return Mesh(mesh.devices, mesh.axis_names)


def first_along_others(mesh: Mesh) -> Mesh:
    """Only the batch's axis of a mesh: the first devices along all others."""
    axis = batch_axis(mesh)
    number = mesh.axis_names.index(axis)
    devices = np.moveaxis(mesh.devices, number, 0).reshape(mesh.shape[axis], -1)[:, 0]
    return Mesh(devices, (axis,))


def within(mesh: Mesh | None) -> Any:
    """A context in which a mesh is in force, if one is at all (`jax.set_mesh`) but it's another."""
    current = jax.sharding.get_abstract_mesh()
    if mesh is None or current.empty or current == mesh.abstract_mesh:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh on which the first array of a tree lies; None if that lies on none."""
    sharding = getattr(next(iter(jax.tree.leaves(tree)), None), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return mesh if isinstance(mesh, Mesh) else None


def is_explicit(x: Any) -> bool:
    """Whether it's an array that lies on a mesh with explicit axes."""
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
        return False
    mesh = getattr(x.sharding, "mesh", None)
    return isinstance(mesh, Mesh) and not mesh.are_all_axes_auto


def adopted(tree: Any) -> Any:
    """The same arrays where they lie, but on automatic axes; nothing moves.

    Where a mesh with explicit axes is in force, they belong to it and stay what they are.
    """
    current = jax.sharding.get_abstract_mesh()
    if not (current.empty or current.are_all_axes_auto):
        return tree

    def own(x: Any) -> Any:
        if not is_explicit(x):
            return x
        return jax.device_put(x, NamedSharding(automatic(x.sharding.mesh), x.sharding.spec))

    return jax.tree.map(own, tree)


def beside(batch: Any, mesh: Mesh | None) -> Any:
    """A batch that can meet arrays on a mesh: what lies on other devices moves there."""
    if mesh is None:
        return batch

    def moved(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.sharding.device_set == {*mesh.devices.flat}:
            return x
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(moved, adopted(batch))
