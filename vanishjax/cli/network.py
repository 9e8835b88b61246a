"""An MLP described by options, for commands that also take a network of the user's own."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vanishjax.cli.optimizer import (
    add_optimizer_options,
    check_optimizer_options,
    described_optimizer,
)
from vanishjax.cli.options import (
    USUAL_INIT,
    add_init_option,
    add_network_options,
    add_source_options,
    add_width_options,
    hidden_widths,
    one_of,
    whole,
)

if TYPE_CHECKING:
    from vanishjax.layers import Layers
    from vanishjax.problem import Problem
    from vanishjax.training.data import Dataset

# Steps of the run that is looked at before it begins; only a falling rate asks.
_RUN = 1000

# The options that describe an MLP. They are None unless given, since a target takes none of them.
NETWORK: dict[str, Any] = {
    "activation": "relu",
    "residual": None,
    "hidden": None,
    "depth": None,
    "width": None,
    "init": USUAL_INIT,
    "loss": "cross_entropy",
    "optimizer": "adam",
    "learning_rate": None,
    "momentum": None,
    "nesterov": False,
    "weight_decay": None,
    "clip_norm": None,
    "data": "digits",
    "data_dir": None,
    "batch_size": None,
    "seed": 0,
    "dtype": "float32",
}


def add_target_options(parser: argparse.ArgumentParser, batch_size: str) -> None:
    """Options for a target, or else for an MLP and its data.

    Args:
      parser: Gets them.
      batch_size: What --batch-size is for.
    """
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="module:function or path/to/file.py:function that returns the network; without it, "
        "an MLP by the options",
    )
    add_network_options(parser, activation=NETWORK["activation"])
    add_width_options(parser)
    add_init_option(parser)
    parser.add_argument(
        "--loss",
        type=one_of("loss", ("cross_entropy", "squared_error")),
        metavar="NAME",
        help="cross_entropy (classes) or squared_error (one linear output) (default: "
        "cross_entropy)",
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        metavar="N",
        help="decides the data split and the parameters (default: 0)",
    )
    parser.add_argument(
        "--dtype",
        type=one_of("dtype", ("float32", "bfloat16")),
        metavar="TYPE",
        help="of inputs, parameters and computation: float32 or bfloat16 (default: float32)",
    )
    add_optimizer_options(parser)
    group = add_source_options(parser)
    group.add_argument("--batch-size", type=whole(1), metavar="N", help=batch_size)
    parser.set_defaults(**dict.fromkeys(NETWORK))


def network_options(options: argparse.Namespace) -> argparse.Namespace:
    """The MLP's options with their defaults filled in.

    Raises:
      ValueError: Some were given beside a target, or they don't go together.
    """
    given = {name: getattr(options, name) for name in NETWORK if getattr(options, name) is not None}
    if options.target is not None and given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"{flags}: for an MLP of ours; {options.target} brings its own network, batch and "
            "optimizer"
        )
    chosen = argparse.Namespace(**(NETWORK | given))
    hidden_widths(chosen)
    check_optimizer_options(chosen)
    return chosen


def load_examples(options: argparse.Namespace, least: int) -> Dataset:
    """The data that `vanishjax train` would split and train on, of `least` examples at least."""
    from vanishjax.cli.inputs import load_data

    settings = {"validation_split": 0.2, "batch_size": least}
    return load_data(
        argparse.Namespace(**(vars(options) | settings)),
        "real" if options.loss == "squared_error" else "classes",
        dtype=options.dtype,
    )


def described_mlp(options: argparse.Namespace, dataset: Dataset, **initializers: Any) -> Problem:
    """The MLP of the options for a data set's inputs and labels, without an optimizer.

    Args:
      options: With those of `add_network_options`, the widths, the loss, the seed and the dtype.
      dataset: What it is for.
      **initializers: Other than `mlp_problem`'s own.

    Returns:
      The problem.
    """
    import jax

    from vanishjax.models import mlp_problem

    return mlp_problem(
        dataset.train.inputs.shape[1],
        hidden_widths(options),
        dataset.classes or math.prod(dataset.train.labels.shape[1:]),
        activation=options.activation,
        residual=options.residual,
        loss=options.loss,
        key=jax.random.key(options.seed),
        dtype=options.dtype,
        param_dtype=options.dtype,
        **initializers,
    )


def make_problem(options: argparse.Namespace, dataset: Dataset, batch: Any) -> Problem:
    """The network that `vanishjax train` starts with, and its optimizer."""
    import dataclasses

    problem, layers = initialized_mlp(options, dataset, batch)
    return dataclasses.replace(problem, tx=described_optimizer(options, layers, _RUN))


def initialized_mlp(
    options: argparse.Namespace, dataset: Dataset, batch: Any
) -> tuple[Problem, Layers]:
    """The MLP of the options by their initializer, without an optimizer, and its layers.

    Args:
      options: As for `described_mlp`, and the initializer.
      dataset: What it is for.
      batch: A batch of it.

    Returns:
      Both.
    """
    import dataclasses

    from vanishjax import initializers
    from vanishjax.layers import find_layers

    start = initializers.initialization(options.init, options.activation)
    problem = described_mlp(
        options, dataset, kernel_init=start.kernel_init, bias_init=start.bias_init
    )
    layers = find_layers(problem.params, problem.loss_fn, batch)
    params = problem.params
    if start.centers and options.residual is None:
        params = initializers.center_biases(params, options.activation, layers)
    return dataclasses.replace(problem, params=params), layers


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Tells who waits at a terminal what for."""
    from vanishjax.cli.terminal import Terminal

    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield
