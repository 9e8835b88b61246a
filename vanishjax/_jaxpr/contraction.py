"""The matrices in a kernel: over which of its axes a product with the data sums, and which stay.

A kernel is reshaped, transposed and cast on its way from the parameters to the data. Along with
each dimension of such a value go the parts of the parameter's axes that it runs along, and where it
meets the data the dimension numbers give every part a role.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from jax.extend.core import JaxprEqn

from vanishjax._jaxpr.versions import shape_of

Role: TypeAlias = Literal["input", "output", "batch"]


class Part(NamedTuple):
    """A part of a parameter's axis, as digits are parts of a number.

    Attributes:
      axes: The axis, or the axes of which this is a piece cut out.
      size: Number of its indices.
      stride: How many indices of the axis one of these is.
    """

    axes: tuple[int, ...]
    size: int
    stride: int = 1


_UNKNOWN = (-1,)
_BROADCAST = (-2,)  # the whole parameter stands at each index


# For each dimension of a value the parts that it runs along, the most significant first.
Layout: TypeAlias = tuple[tuple[Part, ...], ...]


class Matrix(NamedTuple):
    """How a kernel holds its matrices.

    Attributes:
      inputs: The axes that are summed over where the data meets it.
      outputs: The axes that the result keeps.
      batch: The axes of which every index is a matrix of its own.
      groups: Pairs (axis, count): the leading part of this input or output axis, of so many
        indices, also tells matrices apart, as that of a grouped convolution's outputs does.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    batch: tuple[int, ...] = ()
    groups: tuple[tuple[int, int], ...] = ()


def whole(shape: Sequence[int]) -> Layout:
    """The layout of a parameter itself."""
    return tuple((Part((axis,), size),) for axis, size in enumerate(shape))


def carried(eqn: JaxprEqn, operand: int, layout: Layout, out: int) -> Layout:
    """The layout of what an equation makes of a value in which no data has been met."""
    name, params = eqn.primitive.name, eqn.params
    old, new = shape_of(eqn.invars[operand].aval), shape_of(eqn.outvars[out].aval)
    if len(layout) != len(old):
        return ()
    if name == "transpose":
        return tuple(layout[i] for i in params["permutation"])
    if name == "broadcast_in_dim":
        placed = dict(zip(params["broadcast_dimensions"], layout, strict=True))
        return tuple(placed.get(i, ()) for i in range(len(new)))
    if name == "squeeze" or name.startswith("reduce_"):
        gone = params.get("dimensions", params.get("axes", ()))
        if len(old) - len(gone) == len(new):
            return tuple(parts for i, parts in enumerate(layout) if i not in gone)
    if name == "reshape":
        return _reshaped(layout, old, new)
    if name == "dot_general":
        contracted, batch = (sides[operand] for sides in params["dimension_numbers"])
        free = [i for i in range(len(old)) if i not in (*contracted, *batch)]
        first = len(batch) if operand == 0 else len(new) - len(free)
        placed = dict(enumerate(layout[i] for i in batch))
        placed |= dict(enumerate((layout[i] for i in free), first))
        return tuple(placed.get(i, ()) for i in range(len(new)))
    if len(old) == len(new):  # elementwise, or with some dimensions cut or padded
        return tuple(
            parts if a == b else _resized(parts, b)
            for parts, a, b in zip(layout, old, new, strict=True)
        )
    return tuple((Part(_UNKNOWN, size),) for size in new)


def blend(a: Layout, b: Layout) -> Layout:
    """The layout of what is made elementwise from two values of one parameter."""
    if len(a) != len(b):
        return ()
    return tuple(
        x if x == y or not y else y if not x else (Part(_UNKNOWN, math.prod(p.size for p in x)),)
        for x, y in zip(a, b, strict=True)
    )


def matrix_of(
    eqn: JaxprEqn, operand: int, layout: Layout, shape: Sequence[int], scanned: Sequence[int]
) -> Matrix | None:
    """The matrices of a parameter, from the equation in which a value made from it meets the data.

    Args:
      eqn: The equation.
      operand: Which of its operands is the value.
      layout: Of the value.
      shape: Of the parameter.
      scanned: The parameter's axes that scans run along.

    Returns:
      The matrices; None if this is no product, or the roles don't follow the axes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jaxpr = jax.make_jaxpr(lambda x, w: jnp.einsum("bhd,hdk->bk", x, w))(
      ...     jnp.ones((2, 3, 4)), jnp.ones((3, 4, 5))
      ... )
      >>> matrix_of(jaxpr.eqns[0], 1, whole((3, 4, 5)), (3, 4, 5), ())
      Matrix(inputs=(0, 1), outputs=(2,), batch=(), groups=())
    """
    if len(layout) != len(shape_of(eqn.invars[operand].aval)):
        return None
    found = _roles(eqn, operand, layout)
    if found is None:
        return None
    by_axis: dict[int, list[tuple[Part, Role]]] = {}
    for part, role in found:
        for axis in part.axes:
            by_axis.setdefault(axis, []).append((part, role))
    if _UNKNOWN[0] in by_axis:
        return None
    roles: dict[int, Role] = {}
    groups = []
    for axis, parts in by_axis.items():
        parts.sort(key=lambda pair: -pair[0].stride)
        kinds = [role for part, role in parts if part.size > 1] or [parts[0][1]]
        leading = [role for role in kinds if role == "batch"]
        rest = set(kinds[len(leading) :]) or {role for _, role in parts if role != "batch"}
        if kinds[: len(leading)] != leading or len(rest) > 1:
            return None
        roles[axis] = rest.pop() if rest else "batch"
        if leading and roles[axis] != "batch":
            count = math.prod(part.size for part, role in parts if role == "batch")
            if math.prod(part.size for part, _ in parts) != shape[axis]:
                return None
            groups.append((axis, count))
    return _completed(roles, tuple(groups), shape, scanned)


