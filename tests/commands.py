"""Running a command in this process, and what came of it."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from vanishjax import cli


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self):
        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def error(self):
        """The one line on standard error."""
        assert self.err.endswith("\n")
        (line,) = self.err.splitlines()
        assert line.startswith("vanishjax"), line
        return line


def vanishjax(*arguments):
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
    return Ran(status, out.getvalue(), err.getvalue())


def read_json(path):
    return Ran(0, Path(path).read_text(), "").json


def check_documented(result, command, *others):
    """Asserts that a command's help names each key of its JSON and of the objects in its lists.

    Args:
      result: The JSON.
      command: The command's module.
      *others: Commands that its help refers to.
    """
    assert set(result) == set(command.FIELDS)
    for key, value in result.items():
        text = " ".join(one.FIELDS.get(key, "") for one in (command, *others))
        words = set(re.findall(r"\w+", text))
        for item in value if isinstance(value, list) else ():
            assert not isinstance(item, dict) or set(item) <= words, (key, set(item) - words)


_BEFORE_HEAVY_IMPORTS = """if True:
    import sys
    from vanishjax.cli import main

    for line in open("commands"):
        try:
            status = main(line.split())
        except SystemExit as error:
            status = error.code
        assert status in (0, 2), (line, status)
        heavy = {"jax", "flax", "optax", "matplotlib"} & set(sys.modules)
        assert not heavy, (line, heavy)
"""


def check_no_heavy_imports(commands):
    """Runs command lines that end early, from a file "commands" in the current folder."""
    Path("commands").write_text("\n".join(commands))
    subprocess.run(
        [sys.executable, "-c", _BEFORE_HEAVY_IMPORTS], check=True, capture_output=True, timeout=60
    )
