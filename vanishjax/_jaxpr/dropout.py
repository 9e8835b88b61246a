"""Takes the noise of dropout out of a program: every mask counts as its mean.

Noise that is drawn anew for each input and position tells them apart, though nothing that the
network makes of them does: a network whose inputs or positions have become all alike looks as if
they hadn't.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.program import Evaluator, Program, evaluated
from vanishjax._jaxpr.versions import dtype_of, open_jaxpr, scan_split, shape_of

_SOURCES = frozenset({"random_bits", "rng_bit_generator", "threefry2x32"})
_MOVES = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "stop_gradient"}
)
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
# Whether the lesser numbers are the ones that are chosen.
_CHOOSES_LESS = {"lt": True, "le": True, "gt": False, "ge": False}


class _Seen(NamedTuple):
    """What is known of a variable.

    Attributes:
      data: It depends on the parameters or on the batch.
      noise: It depends on drawn numbers.
      mask: It is noise of two values, one of them 0 or False.
      constant: The number that all its entries are.
      interval: It is drawn evenly from there.
      chance: A mask's mean, if that is known.
    """

    data: bool = False
    noise: bool = False
    mask: bool = False
    constant: float | None = None
    interval: tuple[float, float] | None = None
    chance: float | None = None


class _Mask(NamedTuple):
    """A mask in an equation.

    Attributes:
      operand: Which operand is masked.
      by: Which is the mask.
      kept: Whether the operand is what a mask of True takes; None where it is multiplied.
      chance: The mask's mean, if it is known.
    """

    operand: int
    by: int
    kept: bool | None
    chance: float | None


def without_dropout(program: Program) -> Program:
    """The same program with dropout's masks replaced by their means.

    A mask depends on random numbers alone, and chooses between data and 0 or multiplies it: units,
    attention's weights, whole branches. Other noise stays, as that of a variational autoencoder.

    Args:
      program: Flattened.

    Returns:
      The program, flattened; itself where it has no such masks.
    """
    jaxpr = program.closed.jaxpr
    masks: dict[int, _Mask] = {}
    _walk(jaxpr, [_Seen(data=True)] * len(jaxpr.invars), masks)
    return evaluated(program, _Averaging(masks)) if masks else program


class _Averaging(Evaluator):
    def __init__(self, masks: Mapping[int, _Mask]) -> None:
        self._masks = masks

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        mask = self._masks.get(id(eqn))
        if mask is None:
            return super().apply(eqn, operands)
        # In primitives: what is jitted would be a call again.
        x, aval = operands[mask.operand], eqn.outvars[0].aval
        share: Any = mask.chance
        if share is None:
            by = jax.lax.convert_element_type(operands[mask.by], jnp.float32)
            share = jax.lax.reduce_sum(by, tuple(range(by.ndim))) / max(1, by.size)
        share = 1 - share if mask.kept is False else share
        if x.shape != shape_of(aval):
            x = jax.lax.broadcast_in_dim(x, shape_of(aval), tuple(range(x.ndim)))
        return [jax.lax.mul(x, jax.lax.full_like(x, share))]


def _walk(jaxpr: Any, inputs: Sequence[_Seen], masks: dict[int, _Mask]) -> list[_Seen]:
    """Notes the masks of one jaxpr, and tells what is known of its outputs."""
    seen: dict[Var, _Seen] = dict(zip(jaxpr.invars, inputs, strict=True))

    def known(atom: Any) -> _Seen:
        if isinstance(atom, Literal):
            return _Seen(constant=float(atom.val)) if _is_number(atom.val) else _Seen()
        return seen.get(atom, _Seen())

    for eqn in jaxpr.eqns:
        operands = [known(atom) for atom in eqn.invars]
        if eqn.primitive.name == "scan":
            results = _scanned(eqn, operands, masks)
        else:
            results = [_result(eqn, operands)] * len(eqn.outvars)
            mask = _mask_in(eqn, operands)
            if mask is not None:
                masks[id(eqn)] = mask
        seen.update(zip(eqn.outvars, results, strict=True))
    return [known(atom) for atom in jaxpr.outvars]


def _scanned(eqn: JaxprEqn, operands: Sequence[_Seen], masks: dict[int, _Mask]) -> list[_Seen]:
    """Of a scan's outputs; what an iteration hands to the next is what any of them may be."""
    first, count = scan_split(eqn)
    arguments = [_Seen(one.data, one.noise) for one in operands]
    body = open_jaxpr(eqn.params["jaxpr"])
    while True:
        found: dict[int, _Mask] = {}
        outputs = _walk(body, arguments, found)
        carried = [
            _Seen(a.data or b.data, a.noise or b.noise)
            for a, b in zip(arguments[first : first + count], outputs[:count], strict=True)
        ]
        if carried == arguments[first : first + count]:
            masks.update(found)
            return [_Seen(one.data, one.noise) for one in outputs]
        arguments[first : first + count] = carried


