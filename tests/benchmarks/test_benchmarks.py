"""The runner of the benchmarks, on benchmarks that do next to nothing."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import record

FOLDER = Path(record.__file__).parent
WRITES_ITS_ARGUMENTS = '''"""What {name} measures.

More of it.
"""
import json, pathlib, sys
pathlib.Path(__file__).with_suffix(".ran").write_text(json.dumps(sys.argv[1:]))
sys.exit({status})
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Benchmarks of which the second fails."""
    found = {
        "first": runner.Benchmark(),
        "second": runner.Benchmark(),
        "data": runner.Benchmark(data=True, needs_data=True),
        "either": runner.Benchmark(data=True),
        "more": runner.Benchmark(package="no_such_package"),
    }
    folder = tmp_path / "stand_ins"
    folder.mkdir()
    for name in found:
        text = WRITES_ITS_ARGUMENTS.format(name=name, status=3 if name == "second" else 0)
        folder.joinpath(f"{name}.py").write_text(text)
    monkeypatch.setattr(runner, "BENCHMARKS", found)
    monkeypatch.setattr(runner, "PACKAGE", "stand_ins")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def ran(package):
    return {path.stem: json.loads(path.read_text()) for path in sorted(package.glob("*.ran"))}


def test_a_failure_stops_no_other_and_is_named(package, capfd):
    assert runner.main([]) == 1
    assert ran(package) == {"first": [], "second": [], "either": []}
    out, err = capfd.readouterr()
    assert err == "1 of 5 failed: second\n"
    lines = out.splitlines()
    assert lines[0] == "[1/5] first"
    assert lines[1].startswith("[1/5] first: done after ")
    assert lines[3].startswith("[2/5] second: failed with status 3 after ")
    assert lines[4].startswith("[3/5] data: skipped, it needs --data-dir")
    assert lines[-1] == "[5/5] more: skipped, it needs no_such_package: pip install no_such_package"


def test_options_are_passed_on(package):
    assert runner.main(["first", "data", "either", "--data-dir", "d", "--out", "o"]) == 0
    rest = ["--out", "o", "--data-dir", "d"]
    assert ran(package) == {"first": ["--out", "o"], "data": rest, "either": rest}


def test_quick(package):
    assert runner.main(["either", "first", "first", "--quick"]) == 0
    assert ran(package) == {"either": ["--quick"], "first": ["--quick"]}


def test_list_runs_nothing(package, capsys):
    assert runner.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["first", "What first measures."]
    assert lines[2].endswith("(needs --data-dir)")
    assert len(lines) == 5
    assert ran(package) == {}


def test_an_unknown_name_is_bad_usage(package, capsys):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["first", "typo"])
    assert "no benchmark typo; there are first, second" in capsys.readouterr().err
    assert ran(package) == {}


def test_every_script_that_writes_results_is_known():
    scripts = {
        path.stem
        for path in FOLDER.glob("*.py")
        if any(
            isinstance(node, ast.Call) and ast.unparse(node.func) in ("record.write", "measure")
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert scripts == set(runner.BENCHMARKS)
    assert all(len(runner.summary(name).split()) > 4 for name in scripts)


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [([], record.RESULTS), (["--quick"], record.QUICK), (["--quick", "--out", "o"], Path("o"))],
)
def test_quick_results_never_replace_those_that_are_quoted(arguments, folder):
    assert record.QUICK != record.RESULTS
    assert record.parser("").parse_args(arguments).out == folder


def test_what_differs_from_the_commit_is_said(tmp_path, monkeypatch):
    def git(*arguments):
        user = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", *user, *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    files = ["vanishjax/code.py", "benchmarks/record.py", "benchmarks/results/one.json"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("1")
    git("init")
    git("add", "-A")
    git("commit", "-m", "all")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "benchmarks/record.py"))
    for name, differs in zip(files, (True, True, False), strict=True):
        assert not record.commit()["uncommitted_changes"]
        (tmp_path / name).write_text("2")
        assert record.commit()["uncommitted_changes"] == differs, name
        (tmp_path / name).write_text("1")
