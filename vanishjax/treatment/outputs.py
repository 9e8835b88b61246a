"""A last layer that starts where the targets are, by one batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.health.constant import best_constant, loss_of_constant
from vanishjax.initializers.network import Network, network
from vanishjax.initializers.small import smaller_output
from vanishjax.initializers.unit_variance import Adjustable, adjustable, varies
from vanishjax.layers.traced import TracedLoss
from vanishjax.problem import MISSING, Problem

# Of how far the targets lie apart: the first at which the loss is so near to that of the best
# constant output, as a part of it. Three-layer regressions learned as much at .2 to .5, and at 1 a
# little less.
_SHARES, _NEAR = (0.3, 0.15, 0.08, 0.04, 0.02), 0.15
# So much of an example's pull tells how far it reaches.
_ENOUGH = 0.5
# How far apart they may lie: powers of 2.
_LEAST, _MOST = -64, 64


def match_targets(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    *,
    below: float | None = None,
) -> Any:
    r"""Starts the last layer at the best constant output, as wide as the targets ask for.

    Where targets are counted in dollars or meters, or lie far from 0, the optimizer would spend its
    steps on the way there. Every unit of the last kernels then puts out

    .. math:: c_j \pm 0.3\, \delta_j\, \frac{y_j - \bar y_j}{\mathrm{rms}(y_j - \bar y_j)}

    with c the constant output of least loss, and delta how far from it the examples pull: that is
    the move at which the slope of the mean loss has grown to the root mean square of the slopes of
    single examples at c. The sign is the one with which the loss is less, and for many classes .3
    is less too, down to .02, so that the loss is within 15% of the best constant output's. For a
    squared error c is the mean of the targets and delta their standard deviation; for a
    cross-entropy c is the logarithm of the classes' shares.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.
      below: If given, what can't be matched is no error: a last layer is then made small, if that
        brings the loss below so many times what it was (`vanishjax.initializers.small_output`),
        or left as it is.

    Returns:
      New parameters: the last kernels', and their biases'.

    Raises:
      ValueError: A last kernel has no bias beside it, stands in a loop, is normalized or meets
        several inputs, or the loss doesn't fall by it, and `below` isn't given; the loss isn't a
        scalar, or a leaf isn't a real floating-point array.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,), 1, loss="squared_error")
      >>> x = jax.random.normal(jax.random.key(0), (256, 8))
      >>> batch = x, 250_000 + 80_000 * x[:, :1]
      >>> params = match_targets(problem, batch)
      >>> price = problem.predict_fn(params, x)
      >>> print((price.mean() / batch[1].mean()).round(2), (price.std() / batch[1].std()).round(1))
      1.0 0.3

    References:
      Karpathy, A recipe for training neural networks, 2019 ("init well"), for a last bias at the
      mean of the targets; Lin et al., Focal loss, 2017, section 4.1, at the classes' shares.
    """
    found = network(loss_fn, params, batch)
    try:
        heads = find_heads(found)
        of_constant = measure_constant(found.traced, heads, found.leaves, found.inputs)
        leaves = _matched(found.traced, heads, of_constant, found.leaves, found.inputs)
        matched = found.with_leaves(leaves)
        before, after = found.losses(matched)
        if not after < before:
            raise _CannotMatchError("the loss doesn't fall by it")
        return matched
    except _CannotMatchError:
        if below is None:
            raise
        return smaller_output(found, below)


class _CannotMatchError(ValueError):
    """A last layer that can't be matched to the targets."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the last layer can't be matched to the targets: {reason}")


_NO_HEADS = (
    "its kernel has no bias beside it, stands in a loop, is normalized, or meets several inputs"
)


Heads = tuple[tuple[Adjustable, int], ...]


def find_heads(found: Network) -> Heads:
    """The last kernels, each with the number of its bias; raises ValueError where one has none."""
    heads = {
        kernel.site.tap: (kernel, kernel.bias[0])
        for kernel in adjustable(found)
        if kernel.bias is not None and not kernel.repeats and kernel.sized[0] == kernel.number
    }
    taps = [site.tap for site in found.traced.anatomy.last_sites]
    if not taps or not heads.keys() >= set(taps):
        raise _CannotMatchError(_NO_HEADS)
    return tuple(heads[tap] for tap in taps)


