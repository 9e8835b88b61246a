"""Train an MLP, score it on test data, and save it with its learning curves.

The article's runs:
  vanishjax train --data mnist --hidden 64,32 --optimizer adam --epochs 5 --batch-size 64
  vanishjax train --data mnist --optimizer sgd --momentum 0.9 --nesterov
  vanishjax train --data mnist --optimizer nadam
  vanishjax train --data mnist --loss squared_error     (one linear output, scored by its MAE)

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
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vanishjax.catalog import OPTIMIZERS
from vanishjax.cli.devices import (
    add_device_options,
    check_device_options,
    joined_processes,
    layout_arguments,
)
from vanishjax.cli.optimizer import (
    add_optimizer_options,
    check_optimizer_options,
    described_optimizer,
)
from vanishjax.cli.options import (
    add_data_options,
    add_network_options,
    add_output_options,
    add_width_options,
    file_path,
    hidden_widths,
    one_of,
    warn,
    whole,
)
from vanishjax.cli.resume import add_checkpoint_options, make_checkpoints, run_folder, saves

if TYPE_CHECKING:
    from vanishjax.training.data import Dataset

NAME = "train"
HELP = "train a network and save it"
MODEL_FILE, RESULT_FILE, CURVES_FILE = "model.safetensors", "train.json", "curves.png"
FILES = (MODEL_FILE, RESULT_FILE, CURVES_FILE)
MONITOR_FILE = "monitor.png"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    add_network_options(parser, activation="relu")
    add_width_options(parser)
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
    add_output_options(parser, f"{MODEL_FILE}, {RESULT_FILE} and {CURVES_FILE}")


def run(options: argparse.Namespace) -> int:
    """Trains, scores and saves."""
    hidden, epochs = hidden_widths(options), options.epochs or (1 if options.quick else 5)
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
        return _train(options, hidden, epochs, every, dataset, folder, writes)


def _train(
    options: argparse.Namespace,
    hidden: tuple[int, ...],
    epochs: int,
    every: int | None,
    dataset: Dataset,
    folder: Path,
    writes: bool,
) -> int:
    import jax
    import jax.numpy as jnp

    from vanishjax import losses, report
    from vanishjax.cli.observation import Observer, open_events
    from vanishjax.cli.output import environment, to_json, write_each, write_json
    from vanishjax.cli.terminal import Terminal
    from vanishjax.foreign import printable
    from vanishjax.health import monitor, read_health
    from vanishjax.layers import find_layers
    from vanishjax.model_file import TrainedModel, save_model
    from vanishjax.models import mlp_problem
    from vanishjax.report import plots, text
    from vanishjax.training import Progress, TrainState, fit, gathered, make_evaluate
    from vanishjax.training.interruption import deferred

    console = Terminal(stderr=True, quiet=not writes)
    outputs = dataset.classes or math.prod(dataset.train.labels.shape[1:])
    problem = mlp_problem(
        dataset.train.inputs.shape[1],
        hidden,
        outputs,
        activation=options.activation,
        residual=options.residual,
        loss=options.loss,
        key=jax.random.key(options.seed),
        dtype=options.dtype,
        param_dtype=options.dtype,
    )
    train, validation, test = (
        (part.inputs, part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    )
    first_batch = jax.tree.map(lambda a: a[: options.batch_size], train)
    layers = find_layers(problem.params, problem.loss_fn, first_batch)
    steps = epochs * -(-len(dataset.train) // options.batch_size)
    tx = described_optimizer(options, layers, steps)
    score_name = "mean_absolute_error" if dataset.classes is None else "accuracy"
    score_fn, loss_of_outputs = getattr(losses, score_name), getattr(losses, options.loss)

    predict_fn: Any = problem.predict_fn

    def loss_fn(params: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs, labels = batch
        predicted = predict_fn(params, inputs)
        return loss_of_outputs(predicted, labels), {score_name: score_fn(predicted, labels)}

    def on_epoch(progress: Progress) -> None:
        record = progress.record
        names = ("loss", score_name, "validation_loss", f"validation_{score_name}")
        line = text.epoch_line(
            int(record["epoch"]),
            progress.epochs,
            {name: record[name] for name in names},
            progress.steps_per_second,
            progress.remaining_seconds,
        )
        console.print(line + (observer.line() if observer else ""), soft_wrap=True)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    console.print(
        f"{dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} validation,"
        f" {len(dataset.test):,} test examples; {parameters:,} parameters; {options.optimizer}",
        soft_wrap=True,
    )
    observer = None
    if every is not None:
        events = None
        if options.tensorboard is not None and writes:
            events = open_events(options.tensorboard, options.overwrite, options.resume)
        steps = epochs * math.ceil(len(dataset.train) / options.batch_size)
        sizes = layers.norms(jax.tree.map(jnp.ones_like, problem.params)) ** 2
        observer = Observer(console, layers, sizes, every, steps, events)
        tx = monitor(tx, layers=layers, every=every)
    architecture = {
        "in_features": dataset.train.inputs.shape[1],
        "hidden": list(hidden),
        "classes": outputs,
        "activation": options.activation,
        "residual": options.residual,
        "scan": "hidden_stack" in problem.params,
        "dtype": options.dtype,
        "param_dtype": options.dtype,
    }
    settings = {**architecture, **_settings(options, epochs)}
    # One device or many: the same run but for the last digit.
    decisive = {**settings, "monitor_every": every}
    checkpoints = make_checkpoints(options, folder, decisive, observer, console, writes)
    # From here on a signal is a note: what was trained is written, however late it comes.
    with deferred() as asked:
        with observer or contextlib.nullcontext():
            state, history = fit(
                loss_fn,
                tx,
                TrainState.create(problem.params, tx, jax.random.key(options.seed)),
                train,
                epochs=epochs,
                batch_size=options.batch_size,
                validation=validation,
                has_aux=True,
                on_epoch=on_epoch,
                observe=(lambda state: (state.step, read_health(state))) if observer else None,
                on_observed=observer.take if observer else None,
                checkpoints=checkpoints,
                **layout_arguments(options),
            )
        params = gathered(state.params)
        if not writes:
            return 128 + history.signal if history.signal else 0
        description = {
            "data": dataset.name,
            "image_shape": dataset.image_shape,
            "pixel_max": dataset.pixel_max,
            "classes": dataset.classes,
            "normalization": dataset.normalization.to_dict(),
            "framing": dataset.framing and dataset.framing.to_dict(),
        }
        result: dict[str, Any] = {
            "command": NAME,
            "settings": settings,
            "examples": {
                "train": len(train[0]),
                "validation": len(validation[0]),
                "test": len(test[0]),
            },
            "parameters": parameters,
            "history": history.to_dict(),
            "interrupted": history.interrupted,
            "test_loss": None,
            "test_accuracy": None,
            "test_mean_absolute_error": None,
            "monitor": observer.result() if observer else None,
            "environment": environment(),
        }

        def score() -> None:
            scores = make_evaluate(loss_fn, has_aux=True)(params, test)
            result.update({f"test_{name}": value for name, value in scores.items()})

        def draw_monitor() -> None:
            if observer is None:
                # One of an older run, that may be replaced: it would lie beside this run's result.
                (folder / MONITOR_FILE).unlink(missing_ok=True)
                return
            widths = ",".join(map(str, hidden))
            if len(hidden) > 3 and len(set(hidden)) == 1:
                widths = f"{len(hidden)} x {hidden[0]}"
            caption = (
                f"{options.optimizer} on {dataset.name}, {options.activation} layers {widths}, "
                f"observed every {every} step{'s' * (every != 1)}"
            )
            record = {**result["monitor"], **observer.course()}
            report.plot_monitor(record, folder / MONITOR_FILE, caption)

        title = f"{options.optimizer} on {dataset.name}, hidden layers {','.join(map(str, hidden))}"
        model = TrainedModel(params, architecture, description)
        write_each(
            lambda: save_model(folder / MODEL_FILE, model),
            score,
            lambda: write_json(folder / RESULT_FILE, result),
            lambda: plots.learning_curves(history.to_dict(), folder / CURVES_FILE, title),
            draw_monitor,
        )
    if options.json:
        print(to_json(result))
    else:
        print(
            f"test loss {result['test_loss']:.4f}  test {score_name.replace('_', ' ')} "
            f"{result[f'test_{score_name}']:.4f}"
        )
        if observer:
            print(report.monitor_summary(result["monitor"]))
        files = [*FILES, MONITOR_FILE] if observer else FILES
        print(f"saved {', '.join(files)} in {printable(str(folder))}")
        if options.tensorboard is not None:
            print(f"next: tensorboard --logdir {printable(options.tensorboard)}")
        if dataset.image_shape is not None and dataset.classes is not None:
            print(f"next: vanishjax predict IMAGE.png --model {printable(str(folder))}")
    number = history.signal or asked.signal
    if history.interrupted:
        warn(
            f"interrupted in epoch {int(history.last['epoch'])} of {epochs}; what was done is saved"
            + (", go on with --resume" if saves(options) else "")
        )
    elif number:
        warn(f"interrupted after the last of {epochs} epochs; everything is saved")
    if number:
        return 128 + number
    if not math.isfinite(history.last["loss"]):
        warn(f"error: the loss became {history.last['loss']}; try a smaller --learning-rate")
        return 1
    return 0


def _settings(options: argparse.Namespace, epochs: int) -> dict[str, Any]:
    return {
        "data": options.data,
        "loss": options.loss,
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate or OPTIMIZERS[options.optimizer].learning_rate,
        "momentum": options.momentum,
        "nesterov": options.nesterov,
        "weight_decay": options.weight_decay,
        "clip_norm": options.clip_norm,
        "epochs": epochs,
        "batch_size": options.batch_size,
        "validation_split": options.validation_split,
        "seed": options.seed,
    }
