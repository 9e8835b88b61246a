"""Say before the first step whether a network will train, which layers starve, why, and what helps.

An MLP, by the options of `vanishjax train`, whose first step it looks at:
  vanishjax diagnose --activation sigmoid --depth 24
  vanishjax diagnose --activation sigmoid --depth 24 --init critical_orthogonal
  vanishjax diagnose --data mnist --hidden 64,32 --optimizer sgd --out report

A network of your own, in any JAX: a function without arguments that returns (loss_fn, params,
batch), (loss_fn, params, batch, tx) or (problem, batch), where loss_fn(params, batch) is a scalar:
  vanishjax diagnose net.py:make
  vanishjax diagnose package.module:make --strict     (in CI: exit status 1 unless it is healthy)
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vanishjax.cli.options import (
    INITIALIZERS,
    OPTIMIZERS,
    add_network_options,
    add_source_options,
    add_width_options,
    hidden_widths,
    number,
    one_of,
    whole,
)

if TYPE_CHECKING:
    from vanishjax.health import Diagnosis
    from vanishjax.problem import Problem
    from vanishjax.training.data import Dataset

NAME = "diagnose"
HELP = "say whether a network will train, and if not, why"
RESULT_FILE, FIGURE_FILE = "diagnosis.json", "diagnosis.png"
FILES = (RESULT_FILE, FIGURE_FILE)

BATCH_SIZE = 256
# The options that describe an MLP. They are None unless given, since a target takes none of them.
NETWORK: dict[str, Any] = {
    "activation": "relu",
    "residual": None,
    "hidden": None,
    "depth": None,
    "width": None,
    "init": "lecun",
    "loss": "cross_entropy",
    "optimizer": "adam",
    "learning_rate": None,
    "data": "digits",
    "data_dir": None,
    "batch_size": None,
    "seed": 0,
    "dtype": "float32",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="module:function or path/to/file.py:function that returns the network; without it, "
        "an MLP by the options",
    )
    add_network_options(parser, activation=NETWORK["activation"])
    add_width_options(parser)
    parser.add_argument(
        "--init",
        type=one_of("initializer", INITIALIZERS),
        metavar="NAME",
        help="of the kernels: lecun (Flax's own), he, critical_orthogonal or critical_normal, at "
        "which gradients keep their size (default: lecun)",
    )
    parser.add_argument(
        "--loss",
        type=one_of("loss", ("cross_entropy", "squared_error")),
        metavar="NAME",
        help="cross_entropy (classes) or squared_error (one linear output) (default: "
        "cross_entropy)",
    )
    parser.add_argument(
        "--optimizer",
        type=one_of("optimizer", OPTIMIZERS),
        metavar="NAME",
        help=f"that is to train it: {', '.join(OPTIMIZERS)} (default: adam)",
    )
    parser.add_argument(
        "--learning-rate",
        type=number(above=0.0),
        metavar="RATE",
        help="of the optimizer (default: that of vanishjax train)",
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
    group = add_source_options(parser)
    group.add_argument(
        "--batch-size",
        type=whole(1),
        metavar="N",
        help=f"training examples to look at (default: {BATCH_SIZE}, or all)",
    )
    parser.set_defaults(**dict.fromkeys(NETWORK))
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        help=f"folder for {RESULT_FILE} and {FIGURE_FILE} (default: nothing is written)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace results that --out already holds"
    )
    group.add_argument(
        "--json", action="store_true", help="print the result as JSON on standard output"
    )
    group.add_argument(
        "--strict", action="store_true", help="exit with status 1 unless the network is healthy"
    )


def run(options: argparse.Namespace) -> int:
    """Looks at the network, and prints and writes what was found."""
    given = {name: getattr(options, name) for name in NETWORK if getattr(options, name) is not None}
    if options.target is not None and given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"{flags}: for an MLP of ours; {options.target} brings its own network, batch and "
            "optimizer"
        )
    chosen = argparse.Namespace(**(NETWORK | given))
    hidden_widths(chosen)
    if options.overwrite and options.out is None:
        raise ValueError("--overwrite goes with --out: without it nothing is written")

    with contextlib.ExitStack() as stack:
        folder = None
        if options.out is not None:
            from vanishjax.cli.output import results_folder

            folder = stack.enter_context(
                results_folder(NAME, options.out, FILES, options.overwrite)
            )
        if options.target is None:
            verdict = _diagnose_mlp(chosen)
        else:
            verdict = _diagnose_target(options.target)
        _show(verdict, folder, options.json)
    return 1 if options.strict and not verdict.healthy else 0


def _diagnose_mlp(options: argparse.Namespace) -> Diagnosis:
    from vanishjax.cli.inputs import load_data

    size = options.batch_size or BATCH_SIZE
    # The split of `vanishjax train`. A small data set is only too small for a batch asked for.
    settings = {"validation_split": 0.2, "batch_size": options.batch_size or 1}
    targets: Literal["real", "classes"] = "real" if options.loss == "squared_error" else "classes"
    dataset = load_data(
        argparse.Namespace(**(vars(options) | settings)), targets, dtype=options.dtype
    )
    with _progress():
        from vanishjax.health import diagnose

        batch = (dataset.train.inputs[:size], dataset.train.labels[:size])
        problem = _make_problem(options, dataset, batch)
        return diagnose(problem.loss_fn, problem.params, batch, problem.tx)


def _make_problem(options: argparse.Namespace, dataset: Dataset, batch: Any) -> Problem:
    """The network that `vanishjax train` would start with, by any initialiser."""
    import dataclasses

    import jax

    from vanishjax import initializers, optimizers
    from vanishjax.cli.train import LEARNING_RATES, SEE_LAYERS
    from vanishjax.layers import find_layers
    from vanishjax.models import mlp_problem

    start = initializers.initialization(options.init, options.activation)
    problem = mlp_problem(
        dataset.train.inputs.shape[1],
        hidden_widths(options),
        dataset.classes or math.prod(dataset.train.labels.shape[1:]),
        activation=options.activation,
        residual=options.residual,
        loss=options.loss,
        key=jax.random.key(options.seed),
        dtype=options.dtype,
        param_dtype=options.dtype,
        kernel_init=start.kernel_init,
        bias_init=start.bias_init,
    )
    layers = find_layers(problem.params, problem.loss_fn, batch)
    params = problem.params
    if start.centers and options.residual is None:
        params = initializers.center_biases(params, options.activation, layers)
    rate = options.learning_rate or LEARNING_RATES[options.optimizer]
    arguments = {"layers": layers} if options.optimizer in SEE_LAYERS else {}
    tx = getattr(optimizers, options.optimizer)(rate, **arguments)
    return dataclasses.replace(problem, params=params, tx=tx)


def _diagnose_target(name: str) -> Diagnosis:
    from vanishjax.cli.target import TargetError, blame, open_target

    with _progress(), open_target(name) as target:
        from vanishjax.health import diagnose

        try:
            return diagnose(*target)
        except TargetError:
            raise
        except ValueError as error:
            if isinstance(error.__cause__, TargetError):
                raise error.__cause__ from error
            raise TargetError(f"{name}: {error}") from error
        except (RuntimeError, OSError, MemoryError):
            raise
        except Exception:
            # JAX speaks up in many ways about trees and arrays that it can't take.
            with blame(f"{name}: looking at what it returned"):
                raise


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """Tells who waits at a terminal what for."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("compiling the network"):
        yield


def _show(verdict: Diagnosis, folder: Path | None, as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from vanishjax.cli.output import to_json, write_json

    result = verdict.to_dict()
    if folder is not None:
        write_json(folder / RESULT_FILE, result)
        verdict.plot(folder / FIGURE_FILE)
    if as_json:
        print(to_json(result))
        return
    console = Console(highlight=False)
    # A terminal that knows no such characters gets question marks, not an error.
    plain = str(verdict).encode(console.encoding, "replace").decode(console.encoding)
    text = Text(plain)
    text.highlight_regex(r"\A.*", "bold green" if verdict.healthy else "bold red")
    text.highlight_regex(r"(?m)^✗.*", "red")
    text.highlight_regex(r"(?m)^!.*", "yellow")
    console.print(text, soft_wrap=True)
    if folder is not None:
        console.print(f"\nsaved {RESULT_FILE} and {FIGURE_FILE} in {folder}", soft_wrap=True)
