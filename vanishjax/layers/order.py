"""Which layers a parameter tree has, in the order in which the data meets them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from vanishjax import _jaxpr
from vanishjax.foreign import listed
from vanishjax.layers.division import Layers, Leaf, Status
from vanishjax.layers.matrices import with_contraction, with_given, with_partners
from vanishjax.layers.paths import modules, natural_order
from vanishjax.layers.stacks import named_stacks, paired_stacks
from vanishjax.naming import named_leaves
from vanishjax.placement import gathered
from vanishjax.problem import MISSING, Problem, as_problem, network_of
from vanishjax.validation import check_floating


class LayerOrderWarning(UserWarning):
    """The depth of some parameters is unknown, so that their place among the layers is a guess."""


def find_layers(
    params: Any,
    loss_fn: Any = None,
    batch: Any = None,
    *,
    matrices: Any = None,
    model_state: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Layers:
    """Divides parameters into layers, in the order in which the data meets them.

    With `loss_fn`, a layer's depth is the number of parameters met on the longest path from the
    data to where it is first used, itself included, and layers stand in the order of depth, then of
    the program. Parameters that a `lax.scan` runs along (`nn.scan`, `nnx.scan`) are stacks: one
    layer per index. A term that the loss adds up from parameters alone (weight decay) is no use.

    Without `loss_fn`, layers stand in the order of their paths, numbers sorted as numbers.

    Either way an axis that Flax's metadata names (`nn.Partitioned.names`, `out_sharding` of an nnx
    variable) is a stack axis if one of the name's words is block, layer, repeat, scan, stack or
    stage, their plural, or depth; if a scan runs along another one, the scan is right.

    Without `loss_fn`, a kernel `[L, ..., out]` and the bias `[L, out]` beside it (`out` may be
    several axes; pairs named kernel and bias, w and b, W and b, or Equinox's weight `[L, out, ...]`
    and bias) are a stack of L layers, unless their shapes may also be those of one layer, as they
    may if L is the kernel's number of inputs. What else their module holds with that first axis is
    stacked with them, arrays of several axes only if all that it holds has that first axis. The
    outermost module whose parameters are all stacked alike is taken for one stack. Where
    `optax.masked` hides biases, nothing is proven: pass the layers of the whole tree.

    A kernel's inputs and outputs (`Leaf.inputs`, `Leaf.outputs`) are read off the product in which
    the data meets it: a matrix product or `einsum`, a convolution of any kind, a lookup, whatever
    reshaped or transposed the kernel before. An axis of which every index multiplies other data
    (experts, heads of a block-diagonal kernel, a `vmap` over networks) is a stack axis. Without
    `loss_fn` the bias beside a kernel tells its outputs, the last axes, or the first ones of what
    is called weight; Flax's attention without biases is known by name (query, key, value, q, k, v,
    q_proj, k_proj, v_proj: [in, heads, dim]; out, o, out_proj, o_proj: [heads, dim, out]); of
    others the last axis is the output, of a weight the first. A bias is never a matrix.

    A parameter without a depth (unused, or with a warning) stands behind the one that precedes it
    in the order of paths, and shares its depth.

    `find_layers(problem, batch)` takes a `Problem` in the place of its parts.

    Args:
      params: Pytree of real floating-point arrays or `jax.ShapeDtypeStruct`s. Or a problem.
      loss_fn: `loss_fn(params, batch)` returns a scalar or `(scalar, aux)`. It's traced, never run.
        With a problem, the batch.
      batch: Any pytree of what `loss_fn` takes; without arrays in it, arrays that `loss_fn` closes
        over are the data.
      matrices: What is known better: for any path (in a dictionary, or in a tree like the
        parameters; a module's stands for all in it) a pair (inputs, outputs) of axes or tuples of
        axes, such as `optax.contrib.MuonDimensionNumbers`. All other axes are stack axes. None in
        the place of a pair: no matrix.
      model_state: As in `Problem`.
      has_aux: As in `Problem`.
      with_key: As in `Problem`.
      with_state: As in `Problem`.

    Returns:
      The layers; none for a tree without leaves.

    Raises:
      ValueError: A leaf isn't a real floating-point array, the loss isn't a scalar, or `matrices`
        doesn't fit the parameters.
      TypeError: The loss doesn't return what the flags say, or a problem came with parts of one.

    Warns:
      LayerOrderWarning: The depth of some parameters can't be told: their parts are used at several
        depths (`ravel_pytree` in the loss, `w[i]` in a `fori_loop`), several of them meet the data
        inside one primitive that can't be looked into, or the loss depends on no data.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def loss_fn(params, x):
      ...     y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params["hidden"])
      ...     return jnp.mean(y @ params["a_head"])
      >>> params = {"a_head": jnp.ones((4, 1)), "hidden": jnp.ones((2, 4, 4))}
      >>> find_layers(params, loss_fn, jnp.ones((8, 4))).names
      ('hidden[0]', 'hidden[1]', 'a_head')
    """
    flags: dict[str, Any] = {
        "model_state": model_state,
        "has_aux": has_aux,
        "with_key": with_key,
        "with_state": with_state,
    }
    if isinstance(params, Problem):
        second = MISSING if loss_fn is None else loss_fn
        third = MISSING if batch is None and loss_fn is not None else batch
        problem, batch = network_of(params, second, third, **flags)
        params, loss_fn = problem.params, problem.plain_loss
    elif loss_fn is not None:
        loss_fn = as_problem(loss_fn, params, **flags).plain_loss
    leaves = parameter_leaves(params)
    if loss_fn is None or not leaves:
        leaves = with_partners(paired_stacks(params, leaves))
        return _order_by_path(leaves if matrices is None else with_given(leaves, matrices))
    trace = _jaxpr.parameter_uses(_program(loss_fn, params, batch))
    return layers_met(leaves, trace, matrices)


def _program(loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any) -> _jaxpr.Program:
    """The loss, traced with its arrays as they lie on a mesh, or else as on one device.

    A loss may ask for either: it may lay down how products of sharded arrays are sharded, or know
    nothing of meshes.
    """
    try:
        return _jaxpr.trace_loss(loss_fn, params, batch)
    except Exception:
        spread = params, batch
        whole = gathered(spread)
        if whole is spread:
            raise
        return _jaxpr.trace_loss(loss_fn, *whole)


def parameter_leaves(params: Any) -> list[Leaf]:
    """The parameter arrays of a tree, with the stack axes that Flax's metadata name."""
    check_floating(params)
    stacked = named_stacks(params)
    leaves = []
    for name, value in named_leaves(params)[0]:
        shape, axes = np.shape(value), stacked.get(name, ())
        leaves.append(Leaf(name, shape, axes if max(axes, default=-1) < len(shape) else ()))
    return leaves


