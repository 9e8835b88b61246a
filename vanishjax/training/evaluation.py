"""Means over examples: of the steps of an epoch, and of a loss over whole arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vanishjax.training.batches import Arrays, count_examples


class Means(NamedTuple):
    """Running means over examples, summed step by step in float64, so that a cut changes no bit.

    Attributes:
      steps: How many steps were added.
      examples: How many examples they saw.
      sums: Each quantity's sum over the examples.

    Example:
      >>> Means().add(2, {"loss": [1.0, 2.0]}).add(1, {"loss": [6.0]}).values()
      {'loss': 2.4}
    """

    steps: int = 0
    examples: int = 0
    sums: Mapping[str, float] = {}

    def add(self, examples: int, values: Mapping[str, Any]) -> "Means":
        """These and some more steps: values `[steps]`, each a mean over so many examples."""
        arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
        sums = {
            name: float(np.add.accumulate([self.sums.get(name, 0.0), *(array * examples)])[-1])
            for name, array in arrays.items()
        }
        steps = len(next(iter(arrays.values())))
        return Means(self.steps + steps, self.examples + steps * examples, sums)

    def values(self) -> dict[str, float]:
        """The means."""
        return {name: total / self.examples for name, total in self.sums.items()}


def make_evaluate(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    with_key: bool = False,
    batch_size: int = 1024,
) -> Callable[[Any, Arrays], dict[str, float]]:
    """Compiles the mean of a loss and its metrics over all examples of some arrays.

    Args:
      loss_fn: As in `make_train_step`.
      has_aux: As in `make_train_step`.
      with_key: Whether loss_fn takes `key=`; it gets None.
      batch_size: Examples at a time.

    Returns:
      `evaluate(params, arrays)` -> "loss" and loss_fn's metrics as Python floats.

    Example:
      >>> import jax.numpy as jnp
      >>> evaluate = make_evaluate(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> evaluate(jnp.zeros(()), jnp.array([1.0, 3.0]))["loss"]
      5.0
    """

    @jax.jit
    def batch_means(params: Any, batch: Arrays) -> dict[str, jax.Array]:
        value = loss_fn(params, batch, **({"key": None} if with_key else {}))
        loss, aux = value if has_aux else (value, {})
        return {"loss": loss, **aux}

    def evaluate(params: Any, arrays: Arrays) -> dict[str, float]:
        examples = count_examples(arrays)
        means = Means()
        for start in range(0, examples, batch_size):
            stop = min(start + batch_size, examples)
            batch = jax.tree.map(lambda a, rows=slice(start, stop): a[rows], arrays)
            found = jax.device_get(batch_means(params, batch))
            means = means.add(stop - start, {name: [value] for name, value in found.items()})
        return means.values()

    return evaluate
