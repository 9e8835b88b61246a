"""What a probe measures: of every layer of the network, and of every layer of parameters."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from vanishjax.health.finding import Where, json_value
from vanishjax.health.supply import Supply
from vanishjax.layers import Layers

Vector = np.ndarray[Any, np.dtype[np.float64]]
# What tells the uses of one kernel apart, at the end of a layer's name.
_NUMBER = re.compile(r"@\d+$")


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterGradients:
    """The gradient of every layer of parameters, biases included: arrays `[len(layers)]`.

    Attributes:
      layers: The layers.
      rms: Root mean square, as the optimizer gets it.
      log_rms: Its logarithm, had nothing underflowed; that of `rms` where the cotangent can't be
        followed, and NaN where that is 0 for all that is known.
      zero_fraction: Share of entries that are exactly 0.
      nonfinite: Whether any entry is infinite or NaN.
      parameter_rms: Root mean square of the parameters themselves.
    """

    layers: Layers
    rms: Vector
    log_rms: Vector
    zero_fraction: Vector
    nonfinite: np.ndarray[Any, np.dtype[np.bool_]]
    parameter_rms: Vector


class Frozen(NamedTuple):
    """A product of the signal with what isn't trained, such as a frozen discriminator's kernel.

    Attributes:
      where: The line; None if unknown.
      reach: As of a layer.
      saturated_fraction: As of a layer; NaN where the product isn't with a constant.
    """

    where: Where | None
    reach: float
    saturated_fraction: float


class Opaque(NamedTuple):
    """What can't be looked into between kernels, such as a solver with a derivative of its own.

    Attributes:
      where: The line; None if unknown.
      before: The layers whose outputs it takes in, with no other kernel in between.
      kernels: The kernels inside it.
    """

    where: Where | None
    before: tuple[str, ...]
    kernels: tuple[str, ...]


class Floor(NamedTuple):
    """An operation between the last kernel and the loss that keeps the loss from coming down.

    Attributes:
      kind: "squashed": it squashes the output; "crossed": it puts every output beside every target.
      where: Its line; None if unknown.
      loss: The least loss that was found for outputs of their own for all examples.
      without: The same if what squashes is left out; NaN for what crosses.
      growth: The power with which the loss then grows with large outputs; NaN for what crosses.
    """

    kind: Literal["squashed", "crossed"]
    where: Where | None
    loss: float
    without: float
    growth: float


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """What `probe` measured; arrays are `[layers]`, float64, in depth order.

    A layer here is a place where a kernel meets the data: a matrix product, a convolution or a
    lookup. Its cotangent is that of the loss with respect to the kernel's output.

    Attributes:
      names: A name for each layer: the kernel's path and its index in a stack; "@" and a number
        where one kernel is used many times.
      log_chi: ln(|cotangent here|^2 / |cotangent at the next layer|^2), 0 at the last layer. In a
        residual network the cotangents compared are those of the stream that the blocks add to;
        layers before the first output through which all gradient passes count as one.
      sum_log_chi: Their sum: how much of the gradient's energy reaches the first layer, in nats.
      gradient_rms: Root mean square of the kernel's gradient, as the optimizer gets it.
      log_gradient_rms: Its logarithm had nothing underflowed on the way.
      backward_rms: Root mean square of the cotangent.
      log_backward_rms: Its logarithm, right even where the cotangent itself would be 0.
      preactivation_rms: Of what the layer's activation is applied to.
      activation_rms: Of what comes out.
      centered_energy: Share of the activations' energy that tells inputs apart; NaN for one input.
      effective_rank: Dimensions in which they differ, (tr C)^2 / tr C^2 of their covariance.
      widths: Units of each layer.
      dead_fraction: Share of units whose activation has slope 0 at every input.
      saturated_fraction: Share of slopes below 5 % of the steepest, of a bounded activation.
      slope_rms: Root mean square of the activation's slope.
      intake_energy: Share of what the kernel takes in that tells inputs apart, where no other
        comes before; else NaN.
      feature_evenness: Of the features that the kernel takes in the range of the fifth largest (of
        less than nine the middle one) over that of the largest, where no other kernel comes
        before: as they are, or times the kernel's own entries, where that is more. Features that
        never change don't count. NaN elsewhere, and where there are fewer than two.
      activations: For each layer the kind of its activation, "rectifier", "unit_slope" (as
        tanh) or "other"; None without one.
      periods: For each layer the period of an activation that is a wave, as a sine; else infinity.
      is_chain: Whether all gradient to earlier layers passes through this layer's output.
      dtypes: The number type that limits the gradient: of the kernel or of its output.
      loss: The loss.
      batch_size: Length of the batch's first axis, 0 if unknown.
      parameters: The gradients of all parameters.
      places: For each layer where its kernel stands among the layers of the parameters: at several
        places where a stack is used at once, as by a mixture of experts.
      unmeasured: Kernels inside functions that can't be looked into, such as a `custom_vjp`.
      reach: Nats of the gradient's energy between where it is largest downstream of a layer, along
        the paths on which it flows, and the layer; of a kernel that is used many times the least
        loss of all its uses. 0 or less.
      factors: Paths of parameters that multiply the data entry by entry: gains.
      token_energy: Share of the energy that tells positions of a sequence apart, in what the last
        kernel of several positions takes in; NaN without one.
      token_detail: Of that energy the share that tells positions from the middle between their
        neighbors, over the same share in what the first such kernel takes in: attention that looks
        back leaves of a sequence what changes slowly along it.
      token_layer: The index of that kernel's layer; -1 without one.
      softmaxes: For each softmax inside the network that compares activations, as attention's does,
        the names of the layers that feed it, and the share of its rows that are all but one-hot.
      choices: The same of those of what one layer puts out, as a router's.
      gates: For each tanh and sigmoid of what several kernels or a part of one put out, as in a
        recurrent cell that splits a kernel's output into gates, the names of the layers that feed
        it and the share of its slopes below 5 % of the steepest. Not what other gates lead to.
      heads: The layers after which none comes: the last one, or those of heads side by side.
      constant_loss: The least loss that one output of the heads for all inputs reaches; NaN where
        the last layer stands in a loop.
      nothing_loss: The loss where the heads put out 0.
      loss_growth: The power with which the loss grows with that output where it is large: 1 for a
        cross-entropy, 2 for a square, 0 where it doesn't; NaN where that can't be told.
      floor: What keeps the loss from coming down, whatever the heads put out; None where nothing
        was found to.
      memory: For each kernel that a loop, also one that is written out, uses anew in every step
        the nats of energy that the gradient loses in a step back, and the number of steps.
      frozen: For each product after the last layer with something that isn't trained, such as a
        frozen discriminator's kernels, what was measured, in the order of the data.
      opaque: What lies between layers and can't be looked into.
      supply: By which paths the gradient gets to each layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from vanishjax.health import probe
      >>> found = probe(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2), jnp.ones((3, 2)), jnp.eye(3))
      >>> print(len(found), found.widths, found.dead_fraction, found.preactivation_rms)
      1 [2] [0.] [1.]

    References:
      Schoenholz et al., Deep information propagation, 2017, for chi.
    """

    names: tuple[str, ...]
    log_chi: Vector
    sum_log_chi: float
    gradient_rms: Vector
    log_gradient_rms: Vector
    backward_rms: Vector
    log_backward_rms: Vector
    preactivation_rms: Vector
    activation_rms: Vector
    centered_energy: Vector
    effective_rank: Vector
    widths: np.ndarray[Any, np.dtype[np.int64]]
    dead_fraction: Vector
    saturated_fraction: Vector
    slope_rms: Vector
    is_chain: np.ndarray[Any, np.dtype[np.bool_]]
    dtypes: tuple[str, ...]
    loss: float
    batch_size: int
    parameters: ParameterGradients
    places: tuple[tuple[int, ...], ...] = ()
    activations: tuple[str | None, ...] = ()
    periods: tuple[float, ...] = ()
    unmeasured: tuple[str, ...] = ()
    intake_energy: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    feature_evenness: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    reach: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    factors: tuple[str, ...] = ()
    token_energy: float = math.nan
    token_detail: float = math.nan
    token_layer: int = -1
    softmaxes: tuple[tuple[tuple[str, ...], float], ...] = ()
    choices: tuple[tuple[tuple[str, ...], float], ...] = ()
    gates: tuple[tuple[tuple[str, ...], float], ...] = ()
    heads: tuple[str, ...] = ()
    constant_loss: float = math.nan
    nothing_loss: float = math.nan
    loss_growth: float = math.nan
    floor: Floor | None = None
    memory: tuple[tuple[str, float, int], ...] = ()
    frozen: tuple[Frozen, ...] = ()
    opaque: tuple[Opaque, ...] = ()
    supply: Supply | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kernels(self) -> tuple[str, ...]:
        """For each layer its kernel's name."""
        return tuple(_NUMBER.sub("", name) for name in self.names)

    @property
    def is_stopped(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each layer whether its kernel is frozen by a stop_gradient."""
        stopped = self.parameters.layers.stopped
        return np.array([name.partition("[")[0] in stopped for name in self.kernels], bool)

    @property
    def in_derivatives(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each layer whether it is a kernel's use in a derivative that the loss holds.

        There a kernel is passed without the activation that it has elsewhere.
        """
        uses = list(zip(self.kernels, self.activations, strict=True))
        active = {kernel for kernel, kind in uses if kind is not None}
        return np.array([kind is None and kernel in active for kernel, kind in uses], bool)

    @property
    def is_kernel(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each layer of the parameters whether it is a kernel that is measured."""
        found = np.zeros(len(self.parameters.rms), bool)
        found[[place for own in self.places for place in own]] = True
        return found

    def of_kernels(self, values: Vector) -> Vector:
        """For each layer its kernel's root mean square, of those of the parameters' layers."""
        return together(values, self.places)

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON types; None where a number isn't finite."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("parameters", "places", "frozen", "opaque", "floor", "supply")
        }
        for name, found in (("frozen", self.frozen), ("opaque", self.opaque)):
            plain[name] = tuple((one.where and str(one.where), *one[1:]) for one in found)
        where = self.floor and self.floor.where
        plain["floor"] = self.floor and self.floor._asdict() | {"where": where and str(where)}
        own = {
            field.name: getattr(self.parameters, field.name)
            for field in dataclasses.fields(self.parameters)
            if field.name != "layers"
        }
        parameters = {"names": self.parameters.layers.names, **own}
        whole: dict[str, Any] = json_value(plain | {"parameters": parameters})
        return whole


def together(values: Vector, places: Sequence[tuple[int, ...]]) -> Vector:
    """Root mean squares of several layers of parameters each, from those of one each.

    Example:
      >>> together(np.array([3e-300, 1.0, 4e-300]), [(0, 2), (1,)])
      array([3.53553391e-300, 1.00000000e+000])
    """
    found = []
    for own in places:
        each = values[list(own)]
        largest = np.max(each)
        spread = each / largest if 0 < largest < np.inf else np.ones(1)
        found.append(largest * np.sqrt(np.mean(spread**2)))
    return np.array(found, np.float64)
