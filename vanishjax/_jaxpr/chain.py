"""What lies between the kernels of a loss: whether each takes in what the last activation made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from vanishjax import numerics
from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.program import Evaluator, Program
from vanishjax._jaxpr.versions import shape_of


class Link(NamedTuple):
    """What a kernel does to one batch, loops' lengths leading.

    Attributes:
      taken: `[5]` what tells its input from other arrays, whatever its shape: size, mean, root mean
        square, a sum with random signs over the root of the size, and the largest absolute value.
      given: `[5]` the same of its activation's output; NaN if it has none.
      changed: How much of its output, relative to the root mean square, the activation's argument
        differs by from one example to the other: 0 if only a bias was added.
      mean: `[units]` the mean of each unit's output.
      rms: The root mean square of the output about that mean.
    """

    taken: jax.Array
    given: jax.Array
    changed: jax.Array
    mean: jax.Array
    rms: jax.Array


def links(program: Program, anatomy: Anatomy, arguments: Sequence[Any]) -> dict[int, Link]:
    """Runs the loss once and measures what its kernels take in and hand on.

    Args:
      program: The loss, flattened.
      anatomy: Where its kernels meet the data.
      arguments: The parameters' leaves, then the batch's arrays.

    Returns:
      By the sites' taps.
    """
    linking = _Linking(anatomy)
    linking(program.closed.jaxpr, program.closed.consts, arguments)
    return linking.links()


class _Linking(Evaluator):
    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._outputs = {site.output: site for site in anatomy.sites.values()}
        self._ends = {
            site.activation.after: site
            for site in anatomy.sites.values()
            if site.activation is not None
        }
        self._parts: dict[int, dict[str, Any]] = {}

    def links(self) -> dict[int, Link]:
        nothing = Link(*[jnp.full(5, jnp.nan)] * 2, *[jnp.nan] * 3)
        return {tap: nothing._replace(**parts) for tap, parts in self._parts.items()}

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        site = self._outputs.get(eqn.outvars[0]) if eqn.outvars else None
        if site is not None:
            self._keep(site, taken=_print(operands[_data_operand(eqn, site)]))
        return super().apply(eqn, operands)

    def value(self, variable: Var, x: Any, environment: Mapping[Var, Any]) -> Any:
        if variable in self._outputs:
            site = self._outputs[variable]
            wide = numerics.upcast(x)
            mean = jnp.mean(wide, axis=site.output_samples, keepdims=True)
            self._keep(site, mean=mean.ravel(), rms=numerics.rms(wide - mean))
        if variable in self._anatomy.sites:
            site = self._anatomy.sites[variable]
            output = x if variable is site.output else environment.get(site.output)
            if output is not None:
                before = _samples_first(output, site.output_samples)
                added = _samples_first(x, site.samples) - before
                added = added - jnp.mean(added, axis=0, keepdims=True)
                changed = numerics.divide(numerics.rms(added), numerics.rms(before))
                self._keep(site, changed=changed)
        if variable in self._ends:
            self._keep(self._ends[variable], given=_print(x))
        return x

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        if id(eqn) not in self._anatomy.loops:
            return super().scan(eqn, operands)

        def step(arguments: Sequence[Any], _: None) -> tuple[list[Any], Any]:
            inner = _Linking(self._anatomy)
            return inner.body(eqn, arguments), inner.links()

        results, found = self.loop(eqn, operands, None, step)
        for tap, link in found.items():
            self._parts[tap] = link._asdict()
        return results

    def _keep(self, site: Site, **parts: Any) -> None:
        self._parts.setdefault(site.tap, {}).update(parts)


def _samples_first(x: jax.Array, samples: tuple[int, ...]) -> jax.Array:
    """As `[samples, units]`."""
    units = [axis for axis in range(x.ndim) if axis not in samples]
    count = math.prod(x.shape[axis] for axis in samples)
    return jnp.transpose(numerics.upcast(x), (*samples, *units)).reshape(count, -1)


def _data_operand(eqn: JaxprEqn, site: Site) -> int:
    if eqn.primitive.name != "dot_general":
        return 0
    contracted, _ = eqn.params["dimension_numbers"]
    left = len(shape_of(eqn.invars[0].aval)) - len(contracted[0])
    # Where the data's axes come in the output tells on which side it stands.
    return 0 if site.output_samples == tuple(range(left)) else 1


def _print(x: jax.Array) -> jax.Array:
    flat = numerics.upcast(x).ravel()
    hashed = jnp.arange(flat.size, dtype=jnp.uint32) * jnp.uint32(2654435761)
    signs = 1.0 - 2.0 * ((hashed >> 15) & 1).astype(flat.dtype)
    return jnp.stack(
        [
            jnp.asarray(float(flat.size), flat.dtype),
            jnp.mean(flat),
            numerics.rms(flat),
            jnp.sum(signs * flat) / max(1, flat.size) ** 0.5,
            jnp.max(jnp.abs(flat), initial=0.0),
        ]
    )
