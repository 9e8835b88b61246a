"""One look at a loss as a program: what is known before it runs, and what running it tells."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.health.constant import ConstantOutput, constant_output
from vanishjax.health.floor import find_floor
from vanishjax.health.measurements import Floor
from vanishjax.health.statistics import Measurement, Statistics
from vanishjax.health.together import call_each
from vanishjax.health.watch import watch
from vanishjax.layers import Layers
from vanishjax.layers.traced import TracedLoss, traced_loss
from vanishjax.problem import loss_alone

# What the loss of a float16 network is multiplied by, lest its cotangent underflow before the first
# tap, where it would be rescaled: 1,024.
_FLOAT16_LOG_SCALE = 10 * math.log(2.0)
# What underflows on its way through many layers leaves smaller numbers than this before it is 0;
# what underflows from there in one step is as lost for the optimizer.
_ABRUPT = 2.0**-60


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

    def traced(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> TracedLoss:
        """The loss as a program."""
        return traced_loss(self.fn, *self.arguments(leaves, arrays))


class Plan(NamedTuple):
    """What is known of a loss before it is run."""

    layers: Layers
    events: tuple[_jaxpr.Event, ...]
    widths: tuple[tuple[int, int], ...]  # by tap
    activations: tuple[tuple[int, str | None], ...]  # by tap
    periods: tuple[tuple[int, float], ...]  # by tap
    types: tuple[tuple[int, str], ...]  # of the kernels' outputs, by tap
    dtypes: tuple[str, ...]  # of the layers of parameters
    unmeasured: tuple[str, ...]
    paths: _jaxpr.Paths
    watched: tuple[_jaxpr.Watched, ...]
    factors: tuple[str, ...]
    frozen: tuple[tuple[int, _jaxpr.Place | None], ...]  # by tap
    opaque: tuple[tuple[_jaxpr.Place | None, tuple[int, ...], tuple[str, ...]], ...]  # with taps
    crossed: tuple[_jaxpr.Place | None, ...]  # where outputs meet all targets; empty without
    heads: tuple[int, ...]  # the last kernels' taps


class Values(NamedTuple):
    """What running it told, on the host."""

    loss: np.ndarray[Any, Any]
    log_rms: dict[int, np.ndarray[Any, Any]]  # of the cotangents, by tap
    normalized: bool  # whether bottlenecks have taken out what they saw
    log_scale: float  # of the loss that they are of
    statistics: dict[int, Statistics]  # by tap
    rms: np.ndarray[Any, Any]  # of the gradients, by layer of parameters
    log_tapped_rms: np.ndarray[Any, Any]  # of the gradients with taps; NaN where not needed
    zero_fraction: np.ndarray[Any, Any]
    nonfinite: np.ndarray[Any, Any]
    parameter_rms: np.ndarray[Any, Any]
    watched: dict[int, np.ndarray[Any, Any]]
    constant: ConstantOutput
    floor: Floor | None


class _Arrays(NamedTuple):
    """What one run gives: numbers, and arrays whose numbers are yet to be taken."""

    loss: jax.Array
    cotangents: list[jax.Array]  # by tap; log(rms) of them in loops and at bottlenecks
    sites: dict[int, Any]  # by tap; `Statistics` where the tap stands in a loop
    gradients: list[jax.Array]  # by leaf
    watched: dict[int, jax.Array]
    constant: ConstantOutput


class _Known(NamedTuple):
    """What is known before a run, and needed after it."""

    plan: Plan
    measurements: tuple[tuple[int, Measurement], ...]  # by tap
    copied: tuple[int, ...]  # taps that give the cotangent itself


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["known"])
@dataclasses.dataclass
class _Run:
    """Both, so that what is known comes back from a compiled function."""

    arrays: Any
    known: Any


class _LeafNumbers(NamedTuple):
    """Of one leaf, for each of its layers; or of all leaves, in depth order."""

    rms: Any
    zero_fraction: Any
    nonfinite: Any
    parameter_rms: Any


@dataclasses.dataclass(frozen=True)
class _OfLeaf:
    """What is to be measured of a leaf: a function of its gradient and its parameters."""

    axes: tuple[int, ...]

    def __call__(self, gradient: jax.Array, parameters: jax.Array) -> _LeafNumbers:
        def rms(x: jax.Array) -> jax.Array:
            scale, rest = numerics.split_rms(x, self.axes)
            return jnp.squeeze(scale * rest, self.axes)

        return _LeafNumbers(
            rms(gradient),
            jnp.mean(gradient == 0, self.axes),
            jnp.any(~jnp.isfinite(gradient), self.axes),
            rms(parameters),
        )


@dataclasses.dataclass(frozen=True)
class _LogRms:
    """The logarithm of a leaf's root mean square: a function of it."""

    axes: tuple[int, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, rest = numerics.split_rms(x, self.axes)
        return jnp.squeeze(jnp.log(scale) + jnp.log(rest), self.axes)


def measure(loss: Loss, leaves: list[Any], arrays: list[Any]) -> tuple[Values, Plan]:
    """Traces a loss, puts taps on it, and runs it forward and backward.

    Where some cotangent or gradient may have underflowed it is run once more, and bottlenecks
    normalize what comes back.

    Args:
      loss: The loss.
      leaves: The parameters' leaves.
      arrays: The batch's arrays.

    Returns:
      What was measured, and what was known before.

    Raises:
      ValueError: The loss isn't a real number, or can't be differentiated.
    """
    run = _run(loss, leaves, arrays)
    found, (plan, measurements, copied) = run.arrays, run.known
    fns: list[Callable[..., Any]] = [measurement for _, measurement in measurements]
    fns += [_jaxpr.log_rms] * len(copied)
    fns += [_OfLeaf(leaf.inner_axes) for leaf in plan.layers.leaves]
    each = zip(found.gradients, leaves, strict=True)
    arguments = [
        *((found.sites[tap],) for tap, _ in measurements),
        *((found.cotangents[tap],) for tap in copied),
        *each,
    ]
    numbers = iter(call_each(fns, arguments))
    sites = found.sites | {tap: next(numbers) for tap, _ in measurements}
    log_rms = dict(enumerate(found.cotangents)) | {tap: next(numbers) for tap in copied}
    value, log_rms, sites, of_leaves, watched, constant = jax.device_get(
        (found.loss, log_rms, sites, list(numbers), found.watched, found.constant)
    )
    of_layers = _LeafNumbers(
        *(_by_layer(plan.layers, column) for column in zip(*of_leaves, strict=True))
    )
    types = {*plan.dtypes, *(name for _, name in plan.types)}
    with np.errstate(divide="ignore"):
        logs = np.concatenate([np.log(of_layers.rms), *map(np.ravel, log_rms.values())])
    normalized = not _told(logs, types)
    followed, log_scale = np.full(len(plan.layers), np.nan), 0.0
    if normalized:
        del run, found, arguments
        log_rms, followed, log_scale = _followed(loss, leaves, arrays, plan.layers)
    return Values(
        loss=value,
        log_rms=log_rms,
        normalized=normalized,
        log_scale=log_scale,
        statistics=sites,
        log_tapped_rms=followed,
        **of_layers._asdict(),
        watched=watched,
        constant=constant,
        floor=find_floor(loss, leaves, arrays, constant, plan.crossed),
    ), plan


@functools.partial(jit_once, static_argnums=0)
def _run(loss: Loss, leaves: list[Any], arrays: list[Any]) -> _Run:
    traced = loss.traced(leaves, arrays)
    program, layers, anatomy = traced.program, traced.layers, traced.anatomy
    aval = program.closed.out_avals[0]
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn must return a real number to be differentiated, got {aval.dtype}"
        )
    widths: dict[int, int] = {}
    activations: dict[int, str | None] = {}
    measurements: dict[int, Measurement] = {}

    types = {site.tap: site.dtype for site in anatomy.sites.values()}

    def observe(site: _jaxpr.Site, x: jax.Array) -> Any:
        widths[site.tap] = int(np.prod([x.shape[axis] for axis in site.units], dtype=int))
        activations[site.tap] = None if site.activation is None else site.activation.kind
        measurement = Measurement.of(site, first=site.tap in anatomy.first)
        if anatomy.lengths[site.tap]:
            return measurement(x)  # a loop would stack the arrays of all its turns
        measurements[site.tap] = measurement
        return x

    def tapped(dummies: list[Any], leaves: list[Any]) -> Any:
        arguments = [*leaves, *arrays]
        value, *rest = _jaxpr.tapped_loss(
            program, anatomy, observe, arguments, dummies, watch, normalize=False
        )
        return value, rest

    look = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
    try:
        (value, (sites, seen)), (cotangents, gradients) = look(_jaxpr.dummies_for(anatomy), leaves)
    except (TypeError, ValueError, NotImplementedError) as error:
        text = str(error).strip().splitlines()[0]
        own = _at_its_line(loss, leaves, arrays, error)
        raise ValueError(f"loss_fn can't be differentiated: {text}") from own

    plan = Plan(
        layers,
        anatomy.events,
        tuple(widths.items()),
        tuple(activations.items()),
        tuple((site.tap, site.period) for site in anatomy.sites.values()),
        tuple(types.items()),
        _dtypes(layers, leaves),
        tuple(layers.leaves[leaf].path for leaf in anatomy.hidden),
        anatomy.paths,
        anatomy.watches,
        tuple({layers.leaves[u.leaf].path: 0 for u in traced.trace.uses if _multiplies(u)}),
        tuple((tap, _jaxpr.place_of(eqn)) for tap, eqn in anatomy.frozen.items()),
        tuple(
            (_jaxpr.place_of(eqn), taps, tuple(layers.leaves[leaf].path for leaf in inside))
            for eqn, taps, inside in anatomy.opaque
        ),
        tuple(_jaxpr.place_of(eqn) for eqn in [_jaxpr.crossing(program, anatomy)] if eqn),
        tuple(site.tap for site in anatomy.last_sites),
    )
    constant = constant_output(traced, [*leaves, *arrays])
    told = _Arrays(value, cotangents, sites, gradients, seen, constant)
    copied = tuple(_jaxpr.copied(anatomy))
    return _Run(told, _Known(plan, tuple(measurements.items()), copied))


