"""Where infinity or NaN comes from: back from a result to the equation that made it of numbers."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from vanishjax import numerics
from vanishjax._jaxpr.examine import Path, Record, examine, inner_jaxprs
from vanishjax._jaxpr.versions import Place, is_jax, open_jaxpr, places
from vanishjax._jaxpr.walk import INFINITE, NAN, Scope, Walk
from vanishjax.compilation import jit_once

# What only moves or scales by -1 what goes in: it holds the same.
_MOVES = frozenset(
    {"broadcast_in_dim", "copy", "neg", "reshape", "rev", "squeeze", "stop_gradient", "transpose"}
)
_SCALING = frozenset({"conv_general_dilated", "div", "dot_general", "mul", "pow"})


class Span(NamedTuple):
    """The finite numbers that an operand holds: the least, the largest, and how many are 0."""

    least: float
    largest: float
    zeros: int


class Step(NamedTuple):
    """An equation of a program that was run.

    Attributes:
      equation: The equation.
      calls: The equations around it, from the outside in.
      spans: Of its operands; None of those that are no numbers.
    """

    equation: JaxprEqn
    calls: tuple[JaxprEqn, ...]
    spans: tuple[Span | None, ...] = ()


class Origin(NamedTuple):
    """The equation that made infinity or NaN.

    Attributes:
      step: The equation.
      makes_nan: Whether NaN came out of it.
      from_infinity: Whether infinity went in: NaN was made of that.
      of_constant: Whether a constant that isn't finite went in.
      is_given: Whether the function of JAX's that it stands in is infinite there by definition.
      reader: The equation that made NaN of the infinity that came out.
    """

    step: Step
    makes_nan: bool
    from_infinity: bool = False
    of_constant: bool = False
    is_given: bool = False
    reader: Step | None = None


def find_origin(closed: ClosedJaxpr, arguments: Sequence[Any]) -> Origin | None:
    """Finds the first equation that makes infinity or NaN which is in a result still.

    The program is evaluated twice, compiled, its loops as loops: for what every array holds, and
    for the numbers that went into the equation that was found.

    Args:
      closed: The program.
      arguments: Its arguments, finite.

    Returns:
      The origin; None where all results are finite, or it can't be told.
    """
    walk = Walk(Scope(closed.jaxpr, run_codes(closed, arguments), {}))
    # A constant of -inf that is chosen or added is a mask; one that is multiplied by is a fault.
    scaled = [one for one in walk.made_of_constants if _name_of(one) in _SCALING]
    given = [one for one in walk.made_of_constants if _given_by(one)]
    steps = walk.made or scaled or given or walk.made_of_infinity or walk.made_of_constants
    if not steps:
        return None
    scope, number = min(steps, key=_order)
    step = Step(scope.jaxpr.eqns[number], scope.calls)
    reader = min(walk.made_of_infinity, key=_order) if walk.made and walk.made_of_infinity else None
    return Origin(
        step._replace(spans=spans_of(closed, arguments, (*scope.path, number), scope.turns)),
        scope.result_code(number) == NAN,
        from_infinity=steps is walk.made_of_infinity,
        of_constant=steps is scaled or steps is walk.made_of_constants,
        is_given=steps is given,
        reader=None if reader is None else Step(reader[0].jaxpr.eqns[reader[1]], reader[0].calls),
    )


def _name_of(step: tuple[Scope, int]) -> str:
    return str(step[0].jaxpr.eqns[step[1]].primitive.name)


def _order(step: tuple[Scope, int]) -> tuple[int, ...]:
    return (*step[0].order, step[1])


def _given_by(step: tuple[Scope, int]) -> bool:
    """Whether a step stands in a function of JAX's that gives infinity of numbers, by a constant.

    Not in one that a constant of the user's was handed to: that's a mask.
    """
    scope = step[0]
    while scope.parent is not None:
        parent, number = scope.parent, scope.number
        if not any(parent.operand_codes(number)) and parent.result_code(number) == INFINITE:
            return _is_of_jax(parent.jaxpr.eqns[number])
        scope = parent
    return False


def spans_of(
    closed: ClosedJaxpr, arguments: Sequence[Any], path: Path, turns: tuple[int, ...] | None = None
) -> tuple[Span | None, ...]:
    """The numbers that go into one equation.

    Args:
      closed: The program.
      arguments: Its arguments.
      path: Where the equation stands.
      turns: The iterations of the scans around it; those of all together if None.
    """

    def look(here: Path, eqn: JaxprEqn | None, operands: Any, results: Any) -> Any:
        codes = _codes(here, eqn, operands, results)
        return (*codes, [_span(x) for x in operands]) if here == path else codes

    def pick(record: Record) -> Any:
        jaxpr, rest = closed.jaxpr, list(path)
        while len(rest) > 1:
            number = rest.pop(0)
            inner = inner_jaxprs(jaxpr.eqns[number])
            branch = rest.pop(0) if jaxpr.eqns[number].primitive.name == "cond" else 0
            record, jaxpr = record.inner[number][branch], open_jaxpr(inner[branch])
        return record.equations[rest[0]][-1]

    return tuple(_joined(span, turns) for span in _run(closed, arguments, look, pick))


def steps_of(jaxpr: Any, calls: tuple[JaxprEqn, ...] = (), path: Path = ()) -> Iterator[Any]:
    """All equations that stand for a computation, with their paths, calls written out."""
    for number, eqn in enumerate(jaxpr.eqns):
        inner = inner_jaxprs(eqn)
        branches = eqn.primitive.name == "cond"
        if not inner or eqn.primitive.name.startswith("custom_"):
            yield Step(eqn, calls), (*path, number)
        for branch, one in enumerate(inner):
            place = (*path, number, branch) if branches else (*path, number)
            yield from steps_of(open_jaxpr(one), (*calls, eqn), place)


def user_place(step: Step) -> Place | None:
    """The line of the user's that made an equation; a library's where no line is the user's."""
    lines = [
        place
        for eqn in (step.equation, *reversed(step.calls))
        for place in places(eqn)
        if not is_jax(place)
    ]
    return next((one for one in lines if not one.file.startswith(_libraries())), None) or next(
        iter(lines), None
    )


