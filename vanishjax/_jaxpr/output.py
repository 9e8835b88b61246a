"""What a network makes of one kernel's output: its bias, its normalization, its activation."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.activation import Activation
from vanishjax._jaxpr.flow import Flow, among
from vanishjax._jaxpr.values import ELEMENTWISE
from vanishjax._jaxpr.versions import shape_of

PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})
LOOKUPS = frozenset({"gather"})
# What a kernel may pass on its way to the data, whole and with the same numbers.
MOVES = frozenset(
    {
        "broadcast_in_dim",
        "convert_element_type",
        "reshape",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
_SAME_NAMES = "convert_element_type copy name reduce_precision reshard sharding_constraint"
_SAME = frozenset(_SAME_NAMES.split())
_SUMS = frozenset({"add", "add_any"})
_WINDOWS = frozenset({"reduce_window_max", "reduce_window_min", "reduce_window_sum"})
_POOLINGS = _WINDOWS | {"reduce_max"}
_WITH_CONSTANT = _SUMS | {"sub", "mul", "div"}


class Output(NamedTuple):
    """What becomes of a kernel's output.

    Attributes:
      variable: It, after its bias.
      measured: The argument of its activation; `variable` if it has none.
      samples: Axes of that which tell inputs apart, the first one counts the batch.
      units: Its other axes.
      bare: The output itself, before its bias.
      bare_samples: Axes of that which tell inputs apart.
      equation: In which the kernel meets the data.
    """

    variable: Var
    measured: Var
    samples: tuple[int, ...]
    units: tuple[int, ...]
    bare: Var
    bare_samples: tuple[int, ...]
    equation: JaxprEqn


def follow_output(
    index: int,
    flow: Flow,
    readers: Mapping[Var, Sequence[int]],
    activations: Mapping[Var, Activation],
    sites: Collection[int],
    taken: Collection[Var],
) -> Output:
    """Follows a kernel's output to the activation that is applied to it.

    On the way may lie what depends on no other kernel's output: a bias, a normalization over any
    axes, dropout, a change of shape, a pooling of positions. A recurrent cell's or a residual
    block's sum with one other branch may be the last step.

    Args:
      index: Of the equation in which the kernel meets the data.
      flow: Of the frame that it stands in.
      readers: `flow.readers()`.
      activations: The activations of the frame, by their arguments.
      sites: Identities of the equations in which kernels meet the data.
      taken: Arguments of activations that belong to other kernels.

    Returns:
      The output.
    """
    eqns = flow.frame.jaxpr.eqns
    bare = variable = eqns[index].outvars[0]
    bare_samples = samples = _sample_axes(eqns[index], flow.data)
    while (step := _affine_step(variable, readers.get(variable, ()), flow)) is not None:
        samples = _axes_after(step, shape_of(variable.aval), samples) or ()
        variable = step.outvars[0]
    seen = dict(_changes(index, flow, readers, sites, bare_samples))
    measured = next((v for v in seen if v in activations and v not in taken), None)
    if measured is not None:
        axes = seen[measured]
    else:
        measured, axes = variable, samples
        total = _sum_with_another(variable, readers, flow)
        while total is not None:
            if total in activations and total not in taken:
                measured = total
                break
            step = _affine_step(total, readers.get(total, ()), flow)
            same = step is not None and step.primitive.name != "transpose"
            total = step.outvars[0] if step is not None and same else None
    units = tuple(axis for axis in range(len(shape_of(measured.aval))) if axis not in axes)
    return Output(variable, measured, axes, units, bare, bare_samples, eqns[index])


def _changes(
    index: int,
    flow: Flow,
    readers: Mapping[Var, Sequence[int]],
    sites: Collection[int],
    samples: tuple[int, ...],
) -> list[tuple[Var, tuple[int, ...]]]:
    """Variables that hold a kernel's output, changed by nothing that another kernel puts out.

    Args:
      index: Of the equation in which the kernel meets the data.
      flow: Of the frame that it stands in.
      readers: `flow.readers()`.
      sites: Identities of the equations in which kernels meet the data.
      samples: Axes of the kernel's output that tell inputs apart.

    Returns:
      Each with its axes that tell inputs apart, in the program's order, those behind a pooling
      last: of squares it is part of a normalization.
    """
    eqns = flow.frame.jaxpr.eqns
    output = eqns[index].outvars[0]
    own, direct = {output}, {output: samples}  # `direct`: with all units still
    pooled: set[Var] = set()
    waiting = [i for i in readers.get(output, ()) if i >= 0]
    heapq.heapify(waiting)
    last = -1
    while waiting:
        place = heapq.heappop(waiting)
        eqn = eqns[place]
        if place == last or id(eqn) in sites or len(eqn.outvars) != 1:
            continue
        last = place
        variables = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
        if any(v in flow.descends and v not in own for v in variables):
            continue
        (out,) = eqn.outvars
        own.add(out)
        whole = [v for v in variables if v in direct]
        axes = _axes_after(eqn, shape_of(whole[0].aval), direct[whole[0]]) if whole else None
        if axes is not None:
            direct[out] = axes
            if eqn.primitive.name in _POOLINGS or pooled.issuperset(whole):
                pooled.add(out)
        for reader in readers.get(out, ()):
            if reader >= 0:
                heapq.heappush(waiting, reader)
    return sorted(direct.items(), key=lambda one: one[0] in pooled)


def _axes_after(
    eqn: JaxprEqn, shape: tuple[int, ...], samples: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Where an operand's axes of samples are in an equation's result; None if that loses any."""
    name, new = eqn.primitive.name, shape_of(eqn.outvars[0].aval)
    if name == "transpose":
        return tuple(sorted(eqn.params["permutation"].index(axis) for axis in samples))
    if name == "reshape":
        return _reshaped(shape, new, samples)
    if name == "broadcast_in_dim":
        placed = eqn.params["broadcast_dimensions"]
        kept = math.prod(shape) == math.prod(new)
        return tuple(placed[axis] for axis in samples) if kept else None
    if name in _WINDOWS:
        window = enumerate(eqn.params["window_dimensions"])
        return samples if all(size == 1 or axis in samples[1:] for axis, size in window) else None
    if name == "reduce_max":
        gone = set(eqn.params["axes"])
        if not gone <= set(samples[1:]):
            return None
        left = [axis for axis in range(len(shape)) if axis not in gone]
        return tuple(left.index(axis) for axis in samples if axis in left)
    elementwise = name in ELEMENTWISE | _SAME or not name.startswith("reduce")
    return samples if elementwise and new == shape and name not in PRODUCTS else None


