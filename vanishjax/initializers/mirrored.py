"""Looks-linear initialization: rectifier networks that start as linear ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import Network
from vanishjax.initializers.unit_variance import Adjustable, orthogonal_factors
from vanishjax.layers import Dense, Layers, dense_layers, find_layers


def looks_linear(key: jax.Array, params: Any, layers: Layers | None = None) -> Any:
    r"""Mirrored orthogonal kernels, with which a ReLU network starts as a linear isometry.

    As relu(z) - relu(-z) = z, hidden units in pairs of opposite sign lose nothing:

    .. math::
      W_0 = (A_0, -A_0), \quad
      W_l = \begin{pmatrix} A_l & -A_l \cr -A_l & A_l \end{pmatrix}, \quad
      W_{out} = \begin{pmatrix} A \cr -A \end{pmatrix}

    with orthogonal A and zero biases. Neither gradient nor rank is lost, at any depth, where other
    initializations of rectifiers lose one direction after another.

    Args:
      key: Draws the orthogonal matrices.
      params: A chain of dense layers with biases, of one activation: ReLU, leaky ReLU or an odd
        function.
      layers: The layers in depth order; derived from the parameters if None, which takes the order
        of paths for the order of layers.

    Returns:
      A tree of the same structure; what is neither a kernel nor its bias stays.

    Raises:
      ValueError: A hidden layer of odd width, or a kernel without a bias beside it.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,) * 100, 4, activation="relu")
      >>> params = looks_linear(jax.random.key(0), problem.params)
      >>> x = jax.random.normal(jax.random.key(1), (16, 8))
      >>> def f(x):
      ...     return problem.predict_fn(params, x)
      >>> bool(jnp.allclose(f(2 * x - 1), 2 * f(x) - f(jnp.ones(8)), atol=1e-4))
      True

    References:
      Balduzzi et al., The shattered gradients problem: if resnets are the answer, then what is the
      question?, 2017, section 4.
    """
    layers = find_layers(params) if layers is None else layers
    dense = dense_layers(layers, params)
    arrays, rebuild = layers.by_path(params)
    depths = [depth for pair in dense for depth in pair.depths]
    first, last = min(depths, default=0), max(depths, default=0)
    for pair, own in zip(dense, jax.random.split(key, max(1, len(dense))), strict=False):
        kernel, bias = arrays[pair.kernel.path], arrays[pair.bias.path]
        matrices = jnp.stack(
            [
                _mirrored(one, pair, kernel, mirror_in=depth > first, mirror_out=depth < last)
                for one, depth in zip(jax.random.split(own, len(pair)), pair.depths, strict=True)
            ]
        )
        arrays[pair.kernel.path] = pair.kernels(matrices).astype(kernel.dtype)
        arrays[pair.bias.path] = jnp.zeros_like(bias)
    return rebuild(arrays)


def _mirrored(
    key: jax.Array, pair: Dense, kernel: jax.Array, *, mirror_in: bool, mirror_out: bool
) -> jax.Array:
    _, inputs, outputs = jax.eval_shape(pair.matrices, kernel).shape
    halves = inputs // (1 + mirror_in), outputs // (1 + mirror_out)
    if halves[0] * (1 + mirror_in) != inputs or halves[1] * (1 + mirror_out) != outputs:
        raise ValueError(
            f"{pair.kernel.path}: mirrored units come in pairs, but it has {inputs} inputs and "
            f"{outputs} outputs: make the hidden widths even"
        )
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    # As in `critical_orthogonal`: an entry's variance is 1 / in.
    gain = max(1.0, halves[1] / halves[0]) ** 0.5
    block = jax.nn.initializers.orthogonal(gain)(key, halves, dtype)
    if mirror_out:
        block = jnp.concatenate([block, -block], axis=1)
    if mirror_in:
        block = jnp.concatenate([block, -block], axis=0)
    return block


_ALIKE = 1e-4  # of the size, in float32


def mirrored(found: Network, kernels: Sequence[Adjustable]) -> dict[int, jax.Array]:
    """The kernels about rectifiers, with units in pairs of opposite sign: linear together.

    See `looks_linear`, which does this to a whole chain. Here each rectifier counts for itself,
    whatever else the network is made of. Kernels that a rectifier lies between are orthogonal
    together: the product of two is, even where the units between are more than the inputs.

    Args:
      found: The network.
      kernels: Those that may change, in the data's order.

    Returns:
      By their numbers, of any size; those of other kernels aren't among them.
    """
    feeder = _feeders(found, kernels)
    feeding = set(feeder.values())
    halves: dict[int, jax.Array] = {}
    made = {}
    for kernel in kernels:
        tap, before = kernel.site.tap, feeder.get(kernel.site.tap)
        if before is None and tap not in feeding:
            continue
        leaf = found.leaves[kernel.number]
        half, laid_out = kernel.leaf.matrices(numerics.upcast(leaf))
        if before is not None:
            half = half[..., : half.shape[-2] // 2, :]
            # The units between vary along what the kernel before lets through, and only there.
            through = halves[before]
            if through.shape[-1] > through.shape[-2]:
                seen = numerics.matmul(through, half)
                half = numerics.matmul(jnp.swapaxes(through, -1, -2), seen)
        if tap in feeding:
            half = half[..., : half.shape[-1] // 2]
        halves[tap] = half = orthogonal_factors(half)
        if tap in feeding:
            half = jnp.concatenate([half, -half], axis=-1)
        if before is not None:
            half = jnp.concatenate([half, -half], axis=-2)
        made[kernel.number] = laid_out(half).astype(leaf.dtype)
    return made


def _feeders(found: Network, kernels: Sequence[Adjustable]) -> dict[int, int]:
    """By tap of a kernel the tap of the one whose rectified output it takes in, as it is."""
    plain = [one for one in kernels if _is_plain(one)]
    if not any(map(_is_rectified, plain)):
        return {}
    run = functools.partial(_jaxpr.links, found.traced.program, found.traced.anatomy)
    links = jax.device_get(jit_once(run)([*found.leaves, *found.inputs]))
    plain = [one for one in plain if one.site.tap in links]
    rectified = [one for one in plain if _is_rectified(one)]
    met = {
        kernel: before
        for before in rectified
        for kernel in plain
        if _alike(links[before.site.tap].given, links[kernel.site.tap].taken)
    }
    # Those behind come first: where they are in pairs, half as many directions are needed.
    feeder: dict[int, int] = {}
    for kernel in reversed(plain):
        if kernel not in met:
            continue
        before = met[kernel]
        arriving = min(_inputs(before) // (1 + (before in met)), _outputs(before) // 2)
        wanted = _outputs(kernel) // (1 + (kernel.site.tap in feeder.values()))
        if min(_outputs(before) // 2, wanted) <= arriving:
            feeder[kernel.site.tap] = before.site.tap
    return feeder


def _is_plain(kernel: Adjustable) -> bool:
    """Whether a kernel is one matrix for one input, which its size goes with."""
    leaf = kernel.leaf
    inner = math.prod(n for axis, n in enumerate(leaf.shape) if axis not in leaf.axes)
    alone = not kernel.lookup and not kernel.repeats and kernel.sized[0] == kernel.number
    one_each = len(leaf.inputs) == len(leaf.outputs) == 1
    return alone and one_each and _inputs(kernel) * _outputs(kernel) == inner


def _is_rectified(kernel: Adjustable) -> bool:
    activation = kernel.site.activation
    return _outputs(kernel) % 2 == 0 and activation is not None and activation.kind == "rectifier"


def _alike(given: np.ndarray[Any, Any], taken: np.ndarray[Any, Any]) -> bool:
    """Whether a kernel takes in what an activation puts out: see `_jaxpr.Link`."""
    if given.shape != taken.shape:
        return False
    sizes = np.maximum(np.abs(given), given[..., 2:3])
    return bool((np.abs(given - taken) <= _ALIKE * sizes).all())


def _inputs(kernel: Adjustable) -> int:
    return kernel.leaf.shape[kernel.leaf.inputs[0]]


def _outputs(kernel: Adjustable) -> int:
    return kernel.leaf.shape[kernel.leaf.outputs[0]]
