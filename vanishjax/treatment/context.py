"""What remedies are made for: a network, a batch, and what was made of them so far."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax

from vanishjax.health import Probe
from vanishjax.layers import Layers, find_layers
from vanishjax.problem import Problem
from vanishjax.treatment.coordinates import standardize_inside

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
      key: Draws parameters.
      probe: What was measured of the network, if it was: what needs another kind of network isn't
        tried, or refuses at once.
      relative_step: Of the untreated problem's transform; see `vanishjax.Diagnosis`.
      loss_scale: Of the untreated problem's transform, if it scales the loss: another optimizer
        takes its place within.
      made: By remedy what it made of which problem: a slower form of it makes the same.
      answers: To questions that take a measurement, and that no remedy changes.
    """

    problem: Problem
    batch: object
    learning_rate: float = 1e-3
    total_steps: int = 1000
    key: jax.Array = dataclasses.field(default_factory=lambda: jax.random.key(0))
    probe: Probe | None = None
    relative_step: float | None = None
    loss_scale: float | None = None
    made: dict[str, tuple[Problem, Problem]] = dataclasses.field(default_factory=dict)
    answers: dict[str, bool] = dataclasses.field(default_factory=dict)

    def once(self, name: str, make: Callable[[Problem], Problem]) -> Callable[[Problem], Problem]:
        """The same function, for one problem after the other called once."""

        def made(problem: Problem) -> Problem:
            known = self.made.get(name)
            if known is None or known[0] is not problem:
                known = self.made[name] = problem, make(problem)
            return known[1]

        return made

    @property
    def takes_in_far(self) -> bool:
        """Whether kernels take in features of the data far from zero mean and unit size."""
        if "takes_in_far" not in self.answers:
            try:
                standardize_inside(self.problem.plain_loss, self.problem.params, self.batch)
                far = True
            except Exception as error:
                # What else goes wrong is told of the remedy's trial.
                far = not isinstance(error, ValueError)
            self.answers["takes_in_far"] = far
        return self.answers["takes_in_far"]

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
