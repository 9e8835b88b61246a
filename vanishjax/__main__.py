"""`python -m vanishjax` is the command `vanishjax`."""

import signal
import sys


def main() -> int:
    """Runs the command line; Ctrl-C outside of it, as in an import, ends without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vanishjax import cli
    from vanishjax.cli.devices import leave_at_once

    status = cli.main()
    if status > 128:
        # A signal may have come while XLA compiled: its threads go on, and would meet what Python
        # tears down at its end.
        leave_at_once(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
