"""The pages' tables and pictures are what the JSON files say, their commands those that exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import __main__ as runner
from benchmarks import plots, tables
from benchmarks.record import RESULTS
from vanishjax import cli, optimizers, transforms
from vanishjax.cli import COMMANDS
from vanishjax.cli.options import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EVIDENCE = (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("name", tables.TABLES)
def test_table_is_rendered_from_its_json(name):
    page = tables.page_of(name)
    block = re.search(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", page.read_text(), re.DOTALL)
    assert block, f"{page} has no place for the table {name}"
    assert block[1] == tables.render(name), "run `python -m benchmarks.tables`"


def test_every_command_line_parses():
    lines = re.findall(r"^(?:.*\.venv/bin/)?(vanishjax .*)$", README, re.MULTILINE)
    lines += re.findall(r"`(vanishjax [a-z]+ --[^`]*)`", README)
    lines += re.findall(r"^  (vanishjax .*)$", cli.__doc__, re.MULTILINE)
    assert len(lines) >= 12
    for line in lines:
        options = make_parser(COMMANDS).parse_args(shlex.split(line, comments=True)[1:])
        assert options.command is not None


def test_every_transform_is_mentioned():
    from tests.factories import factories

    guide = f"{transforms.__doc__}\n{optimizers.__doc__}"
    missing = [name for name in factories() if f"`{name}`" not in guide]
    assert not missing, missing


@pytest.mark.parametrize("name", plots.PLOTS)
def test_picture_is_drawn_from_its_json(name):
    source, path = plots.files(name)
    with Image.open(path) as picture:
        assert picture.info["Source"] == plots.digest(source), "run `python -m benchmarks.plots`"
    assert path.stat().st_size < 160_000
    assert f"]({path.relative_to(ROOT / 'benchmarks')})" in EVIDENCE


def test_every_picture_and_command_of_the_benchmarks_exists():
    for folder, page in ((ROOT, README), (ROOT / "benchmarks", EVIDENCE)):
        for path in re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", page):
            assert folder.joinpath(path).is_file(), path
    lines = re.findall(r"^python -m benchmarks (.*)$", EVIDENCE, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        options = runner.make_parser().parse_args(shlex.split(line, comments=True))
        assert set(options.names) <= set(runner.BENCHMARKS), line
    named = set(re.findall(r"`benchmarks\.(\w+)`", EVIDENCE))
    assert named <= set(runner.BENCHMARKS), named


def test_a_drawing_bears_what_it_was_drawn_from(tmp_path):
    source = tmp_path / "headline.json"
    content = json.loads((RESULTS / "headline.json").read_text())
    source.write_text(json.dumps(content))
    path = plots.draw("headline", tmp_path)
    before = plots.digest(source)
    with Image.open(path) as picture:
        assert picture.info["Source"] == before
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    content["results"]["headline"][0]["test_accuracy"][0] += 0.01
    source.write_text(json.dumps(content))
    assert plots.digest(source) != before
