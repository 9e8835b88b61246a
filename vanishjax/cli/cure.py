"""Find out what makes a network train: try what fits the cause, keep what proves itself.

Each remedy runs for a few steps beside the untreated network, from the same parameters on the same
batches; it is kept if it improves both what ailed the network and the held-out loss.

An MLP, by the options of `vanishjax train`:
  vanishjax cure --activation sigmoid --depth 24
  vanishjax cure --activation relu --depth 64 --optimizer sgd --steps 200

A network of your own, in any JAX: a function without arguments that returns (loss_fn, params,
batches), (loss_fn, params, batches, tx) or (problem, batches), or (model, loss_fn, batches) with a
Flax nnx or Equinox model, as for `vanishjax diagnose`, where batches is a list of what loss_fn
takes, or one large batch, whose arrays are cut along their first axis:
  vanishjax cure net.py:make

The exit status is 1 if nothing helped.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanishjax.cli.network import add_target_options, load_examples, make_problem, network_options
from vanishjax.cli.options import COMMON_FIELDS, add_output_options, number, warn, whole

if TYPE_CHECKING:
    from vanishjax.problem import Problem
    from vanishjax.treatment import Treatment, Trial

NAME = "cure"
HELP = "find out what makes a sick network train"
RESULT_FILE, FIGURE_FILE = "cure.json", "cure.png"
FILES = (RESULT_FILE, FIGURE_FILE)
FIELDS = {
    "command": COMMON_FIELDS["command"],
    "accepted": "names of the remedies taken, in order; empty if nothing was wrong or helped",
    "meaning": "what each of them does, in words",
    "recipe": "the lines of Python that apply them",
    "trials": "one for each remedy, the untreated network first: remedy, outcome, reason, loss and "
    "accuracy on held-out data, rules (what is still wrong), steps, losses (of training)",
    "steps": "training steps of a trial",
    "cost": "of everything, in training steps",
    "notes": "what was left out, in words",
    "before": "the diagnosis before, as diagnose --help says",
    "after": "the diagnosis after",
    "seconds": COMMON_FIELDS["seconds"],
    "environment": COMMON_FIELDS["environment"],
}

BATCH_SIZE = 64


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    add_target_options(parser, f"examples a step (default: {BATCH_SIZE})")
    group = parser.add_argument_group("trials")
    group.add_argument(
        "--steps",
        type=whole(1),
        default=100,
        metavar="N",
        help="training steps of each trial (default: %(default)s)",
    )
    group.add_argument(
        "--total-steps",
        type=whole(1),
        metavar="N",
        help="length of the training to follow (default: ten trials)",
    )
    group.add_argument(
        "--remedy-rate",
        type=number(above=0.0),
        default=1e-3,
        metavar="RATE",
        help="learning rate of Adam-like optimizers among the remedies; Muon-like take ten times "
        "that (default: %(default)s)",
    )
    add_output_options(parser, f"{RESULT_FILE} and {FIGURE_FILE}")


def run(options: argparse.Namespace) -> int:
    """Tries the remedies, and prints and writes what came of it."""
    from vanishjax.cli.output import results_folder

    chosen = network_options(options)
    started = time.perf_counter()
    with results_folder(NAME, options.out, FILES, options.overwrite) as folder:
        if options.target is None:
            treatment = _treat(*_mlp(chosen), chosen.seed, options)
        else:
            treatment = _treat_target(options)
        _show(treatment, folder, options.json, time.perf_counter() - started)
    return 0 if treatment.accepted or not treatment.is_needed else 1


def _mlp(options: argparse.Namespace) -> tuple[Problem, Any]:
    size = options.batch_size or BATCH_SIZE
    dataset = load_examples(options, size)
    whole_set = (dataset.train.inputs, dataset.train.labels)
    batches = list(_cut(whole_set, size))
    return make_problem(options, dataset, batches[0]), batches


def _treat_target(options: argparse.Namespace) -> Treatment:
    from vanishjax.cli.target import looking_at, open_target

    with open_target(options.target) as target, looking_at(options.target):
        from vanishjax import optimizers

        problem, batches = target
        usual = problem.tx is None
        if usual:
            problem = dataclasses.replace(problem, tx=optimizers.adam(1e-3))
        if not isinstance(batches, list | Iterator):
            batches = list(_cut(batches, BATCH_SIZE))
        treatment = _treat(problem, batches, 0, options)
        if usual:
            warn(f"{options.target}: it returns no transform; trained with vanishjax.adam(1e-3)")
        return treatment


def _treat(problem: Problem, batches: Any, seed: int, options: argparse.Namespace) -> Treatment:
    import jax

    from vanishjax.cli.terminal import Terminal
    from vanishjax.foreign import listed
    from vanishjax.treatment import cure

    console = Terminal(stderr=True)
    with console.progress() as progress:
        number = progress.add_task("diagnosing", total=None)
        task = progress.tasks[number]

        def tell(trial: Trial) -> None:
            console.print(f"{trial.remedy}: {trial.outcome}", soft_wrap=True)
            # Of other rates more come than were known.
            progress.update(number, advance=1, total=max(task.completed + 1, task.total or 0))

        def announce(names: tuple[str, ...], waiting: int) -> None:
            total = task.completed + len(names) + waiting
            progress.update(number, description=listed(names, 2), total=total)

        return cure(
            problem,
            batches,
            steps=options.steps,
            total_steps=options.total_steps,
            learning_rate=options.remedy_rate,
            key=jax.random.key(seed),
            on_trial=tell,
            on_wave=announce,
        )


def _cut(batch: Any, size: int) -> Iterator[Any]:
    """Batches of a size from a large one, or sixteen of a small one's."""
    import jax

    arrays = [x for x in jax.tree.leaves(batch) if getattr(x, "ndim", 0)]
    length = min((len(x) for x in arrays), default=0)
    if length < 3:
        raise ValueError(
            f"cure needs several batches: a list of them, or a large one to cut; got {length} "
            "examples"
        )
    size = min(size, max(1, length // 16))
    for start in range(0, length - size + 1, size):
        yield jax.tree.map(
            lambda x, at=start: x[at : at + size] if getattr(x, "ndim", 0) else x, batch
        )


def _show(treatment: Treatment, folder: Path, as_json: bool, seconds: float) -> None:
    from vanishjax.cli.output import environment, to_json, write_each, write_json
    from vanishjax.cli.terminal import Terminal
    from vanishjax.training.interruption import deferred

    result = {"command": NAME, **treatment.to_dict(), "seconds": seconds}
    result["environment"] = environment()
    with deferred():
        write_each(
            lambda: write_json(folder / RESULT_FILE, result),
            lambda: treatment.plot(folder / FIGURE_FILE),
        )
    if as_json:
        print(to_json(result))
        return
    console = Terminal()
    console.print(str(treatment), soft_wrap=True)
    console.print(f"\nsaved {RESULT_FILE} and {FIGURE_FILE} in {folder}", soft_wrap=True)
    if treatment.is_needed and not treatment.accepted:
        warn("no remedy helped: the network needs another architecture, data or loss")
