"""What a loss's kernels take in: the data as it is where it meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from vanishjax import numerics
from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.contraction import taken_in
from vanishjax._jaxpr.examine import Path, Record, examine, inner_jaxprs
from vanishjax._jaxpr.program import Evaluator, Program
from vanishjax._jaxpr.uses import Trace
from vanishjax._jaxpr.values import WHOLE, Use
from vanishjax._jaxpr.versions import dtype_of, open_jaxpr, shape_of


class Intake(NamedTuple):
    """How a kernel takes in features: the numbers that it weighs.

    Attributes:
      side: Which operand of the equation the data is.
      samples: Its axes that tell examples, or places of one, apart.
      kernel: The other operand's shape; of a product entry by entry the parameter's.
      axes: The axes of that along which features differ: those of its inputs and, where groups of
        outputs have features of their own, of its outputs.
      groups: Number of such groups.
      sums: Whether outputs sum over features; otherwise each has one of its own.
    """

    side: int
    samples: tuple[int, ...]
    kernel: tuple[int, ...]
    axes: tuple[int, ...]
    groups: int = 1
    sums: bool = True


class Moments(NamedTuple):
    """The features that a kernel takes in, over all that stands beside them, laid out like it.

    Attributes:
      mean: An array that goes with the kernel: 1 long along all but the intake's `axes`.
      deviation: The same.
    """

    mean: jax.Array
    deviation: jax.Array


def kernel_inputs(program: Program, anatomy: Anatomy, arguments: Sequence[Any]) -> dict[int, Any]:
    """Runs the loss once and keeps what its kernels take in.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      By the kernel's number among the leaves `[..., inputs]`. Kernels inside loops aren't there,
      nor are those that meet the data in anything but a product along one axis.
    """
    sites = {site.output: site for site in anatomy.sites.values() if not anatomy.lengths[site.tap]}
    looking = _Looking(sites)
    looking(program.closed.jaxpr, program.closed.consts, arguments)
    return looking.seen


class _Looking(Evaluator):
    def __init__(self, sites: Mapping[Var, Site]) -> None:
        self.seen: dict[int, Any] = {}
        self._sites = sites

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        site = self._sites.get(eqn.outvars[0]) if eqn.outvars else None
        found = None if site is None else _of_site(eqn, site)
        if site is not None and found is not None and eqn.primitive.name == "dot_general":
            data = operands[found.side]
            (axis,) = set(range(data.ndim)) - set(found.samples)
            self.seen[site.leaf] = jnp.moveaxis(data, axis, -1)
        return super().apply(eqn, operands)


def find_intakes(program: Program, trace: Trace, anatomy: Anatomy) -> dict[int, list[Intake]]:
    """How parameters take in features: in products along one axis, convolutions, entry by entry.

    Args:
      program: The loss, flattened.
      trace: The uses of its parameters.
      anatomy: Where its kernels meet the data.

    Returns:
      By the parameter's number among the leaves, once for every place, those inside loops too.
    """
    found: dict[int, list[Intake]] = {}
    for leaf, intake, _ in _places(program.closed.jaxpr, _by_equation(trace, anatomy), None):
        found.setdefault(leaf, []).append(intake)
    return found


def feature_moments(
    program: Program, trace: Trace, anatomy: Anatomy, arguments: Sequence[Any]
) -> dict[int, list[Moments]]:
    """Runs the loss once and measures the features that its kernels take in.

    Args:
      program: The loss, flattened.
      trace: The uses of its parameters.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      By the parameter's number among the leaves, in the order of `find_intakes`; all iterations of
      a loop together.
    """
    known = _by_equation(trace, anatomy)

    def look(
        path: Path, eqn: JaxprEqn | None, operands: Sequence[Any], results: Sequence[Any]
    ) -> Moments | tuple[()]:
        del path, results
        found = None if eqn is None else known(eqn)
        if found is None:
            return ()
        _, intake = found
        x = operands[intake.side]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = jnp.mean(x, axis=intake.samples, keepdims=True)
        # What is far from zero loses digits in a sum.
        mean += jnp.mean(x - mean, axis=intake.samples, keepdims=True)
        deviation = numerics.rms(x - mean, axes=intake.samples, keepdims=True)
        return Moments(_laid_out(intake, mean), _laid_out(intake, deviation))

    jaxpr = program.closed.jaxpr
    _, record = examine(jaxpr, program.closed.consts, arguments, look, _never)
    measured: dict[int, list[Moments]] = {}
    for leaf, intake, kept in _places(jaxpr, known, record):
        measured.setdefault(leaf, []).append(_together(kept, len(intake.kernel)))
    return measured


def _never(record: Any) -> jax.Array:
    del record
    return jnp.zeros([], bool)


_Known = Callable[[JaxprEqn], tuple[int, Intake] | None]


def _by_equation(trace: Trace, anatomy: Anatomy) -> _Known:
    """What tells which parameter takes in features in an equation, and how."""
    sites = {site.output: site for site in anatomy.sites.values()}
    factors = {id(use.equation): use for use in trace.uses if use.equation.primitive.name == "mul"}

    def known(eqn: JaxprEqn) -> tuple[int, Intake] | None:
        site = sites.get(eqn.outvars[0]) if eqn.outvars else None
        factor = factors.get(id(eqn))
        if site is not None:
            leaf, found = site.leaf, _of_site(eqn, site)
        elif factor is not None:
            leaf, found = factor.leaf, _of_factor(eqn, factor)
        else:
            return None
        # What is complex is left alone.
        real = found and not jnp.issubdtype(dtype_of(eqn.invars[found.side]), jnp.complexfloating)
        return (leaf, found) if found and real else None

    return known


def _places(jaxpr: Any, known: _Known, record: Record | None) -> Iterator[tuple[int, Intake, Any]]:
    """Where parameters take in features, inside loops and branches too, and what was kept."""
    for number, eqn in enumerate(jaxpr.eqns):
        for branch, inner in enumerate(inner_jaxprs(eqn)):
            within = None if record is None else record.inner[number][branch]
            yield from _places(open_jaxpr(inner), known, within)
        found = known(eqn)
        if found is not None:
            yield (*found, None if record is None else record.equations[number])


def _of_site(eqn: JaxprEqn, site: Site) -> Intake | None:
    """How a site's kernel takes in features; None if along several axes, or not as a matrix."""
    name, params = eqn.primitive.name, eqn.params
    side, features, samples = taken_in(eqn, site.output_samples)
    if name == "dot_general":
        contracted, (batched, _) = params["dimension_numbers"]
        if len(features) != 1 or batched:
            return None
        kernel = shape_of(eqn.invars[1 - side].aval)
        return Intake(side, samples, kernel, tuple(contracted[1 - side]))
    if name == "conv_general_dilated" and params["batch_group_count"] == 1:
        groups = params["feature_group_count"]
        outputs, inputs, *_ = params["dimension_numbers"].rhs_spec
        apart = (inputs, outputs) if groups > 1 else (inputs,)
        return Intake(0, tuple(sorted(samples)), shape_of(eqn.invars[1].aval), apart, groups)
    return None


