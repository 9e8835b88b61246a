"""`python -m vanishjax` is the command `vanishjax`."""

import sys

from vanishjax.cli import main

sys.exit(main())
