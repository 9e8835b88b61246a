"""Where a step's state and batch lie: on one device, or on many by jit, shard_map or pmap."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vanishjax.training.batches import divided
from vanishjax.training.meshes import (
    BATCH,
    adopted,
    automatic,
    batch_axis,
    first_along_others,
    within,
)
from vanishjax.training.state import TrainState

Parallel: TypeAlias = Literal["jit", "pmap", "shard_map"]
Sharded: TypeAlias = Literal["zero1", "fsdp"]

_State = TypeVar("_State")
_WHOLE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step is spread over devices; made by `make_layout`.

    Attributes:
      parallel: None for one device.
      mesh: The devices, on automatic axes; None for one device.
      sharded: What of the state is divided among them.
    """

    parallel: Parallel | None = None
    mesh: Mesh | None = None
    sharded: Sharded | None = None

    @property
    def axis(self) -> str | None:
        """The mapped axis that the step must average over by itself."""
        return self.batch_axis if self.parallel in ("pmap", "shard_map") else None

    @property
    def devices(self) -> int:
        """Among how many the batch is divided; other axes of the mesh repeat the work."""
        return 1 if self.mesh is None else int(self.mesh.shape[self.batch_axis])

    @property
    def batch_axis(self) -> str:
        """The mesh's axis that divides the batch."""
        return BATCH if self.mesh is None else batch_axis(self.mesh)

    def place(self, state: _State) -> _State:
        """Puts a state where the step takes it; nothing moves that lies there already."""
        if self.mesh is None:
            return state
        leaves, structure = jax.tree.flatten(state)
        wanted = _shardings(structure, tuple(map(jnp.shape, leaves)), self.mesh, self.sharded)
        # Comparing costs microseconds, device_put milliseconds.
        if all(getattr(x, "sharding", None) == at for x, at in zip(leaves, wanted, strict=True)):
            return state
        with within(self.mesh):
            placed: _State = jax.tree.unflatten(structure, map(_put, leaves, wanted))
        return placed

    def put(self, arrays: _State) -> _State:
        """Arrays of the host, the same in every process, whole on every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, adopted(arrays))
        whole = NamedSharding(self.mesh, _WHOLE)
        return jax.tree.map(lambda x: _put(x, whole), arrays)

    def parts(self, batch: Any, microbatches: int) -> tuple[Any, Any]:
        """What of a batch divides among devices and microbatches, and the rest; see `divided`.

        Arrays that lie on devices come where a compiled step takes them; those of the host stay.
        """
        with within(self.mesh):
            batch, count = adopted(batch), self.devices * microbatches
            if self.mesh is None and count == 1:
                return batch, None
            parts = divided(batch, count)
            if self.mesh is None:
                return parts
            part, whole = _batch_shardings(self.mesh)
            return (
                jax.tree.map(lambda x: _moved(x, part), parts[0]),
                jax.tree.map(lambda x: _moved(x, whole), parts[1]),
            )

    def compile(self, fn: Callable[..., Any], *, axis: int = 0) -> Compiled:
        """Compiles a step, or a scan of steps.

        Args:
          fn: `fn(state, data, batch, rest) -> (state, out)`. With a mapped axis it sees its own
            part of batch; data, rest, state and out are the same on all devices.
          axis: The axis of batch's arrays that is divided; its size must divide.

        Returns:
          A function of the same arguments; state is donated, and comes back where it lay.
        """
        if self.mesh is None:
            jitted = jax.jit(fn, donate_argnums=0)
            return Compiled(lambda _: jitted, lambda *arguments: arguments, None)
        if self.parallel == "pmap":
            return _mapped(fn, self.mesh, axis)
        mesh, split = self.mesh, PartitionSpec(*[None] * axis, self.batch_axis)
        if self.parallel == "shard_map":
            specs = (_WHOLE, _WHOLE, split, _WHOLE)
            fn = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=(_WHOLE, _WHOLE))
        elif self.sharded is not None:
            fn = _within(mesh, fn)
        whole, part = NamedSharding(mesh, _WHOLE), NamedSharding(mesh, split)

        @functools.cache
        def compiled(form: Any) -> Any:
            held = whole
            if form is not None:
                held = jax.tree.unflatten(form[0], _shardings(*form, mesh, self.sharded))
            return jax.jit(
                fn,
                in_shardings=(held, whole, part, whole),
                out_shardings=(held, whole),
                donate_argnums=0,
            )

        def jitted_for(state: Any) -> Any:
            if self.sharded is None:
                return compiled(None)
            leaves, structure = jax.tree.flatten(state)
            return compiled((structure, tuple(map(jnp.shape, leaves))))

        def arranged(state: Any, data: Any, batch: Any, rest: Any) -> tuple[Any, ...]:
            if jax.process_count() > 1:
                # jit takes no array of the host that several processes share.
                batch = jax.tree.map(lambda x: _put(x, part), batch)
                rest = jax.tree.map(lambda x: _put(x, whole), rest)
            return state, data, batch, rest

        return Compiled(jitted_for, arranged, mesh)


class Compiled(NamedTuple):
    """A compiled function (state, data, batch, rest) -> (state, out).

    Attributes:
      jitted_for: Gives the jitted function for a state.
      arranged: Turns the arguments into those of the jitted function.
      mesh: Its devices; None for one.
    """

    jitted_for: Callable[[Any], Any]
    arranged: Callable[..., tuple[Any, ...]]
    mesh: Mesh | None

    def __call__(self, state: Any, data: Any, batch: Any, rest: Any) -> Any:
        """Runs it, compiling for new shapes."""
        with within(self.mesh):
            return self.jitted_for(state)(*self.arranged(state, data, batch, rest))

    def ahead(self, state: Any, data: Any, batch: Any, rest: Any) -> Callable[..., Any]:
        """Compiles it for arguments of these shapes, and runs nothing."""
        with within(self.mesh):
            arguments = self.arranged(state, data, batch, rest)
            executable = self.jitted_for(state).lower(*arguments).compile()

        def run(*arguments: Any) -> Any:
            with within(self.mesh):
                return executable(*self.arranged(*arguments))

        return run


def _within(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Tells a function, while it is traced, over which devices its arrays are divided."""

    @functools.wraps(fn)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return fn(*arguments)

    return traced


