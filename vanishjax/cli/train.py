"""Train an MLP, score it on test data, and save it with its learning curves.

The article's runs:
  vanishjax train --data mnist --hidden 64,32 --optimizer adam --epochs 5
  vanishjax train --data mnist --optimizer sgd --momentum 0.9 --nesterov
  vanishjax train --data mnist --optimizer nadam
  vanishjax train --data mnist --loss squared_error    (one output, its MAE)

Save the run as it goes, and go on with it after Ctrl-C, a kill or a power cut:
  vanishjax train --epochs 50 --checkpoint-every 500 --out run
  vanishjax train --epochs 50 --checkpoint-every 500 --out run --resume

See what every layer's gradient does while it trains:
  vanishjax train --depth 12 --activation sigmoid --monitor
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vanishjax.cli.devices import (
    add_device_options,
    check_device_options,
    joined_processes,
    layout_arguments,
)
from vanishjax.cli.optimizer import (
    add_optimizer_options,
    check_optimizer_options,
)
from vanishjax.cli.options import (
    USUAL_INIT,
    add_data_options,
    add_init_option,
    add_network_options,
    add_output_options,
    add_width_options,
    file_path,
    hidden_widths,
    joined,
    one_of,
    whole,
)
from vanishjax.cli.plan import Plan, arrays_of, make_plan
from vanishjax.cli.resume import add_checkpoint_options, make_checkpoints, run_folder, saves
from vanishjax.cli.trained import (
    FIELDS as FIELDS,  # a command's own, for the parser
)
from vanishjax.cli.trained import (
    FILES,
    MONITOR_FILE,
    NAME,
    exit_status,
    show_results,
    write_results,
)

if TYPE_CHECKING:
    from rich.console import Console

    from vanishjax.cli.observer import Observer
    from vanishjax.training import Progress

HELP = "train a network and save it"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    add_network_options(parser, activation="relu")
    add_width_options(parser)
    add_init_option(parser, default=USUAL_INIT)
    parser.add_argument(
        "--loss",
        type=one_of("loss", ("cross_entropy", "squared_error")),
        default="cross_entropy",
        metavar="NAME",
        help="cross_entropy (classes) or squared_error (one linear output) (default: %(default)s)",
    )
    add_optimizer_options(parser)
    parser.set_defaults(optimizer="adam")
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=whole(1), metavar="N", help="(default: 5; --quick 1)")
    group.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="decides the data split, the parameters and the order (default: %(default)s)",
    )
    group.add_argument("--quick", action="store_true", help="one epoch")
    add_data_options(parser)
    parser.add_argument(
        "--dtype",
        type=one_of("dtype", ("float32", "bfloat16")),
        default="float32",
        metavar="TYPE",
        help="of inputs, parameters and computation: float32 or bfloat16 (default: %(default)s)",
    )
    group = parser.add_argument_group("monitor")
    group.add_argument(
        "--monitor",
        action="store_true",
        help=f"watch every layer's gradient and step, live on a terminal; writes {MONITOR_FILE}",
    )
    group.add_argument(
        "--monitor-every",
        type=whole(1),
        metavar="K",
        help="steps from one observation to the next; implies --monitor (default: 16)",
    )
    group.add_argument(
        "--tensorboard",
        type=file_path,
        metavar="DIR",
        help="folder for the observations as TensorBoard scalars; implies --monitor; needs "
        "tensorboardX",
    )
    add_checkpoint_options(parser)
    add_device_options(parser)
    add_output_options(parser, joined(FILES))


def run(options: argparse.Namespace) -> int:
    """Trains, scores and saves."""
    epochs = options.epochs or (1 if options.quick else 5)
    hidden_widths(options)
    check_optimizer_options(options)
    check_device_options(options)
    monitored = options.monitor or bool(options.monitor_every) or options.tensorboard is not None
    every = (options.monitor_every or 16) if monitored else None
    if options.tensorboard is not None and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("--tensorboard needs tensorboardX: pip install tensorboardX")

    from vanishjax.cli.inputs import load_data

    targets: Literal["real", "classes"] = "real" if options.loss == "squared_error" else "classes"
    dataset = load_data(options, targets, options.dtype)
    files = (*FILES, MONITOR_FILE)
    with (
        joined_processes(options) as writes,
        run_folder(NAME, options, files, writes) as folder,
    ):
        return _train(make_plan(options, epochs, dataset), every, folder, writes)


def _train(plan: Plan, every: int | None, folder: Path, writes: bool) -> int:
    import jax

    from vanishjax.cli.terminal import Terminal
    from vanishjax.health import monitor, read_health
    from vanishjax.training import TrainState, fit, gathered
    from vanishjax.training.interruption import deferred

    options, dataset, epochs = plan.options, plan.dataset, plan.settings["epochs"]
    console = Terminal(stderr=True, quiet=not writes)
    console.print(
        f"{dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} validation,"
        f" {len(dataset.test):,} test examples; {plan.parameters:,} parameters;"
        f" {options.optimizer}",
        soft_wrap=True,
    )
    observer = None if every is None else _observer(plan, every, console, writes)
    tx = plan.tx if every is None else monitor(plan.tx, layers=plan.layers, every=every)
    # One device or many: the same run but for the last digit.
    decisive = {**plan.settings, "monitor_every": every}
    checkpoints = make_checkpoints(options, folder, decisive, observer, console, writes)
    # From here on a signal is a note: what was trained is written, however late it comes.
    with deferred() as asked:
        with observer or contextlib.nullcontext():
            state, history = fit(
                plan.loss_fn,
                tx,
                TrainState.create(plan.problem.params, tx, jax.random.key(options.seed)),
                arrays_of(dataset.train),
                epochs=epochs,
                batch_size=options.batch_size,
                validation=arrays_of(dataset.validation),
                has_aux=True,
                on_epoch=lambda progress: _show_epoch(progress, plan.score, console, observer),
                observe=(lambda state: (state.step, read_health(state))) if observer else None,
                on_observed=observer.take if observer else None,
                checkpoints=checkpoints,
                **layout_arguments(options),
            )
        params = gathered(state.params)
        if not writes:
            return 128 + history.signal if history.signal else 0
        result = write_results(plan, params, history, observer, folder)
    show_results(plan, result, folder, observed=observer is not None)
    return exit_status(history, history.signal or asked.signal, epochs, saved=saves(options))


def _observer(plan: Plan, every: int, console: Console, writes: bool) -> Observer:
    import jax
    import jax.numpy as jnp

    from vanishjax.cli.observer import Observer, open_events

    options, events = plan.options, None
    if options.tensorboard is not None and writes:
        events = open_events(options.tensorboard, options.overwrite, options.resume)
    sizes = plan.layers.norms(jax.tree.map(jnp.ones_like, plan.problem.params)) ** 2
    return Observer(console, plan.layers, sizes, every, plan.steps, events)


def _show_epoch(
    progress: Progress, score: str, console: Console, observer: Observer | None
) -> None:
    from vanishjax.report import text

    record = progress.record
    names = ("loss", score, "validation_loss", f"validation_{score}")
    line = text.epoch_line(
        int(record["epoch"]),
        progress.epochs,
        {name: record[name] for name in names},
        progress.steps_per_second,
        progress.remaining_seconds,
    )
    console.print(line + (observer.line() if observer else ""), soft_wrap=True)
