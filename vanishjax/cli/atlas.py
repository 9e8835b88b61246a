"""Map how deep optimizers train, by activation and initializer, and how deep is predicted.

The prediction is the sum of ln chi: how much of the gradient reaches the first layer of the new
networks. Lines on the map show where it passes what momentum and Adam can make up for.

It may take hours, and may be killed: every cell is on the disk as soon as it is measured, and the
same command goes on where it was, in --out or in the newest unfinished folder under runs/. More
optimizers, depths, activations or initializers may be asked for then; the rest must be the same.

  vanishjax atlas --activations sigmoid,tanh --inits lecun,he --out atlas
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vanishjax.catalog import CONTENDERS
from vanishjax.cli.grid import Cell, add_grid_options, gather, grid_settings
from vanishjax.cli.options import (
    ACTIVATIONS,
    COMMON_FIELDS,
    INITIALIZERS,
    MOST_LAYERS,
    add_data_options,
    add_output_options,
    add_residual_option,
    list_of,
    one_of,
    warn,
)

if TYPE_CHECKING:
    from vanishjax.cli.journal import Journal
    from vanishjax.training.data import Dataset

NAME = "atlas"
HELP = "the same by activation and initializer (may be resumed)"
JOURNAL_FILE, RESULT_FILE, MAP_FILE = "atlas.jsonl", "atlas.json", "atlas.png"
FIELDS = {
    "command": COMMON_FIELDS["command"],
    "settings": "what was measured, and how",
    "cells": "for each activation, initializer, optimizer and depth: activation, init, and what "
    "compare --help says of its cells; sum_log_chi (nats of energy that the gradient gains on its "
    "way to the first layer)",
    "trainable_depth": "activation: initializer: optimizer: deepest network with a mean test "
    "accuracy of settings.trainable_accuracy, or 0",
    "predicted_depth": "activation: initializer: kind of optimizer: deepest network whose "
    "sum_log_chi is within its reach, or 0",
    "reaches": "kind of optimizer: nats that it makes up for",
    "interrupted": COMMON_FIELDS["interrupted"],
    "seconds": "of all cells, compilation included",
    "environment": COMMON_FIELDS["environment"],
}

DEFAULTS = {
    "optimizers": ("sgd", "momentum", "adam", "lion", "muon", "deep_muon"),
    "depths": (2, 4, 8, 16, 32),
    "activations": ("sigmoid", "tanh", "relu"),
    "inits": ("lecun", "critical_orthogonal"),
    "seeds": 3,
    "epochs": 30,
}
QUICK = {
    "optimizers": ("momentum", "adam", "deep_muon"),
    "depths": (2, 4, 8, 16),
    "activations": ("sigmoid",),
    "inits": ("lecun", "critical_orthogonal"),
    "seeds": 2,
    "epochs": 15,
}
# What a cell is known by, beside the settings that all have in common.
KEY = ("activation", "init", "optimizer", "depth")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument(
        "--activations",
        type=list_of(one_of("activation", ACTIVATIONS), distinct=True),
        metavar="NAMES",
        help=f"of the hidden layers, of {', '.join(ACTIVATIONS)} (default: sigmoid,tanh,relu)",
    )
    parser.add_argument(
        "--inits",
        type=list_of(one_of("initializer", INITIALIZERS), distinct=True),
        metavar="NAMES",
        help=f"initializers of the kernels, of {', '.join(INITIALIZERS)} (default: "
        "lecun,critical_orthogonal)",
    )
    add_grid_options(parser, DEFAULTS, QUICK)
    parser.add_argument(
        "--decay",
        action="store_true",
        help="let every learning rate fall linearly to 2 %% of itself over the run",
    )
    add_residual_option(parser)
    add_data_options(parser)
    add_output_options(parser, f"{JOURNAL_FILE} (every cell), {RESULT_FILE} and {MAP_FILE}")


def run(options: argparse.Namespace) -> int:
    """Measures what is left to measure, shows progress, and writes the map and the JSON."""
    from vanishjax.cli.inputs import load_data
    from vanishjax.cli.journal import open_journal
    from vanishjax.cli.output import results_folder

    dataset = load_data(options, "classes")
    asked = _asked(options, dataset)
    out = options.out
    if out is None and not options.overwrite:
        out = _unfinished(asked.settings)
    goes_on = out is not None and Path(out, JOURNAL_FILE).exists()
    files = () if goes_on else (RESULT_FILE, MAP_FILE)
    with (
        results_folder(NAME, out, files, options.overwrite) as folder,
        open_journal(
            folder / JOURNAL_FILE,
            asked.settings,
            _reader(asked.settings),
            overwrite=options.overwrite,
        ) as journal,
    ):
        return _measure(options, dataset, asked, journal, folder)


class Asked(NamedTuple):
    """What the options ask for.

    Attributes:
      kinds: Activations and initializers, as pairs.
      grid: The arguments of every `Grid`, those of its kind apart.
      settings: What all cells have in common, and a journal's must agree with.
    """

    kinds: list[tuple[str, str]]
    grid: dict[str, Any]
    settings: dict[str, Any]

    def cells(self) -> list[tuple[Any, ...]]:
        """The `KEY` of every cell, in the order of the result."""
        axes = (self.grid["optimizers"], sorted(self.grid["depths"]))
        return [(*kind, *rest) for kind in self.kinds for rest in itertools.product(*axes)]


def _asked(options: argparse.Namespace, dataset: Dataset) -> Asked:
    defaults = QUICK if options.quick else DEFAULTS
    grid = grid_settings(options, defaults) | {"decay": options.decay}
    activations, inits = (grid.pop(name) for name in ("activations", "inits"))
    kinds = itertools.product(options.activations or activations, options.inits or inits)
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    checksum = 0
    for part in parts.values():
        for array in (part.inputs, part.labels):
            checksum = zlib.crc32(array.tobytes(), checksum)
    settings = {
        "data": dataset.name,
        "validation_split": options.validation_split,
        **{name: value for name, value in grid.items() if name not in ("optimizers", "depths")},
        "learning_rates": options.learning_rates,
        # A file of the same name may hold other data.
        "examples": {name: len(part) for name, part in parts.items()},
        "data_checksum": f"{checksum:08x}",
    }
    return Asked(list(kinds), grid, settings)


def _reader(settings: dict[str, Any]) -> Callable[[Cell], tuple[Any, ...]]:
    """What checks a cell of a journal, field by field, and gives its `KEY`."""
    from vanishjax.cli.journal import check_fields, is_number

    gradient = is_number(least=0.0, optional=True)
    share = is_number(least=0.0, most=1.0, optional=True)

    def shares(value: Any) -> bool:
        seeds = len(settings["seeds"])
        return isinstance(value, list) and len(value) == seeds and all(map(share, value))

    def rates(value: Any) -> bool:
        return isinstance(value, dict) and len(value) > 0 and all(map(share, value.values()))

    fields: dict[str, Callable[[Any], bool]] = {
        "activation": ACTIVATIONS.__contains__,
        "init": INITIALIZERS.__contains__,
        "optimizer": CONTENDERS.__contains__,
        "depth": is_number(whole=True, least=1, most=MOST_LAYERS),
        "learning_rate": is_number(least=0.0),
        "validation_accuracy": shares,
        "test_accuracy": shares,
        "rates": rates,
        "first_layer_gradient": gradient,
        "last_layer_gradient": gradient,
        "sum_log_chi": is_number(optional=True),
        "steps": is_number(whole=True, least=1),
        "seconds": is_number(least=0.0),
    }

    def read(cell: Cell) -> tuple[Any, ...]:
        check_fields(cell, fields)
        return _key(cell)

    return read


def _unfinished(settings: dict[str, Any]) -> str | None:
    """The newest folder under runs/, if its run was cut short and was of the same settings."""
    from vanishjax.cli.journal import open_journal
    from vanishjax.cli.output import latest_folder
    from vanishjax.files import locked

    folder = latest_folder(NAME, JOURNAL_FILE)
    if folder is None:
        return None
    with contextlib.suppress(ValueError, OSError, LookupError, TypeError):
        result = folder / RESULT_FILE
        if result.exists() and not json.loads(result.read_text())["interrupted"]:
            return None
        # One that is being written isn't unfinished.
        with (
            locked(folder),
            open_journal(folder / JOURNAL_FILE, settings, _reader(settings)),
        ):
            return str(folder)
    return None


def _measure(
    options: argparse.Namespace, dataset: Dataset, asked: Asked, journal: Journal, folder: Path
) -> int:
    from vanishjax.cli.output import to_json, write_each, write_json
    from vanishjax.cli.terminal import Terminal
    from vanishjax.report import atlas_plot, atlas_text, text
    from vanishjax.training.interruption import deferred

    order = asked.cells()
    cells = [record for record in journal.records if _key(record) in order]
    if cells:
        warn(f"going on in {folder}: {len(cells)} of {len(order)} cells are done")
    ended_by = gather(
        _cells_left(dataset, asked, journal),
        cells,
        total=len(order),
        name="{0[activation]} {0[init]} {0[optimizer]} depth {0[depth]}".format,
    )
    # From here on a signal is a note: what was measured is written.
    with deferred() as stop:
        cells.sort(key=lambda cell: order.index(_key(cell)))
        result = _result(dataset, asked, cells) | {"interrupted": bool(ended_by)}
        write_each(
            lambda: write_json(folder / RESULT_FILE, result),
            lambda: atlas_plot.plot_atlas(result, folder / MAP_FILE),
        )
    if options.json:
        print(to_json(result))
    else:
        output = Terminal()
        output.print(text.settings_line(result["settings"]), style="bold", soft_wrap=True)
        output.print(atlas_text.atlas_table(result))
        output.print(f"\n{atlas_text.atlas_legend(result)}", soft_wrap=True)
        files = f"{JOURNAL_FILE}, {RESULT_FILE} and {MAP_FILE}"
        output.print(f"saved {files} in {folder}", soft_wrap=True)
    if ended_by:
        warn("interrupted; the same command goes on from here")
    elif stop.signal:
        warn("interrupted after the last cell; everything is saved")
    number = ended_by or stop.signal
    return 128 + number if number else 0


def _cells_left(dataset: Dataset, asked: Asked, journal: Journal) -> Iterator[Cell]:
    import jax

    from vanishjax.atlas import Grid, check_grid, measure

    classes = dataset.classes or 0
    train, validation, test = (
        (part.inputs, part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    )
    grids = {
        (activation, init): Grid(activation=activation, kernel_init=init, **asked.grid)
        for activation, init in asked.kinds
    }
    # What can't be measured should be said now, not after an hour.
    for grid in grids.values():
        check_grid(grid, len(dataset.train), classes)
    done = {_key(record) for record in journal.records}
    for kind, grid in grids.items():
        done_here = {key[2:] for key in done if key[:2] == kind}
        left = measure(grid, train, validation, test, classes, done=done_here, predicts=True)
        for cell in left:
            yield journal.append({"activation": kind[0], "init": kind[1], **cell})
        # Compiled programs map memory, and Linux allows a process but 65,530 maps.
        jax.clear_caches()


def _result(dataset: Dataset, asked: Asked, cells: list[Cell]) -> dict[str, Any]:
    from vanishjax.atlas import Grid, predicted_depth, trainable_depth
    from vanishjax.cli.output import environment
    from vanishjax.health.examination import ADAPTIVE_REACH, LINEAR_REACH

    reaches = {"momentum": LINEAR_REACH, "Adam": ADAPTIVE_REACH}
    trained: dict[str, Any] = {activation: {} for activation, _ in asked.kinds}
    predicted: dict[str, Any] = {activation: {} for activation, _ in asked.kinds}
    for activation, init in asked.kinds:
        own = [cell for cell in cells if _key(cell)[:2] == (activation, init)]
        trained[activation][init] = trainable_depth(own, Grid.trainable_accuracy)
        predicted[activation][init] = {
            who: predicted_depth(own, reach) for who, reach in reaches.items() if own
        }
    return {
        "command": NAME,
        "settings": {
            "activations": list(dict.fromkeys(activation for activation, _ in asked.kinds)),
            "inits": list(dict.fromkeys(init for _, init in asked.kinds)),
            "optimizers": asked.grid["optimizers"],
            "depths": asked.grid["depths"],
            **asked.settings,
            "classes": dataset.classes,
            "trainable_accuracy": Grid.trainable_accuracy,
        },
        "cells": cells,
        "trainable_depth": trained,
        "predicted_depth": predicted,
        "reaches": reaches,
        "seconds": math.fsum(cell["seconds"] for cell in cells),
        "environment": environment(),
    }


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell[name] for name in KEY)