def _of_factor(eqn: JaxprEqn, use: Use) -> Intake | None:
    """How a factor of several axes takes in features, each entry its own; None if it doesn't."""
    axes = [axis for axis in use.dims if axis >= 0]
    rank = len(axes)
    known = use.operand >= 0 and use.part is None and set(use.dims) <= {WHOLE, *axes}
    if not known or rank < 2 or axes != [*range(rank)]:
        return None
    shape = shape_of(eqn.invars[use.operand].aval)
    samples = tuple(i for i, axis in enumerate(use.dims) if axis < 0)
    kernel = tuple(n for i, n in enumerate(shape) if i not in samples)
    return Intake(1 - use.operand, samples, kernel, tuple(range(rank)), sums=False)


def _laid_out(intake: Intake, values: jax.Array) -> jax.Array:
    """One number a feature, the data's other axes 1 long, as an array that goes with the kernel."""
    if not intake.sums:
        return values.squeeze(intake.samples)
    shape = [n if axis in intake.axes else 1 for axis, n in enumerate(intake.kernel)]
    if intake.groups == 1:
        return values.reshape(shape)
    inputs, outputs = intake.axes
    apart = jnp.repeat(values.reshape(intake.groups, -1), shape[outputs] // intake.groups, axis=0)
    return (apart if outputs < inputs else apart.T).reshape(shape)


def _together(kept: Moments, rank: int) -> Moments:
    """The moments of all iterations of the loops around a place, as those of one."""
    mean, deviation = (x.reshape(-1, *x.shape[x.ndim - rank :]) for x in kept)
    center = jnp.mean(mean, axis=0)
    within, between = (numerics.rms(x, axes=(0,)) for x in (deviation, mean - center))
    return Moments(center, numerics.hypot(within, between))
