"""What comes after a network's last kernels, as a function of what those put out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.output import MOVES, PRODUCTS
from vanishjax._jaxpr.program import Program, on_device
from vanishjax._jaxpr.uses import Trace
from vanishjax._jaxpr.versions import bind, called, dtype_of, open_jaxpr, shape_of

# A kernel of one output is multiplied entry by entry on the way back.
_PRODUCTS = PRODUCTS | {"mul"}


@dataclasses.dataclass(frozen=True)
class Tail:
    """The loss as a function of what the last kernels put out.

    Attributes:
      starts: What they put out, or biases in its place.
      after: The equations that depend on it, in order.
      fixed: What doesn't.
      loss: The loss.
    """

    starts: tuple[Var, ...]
    after: list[JaxprEqn]
    fixed: Mapping[Var, Any]
    loss: Any

    def __call__(self, outputs: Sequence[Any], without: tuple[int, int] | None = None) -> Any:
        """The loss.

        Args:
          outputs: For each start a value, broadcast to its shape.
          without: Numbers of two of `stages`: the first is left out, and the second, which comes
            before it, takes its place.
        """
        swapped = {} if without is None else {self.stages[without[0]]: self.stages[without[1]]}
        environment = self._start(outputs)
        for eqn in self.after:
            _run([eqn], environment)
            for out in swapped.keys() & eqn.outvars:
                environment[out] = environment[swapped[out]].astype(dtype_of(out))
        return self.loss.val if isinstance(self.loss, Literal) else environment[self.loss]

    @functools.cached_property
    def stages(self) -> list[Var]:
        """What is made of one start on the way to the loss, as many numbers as it has itself.

        Not the exponentials of a softmax, which are but a part of it.
        """
        if len(self.starts) != 1:
            return []
        size = math.prod(shape_of(self.starts[0].aval))
        made = self._made
        inner = {numerator for eqn in self.after if (numerator := _exponentials(eqn, made))}
        return [
            v
            for v in (self.starts[0], *made)
            if math.prod(shape_of(v.aval)) == size and v not in inner
            if jnp.issubdtype(dtype_of(v), jnp.floating)
        ]

    def makers(self) -> list[tuple[JaxprEqn | None, str]]:
        """The equation that makes each stage, None for the start, and what to call it."""
        return [(eqn, self._name(eqn)) for eqn in map(self._made.get, self.stages)]

    def _name(self, eqn: JaxprEqn | None) -> str:
        if eqn is None:
            return ""
        name = eqn.primitive.name
        if name.startswith("custom_") and (inner := called(eqn)) is not None:
            return str(open_jaxpr(inner).debug_info.func_name)
        if _exponentials(eqn, self._made):
            return "softmax"
        return "sigmoid" if name == "logistic" else name

    def values(self, outputs: Sequence[Any]) -> list[Any]:
        """The stages' values."""
        environment = self._start(outputs)
        _run(self.after, environment)
        return [environment[v] for v in self.stages]

    @functools.cached_property
    def _made(self) -> dict[Var, JaxprEqn]:
        """By what depends on the starts the equation that makes it."""
        return {v: eqn for eqn in self.after for v in eqn.outvars}

    def _start(self, outputs: Sequence[Any]) -> dict[Var, Any]:
        started = {
            v: jnp.broadcast_to(own, shape_of(v.aval))
            for v, own in zip(self.starts, outputs, strict=True)
        }
        return {**self.fixed, **started}


def crossing(program: Program, anatomy: Anatomy) -> JaxprEqn | None:
    """Where every output of one unit is put beside every other example, as `[n, 1] - [n]` does.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.

    Returns:
      The first equation after the last kernel that makes n * n numbers of n outputs; None without.
    """
    if len(anatomy.last_sites) != 1:
        return None
    (site,) = anatomy.last_sites
    size = math.prod(shape_of(site.output.aval))
    if site.output_units != 1 or size < 2:
        return None
    after = {site.output}
    for eqn in program.closed.jaxpr.eqns:
        if after.isdisjoint(atom for atom in eqn.invars if not isinstance(atom, Literal)):
            continue
        if any(math.prod(shape_of(v.aval)) == size**2 for v in eqn.outvars):
            return eqn
        after.update(eqn.outvars)
    return None


def _exponentials(eqn: JaxprEqn, made: Mapping[Var, JaxprEqn]) -> Var | None:
    """The numerator of a quotient of exponentials, as in a softmax."""
    if eqn.primitive.name != "div" or isinstance(first := eqn.invars[0], Literal):
        return None
    if first not in made:
        return None
    return first if made[first].primitive.name == "exp" else None


