"""One look at a loss as a program: what is known before it runs, and what running it tells."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.health.alike import reduce_layers
from vanishjax.health.constant import constant_loss
from vanishjax.health.statistics import Statistics, statistics
from vanishjax.health.watch import watch
from vanishjax.layers import Layers
from vanishjax.layers.traced import traced_loss
from vanishjax.problem import loss_alone

# What the loss of a float16 network is multiplied by, lest its cotangent underflow before the first
# tap, where it would be rescaled: 1,024.
_FLOAT16_LOG_SCALE = 10 * math.log(2.0)


class Setting(NamedTuple):
    """What stands in a batch beside arrays: a flag, a name."""

    value: Any


class Loss(NamedTuple):
    """A loss and how its arguments come apart: hashable, so that compilation happens once."""

    fn: Callable[[Any, Any], Any]
    structure: Any
    batch_structure: Any
    settings: tuple[Setting | None, ...]

    def arguments(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, Any]:
        """Parameters and batch, of their arrays."""
        rest = iter(arrays)
        inputs = [next(rest) if one is None else one.value for one in self.settings]
        return (
            jax.tree_util.tree_unflatten(self.structure, leaves),
            jax.tree_util.tree_unflatten(self.batch_structure, inputs),
        )


class Plan(NamedTuple):
    """What is known of a loss before it is run."""

    layers: Layers
    events: tuple[_jaxpr.Event, ...]
    widths: tuple[tuple[int, int], ...]  # by tap
    activations: tuple[tuple[int, str | None], ...]  # by tap
    types: tuple[tuple[int, str], ...]  # of the kernels' outputs, by tap
    dtypes: tuple[str, ...]  # of the layers of parameters
    unmeasured: tuple[str, ...]
    paths: _jaxpr.Paths
    watched: tuple[_jaxpr.Watched, ...]
    factors: tuple[str, ...]
    frozen: tuple[tuple[int, _jaxpr.Place | None], ...]  # by tap


class Values(NamedTuple):
    """What running it told."""

    loss: jax.Array
    log_rms: list[jax.Array]  # of the cotangents, by tap
    log_scale: float  # of the loss that they are of
    statistics: dict[int, Statistics]  # by tap
    rms: jax.Array  # of the gradients, by layer of parameters
    log_tapped_rms: jax.Array  # of the gradients with taps
    zero_fraction: jax.Array
    nonfinite: jax.Array
    parameter_rms: jax.Array
    watched: dict[int, jax.Array]
    constant_loss: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["plan"])
@dataclasses.dataclass
class Measured:
    """Both, so that the plan comes back from a compiled function."""

    values: Values
    plan: Plan


@functools.partial(jit_once, static_argnums=0)
def measure(loss: Loss, leaves: list[Any], arrays: list[Any]) -> Measured:
    """Traces a loss, puts taps on it, and runs it forward and backward once."""
    params, batch = loss.arguments(leaves, arrays)
    traced = traced_loss(loss.fn, params, batch)
    program, layers, anatomy = traced.program, traced.layers, traced.anatomy
    aval = program.closed.out_avals[0]
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn must return a real number to be differentiated, got {aval.dtype}"
        )
    widths: dict[int, int] = {}
    activations: dict[int, str | None] = {}

    types = {site.tap: site.dtype for site in anatomy.sites.values()}

    def observe(site: _jaxpr.Site, x: jax.Array) -> Statistics:
        widths[site.tap] = int(np.prod([x.shape[axis] for axis in site.units], dtype=int))
        activations[site.tap] = None if site.activation is None else site.activation.kind
        return statistics(x, site.activation, site.samples, site.units)

    narrow = "float16" in {*types.values(), *(str(x.dtype) for x in leaves)}
    log_scale = _FLOAT16_LOG_SCALE if narrow else 0.0

    def tapped(leaves: list[Any], dummies: list[Any]) -> Any:
        arguments = [*leaves, *arrays]
        value, found, seen = _jaxpr.tapped_loss(
            program, anatomy, observe, arguments, dummies, watch
        )
        return value * math.exp(log_scale), (value, found, seen)

    def plain(leaves: list[Any]) -> Any:
        return loss_alone(loss.fn(*loss.arguments(leaves, arrays)))

    try:
        gradients = jax.grad(plain)(leaves)
        differentiate = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
        (_, (value, found, seen)), (tapped_gradients, log_rms) = differentiate(
            leaves, _jaxpr.dummies_for(anatomy)
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"loss_fn can't be differentiated: {text}") from error

    def tree(leaves: list[Any]) -> Any:
        return jax.tree_util.tree_unflatten(loss.structure, leaves)

    def log_rms_of(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        scale, rest = numerics.split_rms(x, axes)
        return jnp.squeeze(jnp.log(scale) + jnp.log(rest), axes)

    def rms_of(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        scale, rest = numerics.split_rms(x, axes)
        return jnp.squeeze(scale * rest, axes)

    gradient = tree(gradients)
    values = Values(
        value,
        log_rms,
        log_scale,
        found,
        reduce_layers(layers, rms_of, gradient),
        reduce_layers(layers, log_rms_of, tree(tapped_gradients)),
        reduce_layers(layers, lambda g, axes: jnp.mean(g == 0, axes), gradient),
        reduce_layers(layers, lambda g, axes: jnp.any(~jnp.isfinite(g), axes), gradient),
        reduce_layers(layers, rms_of, params),
        seen,
        constant_loss(program, anatomy, [*leaves, *arrays]),
    )
    plan = Plan(
        layers,
        anatomy.events,
        tuple(widths.items()),
        tuple(activations.items()),
        tuple(types.items()),
        _dtypes(layers, leaves),
        tuple(layers.leaves[leaf].path for leaf in anatomy.hidden),
        anatomy.paths,
        tuple(anatomy.watched.values()),
        tuple({layers.leaves[u.leaf].path: 0 for u in traced.trace.uses if _multiplies(u)}),
        tuple((tap, _jaxpr.place_of(eqn)) for tap, eqn in anatomy.frozen.items()),
    )
    return Measured(values, plan)


def _multiplies(use: _jaxpr.Use) -> bool:
    return use.equation.primitive.name == "mul"


def _dtypes(layers: Layers, leaves: Sequence[Any]) -> tuple[str, ...]:
    names = [
        str(x.dtype)
        for leaf, x in zip(layers.leaves, leaves, strict=True)
        for _ in np.ndindex(leaf.stack)
    ]
    return tuple(names[place] for place in layers.order)
