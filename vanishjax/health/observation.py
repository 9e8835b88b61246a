"""One observation: what a training step does to every layer, in arrays of fixed shape."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vanishjax import numerics
from vanishjax._jaxpr import WHOLE, Cut, Update
from vanishjax.health.alike import Kinds, kinds_of, stacked
from vanishjax.health.response import Response, effectiveness
from vanishjax.layers import Layers

# A layer of whose step less than this share gets into the parameters stands still.
STILL = 0.1
# Rows that are looked at hold so many entries of a layer, which gives its norms within a few
# percent.
_LEAST_OF_A_LAYER = 2**12
# Of more entries an array's memory costs more than a branch.
_LARGE = 2**17


class Health(NamedTuple):
    """What was seen at one training step; `[layers]` arrays are in depth order.

    Numbers are float32, or float64 if some parameter is.

    Attributes:
      step: Scalar int32, the number of updates before the one that was observed; -1 before any.
      loss: Scalar, the loss, if it was passed to update as `value`; 0 if not.
      first_loss: The loss that was observed first.
      best_loss: The least that was observed.
      gradient_norm: `[layers]`, 2-norm of the gradient that came in.
      update_norm: `[layers]`, 2-norm of the update that went out.
      param_norm: `[layers]`, 2-norm of the parameters before the update.
      update_ratio: `[layers]`, update_norm / param_norm; 0 where the parameters are 0.
      zero_fraction: `[layers]`, share of the gradient's entries that are exactly 0.
      effectiveness: `[layers]`, share in [0, 1] of the step that survives epsilon and underflow:
        see `vanishjax.health.response.effectiveness`. NaN if the transform couldn't be measured.
      applied_fraction: `[layers]`, share in [0, 1] of the update that survives being added to the
        parameters in their type: erf(2 update_ratio / eps), with eps the type's, which is right
        within a factor of two if the parameters are normally distributed.
      still_steps: `[layers]` int32, for how many observations in a row the layer hasn't moved:
        the update was zero, or less than a tenth of it survived being added.

    Example:
      >>> health = first_health(1)
      >>> print(health.step, health.update_norm, health.effectiveness)
      -1 [0.] [1.]
    """

    step: jax.Array
    loss: jax.Array
    first_loss: jax.Array
    best_loss: jax.Array
    gradient_norm: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array
    update_ratio: jax.Array
    zero_fraction: jax.Array
    effectiveness: jax.Array
    applied_fraction: jax.Array
    still_steps: jax.Array


def first_health(count: int, dtype: Any = jnp.float32) -> Health:
    """That of so many layers before any observation."""

    def nothing() -> jax.Array:
        return jnp.zeros(count, dtype)

    return Health(
        step=jnp.full([], -1, jnp.int32),
        loss=jnp.zeros([], dtype),
        first_loss=jnp.zeros([], dtype),
        best_loss=jnp.zeros([], dtype),
        gradient_norm=nothing(),
        update_norm=nothing(),
        param_norm=nothing(),
        update_ratio=nothing(),
        zero_fraction=nothing(),
        effectiveness=jnp.ones(count, dtype),
        applied_fraction=jnp.ones(count, dtype),
        still_steps=jnp.zeros(count, jnp.int32),
    )


class OfParams(NamedTuple):
    """What was seen of the parameters.

    Attributes:
      norm: `[layers]`, their 2-norms.
      rows: Those that the updates' rows are made of as well.
    """

    norm: jax.Array
    rows: list[jax.Array]


class Observation:
    """What there is to see of one update; what isn't asked for isn't computed.

    The parameters come first, since the update is to overwrite them.
    """

    def __init__(
        self, layers: Layers, share: float, update: Update, gradient: Any, params: Any
    ) -> None:
        """Of evenly spaced rows that hold so large a share, 1 at most, of every layer's entries."""
        cuts = {leaf.path: _cut(leaf.shape, leaf.inner_axes, share) for leaf in layers.leaves}
        self._update = update
        self._of_gradient, self._of_steps, self._of_params = (
            kinds_of(layers, tree, cuts) for tree in (gradient, update.steps, params)
        )
        self._leaves = jax.tree.leaves(params)
        self._reads = update.reads(
            [(x, kind.cut) for kind in self._of_steps.kinds for x in kind.arrays]
        )
        self._entries = _constants(layers, params, lambda x, axes: _entries(x.shape, axes))
        self._eps = _constants(layers, params, lambda x, _: float(jnp.finfo(x.dtype).eps))
        self._least_square = _constants(layers, params, lambda x, _: _least_square(x.dtype))
        # Of the entries so many are seen.
        self._seen = _constants(
            layers,
            params,
            lambda x, axes: _entries(_cut(x.shape, axes, share).shape(x.shape), axes),
        )

    def of_params(self) -> OfParams:
        """Looks at the parameters."""
        norms = self._norms([(self._of_params, self._of_params.rows())])
        return OfParams(norms[0], [cut(self._leaves[number]) for number, cut in self._reads])

    def of_no_params(self) -> OfParams:
        """Zeros in place of what `of_params` returns."""
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(self.of_params))

    def health(
        self, before: Health, response: Response, step: jax.Array, loss: jax.Array, params: OfParams
    ) -> Health:
        """Looks at what goes in and what comes out."""
        gradient = self._of_gradient.rows()
        given = dict(zip(self._reads, params.rows, strict=True))
        steps = [
            stacked(self._update.rows([(x, kind.cut) for x in kind.arrays], given))
            for kind in self._of_steps.kinds
        ]
        zeros = self._of_gradient.reduce(_zeros, gradient)
        gradient_norm, update_norm = self._norms(
            [(self._of_gradient, gradient), (self._of_steps, steps)], zeros == self._seen
        )
        ratio = numerics.divide(update_norm, params.norm)
        nothing_to_lose = (params.norm == 0) | (update_norm == 0)
        applied = jnp.where(nothing_to_lose, 1.0, jax.lax.erf(2 * ratio / self._eps))
        still = (update_norm == 0) | (applied < STILL)
        health = Health(
            step=step,
            loss=loss,
            first_loss=jnp.where(before.step < 0, loss, before.first_loss),
            best_loss=jnp.where(before.step < 0, loss, jnp.fmin(before.best_loss, loss)),
            gradient_norm=gradient_norm,
            update_norm=update_norm,
            param_norm=params.norm,
            update_ratio=ratio,
            zero_fraction=zeros / self._seen,
            effectiveness=effectiveness(response, gradient_norm / jnp.sqrt(self._entries)),
            applied_fraction=applied,
            still_steps=jnp.where(still, before.still_steps + 1, 0),
        )
        return jax.tree.map(lambda x, like: x.astype(like.dtype), health, before)

    def _norms(
        self, looks: Sequence[tuple[Kinds, list[jax.Array]]], first_is_zero: Any = None
    ) -> jax.Array:
        """`[looks, layers]` 2-norms of whole layers, from rows; a second look at all or none."""

        def reduced(fn: Callable[..., jax.Array], rows: Sequence[list[jax.Array]]) -> jax.Array:
            return jnp.stack(
                [kinds.reduce(fn, own) for (kinds, _), own in zip(looks, rows, strict=True)]
            )

        rows = [own for _, own in looks]
        if not numerics.norms.branches_are_cheap():
            return reduced(numerics.norm, rows) * jnp.sqrt(self._entries / self._seen)
        squares = reduced(_sum_of_squares, rows)
        # As in `vanishjax.numerics`: below this, squares flushed to zero could have mattered.
        least = self._seen * self._least_square
        trusted = (squares >= least) & (squares <= float(jnp.finfo(squares.dtype).max))
        if first_is_zero is not None:
            trusted = trusted.at[0].set(trusted[0] | first_is_zero)

        def as_is(*_: Any) -> jax.Array:
            return jnp.sqrt(squares)

        def with_care(*rows: list[jax.Array]) -> jax.Array:
            return reduced(_careful_norm, rows).astype(squares.dtype)

        norms = jax.lax.cond(jnp.all(trusted), as_is, with_care, *rows)
        return norms * jnp.sqrt(self._entries / self._seen)