def layers_met(leaves: list[Leaf], trace: _jaxpr.Trace, matrices: Any = None) -> Layers:
    """The layers in the order in which a traced loss uses them: see `find_layers`."""
    if not trace.depends_on_data:
        _warn("the loss depends on no data", leaves)
        return _order_by_path(leaves)
    schedules = _schedules(leaves, trace, matrices)
    for doubt in dict.fromkeys(one.doubt for one in schedules if one.doubt):
        _warn(doubt, [one.leaf for one in schedules if one.doubt == doubt])
    return _order_by_use(schedules)


class _Schedule(NamedTuple):
    """When the data meets the layers of one parameter."""

    leaf: Leaf
    depths: np.ndarray[Any, Any]  # [*stack]
    positions: np.ndarray[Any, Any]  # [*stack], of the equations
    tied: bool
    doubt: str  # why the depths can't be trusted; "" if they can


def _schedules(leaves: list[Leaf], trace: _jaxpr.Trace, matrices: Any) -> list[_Schedule]:
    uses: list[list[_jaxpr.Use]] = [[] for _ in leaves]
    for use in trace.uses:
        uses[use.leaf].append(use)
    doubts = list(map(_doubt, uses))
    stacked = list(map(_stacked, leaves, uses, doubts))
    stacked = with_partners(stacked)
    if matrices is not None:
        stacked = with_given(stacked, matrices)
    return list(map(_schedule, stacked, uses, trace.differentiable, doubts))


def _order_by_use(schedules: list[_Schedule]) -> Layers:
    leaves = [one.leaf for one in schedules]
    if not any(leaf.status in ("used", "stopped") for leaf in leaves):
        return _order_by_path(leaves)

    keys: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []  # (when, leaf, index)
    before: tuple[int, ...] = (0, 0, -1, 0)
    for rank, number in enumerate(natural_order([leaf.path for leaf in leaves])):
        leaf, depths, positions, _, _ = schedules[number]
        placed = leaf.status in ("used", "stopped")
        own = [
            (
                (int(depths[index]), int(positions[index]), rank, flat)
                if placed
                else (*before, rank, flat),
                number,
                index,
            )
            for flat, index in enumerate(np.ndindex(leaf.stack))
        ]
        keys += own
        if placed:
            before = max(own, default=(before,))[0]
    keys.sort()
    return _layers(
        leaves,
        [(number, index) for _, number, index in keys],
        depths=tuple(key[0] for key, _, _ in keys),
        tied=tuple(one.leaf.path for one in schedules if one.tied),
    )


