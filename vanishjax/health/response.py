"""How the step that a transform takes depends on the size of the gradient."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr

from vanishjax import _jaxpr, numerics
from vanishjax.layers import Layers
from vanishjax.transforms.arguments import as_transform
from vanishjax.transforms.per_layer import check_layers, layers_of

# Float32's normal numbers, six octaves apart up to sizes that no gradient in use has.
GRADIENT_RMS = tuple(2.0**exponent for exponent in range(-126, 19, 6))
# Float64's below them, further apart.
_SMALLER = tuple(2.0**exponent for exponent in range(-1022, -126, 32))
# Whether steps grow with gradients or not is judged where the whole gradient's norm is 1/256 to
# 1/32: above what an epsilon eats (1e-8 to 1e-5 an entry), below where clipping sets in (0.1 to 1).
_HEALTHY_NORM = 2.0**-5
_SPAN = 8.0
# A billion parameters would push that below the least gradient that Adam's usual epsilon lets by.
_LEAST_HEALTHY_RMS = 2.0**-22
# Far above any epsilon in use (1e-8 to 1), and above that of float16 as far as squares fit into it.
# Steps that grow by less than this between the two don't depend on the size any more.
_LARGE, _LARGE_HALF, _FLAT = (512.0, 4096.0), (8.0, 64.0), 1.5
# With a quarter of the entries alone a step of the same entries' is half as large; one that a norm
# held back is as large as it was.
_SPARSE, _APART = 4, 0.75
# How many sizes are measured, if not all.
_COUNTS = (4, 8, 16)
# Extra arguments that only a training step can give.
_OF_A_STEP = ("'grad'", "'value_fn'")
# What counts as all: logarithms of sizes near the ends of the range are this far off.
_CERTAIN = 2.0**-16


class Response(NamedTuple):
    """The steps that a transform takes for gradients of all sizes.

    Attributes:
      gradient_rms: `[sizes]`, ascending powers of two: the root mean square of every layer's
        gradient.
      update_rms: `[sizes, layers]`, the root mean square of what that gradient moves; what a zero
        gradient moves (weight decay) is taken off.
      degree: `[layers]`, 1 if the step of a healthy gradient grows with it (sgd), 0 if it doesn't
        (Adam, sign, Muon).
      effectiveness: `[sizes, layers]`, share in [0, 1] that is left of the step: see
        `effectiveness`.
    """

    gradient_rms: jax.Array
    update_rms: jax.Array
    degree: jax.Array
    effectiveness: jax.Array


def gradient_sizes(dtype: Any) -> tuple[float, ...]:
    """The sizes of gradient at which steps are measured, for parameters of a type."""
    return (*_SMALLER, *GRADIENT_RMS) if jnp.finfo(dtype).bits == 64 else GRADIENT_RMS


def sizes_around(gradient_rms: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Those of `gradient_sizes` that `effectiveness` needs at these: fewer, as a rule.

    Args:
      gradient_rms: `[layers]`; where one is no number or none, the ends are needed.
      dtype: As in `gradient_sizes`.

    Returns:
      Ascending sizes; one of few possible numbers of them, for programs that serve again.

    Example:
      >>> len(gradient_sizes("float32")), len(sizes_around(np.array([1e-4, 2e-4]), "float32"))
      (25, 4)
    """
    sizes = np.array(gradient_sizes(dtype))
    rms = np.asarray(gradient_rms, np.float64)
    known = np.isfinite(rms) & (rms > 0)
    below = np.clip(np.searchsorted(sizes, rms[known], side="right") - 1, 0, len(sizes) - 2)
    needed = {*below.tolist(), *(below + 1).tolist()}
    if not known.all():
        needed |= {0, 1, len(sizes) - 2, len(sizes) - 1}
    count = next((n for n in _COUNTS if len(needed) <= n <= len(sizes)), len(sizes))
    others = (place for place in range(len(sizes)) if place not in needed)
    needed.update(itertools.islice(others, count - len(needed)))
    return sizes[sorted(needed)]


