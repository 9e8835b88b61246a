"""First kernels that look where the inputs vary, from one batch."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import network
from vanishjax.layers.traced import TracedLoss
from vanishjax.problem import MISSING, Problem


def pca(loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING) -> Any:
    r"""Turns the first kernels toward the principal components of what they take in.

    A kernel of fewer outputs than inputs lets no more than its own directions through. Drawn at
    random they're a random part of the data, and in a deep network, whose steps must be small, what
    the first layer lost isn't won back. Here the singular directions on the side of the inputs turn
    into the span of as many principal components of the inputs:

    .. math:: W = U S V^T, \qquad W' = c\, P R S V^T, \qquad R = \mathrm{polar}(P^T U)

    where R is the nearest rotation and c keeps the size of what is put out. Singular values and the
    directions on the side of the outputs stay, so that orthogonal and mirrored kernels remain what
    they are.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters; initialize them before, but apply `vanishjax.initializers.lsuv`, which
        sets the biases, after.
      batch: The more examples, the more components are known (one less than examples); beyond those
        a kernel keeps directions of its own.

    Returns:
      New parameters. Left as they are: kernels of as many independent directions as inputs, those
      that see other parameters' work, convolutions, lookups, stacks, kernels used more than once,
      and those whose inputs aren't finite.

    Raises:
      ValueError: The loss isn't a scalar, or a leaf isn't a real floating-point array.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(64, (16,) * 8, 4, activation="tanh")
      >>> spread = jnp.linspace(2, 0, 64) ** 4                      # the first pixels vary most
      >>> x = jax.random.normal(jax.random.key(0), (256, 64)) * spread
      >>> batch = x, jnp.arange(256) % 4
      >>> params = pca(problem, batch)
      >>> before, after = (p["hidden_0"]["kernel"] ** 2 for p in (problem.params, params))
      >>> [round(float(jnp.sum(w[:16]) / jnp.sum(w)), 2) for w in (before, after)]
      [0.27, 0.97]

    References:
      Krähenbühl et al., Data-dependent initializations of convolutional neural networks, 2016,
      section 3.2; Seuret et al., PCA-initialized deep neural networks applied to document image
      analysis, 2017. The rotation, which leaves other initializations their structure, is ours.
    """
    found = network(loss_fn, params, batch)
    first, leaves = _first(found.traced), found.leaves
    if first:
        leaves = _turned(found.traced, first, leaves, found.inputs)
    return found.with_leaves(leaves)


def _first(traced: TracedLoss) -> tuple[int, ...]:
    """The numbers of kernels that take in data alone, and once."""
    uses = collections.Counter(use.leaf for use in traced.trace.uses)
    found: dict[int, None] = {}
    for use in traced.trace.uses:
        leaf = traced.layers.leaves[use.leaf]
        once = uses[use.leaf] == 1 and use.depths.ndim == 0
        if once and use.depths == 1 and leaf.is_matrix and not leaf.axes:
            found[use.leaf] = None
    return tuple(found)


@functools.partial(jit_once, static_argnums=(0, 1))
def _turned(
    traced: TracedLoss,
    first: tuple[int, ...],
    leaves: list[jax.Array],
    inputs: list[jax.Array],
) -> list[jax.Array]:
    seen = _jaxpr.kernel_inputs(traced.program, traced.anatomy, [*leaves, *inputs])
    turned = list(leaves)
    for number in first:
        if number not in seen:
            continue
        matrices, laid_out = traced.layers.leaves[number].matrices(numerics.upcast(leaves[number]))
        data = numerics.upcast(seen[number]).reshape(-1, seen[number].shape[-1])
        if matrices.ndim == 2 and matrices.shape[0] == data.shape[1]:
            kernel = laid_out(_toward_components(matrices, data))
            turned[number] = numerics.saturating_cast(kernel, leaves[number].dtype)
    return turned


def _toward_components(kernel: jax.Array, data: jax.Array) -> jax.Array:
    """A kernel `[inputs, outputs]` turned toward the components of data `[examples, inputs]`."""
    size = numerics.rms(data)
    data = data - jnp.mean(data, axis=0)
    finite = jnp.isfinite(data).all()
    data = jnp.where(finite, data, 0.0)
    own, values, outputs = jnp.linalg.svd(kernel, full_matrices=False)
    spans = values > values[0] * _rounding(kernel)
    _, spread, components = jnp.linalg.svd(data, full_matrices=False)
    known = spread > size * data.size**0.5 * _rounding(data)
    components = jnp.where(known[:, None], components, 0.0).T
    # Beyond the components that the batch can tell, directions of its own.
    rest = (own - numerics.matmul(components, numerics.matmul(components.T, own))) * spans
    rest = jnp.linalg.svd(rest, full_matrices=False)[0]
    basis = jnp.concatenate([components, rest], axis=1)
    order = jnp.argsort(jnp.concatenate([~known * 2, jnp.ones_like(values, int)]), stable=True)
    basis = basis[:, order[: len(values)]]
    # Only among the directions that it has: the others stay others.
    both = spans[:, None] & spans[None, :]
    left, _, right = jnp.linalg.svd(
        jnp.where(both, numerics.matmul(basis.T, own), jnp.eye(len(values)))
    )
    basis = numerics.matmul(basis, numerics.matmul(left, right))
    turned = numerics.matmul(basis * values, outputs)
    before, after = (numerics.rms(numerics.matmul(data, x)) for x in (kernel, turned))
    turns = finite & jnp.any(known) & (jnp.sum(spans) < kernel.shape[0]) & (after > 0)
    return jnp.where(turns, turned * (before / jnp.where(turns, after, 1.0)), kernel)


def _rounding(x: jax.Array) -> float:
    """The share of a matrix's largest singular value below which another is rounding error."""
    return max(x.shape) * float(jnp.finfo(x.dtype).eps)