class OfConstant(NamedTuple):
    """The best constant output: for each head `[1, ..., units]`, laid out like what it puts out.

    Attributes:
      loss: The least loss of a constant output.
      outputs: That output.
      slopes: Of the loss there, by what every example puts out.
      pulls: The root mean square of the slopes of single examples' losses there.
      widths: How far from it the examples pull; NaN where that isn't found.
    """

    loss: jax.Array
    outputs: list[jax.Array]
    slopes: list[jax.Array]
    pulls: list[jax.Array]
    widths: list[jax.Array]


@functools.partial(jit_once, static_argnums=(0, 1))
def measure_constant(
    traced: TracedLoss, heads: Heads, leaves: list[jax.Array], inputs: list[jax.Array]
) -> OfConstant:
    """What a loss asks of a constant output of some heads.

    Args:
      traced: The loss.
      heads: See `find_heads`.
      leaves: Of the parameters.
      inputs: Arrays of the batch.

    Returns:
      What it asks.

    Raises:
      ValueError: What a head puts out is no matter of its kernel and its bias alone.
    """
    put_out = _outputs(traced, heads, leaves, inputs)
    loss, zeros = _loss_of_heads(traced, heads, put_out, [*leaves, *inputs])
    least, best = best_constant(loss, zeros)
    axes = [kernel.site.output_samples for kernel, _ in heads]
    slopes = jax.grad(loss)(
        [jnp.broadcast_to(x, y.shape) for x, y in zip(best, put_out, strict=True)]
    )
    # What the slope of one example's own loss would be.
    pulls = [
        numerics.rms(slope, own, keepdims=True) * (slope.size // one.size)
        for slope, own, one in zip(slopes, axes, best, strict=True)
    ]
    return OfConstant(least, best, slopes, pulls, _widths(loss, best, pulls))


@functools.partial(jit_once, static_argnums=(0, 1))
def _matched(
    traced: TracedLoss,
    heads: Heads,
    of_constant: OfConstant,
    leaves: list[jax.Array],
    inputs: list[jax.Array],
) -> list[jax.Array]:
    """The leaves, those of heads, kernels with the numbers of their biases, matched."""
    put_out = _outputs(traced, heads, leaves, inputs)
    loss, _ = _loss_of_heads(traced, heads, put_out, [*leaves, *inputs])
    least, best, slopes, _, widths = of_constant
    axes = [kernel.site.output_samples for kernel, _ in heads]
    apart, scales = [], []
    for (kernel, _), own, y, slope, width in zip(heads, axes, put_out, slopes, widths, strict=True):
        apart.append(y - jnp.mean(y, own, keepdims=True))
        size = numerics.rms(apart[-1], own, keepdims=True)
        wrong_way = jnp.sum(slope * (apart[-1] / size), own, keepdims=True) > 0
        scale = jnp.where(wrong_way, -width, width) / size
        alive = varies(size, y, kernel.site.dtype) & jnp.isfinite(width)
        scales.append(jnp.where(alive, scale, 0.0))

    def loss_at(share: jax.Array) -> jax.Array:
        return loss([x + share * s * y for x, s, y in zip(best, scales, apart, strict=True)])

    # Many classes take less: what is far for one alone isn't for all at once.
    shares = jnp.array(_SHARES)
    fits = jax.lax.map(loss_at, shares) <= least + _NEAR * jnp.abs(least)
    share = jnp.where(fits.any(), shares[jnp.argmax(fits)], shares[-1])
    matched = list(leaves)
    for (kernel, _), scale in zip(heads, scales, strict=True):
        factor = jnp.where(scale == 0, 1.0, share * scale)
        matched[kernel.number] = _scaled(kernel, leaves[kernel.number], factor)
    # The means are those of kernels rounded to their type.
    for (_, number), own, y, constant in zip(
        heads, axes, _outputs(traced, heads, matched, inputs), best, strict=True
    ):
        bias = leaves[number]
        shift = (constant - jnp.mean(y, own, keepdims=True)).reshape(bias.shape)
        moved = numerics.upcast(bias) + jnp.where(jnp.isfinite(shift), shift, 0.0)
        matched[number] = numerics.saturating_cast(moved, bias.dtype)
    return matched


def _loss_of_heads(
    traced: TracedLoss, heads: Heads, put_out: list[jax.Array], arguments: list[jax.Array]
) -> tuple[Callable[[Sequence[jax.Array]], jax.Array], list[jax.Array]]:
    """The loss as a function of what heads put out, the same for all inputs, and zeros of it."""
    found = loss_of_constant(traced, arguments)
    of_one = [
        jnp.mean(y, kernel.site.output_samples, keepdims=True).shape
        for (kernel, _), y in zip(heads, put_out, strict=True)
    ]
    # A kernel that is also a factor of something else isn't replaced by what it puts out here.
    if found is None or [x.shape for x in found[1]] != of_one:
        raise _CannotMatchError(_NO_HEADS)
    return found


def _outputs(
    traced: TracedLoss, heads: Heads, leaves: list[jax.Array], inputs: list[jax.Array]
) -> list[jax.Array]:
    """What the heads put out, before their biases."""

    def keep(_: _jaxpr.Site, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return y, numerics.upcast(y)

    kept = _jaxpr.adjusted_forward(traced.program, traced.anatomy, keep, [*leaves, *inputs])
    return [kept[kernel.site.tap] for kernel, _ in heads]


def _widths(
    loss: Callable[[Sequence[jax.Array]], jax.Array],
    best: Sequence[jax.Array],
    pulls: Sequence[jax.Array],
) -> list[jax.Array]:
    """How far each unit is to be from the best constant; NaN where that isn't found.

    The units move farther and farther, each until the loss pulls back nearly as an example does. It
    then stays there: what others need may be far too much for it.
    """
    slopes = jax.grad(loss)
    # A softmax doesn't see what all units have in common.
    signs = [jnp.where(jnp.arange(x.size) % 2, -1.0, 1.0).reshape(x.shape) for x in best]
    # One of n units that moves half of them pulls back by 1 / n at most, where examples pull by
    # 1 / sqrt(n).
    enough = [_ENOUGH / x.size**0.5 * pull for x, pull in zip(best, pulls, strict=True)]

    def move(
        settled: tuple[list[jax.Array], list[jax.Array]], size: jax.Array
    ) -> tuple[tuple[list[jax.Array], list[jax.Array]], None]:
        tried = [jnp.where(jnp.isnan(own), size, own) for own in settled[0]]
        up, down = (
            slopes([x + way * s * m for x, s, m in zip(best, signs, tried, strict=True)])
            for way in (1.0, -1.0)
        )
        moves, widths = [], []
        for own, width, sign, m, a, b, pull, least in zip(
            *settled, signs, tried, up, down, pulls, enough, strict=True
        ):
            back = sign * (a - b) / 2
            now = jnp.isnan(own) & (back >= least) & (pull > 0)
            moves.append(jnp.where(now, m, own))
            # As far as it would be by a square.
            widths.append(jnp.where(now, m * pull / back, width))
        return (moves, widths), None

    nothing = [jnp.full_like(x, jnp.nan) for x in best]
    (_, widths), _ = jax.lax.scan(move, (nothing, nothing), 2.0 ** jnp.arange(_LEAST, _MOST))
    return widths


def _scaled(kernel: Adjustable, x: jax.Array, scale: jax.Array) -> jax.Array:
    """A kernel, what leads to every unit times the unit's own number."""
    axes = kernel.leaf.outputs
    first = range(len(axes))
    columns = jnp.moveaxis(numerics.upcast(x), axes, first)
    over = scale.reshape([x.shape[axis] for axis in axes] + [1] * (x.ndim - len(axes)))
    return numerics.saturating_cast(jnp.moveaxis(columns * over, first, axes), x.dtype)