def _followed(
    loss: Loss, leaves: list[Any], arrays: list[Any], layers: Layers
) -> tuple[dict[int, np.ndarray[Any, Any]], np.ndarray[Any, Any], float]:
    """What never underflows, since bottlenecks normalize.

    Returns:
      By tap the logarithms of the cotangents' root mean squares, for each layer of parameters that
      of its gradient, and the logarithm of what the loss was multiplied by.
    """
    run = _normalizing(loss, leaves, arrays)
    (cotangents, gradients), (copied, log_scale) = run.arrays, run.known
    fns: list[Callable[..., Any]] = [_jaxpr.log_rms] * len(copied)
    fns += [_LogRms(leaf.inner_axes) for leaf in layers.leaves]
    arguments = [*((cotangents[tap],) for tap in copied), *((x,) for x in gradients)]
    numbers = call_each(fns, arguments)
    logs = dict(enumerate(cotangents)) | dict(zip(copied, numbers, strict=False))
    logs, of_leaves = jax.device_get((logs, numbers[len(copied) :]))
    return logs, _by_layer(layers, of_leaves), log_scale


def _at_its_line(loss: Loss, leaves: list[Any], arrays: list[Any], error: Exception) -> Exception:
    """The error of the loss itself, whose traceback has the user's line, or else `error`."""

    def plain(leaves: list[Any]) -> Any:
        return loss_alone(loss.fn(*loss.arguments(leaves, arrays)))

    try:
        jax.eval_shape(jax.grad(plain), leaves)
    except (TypeError, ValueError, NotImplementedError) as own:
        return own
    return error


