"""Recurrent cells that start with a memory as long as the sequence."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import Network, network
from vanishjax.initializers.unit_variance import polar_factor
from vanishjax.problem import MISSING, Problem

# Rounds in which cells' kernels, inputs and biases are fitted to each other: slopes change a little
# with what is added, and what is added to a cell with the cells before it.
_ROUNDS = 3
# The deviation of all that is added in T steps; .1, .25, .5, 1 were tried at a lag of fifty, with
# tanh, softsign, a sigmoid and rectifiers, in one cell and in two.
_SPREAD = 0.5
# A rectifier forgets where it is 0: by the last step its units are so many deviations above it. 0,
# 1 and 3 were tried.
_ABOVE = 3.0
# Of fewer steps than this nothing needs to be remembered.
_LEAST_STEPS = 3
# How far what one kernel adds may be from all that is added, for rounding in 16 bits.
_SAME = 0.02


def long_memory(
    loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING
) -> Any:
    r"""Recurrent cells whose memory is as long as the sequence, of any loss that scans over time.

    A gate at a half, where LSTMs and GRUs start in most libraries, keeps half of the cell in a
    step: the gradient is gone after ten, and nothing that lies further back is ever learned. Here
    the bias of each sigmoid on what a cell keeps is set so that its units forget in 1 to T - 1
    steps, evenly spread, of the T that the loop has:

    .. math::
      b_k = \log\big(1 + (T - 2) (k + 1/2) / n\big), \qquad k = 0, \dots, n - 1

    with the other sign where the sigmoid tells what to forget. A simple cell, h' = f(h U + x),
    keeps all of h on a turn, if U is orthogonal and h small: U becomes its orthogonal polar factor
    over the activation's slope; what is added gets a variance of 1 / (4 T), and its bias takes out
    what means add, those of a sigmoid's outputs included. Where the activation is a rectifier, U
    becomes the identity, and the bias lifts the units off 0 by 3 / 2 in all.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run a few
        times. Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: Some tens of examples, the batch axis first.

    Returns:
      New parameters. A gate without a bias of its own is left as it is, and what a simple cell
      takes in, if it comes from several kernels or from one that is used elsewhere too.

    Raises:
      ValueError: There is nothing to set: no loop (`jax.lax.scan`, as of Flax's `RNN`) of at least
        three steps has such a gate or cell. Or the loss isn't a scalar, or a leaf isn't a real
        floating-point array.

    Example:
      An LSTM that is to tell the first of fifty numbers: what does the last output know of it?

      >>> from flax import linen as nn
      >>> rnn = nn.RNN(nn.LSTMCell(16))
      >>> x = jax.random.normal(jax.random.key(0), (8, 50, 4))
      >>> params = rnn.init(jax.random.key(1), x)
      >>> def loss_fn(params, x):
      ...     return jnp.mean(rnn.apply(params, x)[:, -1] ** 2)
      >>> def known(params):
      ...     slopes = jax.grad(loss_fn, argnums=1)(params, x)
      ...     return float(jnp.abs(slopes[:, 0]).mean() / jnp.abs(slopes[:, -1]).mean())
      >>> known(params) < 1e-7, known(long_memory(loss_fn, params, x)) > 1e-2
      (True, True)

    References:
      Tallec and Ollivier, Can recurrent neural networks warp time?, 2018 (arXiv 1804.11188),
      equation 16, for the gates' biases, without its input gates (those of an LSTM that hardly
      open learned more slowly); Gers et al., Learning to forget, 2000, for open forget gates;
      Henaff et al., Recurrent orthogonal networks and long-memory tasks, 2016, for orthogonal
      kernels; Le et al., A simple way to initialize recurrent networks of rectified linear units,
      2015, for the identity. The size of what is added is this package's.
    """
    found = network(loss_fn, params, batch)
    opened = _with_open_gates(found)
    given = found if opened is None else dataclasses.replace(found, leaves=opened)
    leaves = _with_long_cells(given) or opened
    if leaves is None:
        raise ValueError(
            "no cell was found that could remember longer: a loop of three steps or more "
            "(jax.lax.scan, or a library's RNN) with a sigmoid and its bias on what the cell "
            "keeps, or with an activation of the product of the cell with one kernel"
        )
    return found.with_leaves(leaves)


def _with_open_gates(found: Network) -> list[jax.Array] | None:
    """The parameters with biases at which cells keep what they have; None without such gates."""
    program, arguments = found.traced.program, (found.leaves, found.inputs)
    gates = [gate for gate in _jaxpr.find_gates(program) if _steps(gate) >= _LEAST_STEPS]
    if not gates:
        return None
    keep = jit_once(lambda leaves, inputs: _jaxpr.kept_by(program, gates, [*leaves, *inputs]))
    signs = [np.sign(share) for share in keep(*arguments)]
    keeping = [(gate, sign) for gate, sign in zip(gates, signs, strict=True) if sign.any()]
    added = _added(found, {gate.argument: gate.loop for gate, _ in keeping})
    leaves, opened = list(found.leaves), False
    for gate, sign in keeping:
        (units,) = np.nonzero(sign)
        places = (np.arange(units.size) + 0.5) / units.size
        bias = np.full(sign.shape, np.nan)
        bias[units] = sign[units] * np.log(1 + (_steps(gate) - 2) * places)
        for number, own in added[gate.argument].items():
            leaves[number] = _filled(leaves[number], own, bias)
            # Where there are two of them, the other one is zero.
            bias, opened = 0 * bias, True
    return leaves if opened else None


class _Simple(NamedTuple):
    """A simple cell that can keep what it has.

    Attributes:
      cell: It.
      number: Its kernel, among the leaves.
      stack: Along how many axes that is stacked.
      shape: What its activation is like.
      factor: What keeps its value: `[*stack, units, units]`.
    """

    cell: _jaxpr.Cell
    number: int
    stack: int
    shape: _jaxpr.Shape
    factor: jax.Array


def _with_long_cells(found: Network) -> list[jax.Array] | None:
    """The parameters with simple cells that keep what they have; None without such cells."""
    program, simple = found.traced.program, _simple_cells(found)
    if not simple:
        return None
    cells, stacks = [one.cell for one in simple], [one.stack for one in simple]
    run = jit_once(
        lambda leaves, inputs: _jaxpr.responses(program, cells, stacks, [*leaves, *inputs])
    )
    biases = _added(found, {cell.argument: cell.loop for cell in cells})
    sources = _sources(found, simple)
    leaves = list(found.leaves)
    for one in simple:
        leaves[one.number] = _with_rows(found, one, leaves[one.number], one.factor)
    for _ in range(_ROUNDS):
        responses = run(leaves, found.inputs)
        for one, source, response in zip(simple, sources, responses, strict=True):
            steps, rows, mean = _steps(one.cell), one.factor, response.fed
            if one.shape.is_bent:
                mean = mean - _ABOVE * _SPREAD / steps
            else:
                rows = one.factor * _quotient(1.0, response.slope)[..., None, None]
            leaves[one.number] = _with_rows(found, one, leaves[one.number], rows)
            if source is not None:
                scale = _quotient(_SPREAD / steps**0.5, response.spread)
                leaves[source] = _scaled(found, source, simple, leaves[source], scale)
            # What the value is at rest comes back through the kernel in each step.
            mean = mean + one.shape.resting * rows.sum(axis=-2)
            for other, own in list(biases[one.cell.argument].items())[:1]:
                leaves[other] = _filled(leaves[other], own, -np.ravel(mean), added=True)
    return leaves


def _simple_cells(found: Network) -> list[_Simple]:
    """The simple cells of loops that are long enough, whose kernels have a square part."""
    kernels = {id(use.equation): use.leaf for use in found.traced.trace.uses}
    simple = []
    for cell in _jaxpr.find_cells(found.traced.program, found.traced.anatomy):
        number = kernels.get(id(cell.product))
        if number is None or _steps(cell) < _LEAST_STEPS:
            continue
        own = _own(found, cell, number)
        if own is not None:
            shape = _jaxpr.shape_of_activation(cell)
            simple.append(_Simple(cell, number, own.ndim - 2, shape, _factor(own, shape)))
    return simple


def _quotient(wanted: float, had: jax.Array) -> jax.Array:
    """What to multiply by; 1 where there is nothing."""
    there = had > 0
    return jnp.where(there, wanted / jnp.where(there, had, 1.0), 1.0)


def _steps(one: _jaxpr.Gate | _jaxpr.Cell) -> int:
    return int(one.loop.params["length"])


def _added(found: Network, variables: Mapping[Any, Any]) -> dict[Any, dict[int, Any]]:
    """For each variable the biases that are added to it in every step, and which entries of them.

    Those are told by a derivative: that of a sum over examples and two steps is their number.
    """
    program = found.traced.program
    taken = list(variables)

    def total(leaves: list[jax.Array], inputs: list[jax.Array], one: jax.Array) -> jax.Array:
        sums = _jaxpr.summed(program, variables, [*leaves, *inputs])
        return sum((one[i] * sums[v] for i, v in enumerate(taken)), start=jnp.zeros(()))

    slopes = jit_once(jax.grad(total))
    added: dict[Any, dict[int, Any]] = {}
    for place, variable in enumerate(taken):
        *positions, units = variable.aval.shape
        least = 2 * math.prod(positions)
        own = slopes(found.leaves, found.inputs, jnp.zeros(len(taken)).at[place].set(1.0))
        added[variable] = {}
        for number, (leaf, slope) in enumerate(zip(found.traced.layers.leaves, own, strict=True)):
            counts = np.asarray(slope, np.float64)
            there = counts != 0
            if leaf.is_matrix or not there.any() or there.sum() % units:
                continue
            if np.ptp(counts[there]) < _SAME * least and counts.max() > (1 - _SAME) * least:
                added[variable][number] = there
    return added


def _filled(x: jax.Array, there: Any, values: Any, *, added: bool = False) -> jax.Array:
    """A bias with values for its units where it is a variable's; NaN leaves what was there."""
    entries = np.array(x, np.float64)
    wanted = np.resize(values, there.sum())
    wanted = wanted + entries[there] if added else wanted
    entries[there] = np.where(np.isnan(wanted), entries[there], wanted)
    return jnp.asarray(entries, x.dtype)


