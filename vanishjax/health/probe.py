"""One look at a network: what goes forward and what comes back, layer by layer."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.health.constant import constant_loss
from vanishjax.health.finding import json_value
from vanishjax.health.statistics import Statistics, statistics
from vanishjax.health.supply import Instance, Supply, fading
from vanishjax.health.watch import watch
from vanishjax.layers import Layers
from vanishjax.layers.order import layers_met, parameter_leaves
from vanishjax.placement import gathered
from vanishjax.problem import MISSING, Problem, network_of
from vanishjax.validation import check_floating

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterGradients:
    """The gradient of every layer of parameters, biases included: arrays `[len(layers)]`.

    Attributes:
      layers: The layers.
      rms: Root mean square, as the optimizer gets it.
      log_rms: Its logarithm, had nothing underflowed; that of `rms` where the cotangent can't be
        followed.
      zero_fraction: Share of entries that are exactly 0.
      nonfinite: Whether any entry is infinite or NaN.
      parameter_rms: Root mean square of the parameters themselves.
    """

    layers: Layers
    rms: Vector
    log_rms: Vector
    zero_fraction: Vector
    nonfinite: np.ndarray[Any, np.dtype[np.bool_]]
    parameter_rms: Vector


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """What `probe` measured; arrays are `[layers]`, float64, in depth order.

    A layer here is a place where a kernel meets the data: a matrix product, a convolution or a
    lookup. Its cotangent is that of the loss with respect to the kernel's output.

    Attributes:
      names: A name for each layer: the kernel's path and its index in a stack; "@" and a number
        where one kernel is used many times.
      log_chi: ln(|cotangent here|^2 / |cotangent at the next layer|^2), 0 at the last layer. In a
        residual network the cotangents compared are those of the stream that the blocks add to;
        layers before the first output through which all gradient passes count as one.
      sum_log_chi: Their sum: how much of the gradient's energy reaches the first layer, in nats.
      gradient_rms: Root mean square of the kernel's gradient, as the optimizer gets it.
      log_gradient_rms: Its logarithm had nothing underflowed on the way.
      backward_rms: Root mean square of the cotangent.
      log_backward_rms: Its logarithm, right even where the cotangent itself would be 0.
      preactivation_rms: Of what the layer's activation is applied to.
      activation_rms: Of what comes out.
      centered_energy: Share of the activations' energy that tells inputs apart; NaN for one input.
      effective_rank: Dimensions in which they differ, (tr C)^2 / tr C^2 of their covariance.
      widths: Units of each layer.
      dead_fraction: Share of units whose activation has slope 0 at every input.
      saturated_fraction: Share of slopes below 5 % of the steepest, of a bounded activation.
      slope_rms: Root mean square of the activation's slope.
      activations: For each layer the kind of its activation, "rectifier", "unit_slope" (as
        tanh) or "other"; None without one.
      is_chain: Whether all gradient to earlier layers passes through this layer's output.
      dtypes: The number type that limits the gradient: of the kernel or of its output.
      loss: The loss.
      batch_size: Length of the batch's first axis, 0 if unknown.
      parameters: The gradients of all parameters.
      unmeasured: Kernels inside functions that can't be looked into, such as a `custom_vjp`.
      reach: Nats of the gradient's energy between where it is largest downstream of a layer, along
        the paths on which it flows, and the layer; of a kernel that is used many times the least
        loss of all its uses. 0 or less.
      factors: Paths of parameters that multiply the data entry by entry: gains.
      token_energy: Share of the energy that tells positions of a sequence apart, in what the last
        kernel of several positions takes in; NaN without one.
      token_layer: The index of that kernel's layer; -1 without one.
      softmaxes: For each softmax inside the network the names of the layers that feed it, and the
        share of its rows that are all but one-hot.
      constant_loss: The least loss that one output of the last layer for all inputs reaches; NaN
        where the last layer stands in a loop.
      memory: For each kernel that a loop uses anew in every step the nats of energy that the
        gradient loses in a step back, and the number of steps.
      supply: By which paths the gradient gets to each layer.

    Example:
      >>> found = probe(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2), jnp.ones((3, 2)), jnp.eye(3))
      >>> print(len(found), found.widths, found.dead_fraction, found.preactivation_rms)
      1 [2] [0.] [1.]

    References:
      Schoenholz et al., Deep information propagation, 2017, for chi.
    """

    names: tuple[str, ...]
    log_chi: Vector
    sum_log_chi: float
    gradient_rms: Vector
    log_gradient_rms: Vector
    backward_rms: Vector
    log_backward_rms: Vector
    preactivation_rms: Vector
    activation_rms: Vector
    centered_energy: Vector
    effective_rank: Vector
    widths: np.ndarray[Any, np.dtype[np.int64]]
    dead_fraction: Vector
    saturated_fraction: Vector
    slope_rms: Vector
    is_chain: np.ndarray[Any, np.dtype[np.bool_]]
    dtypes: tuple[str, ...]
    loss: float
    batch_size: int
    parameters: ParameterGradients
    activations: tuple[str | None, ...] = ()
    unmeasured: tuple[str, ...] = ()
    reach: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    factors: tuple[str, ...] = ()
    token_energy: float = math.nan
    token_layer: int = -1
    softmaxes: tuple[tuple[tuple[str, ...], float], ...] = ()
    constant_loss: float = math.nan
    memory: tuple[tuple[str, float, int], ...] = ()
    supply: Supply | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON types; None where a number isn't finite."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("parameters", "supply")
        }
        own = {
            field.name: getattr(self.parameters, field.name)
            for field in dataclasses.fields(self.parameters)
            if field.name != "layers"
        }
        parameters = {"names": self.parameters.layers.names, **own}
        whole: dict[str, Any] = json_value(plain | {"parameters": parameters})
        return whole


def probe(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    *,
    model_state: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
) -> Probe:
    """Measures a network on one batch, in one compiled forward and backward pass.

    The loss is traced, and taps are put on every kernel's output. At every output through which all
    gradient passes the tap rescales the cotangent to root mean square 1 and keeps the logarithm of
    what it was, so that the numbers are right at depth 1,000, where every gradient is exactly 0. A
    second, plain backward pass gives the gradients as an optimizer gets them. It's compiled once
    for each `loss_fn`: pass the same function object again to save that.

    `probe(problem, batch)` looks at a `Problem`, in training mode, with one fixed key. Arrays that
    are spread over a mesh are brought together on one device, unless the loss lays down how they
    are spread.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`, differentiable; any JAX code.
        Or a problem.
      params: Its parameters, real floating-point arrays.
      batch: What it takes; arrays have the batch first.
      model_state: As in `Problem`.
      has_aux: As in `Problem`.
      with_key: As in `Problem`.
      with_state: As in `Problem`.

    Returns:
      The measurements.

    Raises:
      ValueError: There are no parameters, the loss isn't one number, can't be differentiated, or
        the batch is empty or holds NaN or infinity.
      TypeError: The loss doesn't return what the flags say, or a problem came with parts of one.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 200, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (32, 8)), jnp.arange(32) % 4
      >>> found = probe(problem.loss_fn, problem.params, batch)
      >>> print(found.names[1], round(found.sum_log_chi / 200, 1), found.gradient_rms[0])
      hidden_stack/kernel[0] -2.9 0.0
    """
    problem, batch = network_of(
        loss_fn,
        params,
        batch,
        model_state=model_state,
        has_aux=has_aux,
        with_key=with_key,
        with_state=with_state,
    )
    check_floating(problem.params)
    if not jax.tree.leaves(problem.params):
        raise ValueError("params holds no arrays: pass the parameters that loss_fn is trained by")
    _check_batch(batch)
    alone = problem.gathered(), gathered(batch)
    if alone[0] is problem and alone[1] is batch:
        return _probe(problem, batch)
    try:
        return _probe(*alone)
    except Exception:
        # A loss may lay down how its arrays are spread (shard_map): then they must be.
        return _probe(problem, batch)


def _probe(problem: Problem, batch: Any) -> Probe:
    leaves, structure = jax.tree_util.tree_flatten(problem.params)
    inputs, batch_structure = jax.tree_util.tree_flatten(batch)
    arrays = [x for x in inputs if _jaxpr.is_array(x)]
    settings = tuple(None if _jaxpr.is_array(x) else _Setting(x) for x in inputs)
    loss = _Loss(problem.plain_loss, structure, batch_structure, settings)
    measured = _measure(loss, [jnp.asarray(x) for x in leaves], arrays)
    return _assemble(jax.device_get(measured.values), measured.plan, batch)


class _Setting(NamedTuple):
    """What stands in a batch beside arrays: a flag, a name."""

    value: Any


class _Loss(NamedTuple):
    """A loss and how its arguments come apart: hashable, so that compilation happens once."""

    fn: Callable[[Any, Any], Any]
    structure: Any
    batch_structure: Any
    settings: tuple[_Setting | None, ...]

    def arguments(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, Any]:
        rest = iter(arrays)
        inputs = [next(rest) if one is None else one.value for one in self.settings]
        return (
            jax.tree_util.tree_unflatten(self.structure, leaves),
            jax.tree_util.tree_unflatten(self.batch_structure, inputs),
        )


class _Plan(NamedTuple):
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


class _Values(NamedTuple):
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
class _Measured:
    values: _Values
    plan: _Plan


@functools.partial(jit_once, static_argnums=0)
def _measure(loss: _Loss, leaves: list[Any], arrays: list[Any]) -> _Measured:
    params, batch = loss.arguments(leaves, arrays)
    program = _jaxpr.trace_loss(loss.fn, params, batch)
    aval = program.closed.out_avals[0]
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn must return a real number to be differentiated, got {aval.dtype}"
        )
    program = _jaxpr.flatten(program)
    trace = _jaxpr.parameter_uses(program)
    layers = layers_met(parameter_leaves(params), trace)
    anatomy = _jaxpr.dissect(program, trace)
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
        value = loss.fn(*loss.arguments(leaves, arrays))
        return value[0] if isinstance(value, tuple) else value

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
    values = _Values(
        value,
        log_rms,
        log_scale,
        found,
        layers.reduce(rms_of, gradient),
        layers.reduce(log_rms_of, tree(tapped_gradients)),
        layers.reduce(lambda g, axes: jnp.mean(g == 0, axes), gradient),
        layers.reduce(lambda g, axes: jnp.any(~jnp.isfinite(g), axes), gradient),
        layers.reduce(rms_of, params),
        seen,
        constant_loss(program, anatomy, [*leaves, *arrays]),
    )
    plan = _Plan(
        layers,
        anatomy.events,
        tuple(widths.items()),
        tuple(activations.items()),
        tuple(types.items()),
        _dtypes(layers, leaves),
        tuple(layers.leaves[leaf].path for leaf in anatomy.hidden),
        anatomy.paths,
        tuple(anatomy.watched.values()),
        tuple({layers.leaves[u.leaf].path: 0 for u in trace.uses if _multiplies(u)}),
    )
    return _Measured(values, plan)


def _multiplies(use: _jaxpr.Use) -> bool:
    return use.equation.primitive.name == "mul"


def _dtypes(layers: Layers, leaves: Sequence[Any]) -> tuple[str, ...]:
    names = [
        str(x.dtype)
        for leaf, x in zip(layers.leaves, leaves, strict=True)
        for _ in np.ndindex(leaf.stack)
    ]
    return tuple(names[place] for place in layers.order)


def _narrower(a: str, b: str) -> str:
    """Of two number types the one that holds no numbers as small, or else the coarser one."""
    return max(a, b, key=lambda x: (float(jnp.finfo(x).tiny), float(jnp.finfo(x).eps)))


# From taps to layers.


def _instances(events: Sequence[_jaxpr.Event], index: tuple[int, ...] = ()) -> Iterator[Instance]:
    for event in events:
        if isinstance(event, _jaxpr.Passing):
            yield Instance(event, index)
        else:
            turns = range(event.length)
            for turn in reversed(turns) if event.reverse else turns:
                yield from _instances(event.events, (*index, turn))


def _assemble(values: _Values, plan: _Plan, batch: Any) -> Probe:
    passed = list(_instances(plan.events))
    own = np.array([values.log_rms[one.event.tap][one.turns] for one in passed], np.float64)
    normalizes = np.array([one.event.normalizes for one in passed], bool)
    # What the bottlenecks further down took out.
    taken = np.concatenate([np.cumsum(np.where(normalizes, own, 0.0)[::-1])[::-1], [0.0]])
    taken -= float(values.log_scale)
    log_rms = own + taken[1:]
    log_norm = log_rms + 0.5 * np.log([max(1, one.event.size) for one in passed])
    stream = _stream(log_norm, normalizes)

    sites = np.array([i for i, one in enumerate(passed) if one.event.leaf >= 0], int)
    flows = stream[sites]
    with np.errstate(invalid="ignore"):
        log_chi = np.append(2 * (flows[:-1] - flows[1:]), 0.0)[: len(sites)]
        total = float(2 * (flows[0] - flows[-1])) if len(sites) else 0.0
    names, places = _names(plan.layers, [passed[i] for i in sites])
    widths, activations, types = dict(plan.widths), dict(plan.activations), dict(plan.types)
    dtypes = tuple(
        _narrower(types[passed[i].event.tap], plan.dtypes[place])
        for i, place in zip(sites, places, strict=True)
    )
    parameters = _parameters(values, plan, places, taken[:-1][sites], dtypes)
    watched = _watched(values, plan, [passed[i] for i in sites], names)
    supply = Supply.of(passed, log_norm, places, plan.paths)

    def of_sites(field: str) -> Vector:
        return np.array(
            [
                getattr(values.statistics[passed[i].event.tap], field)[passed[i].turns]
                for i in sites
            ],
            np.float64,
        )

    return Probe(
        names=names,
        log_chi=log_chi,
        sum_log_chi=total,
        gradient_rms=parameters.rms[places],
        log_gradient_rms=parameters.log_rms[places],
        backward_rms=np.exp(log_rms[sites]),
        log_backward_rms=log_rms[sites],
        **{field: of_sites(field) for field in Statistics._fields},
        widths=np.array([widths[passed[i].event.tap] for i in sites], int),
        is_chain=normalizes[sites],
        dtypes=dtypes,
        loss=float(values.loss),
        batch_size=_batch_size(batch),
        parameters=parameters,
        activations=tuple(activations[passed[i].event.tap] for i in sites),
        unmeasured=plan.unmeasured,
        reach=supply.reach[sites],
        factors=plan.factors,
        token_energy=watched.token_energy,
        token_layer=watched.token_layer,
        softmaxes=watched.softmaxes,
        constant_loss=float(values.constant_loss),
        memory=_memory(passed, log_norm, plan.layers),
        supply=supply,
    )


def _stream(log_norm: Vector, normalizes: np.ndarray[Any, Any]) -> Vector:
    """For each tap the norm at the nearest bottleneck, itself or further up.

    What lies before the first bottleneck counts as one group, with the largest of its norms.
    """
    nearest = np.maximum.accumulate(np.where(normalizes, np.arange(len(log_norm)), -1))
    group = np.max(log_norm[nearest < 0], initial=-np.inf)
    return np.where(nearest >= 0, log_norm[nearest], group)


def _names(
    layers: Layers, sites: Sequence[Instance]
) -> tuple[tuple[str, ...], np.ndarray[Any, Any]]:
    """A name for each site, and the place of its kernel among the layers of parameters."""
    ends = np.cumsum([0, *(int(np.prod(leaf.stack)) for leaf in layers.leaves)])
    ranks = np.argsort(np.array(layers.order, int))
    names, places = [], []
    for (_, _, _, number, axes), index in sites:
        leaf = layers.leaves[number]
        own = tuple(np.array(index, int)[np.argsort(axes)]) if len(axes) == len(index) else ()
        matches = tuple(sorted(axes)) == leaf.axes and len(own) == len(leaf.axes)
        offset = int(np.ravel_multi_index(own, leaf.stack)) if matches and own else 0
        place = int(ranks[ends[number] + offset])
        places.append(place)
        names.append(layers.names[place] if matches else leaf.path)
    total, seen = collections.Counter(names), collections.Counter[str]()
    for i, name in enumerate(names):
        if total[name] > 1:
            names[i] = f"{name}@{seen[name]}"
            seen[name] += 1
    return tuple(names), np.array(places, int)


def _memory(
    passed: Sequence[Instance], log_norm: Vector, layers: Layers
) -> tuple[tuple[str, float, int], ...]:
    leaves = {one.event.tap: one.event.leaf for one in passed}
    return tuple(
        (layers.leaves[leaves[tap]].path, nats, steps)
        for tap, (nats, steps) in fading(passed, log_norm).items()
    )


class _Sequences(NamedTuple):
    token_energy: float = math.nan
    token_layer: int = -1
    softmaxes: tuple[tuple[tuple[str, ...], float], ...] = ()


def _watched(
    values: _Values, plan: _Plan, sites: Sequence[Instance], names: Sequence[str]
) -> _Sequences:
    """What was seen of softmaxes, and of the positions that the last such kernel takes in."""
    found = _Sequences()
    softmaxes: list[tuple[tuple[str, ...], float]] = []
    for one in plan.watched:
        seen = np.asarray(values.watched[one.number], np.float64)
        if one.kind == "intake":
            places = [i for i, site in enumerate(sites) if site.event.tap == one.taps[0]]
            found = _Sequences(float(seen.flat[-1]), places[-1])
            continue
        feeding: dict[tuple[int, ...], list[str]] = {}
        for name, site in zip(names, sites, strict=True):
            if site.event.tap in one.taps:
                feeding.setdefault(site.turns[: seen.ndim], []).append(name)
        softmaxes += [
            (tuple(own), float(seen[turns]))
            for turns, own in feeding.items()
            if len(turns) == seen.ndim
        ]
    return found._replace(softmaxes=tuple(softmaxes))


# What the loss of a float16 network is multiplied by, lest its cotangent underflow before the first
# tap, where it would be rescaled: 1,024.
_FLOAT16_LOG_SCALE = 10 * math.log(2.0)

# Of a gradient this many times the least normal number of its type next to nothing was flushed.
_UNDERFLOW_FREE = 2.0**10


def _parameters(
    values: _Values,
    plan: _Plan,
    places: np.ndarray[Any, Any],
    taken: Vector,
    dtypes: Sequence[str],
) -> ParameterGradients:
    """The gradients of all parameters; a kernel with a single tap is right where it underflows."""
    rms = np.asarray(values.rms, np.float64)
    with np.errstate(divide="ignore"):
        log_rms = np.log(rms)
    uses = np.bincount(places, minlength=len(rms))
    tapped = np.asarray(values.log_tapped_rms, np.float64)
    for place, log_scale, dtype in zip(places, taken, dtypes, strict=True):
        least = _UNDERFLOW_FREE * float(jnp.finfo(dtype).tiny)
        followed = tapped[place] + log_scale
        if uses[place] == 1 and not rms[place] > least and not np.isnan(followed):
            log_rms[place] = followed
    return ParameterGradients(
        plan.layers,
        rms,
        log_rms,
        np.asarray(values.zero_fraction, np.float64),
        np.asarray(values.nonfinite, bool),
        np.asarray(values.parameter_rms, np.float64),
    )


# The batch.


def _check_batch(batch: Any) -> None:
    for path, x in jax.tree_util.tree_flatten_with_path(batch)[0]:
        if not _jaxpr.is_array(x):
            continue
        name = "batch" + jax.tree_util.keystr(path)
        if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool or _is_key(x)):
            raise ValueError(f"{name} is an array of {x.dtype}: pass numbers")
        if x.size == 0:
            raise ValueError(f"{name} is empty: its shape is {tuple(x.shape)}")
        if jnp.issubdtype(x.dtype, jnp.inexact):
            # In the type that the loss will get: without x64, a float64 of 1e45 is infinite in it.
            with np.errstate(over="ignore"):
                held = np.asarray(x).astype(jax.dtypes.canonicalize_dtype(x.dtype))
            wrong = np.argwhere(~np.isfinite(held))
            if len(wrong):
                raise ValueError(
                    f"{name} holds {len(wrong)} values that are infinite or NaN, the first at "
                    f"index {tuple(map(int, wrong[0]))}: clean the input"
                )


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _batch_size(batch: Any) -> int:
    shapes = [np.shape(x) for x in jax.tree.leaves(batch) if _jaxpr.is_array(x)]
    return shapes[0][0] if shapes and shapes[0] else 0
