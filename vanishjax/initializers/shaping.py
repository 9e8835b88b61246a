"""Kernels and biases that absorb the shape of their activations: the start of very deep chains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import numerics
from vanishjax.layers import Dense
from vanishjax.theory import Shape
from vanishjax.transforms.orthogonalization import polar_factor

_Numbers: TypeAlias = np.ndarray[Any, Any]


class Role(NamedTuple):
    """What the layers of a pair of kernel and bias do in a chain; each `[len(pair)]`.

    Attributes:
      first: Whether the data feeds the layer.
      last: Whether no activation lies behind it.
      input_scale: |alpha| of the activation behind it; 1 for the last.
      input_shift: beta of that; 0 for the last.
      output_shift: delta of the activation that feeds it; 0 for the first.
      output_scale: |gamma| of that; 1 for the first.
    """

    first: _Numbers
    last: _Numbers
    input_scale: _Numbers
    input_shift: _Numbers
    output_shift: _Numbers
    output_scale: _Numbers

    @property
    def hidden(self) -> _Numbers:
        """Whether an activation feeds the layer and another lies behind it."""
        return ~(self.first | self.last)

    @property
    def gain(self) -> _Numbers:
        """What an orthogonal kernel is multiplied by, apart from its shape."""
        return self.input_scale * self.output_scale


def count_layers(dense: Sequence[Dense]) -> int:
    """The number of layers that have an activation behind them: of all but the last.

    Example:
      >>> from vanishjax.layers import dense_layers, find_layers
      >>> params = {name: {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)} for name in "abc"}
      >>> count_layers(dense_layers(find_layers(params), params))
      2
    """
    return max(0, sum(map(len, dense)) - 1)


def roles_in_chain(dense: Sequence[Dense], shapes: Sequence[Shape]) -> list[Role]:
    """The roles of all pairs in a chain.

    Args:
      dense: The pairs.
      shapes: For each layer but the last the shape of the activation behind it, in depth order.

    Returns:
      A role for each pair.
    """
    numbers = np.abs(np.array(shapes).reshape(-1, 4))
    shifts = np.array(shapes).reshape(-1, 4)
    behind = np.concatenate([np.stack([numbers[:, 0], shifts[:, 1]], 1), [[1.0, 0.0]]])
    before = np.concatenate([[[0.0, 1.0]], np.stack([shifts[:, 2], numbers[:, 3]], 1)])
    places = sorted(place for pair in dense for place in pair.kernel_places)
    roles = []
    for pair in dense:
        rank = np.searchsorted(places, pair.kernel_places)
        last = rank == len(places) - 1
        roles.append(Role(rank == 0, last, *behind[rank].T, *before[rank].T))
    return roles


def shaped_start(
    dense: Sequence[Dense],
    roles: Sequence[Role],
    values: Mapping[str, jax.Array],
    taps: Sequence[tuple[int, ...]],
) -> dict[str, jax.Array]:
    r"""The kernels and biases of the shaped start.

    .. math::
      W_l = \alpha_l \gamma_{l-1} \sqrt{\max(1, out / in)}\, \mathrm{polar}(W_l), \qquad
      b_l = \beta_l + \delta_{l-1} \textstyle\sum_i W_l[i, :]

    for hidden layers, of convolutions the core in the middle; the last kernel keeps its directions
    and gets entries of root mean square gamma / sqrt(in), the first one alpha / sqrt(in), as for
    standardized inputs.

    Args:
      dense: The pairs.
      roles: Their roles.
      values: Kernels and biases by path.
      taps: For each pair the kernel's axes that run over positions.

    Returns:
      Kernels and biases by path, in the accumulator type.
    """
    kernels = [numerics.upcast(values[pair.kernel.path]) for pair in dense]
    factors = _polar_factors(
        [
            _core(pair, axes, kernel) if role.hidden.any() else None
            for pair, role, axes, kernel in zip(dense, roles, taps, kernels, strict=True)
        ]
    )
    start = {}
    for pair, role, axes, kernel, factor in zip(dense, roles, taps, kernels, factors, strict=True):
        matrices = pair.matrices(kernel)
        size = numerics.rms(matrices, axes=(1, 2), keepdims=True) * matrices.shape[1] ** 0.5
        gain = jnp.asarray(role.gain, matrices.dtype)[:, None, None]
        target = numerics.divide(matrices, size) * gain
        if factor is not None:
            stretch = max(1.0, factor.shape[2] / factor.shape[1]) ** 0.5
            spread = pair.matrices(_around(pair, axes, kernel, stretch * factor))
            target = jnp.where(role.hidden[:, None, None], spread * gain, target)
        start[pair.kernel.path] = pair.kernels(target)
        start[pair.bias.path] = pair.biases(shaped_bias(role, target))
    return start


def shaped_bias(role: Role, matrices: jax.Array) -> jax.Array:
    """The biases `[layers, outputs]` that go with kernels `[layers, inputs, outputs]`."""
    shift, fed = (
        jnp.asarray(x, matrices.dtype)[:, None] for x in (role.input_shift, role.output_shift)
    )
    return shift + fed * jnp.sum(matrices, axis=1)


def position_axes(pair: Dense) -> tuple[int, ...]:
    """The axes of a kernel that run over positions, told by its shape alone.

    A kernel of three axes or more, with one of them for its outputs, is taken for a convolution's.
    """
    axes, outputs = pair.kernel.inner_axes, pair.kernel.outputs
    if len(axes) < 3 or len(outputs) > 1:
        return ()
    return axes[2:] if outputs[0] == axes[0] else axes[:-2]


def delta_orthogonal(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, *, gain: float = 1.0
) -> jax.Array:
    r"""Convolution kernels that are orthogonal in the middle and zero elsewhere.

    What a layer puts out at one position is then an orthogonal matrix times what it took in there,
    so that no direction and no frequency is lost, at any depth. An initializer itself, to go where
    Flax takes a ``kernel_init``.

    Args:
      key: Draws the matrix.
      shape: ``[..., in, out]``, the axes before the last two being positions.
      dtype: Type of the kernel; drawn in float32 at least.
      gain: What the matrix is multiplied by, beside sqrt(max(1, out / in)), with which outputs keep
        the inputs' mean square.

    Returns:
      The kernel.

    Raises:
      ValueError: A shape of less than two axes.

    Example:
      >>> kernel = delta_orthogonal(jax.random.key(0), (3, 3, 8, 8))
      >>> middle = kernel[1, 1]
      >>> bool(jnp.allclose(middle @ middle.T, jnp.eye(8), atol=1e-5)), int((kernel != 0).sum())
      (True, 64)

    References:
      Xiao et al., Dynamical isometry and a mean field theory of CNNs: how to train 10,000-layer
      vanilla convolutional neural networks, 2018, algorithm 1.
    """
    if len(shape) < 2:
        raise ValueError(f"a convolution's kernel needs a shape [..., in, out], got {tuple(shape)}")
    *positions, inputs, outputs = shape
    scale = gain * max(1.0, outputs / max(1, inputs)) ** 0.5
    wide = jnp.promote_types(dtype, jnp.float32)
    matrix = jax.nn.initializers.orthogonal(scale)(key, (inputs, outputs), wide)
    middle = tuple(_middle(length) for length in positions)
    return jnp.zeros(shape, dtype).at[middle].set(numerics.saturating_cast(matrix, dtype))


def _middle(length: int) -> int:
    """Where a position's own input lies in a padded convolution; before the middle if even."""
    return (length - 1) // 2


