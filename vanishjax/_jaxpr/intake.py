"""What a loss's kernels take in: the data as it is where it meets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from vanishjax import numerics
from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.examine import Path, Record, examine, inner_jaxprs
from vanishjax._jaxpr.program import Evaluator, Program
from vanishjax._jaxpr.versions import open_jaxpr, shape_of


class Intake(NamedTuple):
    """How a kernel takes in features: the numbers that it weighs and adds up.

    Attributes:
      side: Which operand of the equation the data is.
      axis: Its axis of features.
      weighing: The other operand's axis that weighs them.
      outputs: That operand's axis of outputs, which groups of features share; None if all features
        go to all outputs.
      groups: Number of such groups.
      kernel: The other operand's shape.
    """

    side: int
    axis: int
    weighing: int
    outputs: int | None
    groups: int
    kernel: tuple[int, ...]


class Moments(NamedTuple):
    """The features that a kernel takes in, over all that stands beside them.

    Attributes:
      mean: `[features]`.
      deviation: `[features]`.
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
        found = None if site is None else _intake(eqn, site)
        if site is not None and found is not None and eqn.primitive.name == "dot_general":
            self.seen[site.leaf] = jnp.moveaxis(operands[found.side], found.axis, -1)
        return super().apply(eqn, operands)


def find_intakes(program: Program, anatomy: Anatomy) -> dict[int, list[Intake]]:
    """How kernels take in features, in products along one axis and in convolutions.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.

    Returns:
      By the kernel's number among the leaves, once for every place, those inside loops too.
    """
    found: dict[int, list[Intake]] = {}
    for site, intake, _ in _places(program.closed.jaxpr, _by_output(anatomy), None):
        found.setdefault(site.leaf, []).append(intake)
    return found


def feature_moments(
    program: Program, anatomy: Anatomy, arguments: Sequence[Any]
) -> dict[int, list[Moments]]:
    """Runs the loss once and measures the features that its kernels take in.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      By the kernel's number among the leaves, in the order of `find_intakes`; all iterations of a
      loop together.
    """
    sites = _by_output(anatomy)

    def look(
        path: Path, eqn: JaxprEqn | None, operands: Sequence[Any], results: Sequence[Any]
    ) -> Moments | tuple[()]:
        del path, results
        site = sites.get(eqn.outvars[0]) if eqn is not None and eqn.outvars else None
        found = None if eqn is None or site is None else _intake(eqn, site)
        if found is None:
            return ()
        x = jnp.moveaxis(operands[found.side], found.axis, -1)
        x = x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = jnp.mean(x, axis=0)
        # What is far from zero loses digits in a sum.
        mean += jnp.mean(x - mean, axis=0)
        return Moments(mean, numerics.rms(x - mean, axes=(0,)))

    jaxpr = program.closed.jaxpr
    _, record = examine(jaxpr, program.closed.consts, arguments, look, _never)
    measured: dict[int, list[Moments]] = {}
    for site, _, kept in _places(jaxpr, sites, record):
        measured.setdefault(site.leaf, []).append(_together(kept))
    return measured


def _never(record: Any) -> jax.Array:
    del record
    return jnp.zeros([], bool)


def _by_output(anatomy: Anatomy) -> dict[Var, Site]:
    return {site.output: site for site in anatomy.sites.values()}


def _places(
    jaxpr: Any, sites: Mapping[Var, Site], record: Record | None
) -> Iterator[tuple[Site, Intake, Any]]:
    """Where kernels take in features, those inside loops and branches too, and what was kept."""
    for number, eqn in enumerate(jaxpr.eqns):
        for branch, inner in enumerate(inner_jaxprs(eqn)):
            within = None if record is None else record.inner[number][branch]
            yield from _places(open_jaxpr(inner), sites, within)
        site = sites.get(eqn.outvars[0]) if eqn.outvars else None
        found = None if site is None else _intake(eqn, site)
        if site is not None and found is not None:
            yield site, found, None if record is None else record.equations[number]


def _intake(eqn: JaxprEqn, site: Site) -> Intake | None:
    """How a site's kernel takes in features; None if along several axes, or not as a matrix."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [shape_of(atom.aval) for atom in eqn.invars[:2]]
    if name == "dot_general":
        contracted, (batched, _) = params["dimension_numbers"]
        # Where the data's axes come in the output tells on which side it stands.
        left = len(shapes[0]) - len(contracted[0])
        side = 0 if site.output_samples == tuple(range(left)) else 1
        if len(contracted[side]) != 1 or batched:
            return None
        (axis,), (weighing,) = contracted[side], contracted[1 - side]
        return Intake(side, axis, weighing, None, 1, shapes[1 - side])
    if name == "conv_general_dilated" and params["batch_group_count"] == 1:
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        outputs, weighing, *_ = numbers.rhs_spec
        apart = outputs if groups > 1 else None
        return Intake(0, numbers.lhs_spec[1], weighing, apart, groups, shapes[1])
    return None


def _together(kept: Moments) -> Moments:
    """The moments of all iterations of the loops around a place, as those of one."""
    mean, deviation = (x.reshape(-1, x.shape[-1]) for x in kept)
    center = jnp.mean(mean, axis=0)
    within, between = (numerics.rms(x, axes=(0,)) for x in (deviation, mean - center))
    return Moments(center, numerics.hypot(within, between))
