"""The command line: `vanishjax compare`, `atlas`, `diagnose`, `cure`, `train` and `predict`."""

import os
import sys
from collections.abc import Sequence

from vanishjax.cli import atlas, compare, cure, diagnose, predict, train
from vanishjax.cli.options import make_parser, warn

COMMANDS = (compare, atlas, diagnose, cure, train, predict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: What follows the program's name; `sys.argv` if None.

    Returns:
      The exit status: 0 done, 1 the run failed (or the network, under `diagnose --strict`), 2 bad
      usage or bad input, 130 interrupted.
    """
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        warn("interrupted")
        return 130
    except BrokenPipeError:
        # Our reader has gone. What is still buffered must go somewhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        warn(f"error: {error}")
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        warn(f"error: {place}{error.strerror or error}")
        return 1
    except (MemoryError, RuntimeError) as error:
        # What JAX raises when it runs is a RuntimeError, and of many lines.
        reason = (str(error) or "out of memory").splitlines()[0]
        hint = "; make the network or the batch smaller" if "of memory" in reason.lower() else ""
        warn(f"error: {reason}{hint}")
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser(COMMANDS)
    options = parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print(f"vanishjax {version('vanishjax')}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    return options.run(options)
