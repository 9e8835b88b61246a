"""Expectations of an activation over Gaussian pre-activations, to 1e-10.

Gauss-Hermite quadrature is off by 1e-2 at a kink. Here the real line is cut at the kinks, and
wherever else 16 Gauss-Legendre nodes can't follow the activation and its derivative.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import legendre

from vanishjax.activations import ACTIVATIONS, Activation, resolve_activation

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

_KINKS: dict[Activation, tuple[float, ...]] = {
    **dict.fromkeys(ACTIVATIONS.values(), ()),
    **{ACTIVATIONS[name]: (0.0,) for name in ("elu", "leaky_relu", "relu", "selu", "softsign")},
    ACTIVATIONS["hard_tanh"]: (-1.0, 1.0),
}
_REACH = 12.0  # standard deviations; the density there is 2e-32
_NODES, _WEIGHTS = legendre.leggauss(16)
_ENDS = np.array([-1 + 1e-7, 1 - 1e-7])  # just inside, for an end may be a known kink
_SERIES = legendre.legvander(_NODES, 15) * _WEIGHTS[:, None] * (np.arange(16) + 0.5)
# From values at the nodes and the ends: the last coefficients, and what the series lacks at the
# ends. No node sees a kink in the last half percent of a panel.
_ROUGHNESS = np.block(
    [
        [_SERIES[:, -2:], _SERIES @ legendre.legvander(_ENDS, 15).T],
        [np.zeros((2, 2)), -np.eye(2)],
    ]
)
_RESOLVED = 1e-11  # of the largest value,
_UNIT = 1e-3  # or of this part of the largest on [-1, 1]: sigmoid(x) - 1/2 is noisy near 0
_NARROWEST = 1e-15  # panel, of the range: what lies in it is a kink
_MOST_PANELS = 4096
_CHUNK = 4096  # one shape, one compilation


class Samples(NamedTuple):
    """Nodes of a quadrature over x ~ N(0, q): ``E[g(f, f')] = weights @ g(values, slopes)``.

    Attributes:
      x: Nodes.
      values: f there.
      slopes: f' there.
      weights: The Gaussian's weights; their sum is 1.
    """

    x: Array
    values: Array
    slopes: Array
    weights: Array


def samples(activation: str | Activation, q: float) -> Samples:
    """A quadrature over pre-activations of variance `q` that resolves the activation.

    Args:
      activation: A key of `activations.ACTIVATIONS` or an elementwise JAX function.
      q: The variance; 0 gives the limit from above.

    Returns:
      Nodes, values, slopes and weights.

    Raises:
      ValueError: If 1e-10 can't be met; the message says why.

    Example:
      >>> _, f, slope, weights = samples("relu", 2.0)
      >>> print(round(weights @ f**2, 12), round(weights @ slope**2, 12))
      1.0 0.5
    """
    f = resolve_activation(activation)
    sigma = _sigma(q)
    edges, _ = _panels(f, _bucket(sigma))
    x, widths = _composite(edges)
    weights = widths * _density(x / sigma) / sigma
    values, slopes = evaluate(f, x)
    outer = np.abs(x) > (_REACH - 1) * sigma
    for moment in (values**2, slopes**2):
        if weights[outer] @ moment[outer] > 1e-11 * (weights @ moment):
            raise ValueError(
                f"{activation_name(f)} grows too fast for a Gaussian of variance {q:.6g}: its "
                "mean square or its slope's doesn't converge"
            )
    return Samples(x, values, slopes, weights)


def pair_moments(activation: str | Activation, q: float, distance: float) -> tuple[float, float]:
    """How far two correlated pre-activations are apart behind the activation.

    For u1, u2 ~ N(0, q) with correlation c = 1 - distance. The difference is taken before the
    mean, so that it has the full relative precision for nearly equal inputs.

    Args:
      activation: A key of `activations.ACTIVATIONS` or an elementwise JAX function.
      q: The variance; 0 gives the limit from above.
      distance: 1 - c, from 0 to 2.

    Returns:
      ``(E[(f(u1) - f(u2))^2] / 2, E[f'(u1) f'(u2)])``.

    Raises:
      ValueError: If 1e-10 can't be met; the message says why.

    Example:
      >>> apart, slope = pair_moments("relu", 1.0, 1.0)  # independent: E[f]^2 = 1 / (2 pi)
      >>> print(round(0.5 - apart - 1 / (2 * np.pi), 12) + 0.0, round(slope, 12))
      0.0 0.25
    """
    f = resolve_activation(activation)
    sigma = _sigma(q)
    edges, kinks = _panels(f, _bucket(sigma))
    c = 1 - distance
    spread = sigma * max(distance * (2 - distance), 1e-24) ** 0.5
    outer = edges
    if spread < sigma / 2:
        # The inner mean smears what is sharper than the spread: there the outer panels are as wide.
        sharp = np.append(kinks, edges[:-1][np.diff(edges) < spread])
        smeared = np.round(sharp[:, None] / (c * spread)) + np.arange(-_REACH, _REACH + 1)
        outer = np.unique(np.append(edges, (smeared * spread).clip(edges[0], edges[-1])))
    x, widths = _composite(outer)
    weights = widths * _density(x / sigma) / sigma
    keep = weights > 1e-25 * weights.max()
    x, weights = x[keep], weights[keep]
    values, slopes = evaluate(f, x)
    apart = slope = 0.0
    for block in np.array_split(np.arange(x.size), -(-x.size // 256)):
        mean = c * x[block, None]
        w, inner_widths = _composite(_inner_edges(edges, mean, spread))
        inner_weights = inner_widths * _density(w)
        others, other_slopes = evaluate(f, mean + spread * w)
        squares = (values[block, None] - others) ** 2
        apart += weights[block] @ np.sum(inner_weights * squares, axis=1)
        slope += (weights * slopes)[block] @ np.sum(inner_weights * other_slopes, axis=1)
    return float(apart / 2), float(slope)


def affine_samples(activation: str | Activation, scales: Array, shifts: Array) -> Samples:
    """Quadratures over x ~ N(0, 1) of ``f(scale x + shift)``.

    Args:
      activation: A key of `activations.ACTIVATIONS` or an elementwise JAX function.
      scales: `[cases]`, positive.
      shifts: `[cases]`.

    Returns:
      `[cases, nodes]`: nodes x, ``f`` and ``f'`` at ``scale x + shift``, and weights.

    Raises:
      ValueError: If 1e-10 can't be met; the message says why.

    Example:
      >>> _, f, slope, weights = affine_samples("relu", np.array([2.0]), np.array([0.0]))
      >>> print(round(weights[0] @ f[0] ** 2, 12), round(weights[0] @ slope[0], 12))
      2.0 0.5
    """
    f = resolve_activation(activation)
    # The panels are fine where the density of this width isn't small.
    width = max(1.0, float(np.max(np.abs(shifts) + 3 * scales)))
    edges, _ = _panels(f, _bucket(width))
    scales, shifts = scales[:, None], shifts[:, None]
    x, widths = _composite(_inner_edges(edges, shifts, scales))
    values, slopes = evaluate(f, shifts + scales * x)
    return Samples(x, values, slopes, widths * _density(x))


def slope_jumps(activation: str | Activation) -> bool:
    """Whether the activation's slope jumps somewhere near the origin, as at a rectifier's kink.

    Example:
      >>> slope_jumps("relu"), slope_jumps("elu"), slope_jumps("tanh")
      (True, False, False)
    """
    f = resolve_activation(activation)
    _, kinks = _panels(f, _bucket(1.0))
    if not kinks.size:
        return False
    beside = 1e-9 * np.maximum(np.abs(kinks), 1.0)
    left, right = (evaluate(f, kinks + sign * beside)[1] for sign in (-1, 1))
    return bool(np.any(np.abs(left - right) > 1e-6 * np.maximum(np.abs(left), np.abs(right))))


def activation_name(activation: str | Activation) -> str:
    """What to call an activation in a message.

    Example:
      >>> activation_name(jnp.tanh), activation_name(jax.nn.mish)
      ('tanh', 'mish')
    """
    for name, known in ACTIVATIONS.items():
        if activation in (name, known):
            return name
    return getattr(activation, "__name__", repr(activation))


def _sigma(q: float) -> float:
    return max(float(q), 1e-250) ** 0.5


def _bucket(sigma: float) -> float:
    """The next power of sqrt(2): variances near each other share their panels."""
    return float(2 ** (np.ceil(2 * np.log2(sigma)) / 2))


def _density(z: Array) -> Array:
    return np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def _composite(edges: Array) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on the panels between edges `[..., panels + 1]`."""
    half = np.diff(edges)[..., None] / 2
    x = edges[..., :-1, None] + half * (1 + _NODES)
    return x.reshape(*x.shape[:-2], -1), (half * _WEIGHTS).reshape(*x.shape[:-2], -1)


def _inner_edges(edges: Array, mean: Array, spread: float | Array) -> Array:
    """Panels `[rows, panels + 1]` of (x - mean) / spread, cut where the activation's panels are."""
    first = np.searchsorted(edges, mean - _REACH * spread)
    count = np.max(np.searchsorted(edges, mean + _REACH * spread) - first)
    inside = edges[np.minimum(first + np.arange(count), edges.size - 1)]
    inside = ((inside - mean) / spread).clip(-_REACH, _REACH)
    base = np.broadcast_to(np.linspace(-_REACH, _REACH, 17), (mean.size, 17))
    return np.sort(np.concatenate([base, inside], axis=1), axis=1)


@functools.lru_cache(maxsize=256)
def _panels(f: Activation, sigma: float) -> tuple[Array, Array]:
    """Edges of panels over +-12 sigma on which f and f' are polynomials, and f's kinks."""
    reach = _REACH * sigma
    # No edge of these is a round number: a kink on an edge would go unnoticed.
    edges = np.linspace(-reach, reach, 17) + reach * (np.pi - 3) / 16
    edges[0] = -reach
    edges[-1] = reach
    kinks = np.array(_KINKS.get(f, ()))
    if f not in _KINKS:
        _, kinks = _refine(f, edges, sigma)
    kinks = kinks[np.abs(kinks) < reach]
    edges, stuck = _refine(f, np.unique(np.append(edges, kinks)), sigma)
    if stuck.size:
        values, slopes = evaluate(f, stuck)
        if _NARROWEST * reach * np.sum(values**2 + slopes**2) > 1e-12 * sigma:
            raise ValueError(
                f"{activation_name(f)} can't be integrated to 1e-10: near x = {stuck[0]:.6g} it or "
                "its derivative seems unbounded"
            )
    return edges, kinks


def _refine(f: Activation, edges: Array, sigma: float) -> tuple[Array, Array]:
    """Halves panels until each is resolved; also the middles of those that never were."""
    left, right = edges[:-1], edges[1:]
    kept: list[Array] = [edges]
    stuck: list[Array] = []
    unit = np.stack(evaluate(f, np.linspace(-1, 1, 50)))
    scale = _UNIT * np.max(np.abs(unit), axis=1).reshape(2, 1, 1)
    count = left.size
    while left.size:
        middle, half = (left + right) / 2, (right - left) / 2
        x = middle[:, None] + half[:, None] * np.append(_NODES, _ENDS)
        # The root of the density: what is integrated is the square of this.
        damped = np.stack(evaluate(f, x)) * np.exp(-((x / sigma) ** 2) / 4)
        scale = np.maximum(scale, np.max(np.abs(damped), axis=(1, 2), keepdims=True))
        rough = np.any(np.abs(damped @ _ROUGHNESS) > _RESOLVED * scale, axis=(0, 2))
        narrow = half < _NARROWEST * _REACH * sigma
        stuck.append(middle[rough & narrow])
        split = rough & ~narrow
        kept.append(middle[split])
        count += int(split.sum())
        if count > _MOST_PANELS:
            raise ValueError(
                f"{activation_name(f)} can't be integrated to 1e-10 over +-{_REACH * sigma:.6g}: "
                "it oscillates, is noisy, or computes in less than float64"
            )
        left, right = (
            np.append(left[split], middle[split]),
            np.append(middle[split], right[split]),
        )
    return np.unique(np.concatenate(kept)), _merge(np.concatenate(stuck), 1e-13 * sigma)


def _merge(points: Array, gap: float) -> Array:
    """Sorted points, of those nearer to each other than `gap` only the first."""
    points = np.sort(points)
    return points[np.diff(points, prepend=-np.inf) > gap]


def evaluate(f: Activation, x: Array) -> tuple[Array, Array]:
    """The activation and its slope in float64, whatever JAX's settings and what is traced."""
    flat = np.zeros(-(-x.size // _CHUNK) * _CHUNK)
    flat[: x.size] = x.ravel()
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(_cpu()):
        chunks = [_value_and_slope(f)(chunk) for chunk in flat.reshape(-1, _CHUNK)]
        # JAX computes while the next chunk is on its way; waiting comes last.
        both = np.concatenate([np.stack(jax.device_get(chunk)) for chunk in chunks], axis=1)
    both = both[:, : x.size]
    if not np.all(np.isfinite(both)):
        where = x.ravel()[~np.all(np.isfinite(both), axis=0)][0]
        raise ValueError(f"{activation_name(f)} or its derivative isn't finite at x = {where:.6g}")
    return both[0].reshape(x.shape), both[1].reshape(x.shape)


@functools.lru_cache(maxsize=64)
def _value_and_slope(f: Activation) -> Callable[[Array], Any]:
    def value_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        try:
            value, slope = jax.jvp(lambda x: jnp.asarray(f(x)), (x,), (jnp.ones_like(x),))
        except Exception as error:
            raise ValueError(
                f"{activation_name(f)} must be an elementwise JAX function; called with one "
                f"number it says: {error}"
            ) from error
        if value.shape != () or value.dtype != jnp.float64:
            raise ValueError(
                f"{activation_name(f)} must map a float64 number to one, got "
                f"{value.dtype}[{','.join(map(str, value.shape))}]"
            )
        return value, slope

    return jax.jit(jax.vmap(value_and_slope))


@functools.cache
def _cpu() -> Any:
    """The processor, where float64 is exact; None (the default device) if JAX has none."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