def _own(found: Network, cell: _jaxpr.Cell, number: int) -> jax.Array | None:
    """The square part of a kernel that a cell's value meets; None if it has no such part."""
    leaf = found.traced.layers.leaves[number]
    if not leaf.is_matrix:
        return None
    matrices, _ = leaf.matrices(numerics.upcast(found.leaves[number]))
    own = matrices[..., _rows(cell), :]
    return own if own.shape[-2:] == (cell.units, cell.units) else None


def _factor(own: jax.Array, shape: _jaxpr.Shape) -> jax.Array:
    """What keeps a cell's value: its kernel's orthogonal factor; for a rectifier the identity."""
    same = jnp.broadcast_to(jnp.eye(own.shape[-1], dtype=own.dtype), own.shape)
    if shape.is_bent:
        return same
    factors = jax.lax.map(polar_factor, own.reshape(-1, *own.shape[-2:])).reshape(own.shape)
    # A kernel of zeros, or one that isn't finite, has none.
    return jnp.where(jnp.isfinite(factors).all() & jnp.any(factors != 0), factors, same)


def _with_rows(found: Network, one: _Simple, x: jax.Array, rows: jax.Array) -> jax.Array:
    """A cell's kernel with another part that its value meets."""
    matrices, laid_out = found.traced.layers.leaves[one.number].matrices(numerics.upcast(x))
    return laid_out(matrices.at[..., _rows(one.cell), :].set(rows)).astype(x.dtype)