def _mapped(fn: Callable[..., Any], mesh: Mesh, axis: int) -> Compiled:
    # What is mapped comes first: pmap counts a None in an argument as an array, and then confuses
    # the axes of those that follow. The numbers tell it how many devices there are, whatever else
    # is missing.
    n = int(mesh.size)
    numbers = np.arange(n, dtype=np.int32)
    split = NamedSharding(mesh, PartitionSpec(*[None] * axis, batch_axis(mesh)))
    jitted = jax.pmap(
        lambda _, batch, state, data, rest: fn(state, data, batch, rest),
        axis_name=batch_axis(mesh),
        in_axes=(0, axis, None, None, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=2,
    )

    def stacked(x: Any) -> Any:
        shape = jnp.shape(x)
        before, size, after = shape[:axis], shape[axis], shape[axis + 1 :]
        divided = np.reshape if isinstance(x, np.ndarray) else jnp.reshape
        return _moved(divided(x, (*before, n, size // n, *after)), split)

    def arranged(state: Any, data: Any, batch: Any, rest: Any) -> tuple[Any, ...]:
        return numbers, jax.tree.map(stacked, batch), state, data, rest

    return Compiled(lambda _: jitted, arranged, mesh)


def make_layout(
    parallel: Parallel | None, mesh: Mesh | None = None, sharded: Sharded | None = None
) -> Layout:
    """The layout of some arguments of `make_train_step`, checked."""
    if sharded not in (None, "zero1", "fsdp"):
        raise ValueError(f"shard_state must be None, 'zero1' or 'fsdp', got {sharded!r}")
    if sharded is not None and parallel != "jit":
        raise ValueError(f"shard_state={sharded!r} goes with parallel='jit', not {parallel!r}")
    if parallel is None:
        return Layout()
    if parallel not in ("jit", "pmap", "shard_map"):
        raise ValueError(f"parallel must be None, 'jit', 'pmap' or 'shard_map', got {parallel!r}")
    if parallel == "pmap" and jax.process_count() > 1:
        raise ValueError("parallel='pmap' is for one process; several take 'jit' or 'shard_map'")
    mesh = automatic(mesh)
    return Layout(parallel, first_along_others(mesh) if parallel == "pmap" else mesh, sharded)


def shard_state(
    state: TrainState, mesh: Mesh | None = None, kind: Sharded | None = "fsdp"
) -> TrainState:
    """Divides a state among devices, as a step with `shard_state` takes and gives it.

    Every array is divided along its last axis that the number of devices divides; one without such
    an axis lies whole on each device. A restored state lies where the one that it's restored into
    does, so that `restore_checkpoint(folder, shard_state(...))` carries a run over to another
    number of devices.

    Args:
      state: The state, wherever it lies.
      mesh: Devices, as in `make_train_step`; all if None.
      kind: "zero1" divides the transform's state, "fsdp" the parameters too, None nothing.

    Returns:
      The same numbers, laid out.

    Raises:
      ValueError: An unknown kind.

    Example:
      >>> import optax
      >>> state = TrainState.create(jnp.ones((3, 8)), optax.adam(0.1))
      >>> divided = shard_state(state, kind="zero1")
      >>> tuple(divided.opt_state[0].mu.sharding.spec), tuple(divided.params.sharding.spec)
      ((None, 'batch'), ())
    """
    return make_layout("jit", mesh, kind).place(state)


def gathered(tree: Any) -> Any:
    """Every array whole, as NumPy arrays in every process that calls it: all must.

    Example:
      >>> gathered({"w": jnp.ones(2)})
      {'w': array([1., 1.], dtype=float32)}
    """
    if all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _put(x: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    # Every process has the whole of it, and gives its devices their part.
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        numbers = _put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _moved(x: Any, sharding: NamedSharding) -> Any:
    """An array of devices elsewhere; one of the host is left to the compiled step."""
    if not isinstance(x, jax.Array) or x.sharding == sharding:
        return x
    return _put(x, sharding)


@functools.lru_cache(maxsize=64)
def _batch_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Of a batch's part, and of its rest."""
    return NamedSharding(mesh, PartitionSpec(batch_axis(mesh))), NamedSharding(mesh, _WHOLE)


@functools.lru_cache(maxsize=64)
def _shardings(
    structure: Any, shapes: tuple[tuple[int, ...], ...], mesh: Mesh, sharded: Sharded | None
) -> tuple[NamedSharding, ...]:
    """Where each array of a state lies."""
    divides = batch_axis(mesh)
    fields = {None: (), "zero1": ("opt_state",), "fsdp": ("opt_state", "params")}[sharded]

    def sharding(path: Any, shape: tuple[int, ...]) -> NamedSharding:
        if getattr(path[0], "name", None) in fields:
            # The last axis: the first is a stack's, which a scan over layers takes apart.
            for axis in reversed(range(len(shape))):
                if shape[axis] and shape[axis] % mesh.shape[divides] == 0:
                    return NamedSharding(mesh, PartitionSpec(*[None] * axis, divides))
        return NamedSharding(mesh, _WHOLE)

    numbered = jax.tree.unflatten(structure, range(len(shapes)))
    paths = jax.tree_util.tree_leaves_with_path(numbered)
    return tuple(sharding(path, shapes[number]) for path, number in paths)
