"""The command line: `vanishjax compare`, `atlas`, `diagnose`, `cure`, `train` and `predict`.

  vanishjax train --data mnist --hidden 64,32 --optimizer adam --epochs 5 --batch-size 64
  vanishjax train --data mnist --optimizer sgd --momentum 0.9 --nesterov
  vanishjax train --data mnist --loss squared_error    # one linear output, scored by its MAE
  vanishjax train --epochs 50 --checkpoint-every 500 --out run  # saves the run as it goes
  vanishjax train --epochs 50 --checkpoint-every 500 --out run --resume    # after a kill or Ctrl-C
  vanishjax train --depth 12 --activation sigmoid --monitor                # a look at every layer
  vanishjax train --devices 4 --shard-state --accumulate 2                 # many devices
  vanishjax train --coordinator HOST:1234 --processes 2 --process-id 0 --out /shared/run
  vanishjax predict IMAGE.png                          # by the newest trained network
  vanishjax compare --activation tanh --depths 4,16,64 --optimizers adam,lion
  vanishjax atlas --inits lecun,critical_orthogonal --out atlas
  vanishjax diagnose --activation sigmoid --depth 24           # won't train, and why
  vanishjax diagnose net.py:make --strict --out report         # your own network, in any JAX
  vanishjax cure --activation sigmoid --depth 24    # the race as a picture, and the lines to copy
  vanishjax cure net.py:make --steps 200            # your own network; batches instead of a batch

`make()` returns `(loss_fn, params, batch)`, `(problem, batch)` or `(model, loss_fn, batch)`, with
an optimizer after it if you like. `--strict` gives status 1 to a network that won't train, or of
which that is unknown. Of several processes (the same command with another `--process-id` each)
every one computes its part of each batch and only the first writes; the folder must be shared. One
that dies or stalls ends the others with a line that names it, and `--resume` goes on, with as many
processes as there are then.

`--data` takes `digits`, `mnist`, `fashion_mnist` (downloaded once, verified at every use, or read
from `--data-dir`), an `.npz` file with `x` and `y`, or a folder of IDX files. Every command takes
`--json` and `--help`, which says what the JSON holds, and all that have something to draw `--out`;
one run at a time writes into a folder. Exit status: 0 done, 1 the run failed, 2 bad usage or input,
130 ended by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; `train`, `compare` and `atlas` keep what was
done then. An `atlas` that was killed goes on where it was when the same command is given again.
`--tensorboard DIR` writes scalars (`pip install tensorboardX`).
"""

import contextlib
import os
import signal
import stat
import sys
from collections.abc import Sequence

from vanishjax.cli import atlas, compare, cure, diagnose, predict, train
from vanishjax.cli.options import make_parser, warn
from vanishjax.training.interruption import Stop, interruptible, signal_of

__all__ = ["COMMANDS", "main"]

COMMANDS = (compare, atlas, diagnose, cure, train, predict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: What follows the program's name; `sys.argv` if None.

    Returns:
      The exit status: 0 done, 1 the run failed (or the network, under `diagnose --strict`), 2 bad
      usage or bad input, 130 ended by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    try:
        with interruptible(_leave_lost_terminal) as stop:
            return _status(arguments, stop)
    except KeyboardInterrupt as error:
        # A second one, while the first was being reported.
        return 128 + signal_of(error)


def _status(arguments: Sequence[str] | None, stop: Stop) -> int:
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as error:
        warn("interrupted")
        return 128 + signal_of(error)
    except BrokenPipeError:
        # Our reader has gone. What is still buffered must go somewhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _comes_of_interrupt(error):
            warn("interrupted")
            return 128 + stop.signal
        line, status = _reported(error)
        warn(f"error: {line}")
        return status


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Whether something made an error of its own of the interrupt, as compiled modules do."""
    met: set[int] = set()  # JAX makes circles of causes
    while error is not None and id(error) not in met:
        if isinstance(error, KeyboardInterrupt):
            return True
        met.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _reported(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit status; raises it if it's none that may come."""
    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", 1
    if isinstance(error, MemoryError | RuntimeError):
        # What JAX raises when it runs is a RuntimeError, and of many lines.
        reason = (str(error) or "out of memory").splitlines()[0]
        hint = "; make the network or the batch smaller" if "of memory" in reason.lower() else ""
        return f"{reason}{hint}", 1
    raise error


def _leave_lost_terminal(number: int) -> None:
    """After SIGHUP the terminal may be gone: each further line would be an error."""
    if number != getattr(signal, "SIGHUP", None):
        return
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                try:
                    os.write(stream, b"\n")
                except OSError:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser(COMMANDS)
    options = parser.parse_args(arguments)
    if options.version:
        from vanishjax.version import __version__

        print(f"vanishjax {__version__}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    return options.run(options)