def _cut(shape: tuple[int, ...], axes: tuple[int, ...], share: float) -> Cut:
    """Rows that hold a share of every layer's entries."""
    entries = math.prod(shape[axis] for axis in axes)
    stride = int(entries // max(_LEAST_OF_A_LAYER, share * entries))
    if stride < 2:
        return WHOLE
    # Along the longest axis but the last, whose entries lie side by side in memory.
    axis = max(axes[:-1] or axes, key=lambda axis: shape[axis])
    return Cut(axis, min(stride, shape[axis]))


def _sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # A dot product, since XLA would share a plain square with Adam's, and write it to memory.
    stack = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return jax.lax.dot_general(
        x,
        x,
        ((axes, axes), (stack, stack)),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=numerics.accumulator_dtype(x.dtype),
    )


def _careful_norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # A branch for every array takes longer to compile, and the step longer to start. Without one
    # XLA gives each of them memory of its own at every step, whether the norms are taken or not.
    return (numerics.norm if x.size > _LARGE else numerics.scaled_norm)(x, axes)


def _zeros(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # Zeros and ones fit in a bfloat16, and half the bytes are half the time.
    return jnp.sum((x == 0).astype(jnp.bfloat16), axis=axes, dtype=jnp.float32)


def _least_square(dtype: Any) -> float:
    info = jnp.finfo(numerics.accumulator_dtype(dtype))
    return float(info.tiny) / float(info.eps)


def _entries(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return max(1, math.prod(shape[axis] for axis in axes))


def _constants(layers: Layers, params: Any, fn: Callable[..., float]) -> jax.Array:
    """`[layers]` of `fn(leaf, axes)`, float32 at least; 1 where the parameters have a hole."""

    def constant(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        stack = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
        return jnp.full(stack, fn(x, axes), numerics.accumulator_dtype(x.dtype))

    found = layers.reduce(constant, params)
    return jnp.where(found == 0, 1.0, found)
