"""What remedies are made for: a network, a batch, and what was made of them so far."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from vanishjax.health import Probe
from vanishjax.initializers.network import Network, network
from vanishjax.layers import Layers, find_layers
from vanishjax.layers.traced import KeptTrace
from vanishjax.problem import Problem
from vanishjax.treatment.coordinates import Coordinates, find_coordinates
from vanishjax.treatment.output_units import OutputUnits, find_output_units
from vanishjax.treatment.trial import form

_T = TypeVar("_T")

# Python that finds a network's layers.
LAYERS = "layers = vj.find_layers(params, loss_fn, batch)"


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What remedies are made for.

    Attributes:
      problem: The network.
      batch: What data-dependent remedies look at.
      learning_rate: Of Adam-like optimizers; Muon-like ones take ten times as much.
      total_steps: Length of the training that follows, for rates that fall with time.
      short: Whether that is no more than a few trials.
      key: Draws parameters.
      probe: What was measured of the network, if it was: what needs another kind of network isn't
        tried, or refuses at once.
      relative_step: Of the untreated problem's transform; see `vanishjax.Diagnosis`.
      decay: What its weight decay takes of every kernel in a step; see `vanishjax.Diagnosis`.
      loss_scale: Of the untreated problem's transform, if it scales the loss: another optimizer
        takes its place within.
      made: By name what was made, and of what: a slower form of a remedy makes the same.
    """

    problem: Problem
    batch: object
    learning_rate: float = 1e-3
    total_steps: int = 1000
    short: bool = False
    key: jax.Array = dataclasses.field(default_factory=lambda: jax.random.key(0))
    probe: Probe | None = None
    relative_step: float | None = None
    decay: float | None = None
    loss_scale: float | None = None
    made: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def once(
        self,
        name: str,
        make: Callable[[Problem], _T],
        of: Callable[[Problem], Any] = lambda problem: problem,
    ) -> Callable[[Problem], _T]:
        """The same function, for one problem after the other called once.

        Args:
          name: What it makes.
          make: The function.
          of: What it sees of a problem: the same is made of two that have it in common.
        """

        def made(problem: Problem) -> _T:
            seen = of(problem)
            known: tuple[Any, _T] | None = self.made.get(name)
            if known is None or known[0] != seen:
                known = self.made[name] = seen, make(problem)
            return known[1]

        return made

    def loss(self, problem: Problem) -> KeptTrace:
        """A problem's loss in its plain form, traced once for all that start from its shapes."""

        def seen(problem: Problem) -> Any:
            return problem.plain_loss

        return self.once("loss", lambda problem: KeptTrace(problem.plain_loss), seen)(problem)

    def coordinates(self, problem: Problem) -> Coordinates:
        """Those of `standardize_inside`; without kernels where nothing is far from standard."""
        return self._of_data("coordinates", find_coordinates)(problem)

    def output_units(self, problem: Problem) -> OutputUnits:
        """Those of `standardize_outputs`; raises ValueError where nothing is far from standard."""
        return self._of_data("output_units", find_output_units)(problem)

    def _of_data(self, name: str, find: Callable[[Network], _T]) -> Callable[[Problem], _T]:
        """What is found in the data, in which parameters have no say."""

        def found(problem: Problem) -> _T:
            return find(network(self.loss(problem), problem.params, self.batch))

        def seen(problem: Problem) -> Any:
            return problem.loss_fn, form(problem.params)

        return self.once(name, found, seen)

    @functools.cached_property
    def layers(self) -> Layers:
        """The network's layers."""
        return find_layers(self.problem.params, self.problem.plain_loss, self.batch)

    @property
    def depth(self) -> int:
        """Number of kernels, one at least."""
        kernels = (leaf for leaf in self.layers.leaves if leaf.is_matrix)
        return max(1, sum(math.prod(leaf.stack) for leaf in kernels))

    @property
    def key_code(self) -> str:
        """Python that makes the key."""
        data = ", ".join(map(str, jax.random.key_data(self.key).ravel().tolist()))
        made = str(jax.random.key_impl(self.key))
        usual = str(jax.random.key_impl(jax.random.key(0)))
        impl = "" if made == usual else f", impl={made!r}"
        return f'jax.random.wrap_key_data(jnp.array([{data}], "uint32"){impl})'
