"""Layer-sequential unit-variance initialization of any model, from one batch."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import Network, network
from vanishjax.layers import Leaf
from vanishjax.layers.matrices import bias_of
from vanishjax.layers.traced import TracedLoss
from vanishjax.problem import MISSING, Problem


def lsuv(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    *,
    centered: bool = True,
    orthogonal: bool = True,
    variance: float | None = 1.0,
) -> Any:
    r"""Rescales every kernel so that what it puts out has unit variance on a batch.

    Layer by layer, each seeing what the layers before it now put out, in one forward pass of any
    loss (linen, nnx, Equinox or plain functions; unrolled or scanned):

    .. math::
      W_l \leftarrow \sqrt{v} Q_l / \mathrm{rms}(h Q_l - \overline{h Q_l}), \qquad
      b_l \leftarrow -\overline{h W_l}

    with the mean taken for each unit over the batch and Q_l the orthogonal polar factor of W_l.
    What goes into a wave gets a size of one radian at most, of seven behind the first kernel, as
    the authors of networks of sines draw them. Centering is what saves deep sigmoid networks, where
    all inputs arrive at nearly the same point; unit variance alone doesn't.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.
      centered: Whether to move the biases so that every unit's mean is zero. A kernel without a
        bias beside it (kernel and bias, weight and bias, w and b) is only rescaled.
      orthogonal: Whether the kernels become orthogonal before they are scaled.
      variance: v, if not 1; None to leave kernels their size. Smooth activations are the more
        linear the smaller it is: at unit variance each layer of a tanh network makes gradients 1.17
        times as large and inputs less alike, at v = .1 only 1.01 times. v = 1 / sqrt(depth) keeps
        gradients their size at any depth.

    Returns:
      New parameters. A kernel that meets several inputs (twins, a critic of real and made ones, a
      differential equation's derivatives) is adjusted by the first that it meets. Left as they are:
      kernels that take in what they put out before (recurrent cells, layers that share one kernel),
      those of lookups used again, kernels inside functions that can't be looked into, those that
      put out nothing but zeros, and all that is neither such a kernel nor its bias.

    Raises:
      ValueError: The loss isn't a scalar, a leaf isn't a real floating-point array, or the variance
        isn't positive.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 24, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (256, 8)), jnp.arange(256) % 4
      >>> params = lsuv(problem, batch)
      >>> found = vj.probe(problem.loss_fn, params, batch)
      >>> print(found.preactivation_rms[[0, 1, -1]].round(3), abs(found.sum_log_chi) < 10)
      [1. 1. 1.] True

    References:
      Mishkin and Matas, All you need is a good init, 2016, algorithm 1; Saxe et al., 2014, for
      orthogonal kernels; Sitzmann et al., Implicit neural representations with periodic activation
      functions, 2020, section 3.2, for waves; centering is this package's.
    """
    if variance is not None and not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}")
    found = network(loss_fn, params, batch)
    kernels = adjustable(found, centered=centered)
    return adjusted(found, kernels, orthogonal=orthogonal, variance=variance)


# Radians. The first kernel of a network of sines makes the waves that all others bend: seven, by
# its authors' uniform kernels of 30 / inputs, of places between -1 and 1 in a plane.
_FIRST_WAVE = 7.0

# How far a power may be from 1, for rounding.
_LINEAR = 0.05


class Adjustable(NamedTuple):
    """A kernel that can be adjusted.

    Attributes:
      number: Among the leaves.
      leaf: It.
      bias: The number of the bias beside it, and the axes that loops run along; None without one.
      site: Where the data meets it, the first place of several, once an iteration of its scans.
      lookup: Whether that is a lookup.
      repeats: The taps of the places where it meets other inputs.
      shifts: Whether its bias goes with it there.
      sized: The number of the parameter that its output grows with, and the axes that loops run
        along: itself, or the gain of a kernel that is normalized.
    """

    number: int
    leaf: Leaf
    bias: tuple[int, tuple[int, ...]] | None
    site: _jaxpr.Site
    lookup: bool
    repeats: frozenset[int] = frozenset()
    shifts: bool = True
    sized: tuple[int, tuple[int, ...]] = (-1, ())


def adjustable(found: Network, *, centered: bool = True) -> list[Adjustable]:
    """The kernels that the data meets once, or that never meet their own work, in the data's order.

    Args:
      found: The network.
      centered: Whether a bias beside a kernel goes with it.
    """
    layers, trace, anatomy = found.traced.layers, found.traced.trace, found.traced.anatomy
    uses = collections.Counter(use.leaf for use in trace.uses)
    looped = {use.leaf: tuple(sorted(use.axes)) for use in trace.uses}
    lookups = {use.leaf for use in trace.uses if use.equation.primitive.name == "gather"}
    numbers = {leaf.path: number for number, leaf in enumerate(layers.leaves)}
    repeated, sizes = _repeated(found), _sizes(found)
    kernels = []
    for site in anatomy.sites.values():
        leaf, several = layers.leaves[site.leaf], repeated.get(site.leaf, ())
        scanned = len(anatomy.lengths[site.tap]) == len(site.axes)
        once = uses[site.leaf] == 1 and scanned
        if not leaf.is_matrix or not (once or several[:1] == (site.tap,)):
            continue
        sized = sizes.get(site.leaf, site.leaf)
        if sized is None:
            continue
        bias = bias_of(leaf, layers.leaves)
        partner, shifts = None, False
        if centered and bias is not None:
            number = numbers[bias.path]
            alone = uses[number] == 1 or (several and looped.get(number) == ())
            if alone and _is_added_to(site, bias, looped[number]):
                partner = number, looped[number]
                shifts = uses[number] == uses[site.leaf]
        lookup = site.leaf in lookups
        kernels.append(
            Adjustable(
                site.leaf,
                leaf,
                partner,
                site,
                lookup,
                frozenset(several[1:]),
                shifts,
                (sized, looped[sized]),
            )
        )
    return kernels


def _is_added_to(site: _jaxpr.Site, bias: Leaf, along: tuple[int, ...]) -> bool:
    """Whether a bias has as many units as a kernel's output.

    Queries of latents, which are parameters, meet no data before the scores of attention do: their
    bias isn't added to those.

    Args:
      site: Where the kernel meets the data.
      bias: The bias beside it.
      along: The bias's axes that loops run along.
    """
    own = (n for axis, n in enumerate(bias.shape) if axis not in along)
    return site.output_units == math.prod(own)


def _sizes(found: Network) -> dict[int, int | None]:
    """For kernels that are made of several parameters, the one that their output grows with.

    As the gain of weight normalization, where the kernel itself has no say in its size. None where
    no such parameter is found.
    """
    program, trace, anatomy = found.traced.program, found.traced.trace, found.traced.anatomy
    made = _jaxpr.made_kernels(program, trace)
    if not made:
        return {}
    taps = {site.leaf: site.tap for site in anatomy.sites.values() if site.leaf in made}
    uses = collections.Counter(use.leaf for use in trace.uses)
    met = collections.defaultdict(set)
    for use in trace.uses:
        met[use.position].add(use.leaf)
    # What meets the data with each kernel and nowhere else.
    partners: dict[int, set[int]] = {leaf: set() for leaf in taps}
    for use in trace.uses:
        if use.leaf in taps:
            partners[use.leaf] |= {one for one in met[use.position] if uses[one] == 1}
    beside = {leaf: [leaf, *sorted(own - {leaf})] for leaf, own in partners.items()}
    sizes: dict[int, int | None] = dict.fromkeys(taps)
    for one in range(max(map(len, beside.values()), default=0)):
        scaled = {leaf: own[one] for leaf, own in beside.items() if one < len(own)}
        run = functools.partial(_jaxpr.degrees, program, anatomy, frozenset(scaled.values()))
        powers = jit_once(run)(found.leaves, found.inputs)
        for leaf, other in scaled.items():
            power = np.asarray(powers[taps[leaf]])
            if sizes[leaf] is None and (np.abs(power - 1) < _LINEAR).all():
                sizes[leaf] = other
    return sizes


def _repeated(found: Network) -> dict[int, tuple[int, ...]]:
    """By kernel the taps where it meets several inputs, the first one first.

    Not those of kernels that stand in loops, are looked up in, or take in what they put out before,
    as a recurrent cell's do. A derivative takes in what the network put out too, but it meets
    kernels from their other side.
    """
    anatomy = found.traced.anatomy
    places = collections.defaultdict(list)
    for use in found.traced.trace.uses:
        places[use.leaf].append(use)
    taps = collections.defaultdict(list)
    for site in anatomy.sites.values():
        taps[site.leaf].append(site.tap)
    later = anatomy.paths.downstream(looping=False)
    repeated = {}
    for leaf, own in taps.items():
        uses = places[leaf]
        if len(uses) == 1 or any(anatomy.lengths[tap] for tap in own):
            continue
        if any(use.loops or use.equation.primitive.name == "gather" for use in uses):
            continue
        matrices = [use.matrix for use in uses if use.matrix is not None]
        turned = any(one.inputs == matrices[0].outputs != matrices[0].inputs for one in matrices)
        among = sum(1 << tap for tap in own)
        if turned or not any(later[tap] & among & ~(1 << tap) for tap in own):
            repeated[leaf] = tuple(sorted(own))
    return repeated


def adjusted(
    found: Network,
    kernels: Sequence[Adjustable],
    *,
    orthogonal: bool | Collection[int] = True,
    variance: float | Mapping[int, float] | None,
) -> Any:
    """Parameters with some kernels adjusted, each seeing what those before it now put out.

    Args:
      found: The network.
      kernels: Which.
      orthogonal: Whether they become orthogonal; or the numbers of those that do.
      variance: Of what they put out: of all, or of each by its tap; None as it is.
    """
    first = found.traced.anatomy.first
    deviations = {
        site.tap: None if own is None else min(own**0.5, _in_a_wave(site, site.tap in first))
        for site in (kernel.site for kernel in kernels)
        for own in [variance[site.tap] if isinstance(variance, Mapping) else variance]
    }
    numbers = frozenset(kernel.number for kernel in kernels if not kernel.lookup)
    if not isinstance(orthogonal, bool):
        numbers &= frozenset(orthogonal)
    elif not orthogonal:
        numbers = frozenset()
    arguments = deviations, found.leaves, found.inputs
    return found.with_leaves(_adjusted(found.traced, tuple(kernels), numbers, *arguments))


def _in_a_wave(site: _jaxpr.Site, first: bool) -> float:
    """The largest deviation of what a kernel puts into a wave, such as a sine; else infinity."""
    return (_FIRST_WAVE if first else 1.0) * site.period / (2 * math.pi)


@functools.partial(jit_once, static_argnums=(0, 1, 2))
def _adjusted(
    traced: TracedLoss,
    kernels: tuple[Adjustable, ...],
    orthogonal: frozenset[int],
    deviations: dict[int, Any],
    leaves: list[jax.Array],
    inputs: list[jax.Array],
) -> list[jax.Array]:
    by_tap = {tap: kernel for kernel in kernels for tap in (kernel.site.tap, *kernel.repeats)}
    # By kernel the tap that the evaluation comes to first, and what was settled there.
    settled: dict[int, tuple[int, jax.Array, jax.Array]] = {}
    started = list(leaves)
    for kernel in kernels:
        if kernel.number in orthogonal:
            started[kernel.number] = _orthogonal(kernel.leaf, leaves[kernel.number])
        if kernel.bias is not None:
            number, _ = kernel.bias
            started[number] = jnp.zeros_like(leaves[number])

    def adjust(site: _jaxpr.Site, y: jax.Array) -> tuple[jax.Array, Any]:
        kernel, wide = by_tap.get(site.tap), numerics.upcast(y)
        if kernel is None:
            return y, None
        if kernel.number in settled:
            _, scale, shift = settled[kernel.number]
            units = [1 if axis in site.output_samples else n for axis, n in enumerate(y.shape)]
            moved = shift.reshape(units) if kernel.shifts else 0.0
            return numerics.saturating_cast(wide * scale - moved, y.dtype), None
        mean = jnp.zeros_like(jnp.mean(wide, axis=site.output_samples, keepdims=True))
        if kernel.bias is not None:
            mean = jnp.mean(wide, axis=site.output_samples, keepdims=True)
        size = numerics.rms(wide - mean)
        alive = varies(size, wide, y.dtype)
        wanted = deviations[kernel.site.tap]
        scale = jnp.ones_like(size)
        if wanted is not None:
            scale = jnp.where(alive, wanted / jnp.where(alive, size, 1.0), 1.0)
        shift = jnp.where(alive, mean * scale, 0.0)
        if kernel.repeats:
            settled[kernel.number] = site.tap, scale, shift
        adjusted = numerics.saturating_cast(wide * scale - shift, y.dtype)
        return adjusted, (scale, -shift.ravel(), alive)

    arguments = [*started, *inputs]
    kept = _jaxpr.adjusted_forward(traced.program, traced.anatomy, adjust, arguments)
    results = list(leaves)

    def keep(number: int, axes: tuple[int, ...], values: jax.Array, alive: jax.Array) -> None:
        """Takes values, the loops' axes first, for the iterations that are alive."""
        first = range(len(axes))
        before = jnp.moveaxis(leaves[number], axes, first)
        chosen = jnp.where(_over(alive, before), values.reshape(before.shape), before)
        after = jnp.moveaxis(chosen, first, axes)
        results[number] = numerics.saturating_cast(after, leaves[number].dtype)

    for kernel in kernels:
        # The loops' axes come in the order of the loops.
        order, axes = np.argsort(kernel.site.axes), tuple(sorted(kernel.site.axes))
        tap, *_ = settled.get(kernel.number, (kernel.site.tap,))
        scale, shift, alive = (
            jnp.transpose(x, (*order, *range(len(order), x.ndim))) for x in kept[tap]
        )
        matrices = jnp.moveaxis(numerics.upcast(started[kernel.number]), axes, range(len(order)))
        sized, along = kernel.sized
        if sized == kernel.number:
            matrices = matrices * _over(scale, matrices)
        else:
            gains = jnp.moveaxis(numerics.upcast(leaves[sized]), along, range(len(along)))
            keep(sized, along, gains * _over(scale, gains), alive)
        keep(kernel.number, axes, matrices, alive)
        if kernel.bias is not None:
            number, axes = kernel.bias
            keep(number, axes, shift, alive)
    return results


def varies(size: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """Whether what tells inputs apart is more than rounding errors, not to be blown up.

    Args:
      size: Its root mean square.
      y: What a kernel put out.
      dtype: The type that it was computed in.
    """
    noise = 4 * float(jnp.finfo(dtype).eps) * numerics.rms(y)
    return (size > noise) & jnp.isfinite(size)


def _over(x: jax.Array, values: jax.Array) -> jax.Array:
    """One number an iteration, to go with all that it has."""
    return x.reshape(x.shape + (1,) * (values.ndim - x.ndim))


def _orthogonal(kernel: Leaf, x: jax.Array) -> jax.Array:
    """The orthogonal polar factors of a kernel's matrices."""
    matrices, laid_out = kernel.matrices(numerics.upcast(x))
    return laid_out(orthogonal_factors(matrices)).astype(x.dtype)


def orthogonal_factors(matrices: jax.Array) -> jax.Array:
    """The orthogonal matrices nearest to those of a stack `[..., inputs, outputs]`."""
    # One after the other: on two cores XLA's decompositions of several stacks wait for each other's
    # threads forever.
    factors = jax.lax.map(polar_factor, matrices.reshape(-1, *matrices.shape[-2:]))
    return factors.reshape(matrices.shape)


def polar_factor(matrix: jax.Array) -> jax.Array:
    """The orthogonal matrix nearest to one."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    # A kernel of zeros is meant to be one.
    return numerics.matmul(left, right) * jnp.any(values > 0)
