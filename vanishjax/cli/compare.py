"""Compare optimizers: train networks of growing depth with each and show which still learn.

Every cell trains all learning rates and seeds at once; the rate is chosen on validation data and
the accuracy shown is the test data's. Ctrl-C keeps the cells that are done.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanishjax.cli.options import (
    CONTENDERS,
    MOST_LAYERS,
    add_data_options,
    add_network_options,
    add_output_options,
    list_of,
    number,
    one_of,
    warn,
    whole,
)

if TYPE_CHECKING:
    from vanishjax.training.data import Dataset

NAME = "compare"
HELP = "compare optimizers on networks of growing depth (the main job)"
RESULT_FILE, MAP_FILE = "compare.json", "trainable_depth.png"

QUICK = {
    "optimizers": ("sgd", "nesterov", "adam", "nadam"),
    "depths": (2, 4, 8),
    "seeds": 2,
    "epochs": 15,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument(
        "--optimizers",
        type=list_of(one_of("optimizer", CONTENDERS), distinct=True),
        metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)} (default: sgd,momentum,nesterov,adam,nadam,rmsprop,lion)",
    )
    parser.add_argument(
        "--depths",
        "--depth",
        type=list_of(whole(1, MOST_LAYERS), distinct=True),
        metavar="DEPTHS",
        help="numbers of hidden layers (default: 2,4,6,8,12,16)",
    )
    parser.add_argument(
        "--width",
        type=whole(1),
        default=32,
        metavar="W",
        help="of every hidden layer (default: %(default)s)",
    )
    add_network_options(parser, activation="sigmoid")
    parser.add_argument(
        "--learning-rates",
        type=list_of(number(above=0.0), distinct=True),
        metavar="RATES",
        help="rates to choose from, for all optimizers (default: four for each)",
    )
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N", help="runs of each cell (default: 3)"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="the first seed; it also decides the data split (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="(default: 30)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smaller comparison: optimizers sgd,nesterov,adam,nadam, depths 2,4,8, 2 seeds, "
        "15 epochs",
    )
    add_data_options(parser)
    add_output_options(parser, f"{RESULT_FILE} and {MAP_FILE}")


def run(options: argparse.Namespace) -> int:
    """Trains every cell, shows progress, and writes the table, the map and the JSON."""
    from vanishjax.cli.inputs import load_data
    from vanishjax.cli.output import results_folder

    dataset = load_data(options, "classes")
    files = (RESULT_FILE, MAP_FILE)
    with results_folder(NAME, options.out, files, options.overwrite) as folder:
        return _compare(options, dataset, folder)


def _compare(options: argparse.Namespace, dataset: Dataset, folder: Path) -> int:
    started = time.perf_counter()
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from vanishjax.atlas import Grid, measure, trainable_depth
    from vanishjax.cli.output import environment, write_json
    from vanishjax.report import depth_map, text

    names = ("optimizers", "depths", "learning_rates", "epochs", "seeds")
    given = {name: getattr(options, name) for name in names}
    chosen: dict[str, Any] = dict(QUICK) if options.quick else {"seeds": 3}
    chosen |= {name: value for name, value in given.items() if value is not None}
    seeds = chosen.pop("seeds")
    grid = Grid(
        width=options.width,
        activation=options.activation,
        residual=options.residual,
        batch_size=options.batch_size,
        seeds=tuple(range(options.seed, options.seed + seeds)),
        **chosen,
    )
    train, validation, test = (
        (part.inputs, part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    )
    classes = dataset.classes or 0
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    cells: list[dict[str, Any]] = []
    interrupted = False
    live = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        task = progress.add_task("compiling", total=len(grid.depths) * len(grid.optimizers))
        try:
            for cell in measure(grid, train, validation, test, classes):
                cells.append(cell)
                mean = sum(cell["test_accuracy"]) / len(cell["test_accuracy"])
                done = f"{cell['optimizer']} depth {cell['depth']}: {100 * mean:.1f} %"
                progress.update(task, advance=1, description=f"{done:<28}")
                if not live:
                    console.print(done)
        except KeyboardInterrupt:
            interrupted = True
    if not cells:
        raise KeyboardInterrupt
    cells.sort(key=lambda cell: (grid.optimizers.index(cell["optimizer"]), cell["depth"]))
    result = {
        "command": NAME,
        "settings": {
            "data": dataset.name,
            "classes": dataset.classes,
            "activation": options.activation,
            "residual": options.residual,
            "width": grid.width,
            "epochs": grid.epochs,
            "batch_size": grid.batch_size,
            "seeds": list(grid.seeds),
            "validation_split": options.validation_split,
            "trainable_accuracy": grid.trainable_accuracy,
        },
        "cells": cells,
        "trainable_depth": trainable_depth(cells, grid.trainable_accuracy),
        "interrupted": interrupted,
        "seconds": time.perf_counter() - started,
        "environment": environment(),
    }
    printed = write_json(folder / RESULT_FILE, result)
    depth_map.trainable_depth(result, folder / MAP_FILE)
    if options.json:
        print(printed, end="")
    else:
        output = Console(highlight=False)
        output.print(text.compare_table(result))
        output.print(text.compare_summary(result), soft_wrap=True)
        output.print(f"saved {RESULT_FILE} and {MAP_FILE} in {folder}", soft_wrap=True)
    if interrupted:
        warn("interrupted; the cells that were done are saved")
        return 130
    return 0