def _completed(
    roles: dict[int, Role],
    groups: tuple[tuple[int, int], ...],
    shape: Sequence[int],
    scanned: Sequence[int],
) -> Matrix | None:
    """Gives a role to the axes that the value no longer had where it met the data."""
    gone = [axis for axis in range(len(shape)) if axis not in roles and axis not in scanned]
    # Summed away by a product with another parameter (W = A B): the other side of the matrix. Else
    # one index of it was picked.
    known = set(roles.values())
    other: Role = "batch"
    if len(known & {"input", "output"}) == 1:
        other = "input" if "output" in known else "output"
    for axis in gone:
        roles[axis] = "input" if shape[axis] == 1 else other

    def of(role: Role) -> tuple[int, ...]:
        return tuple(sorted(axis for axis, one in roles.items() if one == role))

    matrix = Matrix(of("input"), of("output"), of("batch"), groups)
    return matrix if matrix.inputs and matrix.outputs else None


def _roles(eqn: JaxprEqn, operand: int, layout: Layout) -> list[tuple[Part, Role]] | None:
    """What becomes of each part of a value in a product with the data."""
    name, params = eqn.primitive.name, eqn.params
    roles: dict[int, Role]
    if name in ("dot_general", "ragged_dot_general"):
        numbers, own_groups = params.get("dimension_numbers"), ()
        if name == "ragged_dot_general":
            ragged = params["ragged_dot_dimension_numbers"]
            numbers = ragged.dot_dimension_numbers
            own_groups = ragged.rhs_group_dimensions if operand == 1 else ()
        contracted, batch = (sides[operand] for sides in numbers or ())
        roles = dict.fromkeys(range(len(layout)), "output")
        roles |= dict.fromkeys(contracted, "input") | dict.fromkeys((*batch, *own_groups), "batch")
    elif name == "conv_general_dilated" and operand == 1 and params["batch_group_count"] == 1:
        out, *summed = params["dimension_numbers"].rhs_spec
        groups, size = params["feature_group_count"], shape_of(eqn.invars[1].aval)[out]
        if groups > 1:
            apart, rest = _reshaped((layout[out],), (size,), (groups, size // groups))
            rest = rest or tuple(part._replace(size=1, stride=1) for part in layout[out][-1:])
            layout = (*layout[:out], rest, *layout[out + 1 :], apart)
            roles = {len(layout) - 1: "batch"}
        else:
            roles = {}
        roles |= {out: "output"} | dict.fromkeys(summed, "input")
    elif name in ("gather", "dynamic_slice") and operand == 0:
        batch = params["dimension_numbers"].operand_batching_dims if name == "gather" else ()
        shape, sizes = shape_of(eqn.invars[0].aval), params["slice_sizes"]
        roles = {i: "output" if sizes[i] == n else "input" for i, n in enumerate(shape)}
        roles |= dict.fromkeys(batch, "batch")
    else:
        return None
    return [(part, roles[i]) for i, parts in enumerate(layout) for part in parts]


def _resized(parts: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    """What is left of a dimension of which only some indices were taken."""
    return (Part(tuple(axis for part in parts for axis in part.axes), size),) if parts else ()


def _reshaped(layout: Layout, old: Sequence[int], new: Sequence[int]) -> Layout:
    """Hands the parts of all dimensions out anew, cutting them where a dimension ends."""
    unknown = tuple((Part(_UNKNOWN, size),) for size in new)
    sizes = [math.prod(part.size for part in parts) for parts in layout]
    fits = all(size == n or not parts for size, n, parts in zip(sizes, old, layout, strict=True))
    if not fits or 0 in old:
        return unknown
    left = [
        part
        for parts, size in zip(layout, old, strict=True)
        for part in (parts or ((Part(_BROADCAST, size),) if size > 1 else ()))
    ]
    dims = []
    for size in new:
        taken: list[Part] = []
        while left and (size > 1 or (not taken and left[0].size == 1)):
            part, *rest = left
            if part.size <= size and size % max(1, part.size) == 0:
                taken, left, size = [*taken, part], rest, size // max(1, part.size)
                if size == 1:
                    break
            elif part.size % size == 0:
                low = part.size // size
                taken.append(Part(part.axes, size, part.stride * low))
                left, size = [Part(part.axes, low, part.stride), *rest], 1
                break
            else:
                return unknown
        dims.append(taken)
    if dims:
        dims[-1] += [part for part in left if part.size == 1]
    return tuple(tuple(part for part in parts if part.axes != _BROADCAST) for parts in dims)


def taken_in(
    eqn: JaxprEqn, output_samples: tuple[int, ...]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """What a kernel takes in.

    Args:
      eqn: The product.
      output_samples: The axes of its result that tell inputs apart.

    Returns:
      The number of the operand, the axes of its features, and the others, the batch's first; none
      of these where the product isn't with a matrix.
    """
    if eqn.primitive.name == "conv_general_dilated":
        batch, feature, *positions = eqn.params["dimension_numbers"].lhs_spec
        return 0, (feature,), (batch, *positions)
    if eqn.primitive.name == "dot_general":
        contracted, (batched, _) = eqn.params["dimension_numbers"]
        left = len(shape_of(eqn.invars[0].aval)) - len(contracted[0])
        # Where the data's axes come in the output tells on which side it stands.
        side = 0 if output_samples == tuple(range(left)) else 1
        axes = tuple(contracted[side])
        rest = (i for i in range(len(shape_of(eqn.invars[side].aval))) if i not in axes)
        return side, axes, () if batched else tuple(rest)
    return 0, (), ()
