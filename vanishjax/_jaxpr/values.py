"""The abstract values that a walk through a jaxpr carries, and pure functions of them.

`vanishjax._jaxpr.uses` walks; here is what becomes of the values: how several make one, which axes
of a parameter the dimensions of a value run along, and how a loop's first iterations tell the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vanishjax._jaxpr.contraction import Layout, Matrix, blend, whole

# What a dimension of a value runs along, when it is no axis of the parameter.
WHOLE = -1  # nothing: the whole parameter stands at each of its indices
MIXED = -2  # unknown

_ELEMENTWISE_NAMES = """
    abs add add_any and cbrt ceil clamp convert_element_type copy copy_p cos cosh div erf exp exp2
    expm1 floor integer_pow log log1p logistic max min mul neg nextafter not or pow real
    reduce_precision rem reshard round rsqrt select_n sharding_constraint sign sin sinh sqrt square
    stop_gradient sub tan tanh xor"""
_LINEAR_NAMES = """
    add add_any broadcast_in_dim convert_element_type copy copy_p neg psum psum_invariant
    reduce_precision reduce_sum reshape squeeze stop_gradient sub transpose"""
ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
_LINEAR = frozenset(_LINEAR_NAMES.split())


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One equation in which a parameter meets the data.

    Attributes:
      leaf: Index of the parameter among the flattened parameters.
      position: Of the equation in the walk; a loop's iterations share it.
      equation: The equation.
      axes: The parameter's axes that scans run along, outermost scan first.
      depths: Parameters met on the longest path from the data, this one included: an array over
        `axes`, infinite where that index doesn't take part.
      part: Identifies the slice of the parameter that was used; None if it's no slice.
      opaque: The equation can't be looked into and took other parameters too.
      loops: Pairs (axis, scan) still to be unrolled, outermost first; () once the walk is over.
      matrix: How the parameter holds its matrices, if the equation is a product.
      operand: Which of the equation's operands is made from the parameter; -1 if several are.
      dims: For each dimension of that operand the parameter's axis that it runs along, or a code.
    """

    leaf: int
    position: int
    equation: Any
    axes: tuple[int, ...]
    depths: np.ndarray[Any, np.dtype[np.float64]]
    part: tuple[int, ...] | None = None
    opaque: bool = False
    loops: tuple[tuple[int, int], ...] = ()
    matrix: Matrix | None = None
    operand: int = -1
    dims: tuple[int, ...] = ()


class Piece(NamedTuple):
    """A parameter inside a value that no data has met yet."""

    dims: tuple[int, ...]  # for each dimension of the value the parameter's axis, or a code above
    loops: tuple[tuple[int, int], ...] = ()  # (axis, scan) that index it, outermost first
    part: tuple[int, ...] | None = None
    layout: Layout = ()  # of which parts of axes; () if unknown


class Value(NamedTuple):
    """What is known of a variable."""

    data: bool
    depth: int
    pieces: dict[int, Piece]
    # Uses that count only if something nonlinear happens to the sum: else it's a regularizer.
    pending: frozenset[Use] = frozenset()


NOTHING = Value(data=False, depth=0, pieces={})
DATA = Value(data=True, depth=0, pieces={})


def whole_parameter(leaf: int, shape: Sequence[int]) -> Value:
    """The value of a parameter as it enters the loss."""
    piece = Piece(tuple(range(len(shape))), layout=whole(shape))
    return Value(data=False, depth=0, pieces={leaf: piece})


def join(values: Sequence[Value]) -> Value:
    """One value made from several."""
    values = [value for value in values if value is not NOTHING]
    if len(values) < 2:
        return values[0] if values else NOTHING
    pieces: dict[int, Piece] = {}
    for value in values:
        shared = pieces.keys() & value.pieces.keys()
        merged = {leaf: _blend(pieces[leaf], value.pieces[leaf]) for leaf in shared}
        pieces = {**pieces, **value.pieces, **merged}
    return Value(
        data=any(value.data for value in values),
        depth=max((value.depth for value in values if value.data), default=0),
        pieces=pieces,
        pending=frozenset().union(*(value.pending for value in values)),
    )


def _blend(a: Piece, b: Piece) -> Piece:
    if a == b:
        return a
    if len(a.dims) != len(b.dims):
        dims = (MIXED,) * max(len(a.dims), len(b.dims))
    else:
        # W / |W|: along an axis that was summed away, W's own dimension tells where it runs.
        dims = tuple(
            x if x == y or y == WHOLE else y if x == WHOLE else MIXED
            for x, y in zip(a.dims, b.dims, strict=True)
        )
    part = a.part if a.part == b.part else None
    return Piece(dims, max(a.loops, b.loops, key=len), part, blend(a.layout, b.layout))


