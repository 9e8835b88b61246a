"""What `vanishjax train` trains: the network, its loss and its optimizer, from the options."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from vanishjax.catalog import OPTIMIZERS
from vanishjax.cli.network import initialized_mlp
from vanishjax.cli.optimizer import described_optimizer
from vanishjax.cli.options import USUAL_INIT

if TYPE_CHECKING:
    import jax
    import optax

    from vanishjax.layers import Layers
    from vanishjax.problem import Problem
    from vanishjax.training.data import Dataset, Examples


class Plan(NamedTuple):
    """What is trained, and how."""

    options: argparse.Namespace
    dataset: Dataset
    problem: Problem
    layers: Layers
    tx: optax.GradientTransformation
    score: str  # the name of the metric beside the loss
    architecture: dict[str, Any]
    settings: dict[str, Any]

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return steps_of(self.dataset, self.options, self.settings["epochs"])

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        import jax

        return sum(leaf.size for leaf in jax.tree.leaves(self.problem.params))

    def loss_fn(self, params: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, and the score beside it."""
        from vanishjax import losses

        inputs, labels = batch
        predict_fn: Any = self.problem.predict_fn
        predicted = predict_fn(params, inputs)
        score = getattr(losses, self.score)(predicted, labels)
        return getattr(losses, self.options.loss)(predicted, labels), {self.score: score}


def make_plan(options: argparse.Namespace, epochs: int, dataset: Dataset) -> Plan:
    """The network for a data set, its optimizer, and all that decides the run."""
    import jax

    first_batch = jax.tree.map(lambda a: a[: options.batch_size], arrays_of(dataset.train))
    problem, layers = initialized_mlp(options, dataset, first_batch)
    architecture = {
        "in_features": problem.config["in_features"],
        "hidden": list(problem.config["hidden"]),
        "classes": problem.config["classes"],
        "activation": options.activation,
        "residual": options.residual,
        "scan": "hidden_stack" in problem.params,
        "dtype": options.dtype,
        "param_dtype": options.dtype,
    }
    return Plan(
        options,
        dataset,
        problem,
        layers,
        described_optimizer(options, layers, steps_of(dataset, options, epochs)),
        "mean_absolute_error" if dataset.classes is None else "accuracy",
        architecture,
        {**architecture, **_settings(options, epochs)},
    )


def steps_of(dataset: Dataset, options: argparse.Namespace, epochs: int) -> int:
    """Steps of a run; the last batch of an epoch may be smaller."""
    return epochs * math.ceil(len(dataset.train) / options.batch_size)


def arrays_of(examples: Examples) -> tuple[Any, Any]:
    """Inputs and labels, as the loss takes them."""
    return examples.inputs, examples.labels


def _settings(options: argparse.Namespace, epochs: int) -> dict[str, Any]:
    return {
        "data": options.data,
        "loss": options.loss,
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate or OPTIMIZERS[options.optimizer].learning_rate,
        "momentum": options.momentum,
        "nesterov": options.nesterov,
        "weight_decay": options.weight_decay,
        "clip_norm": options.clip_norm,
        "epochs": epochs,
        "batch_size": options.batch_size,
        "validation_split": options.validation_split,
        "seed": options.seed,
        # What is usual isn't said: a run of an older version goes on.
        **({} if options.init == USUAL_INIT else {"init": options.init}),
    }
