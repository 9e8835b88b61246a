"""The optimizer that options describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vanishjax.cli.options import OPTIMIZERS, number, one_of

if TYPE_CHECKING:
    import optax

    from vanishjax.layers import Layers

# Those of Keras, which most readers of the literature start from; Lion wants a tenth of Adam's.
LEARNING_RATES = {
    "sgd": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
    "nadam": 0.001,
    "nadamw": 0.001,
    "rmsprop": 0.001,
    "lion": 0.0001,
    "adam_atan2": 0.001,
    "lars": 1.0,
    "lamb": 0.001,
    "muon": 0.02,
    "deep_muon": 0.02,
}
# What these do to a layer depends on where it ends: they are told.
_SEE_LAYERS = ("lars", "lamb", "muon", "deep_muon")
# Their rate falls over the run.
_SEE_HORIZON = ("deep_muon",)


# What some take besides a rate.
_ARGUMENTS = {
    "momentum": ("sgd", "rmsprop", "lars"),
    "weight_decay": ("adamw", "nadamw", "lion", "adam_atan2", "lars", "lamb", "muon"),
}


def add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    """Options that describe an optimizer; none has a default but --nesterov, which is False."""
    group = parser.add_argument_group("optimizer")
    group.add_argument(
        "--optimizer",
        type=one_of("optimizer", OPTIMIZERS),
        metavar="NAME",
        help=f"{', '.join(OPTIMIZERS)} (default: adam)",
    )
    group.add_argument(
        "--learning-rate",
        type=number(above=0.0),
        metavar="RATE",
        help="(default: 0.001; sgd 0.01, lion 0.0001, lars 1, muon and deep_muon 0.02)",
    )
    group.add_argument(
        "--momentum", type=number(0.0, 1.0), metavar="DECAY", help="for sgd, rmsprop and lars"
    )
    group.add_argument("--nesterov", action="store_true", help="momentum that looks one step ahead")
    group.add_argument(
        "--weight-decay",
        type=number(0.0),
        metavar="RATE",
        help="for adamw, nadamw, lion, adam_atan2, lars, lamb and muon",
    )
    group.add_argument(
        "--clip-norm", type=number(above=0.0), metavar="NORM", help="largest global gradient norm"
    )


def check_optimizer_options(options: argparse.Namespace) -> None:
    """Raises ValueError for options that don't go together."""
    for option, names in _ARGUMENTS.items():
        if getattr(options, option) is not None and options.optimizer not in names:
            raise ValueError(
                f"--{option.replace('_', '-')} goes with --optimizer {' or '.join(names)}, "
                f"not {options.optimizer}"
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
      options: Of `add_optimizer_options`; without a rate it's that of `LEARNING_RATES`.
      layers: Of the network.
      total_steps: Length of the run.

    Returns:
      The transform.
    """
    import optax

    from vanishjax import optimizers, transforms

    arguments: dict[str, Any] = {}
    if options.momentum is not None:
        arguments |= {"momentum": options.momentum, "nesterov": options.nesterov}
    if options.weight_decay is not None:
        arguments["weight_decay"] = options.weight_decay
    if options.optimizer in _SEE_LAYERS:
        arguments["layers"] = layers
    if options.optimizer in _SEE_HORIZON:
        arguments["total_steps"] = total_steps
    rate = options.learning_rate or LEARNING_RATES[options.optimizer]
    optimizer: optax.GradientTransformation = getattr(optimizers, options.optimizer)(
        rate, **arguments
    )
    if options.clip_norm is None:
        return optimizer
    return optax.chain(transforms.clip_by_global_norm(options.clip_norm), optimizer)
