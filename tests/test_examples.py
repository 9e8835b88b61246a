"""The example scripts run, and what they print shows what they say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from vanishjax import examples

NAMES = sorted(path.stem for path in Path(examples.__path__[0]).glob("[!_]*.py"))


def printed(name, monkeypatch, capsys, *arguments):
    """What an example prints, run as `python -m` runs it."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    # The doctests of the package have imported it.
    monkeypatch.delitem(sys.modules, f"vanishjax.examples.{name}", raising=False)
    runpy.run_module(f"vanishjax.examples.{name}", run_name="__main__")
    return capsys.readouterr().out


def numbers(text):
    """The last number of each line that ends in one."""
    return [float(x) for x in re.findall(r"(\d\.\d+)$", text, re.MULTILINE)]


def test_mnist(monkeypatch, capsys):
    out = printed("mnist", monkeypatch, capsys, "--epochs", "10")
    assert min(numbers(out)) > 0.85, out
    assert [line.split("  ")[0] for line in out.splitlines()] == ["adam", "sgd, nesterov", "nadam"]


def test_transformer(monkeypatch, capsys):
    out = printed("transformer", monkeypatch, capsys, "--depth", "12", "--epochs", "2")
    assert out.startswith("Won't train: "), out
    assert "\nCured by " in out
    assert "\nparams = vj.initializers." in out
    assert numbers(out)[-1] > 0.8, out


def test_pinn(monkeypatch, capsys):
    out = printed("pinn", monkeypatch, capsys, "--steps", "300")
    assert out.startswith("Healthy: ")
    adam, muon = map(float, re.findall(r"wrong by (\S+)", out))
    assert adam < 0.01
    assert muon < adam / 3, out


def test_bfloat16(monkeypatch, capsys):
    out = printed("bfloat16", monkeypatch, capsys, "--epochs", "6")
    wide, plain, rounded, summed = numbers(out)
    assert plain > wide + 0.01, out
    assert abs(rounded - wide) < 0.005, out
    assert abs(summed - wide) < 0.005, out


def test_deep_chain(monkeypatch, capsys):
    out = printed("deep_chain", monkeypatch, capsys, "--depth", "100", "--epochs", "3")
    adam, deep = map(float, re.findall(r"accuracy (\S+)", out))
    assert adam < 0.2, out
    assert deep > 0.8, out


def test_every_example_is_tested_here_and_named_in_the_readme():
    assert {f"test_{name}" for name in NAMES} <= set(globals())
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(f"\n| `{name}` |" in readme for name in NAMES)


def test_the_list_names_every_example_and_imports_none():
    command = [sys.executable, "-X", "importtime", "-m", "vanishjax.examples"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for name in NAMES:
        assert f"python -m vanishjax.examples.{name}\n" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines()[1:])
    assert " jax\n" not in done.stderr
