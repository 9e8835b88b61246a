"""Inputs standardized inside the first kernels: a change of coordinates, of parameters alone."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import _jaxpr, numerics
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import Network, network
from vanishjax.layers import Leaf
from vanishjax.layers.matrices import bias_lengths, bias_of
from vanishjax.problem import MISSING, Problem
from vanishjax.transforms.coordinates import in_coordinates
from vanishjax.treatment.inputs import far_from_standard

# What parameters without a size are changed by, to see what depends on them.
_CHANGE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Standard:
    """What one kernel takes in, laid out like it.

    Attributes:
      bias: The number of the bias beside it; None if there is none.
      inputs: The kernel's axes of inputs.
      means: Of the features; zeros without a bias, which alone could take them off.
      deviations: Of the features.
    """

    bias: int | None
    inputs: tuple[int, ...]
    means: np.ndarray[Any, Any]
    deviations: np.ndarray[Any, Any]


class ChangeOfCoordinates(abc.ABC):
    """Coordinates of parameters that an optimizer may see in place of their own."""

    def transform(
        self, inner: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """A transform that sees parameters and gradients in these coordinates.

        Args:
          inner: The transform; its state is the whole state.

        Returns:
          A transform of raw parameters and gradients, which needs the parameters.

        Raises:
          TypeError: It's no transform.
          ValueError: `update` without parameters.
        """
        return in_coordinates(inner, self._inside, self._outside, self._gradient, self._unit)

    @property
    def _unit(self) -> float:
        """What the loss is divided by inside."""
        return 1.0

    @abc.abstractmethod
    def _inside(self, params: Any) -> Any:
        """Parameters inside, of raw ones."""

    @abc.abstractmethod
    def _outside(self, params: Any) -> Any:
        """Raw parameters, or their steps, of those inside."""

    @abc.abstractmethod
    def _gradient(self, gradients: Any) -> Any:
        """The gradient inside, of that by raw parameters."""


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates(ChangeOfCoordinates):
    r"""Coordinates of parameters in which first kernels take in standardized features.

    .. math:: x W + b = \frac{x - m}{s} W' + b', \qquad W' = s W, \quad b' = b + m W

    Attributes:
      kernels: By the kernel's number among the parameters' arrays.

    Example:
      >>> x = jnp.array([[70.0], [130.0]])
      >>> def loss_fn(params, x):
      ...     return jnp.mean((x @ params["w"] + params["b"]) ** 2)
      >>> params = {"w": jnp.ones((1, 1)), "b": jnp.zeros(1)}
      >>> params = standardize_inside(loss_fn, params, x).start(params)
      >>> print((x @ params["w"] + params["b"]).ravel().round(3))
      [-1.  1.]
    """

    kernels: Mapping[int, Standard]

    def start(self, params: Any) -> Any:
        """Parameters that do to raw inputs what those given do to standardized ones.

        Args:
          params: Parameters, drawn for inputs of zero mean and unit size.

        Returns:
          Others: kernels W / s, biases b - (m / s) W.
        """
        return self._outside(params)

    def _inside(self, params: Any) -> Any:
        """W' = s W and b' = b + m W of W and b."""

        def change(one: Standard, kernel: jax.Array, bias: Any) -> tuple[jax.Array, Any]:
            return kernel * one.deviations, _plus(bias, _summed(kernel * one.means, one))

        return self._changed(params, change)

    def _outside(self, params: Any) -> Any:
        """W = W' / s and b = b' - (m / s) W' of W' and b', or of their steps."""

        def change(one: Standard, kernel: jax.Array, bias: Any) -> tuple[jax.Array, Any]:
            raw = kernel / one.deviations
            return raw, _plus(bias, -_summed(raw * one.means, one))

        return self._changed(params, change)

    def _gradient(self, gradients: Any) -> Any:
        """The gradient by W', (g - m h) / s, of those by W and by b, g and h."""

        def change(one: Standard, kernel: jax.Array, bias: Any) -> tuple[jax.Array, Any]:
            if bias is not None:
                outputs = [1 if a in one.inputs else n for a, n in enumerate(kernel.shape)]
                kernel = kernel - bias.reshape(outputs) * one.means
            return kernel / one.deviations, bias

        return self._changed(gradients, change)

    def _changed(self, tree: Any, change: Callable[..., Any]) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        for number, one in self.kernels.items():
            places = [number] if one.bias is None else [number, one.bias]
            before = [leaves[place] for place in places]
            wide = [numerics.upcast(x) for x in before]
            after = change(one, wide[0], None if one.bias is None else wide[1])
            for place, old, new in zip(places, before, after, strict=False):
                leaves[place] = numerics.saturating_cast(new, jnp.result_type(old))
        return jax.tree.unflatten(structure, leaves)


