"""Compare optimizers: train networks of growing depth with each and show which still learn.

Every cell trains all learning rates and seeds at once; the rate is chosen on validation data and
the accuracy shown is the test data's. Ctrl-C keeps the cells that are done.
"""

import argparse
import time
from typing import Any

from vanishjax.cli.options import (
    CONTENDERS,
    add_data_options,
    add_network_options,
    add_output_options,
    list_of,
    number,
    one_of,
    warn,
    whole,
)

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
        type=list_of(one_of("optimizer", CONTENDERS)),
        metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)} (default: sgd,momentum,nesterov,adam,nadam,rmsprop,lion)",
    )
    parser.add_argument(
        "--depths",
        "--depth",
        type=list_of(whole(1)),
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
        type=list_of(number(above=0.0)),
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
    from vanishjax.cli.output import environment, open_folder, write_json
    from vanishjax.training.data import load_dataset

    started = time.perf_counter()
    dataset = load_dataset(
        options.data,
        data_dir=options.data_dir,
        validation_split=options.validation_split,
        seed=options.seed,
        targets="classes",
    )
    folder = open_folder(NAME, options.out, (RESULT_FILE, MAP_FILE), options.overwrite)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn

    from vanishjax.atlas import Grid, measure, trainable_depth
    from vanishjax.report import plots, text

    chosen = {
        "optimizers": options.optimizers,
        "depths": options.depths,
        "epochs": options.epochs,
        "learning_rates": options.learning_rates,
    }
    if options.quick:
        chosen = {name: chosen.get(name) or QUICK.get(name) for name in {**chosen, **QUICK}}
    seeds = options.seeds or chosen.pop("seeds", None) or 3
    chosen.pop("seeds", None)
    grid = Grid(
        width=options.width,
        activation=options.activation,
        residual=options.residual,
        batch_size=options.batch_size,
        seeds=tuple(range(options.seed, options.seed + seeds)),
        **{name: value for name, value in chosen.items() if value},
    )
    parts = [
        (part.inputs, part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    ]
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
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=len(grid.depths) * len(grid.optimizers))
        try:
            for cell in measure(grid, *parts, classes=dataset.classes):
                cells.append(cell)
                mean = sum(cell["test_accuracy"]) / len(cell["test_accuracy"])
                done = f"{cell['optimizer']} depth {cell['depth']}: {100 * mean:.1f} %"
                progress.update(task, advance=1, description=f"{done:<28}")
                if not console.is_terminal:
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
    plots.trainable_depth(result, folder / MAP_FILE)
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
