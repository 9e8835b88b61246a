"""Foreign text on a terminal: no name, path or message is taken for markup or for a command."""

import io
import re
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import vanishjax as vj
from tests.commands import vanishjax
from vanishjax import foreign, report
from vanishjax.cli.options import make_parser, warn
from vanishjax.cli.terminal import Terminal
from vanishjax.layers import find_layers
from vanishjax.report import atlas_text, plots, text
from vanishjax.training.data import DataError

# What a terminal obeys, and what hides or turns text.
HOSTILE = "a\x1b[31m\x1b]0;t\x07b\r\x08\x7f\x9b2J\u202e\u2066\u200bc\ud800\u2028[/x][red]:smile:"
CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
SHOWN = r"a\x1b[31m\x1b]0;t\x07b\r\x08\x7f\x9b2J\u202e\u2066\u200bc\ud800\u2028[/x][red]:smile:"


def test_every_control_character_becomes_an_escape():
    assert foreign.printable(HOSTILE) == SHOWN
    assert foreign.printable("Überprüfung 数字 é ✓ $x$") == "Überprüfung 数字 é ✓ $x$"
    every = "".join(map(chr, range(0x3000)))
    assert not CONTROLS.search(foreign.printable(every))


def test_a_line_is_never_longer_than_asked_for():
    assert foreign.printable("\x00" * 100, most=50) == foreign.printable("\x00" * 90, most=50)
    for most in (3, 20, 21):
        assert len(foreign.printable("\x00a" * 100, most)) == most
    assert len(foreign.one_line("a\nb" * 100_000)) == foreign.LONGEST_LINE
    assert len(foreign.listed(["n" * 70_000] * 20_000)) < 600


def shown_by(renderable, **console):
    target = io.StringIO()
    Console(file=target, width=600, **console).print(renderable)
    return target.getvalue()


def test_a_terminal_takes_no_text_for_markup(capsys):
    Terminal().print(f"saved in {HOSTILE}\nand more", soft_wrap=True)
    assert capsys.readouterr().out == f"saved in {SHOWN}\nand more\n"
    warn(HOSTILE)
    assert (
        capsys.readouterr().err
        == f"vanishjax: {SHOWN.replace(chr(92) + 'u2028', ' ').replace(chr(92) + 'r', ' ')}\n"
    )


def test_usage_errors_are_one_clean_line(capsys):
    parser = make_parser(())
    for argument in (HOSTILE, "--" + HOSTILE, "x" * 100_000):
        with pytest.raises(SystemExit):
            parser.parse_args([argument])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.isprintable()
        assert len(line) < 1100


def comparison(name):
    cell = {
        "optimizer": name, "depth": 2, "learning_rate": 0.003, "validation_accuracy": [0.9, 0.2],
        "test_accuracy": [0.9, 0.2], "first_layer_gradient": 1e-3, "last_layer_gradient": 1e-2,
    }  # fmt: skip
    return {
        "settings": {"trainable_accuracy": 0.5, "data": name, "activation": name},
        "cells": [cell],
        "trainable_depth": {name: 2},
    }


def test_tables_show_names_as_they_are():
    """On any console, a reader's own too, which obeys markup."""
    atlas = {
        "settings": {"optimizers": [HOSTILE], "depths": [2], "trainable_accuracy": 0.5},
        "trainable_depth": {"relu": {"he": {HOSTILE: 2}}},
        "predicted_depth": {"relu": {"he": {}}},
        "reaches": {},
    }
    for table in (
        text.compare_table(comparison(HOSTILE)),
        text.probability_table([0.2, 0.8], [HOSTILE, "b"]),
        text.probability_table([[0.2, 0.8], [0.7, 0.3]], [HOSTILE, "b"]),
        atlas_text.atlas_table(atlas),
    ):
        shown = shown_by(table)
        assert SHOWN in shown
        assert not CONTROLS.search(shown)


def test_a_verdict_keeps_its_color():
    assert "\x1b[32mtrains\x1b[0m 1/2" in shown_by(
        text.compare_table(comparison("adam")), force_terminal=True, color_system="standard"
    )


