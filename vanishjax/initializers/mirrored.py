"""Looks-linear initialization: rectifier networks that start as linear ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

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
