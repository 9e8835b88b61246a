"""Scalar functions inside a jaxpr: the activations that a network applies elementwise."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from vanishjax._jaxpr.reach import GRADIENT, Levels, best
from vanishjax._jaxpr.values import ELEMENTWISE
from vanishjax._jaxpr.versions import bind, called, open_jaxpr, shape_of
from vanishjax.compilation import jit_once

_MORE_ELEMENTWISE = """
    acos acosh asin asinh atan atan2 atanh eq erf_inv erfc ge gt is_finite le lgamma lt ne"""
_SCALAR = ELEMENTWISE | frozenset(_MORE_ELEMENTWISE.split())
_AFFINE_NAMES = "add add_any convert_element_type copy mul neg reduce_precision sub"
_AFFINE = frozenset(_AFFINE_NAMES.split())
_FROM_CONSTANTS = frozenset({"broadcast_in_dim", "convert_element_type"})
# What a mean or a sum takes of its argument, in a normalization or in a loss, to measure its size.
_MEASURES = frozenset({"abs", "integer_pow", "square"})
_REDUCTION = "reduce_"

# Where slopes are looked at to tell what kind of function it is: dense around zero, far enough out
# that whatever saturates has done so.
_REACH = 40.0
_POINTS = 1024
_FLAT = 0.02  # a slope that is smaller, relative to the largest, counts as none (softsign: .002)
_ALIKE = 0.02  # slopes that differ by less than this count as one
# Its whole rise over its steepest slope: tanh 2, sigmoid 4, a guarded logarithm .04, 1 / x .01.
_LEAST_WIDTH = 0.05
# Share of the rise that lies far out: softsign .02, a guarded logarithm .07, a root .2.
_UNENDED = 0.05
# How often a slope changes its sign on either side of 0, for the function to be a wave.
_TURNS = 4
# Functions whose shape is remembered: there are few activations, and networks are many.
_KEPT = 256


class Shape(NamedTuple):
    """What the slopes of a function tell.

    Attributes:
      steepest: The largest slope it has anywhere.
      bounded: Whether it is flat on both sides.
      kind: "rectifier" if f(x) - f(-x) is proportional to x (ReLU, leaky ReLU, GELU, SiLU), which
        makes mirrored units linear; "unit_slope" if it is odd, but for a constant, and its slope
        at 0 is 1 (tanh).
      period: Of a function that rises and falls again and again (a sine); else infinity.
    """

    steepest: float
    bounded: bool
    kind: str
    period: float


@dataclasses.dataclass(frozen=True)
class Activation:
    """A nonlinear function of one variable that is applied elementwise.

    Attributes:
      before: Its argument.
      after: Its result.
      equations: What lies between, in order.
      steepest: See `Shape`.
      bounded: See `Shape`.
      kind: See `Shape`.
      period: See `Shape`.
    """

    before: Var
    after: Var
    equations: tuple[JaxprEqn, ...]
    steepest: float = math.inf
    bounded: bool = False
    kind: str = "other"
    period: float = math.inf

    def __call__(self, x: Any) -> Any:
        """Its value at an array of the shape of `before`."""
        environment: dict[Var, Any] = {self.before: x}
        for eqn in self.equations:
            operands = [a.val if isinstance(a, Literal) else environment[a] for a in eqn.invars]
            environment.update(zip(eqn.outvars, bind(eqn, operands), strict=True))
        return environment[self.after]

    @property
    def dtype(self) -> Any:
        """The type of its argument."""
        return getattr(self.before.aval, "dtype", np.float32)

    def at(self, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Its values at numbers, whatever the shape that it's applied to."""
        shape = shape_of(self.before.aval)
        size = max(1, math.prod(shape))
        padded = np.resize(points, -(-points.size // size) * size)
        with jax.ensure_compile_time_eval():
            parts = [
                np.asarray(self(jnp.asarray(part, self.dtype)), np.float64).ravel()
                for part in padded.reshape(-1, *shape)
            ]
        return np.concatenate(parts)[: points.size]

    @functools.cached_property
    def text(self) -> Hashable:
        """Its equations, the same for the same function of arrays of the same shape."""
        names: dict[Any, int] = {self.before: 0}

        def name(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return str(atom.val)
            return names.setdefault(atom, len(names))

        return tuple(
            (
                eqn.primitive.name,
                tuple(map(name, eqn.invars)),
                tuple(map(name, eqn.outvars)),
                str({k: v for k, v in eqn.params.items() if not callable(v)}),
            )
            for eqn in self.equations
        )

    def slope(self, x: Any) -> Any:
        """Its derivative at an array of the shape of `before`."""
        # Backwards, as the user's own derivative (`custom_vjp`) may know no other way.
        value, pull_back = jax.vjp(self, x)
        return pull_back(jnp.ones_like(value))[0]


def find_activations(
    jaxpr: Any,
    outputs: Sequence[Levels],
    readers: Mapping[Var, Sequence[int]],
    wanted: Collection[Var],
    known: dict[Any, Shape],
) -> dict[Var, Activation]:
    """The activations of one jaxpr, by the variable that they're applied to.

    Args:
      jaxpr: A flat jaxpr; loops inside aren't looked into.
      outputs: For each equation how its outputs reach the loss.
      readers: For each variable the equations that carry gradient back to it; -1: the outside.
      wanted: The variables whose functions are looked for.
      known: Slopes of functions seen so far, by their text; added to.

    Returns:
      For each real variable the last nonlinear function of it alone, real too, that the loss
      depends on. The square or the absolute value that is only added up afterwards is none: it
      belongs to a normalization (Flax's take the mean of x^2) or to the loss.
    """
    # Every variable is a function of an origin, at worst of itself; None: of nothing at all.
    origins: dict[Var, tuple[Var | None, bool]] = {}
    steps: dict[Var, list[JaxprEqn]] = {}  # by origin
    ends: dict[Var, Var] = {}
    constant: list[JaxprEqn] = []
    # Those that hand gradient back to their origin: the copy behind a `stop_gradient`, as a
    # `vmap` of a `cond` makes of what isn't chosen, is of no slope and no layer's activation.
    fed: set[Var] = set()

    def origin(atom: Any) -> tuple[Any, bool]:
        if isinstance(atom, Literal):
            return (None, False) if np.ndim(atom.val) == 0 else (atom, False)
        return origins.get(atom, (atom, False))

    for index, (eqn, levels) in enumerate(zip(jaxpr.eqns, outputs, strict=True)):
        if not any(levels) or len(eqn.outvars) != 1:
            continue
        (out,), name = eqn.outvars, eqn.primitive.name
        found = [origin(atom) for atom in eqn.invars]
        variables = {id(one): one for one, _ in found if one is not None}
        if not variables and name in _FROM_CONSTANTS | _SCALAR:
            origins[out] = None, False
            constant.append(eqn)
        elif len(variables) == 1 and is_scalar(eqn):
            (source,) = variables.values()
            if not isinstance(source, Var) or shape_of(source.aval) != shape_of(out.aval):
                continue
            if _is_complex(source) or _is_complex(out):
                continue
            met = sum(one is not None for one, _ in found)
            bent = any(bend for _, bend in found) or not _is_affine(name, found, met)
            origins[out] = source, bent
            steps.setdefault(source, []).append(eqn)
            own = [atom for atom, (one, _) in zip(eqn.invars, found, strict=True) if one is source]
            if any(index in readers.get(atom, ()) for atom in own if atom in fed or atom is source):
                fed.add(out)
            itself = name in _MEASURES or (name == "mul" and eqn.invars[0] is eqn.invars[1])
            measures = itself and _is_only_reduced(jaxpr, out, readers)
            if bent and levels[0] == GRADIENT and out in fed and not measures:
                ends[source] = out
    return {
        before: _measure(Activation(before, after, _needed(steps[before], constant, after)), known)
        for before, after in ends.items()
        if before in wanted and best(before) == GRADIENT
    }


def _is_only_reduced(jaxpr: Any, variable: Var, readers: Mapping[Var, Sequence[int]]) -> bool:
    """Whether all that becomes of a variable is its sum or its largest entry, perhaps scaled."""
    return all(
        index >= 0
        and (
            jaxpr.eqns[index].primitive.name.startswith(_REDUCTION)
            or (
                jaxpr.eqns[index].primitive.name in _AFFINE | {"div"}
                and _is_only_reduced(jaxpr, jaxpr.eqns[index].outvars[0], readers)
            )
        )
        for index in readers.get(variable, (-1,))
    )


def _is_complex(variable: Var) -> bool:
    """Whether a variable's numbers have no one slope."""
    return jnp.issubdtype(getattr(variable.aval, "dtype", np.float32), jnp.complexfloating)


def is_scalar(eqn: JaxprEqn) -> bool:
    """Whether an equation works elementwise, for all that is inside it."""
    inner = open_jaxpr(called(eqn))
    if inner is None:
        return eqn.primitive.name in _SCALAR
    return all(
        is_scalar(one)
        or (one.primitive.name == "broadcast_in_dim" and shape_of(one.invars[0].aval) == ())
        for one in inner.eqns
    )


def _is_affine(name: str, found: Sequence[tuple[Any, bool]], met: int) -> bool:
    if name == "div":
        return met == 1 and found[0][0] is not None
    return name in _AFFINE and (met == 1 or name != "mul")


def _needed(steps: list[JaxprEqn], constant: list[JaxprEqn], after: Var) -> tuple[JaxprEqn, ...]:
    """The equations that `after` depends on."""
    wanted, kept = {after}, []
    for eqn in reversed([*constant, *steps]):
        if eqn.outvars[0] in wanted:
            kept.append(eqn)
            wanted.update(atom for atom in eqn.invars if isinstance(atom, Var))
    return tuple(reversed(kept))


def _measure(activation: Activation, known: dict[Any, Shape]) -> Activation:
    """Tells the steepest slope, and whether both sides are flat."""
    text = activation.text
    if text not in known:
        slope = _Slope(jax.make_jaxpr(activation.slope)(activation.before.aval))
        known[text] = _slopes(slope) if slope.program.consts else _known_slopes(slope)
    return dataclasses.replace(activation, **known[text]._asdict())


class _Slope:
    """A derivative's program; without constants, two of the same text are the same."""

    def __init__(self, program: ClosedJaxpr):
        self.program = program
        self._text = str(program)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Slope) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def _slopes(slope: _Slope) -> Shape:
    aval = slope.program.in_avals[0]
    size = max(1, math.prod(aval.shape))
    count = max(size, _POINTS)
    reach = np.arcsinh(_REACH)
    points = np.sinh(np.linspace(-reach, reach, math.ceil(count / size) * size))
    # At once: each of a dozen operations takes as long to compile.
    compiled = jit_once(jaxpr_as_fun(slope.program))
    with jax.ensure_compile_time_eval():
        slopes = np.concatenate(
            [
                np.asarray(compiled(jnp.asarray(part, aval.dtype))[0], np.float64).ravel()
                for part in points.reshape(-1, *aval.shape)
            ]
        )
    kind, period = _kind(slopes), _period(points, slopes)
    slopes = np.abs(slopes)
    steepest = float(np.max(slopes, initial=0.0, where=np.isfinite(slopes)))
    known = np.where(np.isfinite(slopes), slopes, np.inf)
    far = np.abs(points) > _REACH / 2
    # A logarithm, a root or an inverse is steep at a point alone, and flat beside that.
    change = known * np.gradient(points)
    whole = np.sum(change)
    is_wide = whole >= _LEAST_WIDTH * steepest
    has_ended = np.sum(change[far]) <= _UNENDED * whole
    bounded = bool(np.all(known[far] <= _FLAT * steepest) and is_wide and has_ended)
    return Shape(steepest, bounded, kind, math.inf if bounded else period)


_known_slopes = functools.lru_cache(maxsize=_KEPT)(_slopes)


def _kind(slopes: np.ndarray[Any, Any]) -> str:
    """The kind of a function by its slopes at points that lie evenly around 0."""
    if not np.isfinite(slopes).all():
        return "other"
    # The slope of f(x) - f(-x). A linear function's is constant too, but is no activation.
    sums = slopes + slopes[::-1]
    size = float(np.max(np.abs(slopes)))
    if np.ptp(sums) < _ALIKE * size and np.ptp(slopes) > _ALIKE * size:
        return "rectifier"
    center = float(sums[len(sums) // 2]) / 2
    odd = float(np.max(np.abs(slopes - slopes[::-1]))) < _ALIKE * size
    return "unit_slope" if odd and abs(center - 1) < _ALIKE else "other"


def _period(points: np.ndarray[Any, Any], slopes: np.ndarray[Any, Any]) -> float:
    """Twice the distance between turning points near 0, where there are many on both sides."""
    turned = np.flatnonzero(slopes[1:] * slopes[:-1] < 0)
    turns = (points[turned] + points[turned + 1]) / 2
    before, after = turns[turns < 0][-_TURNS:], turns[turns >= 0][:_TURNS]
    if len(before) < _TURNS or len(after) < _TURNS:
        return math.inf
    return 2 * float(after[-1] - before[0]) / (2 * _TURNS - 1)
