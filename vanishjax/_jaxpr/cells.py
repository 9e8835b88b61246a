"""What a loop hands from one step to the next: the gates that keep it, and the cells that make it.

A *gate* is a sigmoid that tells how much of a carried value the next step gets, as an LSTM's forget
gate or a GRU's update gate. A *simple cell* makes the whole value anew: an activation of its
product with a kernel and of what is added to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.activation import Activation
from vanishjax._jaxpr.anatomy import Anatomy
from vanishjax._jaxpr.program import Program
from vanishjax._jaxpr.reach import GRADIENT, best
from vanishjax._jaxpr.versions import dtype_of, open_jaxpr, scan_split, shape_of

_SUMS = frozenset({"add", "add_any"})
# A function bends at 0 if its slopes this far on both sides differ by so much: those of a leaky
# rectifier by .99, of a smooth one by .15.
_NEAR, _BENT = 0.05, 0.5
_MOVES = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"})


class Cell(NamedTuple):
    """A value that a loop's step makes of the one before by one kernel and an activation.

    Attributes:
      loop: The loop.
      activation: The activation.
      product: The equation in which the kernel meets the value before.
      side: Which of its operands the value is, or is a part of.
      first: Where the value stands among the features of that.
      units: The value's features.
    """

    loop: JaxprEqn
    activation: Activation
    product: JaxprEqn
    side: int
    first: int
    units: int

    @property
    def argument(self) -> Var:
        """What the activation is applied to."""
        return self.activation.before


class Gate(NamedTuple):
    """A sigmoid in a loop.

    Attributes:
      loop: The loop.
      sigmoid: Its equation.
    """

    loop: JaxprEqn
    sigmoid: JaxprEqn

    @property
    def argument(self) -> Var:
        """What it is a sigmoid of."""
        return cast(Var, self.sigmoid.invars[0])

    @property
    def units(self) -> int:
        """Its features."""
        *_, units = shape_of(self.argument.aval)
        return int(units)


def find_gates(program: Program) -> list[Gate]:
    """The sigmoids in loops: those that may be gates.

    Args:
      program: The loss, flattened.
    """
    return [
        Gate(loop, eqn)
        for loop in _loops(program.closed.jaxpr)
        for eqn in open_jaxpr(loop.params["jaxpr"]).eqns
        if eqn.primitive.name == "logistic" and shape_of(eqn.outvars[0].aval)
    ]


def find_cells(program: Program, anatomy: Anatomy) -> list[Cell]:
    """The simple cells in loops.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
    """
    own = [site.activation for site in anatomy.sites.values() if site.activation is not None]
    activations = {activation.after: activation for activation in own}
    cells = []
    for loop in _loops(program.closed.jaxpr):
        body = open_jaxpr(loop.params["jaxpr"])
        first, count = scan_split(loop)
        makers = {v: eqn for eqn in body.eqns for v in eqn.outvars}
        carried = zip(body.invars[first : first + count], body.outvars[:count], strict=True)
        cells += [
            cell
            for before, after in carried
            if (cell := _cell(loop, before, after, makers, activations)) is not None
        ]
    return cells


class Shape(NamedTuple):
    """What an activation is like.

    Attributes:
      resting: Its value at 0.
      is_bent: Whether its slope isn't the same on both sides of 0, as a rectifier's.
    """

    resting: float
    is_bent: bool


def shape_of_activation(cell: Cell) -> Shape:
    """What a cell's activation is like."""
    shape, dtype = shape_of(cell.argument.aval), dtype_of(cell.argument)
    below, above = (
        float(jnp.ravel(slope(cell, jnp.full(shape, x, dtype)))[0]) for x in (-_NEAR, _NEAR)
    )
    resting = float(jnp.ravel(cell.activation(jnp.zeros(shape, dtype)))[0])
    return Shape(resting, abs(above - below) > _BENT * max(abs(above), abs(below)))


def slope(cell: Cell, x: Any) -> Any:
    """The slope of a cell's activation at an array of its argument's shape."""
    return jax.jvp(cell.activation, (x,), (jnp.ones_like(x),))[1]


def _loops(jaxpr: Any) -> Iterator[JaxprEqn]:
    """The scans of a jaxpr, those inside them included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
            yield from _loops(open_jaxpr(eqn.params["jaxpr"]))


def _cell(
    loop: JaxprEqn,
    before: Var,
    after: Any,
    makers: Mapping[Var, JaxprEqn],
    activations: Mapping[Var, Activation],
) -> Cell | None:
    """The simple cell that makes a carried value, if one does."""
    shape = shape_of(before.aval)
    if not shape or best(before) != GRADIENT:
        return None
    after = _unmoved(after, makers)
    eqn = makers.get(after)
    if eqn is not None and eqn.primitive.name == "select_n":  # past the end of a sequence
        others = [v for v in eqn.invars[1:] if isinstance(v, Literal) or v is not before]
        after = _unmoved(others[0], makers) if len(others) == 1 else after
    activation = activations.get(after)
    if activation is None:
        return None
    waiting, products = [activation.before], []
    while waiting:
        variable = waiting.pop()
        eqn = makers.get(variable)
        if eqn is None or isinstance(variable, Literal):
            continue
        name = eqn.primitive.name
        if name in _SUMS or (name in _MOVES and shape_of(eqn.invars[0].aval) == shape):
            waiting += [v for v in eqn.invars if not isinstance(v, Literal)]
        elif name == "dot_general":
            place = _place(eqn, before, makers)
            if place is not None and _is_fixed(eqn, loop, makers):
                products.append((eqn, place))
    if len(products) != 1:
        return None
    ((product, (side, first)),) = products
    return Cell(loop, activation, product, side, first, shape[-1])


def _place(product: JaxprEqn, value: Var, makers: Mapping[Var, JaxprEqn]) -> tuple[int, int] | None:
    """Which operand of a product a value is, and where it begins among that one's features."""
    contracted, _ = product.params["dimension_numbers"]
    for side, (operand, axes) in enumerate(zip(product.invars, contracted, strict=True)):
        if len(axes) != 1:
            continue
        own = _unmoved(operand, makers)
        if own is value:
            return side, 0
        eqn = makers.get(own)
        if eqn is not None and eqn.primitive.name == "concatenate":
            if eqn.params["dimension"] != axes[0]:
                continue
            start = 0
            for part in eqn.invars:
                if _unmoved(part, makers) is value:
                    return side, start
                start += shape_of(part.aval)[axes[0]]
    return None


def _is_fixed(product: JaxprEqn, loop: JaxprEqn, makers: Mapping[Var, JaxprEqn]) -> bool:
    """Whether a product is with what every step of a loop is given alike."""
    first, _ = scan_split(loop)
    given = set(open_jaxpr(loop.params["jaxpr"]).invars[:first])
    for operand in product.invars:
        variable: Any = operand
        while not isinstance(variable, Literal) and (eqn := makers.get(variable)) is not None:
            if len(eqn.invars) != 1:
                break
            (variable,) = eqn.invars
        if not isinstance(variable, Literal) and variable in given:
            return True
    return False


def _unmoved(variable: Any, makers: Mapping[Var, JaxprEqn]) -> Any:
    """What a value was before casts and copies."""
    while not isinstance(variable, Literal) and (eqn := makers.get(variable)) is not None:
        same = shape_of(eqn.invars[0].aval) == shape_of(variable.aval)
        if eqn.primitive.name not in _MOVES or not same or isinstance(eqn.invars[0], Literal):
            break
        variable = eqn.invars[0]
    return variable
