"""Means over examples: of the steps of an epoch, and of a loss over whole arrays."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.problem import Problem, as_problem
from vanishjax.training.batches import Arrays, count_examples, example_count, rows_of
from vanishjax.training.meshes import beside, mesh_of, within
from vanishjax.training.parts import WEIGHT
from vanishjax.training.sources import Stream, as_arrays, is_array, is_tree_of_arrays
from vanishjax.training.state import TrainState


class Means(NamedTuple):
    """Running means over examples, summed step by step in float64, so that a cut changes no bit.

    Where the steps have a `weight`, they are means over what it counts.

    Attributes:
      steps: How many steps were added.
      examples: How many examples they saw.
      sums: Each quantity's sum over the examples, and the sum of the weights.

    Example:
      >>> Means().add(2, {"loss": [1.0, 2.0]}).add(1, {"loss": [6.0]}).values()
      {'loss': 2.4}
      >>> Means().add(2, {"loss": [1.0, 2.0], "weight": [3.0, 1.0]}).values()
      {'loss': 1.25, 'weight': 4.0}
    """

    steps: int = 0
    examples: int = 0
    sums: Mapping[str, float] = {}

    def add(self, examples: Any, values: Mapping[str, Any]) -> "Means":
        """These and some more steps: values `[steps]`, each a mean over so many examples."""
        arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
        steps = len(next(iter(arrays.values())))
        counts = np.broadcast_to(np.asarray(examples), [steps])
        weights = arrays.pop(WEIGHT, counts)
        terms = {name: _products(array, weights) for name, array in arrays.items()}
        if WEIGHT in values:
            terms[WEIGHT] = weights
        sums = {
            name: float(np.add.accumulate([self.sums.get(name, 0.0), *added])[-1])
            for name, added in terms.items()
        }
        return Means(self.steps + steps, self.examples + int(counts.sum()), sums)

    def values(self) -> dict[str, float]:
        """The means, and the whole weight; NaN if that is 0."""
        total = self.sums.get(WEIGHT, self.examples)
        return {
            name: value if name == WEIGHT else value / total if total else float("nan")
            for name, value in self.sums.items()
        }


def _products(array: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> Any:
    """The mean of nothing is NaN, and counts nothing."""
    return np.multiply(array, weights, out=np.zeros(len(array)), where=weights != 0)


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by one name each: those of nested dicts joined by "/".

    Raises:
      ValueError: One is no scalar, or two get one name.

    Example:
      >>> flat_metrics({"loss": 1.0, "accuracy": {"top1": 0.5, "top5": 0.9}})
      {'accuracy/top1': 0.5, 'accuracy/top5': 0.9, 'loss': 1.0}
    """
    flat: dict[str, Any] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(dict(metrics)):
        name = "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)
        if jnp.shape(value):
            raise ValueError(
                f"the metric {name!r} must be a scalar, a mean over the batch, got shape "
                f"{list(jnp.shape(value))}"
            )
        if name in flat:
            raise ValueError(f"two metrics have the name {name!r}: rename one")
        flat[name] = value
    return flat


def make_evaluate(
    loss_fn: Callable[..., Any] | Problem,
    *,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
    batch_size: int = 1024,
) -> Callable[..., dict[str, float]]:
    """Compiles the mean of a loss and its metrics over all examples of some arrays.

    A problem's loss is taken in evaluation mode: its `evaluate_fn`, if it has one.

    Args:
      loss_fn: A `Problem`, or as in `make_train_step`.
      has_aux: As in `make_train_step`.
      with_key: Whether loss_fn takes `key=`; it gets None.
      with_state: As in `make_train_step`; the new model state is left unused.
      batch_size: Examples at a time.

    Returns:
      `evaluate(params, arrays, model_state=None)` -> "loss" and loss_fn's metrics as Python floats.
      It takes a `TrainState` as well in the place of the parameters, and batches, such as a list
      of them, in the place of the arrays.

    Example:
      >>> evaluate = make_evaluate(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> evaluate(jnp.zeros(()), jnp.array([1.0, 3.0]))["loss"]
      5.0
    """
    problem = as_problem(loss_fn, has_aux=has_aux, with_key=with_key, with_state=with_state)

    @jax.jit
    def batch_means(params: Any, model_state: Any, batch: Arrays) -> dict[str, jax.Array]:
        found = problem.evaluate(params, batch, model_state=model_state, training=False)
        return {
            name: jnp.asarray(value)[None]
            for name, value in flat_metrics({"loss": found.loss, **found.metrics}).items()
        }

    def evaluate(params: Any, arrays: Any, model_state: Any = None) -> dict[str, float]:
        if isinstance(params, TrainState):
            params, model_state = params.params, params.model_state
        if problem.with_state and model_state is None:
            raise ValueError(
                "the loss takes a model state: evaluate(state, arrays) or evaluate(params, arrays, "
                "model_state)"
            )
        mesh = mesh_of(params)
        mesh = mesh if mesh is not None and mesh.are_all_axes_auto else None
        means, pending = Means(), None
        for batch in _batches(arrays, batch_size):
            with within(mesh):
                found = batch_means(params, model_state, beside(batch, mesh))
            # One batch computes while the next is loaded.
            if pending is not None:
                means = means.add(*jax.device_get(pending))
            pending = example_count(batch), found
        return (means if pending is None else means.add(*jax.device_get(pending))).values()

    return evaluate


def _batches(arrays: Any, batch_size: int) -> Iterator[Any]:
    # A list of trees is batches; one of arrays is a tree of arrays, as it may be for a step.
    if not is_tree_of_arrays(arrays) or (
        isinstance(arrays, list) and not all(map(is_array, arrays))
    ):
        yield from Stream(arrays, "what is evaluated").epoch(1)
        return
    arrays = as_arrays(arrays)
    examples = count_examples(arrays)
    for start in range(0, examples, batch_size):
        rows = slice(start, min(start + batch_size, examples))
        yield rows_of(arrays, rows)
