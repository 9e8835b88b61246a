"""Attention that starts as the identity: positions stay apart at any depth, without a skip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from vanishjax.initializers.mirrored import mirrored
from vanishjax.initializers.network import network
from vanishjax.initializers.unit_variance import adjustable, adjusted
from vanishjax.problem import MISSING, Problem

# How many times the logarithm of positions times layers a position's score with itself is above
# that with others, on average: these differ by more, the narrower a head is. 1, 1.5 and 2 were
# tried on nine networks of 6 to 20 layers: by 1 the deepest learn less, by 2 the others.
_MARGIN = 1.5


def identity_attention(
    loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING
) -> Any:
    r"""Makes each position attend to itself first, and every layer keep the size of its signal.

    Without skip connections attention averages positions until all are alike, and nothing further
    up can tell them apart. Here each attention's query and key kernels become equal and orthogonal,
    and so large that a position's score with itself stands out:

    .. math::
      W_K = W_Q = c\,Q, \qquad
      \mathrm{Var}(x W_Q) = 1.5 \ln(T L) / \sqrt{d}

    for T positions, L attention layers and heads of width d, whose scores the network divides by
    the root of d, as is usual. Where a rectifier (ReLU, leaky ReLU, GELU, SiLU) is all that lies
    between two kernels, its units come in pairs of opposite sign, which makes the two together an
    isometry, as in `vanishjax.initializers.looks_linear`. All other kernels become orthogonal, and
    all put out unit variance and zero mean, as `vanishjax.initializers.lsuv` makes them. Attention
    has to learn to look at other positions from there: what needs them early is learned more
    slowly, or not at all.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run once.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.

    Returns:
      New parameters.

    Raises:
      ValueError: No softmax was found of products of queries and keys that two kernels of the same
        shape make from the same input (one kernel for all three, fewer key heads, or attention to
        another sequence); the loss isn't a scalar, or a leaf isn't a real floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def attention(params, x):
      ...     q, k, v = (x @ params[name] for name in "qkv")
      ...     return jax.nn.softmax(q @ k.transpose(0, 2, 1) / 4) @ v
      >>> def loss_fn(params, x):
      ...     for layer in params:
      ...         x = attention(layer, x)
      ...     return jnp.mean(x**2)
      >>> keys = jax.random.split(jax.random.key(0), (8, 3))
      >>> params = [
      ...     {n: jax.random.normal(k, (16, 16)) / 4 for n, k in zip("qkv", own)} for own in keys]
      >>> x = jax.random.normal(jax.random.key(1), (8, 5, 16))
      >>> def apart(params):
      ...     y = x
      ...     for layer in params:
      ...         y = attention(layer, y)
      ...     return float(jnp.var(y, axis=1).mean() / jnp.mean(y**2))
      >>> apart(params) < 1e-3, apart(identity_attention(loss_fn, params, x)) > 0.2
      (True, True)

    References:
      He et al., Deep transformers without shortcuts, 2023 (arXiv 2302.10322), for attention near
      the identity at the start; Noci et al., Signal propagation in transformers, 2022, for what
      happens without; Balduzzi et al., The shattered gradients problem, 2017, section 4, for
      units in pairs. Equal orthogonal queries and keys are this package's way there: theirs
      change the network.
    """
    found = network(loss_fn, params, batch)
    kernels = adjustable(found)
    by_tap = {kernel.site.tap: kernel for kernel in kernels}
    inputs = {use.leaf: set(map(id, use.equation.invars)) for use in found.traced.trace.uses}
    attentions = []
    for one in found.traced.anatomy.watches:
        pair = [by_tap[tap] for tap in one.taps if tap in by_tap]
        if one.kind != "softmax" or one.positions < 2 or len(pair) != 2:
            continue
        query, key = pair
        if query.leaf.shape == key.leaf.shape and inputs[query.number] & inputs[key.number]:
            attentions.append((one, query, key))
    if not attentions:
        raise ValueError(
            "no attention of a sequence to itself was found: a softmax of products of queries and "
            "keys that two kernels of the same shape make from the same input"
        )
    depth = sum(math.prod(query.leaf.stack) for _, query, _ in attentions)
    leaves, variances = list(found.leaves), dict.fromkeys(by_tap, 1.0)
    for one, query, key in attentions:
        leaves[key.number] = leaves[query.number]
        score = _MARGIN * math.log(one.positions * depth)
        variances |= dict.fromkeys((query.site.tap, key.site.tap), score / one.width**0.5)
    pairs = mirrored(found, kernels)
    leaves = [pairs.get(number, leaf) for number, leaf in enumerate(leaves)]
    others = {kernel.number for kernel in kernels} - pairs.keys()
    started = dataclasses.replace(found, leaves=leaves)
    return adjusted(started, kernels, orthogonal=others, variance=variances)