def _rows(cell: _jaxpr.Cell) -> slice:
    """The rows of a cell's kernel that its value meets."""
    return slice(cell.first, cell.first + cell.units)


def _scaled(
    found: Network, number: int, simple: Sequence[_Simple], x: jax.Array, scale: jax.Array
) -> jax.Array:
    """Kernels times a number each, but for the part that a cell's own value meets."""
    matrices, laid_out = found.traced.layers.leaves[number].matrices(numerics.upcast(x))
    scaled = matrices * scale[..., None, None]
    for one in simple:
        if one.number == number:
            there = _rows(one.cell)
            scaled = scaled.at[..., there, :].set(matrices[..., there, :])
    return laid_out(scaled).astype(x.dtype)


def _sources(found: Network, simple: Sequence[_Simple]) -> list[int | None]:
    """For each cell the kernel that makes all that is added to it; None if no single one does."""
    program, trace, layers = found.traced.program, found.traced.trace, found.traced.layers
    cells = [one.cell for one in simple]

    def fed(leaves: list[jax.Array], inputs: list[jax.Array]) -> list[jax.Array]:
        return _jaxpr.fed(program, cells, [*leaves, *inputs])

    @jit_once
    def parts(leaves: list[jax.Array], changes: list[jax.Array], inputs: list[jax.Array]) -> Any:
        return jax.jvp(lambda own: fed(own, inputs), (leaves,), (changes,))

    uses = collections.Counter(
        leaf for leaf, _ in {(use.leaf, id(use.equation)) for use in trace.uses}
    )
    last = {use.leaf: use.position for use in trace.uses}
    nothing = [jnp.zeros_like(x) for x in found.leaves]
    sources: list[int | None] = [None] * len(simple)
    for number in sorted(last, key=lambda one: -last[one]):
        if not layers.leaves[number].is_matrix or uses[number] > 1:
            continue
        changes = list(nothing)
        changes[number] = found.leaves[number]
        for one in simple:
            if one.number == number:
                zeros = jnp.zeros_like(one.factor)
                changes[number] = _with_rows(found, one, changes[number], zeros)
        whole, made = parts(found.leaves, changes, found.inputs)
        for place, (one, all_of_it, part) in enumerate(zip(simple, whole, made, strict=True)):
            samples = tuple(range(one.stack, all_of_it.ndim - 1))
            varied, own_part = (x - jnp.mean(x, samples, keepdims=True) for x in (all_of_it, part))
            off, size = numerics.rms(varied - own_part), numerics.rms(varied)
            alike = len(layers.leaves[number].stack) == one.stack
            if sources[place] is None and alike and size > 0 and off < _SAME * size:
                sources[place] = number
        if None not in sources:
            break
    return sources
