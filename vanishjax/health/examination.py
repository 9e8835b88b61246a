"""What the rules of a diagnosis look at."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from vanishjax.health import release
from vanishjax.health.learning import Learning
from vanishjax.health.measurements import Probe
from vanishjax.health.origin import Fault

# What the cotangent's energy may lose or win between the output and a layer, in nats. Of 56
# networks (8 initializations, 7 depths) Adam trains those with less than 30, momentum those with
# less than 8.4; `benchmarks.diagnosis` tries both on others.
ADAPTIVE_REACH = 30.0
LINEAR_REACH = 8.4
# Kernels that move by less than this part of what others do stand still.
_STILL = 1e-3
# What takes the same part of every kernel, to this factor, is weight decay.
_SAME = 1.05


@dataclasses.dataclass(frozen=True, eq=False)
class Examination:
    """What the rules see.

    Attributes:
      probe: The measurements.
      effectiveness: For each layer of parameters the share of its step that the optimizer takes at
        the size of its gradient; None without an optimizer.
      degree: For each layer of parameters 1 if the optimizer's step is proportional to the
        gradient, 0 if it doesn't depend on its size; None without an optimizer.
      step_rms: For each layer of parameters the root mean square of one step; None without an
        optimizer.
      fault: What made the loss or a gradient infinite or NaN; None if nothing did, or it can't be
        told.
      moved: For each layer of parameters the share of its 16-bit entries that one step moves to
        another number; None where none is lost.
      learning: Some steps of training; None if none were asked for.
      still_rms: For each layer of parameters the root mean square of what the optimizer moves
        without a gradient, as weight decay does; None without an optimizer.
      later_steps: How many times as large a schedule may make steps; NaN where that isn't known,
        as where steps are large enough and it wasn't asked.
      stored: For each layer of parameters the name of the type that they are kept in.
      most_rms: For each layer of parameters the root mean square of the step that a large gradient
        gets; NaN where there is no such limit, or one on norms; None without an optimizer.
    """

    probe: Probe
    effectiveness: np.ndarray[Any, Any] | None = None
    degree: np.ndarray[Any, Any] | None = None
    step_rms: np.ndarray[Any, Any] | None = None
    fault: Fault | None = None
    moved: np.ndarray[Any, Any] | None = None
    learning: Learning | None = None
    still_rms: np.ndarray[Any, Any] | None = None
    later_steps: float = math.nan
    stored: tuple[str, ...] = ()
    most_rms: np.ndarray[Any, Any] | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the optimizer's steps shrink with the gradients (SGD, momentum)."""
        return self.degree is not None and bool(np.median(self.degree) > 0.5)

    @functools.cached_property
    def kernels(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which layers of parameters are kernels."""
        homes = self.probe.parameters.layers.homes
        return np.array([leaf.is_matrix for leaf in homes], bool)

    @functools.cached_property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """For each layer of parameters the number of its entries."""
        homes = self.probe.parameters.layers.homes
        return np.array([math.prod(one.shape[i] for i in one.inner_axes) for one in homes], float)

    @functools.cached_property
    def descent(self) -> float | None:
        """The most that one step can lower the loss, as if the gradient stayed as it is.

        No product of a gradient and a step is larger than that of their norms. None without an
        optimizer, NaN where nothing is known to move.
        """
        if self.step_rms is None:
            return None
        lowered = self.sizes * self.probe.parameters.rms * self.step_rms
        known = np.isfinite(lowered)
        return float(np.sum(lowered[known])) if known.any() else math.nan

    @functools.cached_property
    def steps_to_half(self) -> float:
        """How many steps it takes at least to halve the loss, or to half of a constant output's.

        As if the gradient stayed as it is: Polyak's step for that distance over the one taken. NaN
        where the loss, what a constant output reaches, or the steps aren't known, or where that is
        no positive number.
        """
        loss, constant = self.probe.loss, self.probe.constant_loss
        if self.descent is None or not (self.descent > 0 and constant > 0):
            return math.nan
        return (loss - min(loss, constant) / 2) / self.descent

    @functools.cached_property
    def relative_step(self) -> float | None:
        """One step of the median kernel that moves, as a part of its usual size.

        That is its own size, or that of LeCun's entries, 1 / sqrt(fan-in), where it is less than
        that: kernels that start small grow. None without an optimizer, NaN where no kernel is known
        to move.
        """
        if self.step_rms is None:
            return None
        usual = np.fmax(self.probe.parameters.parameter_rms, self._lecun)
        counted = self.kernels.copy()
        for own, waits in zip(self.probe.places, self.beside_zero, strict=True):
            counted[list(own)] &= not waits
        parts = self.step_rms[counted] / usual[counted]
        parts = parts[np.isfinite(parts) & (parts > 0)]
        # Branches that end at zero get no gradient yet, whatever the rate is.
        moved = parts[parts > _STILL * np.max(parts, initial=0.0)]
        return float(np.median(moved)) if len(moved) else math.nan

    @functools.cached_property
    def nearly_zero(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each layer of the probe whether its kernel is nearly 0, but moves.

        As one at 0 it holds back others for now, and lets go. None without an optimizer.
        """
        if self.step_rms is None:
            return np.zeros(len(self.probe), bool)
        return release.nearly_zero(*self._of_kernels, self.probe.of_kernels(self.step_rms))

    @functools.cached_property
    def won_back(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """For each layer of the probe the nats that it gains as such kernels grow."""
        return release.won_back(self.probe, self.nearly_zero, *self._of_kernels)

    @functools.cached_property
    def beside_zero(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each layer of the probe whether it comes before or behind such a kernel."""
        return release.beside(self.probe, self.nearly_zero)

    @property
    def _of_kernels(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """For each layer of the probe its kernel's size, and LeCun's."""
        probe = self.probe
        return probe.of_kernels(probe.parameters.parameter_rms), probe.of_kernels(self._lecun)

    @functools.cached_property
    def kernel_size(self) -> float:
        """The median kernel's entries over LeCun's; NaN without kernels."""
        sizes = self.probe.parameters.parameter_rms / self._lecun
        known = sizes[self.kernels & np.isfinite(sizes)]
        return float(np.median(known)) if len(known) else math.nan

    @functools.cached_property
    def fan_in(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """For each layer of parameters the number of inputs that a unit sums over, 1 at least."""
        homes = self.probe.parameters.layers.homes
        inputs = [math.prod(leaf.shape[axis] for axis in leaf.inputs) for leaf in homes]
        return np.fmax(inputs, 1.0)

    @property
    def _lecun(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """For each layer of parameters the size of LeCun's entries."""
        return np.asarray(self.fan_in**-0.5)

    @functools.cached_property
    def decay(self) -> float | None:
        """The part of every kernel that a step takes where there is no gradient.

        None without an optimizer, or if it isn't the same part of all that move, as decay takes.
        """
        if self.still_rms is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = self.still_rms / self.probe.parameters.parameter_rms
        taken = parts[self.kernels & np.isfinite(parts) & (parts > 0)]
        if not len(taken) or taken.max() > _SAME * taken.min():
            return None
        return float(np.median(taken))

    @functools.cached_property
    def reached(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """For each layer the nats between the output's cotangent and its own; 0 where unknown."""
        log_chi = self.probe.log_chi
        return np.asarray(np.cumsum(np.where(np.isfinite(log_chi), log_chi, 0.0)[::-1])[::-1])

    @property
    def loses_much(self) -> bool:
        """Whether some layer's cotangent lost more than steps proportional to it make up for."""
        return bool(np.min(self.reached, initial=0.0) < -LINEAR_REACH)

    @property
    def reach(self) -> float:
        """How many nats may be lost or won on the way back."""
        return LINEAR_REACH if self.is_linear else ADAPTIVE_REACH

    @property
    def features(self) -> slice:
        """The layers whose outputs are features: all but the last."""
        return slice(0, max(0, len(self.probe) - 1))

    @functools.cached_property
    def blocked(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether a layer gets no gradient to speak of, and no other path leads past what it is in.

        A network trains around a layer that starves beside a skip connection; not around one that
        stands in the only way.
        """
        if self.probe.supply is None:
            return np.zeros(len(self.probe), bool)
        return self.probe.supply.blocked(self.reach)
