"""Evaluates a loss with taps on it, which measure the cotangents that come back.

A tap gives the cotangent as that of a dummy input: measured later, those that are alike share a
program. In a loop, whose turns would stack, and at a bottleneck, lest the cotangents of a whole
chain be kept, it gives only the logarithm of the root mean square. Where a cotangent underflows, a
second look normalizes: a bottleneck then hands it on with root mean square 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from vanishjax import numerics
from vanishjax._jaxpr.anatomy import Anatomy, Site
from vanishjax._jaxpr.extremum import extremum, is_extremum
from vanishjax._jaxpr.program import Evaluator, Program
from vanishjax._jaxpr.versions import bind, dtype_of, shape_of
from vanishjax.placement import unsharded

Measure = Callable[[Site, jax.Array], Any]
Watch = Callable[..., Any]


def tapped_loss(
    program: Program,
    anatomy: Anatomy,
    measure: Measure,
    arguments: Sequence[Any],
    dummies: Sequence[jax.Array],
    watch: Watch | None = None,
    *,
    normalize: bool,
) -> tuple[jax.Array, dict[int, Any], dict[int, Any]]:
    """The loss, with taps.

    Args:
      program: The loss, flattened.
      anatomy: Where the taps are.
      measure: `measure(site, x)` of the activation's argument; anything, for each site.
      arguments: The parameters' leaves, then the batch's arrays.
      dummies: For each tap zeros: see `dummies_for`. The gradient with respect to them is the
        cotangent there, or log(rms) of it.
      watch: If given, `watch(watched, *values)` of a watched equation's result or operands;
        anything.
      normalize: Whether bottlenecks normalize: then cotangents are what is left of them when those
        further down have done so.

    Returns:
      The loss; by the sites' taps what `measure` returned; by number what `watch` did. Loops'
      lengths lead.
    """
    tapped = _Tapped(anatomy, measure, watch, dict(enumerate(dummies)), normalize)
    (loss,) = tapped(program.closed.jaxpr, program.closed.consts, arguments)
    return loss, tapped.measured, tapped.seen


def copied(anatomy: Anatomy) -> dict[int, Var]:
    """By their numbers the taps that give the cotangent itself, and what they are on."""
    return {
        number: variable
        for variable, (number, bottleneck) in anatomy.taps.items()
        if not anatomy.lengths[number] and not bottleneck
    }


def dummies_for(anatomy: Anatomy) -> list[jax.Array]:
    """Zeros to differentiate with respect to.

    For each tap one float32 number for each turn of its loops; or, for those that give the
    cotangent itself, an array of the shape and type of what is tapped.
    """
    dummies = [jnp.zeros(lengths, jnp.float32) for lengths in anatomy.lengths]
    for number, variable in copied(anatomy).items():
        dummies[number] = jnp.zeros(shape_of(variable.aval), dtype_of(variable))
    return dummies


class _Tapped(Evaluator):
    def __init__(
        self,
        anatomy: Anatomy,
        measure: Measure,
        watch: Watch | None,
        dummies: Mapping[int, Any],
        normalize: bool,
    ) -> None:
        self.measured: dict[int, Any] = {}
        self.seen: dict[int, Any] = {}
        self._anatomy, self._measure, self._watch = anatomy, measure, watch
        self._dummies, self._normalize = dummies, normalize

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        taken = extremum if is_extremum(eqn) else super().apply
        results = taken(eqn, operands)
        watched = self._anatomy.watched.get(eqn.outvars[0], ()) if eqn.outvars else ()
        if self._watch is not None:
            for one in watched:
                values = jax.lax.stop_gradient(one.among(operands, results))
                self.seen[one.number] = self._watch(one, *map(unsharded, values))
        return results

    def value(self, variable: Var, x: Any, environment: Mapping[Var, Any]) -> Any:
        del environment
        site = self._anatomy.sites.get(variable) or self._anatomy.frozen_sites.get(variable)
        if site is not None:
            self.measured[site.tap] = self._measure(site, unsharded(jax.lax.stop_gradient(x)))
        if variable in self._anatomy.taps:
            number, bottleneck = self._anatomy.taps[variable]
            if bottleneck and self._normalize:
                return _NORMALIZING(x, self._dummies[number])
            reads = bottleneck or self._anatomy.lengths[number]
            return (_READING if reads else _COPYING)(x, self._dummies[number])
        return x

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        numbers = self._anatomy.loops.get(id(eqn))
        if numbers is None:
            return bind(eqn, operands)

        def step(arguments: Sequence[Any], dummies: Any) -> tuple[list[Any], Any]:
            inner = _Tapped(self._anatomy, self._measure, self._watch, dummies, self._normalize)
            return inner.body(eqn, arguments), (inner.measured, inner.seen)

        dummies = {number: self._dummies[number] for number in numbers}
        results, (measured, seen) = self.loop(eqn, operands, dummies, step)
        self.measured.update(measured)
        self.seen.update(seen)
        return results


def log_rms(x: jax.Array) -> jax.Array:
    """The logarithm of an array's root mean square, float32."""
    return _split_log_rms(x)[1]


def _split_log_rms(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An array divided by its root mean square, and the logarithm of that."""
    scale, rest = numerics.split_rms(x)
    log_rms = (jnp.log(scale) + jnp.log(rest)).astype(jnp.float32).reshape(())
    unit = numerics.upcast(x) / scale / jnp.where(rest == 0, 1, rest)
    return unit.astype(x.dtype), log_rms


def _tap(
    backward: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The identity of its first argument, with the cotangents that `backward` makes of its own."""
    tap = jax.custom_vjp(lambda x, _: x)
    tap.defvjp(lambda x, _: (x, None), lambda _, cotangent: backward(cotangent))
    return tap


_NORMALIZING = _tap(_split_log_rms)
_READING = _tap(lambda cotangent: (cotangent, log_rms(cotangent)))
_COPYING = _tap(lambda cotangent: (cotangent, unsharded(cotangent)))
