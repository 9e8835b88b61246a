"""Kernels that start small where size is what keeps a network from training, from one batch.

Each leaves all other kernels as they are, and adjusts its own as `vanishjax.initializers.lsuv`
does: orthogonal, of the variance that it says, centered where they have a bias.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import Network, network
from vanishjax.initializers.unit_variance import adjustable, adjusted
from vanishjax.layers.traced import TracedLoss
from vanishjax.problem import MISSING, Problem

# Of what a network puts out at first: logits of a tenth are as good as a uniform guess.
_OUTPUT = 0.01
# A kernel that also makes what comes in puts out what grows with its size or with the square of
# that: the root of the factor wanted comes closer to both, in so many rounds close enough.
_ROUNDS = 12


def small_branches(
    loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING
) -> Any:
    r"""Makes what every residual branch adds small: a variance of 1 / branches.

    All branches together then add a variance of about 1 to what the stream starts with, at any
    depth: signals and gradients keep their size, and the positions of a sequence stay apart. In a
    transformer the last kernels of attention and MLP are adjusted, in a ResNet the last convolution
    of every block, whether normalization comes before them, after the sum, or not at all:

    .. math:: x_{l+1} = x_l + f_l(x_l), \qquad \mathrm{Var}(f_l) = 1 / L

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.

    Returns:
      New parameters.

    Raises:
      ValueError: No kernel's output is added to what leads past the kernel; the loss isn't a
        scalar, or a leaf isn't a real floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def loss_fn(params, x):
      ...     x = x @ params[0]
      ...     for w in params[1:-1]:
      ...         x = x + jnp.tanh(x) @ w
      ...     return jnp.mean((x @ params[-1]) ** 2)
      >>> params = [jax.random.normal(jax.random.key(i), (8, 8)) for i in range(5)]
      >>> new = small_branches(loss_fn, params, jax.random.normal(jax.random.key(9), (64, 8)))
      >>> [bool((a == b).all()) for a, b in zip(params, new)]
      [True, False, False, False, True]

    References:
      Hayou et al., Stable ResNet, 2021, for 1 / branches; Zhang et al., Fixup initialization, 2019,
      and Huang et al., T-Fixup, 2020, for branches that start small instead of normalization and
      warm-up. Setting the size by what a batch measures is LSUV's (Mishkin and Matas, 2016).
    """
    found = network(loss_fn, params, batch)
    anatomy = found.traced.anatomy
    ends = anatomy.paths.branch_ends([site.tap for site in anatomy.sites.values()])
    kernels = [kernel for kernel in adjustable(found) if kernel.site.tap in ends]
    if not kernels:
        raise ValueError(
            "no residual branch was found: no kernel's output is added to what leads past the "
            "kernel (kernels that are used more than once don't count)"
        )
    branches = sum(math.prod(kernel.leaf.stack) for kernel in kernels)
    return adjusted(found, kernels, variance=1 / branches)


def small_queries(
    loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING
) -> Any:
    r"""Makes queries and keys small, so that attention starts by looking at all positions.

    The kernels that feed softmaxes put out a variance of 1 / sqrt(width of a head). Their products
    then have unit variance at most, whether or not the network divides them by the root of that
    width, and no row of attention is one-hot.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.

    Returns:
      New parameters.

    Raises:
      ValueError: The network has no softmax between its kernels; the loss isn't a scalar, or a leaf
        isn't a real floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def loss_fn(params, x):
      ...     q, k, v = (x @ params[name] for name in "qkv")
      ...     y = jax.nn.softmax(q @ k.transpose(0, 2, 1)) @ v
      ...     return jnp.mean((y @ params["out"]) ** 2)
      >>> params = {name: 9 * jnp.eye(16) for name in ["q", "k", "v", "out"]}
      >>> x = jax.random.normal(jax.random.key(1), (8, 5, 16))
      >>> new = small_queries(loss_fn, params, x)
      >>> print({name: round(float((x @ w).std()), 1) for name, w in new.items()})
      {'k': 0.5, 'out': 9.2, 'q': 0.5, 'v': 9.2}

    References:
      Yang et al., Tensor programs V, 2022, appendix D.2, for queries that start at zero; Zhai et
      al., Stabilizing transformer training by preventing attention entropy collapse, 2023.
    """
    found = network(loss_fn, params, batch)
    watched = found.traced.anatomy.watches
    feeding = {tap for one in watched if one.kind == "softmax" for tap in one.taps}
    kernels = [kernel for kernel in adjustable(found) if kernel.site.tap in feeding]
    if not kernels:
        raise ValueError("no softmax was found between the network's kernels: it has no attention")
    width = max(kernel.leaf.shape[kernel.leaf.outputs[-1]] for kernel in kernels)
    return adjusted(found, kernels, variance=width**-0.5)


def small_output(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    *,
    below: float | None = None,
) -> Any:
    r"""Makes what the network puts out small: a variance of .01, near a uniform guess.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.
      below: If given, only where the loss falls below so many times what it was: a network whose
        targets are about as large as what it puts out is left as it is, and so is one whose last
        kernel stands in a loop.

    Returns:
      New parameters: the last kernel's, and its bias's; those of heads side by side alike. A kernel
      of a head that is tied to an embedding is only scaled, as a whole.

    Raises:
      ValueError: The last kernel stands in a loop, and `below` isn't given; the loss isn't a
        scalar, or a leaf isn't a real floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp, vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,), 4)
      >>> problem.params["output"]["kernel"] *= 1000
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
      >>> params = small_output(problem, batch)
      >>> print(problem.loss_fn(params, batch).round(1), jnp.log(4).round(1))
      1.4 1.4

    References:
      Zhang et al., Fixup initialization, 2019, section 3, starts the last layer at zero.
    """
    found = network(loss_fn, params, batch)
    if below is not None:
        return smaller_output(found, below)
    if not _is_outside_loops(found):
        raise ValueError("the last kernel can't be made small: it stands in a loop")
    return _small_output(found)


def smaller_output(found: Network, below: float) -> Any:
    """`small_output` of a network that is traced already.

    Args:
      found: It.
      below: As there.
    """
    if not _is_outside_loops(found):
        return found.given
    small = _small_output(found)
    before, after = found.losses(small)
    return small if after < below * before else found.given


def _is_outside_loops(found: Network) -> bool:
    heads = found.traced.anatomy.last_sites
    return bool(heads) and not found.traced.anatomy.lengths[heads[0].tap]


def _small_output(found: Network) -> Any:
    heads = found.traced.anatomy.last_sites
    kernels = [kernel for kernel in adjustable(found) if kernel.site in heads]
    if kernels:
        return adjusted(found, kernels, variance=_OUTPUT)
    last = heads[-1]
    leaves = list(found.leaves)
    for _ in range(_ROUNDS):
        size = _output_size(found.traced, last, leaves, found.inputs)
        factor = jnp.sqrt(_OUTPUT**0.5 / size)
        scaled = numerics.upcast(leaves[last.leaf]) * jnp.where(jnp.isfinite(factor), factor, 1.0)
        leaves[last.leaf] = numerics.saturating_cast(scaled, leaves[last.leaf].dtype)
    return found.with_leaves(leaves)


@functools.partial(jit_once, static_argnums=(0, 1))
def _output_size(
    traced: TracedLoss,
    last: _jaxpr.Site,
    leaves: list[jax.Array],
    inputs: list[jax.Array],
) -> jax.Array:
    """The root mean square of what the last kernel puts out, each unit's mean taken off."""

    def measure(site: _jaxpr.Site, y: jax.Array) -> tuple[jax.Array, Any]:
        if site is not last:
            return y, None
        wide = numerics.upcast(y)
        mean = jnp.mean(wide, axis=site.output_samples, keepdims=True)
        return y, numerics.rms(wide - mean)

    arguments = [*leaves, *inputs]
    kept = _jaxpr.adjusted_forward(traced.program, traced.anatomy, measure, arguments)
    size: jax.Array = kept[last.tap]
    return size