def place_of(eqn: JaxprEqn) -> Place | None:
    """The same of an equation of a flattened program."""
    return user_place(Step(eqn, ()))


def library_function(step: Step) -> str | None:
    """The name of the function of JAX's that the user called and that the equation stands in."""
    for eqn in reversed(step.calls):
        if any(not is_jax(place) for place in places(eqn)):
            name = eqn.params.get("name")
            return name.strip("_") if _is_of_jax(eqn) and isinstance(name, str) else None
    return None


def _is_of_jax(call: JaxprEqn) -> bool:
    """Whether a call is of a function of JAX's."""
    file = getattr(open_jaxpr(inner_jaxprs(call)[0]).debug_info, "func_filename", None)
    return file is not None and is_jax(Place(file, 0, 0, ""))


def custom_function(step: Step) -> str | None:
    """The name of the function of the user's with a derivative of its own that a step calls."""
    if not step.equation.primitive.name.startswith("custom_"):
        return None
    inner = open_jaxpr(inner_jaxprs(step.equation)[0])
    file = getattr(inner.debug_info, "func_filename", None)
    is_users = file is not None and not is_jax(Place(file, 0, 0, ""))
    return str(inner.debug_info.func_name) if is_users else None


def common_lines(a: Step, b: Step) -> int:
    """How many lines of Python two equations have in common."""
    return len(_lines(a) & _lines(b))


def _lines(step: Step) -> frozenset[Place]:
    return frozenset(place for eqn in (step.equation, *step.calls) for place in places(eqn))


@functools.cache
def _libraries() -> tuple[str, ...]:
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return (*filter(None, installed), str(File(__file__).parents[1]))


# What is looked at.


def _run(
    closed: ClosedJaxpr, arguments: Sequence[Any], look: Any, pick: Callable[[Record], Any]
) -> Any:
    """What `pick` takes of the record of a run; the rest isn't computed."""

    def evaluate(arguments: list[Any]) -> Any:
        return pick(examine(closed.jaxpr, closed.consts, arguments, look, _any_nonfinite)[1])

    return jax.device_get(jit_once(evaluate)(list(arguments)))


def run_codes(closed: ClosedJaxpr, arguments: Sequence[Any]) -> Record:
    """What every array of a program holds: see `Scope`."""
    return _run(closed, arguments, _codes, lambda record: record)


def _codes(_: Path, eqn: JaxprEqn | None, operands: Sequence[Any], results: Sequence[Any]) -> Any:
    """Of a jaxpr's arguments, or of an equation's results and, of a choice, of what is taken."""
    if eqn is None:
        return [_code(x) for x in operands]
    if eqn.primitive.name in _MOVES:
        return [], []
    taken: list[Any] = []
    if eqn.primitive.name == "select_n" and _is_real(results[0]):
        which, *cases = operands
        index = jax.lax.convert_element_type(which, jnp.int32)
        taken = [_code(x, jax.lax.eq(index, jnp.int32(i))) for i, x in enumerate(cases)]
    return [_code(x) for x in results], taken


def _is_real(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _code(x: Any, taken: Any = None) -> Any:
    """The worst that an array holds; nothing, of what can hold no such thing.

    Written in primitives: what is jitted costs seconds to trace where it is called so often.
    """
    if not _is_real(x):
        return ()
    nan, nonfinite = jax.lax.ne(x, x), jax.lax.bitwise_not(jax.lax.is_finite(jnp.real(x)))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        nonfinite |= ~jax.lax.is_finite(jnp.imag(x))
    each = [jax.lax.convert_element_type(one, jnp.int32) for one in (nan, nonfinite)]
    code = jax.lax.add(*each)
    if taken is not None:
        code = jnp.where(taken, code, 0)
    return jax.lax.reduce_max(code, axes=tuple(range(code.ndim)))


def _any_nonfinite(record: Record) -> jax.Array:
    codes = [*record.arguments]
    for results, *_ in record.equations:
        codes += results
    found = [jnp.any(code != 0) for code in codes if not isinstance(code, tuple)]
    found += [_any_nonfinite(one) for inner in record.inner for one in inner]
    return jnp.any(jnp.stack(found)) if found else jnp.zeros((), bool)


def _span(x: Any) -> Any:
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.number) or x.size == 0:
        return ()
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.abs(x)
    x = numerics.upcast(x) if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    most = float(jnp.finfo(x.dtype).max)
    # Largest numbers all, so that those of several devices join.
    return (
        jnp.max(jnp.where(finite, -x, -most)),
        jnp.max(jnp.where(finite, x, -most)),
        jnp.sum(x == 0),
    )


def _joined(span: Any, turns: tuple[int, ...] | None) -> Span | None:
    if not span:
        return None
    negated, largest, zeros = (np.asarray(x)[turns or ()] for x in span)
    found = Span(-float(np.max(negated)), float(np.max(largest)), int(np.sum(zeros)))
    return found if found.least <= found.largest else None
