"""Outputs in units of the targets: a change of the last layer's coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import numerics
from vanishjax.initializers.network import Network, network
from vanishjax.problem import MISSING, Problem
from vanishjax.treatment.coordinates import ChangeOfCoordinates
from vanishjax.treatment.inputs import far_from_standard
from vanishjax.treatment.outputs import find_heads, measure_constant


@dataclasses.dataclass(frozen=True, eq=False)
class OutputUnits(ChangeOfCoordinates):
    r"""Coordinates in which the last layer puts out what targets of unit size ask for.

    .. math:: h W + b = s\, (h W' + b'), \qquad W' = W / s, \quad b' = b / s, \quad L' = L / u

    Attributes:
      units: By the numbers of the last kernels and their biases among the parameters' arrays: s,
        laid out like them.
      loss: u, the loss of targets whose unit is 1.
    """

    units: Mapping[int, np.ndarray[Any, Any]]
    loss: float

    @property
    def _unit(self) -> float:
        return self.loss

    def _inside(self, params: Any) -> Any:
        return self._changed(params, lambda x, unit: x / unit)

    def _outside(self, params: Any) -> Any:
        return self._changed(params, lambda x, unit: x * unit)

    def _gradient(self, gradients: Any) -> Any:
        return self._changed(gradients, lambda x, unit: x * unit, self.loss)

    def _changed(self, tree: Any, change: Callable[[Any, Any], Any], parts: float = 1.0) -> Any:
        """A tree whose scaled arrays are changed, and all divided by a number."""
        leaves, structure = jax.tree.flatten(tree)
        for number, x in enumerate(leaves):
            if number in self.units or parts != 1:
                wide = numerics.upcast(x) / parts
                wide = change(wide, self.units[number]) if number in self.units else wide
                leaves[number] = numerics.saturating_cast(wide, jnp.result_type(x))
        return jax.tree.unflatten(structure, leaves)


def standardize_outputs(
    loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING
) -> OutputUnits:
    r"""Brings targets to unit size, by a change of the last layer's coordinates.

    Targets in dollars, vehicles a day or volts make gradients as large or as small as their squares
    and ask for weights that no step of a thousandth reaches, or that each step overshoots. Model,
    loss and what is predicted stay, and the optimizer steps as if the targets had been divided by
    their deviations :math:`s`, and the loss by that of a target of unit size:

    .. math::
      U_W = s\, U', \quad U' \text{ the step on } g' = s\, g_W / u, \qquad
      u = \tfrac{1}{2} \sum_j s_j\, \mathrm{rms}(\partial \ell / \partial y_j)

    where the slopes are those of single examples' losses :math:`\ell` at the best constant output,
    and s is how far from it the examples pull, as in `vanishjax.treatment.match_targets`, from
    which training best starts. For a squared error, s is the targets' standard deviation, and u its
    square: the steps are those of standardized targets, for any optimizer.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters; they have no say.
      batch: A few hundred examples, the batch axis first.

    Returns:
      The coordinates: `transform(tx)` is a transform that steps in them.

    Raises:
      ValueError: Targets are near unit size; a last kernel has no bias beside it,
        stands in a loop, is normalized or meets several inputs; the loss isn't a scalar, or a leaf
        isn't a real floating-point array.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,), 1, loss="squared_error")
      >>> x = jax.random.normal(jax.random.key(0), (256, 8))
      >>> batch = x, 250_000 + 80_000 * x[:, :1]
      >>> units = standardize_outputs(problem, batch)
      >>> print({number: s.round(-4).ravel().tolist() for number, s in sorted(units.units.items())})
      {2: [80000.0], 3: [80000.0]}
      >>> print(f"{units.loss:.1e}")
      6.6e+09

    References:
      LeCun et al., Efficient backprop, 1998, section 4.5, for standardized targets; the change of
      coordinates is a preconditioner of one layer, exact for any optimizer.
    """
    return find_output_units(network(loss_fn, params, batch))


def find_output_units(found: Network) -> OutputUnits:
    """The units of a network's outputs; raises ValueError where nothing is far from standard.

    Args:
      found: The network. Its parameters have no say.
    """
    heads = find_heads(found)
    constant = measure_constant(found.traced, heads, found.leaves, found.inputs)
    pulls, widths = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in parts])
        for parts in (constant.pulls, constant.widths)
    )
    known = np.isfinite(widths) & (widths > 0)
    # A mean far from 0 is a matter of the biases' start alone.
    if not known.any() or far_from_standard(np.zeros(known.sum()), widths[known]) is None:
        raise ValueError("no targets are known to be far from unit size")
    usual = float(np.median(widths[known]))
    unit = float(np.sum(widths[known] * pulls[known])) / 2
    units = {}
    for (kernel, bias), own in zip(heads, constant.widths, strict=True):
        width = np.asarray(own, np.float32).ravel()
        width = np.where(np.isfinite(width) & (width > 0), width, np.float32(usual))
        axes, shape = kernel.leaf.outputs, found.leaves[kernel.number].shape
        laid = [shape[axis] for axis in axes] + [1] * (len(shape) - len(axes))
        units[kernel.number] = np.moveaxis(width.reshape(laid), range(len(axes)), axes)
        units[bias] = width.reshape(found.leaves[bias].shape)
    return OutputUnits(units, unit if np.isfinite(unit) and unit > 0 else 1.0)