def keeps_sums(primitive: str, operands: Sequence[Value]) -> bool:
    """Whether a regularizer in one operand is still one in the result."""
    if primitive in _LINEAR:
        return True
    others = operands[1:] if primitive == "div" else [v for v in operands if not v.pending]
    scales = primitive == "div" or (primitive == "mul" and len(others) == 1)
    return scales and not any(v.pieces or v.depth or v.pending for v in others)


def output_dims(
    primitive: str,
    params: Mapping[str, Any],
    operand: int,
    dims: tuple[int, ...],
    old: Sequence[int],
    new: Sequence[int],
) -> tuple[int, ...]:
    """Which axis of a parameter each output dimension runs along, given those of one operand."""
    if primitive in ELEMENTWISE:
        return dims if len(old) == len(new) else (WHOLE,) * len(new)
    if primitive == "transpose":
        return tuple(dims[i] for i in params["permutation"])
    if primitive == "broadcast_in_dim":
        placed = dict(zip(params["broadcast_dimensions"], range(len(old)), strict=True))
        return tuple(
            dims[placed[i]] if i in placed and old[placed[i]] == size else WHOLE
            for i, size in enumerate(new)
        )
    if primitive == "squeeze" or primitive.startswith("reduce_"):
        gone = params.get("dimensions", params.get("axes", range(len(old))))
        return tuple(dim for i, dim in enumerate(dims) if i not in gone)
    if primitive == "dot_general":
        batch = params["dimension_numbers"][1][operand]
        return tuple(dims[i] for i in batch) + (MIXED,) * (len(new) - len(batch))
    if primitive == "reshape":
        return _reshaped(dims, old, new)
    if primitive in {"slice", "dynamic_slice", "split", "concatenate", "pad"}:
        return tuple(d if a == b else MIXED for d, a, b in zip(dims, old, new, strict=True))
    return (MIXED,) * len(new)


def picks_one(dims: tuple[int, ...], old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether a slice takes a single index of an axis."""
    if len(old) != len(new):  # a gather
        return True
    return any(b == 1 < a and d != WHOLE for a, b, d in zip(old, new, dims, strict=True))


def _reshaped(dims: tuple[int, ...], old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    middle = [WHOLE if size == 1 else MIXED for size in new[head : len(new) - tail]]
    return (*dims[:head], *middle, *dims[len(old) - tail :])


def unroll(iterations: list[list[Use]], loop: int, length: int, *, reverse: bool) -> list[Use]:
    """Uses of a whole scan from those of its first iterations; the rest grows like the last two."""
    uses = []
    indexed: dict[Any, list[tuple[int, Use]]] = {}
    for t, iteration in enumerate(iterations):
        repeats: collections.Counter[Any] = collections.Counter()  # by a loop inside
        for use in iteration:
            if use.loops and use.loops[-1][1] == loop:
                key = use.leaf, use.position, use.axes, use.loops
                indexed.setdefault((key, repeats[key]), []).append((t, use))
                repeats[key] += 1
            else:
                uses.append(use)
    walked = len(iterations)
    for seen in indexed.values():
        _, use = seen[-1]
        depths = np.full((length, *use.depths.shape), np.inf)
        for t, one in seen:
            depths[t] = one.depths
        if walked < length:
            last, before = depths[walked - 1], depths[walked - 2]
            known = np.isfinite(last) & np.isfinite(before)
            step = np.subtract(last, before, where=known, out=np.zeros_like(last))
            times = np.arange(1, length - walked + 1).reshape(-1, *[1] * last.ndim)
            depths[walked:] = last + times * step
        axis = use.loops[-1][0]
        uses.append(
            dataclasses.replace(
                use,
                axes=(axis, *use.axes),
                depths=depths[::-1] if reverse else depths,
                loops=use.loops[:-1],
            )
        )
    return uses


def growths(histories: list[list[Value]]) -> list[int]:
    """By how much the last iteration of a loop deepened each carried value."""
    if len(histories) < 2:
        return [0] * len(histories[-1])
    before, after = histories[-2:]
    return [b.depth - a.depth for a, b in zip(before, after, strict=True)]


def is_steady(histories: list[list[Value]], fixed: list[int]) -> bool:
    """Whether further iterations of a loop only repeat the last one, deeper.

    They do once two iterations deepened everything alike, and nothing that grows slower (such as
    the `fixed` depths of data from outside) lies deeper than something that grows faster.
    """
    if len(histories) < 3:
        return False
    kinds = [[(v.data, v.pieces.keys()) for v in carry] for carry in histories[-3:]]
    growth = growths(histories)
    if kinds[0] != kinds[1] or kinds[1] != kinds[2] or growth != growths(histories[:-1]):
        return False
    fronts = [(g, v.depth) for g, v in zip(growth, histories[-3], strict=True) if v.data]
    fronts = sorted(fronts + [(0, depth) for depth in fixed])
    return all(a[0] == b[0] or a[1] <= b[1] for a, b in itertools.pairwise(fronts))
