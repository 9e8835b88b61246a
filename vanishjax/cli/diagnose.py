"""Say before the first step whether a network will train, which layers starve, why, and what helps.

An MLP, by the options of `vanishjax train`, whose first step it looks at:
  vanishjax diagnose --activation sigmoid --depth 24
  vanishjax diagnose --activation sigmoid --depth 24 --init critical_orthogonal
  vanishjax diagnose --data mnist --hidden 64,32 --optimizer sgd --out report

A network of your own, in any JAX: a function without arguments that returns (loss_fn, params,
batch), (loss_fn, params, batch, tx) or (problem, batch), where loss_fn(params, batch) is a scalar;
or (model, loss_fn, batch) or (model, loss_fn, batch, tx) with a Flax nnx or Equinox model and
loss_fn(model, batch). Of a list of batches, as for `vanishjax cure`, it looks at the first:
  vanishjax diagnose net.py:make
  vanishjax diagnose package.module:make --strict    (status 1 unless healthy)
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanishjax.cli.network import (
    add_target_options,
    load_examples,
    make_problem,
    network_options,
    progress,
)
from vanishjax.cli.options import file_path, warn, whole

if TYPE_CHECKING:
    from vanishjax.health import Diagnosis

NAME = "diagnose"
HELP = "say whether a network will train, and if not, why"
RESULT_FILE, FIGURE_FILE = "diagnosis.json", "diagnosis.png"
FILES = (RESULT_FILE, FIGURE_FILE)
FIELDS = {
    "verdict": "healthy, sick or unknown",
    "healthy": "whether the verdict is healthy",
    "findings": "the worst first: rule, severity (critical, warning or note), layers, evidence "
    "(what was measured, and its limit), cause, remedies with their remedy_ids and code, where "
    "(line and operation, for NaN)",
    "probe": "what was measured: names of the layers, and a value for each, such as gradient_rms "
    "and log_chi; help(vanishjax.Probe) explains all",
    "effectiveness": "how much of its gradient the optimizer's first step uses, a value a layer",
    "learning": "null without --steps; else steps, the loss at start and end, and learns",
    "is_moved": "whether it is of parameters that the optimizer moves to in its first step",
    "relative_step": "one step of the median kernel that moves, as a part of its usual size",
    "decay": "what weight decay takes of every kernel in a step",
}

BATCH_SIZE = 256
_COMPILING = "compiling the network"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    add_target_options(parser, f"training examples to look at (default: {BATCH_SIZE}, or all)")
    parser.add_argument(
        "--steps",
        type=whole(1),
        metavar="N",
        help="also train so many steps on these examples, and say whether it learns (judged by the "
        "second batch, where the function returns a list)",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=file_path,
        metavar="DIR",
        help=f"folder for {RESULT_FILE} and {FIGURE_FILE} (default: nothing is written)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace results that --out already holds"
    )
    group.add_argument(
        "--json", action="store_true", help="print the result as JSON on standard output"
    )
    group.add_argument(
        "--strict", action="store_true", help="exit with status 1 unless the network is healthy"
    )


_COLORS = {"healthy": "bold green", "sick": "bold red", "unknown": "bold yellow"}


def run(options: argparse.Namespace) -> int:
    """Looks at the network, and prints and writes what was found."""
    chosen = network_options(options)
    if options.overwrite and options.out is None:
        raise ValueError("--overwrite goes with --out: without it nothing is written")

    with contextlib.ExitStack() as stack:
        folder = None
        if options.out is not None:
            from vanishjax.cli.output import results_folder

            folder = stack.enter_context(
                results_folder(NAME, options.out, FILES, options.overwrite)
            )
        if options.target is None:
            verdict = _diagnose_mlp(chosen, options.steps)
        else:
            verdict = _diagnose_target(options.target, options.steps)
        _show(verdict, folder, options.json)
    return 1 if options.strict and not verdict.healthy else 0


def _diagnose_mlp(options: argparse.Namespace, steps: int | None) -> Diagnosis:
    size = options.batch_size or BATCH_SIZE
    # A small data set is only too small for a batch asked for.
    dataset = load_examples(options, options.batch_size or 1)
    with progress(_COMPILING):
        from vanishjax.health import diagnose

        batch = (dataset.train.inputs[:size], dataset.train.labels[:size])
        problem = make_problem(options, dataset, batch)
        return diagnose(problem.loss_fn, problem.params, batch, problem.tx, steps=steps)


def _diagnose_target(name: str, steps: int | None) -> Diagnosis:
    from vanishjax.cli.target import TargetError, looking_at, open_target

    with progress(_COMPILING), open_target(name) as target:
        from vanishjax.health import diagnose

        def look(batch: Any, held_out: Any = None) -> Diagnosis:
            with looking_at(name):
                return diagnose(target.problem, batch, steps=steps, held_out=held_out)

        batch = target.batch
        try:
            return look(batch)
        except TargetError:
            if not isinstance(batch, list) or not batch:
                raise
            # What `vanishjax cure` takes may be a list of batches. If none of them can be looked
            # at either, the first reason counts.
            with contextlib.suppress(TargetError):
                # One batch can be learned by heart: another one tells.
                verdict = look(*batch[: 1 if steps is None else 2])
                judged = steps is not None and len(batch) > 1
                by = ", and judged the steps by the second" if judged else ""
                warn(f"{name}: looked at the first of its list of {len(batch)} batches{by}")
                return verdict
            raise


def _show(verdict: Diagnosis, folder: Path | None, as_json: bool) -> None:
    from vanishjax.cli.output import to_json, write_json
    from vanishjax.cli.terminal import Terminal

    result = verdict.to_dict()
    if folder is not None:
        write_json(folder / RESULT_FILE, result)
        verdict.plot(folder / FIGURE_FILE)
    if as_json:
        print(to_json(result))
        return
    console = Terminal()
    text = console.render_str(str(verdict))
    text.highlight_regex(r"\A.*", _COLORS[verdict.verdict])
    text.highlight_regex(r"(?m)^✗.*", "red")
    text.highlight_regex(r"(?m)^!.*", "yellow")
    console.print(text, soft_wrap=True)
    if folder is not None:
        console.print(f"\nsaved {RESULT_FILE} and {FIGURE_FILE} in {folder}", soft_wrap=True)