def step_response(
    tx: optax.GradientTransformation, params: optax.Params, layers: Layers | None = None
) -> Response:
    r"""Measures the step that a transform takes as a function of the gradient's size.

    The transform is a black box: from a fresh state it gets a fixed pattern of +1 and -1 times each
    size twice, and the second update is measured, since a warm-up's first may be zero.

    With R(g) the root mean square of the step, w a healthy size (the whole gradient's norm is 1/32)
    and d the degree, the slope of log R below w rounded to 0 or 1:

    .. math:: e(g) = \min\left(1, \frac{R(g)\, g^{-d}}{R(w)\, w^{-d}}\right)

    for g < w, and 1 above as long as the step is finite and not zero: what clipping holds back is
    not lost. An epsilon above 1e-4 counts as none here, and clipping below a norm of
    1/32 as one: how large a step gets for a large gradient, which `diagnose` measures as well,
    tells the one; how it grows where fewer entries have a gradient, the other.

    Args:
      tx: The transform. Extra arguments: it gets `value`, 1.
      params: The parameters, of any real floating-point type; gradients are kept in its range.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      The response. Where the transform answers no size of gradient at all (frozen layers,
      accumulation over more than two steps), or with no finite step, or wants the loss function
      (line searches), `effectiveness` is NaN: nothing is known.

    Raises:
      ValueError: A leaf that is not floating point, layers of another tree, or a tree without
        leaves.

    Cost: one init and two updates for each of 28 sizes (56 in float64), compiled once in a scan,
    and the memory of a training step's gradient, state and two updates. Pure: it works under jit
    and eval_shape.

    Example:
      >>> response = step_response(optax.adam(1e-3), jnp.ones((4, 4)))
      >>> print(effectiveness(response, 1e-12).round(6), response.degree)
      [0.0001] [0.]
    """
    check_layers(layers, params)
    found = layers_of(layers, params)
    if not len(found):
        raise ValueError("expected parameters, got a tree without leaves")
    params = jax.tree.map(jnp.asarray, params)
    sizes = np.array(gradient_sizes(numerics.common_dtype(params)))
    return measure_steps(trace_steps(tx, params), jax.tree.leaves(params), found, sizes)[0]