def _summed(x: jax.Array, one: Standard) -> jax.Array:
    return jnp.sum(x, axis=one.inputs)


def _plus(bias: Any, x: jax.Array) -> Any:
    return None if bias is None else bias + x.reshape(bias.shape)


def standardize_inside(
    loss_fn: Callable[..., Any] | Problem, params: Any = MISSING, batch: Any = MISSING
) -> Coordinates:
    r"""Standardizes what first kernels take in, by a change of their coordinates.

    Features far from zero mean and unit size hold back what steps all entries of a kernel alike:
    seconds since 1970 beside shares, samples in thousands, a pedestal under all pixels. Where the
    model itself makes them, nothing outside it can standardize them. Here model and loss stay, and
    the parameters start and move as those of a network would that took in :math:`(x - m) / s`:

    .. math::
      W \leftarrow W / s, \quad b \leftarrow b - (m / s) W; \qquad
      U_W = U'_W / s, \quad U_b = U'_b - m\, U_W \quad
      \text{for the step } U' \text{ on } g'_W = (g_W - m\, g_b) / s, \quad g'_b = g_b

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`. It's traced, and run twice.
        Or a `Problem`, with the batch alone beside it.
      params: Its parameters, drawn for inputs of zero mean and unit size.
      batch: A few hundred examples, the batch axis first.

    Returns:
      The coordinates: `start(params)` are parameters to start from, `transform(tx)` is a transform
      that steps in them. Kernels of dense layers and of convolutions take part, in loops over time
      too, with what no parameter changes among their features. A kernel without a bias is divided
      by the features' size, and their mean stays. Zeros that pad a convolution stay raw zeros: at
      the borders the start isn't that of standardized inputs.

    Raises:
      ValueError: No kernel takes in features far from zero mean and unit size, the loss isn't a
        scalar, or a leaf isn't a real floating-point array.

    Example:
      >>> def loss_fn(params, x):
      ...     seconds = 1.7e9 + 1e4 * x
      ...     return jnp.mean((jnp.tanh(seconds @ params["w"] + params["b"]) - x[:, :1]) ** 2)
      >>> x = jax.random.normal(jax.random.key(0), (256, 2))
      >>> params = {"w": jnp.ones((2, 1)), "b": jnp.zeros(1)}
      >>> coordinates = standardize_inside(loss_fn, params, x)
      >>> params = coordinates.start(params)
      >>> tx = coordinates.transform(optax.adam(0.03))
      >>> state, losses = tx.init(params), []
      >>> for _ in range(200):
      ...     loss, gradient = jax.value_and_grad(loss_fn)(params, x)
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     losses.append(float(loss))
      >>> print(losses[0] > 0.3, losses[-1] < 0.2)
      True True

    References:
      LeCun et al., Efficient backprop, 1998, section 4.3, for standardized inputs; the change of
      coordinates is a preconditioner of one layer, exact for any optimizer.
    """
    return checked(find_coordinates(network(loss_fn, params, batch)))


def checked(coordinates: Coordinates) -> Coordinates:
    """Coordinates that change something; raises ValueError for others."""
    if not coordinates.kernels:
        raise ValueError("no kernel takes in features far from zero mean and unit size")
    return coordinates


