"""A last layer that starts where the targets are, by one batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr, initializers, numerics
from vanishjax.compilation import jit_once
from vanishjax.health.constant import best_constant, loss_of_constant
from vanishjax.initializers.network import Network, network
from vanishjax.initializers.unit_variance import Adjustable, adjustable
from vanishjax.problem import MISSING, Problem

# Of how far the targets lie apart. Three-layer regressions learned as much at .2 to .5 of it, and
# at 1 a little less.
_SHARE = 0.3
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
    single examples at c. The sign is the one with which the loss is less. For a squared error c is
    the mean of the targets and delta their standard deviation; for a cross-entropy c is the
    logarithm of the classes' shares.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.
      below: If given, a last kernel that has no bias beside it, stands in a loop, is normalized or
        meets several inputs is no error: it is made small, if that brings the loss below so many
        times what it was. See `vanishjax.initializers.small_output`.

    Returns:
      New parameters: the last kernels', and their biases'.

    Raises:
      ValueError: A last kernel is such a one, and `below` isn't given; the loss isn't a scalar, or
        a leaf isn't a real floating-point array.

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
        run = functools.partial(_matched, found, _heads(found))
        return found.with_leaves(jit_once(run)(found.leaves, found.inputs))
    except _CannotMatchError:
        if below is None:
            raise
        return initializers.small_output(loss_fn, params, batch, below=below)


class _CannotMatchError(ValueError):
    def __init__(self) -> None:
        super().__init__(
            "the last layer can't be matched to the targets: its kernel has no bias beside it, "
            "stands in a loop, is normalized, or meets several inputs"
        )


def _heads(found: Network) -> list[tuple[Adjustable, int]]:
    """The last kernels, each with the number of its bias."""
    heads = {
        kernel.site.tap: (kernel, kernel.bias[0])
        for kernel in adjustable(found)
        if kernel.bias is not None and not kernel.repeats and kernel.sized[0] == kernel.number
    }
    taps = [site.tap for site in found.traced.anatomy.last_sites]
    if not taps or not heads.keys() >= set(taps):
        raise _CannotMatchError
    return [heads[tap] for tap in taps]


def _matched(
    found: Network,
    heads: Sequence[tuple[Adjustable, int]],
    leaves: list[jax.Array],
    inputs: list[jax.Array],
) -> list[jax.Array]:
    """The leaves, those of heads, kernels with the numbers of their biases, matched."""
    of_constant = loss_of_constant(found.traced, [*leaves, *inputs])
    kernels = [kernel for kernel, _ in heads]
    axes = [kernel.site.output_samples for kernel in kernels]
    put_out = _outputs(found, kernels, leaves, inputs)
    of_one = [jnp.mean(y, own, keepdims=True) for y, own in zip(put_out, axes, strict=True)]
    # A kernel that is also a factor of something else isn't replaced by what it puts out here.
    if of_constant is None or [x.shape for x in of_constant[1]] != [x.shape for x in of_one]:
        raise _CannotMatchError
    loss, zeros = of_constant
    _, best = best_constant(loss, zeros)
    slopes = jax.grad(loss)(
        [jnp.broadcast_to(x, y.shape) for x, y in zip(best, put_out, strict=True)]
    )
    # What the slope of one example's own loss would be.
    pulls = [
        numerics.rms(slope, own, keepdims=True) * (slope.size // one.size)
        for slope, own, one in zip(slopes, axes, best, strict=True)
    ]
    widths = _widths(loss, best, pulls)
    matched = list(leaves)
    for kernel, own, y, slope, width in zip(kernels, axes, put_out, slopes, widths, strict=True):
        apart = y - jnp.mean(y, own, keepdims=True)
        size = numerics.rms(apart, own, keepdims=True)
        # What carries nothing but rounding errors isn't blown up.
        alive = size > 4 * float(jnp.finfo(kernel.site.dtype).eps) * numerics.rms(y)
        wrong_way = jnp.sum(slope * (apart / size), own, keepdims=True) > 0
        scale = _SHARE * jnp.where(wrong_way, -width, width) / size
        scale = jnp.where(alive & jnp.isfinite(width), scale, 1.0)
        matched[kernel.number] = _scaled(kernel, leaves[kernel.number], scale)
    # The means are those of kernels rounded to their type.
    for (_, number), own, y, constant in zip(
        heads, axes, _outputs(found, kernels, matched, inputs), best, strict=True
    ):
        bias = leaves[number]
        shift = (constant - jnp.mean(y, own, keepdims=True)).reshape(bias.shape)
        moved = numerics.upcast(bias) + jnp.where(jnp.isfinite(shift), shift, 0.0)
        matched[number] = numerics.saturating_cast(moved, bias.dtype)
    return matched


def _outputs(
    found: Network,
    kernels: Sequence[Adjustable],
    leaves: list[jax.Array],
    inputs: list[jax.Array],
) -> list[jax.Array]:
    """What the kernels put out, before their biases."""

    def keep(_: _jaxpr.Site, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return y, numerics.upcast(y)

    program, anatomy = found.traced.program, found.traced.anatomy
    kept = _jaxpr.adjusted_forward(program, anatomy, keep, [*leaves, *inputs])
    return [kept[kernel.site.tap] for kernel in kernels]


def _widths(
    loss: Callable[[Sequence[jax.Array]], jax.Array],
    best: Sequence[jax.Array],
    pulls: Sequence[jax.Array],
) -> list[jax.Array]:
    """How far each unit is to be from the best constant; NaN where that isn't found.

    The units move farther and farther, each until the loss pulls back as an example does. It then
    stays there: what others need may be far too much for it.
    """
    slopes = jax.grad(loss)
    # A softmax doesn't see what all units have in common.
    signs = [jnp.where(jnp.arange(x.size) % 2, -1.0, 1.0).reshape(x.shape) for x in best]

    def move(widths: list[jax.Array], size: jax.Array) -> tuple[list[jax.Array], None]:
        moves = [jnp.where(jnp.isnan(width), size, width) for width in widths]
        both = (
            slopes([x + way * s * m for x, s, m in zip(best, signs, moves, strict=True)])
            for way in (1.0, -1.0)
        )
        found = []
        for width, m, sign, up, down, pull in zip(widths, moves, signs, *both, pulls, strict=True):
            back = sign * (up - down) / 2
            reached = jnp.isnan(width) & (back >= pull / 2) & (pull > 0)
            # As far as it would be by a square.
            found.append(jnp.where(reached, m * pull / back, width))
        return found, None

    nothing = [jnp.full_like(x, jnp.nan) for x in best]
    widths, _ = jax.lax.scan(move, nothing, 2.0 ** jnp.arange(_LEAST, _MOST))
    return widths


def _scaled(kernel: Adjustable, x: jax.Array, scale: jax.Array) -> jax.Array:
    """A kernel, what leads to every unit times the unit's own number."""
    axes = kernel.leaf.outputs
    first = range(len(axes))
    columns = jnp.moveaxis(numerics.upcast(x), axes, first)
    over = scale.reshape([x.shape[axis] for axis in axes] + [1] * (x.ndim - len(axes)))
    return numerics.saturating_cast(jnp.moveaxis(columns * over, first, axes), x.dtype)
