"""A training run's checkpoints: their options, their folder, and what must be the same to go on."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanishjax.catalog import OPTIMIZERS
from vanishjax.cli.options import whole

if TYPE_CHECKING:
    from rich.console import Console

    from vanishjax.cli.observer import Observer
    from vanishjax.training import Checkpoints

FOLDER = "checkpoints"


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Options that say when a run is saved, and whether to go on with one."""
    group = parser.add_argument_group("checkpoints")
    group.add_argument(
        "--checkpoint-every",
        type=_steps_or_epoch,
        metavar="STEPS",
        help=f"save the whole run under {FOLDER}/ every so many steps, or after every 'epoch', at "
        "its end and on Ctrl-C, SIGTERM or SIGHUP",
    )
    group.add_argument(
        "--keep-checkpoints",
        type=whole(1),
        default=3,
        metavar="K",
        help="how many of the latest stay, beside the one with the least validation loss "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on, bit for bit, from the latest checkpoint of --out or of the newest run; give "
        "the same options again (more --epochs are fine)",
    )


def saves(options: argparse.Namespace) -> bool:
    """Whether the run makes checkpoints."""
    return options.resume or options.checkpoint_every is not None


@contextlib.contextmanager
def run_folder(
    command: str, options: argparse.Namespace, files: Sequence[str], writes: bool = True
) -> Iterator[Path]:
    """The folder of a run: a new one, or that of the run to go on with.

    Args:
      command: Its name.
      options: With those of `add_checkpoint_options` and `add_output_options`.
      files: Names of the files that the command will write.
      writes: Whether this process looks after the folder, and not another one.

    Yields:
      The folder, as `results_folder` does.

    Raises:
      ValueError: There is no run to go on with, or one lies where a new one shall begin.
    """
    from vanishjax.cli.output import latest_folder, results_folder

    out = options.out
    if not writes:
        yield Path(out)
        return
    if options.resume and out is None:
        newest = latest_folder(command, FOLDER)
        if newest is None:
            raise ValueError(
                "--resume: there is no run with checkpoints under runs/; name its folder with --out"
            )
        out = str(newest)
    elif out is not None and not options.resume and not options.overwrite:
        folder = Path(out, FOLDER)
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"--out {out}: already holds {FOLDER}; go on from them with --resume, replace them "
                "with --overwrite, or name another folder"
            )
    replace = options.overwrite
    if options.resume and Path(out, FOLDER).is_dir():
        from vanishjax.training import checkpoint_steps

        # Without a checkpoint to go on from it is another run, and replaces nothing.
        replace = replace or bool(checkpoint_steps(Path(out, FOLDER)))
    with results_folder(command, out, files, replace) as opened:
        yield opened


def make_checkpoints(
    options: argparse.Namespace,
    folder: Path,
    settings: Mapping[str, Any],
    observer: Observer | None,
    console: Console,
    writes: bool = True,
) -> Checkpoints | None:
    """What `fit` takes, and says on the console where the run starts.

    Args:
      options: With those of `add_checkpoint_options`.
      folder: Of the run.
      settings: All that decides the run; "epochs" may change where nothing depends on it.
      observer: Whose observations are part of the run.
      console: Where to say it.
      writes: Whether this is the process that may take older checkpoints away.

    Returns:
      The checkpoints, or None if the run makes none.
    """
    import jax
    from jax.experimental import multihost_utils

    from vanishjax.training import Checkpoints, checkpoint_steps

    place = folder / FOLDER
    if not options.resume and writes and place.is_dir():
        # Those of an older run, that may be replaced: they'd be taken for this one's.
        shutil.rmtree(place)
    if not saves(options):
        return None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("vanishjax: checkpoints")
    if options.resume:
        steps = checkpoint_steps(place)
        console.print(
            f"going on from step {steps[-1]:,} in {place}"
            if steps
            else f"no checkpoint in {place} yet: starting at the beginning",
            soft_wrap=True,
        )
    kept = {
        name: value
        for name, value in settings.items()
        # A rate that depends on how long the run is makes it another run with other epochs.
        if name != "epochs" or "total_steps" in OPTIMIZERS[settings["optimizer"]].told
    }
    return Checkpoints(
        place,
        every=None if options.checkpoint_every == "epoch" else options.checkpoint_every,
        keep=options.keep_checkpoints,
        resume=options.resume,
        settings=kept,
        also=observer.arrays if observer else None,
        on_resume=observer.restore if observer else None,
    )


def _steps_or_epoch(text: str) -> int | str:
    if text.strip().lower() in ("epoch", "epochs"):
        return "epoch"
    parse: Callable[[str], int] = whole(1)
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or 'epoch'") from error