def find_coordinates(found: Network) -> Coordinates:
    """The coordinates of a network; without kernels where none takes in what is far from standard.

    Args:
      found: The network. Its parameters have no say.
    """
    program, anatomy = found.traced.program, found.traced.anatomy
    intakes = _jaxpr.find_intakes(program, found.traced.trace, anatomy)
    leaves = found.traced.layers.leaves
    numbers = {leaf.path: number for number, leaf in enumerate(leaves)}
    kernels = {}
    # A kernel that takes in features in several ways, as in a derivative, has no one change.
    alike = {
        number: intake
        for number, (intake, *others) in intakes.items()
        if all(one[2:] == intake[2:] for one in others)
    }
    for number, (means, deviations) in _features(found, alike).items():
        leaf, intake = leaves[number], alike[number]
        inputs = leaf.inputs if intake.sums else ()
        shape = _shape(leaf, intake) if intake.sums else means.shape
        bias = bias_of(leaf, leaves)
        outputs = [leaf.shape[axis] for axis in leaf.inner_axes if axis not in inputs]
        if bias is not None and (leaf.axes or bias.axes or bias_lengths(bias) != outputs):
            bias = None
        standard = None if shape is None else _to_standard(means, deviations, bias is not None)
        if shape is not None and standard is not None:
            mean, deviation = (np.asarray(x, np.float32).reshape(shape) for x in standard)
            partner = None if bias is None else numbers[bias.path]
            kernels[number] = Standard(partner, inputs, mean, deviation)
    return Coordinates(kernels)


def _features(found: Network, wanted: Collection[int]) -> dict[int, np.ndarray[Any, Any]]:
    """By kernel the means and deviations of what it takes in; NaN where parameters have a say."""
    traced = found.traced
    run = functools.partial(_jaxpr.feature_moments, traced.program, traced.trace, traced.anatomy)
    measure = jit_once(run)
    draws = np.random.default_rng(0)
    others = [_perturbed(draws, leaf) for leaf in found.leaves]
    first, second = (measure([*leaves, *found.inputs]) for leaves in (found.leaves, others))
    features = {}
    for number in wanted:
        one, other = _pooled(first[number]), _pooled(second[number])
        features[number] = np.where((one == other).all(axis=0), one, np.nan)
    return features


def _perturbed(draws: np.random.Generator, leaf: jax.Array) -> jax.Array:
    # On the host: every shape would ask for programs of its own.
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    value, largest = np.asarray(leaf, wide), float(jnp.finfo(leaf.dtype).max)
    size = np.abs(value).mean() if value.size else 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # parameters may be infinite
        changed = value + (size or _CHANGE) * draws.standard_normal(value.shape, wide)
    return jnp.asarray(np.clip(changed, -largest, largest), leaf.dtype)


def _pooled(places: Sequence[_jaxpr.Moments]) -> np.ndarray[Any, Any]:
    """The mean and the deviation of each feature over all places where a kernel takes them in."""
    means, deviations = (
        np.array([place[part] for place in places], np.float64) for part in range(2)
    )
    # Where a derivative's direction meets the kernel beside what it's taken by.
    varies = deviations.any(axis=tuple(range(1, deviations.ndim)))
    means, deviations = (x[varies] if varies.any() else x for x in (means, deviations))
    mean = means.mean(0)
    return np.array([mean, ((deviations**2).mean(0) + means.var(0)) ** 0.5])


def _to_standard(
    means: np.ndarray[Any, Any], deviations: np.ndarray[Any, Any], shifted: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """What to take off each feature and to divide it by; None where there is no need."""
    known = np.isfinite(means) & np.isfinite(deviations)
    standard = far_from_standard(means[known], deviations[known]) if known.any() else None
    if standard is None:
        return None
    mean, deviation = standard
    if not shifted:  # no bias could make up for it
        mean, deviation = np.zeros_like(mean), np.hypot(mean, deviation)
    whole = np.zeros_like(means), np.ones_like(means)
    for part, values in zip(whole, (mean, deviation), strict=True):
        part[known] = values
    return whole


def _shape(leaf: Leaf, intake: _jaxpr.Intake) -> tuple[int, ...] | None:
    """The shape in which numbers of features go with a parameter; None where that can't be told."""
    axes = leaf.inner_axes
    lengths = [intake.kernel[axis] for axis in intake.axes]
    own = [axes[axis] for axis in intake.axes if axis < len(axes)]
    given = tuple(leaf.shape[axis] for axis in axes) == intake.kernel
    if not (given and (len(own) > 1 or own[0] in leaf.inputs)):
        # Turned or cast on its way: told by the length.
        own = [axis for axis in leaf.inputs if [leaf.shape[axis]] == lengths]
    if len(own) != len(lengths):
        return None
    return tuple(n if axis in own else 1 for axis, n in enumerate(leaf.shape))