def hostile_network():
    params = {HOSTILE: {"kernel": jnp.full((4, 8), jnp.nan)}, "out": jnp.ones((8, 2))}

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch @ params[HOSTILE]["kernel"]) @ params["out"]) ** 2)

    return loss_fn, params, jnp.ones((3, 4))


def test_a_diagnosis_shows_a_parameters_name_as_it_is():
    shown = str(vj.diagnose(*hostile_network()))
    assert SHOWN.split("[/x]")[0] in shown.replace("\n    ", "")
    assert not CONTROLS.search(shown)


def test_a_treatment_and_a_monitor_do():
    finding = {
        "rule": "dead_units", "severity": "critical", "layers": [HOSTILE], "cause": HOSTILE,
        "remedies": [HOSTILE], "evidence": {},
    }  # fmt: skip
    trial = {"remedy": HOSTILE, "outcome": "failed", "loss": None, "accuracy": None}
    treatment = {
        "accepted": [HOSTILE], "recipe": f"a = 1\nb = {HOSTILE}", "steps": 5, "cost": 9.0,
        "trials": [trial | {"reason": HOSTILE, "rules": []}], "before": {"findings": [finding]},
        "after": {"healthy": True},
    }  # fmt: skip
    final = {"gradient_rms": [0.1], "update_ratio": [1e-3], "still_steps": [0]}
    record = {"layers": [HOSTILE], "final": final, "findings": [finding]}
    for shown in (report.treatment_text(treatment), report.monitor_summary(record)):
        assert r"\x1b]0;t\x07b" in shown
        assert not CONTROLS.search(shown)
    assert "  a = 1\n  b = a" in report.treatment_text(treatment)


def test_a_warning_about_a_parameter_does():
    params = {HOSTILE: jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        find_layers(params, lambda params, batch: jnp.sum(params[HOSTILE]), jnp.ones(4))
    assert caught
    assert not any(CONTROLS.search(str(one.message)) for one in caught)


@pytest.mark.parametrize("name", ["set[red]v2 $x^$", "\x1b]0;t\x07", "$\\frac{$", "w" * 3000])
def test_figures_take_no_name_for_a_formula(tmp_path, name):
    history = {"epoch": [1, 2], "loss": [2.3, 0.4]}
    plots.learning_curves(history, tmp_path / "a.png", name, caption=name)
    record = {
        "layers": [name, "b"], "steps": [0], "loss": [1.0], "gradient_rms": [[1.0, 1.0]],
        "update_ratio": [[1e-3, 1e-3]],
        "findings": [{"rule": name, "severity": "critical", "layers": [name]}],
        "final": {"gradient_rms": [1.0, 1.0], "update_ratio": [1e-3] * 2, "still_steps": [0, 0]},
    }  # fmt: skip
    report.plot_monitor(record, tmp_path / "b.png", caption=name)


def test_errors_about_data_are_clean():
    assert str(DataError(f"{HOSTILE}\nb")).isprintable()


def test_commands_say_where_they_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "run[/x]exp[lr=0.1][red]\x1b[31mb"
    ran = vanishjax("diagnose", "--depth", "3", "--width", "8", "--out", out)
    assert ran.status in (0, 1), ran.err
    assert ran.out.endswith(f"in {foreign.printable(out)}\n")
    assert Path(out, "diagnosis.json").is_file()


def test_data_of_any_name_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "set[red]v2\x1b[1m$x^$"
    np.savez(f"{name}.npz", x=np.random.default_rng(0).normal(size=(40, 4)), y=np.arange(40) % 2)
    ran = vanishjax(
        *("train", "--data", f"{name}.npz", "--hidden", "4", "--epochs", "1", "--out", "r[/x]"),
        *("--batch-size", "8", "--monitor-every", "2"),
    )
    assert ran.status == 0, ran.err
    assert ran.err.startswith(f"{foreign.printable(name)}: 2")
    assert "in r[/x]\n" in ran.out
    assert not CONTROLS.search(ran.out + ran.err)
