"""Compare optimizers: train networks of growing depth with each and show which still learn.

Every cell trains all learning rates and seeds at once; the rate is chosen on validation data and
the accuracy shown is the test data's. Ctrl-C keeps the cells that are done.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanishjax.cli.grid import add_grid_options, gather, grid_settings
from vanishjax.cli.options import (
    COMMON_FIELDS,
    add_data_options,
    add_network_options,
    add_output_options,
    list_of,
    warn,
    whole,
)

if TYPE_CHECKING:
    from vanishjax.training.data import Dataset

NAME = "compare"
HELP = "compare optimizers on networks of growing depth (the main job)"
RESULT_FILE, MAP_FILE = "compare.json", "trainable_depth.png"
FIELDS = {
    "command": COMMON_FIELDS["command"],
    "settings": "what was compared, and how",
    "cells": "for each optimizer and depth: optimizer, depth, learning_rate (the best on "
    "validation data), validation_accuracy and test_accuracy at that rate (one for each seed), "
    "rates (each rate's mean validation accuracy), first_layer_gradient and last_layer_gradient "
    "(rms of the new network's), steps, seconds",
    "trainable_depth": "optimizer: deepest network with a mean test accuracy of "
    "settings.trainable_accuracy, or 0",
    "interrupted": COMMON_FIELDS["interrupted"],
    "seconds": COMMON_FIELDS["seconds"],
    "environment": COMMON_FIELDS["environment"],
}

# Those of `vanishjax.atlas.Grid`, whose import would cost seconds.
DEFAULTS = {
    "optimizers": ("sgd", "nesterov", "adam", "nadam", "rmsprop", "lion", "muon", "deep_muon"),
    "depths": (2, 4, 6, 8, 12, 16),
    "seeds": 3,
    "epochs": 30,
}
QUICK = {
    "optimizers": ("sgd", "nesterov", "adam", "nadam", "deep_muon"),
    "depths": (2, 4, 8),
    "seeds": 2,
    "epochs": 15,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    add_grid_options(parser, DEFAULTS, QUICK)
    parser.add_argument(
        "--hidden",
        type=list_of(whole(1)),
        metavar="WIDTHS",
        help="compare on one network: widths of its hidden layers, such as 64,32; instead of "
        "--depths and --width",
    )
    add_network_options(parser, activation="sigmoid")
    add_data_options(parser)
    add_output_options(parser, f"{RESULT_FILE} and {MAP_FILE}")


def run(options: argparse.Namespace) -> int:
    """Trains every cell, shows progress, and writes the table, the map and the JSON."""
    from vanishjax.cli.inputs import load_data
    from vanishjax.cli.output import results_folder

    if options.hidden and (options.depths or options.width):
        raise ValueError("--hidden is one network: leave out --depths and --width")
    dataset = load_data(options, "classes")
    files = (RESULT_FILE, MAP_FILE)
    with results_folder(NAME, options.out, files, options.overwrite) as folder:
        return _compare(options, dataset, folder)


def _compare(options: argparse.Namespace, dataset: Dataset, folder: Path) -> int:
    started = time.perf_counter()
    from vanishjax.atlas import Grid, measure, trainable_depth
    from vanishjax.cli.output import environment, to_json, write_each, write_json
    from vanishjax.cli.terminal import Terminal
    from vanishjax.report import depth_map, text
    from vanishjax.training.interruption import deferred

    defaults = QUICK if options.quick else DEFAULTS
    settings = grid_settings(options, defaults) | {"hidden": options.hidden}
    if options.hidden:
        settings["depths"] = (len(options.hidden),)
    grid = Grid(activation=options.activation, **settings)
    train, validation, test = (
        (part.inputs, part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    )
    classes = dataset.classes or 0
    cells: list[dict[str, Any]] = []
    ended_by = gather(
        measure(grid, train, validation, test, classes),
        cells,
        total=len(grid.depths) * len(grid.optimizers),
        name=lambda cell: f"{cell['optimizer']} depth {cell['depth']}",
    )
    # From here on a signal is a note: what was measured is written.
    with deferred() as asked:
        cells.sort(key=lambda cell: (grid.optimizers.index(cell["optimizer"]), cell["depth"]))
        result = {
            "command": NAME,
            "settings": {
                "data": dataset.name,
                "classes": dataset.classes,
                "activation": options.activation,
                "residual": options.residual,
                **({"hidden": grid.hidden} if grid.hidden else {"width": grid.width}),
                "epochs": grid.epochs,
                "batch_size": grid.batch_size,
                "seeds": list(grid.seeds),
                "validation_split": options.validation_split,
                "trainable_accuracy": grid.trainable_accuracy,
            },
            "cells": cells,
            "trainable_depth": trainable_depth(cells, grid.trainable_accuracy),
            "interrupted": bool(ended_by),
            "seconds": time.perf_counter() - started,
            "environment": environment(),
        }
        write_each(
            lambda: write_json(folder / RESULT_FILE, result),
            lambda: depth_map.trainable_depth(result, folder / MAP_FILE),
        )
    if options.json:
        print(to_json(result))
    else:
        output = Terminal()
        output.print(text.compare_table(result))
        output.print(text.compare_summary(result), soft_wrap=True)
        output.print(f"saved {RESULT_FILE} and {MAP_FILE} in {folder}", soft_wrap=True)
    if ended_by:
        warn("interrupted; the cells that were done are saved")
    elif asked.signal:
        warn("interrupted after the last cell; everything is saved")
    number = ended_by or asked.signal
    return 128 + number if number else 0