def _result(eqn: JaxprEqn, operands: Sequence[_Seen]) -> _Seen:
    """What is known of an equation's result."""
    name = eqn.primitive.name
    data = any(one.data for one in operands)
    noise = name in _SOURCES or any(one.noise for one in operands)
    plain = _Seen(data, noise)
    if data:
        return plain
    if name in _MOVES:
        return operands[0]
    if not noise:
        constants = [one.constant for one in operands]
        if name in _ARITHMETIC and None not in constants and (name != "div" or constants[1]):
            return plain._replace(constant=_ARITHMETIC[name](*constants))
        return plain
    if name == "bitcast_convert_type" and dtype_of(eqn.outvars[0]) == jnp.float32:
        # Random bits behind the exponent of 1, in every generator of uniform numbers.
        return plain._replace(interval=(1.0, 2.0))
    if len(operands) != 2 or operands[0].noise == operands[1].noise:
        return plain
    number, other = operands if operands[0].noise else reversed(operands)
    constant = other.constant
    if name in _CHOOSES_LESS:
        less = _CHOOSES_LESS[name] == operands[0].noise
        return plain._replace(mask=True, chance=_chance(number.interval, constant, less))
    if constant is None:
        return plain
    if name == "max" and number.interval is not None and constant <= number.interval[0]:
        return number
    if name in _ARITHMETIC and number.interval is not None and (name != "div" or constant):
        ends = [
            _ARITHMETIC[name](*(end if one.noise else constant for one in operands))
            for end in number.interval
        ]
        return plain._replace(interval=(min(ends), max(ends)))
    if number.mask and (name == "mul" or (name == "div" and operands[0].noise and constant)):
        chance = number.chance
        scaled = None if chance is None else _ARITHMETIC[name](chance, constant)
        return plain._replace(mask=True, chance=scaled)
    return plain


def _chance(interval: tuple[float, float] | None, limit: float | None, less: bool) -> float | None:
    """How likely a number that is drawn evenly lies below a limit, or else above it."""
    if interval is None or limit is None or interval[0] == interval[1]:
        return None
    low, high = interval
    below = float(np.clip((limit - low) / (high - low), 0, 1))
    return below if less else 1 - below


def _mask_in(eqn: JaxprEqn, operands: Sequence[_Seen]) -> _Mask | None:
    """The mask that an equation lays on data, if it does."""
    out = dtype_of(eqn.outvars[0]) if len(eqn.outvars) == 1 else None
    if out is None or not jnp.issubdtype(out, jnp.floating):
        return None
    name = eqn.primitive.name
    if name == "select_n" and len(operands) == 3 and operands[0].mask:
        for place, other in ((2, 1), (1, 2)):
            if operands[place].data and operands[other].constant == 0:
                return _Mask(place, 0, place == 2, operands[0].chance)
    if name == "mul":
        for place, by in ((0, 1), (1, 0)):
            if operands[place].data and operands[by].mask:
                return _Mask(place, by, None, operands[by].chance)
    return None


def _is_number(value: Any) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"