class Steps:
    """Two steps of a transform from a fresh state, as a program of a size, signs and parameters.

    Those of two transforms are equal if they are the same program: as static arguments they share
    what is compiled of it.

    Attributes:
      traced: The program; None if the transform wants the loss function.
      program: What tells it from others: its text, with its constants; or, where that doesn't tell
        all, the transform.
    """

    def __init__(self, tx: optax.GradientTransformation, traced: _Traced | None) -> None:
        self._tx = tx
        self.traced = traced

    @functools.cached_property
    def program(self) -> Hashable:
        """Written out when it is asked for: of a thousand arrays that takes its time."""
        if self.traced is None:
            return self._tx
        text = _jaxpr.identity(self.traced.closed)
        return self._tx if text is None else (text, jax.tree.structure(self.traced.shapes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and self.program == other.program

    def __hash__(self) -> int:
        return hash(self.program)


class _Traced(NamedTuple):
    """A program and the tree of its results."""

    closed: ClosedJaxpr
    shapes: Any


def trace_steps(tx: optax.GradientTransformation, params: optax.Params) -> Steps:
    """Traces the two updates that `step_response` measures.

    Args:
      tx: The transform.
      params: The parameters, or what tells their shapes and types.

    Returns:
      What `measure_steps` takes.
    """
    extended = as_transform(tx, "tx")
    leaves, structure = jax.tree.flatten(params)

    @jax.jit  # traced once for both updates
    def update(gradient: Any, state: Any, params: Any) -> Any:
        return extended.update(gradient, state, params, value=jnp.ones([]))

    def steps(size: jax.Array, signs: jax.Array, leaves: list[jax.Array]) -> Any:
        gradient = [
            _scaled(signs[: leaf.size].reshape(leaf.shape).astype(leaf.dtype), size)
            for leaf in leaves
        ]
        params = jax.tree.unflatten(structure, leaves)
        state = extended.init(params)
        for _ in range(2):
            step, state = update(jax.tree.unflatten(structure, gradient), state, params)
        return jax.tree.map(numerics.upcast, step)

    size = jax.ShapeDtypeStruct((), numerics.common_dtype(leaves))
    signs = jax.ShapeDtypeStruct((max(leaf.size for leaf in leaves),), jnp.int8)
    try:
        traced = _Traced(*jax.make_jaxpr(steps, return_shape=True)(size, signs, leaves))
    except TypeError as error:
        if not any(name in str(error) for name in _OF_A_STEP):
            raise
        return Steps(tx, None)
    return Steps(tx, traced)


def measure_steps(
    steps: Steps, leaves: list[jax.Array], layers: Layers, gradient_rms: jax.typing.ArrayLike
) -> tuple[Response, jax.Array, jax.Array]:
    """Runs the two updates at some sizes, and says what `step_response` says of them.

    Args:
      steps: The updates, traced.
      leaves: The parameters' leaves.
      layers: Division of their tree into layers.
      gradient_rms: The sizes, ascending.

    Returns:
      The response, `[layers]` the root mean square of what a zero gradient moves, and `[layers]`
      that of the step of a large gradient, which an epsilon takes nothing from: NaN where steps
      grow on, or where it is a norm that holds them back.
    """
    dtype = numerics.common_dtype(leaves)
    if steps.traced is None:
        unknown = _unknown(len(layers), jnp.asarray(gradient_rms, dtype))
        return unknown, unknown.degree, unknown.degree
    traced, shapes = steps.traced
    # One draw, of which every leaf takes as much as it has entries: what then is done to leaves of
    # one shape is the same.
    largest = max(map(jnp.size, leaves))
    signs = jax.random.rademacher(jax.random.key(0), (largest,), jnp.int8)
    chosen = jax.random.randint(jax.random.key(1), (largest,), 0, _SPARSE, jnp.int8) == 0
    folded = _jaxpr.Folded(traced)
    places = dict(zip(map(id, jax.tree.leaves(shapes)), folded.places, strict=True))

    def measure(still: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        size, sparse = given
        step = folded(size, jnp.where(sparse, signs * chosen, signs), *leaves)
        # Where nothing moves the difference would be the rounding error of the step's last product:
        # a compiler fuses the two.
        moved = [
            jnp.where(jnp.isfinite(new) & (new == old), 0, new - old)
            for new, old in zip(step, still, strict=True)
        ]
        # The first size is zero: what moves then is no response to the gradient.
        still = [jnp.where(size == 0, new, old) for new, old in zip(step, still, strict=True)]

        @functools.cache
        def sizes(array: int, axes: tuple[int, ...]) -> jax.Array:
            rows = tuple(axis + 1 for axis in axes)
            scale, rest = numerics.split_rms(moved[array], rows)
            return jnp.squeeze(scale * rest, rows).astype(dtype)

        def of_leaf(shape: jax.ShapeDtypeStruct, axes: tuple[int, ...]) -> jax.Array:
            array, row = places[id(shape)]
            return sizes(array, axes)[row]

        return still, layers.reduce(of_leaf, shapes)

    nothing = [jnp.zeros(x.shape, x.dtype) for x in folded.shapes]
    entries = sum(leaf.size for leaf in leaves)
    healthy = max(_HEALTHY_NORM / max(entries, 1) ** 0.5, _LEAST_HEALTHY_RMS)
    measured = jnp.asarray(gradient_rms, dtype)
    far = _LARGE_HALF if any(leaf.dtype == jnp.float16 for leaf in leaves) else _LARGE
    own = jnp.array([0.0, healthy / _SPAN, healthy, *far, far[1]], dtype)
    sizes, last = jnp.concatenate([own, measured]), len(own) - 1
    given = sizes, jnp.arange(len(sizes)) == last
    _, update_rms = jax.lax.scan(measure, nothing, given)
    still, lower, reference, large, larger, sparse = update_rms[: len(own)]
    found = _response(measured, healthy, lower, reference, update_rms[len(own) :])
    entrywise = (larger < _FLAT * large) & (sparse < _APART * larger)
    return found, still, jnp.where(entrywise, larger, jnp.nan)


def effectiveness(response: Response, gradient_rms: jax.typing.ArrayLike) -> jax.Array:
    """How much of each layer's step is left at the size that its gradient has.

    1: the layer takes the step that the transform would give a healthy gradient (in proportion to
    the gradient, where the transform's steps are). 0: all of it is lost to an epsilon, to moments
    that were flushed to zero, or to an update too small for its type. Between the measured sizes
    the log odds of the share are a straight line, as they are where g / (g + eps) is left; outside
    the curve is flat. A gradient of exactly zero has 1: where there is no step, none is lost.

    Args:
      response: What `step_response` measured.
      gradient_rms: `[layers]`, the root mean square of each layer's gradient.

    Returns:
      `[layers]` in [0, 1], of the response's type; NaN where the gradient or the response is
      unknown.

    Example:
      >>> response = step_response(optax.sgd(0.1), jnp.ones(4))
      >>> print(effectiveness(response, 1e-30))
      [1.]
    """
    sizes = jnp.log2(response.gradient_rms)
    rms = jnp.asarray(gradient_rms, sizes.dtype)
    nothing = _nothing(sizes.dtype)
    place = jnp.log2(numerics.at_least(rms, nothing))
    below = jnp.clip(jnp.sum(place[..., None] >= sizes, axis=-1) - 1, 0, len(sizes) - 2)
    along = (place - sizes[below]) / (sizes[below + 1] - sizes[below])
    along = jnp.clip(along, 0.0, 1.0)
    column = jnp.arange(response.degree.shape[0])
    ends = response.effectiveness[below, column], response.effectiveness[below + 1, column]
    # Kept out of the arithmetic: of a NaN that stands in the program itself XLA's `exp2` for CPUs
    # makes any number.
    unknown = jnp.isnan(rms) | jnp.isnan(ends[0]) | jnp.isnan(ends[1])
    start, end = (jnp.where(unknown, 1.0, share) for share in ends)
    # Beside a size of which nothing is left there is a cliff, not a line.
    along = jnp.where((start == 0) | (end == 0), jnp.round(along), along)
    odds = _log_odds(start) + along * (_log_odds(end) - _log_odds(start))
    left = 1 / (1 + jnp.exp2(-odds))
    left = jnp.where(odds >= -math.log2(_CERTAIN), 1.0, left)
    left = jnp.where(rms == 0, 1.0, jnp.where(left <= 2 * nothing, 0.0, left))
    return jnp.where(unknown, jnp.nan, left)


def _nothing(dtype: Any) -> float:
    """What counts as nothing: the least normal number, so that its logarithm is finite."""
    return float(jnp.finfo(dtype).tiny)


def _log_odds(share: jax.Array) -> jax.Array:
    """log2 of e / (1 - e), kept finite; NaN stays NaN."""
    left = numerics.at_least(share, _nothing(share.dtype))
    return jnp.log2(left) - jnp.log2(numerics.at_least(1 - share, _CERTAIN))


def _scaled(pattern: jax.Array, size: jax.Array) -> jax.Array:
    """The pattern times a size, kept among the numbers of its type; zero stays zero."""
    info = jnp.finfo(pattern.dtype)
    least = max(float(info.smallest_subnormal), _nothing(numerics.accumulator_dtype(pattern.dtype)))
    size = jnp.where(size == 0, 0.0, jnp.clip(size, least, float(info.max)))
    return pattern * size.astype(pattern.dtype)


def _unknown(layers: int, sizes: jax.Array) -> Response:
    unknown = jnp.full((len(sizes), layers), jnp.nan, sizes.dtype)
    return Response(sizes, unknown, jnp.full(layers, jnp.nan, sizes.dtype), jnp.copy(unknown))


def _response(
    rms: jax.Array,
    healthy: float,
    lower: jax.Array,
    reference: jax.Array,
    update_rms: jax.Array,
) -> Response:
    slope = jnp.log2(numerics.divide(reference, lower)) / math.log2(_SPAN)
    # A slope that is not a number: no step, or no finite one.
    degree = jnp.where(slope > 0.5, 1.0, 0.0).astype(rms.dtype)
    finite = jnp.where(jnp.isfinite(update_rms), update_rms, 0.0)
    # In logarithms, because the quotients of the ends of the range are no float32.
    share = jnp.log2(finite) - jnp.log2(reference)
    share -= degree * (jnp.log2(rms) - math.log2(healthy))[:, None]
    curve = jnp.where(rms[:, None] < healthy, jnp.exp2(jnp.minimum(share, 0.0)), 1.0)
    curve = jnp.where(finite > 0, curve, 0.0)
    known = jnp.isfinite(reference) & (reference > 0)
    return Response(rms, update_rms, degree, jnp.where(known, curve, jnp.nan))