def _core(pair: Dense, taps: tuple[int, ...], kernel: jax.Array) -> jax.Array:
    """The kernels' matrices in the middle, `[layers, in, out]`."""
    for axis in taps:
        kernel = jnp.take(kernel, jnp.array([_middle(kernel.shape[axis])]), axis=axis)
    inputs = pair.inputs // math.prod(pair.kernel.shape[axis] for axis in taps)
    return jnp.transpose(kernel, pair.axes).reshape(len(pair), inputs, -1)


def _around(pair: Dense, taps: tuple[int, ...], kernel: jax.Array, cores: jax.Array) -> jax.Array:
    """The kernel with these matrices in the middle, and zeros elsewhere."""
    narrow = [1 if axis in taps else length for axis, length in enumerate(kernel.shape)]
    inverse = sorted(range(len(pair.axes)), key=pair.axes.__getitem__)
    laid_out = jnp.transpose(cores.reshape([narrow[axis] for axis in pair.axes]), inverse)
    margins = [
        (_middle(length), length - 1 - _middle(length)) if axis in taps else (0, 0)
        for axis, length in enumerate(kernel.shape)
    ]
    return jnp.pad(laid_out, margins)


def _polar_factors(matrices: Sequence[jax.Array | None]) -> list[jax.Array | None]:
    """The polar factors of stacks of matrices; those of one shape are computed together."""
    groups: dict[Any, list[int]] = {}
    for number, x in enumerate(matrices):
        if x is not None:
            groups.setdefault((x.shape[1:], x.dtype), []).append(number)
    factors: list[jax.Array | None] = [None] * len(matrices)
    for numbers in groups.values():
        together = [x for number in numbers if (x := matrices[number]) is not None]
        stack = jnp.concatenate(together)
        # Twice: of thousands of matrices some have singular values too small for once.
        parts = jnp.split(
            polar_factor(polar_factor(stack)), np.cumsum([len(x) for x in together])[:-1]
        )
        for number, part in zip(numbers, parts, strict=True):
            factors[number] = part
    return factors