def constant_tail(
    program: Program,
    trace: Trace,
    anatomy: Anatomy,
    arguments: Sequence[Any],
    bias_of: Callable[[int], int | None],
) -> tuple[Tail, list[Any]] | None:
    """The loss if the last kernels put out the same for all inputs, as a function of that.

    What doesn't depend on it is computed once, here. Where a last kernel meets several inputs, as
    of twins, or stands in derivatives, as in a differential equation's, it counts as 0 in all
    places, and its bias is the output.

    Args:
      program: The loss, flattened.
      trace: The uses of its parameters.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.
      bias_of: For the number of a parameter that of the bias beside it.

    Returns:
      The function of one output for each last kernel, and zeros of their shapes; None where the
      last kernel stands in a loop, there is none, or it has no bias and meets several inputs.
    """
    jaxpr = program.closed.jaxpr
    heads = {site.leaf for site in anatomy.last_sites}
    several = {leaf for leaf in heads if _products(jaxpr, jaxpr.invars[leaf]) > 1}
    shapes: dict[Var, tuple[int, ...]] = {}
    nothing: dict[Var, Any] = {}
    closed = -1
    if several:
        # The last kernel of a network is first met last; the way back ends at the first kernel.
        sites = {site.leaf for site in anatomy.sites.values()}
        uses = [use for use in trace.uses if use.leaf in sites]
        first: dict[int, int] = {}
        for use in uses:
            first[use.leaf] = min(use.position, first.get(use.leaf, use.position))
        closed = max(first, key=lambda leaf: first[leaf])
        beside = bias_of(closed)
        if beside is None or any(use.axes for use in uses if use.leaf == closed):
            return None
        kernel, bias = jaxpr.invars[closed], jaxpr.invars[beside]
        nothing[kernel] = jnp.zeros(shape_of(kernel.aval), dtype_of(kernel))
        shapes[bias] = shape_of(bias.aval)
    for site in anatomy.last_sites:
        if site.leaf not in {closed, *several}:
            shapes[site.output] = _of_one(site)
    if not shapes:
        return None
    before, after = _divide(jaxpr, {*shapes, *nothing})
    fixed: dict[Var, Any] = {}
    fixed.update(zip(jaxpr.constvars, map(on_device, program.closed.consts), strict=True))
    fixed.update(zip(jaxpr.invars, arguments, strict=True))
    _run(before, fixed)

    (loss,) = jaxpr.outvars
    tail = Tail(tuple(shapes), after, {**fixed, **nothing}, loss)
    return tail, [jnp.zeros(shape, dtype_of(variable)) for variable, shape in shapes.items()]


def _products(jaxpr: Any, kernel: Var) -> int:
    """How many products a kernel is a factor of, those included that no data goes into.

    Not those with itself or with a number: a penalty's.
    """
    same, count = {kernel}, 0
    for eqn in jaxpr.eqns:
        atoms = {atom for atom in eqn.invars if not isinstance(atom, Literal)}
        if same.isdisjoint(atoms):
            continue
        count += eqn.primitive.name in _PRODUCTS and not atoms <= same
        if eqn.primitive.name in MOVES:
            same.update(eqn.outvars)
    return count


def _of_one(site: Site) -> tuple[int, ...]:
    """The shape of what a kernel puts out for one input, its axes kept."""
    shape = shape_of(site.output.aval)
    return tuple(1 if axis in site.output_samples else n for axis, n in enumerate(shape))


def _divide(jaxpr: Any, starts: set[Var]) -> tuple[list[Any], list[Any]]:
    """The equations that the loss needs: those that don't depend on `starts`, and those that do."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if starts.intersection(eqn.outvars) or not needed.intersection(eqn.outvars):
            continue
        kept.append(eqn)
        needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    depends = set(starts)
    before, after = [], []
    for eqn in reversed(kept):
        if depends.intersection(v for v in eqn.invars if not isinstance(v, Literal)):
            depends.update(eqn.outvars)
            after.append(eqn)
        else:
            before.append(eqn)
    return before, after


def _run(equations: Sequence[Any], environment: dict[Var, Any]) -> None:
    for eqn in equations:
        operands = [
            on_device(atom.val) if isinstance(atom, Literal) else environment[atom]
            for atom in eqn.invars
        ]
        environment.update(zip(eqn.outvars, bind(eqn, operands), strict=True))
