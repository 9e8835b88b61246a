"""What a training run leaves: the model, the result and the pictures, and what is said of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanishjax.cli.options import COMMON_FIELDS, warn
from vanishjax.cli.plan import Plan, arrays_of

if TYPE_CHECKING:
    from vanishjax.cli.observer import Observer
    from vanishjax.training import History

NAME = "train"
MODEL_FILE, RESULT_FILE, CURVES_FILE = "model.safetensors", "train.json", "curves.png"
FILES = (MODEL_FILE, RESULT_FILE, CURVES_FILE)
MONITOR_FILE = "monitor.png"
FIELDS = {
    "command": COMMON_FIELDS["command"],
    "settings": "the network, the data and the optimizer",
    "examples": "number of train, validation and test examples",
    "parameters": "how many numbers are learned",
    "history": "one value an epoch: epoch, loss, validation_loss, accuracy or mean_absolute_error "
    "and the same with validation_, seconds, steps_per_second",
    "interrupted": COMMON_FIELDS["interrupted"],
    "test_loss": "at the end",
    "test_accuracy": "at the end; null for --loss squared_error",
    "test_mean_absolute_error": "at the end; null for --loss cross_entropy",
    "monitor": "null without --monitor; else every, layers (names), steps (observed), final (the "
    "last observation, a value a layer) and findings (as diagnose --help says)",
    "environment": COMMON_FIELDS["environment"],
}


def write_results(
    plan: Plan, params: Any, history: History, observer: Observer | None, folder: Path
) -> dict[str, Any]:
    """Writes the model, the result and the pictures, each whatever becomes of the others."""
    from vanishjax import report
    from vanishjax.cli.output import environment, write_each, write_json
    from vanishjax.model_file import TrainedModel, save_model
    from vanishjax.report import plots
    from vanishjax.training import make_evaluate

    dataset, hidden = plan.dataset, plan.architecture["hidden"]
    title = f"{plan.options.optimizer} on {dataset.name}"
    description = {
        "data": dataset.name,
        "image_shape": dataset.image_shape,
        "pixel_max": dataset.pixel_max,
        "classes": dataset.classes,
        "normalization": dataset.normalization.to_dict(),
        "framing": dataset.framing and dataset.framing.to_dict(),
    }
    parts = ("train", "validation", "test")
    result: dict[str, Any] = {
        "command": NAME,
        "settings": plan.settings,
        "examples": {part: len(getattr(dataset, part)) for part in parts},
        "parameters": plan.parameters,
        "history": history.to_dict(),
        "interrupted": history.interrupted,
        "test_loss": None,
        "test_accuracy": None,
        "test_mean_absolute_error": None,
        "monitor": observer.result() if observer else None,
        "environment": environment(),
    }

    def score() -> None:
        scores = make_evaluate(plan.loss_fn, has_aux=True)(params, arrays_of(dataset.test))
        result.update({f"test_{name}": value for name, value in scores.items()})

    def draw_curves() -> None:
        widths = ",".join(map(str, hidden))
        curves = history.to_dict()
        plots.learning_curves(curves, folder / CURVES_FILE, f"{title}, hidden layers {widths}")

    def draw_monitor() -> None:
        if observer is None:
            # One of an older run, that may be replaced: it would lie beside this run's result.
            (folder / MONITOR_FILE).unlink(missing_ok=True)
            return
        widths = ",".join(map(str, hidden))
        if len(hidden) > 3 and len(set(hidden)) == 1:
            widths = f"{len(hidden)} x {hidden[0]}"
        every = observer.every
        caption = (
            f"{title}, {plan.options.activation} layers {widths}, "
            f"observed every {every} step{'s' * (every != 1)}"
        )
        record = {**result["monitor"], **observer.course()}
        report.plot_monitor(record, folder / MONITOR_FILE, caption)

    model = TrainedModel(params, plan.architecture, description)
    write_each(
        lambda: save_model(folder / MODEL_FILE, model),
        score,
        lambda: write_json(folder / RESULT_FILE, result),
        draw_curves,
        draw_monitor,
    )
    return result


def show_results(plan: Plan, result: dict[str, Any], folder: Path, *, observed: bool) -> None:
    """Says how it went and what comes next."""
    from vanishjax import report
    from vanishjax.cli.output import to_json
    from vanishjax.foreign import printable

    if plan.options.json:
        print(to_json(result))
        return
    score = result[f"test_{plan.score}"]
    print(f"test loss {result['test_loss']:.4f}  test {plan.score.replace('_', ' ')} {score:.4f}")
    found = observed and result["monitor"]["findings"]
    if observed:
        print(report.monitor_summary(result["monitor"]))
    files = [*FILES, MONITOR_FILE] if observed else FILES
    place = printable(str(folder))
    print(f"saved {', '.join(files)} in {place}")
    if plan.options.tensorboard is not None:
        print(f"next: tensorboard --logdir {printable(plan.options.tensorboard)}")
    if found:
        print("next: vanishjax diagnose, or cure, with the same options for the network and data")
    elif plan.dataset.image_shape is not None and plan.dataset.classes is not None:
        print(f"next: vanishjax predict IMAGE.png --model {place}")


def exit_status(history: History, signal: int, epochs: int, *, saved: bool) -> int:
    """The exit status, with a word on why it isn't 0."""
    if history.interrupted:
        warn(
            f"interrupted in epoch {int(history.last['epoch'])} of {epochs}; what was done is saved"
            + (", go on with --resume" if saved else "")
        )
    elif signal:
        warn(f"interrupted after the last of {epochs} epochs; everything is saved")
    if signal:
        return 128 + signal
    if not math.isfinite(history.last["loss"]):
        warn(f"error: the loss became {history.last['loss']}; try a smaller --learning-rate")
        return 1
    return 0
