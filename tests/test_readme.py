"""README's tables are what the JSON files say, and its commands are those that exist."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks import tables
from vanishjax.cli import COMMANDS
from vanishjax.cli.options import make_parser

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("name", tables.TABLES)
def test_table_is_rendered_from_its_json(name):
    block = re.search(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert block, f"README has no place for the table {name}"
    assert block[1] == tables.render(name), "run `python -m benchmarks.tables`"


def test_every_command_line_parses():
    lines = re.findall(r"^(?:.*\.venv/bin/)?(vanishjax .*)$", README, re.MULTILINE)
    lines += re.findall(r"`(vanishjax [a-z]+ --[^`]*)`", README)
    assert len(lines) >= 6
    for line in lines:
        options = make_parser(COMMANDS).parse_args(shlex.split(line, comments=True)[1:])
        assert options.command is not None


def test_every_transform_is_mentioned():
    from tests.factories import factories

    missing = [name for name in factories() if f"`{name}`" not in README]
    assert not missing, missing
