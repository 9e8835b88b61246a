"""The command line: `vanishjax train`, `compare` and `predict`."""

import sys
from collections.abc import Sequence

from vanishjax.cli import compare, predict, train
from vanishjax.cli.options import make_parser, warn

COMMANDS = (compare, train, predict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: What follows the program's name; `sys.argv` if None.

    Returns:
      The exit status: 0 done, 1 the run failed, 2 bad usage or bad input, 130 interrupted.
    """
    parser = make_parser(COMMANDS)
    options = parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print(f"vanishjax {version('vanishjax')}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    try:
        return options.run(options)
    except KeyboardInterrupt:
        warn("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; its closing is no failure of ours.
        sys.stderr.close()
        return 1
    except ValueError as error:
        warn(f"error: {error}")
        return 2
    except OSError as error:
        warn(f"error: {error.filename or ''}: {error.strerror or error}".replace(": : ", ": "))
        return 1
