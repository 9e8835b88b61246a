"""Equations that a probe watches beside kernels' outputs: softmaxes, and what a kernel takes in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jax.extend.core import JaxprEqn, Var
from jax.extend.core import Literal as Constant

from vanishjax._jaxpr.contraction import taken_in
from vanishjax._jaxpr.reach import GRADIENT, best
from vanishjax._jaxpr.versions import called, open_jaxpr, shape_of

_BETWEEN_NAMES = """
    broadcast_in_dim convert_element_type max reshape select_n squeeze stop_gradient"""
_BETWEEN = frozenset(_BETWEEN_NAMES.split())  # casts, masks and changes of shape


class Watched(NamedTuple):
    """An equation that a probe looks at.

    Attributes:
      number: Its own.
      kind: "softmax": its result is one; "intake": one of its operands is what a kernel takes in;
        "features": that and the kernel; "tanh", "logistic": its result is one, of what several
        kernels or a part of one put out.
      axes: The axes along which the softmax adds up to 1; those of the features of the intake.
      batch: The axis of the intake that counts the batch.
      operand: Which operand the intake is.
      taps: The taps on the outputs of the kernels that feed its result; of the kernel itself.
      positions: Of a softmax of products of as many queries as keys how many these are; else 0.
      width: The number of features that these products are sums over; 0 where it isn't known.
      kernel_axes: The axes of the features in the kernel, in the order of `axes`.
      compares: Whether a softmax is taken of products of activations, as attention's, and not of
        what one kernel puts out, as a router's.
    """

    number: int
    kind: Literal["softmax", "intake", "features", "tanh", "logistic"]
    axes: tuple[int, ...]
    batch: int = 0
    operand: int = 0
    taps: tuple[int, ...] = ()
    positions: int = 0
    width: int = 0
    kernel_axes: tuple[int, ...] = ()
    compares: bool = False

    def among(self, operands: Sequence[Any], results: Sequence[Any]) -> tuple[Any, ...]:
        """What is looked at, of an equation's operands and results."""
        if self.kind == "features":
            return operands[self.operand], operands[1 - self.operand]
        return (operands[self.operand] if self.kind == "intake" else results[0],)


class Softmax(NamedTuple):
    """A softmax: the axes along which it adds up to 1, and what `Watched` tells of it."""

    axes: tuple[int, ...]
    positions: int = 0
    width: int = 0
    compares: bool = False


def find_softmaxes(jaxpr: Any) -> Iterator[tuple[Var, Softmax]]:
    """The softmaxes of one jaxpr: exp(x) over its own sum, masked or not.

    Args:
      jaxpr: A flat jaxpr; loops inside aren't looked into.

    Yields:
      The results, each with what is known of it.
    """
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    for eqn in jaxpr.eqns:
        found: Softmax | None = None
        if eqn.primitive.name == "div":
            found = _softmax(eqn, makers)
        elif (inner := open_jaxpr(called(eqn))) is not None and len(inner.outvars) == 1:
            found = dict(find_softmaxes(inner)).get(inner.outvars[0])
            if found is not None and not found.width:
                found = Softmax(found.axes, *_product(eqn.invars[0], makers))
        if found is not None:
            yield eqn.outvars[0], found


def _softmax(eqn: JaxprEqn, makers: Mapping[Var, JaxprEqn]) -> Softmax | None:
    total = _maker(eqn.invars[1], makers)
    if total is None or total.primitive.name != "reduce_sum":
        return None
    above, below = _maker(eqn.invars[0], makers), _maker(total.invars[0], makers)
    if above is None or above is not below or not above.primitive.name.startswith("exp"):
        return None
    return Softmax(tuple(total.params["axes"]), *_product(above.invars[0], makers))


def _product(atom: Any, makers: Mapping[Var, JaxprEqn]) -> tuple[int, int, bool]:
    """What `Softmax` tells beside its axes, of its argument, scaled and masked or not."""
    size = math.prod(shape_of(atom.aval))
    waiting, seen = [atom], set()
    while waiting:
        eqn = makers.get(waiting.pop())
        if eqn is None or id(eqn) in seen:
            continue
        seen.add(id(eqn))
        if eqn.primitive.name == "dot_general":
            (contracted, batched), shapes = (
                eqn.params["dimension_numbers"],
                [shape_of(v.aval) for v in eqn.invars],
            )
            taken = [{*one, *other} for one, other in zip(contracted, batched, strict=True)]
            queries, keys = (
                math.prod(n for axis, n in enumerate(shape) if axis not in used)
                for shape, used in zip(shapes, taken, strict=True)
            )
            width = math.prod(shapes[0][axis] for axis in contracted[0])
            return queries if queries == keys else 0, width, bool(batched[0])
        waiting += [
            v
            for v in eqn.invars
            if not isinstance(v, Constant) and math.prod(shape_of(v.aval)) == size
        ]
    return 0, 0, False


def _maker(atom: Any, makers: Mapping[Var, JaxprEqn]) -> JaxprEqn | None:
    """The equation that a value comes from, casts, masks and changes of shape left out."""
    while not isinstance(atom, Constant) and (eqn := makers.get(atom)) is not None:
        if eqn.primitive.name not in _BETWEEN:
            return eqn
        floating = [
            v
            for v in eqn.invars
            if not isinstance(v, Constant) and shape_of(v.aval) != () and best(v) == GRADIENT
        ]
        made = [v for v in floating if v in makers and not _is_filled(makers[v])]
        if len(made) != 1:
            return None
        atom = made[0]
    return None


def _is_filled(eqn: JaxprEqn) -> bool:
    """Whether an equation fills an array with one number."""
    return eqn.primitive.name == "broadcast_in_dim" and shape_of(eqn.invars[0].aval) == ()


def intake_of(
    eqn: JaxprEqn, output_samples: tuple[int, ...], number: int, tap: int
) -> Watched | None:
    """What a kernel takes in, if that has two positions or more beside the batch.

    Args:
      eqn: In which it meets the data.
      output_samples: Axes of its output that tell inputs apart.
      number: Of the watch.
      tap: On the kernel's output.
    """
    side, axes, free = taken_in(eqn, output_samples)
    if not free or _count(eqn, side, free[1:]) < 2:
        return None
    return Watched(number, "intake", axes, free[0], side, (tap,))


def features_of(
    eqn: JaxprEqn, output_samples: tuple[int, ...], number: int, tap: int
) -> Watched | None:
    """What a kernel takes in, if that has two features or more; see `intake_of`."""
    side, axes, free = taken_in(eqn, output_samples)
    if not free or _count(eqn, side, axes) < 2:
        return None
    if eqn.primitive.name == "dot_general":
        kernel_axes = tuple(eqn.params["dimension_numbers"][0][1 - side])
    elif eqn.params["feature_group_count"] == 1:
        kernel_axes = (eqn.params["dimension_numbers"].rhs_spec[1],)
    else:
        return None  # each group of a kernel's units has features of its own
    return Watched(number, "features", axes, free[0], side, (tap,), kernel_axes=kernel_axes)


def _count(eqn: JaxprEqn, side: int, axes: tuple[int, ...]) -> int:
    shape = shape_of(eqn.invars[side].aval)
    return math.prod(shape[axis] for axis in axes)