def _reshaped(
    old: tuple[int, ...], new: tuple[int, ...], samples: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The axes of samples after a change of shape; None if samples and units are mixed."""
    if 0 in old:
        return None
    kept: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(before), j + len(after)
        while (a := math.prod(old[k] for k in before)) != (b := math.prod(new[k] for k in after)):
            if a < b:
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        of_samples = {k in samples for k in before if old[k] > 1} or {k in samples for k in before}
        if len(of_samples) > 1:
            return None
        if of_samples == {True}:
            kept += after
    return tuple(kept)


def _affine_step(variable: Var, readers: Sequence[int], flow: Flow) -> JaxprEqn | None:
    """The equation that adds a bias to the variable, scales, casts or transposes it."""
    if len(readers) != 1 or readers[0] < 0:
        return None
    eqn = flow.frame.jaxpr.eqns[readers[0]]
    name, data = eqn.primitive.name, among(eqn, flow.data)
    shape, new = shape_of(variable.aval), shape_of(eqn.outvars[0].aval)
    if name == "transpose" or (name in _SAME and new == shape):
        return eqn
    fits = name in _WITH_CONSTANT and sum(data) == 1 and new == shape
    return eqn if fits and (name != "div" or data[0]) else None


def _sum_with_another(
    variable: Var, readers: Mapping[Var, Sequence[int]], flow: Flow
) -> Var | None:
    """The sum with another branch, if nothing else becomes of the variable."""
    indices = readers.get(variable, ())
    if len(indices) != 1 or indices[0] < 0:
        return None
    eqn = flow.frame.jaxpr.eqns[indices[0]]
    fits = eqn.primitive.name in _SUMS and shape_of(eqn.outvars[0].aval) == shape_of(variable.aval)
    return eqn.outvars[0] if fits else None


def _sample_axes(eqn: JaxprEqn, data: set[Var]) -> tuple[int, ...]:
    """Axes of a kernel's output that run along the data rather than along the kernel."""
    rank = len(shape_of(eqn.outvars[0].aval))
    if eqn.primitive.name == "conv_general_dilated":
        batch, feature, *_ = eqn.params["dimension_numbers"].out_spec
        return (batch, *(axis for axis in range(rank) if axis not in (batch, feature)))
    if eqn.primitive.name in LOOKUPS:
        return tuple(range(rank - 1))
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    left = len(shape_of(eqn.invars[0].aval)) - len(contracted) - len(batch)
    of_left = tuple(range(len(batch), len(batch) + left))
    of_right = tuple(range(len(batch) + left, rank))
    return of_left if among(eqn, data)[0] else of_right