def _doubt(uses: list[_jaxpr.Use]) -> str:
    """Why the depths of a parameter can't be told; "" if they can."""
    if any(use.opaque for use in uses):
        return "it meets the data together with others inside a primitive that hides their order"
    if len(set(_first_depths(uses))) > 1:
        return "parts of it are used at several depths"
    if len({tuple(sorted(use.axes)) for use in uses if use.axes}) > 1:
        return "scans run along different axes of it"
    return ""


def _stacked(leaf: Leaf, uses: list[_jaxpr.Use], doubt: str) -> Leaf:
    """The leaf with the stack axes and the matrices that its uses show."""
    scanned = {tuple(sorted(use.axes)) for use in uses if use.axes}
    if len(scanned) == 1:
        leaf = dataclasses.replace(leaf, axes=scanned.pop())
    return with_contraction(leaf, uses, stacks=not doubt)


def _schedule(leaf: Leaf, uses: list[_jaxpr.Use], differentiable: bool, doubt: str) -> _Schedule:
    depths = np.full(leaf.stack, np.inf)
    last = np.full(leaf.stack, -np.inf)
    positions = np.zeros(leaf.stack, int)
    for use in [] if doubt else uses:
        # Over the stack's axes in ascending order; the same at all indices if nothing scanned it.
        own = use.depths.transpose(np.argsort(use.axes)) if use.axes else use.depths
        own = own.reshape([leaf.shape[axis] if axis in use.axes else 1 for axis in leaf.axes])
        own = np.broadcast_to(own, leaf.stack)
        first = (own < depths) | ((own == depths) & (use.position < positions))
        positions = np.where(first, use.position, positions)
        depths = np.minimum(depths, own)
        last = np.maximum(last, np.where(np.isfinite(own), own, -np.inf))
    # An index that data never met (it multiplied an initial state of zeros) stands with the first.
    depths = np.where(np.isfinite(depths), depths, depths.min(initial=np.inf))
    status: Status = "unknown" if doubt else "unused" if not uses else "used"
    if status == "used" and not differentiable:
        status = "stopped"
    leaf = dataclasses.replace(leaf, status=status)
    return _Schedule(
        leaf, depths, positions, status != "unused" and bool((last > depths).any()), doubt
    )


def _first_depths(uses: list[_jaxpr.Use]) -> Iterable[float]:
    """For each part of a parameter that stands alone in some use, the depth of the first."""
    first: dict[Any, float] = {}
    for use in uses:
        if use.part is not None:
            first[use.part] = min(first.get(use.part, np.inf), float(use.depths.min()))
    return first.values()


def _order_by_path(leaves: list[Leaf]) -> Layers:
    """Layers in the order of their paths, those of one stack interleaved."""
    order = natural_order([leaf.path for leaf in leaves])
    members: dict[str, set[tuple[int, ...]]] = {}  # stacks below each module
    for leaf in leaves:
        for module in modules(leaf.path):
            members.setdefault(module, set()).add(leaf.stack)
    first: dict[Any, int] = {}
    keys = []
    for rank, number in enumerate(order):
        leaf = leaves[number]
        home: Any = next((m for m in modules(leaf.path) if len(members[m]) == 1), leaf.path)
        start = first.setdefault(home, rank) if leaf.axes else rank
        keys += [((start, *index, rank), number, index) for index in np.ndindex(leaf.stack)]
    keys.sort()
    return _layers(leaves, [(n, index) for _, n, index in keys], depths=tuple(range(len(keys))))


def _layers(
    leaves: list[Leaf],
    ordered: list[tuple[int, tuple[int, ...]]],
    depths: tuple[int, ...],
    tied: tuple[str, ...] = (),
) -> Layers:
    ends = np.cumsum([0, *(int(np.prod(leaf.stack)) for leaf in leaves)])
    order = (
        int(ends[number] + (np.ravel_multi_index(index, leaves[number].stack) if index else 0))
        for number, index in ordered
    )
    return Layers(tuple(leaves), tuple(order), depths, tied)


def _warn(doubt: str, leaves: list[Leaf]) -> None:
    names = listed([leaf.path for leaf in leaves], most=8)
    warnings.warn(
        f"depth order unknown for {names}: {doubt}; placed in the order of paths instead",
        LayerOrderWarning,
        stacklevel=4,
    )
