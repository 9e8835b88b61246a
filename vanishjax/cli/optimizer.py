"""The optimizer that options describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vanishjax.catalog import OPTIMIZERS
from vanishjax.cli.options import joined, number, one_of

if TYPE_CHECKING:
    import optax

    from vanishjax.layers import Layers

# The options that some optimizers take besides a rate.
_OPTIONS = ("momentum", "weight_decay")


def _takers(option: str) -> list[str]:
    return [name for name, entry in OPTIMIZERS.items() if option in entry.options]


def _rates() -> str:
    """The default rates, the most common one first."""
    names: dict[float, list[str]] = {}
    for name, entry in OPTIMIZERS.items():
        names.setdefault(entry.learning_rate, []).append(name)
    common = max(names, key=lambda rate: len(names[rate]))
    others = [f"{joined(who)} {rate:g}" for rate, who in names.items() if rate != common]
    return f"{common:g}; {', '.join(others)}"


def add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    """Options that describe an optimizer; none has a default but --nesterov, which is False."""
    group = parser.add_argument_group("optimizer")
    group.add_argument(
        "--optimizer",
        type=one_of("optimizer", tuple(OPTIMIZERS)),
        metavar="NAME",
        help=f"{', '.join(OPTIMIZERS)} (default: adam)",
    )
    group.add_argument(
        "--learning-rate",
        type=number(above=0.0),
        metavar="RATE",
        help=f"(default: {_rates()})",
    )
    group.add_argument(
        "--momentum",
        type=number(0.0, 1.0),
        metavar="DECAY",
        help=f"for {joined(_takers('momentum'))}",
    )
    group.add_argument("--nesterov", action="store_true", help="momentum that looks one step ahead")
    group.add_argument(
        "--weight-decay",
        type=number(0.0),
        metavar="RATE",
        help=f"for {joined(_takers('weight_decay'))}",
    )
    group.add_argument(
        "--clip-norm", type=number(above=0.0), metavar="NORM", help="largest global gradient norm"
    )


def check_optimizer_options(options: argparse.Namespace) -> None:
    """Raises ValueError for options that don't go together."""
    entry = OPTIMIZERS[options.optimizer]
    for option in _OPTIONS:
        if getattr(options, option) is not None and option not in entry.options:
            names = _takers(option)
            raise ValueError(
                f"--{option.replace('_', '-')} goes with --optimizer {' or '.join(names)}, "
                f"not {options.optimizer}"
            )
    if entry.plain and options.residual is not None:
        raise ValueError(
            f"--optimizer {options.optimizer} is for chains without skip connections; leave out "
            f"--residual {options.residual}"
        )
    if options.nesterov and options.optimizer == "adam":
        raise ValueError("--nesterov with adam is --optimizer nadam")
    if options.nesterov and options.momentum is None:
        raise ValueError("--nesterov needs --momentum, such as --momentum 0.9")


def described_optimizer(
    options: argparse.Namespace, layers: Layers, total_steps: int
) -> optax.GradientTransformation:
    """The optimizer of the options, behind the clip if there is one.

    Args:
      options: Of `add_optimizer_options`, with the activation; without a rate the catalog's.
      layers: Of the network.
      total_steps: Length of the run.

    Returns:
      The transform.
    """
    import optax

    from vanishjax import transforms
    from vanishjax.optimizers.named import named_optimizer

    arguments: dict[str, Any] = {}
    if options.momentum is not None:
        arguments |= {"momentum": options.momentum, "nesterov": options.nesterov}
    if options.weight_decay is not None:
        arguments["weight_decay"] = options.weight_decay
    optimizer = named_optimizer(
        options.optimizer,
        options.learning_rate,
        layers=layers,
        total_steps=total_steps,
        activation=options.activation,
        **arguments,
    )
    if options.clip_norm is None:
        return optimizer
    return optax.chain(transforms.clip_by_global_norm(options.clip_norm), optimizer)
