"""`python -m vanishjax` is the command `vanishjax`."""

import signal
import sys


def main() -> int:
    """Runs the command line; Ctrl-C outside of it, as in an import, ends without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vanishjax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