@functools.partial(jit_once, static_argnums=0)
def _normalizing(loss: Loss, leaves: list[Any], arrays: list[Any]) -> _Run:
    """The cotangents and the gradients of the parameters, with bottlenecks that normalize."""
    traced = loss.traced(leaves, arrays)
    program, anatomy = traced.program, traced.anatomy
    log_scale = _log_scale(anatomy, leaves)

    def tapped(dummies: list[Any], leaves: list[Any]) -> jax.Array:
        value, *_ = _jaxpr.tapped_loss(
            program, anatomy, lambda *_: None, [*leaves, *arrays], dummies, normalize=True
        )
        return value * math.exp(log_scale)

    dummies = _jaxpr.dummies_for(anatomy)
    found = jax.grad(tapped, argnums=(0, 1))(dummies, leaves)
    return _Run(found, (tuple(_jaxpr.copied(anatomy)), log_scale))


def _told(logs: np.ndarray[Any, Any], types: Collection[str]) -> bool:
    """Whether one look has told the sizes of all cotangents and gradients, by their logarithms.

    What is 0 counts as 0, as behind a gain that is, unless anything else is on its way there. In a
    float16 network the first cotangent may have underflowed, and then all are 0.
    """
    zero = np.isneginf(logs)
    if "float16" in types and zero.all():
        return False
    least = max(map(underflow_free, types))
    limit = math.log(max(least, _ABRUPT) if zero.any() else least)
    return bool((zero | (np.isfinite(logs) & (logs > limit))).all())


def _log_scale(anatomy: _jaxpr.Anatomy, leaves: Sequence[Any]) -> float:
    types = {site.dtype for site in anatomy.sites.values()} | {str(x.dtype) for x in leaves}
    return _FLOAT16_LOG_SCALE if "float16" in types else 0.0


def underflow_free(dtype: str) -> float:
    """Of a gradient of this root mean square or more next to nothing was flushed to zero."""
    return 2.0**10 * float(jnp.finfo(dtype).tiny)


def _by_layer(layers: Layers, numbers: Sequence[Any]) -> np.ndarray[Any, Any]:
    """`[layers]` array in depth order, of what each leaf has of its own."""
    return np.concatenate([np.ravel(one) for one in numbers])[np.array(layers.order)]


def _multiplies(use: _jaxpr.Use) -> bool:
    return use.equation.primitive.name == "mul"


def _dtypes(layers: Layers, leaves: Sequence[Any]) -> tuple[str, ...]:
    names = [
        str(x.dtype)
        for leaf, x in zip(layers.leaves, leaves, strict=True)
        for _ in np.ndindex(leaf.stack)
    ]
    return tuple(names[place] for place in layers.order)
