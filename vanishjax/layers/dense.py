"""Kernels and the biases beside them: the layers z = h W + b of a tree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.layers.division import Layers, Leaf
from vanishjax.layers.matrices import bias_lengths, bias_of


@dataclasses.dataclass(frozen=True)
class Dense:
    """A kernel and its bias, or a stack of them.

    Attributes:
      kernel: The kernel's leaf.
      bias: The bias's leaf.
      depths: For each layer of the stack the kernel's depth, as in `Layers.depths`.
      kernel_places: For each layer of the stack the kernel's place in the layers' depth order.
      bias_places: The same of the bias.
      axes: The kernel's axes as stack, inputs, outputs.
    """

    kernel: Leaf
    bias: Leaf
    depths: tuple[int, ...]
    kernel_places: tuple[int, ...]
    bias_places: tuple[int, ...]
    axes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.depths)

    @property
    def inputs(self) -> int:
        """Number of inputs of a unit."""
        return math.prod(self.kernel.shape) // max(1, math.prod(self.bias.shape))

    def matrices(self, kernel: jax.Array) -> jax.Array:
        """The kernels as `[len(self), inputs, outputs]`."""
        return jnp.transpose(kernel, self.axes).reshape(len(self), self.inputs, -1)

    def vectors(self, bias: jax.Array) -> jax.Array:
        """The biases as `[len(self), outputs]`."""
        return jnp.transpose(bias, self._bias_axes).reshape(len(self), -1)

    def kernels(self, matrices: jax.Array) -> jax.Array:
        """The parameter array that `matrices` came from."""
        return _laid_out(matrices, self.kernel.shape, self.axes)

    def biases(self, vectors: jax.Array) -> jax.Array:
        """The parameter array that `vectors` came from."""
        return _laid_out(vectors, self.bias.shape, self._bias_axes)

    @property
    def _bias_axes(self) -> tuple[int, ...]:
        return (*self.bias.axes, *self.bias.inner_axes)


def _laid_out(x: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    return jnp.transpose(x.reshape([shape[axis] for axis in axes]), inverse)


def dense_layers(layers: Layers, tree: Any) -> tuple[Dense, ...]:
    """Pairs the kernels of a tree with the biases beside them.

    A kernel is an array of two axes or more beside its stack's; its bias lies in the same module
    under the partner's name (kernel and bias, weight and bias, w and b) and has the shape of the
    kernel's outputs: its last axes, or the first ones where it's called weight, as in Equinox.

    Args:
      layers: The tree's layers.
      tree: Parameters or what has their structure; kernels that are masked out don't count.

    Returns:
      The pairs, in depth order of their first layers; none for an empty kernel.

    Raises:
      ValueError: A kernel has no bias beside it, or one of another shape.

    Example:
      >>> from vanishjax.layers import find_layers
      >>> params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}
      >>> [pair] = dense_layers(find_layers(params), params)
      >>> pair.kernel.path, pair.bias.path, pair.matrices(params["w"]).shape
      ('w', 'b', (1, 3, 4))
    """
    arrays, _ = layers.by_path(tree)
    leaves = [leaf for leaf in layers.leaves if leaf.path in arrays]
    places = _places(layers)
    pairs = []
    partners = {kernel.path: bias_of(kernel, leaves) for kernel in leaves}
    biases = {bias.path for bias in partners.values() if bias is not None}
    for kernel in leaves:
        if len(kernel.inner_axes) < 2 or kernel.path in biases:
            continue
        bias = partners[kernel.path]
        if bias is None:
            raise ValueError(
                f"{kernel.path}: no bias beside it, which this transform needs (named kernel and "
                "bias, weight and bias, or w and b); leave the kernel out with optax.masked"
            )
        if not math.prod(kernel.shape):
            continue  # nothing in it to move
        own = places[kernel.path]
        depths = tuple(layers.depths[place] for place in own)
        axes = matrix_axes(kernel, bias)
        pairs.append(Dense(kernel, bias, depths, own, places[bias.path], axes))
    return tuple(sorted(pairs, key=lambda pair: min(pair.kernel_places)))


def matrix_axes(kernel: Leaf, bias: Leaf) -> tuple[int, ...]:
    """All axes of a kernel in the order stack, inputs, outputs.

    Raises:
      ValueError: The bias isn't that of the outputs.
    """
    outputs = kernel.outputs
    if bias_lengths(bias) != [kernel.shape[axis] for axis in outputs] or bias.stack != kernel.stack:
        raise ValueError(
            f"{bias.path} of shape {bias.shape} isn't the bias of {kernel.path} of shape "
            f"{kernel.shape}; if they are stacks of layers, pass layers=find_layers(params, "
            "loss_fn, batch), which knows that"
        )
    return (*kernel.axes, *(axis for axis in kernel.inner_axes if axis not in outputs), *outputs)


def _places(layers: Layers) -> dict[str, tuple[int, ...]]:
    """For each leaf the places of its layers in depth order."""
    rank = np.argsort(np.array(layers.order, int))
    ends = np.cumsum([0, *(math.prod(leaf.stack) for leaf in layers.leaves)])
    return {
        leaf.path: tuple(rank[start:end].tolist())
        for leaf, start, end in zip(layers.leaves, ends, ends[1:], strict=False)
    }
