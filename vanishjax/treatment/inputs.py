"""Inputs brought to zero mean and unit size inside the loss, by one batch's statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr
from vanishjax.layers.traced import traced_loss
from vanishjax.placement import gathered

# Inputs within these bounds are left as they are: so far from unit size, or with a mean so many
# standard deviations away, or with features of which one is so many times as large as most.
_FAR, _UNEVEN = 10.0, 30.0
# What deviates by less of its mean is a constant, by rounding alone; in another batch it may vary.
_CONSTANT = 1e-6
# Up to so many features are columns of a table, each in a unit of its own. More may be pixels, of
# which those at the border hardly vary, and would be blown up.
_FEW = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Standardized:
    """A function of parameters and a batch that gets standardized inputs.

    Attributes:
      function: It.
      means: By the number of the batch's leaf what is taken off.
      deviations: By the same what it is then divided by.
    """

    function: Callable[..., Any]
    means: dict[int, Any]
    deviations: dict[int, Any]

    def __call__(self, params: Any, batch: Any, **settings: Any) -> Any:
        """The function's value at the same batch with standardized inputs."""
        return self.function(params, self.standardize(batch), **settings)

    def standardize(self, batch: Any) -> Any:
        """A batch, or the first of its parts, with standardized inputs."""
        leaves, structure = jax.tree.flatten(batch)
        for number, mean in self.means.items():
            if number < len(leaves):
                x = leaves[number]
                standard = (x - mean) / self.deviations[number]
                leaves[number] = standard.astype(jnp.result_type(x))
        return jax.tree.unflatten(structure, leaves)


def standardize_inputs(loss_fn: Callable[..., Any], params: Any, batch: Any) -> Standardized:
    r"""A loss that standardizes its inputs first, by the statistics of one batch.

    .. math:: x \leftarrow (x - \bar x) / \mathrm{std}(x)

    for each feature, on the last axis, where one is far larger than most or a few differ much, and
    otherwise for all together. Inputs are the floating-point arrays that meet parameters in
    products alone: what the loss compares with the output, as an autoencoder does with its inputs,
    stays as it is.

    Args:
      loss_fn: `loss_fn(params, batch)`.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.

    Returns:
      The loss, a function whose `standardize(batch)` does the same to what is predicted from.

    Raises:
      ValueError: No input is far from zero mean and unit size.

    Example:
      >>> def loss_fn(w, batch):
      ...     return jnp.mean((batch[0] @ w - batch[1]) ** 2)
      >>> x = 1e5 + jax.random.normal(jax.random.key(0), (64, 3))
      >>> standard = standardize_inputs(loss_fn, jnp.ones((3, 1)), (x, x[:, :1]))
      >>> new, targets = standard.standardize((x, x[:, :1]))
      >>> print(abs(new.mean()) < 1e-2, new.std().round(1), (targets == x[:, :1]).all())
      True 1.0 True

    References:
      LeCun et al., Efficient backprop, 1998, section 4.3.
    """
    batch = gathered(batch)
    program = traced_loss(loss_fn, gathered(params), batch).program
    leaves = jax.tree.leaves(batch)
    arrays = [number for number, leaf in enumerate(leaves) if _jaxpr.is_array(leaf)]
    means, deviations = {}, {}
    for place in _jaxpr.pure_inputs(program):
        number = arrays[place]
        x = leaves[number]
        if jnp.issubdtype(x.dtype, jnp.floating):
            found = _statistics(np.asarray(x, np.float64))
            if found is not None:
                means[number], deviations[number] = found
    if not means:
        raise ValueError("no input of the loss is far from zero mean and unit size")
    return Standardized(loss_fn, means, deviations)


def may_be_far(batch: Any) -> bool:
    """Whether any array of a batch is far from zero mean and unit size: an input, or a target."""
    leaves = [x for x in jax.tree.leaves(gathered(batch)) if _jaxpr.is_array(x)]
    real = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return any(_statistics(np.asarray(x, np.float64)) is not None for x in real)


def _statistics(x: np.ndarray[Any, Any]) -> tuple[Any, Any] | None:
    """The mean and the deviation to take off and divide by; None where there is no need."""
    axes = tuple(range(max(1, x.ndim - 1)))
    return far_from_standard(np.atleast_1d(x.mean(axes)), np.atleast_1d(x.std(axes)))


def far_from_standard(
    means: np.ndarray[Any, Any], deviations: np.ndarray[Any, Any]
) -> tuple[Any, Any] | None:
    """What brings features to zero mean and unit size: one by one where they are uneven.

    Args:
      means: `[features]`.
      deviations: `[features]`.

    Returns:
      The mean to take off and the deviation to divide by, `[features]` or for all together; None
      where features are near zero mean and unit size.

    Example:
      >>> mean, deviation = far_from_standard(np.array([0.0, 2e3]), np.array([1.0, 1e3]))
      >>> print(mean, deviation)
      [   0. 2000.] [   1. 1000.]
    """
    whole_mean = float(means.mean())
    whole = float(np.hypot(np.sqrt((deviations**2).mean()), means.std()))
    if not np.isfinite([whole_mean, whole]).all() or whole == 0:
        return None
    sizes = np.hypot(means, deviations)
    usual = _middle(sizes)
    uneven = bool(usual) and sizes.max() > _UNEVEN * usual
    size = float(np.hypot(whole_mean, whole))
    if not uneven and 1 / _FAR <= size <= _FAR and abs(whole_mean) <= _FAR * whole:
        return None
    constant = deviations <= _CONSTANT * np.abs(means)
    if uneven and constant.all():
        return None  # examples that are all alike tell no deviation
    own = deviations[~constant]
    if uneven or (len(own) > 1 and len(sizes) <= _FEW and sizes.max() > _FAR * own.min()):
        return _numbers(means), _numbers(np.where(constant, _middle(own), deviations))
    return _numbers(whole_mean), _numbers(whole)


def _middle(x: np.ndarray[Any, Any]) -> float:
    """The median; of an even number the smaller of the two in the middle."""
    return float(np.sort(x)[(len(x) - 1) // 2])


def _numbers(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(x, np.float32)
