"""A grid of cells to measure: its options, and how far its measuring has come."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vanishjax.catalog import CONTENDERS
from vanishjax.cli.options import MOST_LAYERS, list_of, number, one_of, whole
from vanishjax.training.interruption import signal_of

Cell = dict[str, Any]

_WIDTH = 32


def add_grid_options(
    parser: argparse.ArgumentParser, defaults: Mapping[str, Any], quick: Mapping[str, Any]
) -> None:
    """Options that say what is compared, and how long.

    Args:
      parser: What gets them. Those that a default depends on `--quick` for are None unless given.
      defaults: The "optimizers", "depths", "seeds" and "epochs" that the help names.
      quick: What `--quick` makes of them, and of other settings.
    """
    parser.add_argument(
        "--optimizers",
        type=list_of(one_of("optimizer", tuple(CONTENDERS)), distinct=True),
        metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)} (default: {_joined(defaults['optimizers'])})",
    )
    parser.add_argument(
        "--depths",
        "--depth",
        type=list_of(whole(1, MOST_LAYERS), distinct=True),
        metavar="DEPTHS",
        help=f"numbers of hidden layers (default: {_joined(defaults['depths'])})",
    )
    parser.add_argument(
        "--width",
        type=whole(1),
        metavar="W",
        help=f"of every hidden layer (default: {_WIDTH})",
    )
    parser.add_argument(
        "--learning-rates",
        type=list_of(number(above=0.0), distinct=True),
        metavar="RATES",
        help="rates to choose from, for all optimizers (default: four for each)",
    )
    parser.add_argument(
        "--seeds",
        type=whole(1),
        metavar="N",
        help=f"runs of each cell (default: {defaults['seeds']})",
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="the first seed; it also decides the data split (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=whole(1), metavar="N", help=f"(default: {defaults['epochs']})"
    )
    smaller = ", ".join(
        f"{value} {name}" if isinstance(value, int) else f"{name} {_joined(value)}"
        for name, value in quick.items()
    )
    parser.add_argument("--quick", action="store_true", help=f"a smaller run: {smaller}")


def grid_settings(options: argparse.Namespace, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `Grid` that the options say, the network's own apart.

    Args:
      options: With those of `add_grid_options`, `add_data_options` and `residual`.
      defaults: What holds where an option isn't given; "seeds" is their number.
    """
    names = ("optimizers", "depths", "learning_rates", "epochs", "seeds")
    given = {name: getattr(options, name) for name in names}
    chosen = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    seeds = range(options.seed, options.seed + chosen["seeds"])
    return chosen | {
        "width": options.width or _WIDTH,
        "residual": options.residual,
        "batch_size": options.batch_size,
        "seeds": tuple(seeds),
    }


def gather(
    measured: Iterable[Cell], cells: list[Cell], total: int, name: Callable[[Cell], str]
) -> int:
    """Collects cells as they are measured and shows how far it has come.

    A signal that asks for the end puts an end to it, and the cells that are done stay.

    Args:
      measured: The cells to come.
      cells: Where they go; what is there already counts as done.
      total: Cells when all is done.
      name: What a cell is called.

    Returns:
      The number of that signal; 0 if none came.

    Raises:
      KeyboardInterrupt: It came before there was any cell.
    """
    from vanishjax.cli.terminal import Terminal

    console = Terminal(stderr=True)
    live = console.is_terminal
    try:
        with console.progress() as progress:
            task = progress.add_task("compiling", total=total, completed=len(cells))
            for cell in measured:
                cells.append(cell)
                done = f"{name(cell)}: {_percent(cell['test_accuracy'])}"
                progress.update(task, advance=1, description=f"{done:<28}")
                if not live:
                    console.print(done, soft_wrap=True)
    except KeyboardInterrupt as error:
        if not cells:
            raise
        return signal_of(error)
    if not cells:
        raise KeyboardInterrupt
    return 0


def _percent(accuracies: Sequence[float | None]) -> str:
    """The mean; nan if any run diverged, which JSON knows as None."""
    known = [value for value in accuracies if value is not None]
    mean = sum(known) / len(known) if len(known) == len(accuracies) else float("nan")
    return f"{100 * mean:.1f} %"


def _joined(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
