"""`vanishjax atlas`: what it measures, and that whatever ends it, it goes on where it was."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import check_documented, read_json, vanishjax
from vanishjax import atlas, cli
from vanishjax.files import locked
from vanishjax.report import atlas_plot

TINY = "atlas --optimizers sgd,adam --depths 1,4 --activations sigmoid --inits lecun --seeds 1"
TINY += " --epochs 1 --width 4 --batch-size 128 --learning-rates .01,.1"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *more):
    return vanishjax(*command.split(), *more)


def without_seconds(cells):
    return [{name: value for name, value in cell.items() if name != "seconds"} for cell in cells]


# --- what it measures


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "run"
    return folder, run(TINY, "--out", folder)


def test_atlas_shows_and_writes_every_cell(measured):
    folder, ran = measured
    assert ran.status == 0
    assert [line.split(":")[0] for line in ran.err.splitlines()] == [
        f"sigmoid lecun {optimizer} depth {depth}"
        for depth in (1, 4)
        for optimizer in ("sgd", "adam")
    ]
    lines = ran.out.splitlines()
    assert lines[0].rstrip() == "digits, width 4, epochs 1, batch size 128, 1 seed"
    assert [line.split()[0] for line in lines if line.startswith(("sgd", "adam"))] == [
        "sgd",
        "adam",
    ]
    assert lines[-1] == f"saved atlas.jsonl, atlas.json and atlas.png in {folder}"
    assert sorted(os.listdir(folder)) == ["atlas.json", "atlas.jsonl", "atlas.png"]
    with Image.open(folder / "atlas.png") as image:
        assert image.format == "PNG"
    result = read_json(folder / "atlas.json")
    check_documented(result, cli.atlas, cli.compare)
    settings = result["settings"]
    assert settings.pop("data_checksum")
    assert settings == {
        "activations": ["sigmoid"],
        "inits": ["lecun"],
        "optimizers": ["sgd", "adam"],
        "depths": [1, 4],
        "data": "digits",
        "validation_split": 0.2,
        "seeds": [0],
        "epochs": 1,
        "width": 4,
        "residual": None,
        "batch_size": 128,
        "decay": False,
        "learning_rates": [0.01, 0.1],
        "examples": {"train": 1150, "validation": 288, "test": 359},
        "classes": 10,
        "trainable_accuracy": 0.5,
    }
    assert [(cell["optimizer"], cell["depth"]) for cell in result["cells"]] == [
        *itertools.product(("sgd", "adam"), (1, 4))
    ]
    assert result["trainable_depth"]["sigmoid"]["lecun"].keys() == {"sgd", "adam"}
    assert result["predicted_depth"] == {"sigmoid": {"lecun": {"momentum": 1, "Adam": 4}}}
    assert result["interrupted"] is False
    assert result["environment"]["packages"]["jax"]


def test_a_deeper_sigmoid_is_predicted_to_lose_more(measured):
    cells = read_json(measured[0] / "atlas.json")["cells"]
    sums = {cell["depth"]: cell["sum_log_chi"] for cell in cells}
    assert sums[4] < 2 * sums[1] < 0
    # It is the network's, not the optimizer's.
    assert all(cell["sum_log_chi"] == sums[cell["depth"]] for cell in cells)


def test_a_killed_run_goes_on_where_it_was(measured, here):
    journal = here / "run" / "atlas.jsonl"
    with open("said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "vanishjax", *TINY.split(), "--out", "run"], stderr=said
        )
        try:
            deadline = time.monotonic() + 120
            while not (journal.exists() and b"\n" in journal.read_bytes()):
                assert process.poll() is None, Path("said").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in Path("run").iterdir()] == ["atlas.jsonl"]
    before = journal.read_bytes()
    done = before.count(b"\n")
    assert 1 <= done < 4
    ran = run(TINY, "--out", "run")
    assert ran.status == 0
    first, *cells = ran.err.splitlines()
    assert first == f"vanishjax: going on in run: {done} of 4 cells are done"
    assert len(cells) == 4 - done
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    uninterrupted = read_json(measured[0] / "atlas.json")
    resumed = read_json("run/atlas.json")
    assert without_seconds(resumed["cells"]) == without_seconds(uninterrupted["cells"])
    for name in ("settings", "trainable_depth", "predicted_depth"):
        assert resumed[name] == uninterrupted[name]


# --- going on, with cells that cost nothing


@pytest.fixture
def drawn(here, monkeypatch):
    """Cells without training; `ends[n]` is raised instead of the n-th cell of a run."""
    ends = {}
    asked = []

    def measure(grid, train, validation, test, classes, *, done, predicts):
        for depth, optimizer in itertools.product(grid.depths, grid.optimizers):
            if (optimizer, depth) in done:
                continue
            asked.append((grid.activation, grid.kernel_init, optimizer, depth))
            if len(asked) in ends:
                raise ends[len(asked)]
            accuracy = math.nan if optimizer == "sgd" and depth == 4 else 1 / depth
            yield {
                "optimizer": optimizer,
                "depth": depth,
                "learning_rate": 0.1,
                "validation_accuracy": [accuracy] * len(grid.seeds),
                "test_accuracy": [accuracy] * len(grid.seeds),
                "rates": {"0.1": accuracy},
                "first_layer_gradient": 0.0,
                "last_layer_gradient": 1.0,
                "sum_log_chi": -2.9 * depth if depth < 9 else -math.inf,
                "steps": 1,
                "seconds": time.perf_counter(),
            }

    monkeypatch.setattr(atlas, "measure", measure)
    measure.ends, measure.asked = ends, asked
    return measure


@pytest.fixture
def cheap(drawn, monkeypatch):
    """The same, and no figure."""
    monkeypatch.setattr(atlas_plot, "plot_atlas", lambda *arguments: None)
    return drawn


MANY = "atlas --optimizers sgd,adam --depths 1,4 --activations sigmoid,tanh --inits lecun,he"


@pytest.mark.parametrize(
    ("end", "status", "place"),
    [
        (RuntimeError("out of luck"), 1, 1),
        (KeyboardInterrupt(), 130, 2),
        (OSError(28, "disk full"), 1, 7),
    ],
)
def test_an_atlas_in_two_goes_is_the_one_in_one_go(cheap, end, status, place):
    assert run(MANY, "--out", "whole").status == 0
    whole = read_json("whole/atlas.json")
    assert len(whole["cells"]) == 16
    cheap.asked.clear()
    cheap.ends[place] = end
    ran = run(MANY, "--out", "run")
    assert ran.status == status
    assert "Traceback" not in ran.err
    assert Path("run").exists() == (place > 1)
    cheap.ends.clear()
    cheap.asked.clear()
    ran = run(MANY, "--out", "run")
    assert ran.status == 0
    assert len(cheap.asked) == 16 - (place - 1)
    resumed = read_json("run/atlas.json")
    assert without_seconds(resumed.pop("cells")) == without_seconds(whole.pop("cells"))
    different = {"seconds", "environment"}
    assert {n: v for n, v in resumed.items() if n not in different} == {
        n: v for n, v in whole.items() if n not in different
    }
    kept = Path("run/atlas.jsonl").read_bytes()
    assert kept.count(b"\n") == 16
    # A finished one is not measured again.
    cheap.asked.clear()
    assert run(MANY, "--out", "run").status == 0
    assert not cheap.asked
    assert Path("run/atlas.jsonl").read_bytes() == kept


def test_ctrl_c_saves_what_was_done(drawn):
    drawn.ends[6] = KeyboardInterrupt()
    ran = run(MANY, "--json")
    assert ran.status == 130
    assert ran.err.splitlines()[-1] == "vanishjax: interrupted; the same command goes on from here"
    assert ran.json["interrupted"] is True
    assert len(ran.json["cells"]) == 5
    assert ran.out == Path("runs/atlas-001/atlas.json").read_text()
    assert ran.json["trainable_depth"]["tanh"] == {"lecun": {}, "he": {}}
    with Image.open("runs/atlas-001/atlas.png") as image:
        image.load()
    shown = run(MANY)
    assert shown.err.splitlines()[0] == (
        "vanishjax: going on in runs/atlas-001: 5 of 16 cells are done"
    )
    assert read_json("runs/atlas-001/atlas.json")["interrupted"] is False


def test_a_run_that_ends_before_its_first_cell_leaves_nothing(cheap):
    cheap.ends[1] = KeyboardInterrupt()
    ran = run(MANY)
    assert (ran.status, ran.error) == (130, "vanishjax: interrupted")
    assert not os.listdir("runs")


def test_without_out_only_an_unfinished_run_of_the_same_settings_goes_on(cheap):
    cheap.ends[3] = RuntimeError()
    assert run(MANY).status == 1
    cheap.ends.clear()
    assert run(MANY, "--width", "5").status == 0
    assert sorted(os.listdir("runs")) == ["atlas-001", "atlas-002"]
    # The newest is another one's, so nothing is unfinished.
    assert run(MANY).status == 0
    assert sorted(os.listdir("runs")) == ["atlas-001", "atlas-002", "atlas-003"]
    cheap.asked.clear()
    assert run(MANY).status == 0
    assert len(cheap.asked) == 16
    assert len(os.listdir("runs")) == 4


def test_a_torn_last_line_is_dropped(cheap):
    assert run(MANY, "--out", "run").status == 0
    whole = without_seconds(read_json("run/atlas.json")["cells"])
    journal = Path("run/atlas.jsonl")
    content = journal.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    line = content[last:]
    for torn in (line[:1], line[:50], line[:-1], b"\0" * 4096, line[:100] + b"\n"):
        journal.write_bytes(content[:last] + torn)
        cheap.asked.clear()
        ran = run(MANY, "--out", "run")
        assert ran.status == 0, torn
        assert cheap.asked == [("tanh", "he", "adam", 4)], torn
        assert without_seconds(read_json("run/atlas.json")["cells"]) == whole
        assert [len(json.loads(line)) for line in journal.read_text().splitlines()] == [15] * 16


def test_more_of_the_same_may_be_asked_for_later_and_less(cheap):
    assert (
        run("atlas --optimizers adam --depths 4 --activations tanh --inits he --out run").status
        == 0
    )
    cheap.asked.clear()
    ran = run(MANY, "--out", "run", "--json")
    assert len(cheap.asked) == 15
    assert len(ran.json["cells"]) == 16
    cheap.asked.clear()
    ran = run("atlas --optimizers adam --depths 4 --activations tanh --inits he --out run --json")
    assert [cell["depth"] for cell in ran.json["cells"]] == [4]
    assert not cheap.asked


OTHER = {
    "--width 5": "width 32, not 5",
    "--epochs 2": "epochs 30, not 2",
    "--seeds 2": "seeds [0, 1, 2], not [0, 1]",
    "--seed 1": "seeds [0, 1, 2], not [1, 2, 3]",
    "--decay": "decay false, not true",
    "--residual rezero": "residual none, not rezero",
    "--batch-size 32": "batch_size 64, not 32",
    "--learning-rates .1": "learning_rates none, not [0.1]",
    "--validation-split .3": "validation_split 0.2, not 0.3",
    "--data other.npz": "data digits, not other",
}


def test_other_settings_are_refused_by_name(cheap):
    np.savez("other.npz", x=np.eye(200, dtype=np.float32), y=np.arange(200) % 2)
    assert run(MANY, "--out", "run").status == 0
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    cheap.asked.clear()
    for change, difference in OTHER.items():
        ran = run(f"{MANY} {change}", "--out", "run")
        assert ran.status == 2, change
        assert f"run/atlas.jsonl: was measured with {difference}" in ran.error
        assert "--overwrite" in ran.error
        assert before == {path.name: path.read_bytes() for path in Path("run").iterdir()}
        assert not cheap.asked
    assert run(f"{MANY} --seed 1", "--out", "run", "--overwrite").status == 0
    assert len(cheap.asked) == 16
    assert Path("run/atlas.jsonl").read_bytes().count(b"\n") == 16


def test_other_data_of_the_same_name_is_refused(cheap):
    for scale in (1.0, 2.0):
        x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32) ** scale
        np.savez("a.npz", x=x, y=np.arange(200) % 2)
        ran = run(MANY, "--data", "a.npz", "--out", "run")
    assert ran.status == 2
    assert "was measured with data_checksum" in ran.error


def test_overwriting_keeps_the_old_until_there_is_something_new(cheap):
    assert run(MANY, "--out", "run").status == 0
    before = Path("run/atlas.jsonl").read_bytes()
    cheap.asked.clear()
    cheap.ends[1] = RuntimeError()
    assert run(MANY, "--out", "run", "--overwrite").status == 1
    assert Path("run/atlas.jsonl").read_bytes() == before
    cheap.asked.clear()
    cheap.ends.clear()
    cheap.ends[2] = RuntimeError()
    assert run(MANY, "--out", "run", "--overwrite").status == 1
    assert Path("run/atlas.jsonl").read_bytes().count(b"\n") == 1


def test_results_without_a_journal_are_not_replaced(cheap):
    Path("run").mkdir()
    Path("run/atlas.json").write_text("{}")
    ran = run(MANY, "--out", "run")
    assert ran.status == 2
    assert "--out run: already holds atlas.json" in ran.error


def test_a_damaged_journal_is_refused(cheap):
    assert run(MANY, "--out", "run").status == 0
    journal = Path("run/atlas.jsonl")
    lines = journal.read_text().splitlines()
    lines[2] = lines[2][:40]
    journal.write_text("\n".join(lines) + "\n")
    ran = run(MANY, "--out", "run")
    assert ran.status == 2
    assert "run/atlas.jsonl: line 3 is no result" in ran.error


def test_two_runs_do_not_share_a_folder(cheap):
    cheap.ends[6] = KeyboardInterrupt()
    assert run(MANY).status == 130
    with locked("runs/atlas-001"):
        ran = run(MANY, "--out", "runs/atlas-001")
        assert ran.status == 2
        assert ran.error == (
            "vanishjax: error: --out runs/atlas-001: another run is writing there; name another "
            "folder with --out"
        )
        # Without --out, what another run is at isn't unfinished.
        assert run(MANY).status == 0
    assert sorted(os.listdir("runs")) == ["atlas-001", "atlas-002"]


def lines_of(folder):
    return Path(folder, "atlas.jsonl").read_text().splitlines()


def write_lines(folder, lines):
    Path(folder, "atlas.jsonl").write_text("".join(line + "\n" for line in lines))


def test_a_cell_that_is_there_twice_counts_once(cheap):
    assert run(MANY, "--out", "run").status == 0
    whole = read_json("run/atlas.json")
    lines = lines_of("run")
    write_lines("run", [*lines[:3], lines[0], *lines[3:], lines[2]])
    cheap.asked.clear()
    ran = run(MANY, "--out", "run")
    assert ran.status == 0
    assert ran.err.splitlines()[0] == "vanishjax: going on in run: 16 of 16 cells are done"
    assert not cheap.asked
    assert read_json("run/atlas.json")["cells"] == whole["cells"]


WRONG = [
    ("activation", "sigmoyd", 'activation can\'t be "sigmoyd"'),
    ("init", ["lecun"], 'init can\'t be ["lecun"]'),
    ("optimizer", None, "optimizer can't be none"),
    ("depth", "4", 'depth can\'t be "4"'),
    ("depth", True, "depth can't be true"),
    ("depth", 4.0, "depth can't be 4.0"),
    ("depth", 10**400, "depth can't be 1000"),
    ("test_accuracy", 0.5, "test_accuracy can't be 0.5"),
    ("test_accuracy", [0.5], "test_accuracy can't be [0.5]"),
    ("test_accuracy", [0.5, 1.5, 0.5], "test_accuracy can't be [0.5, 1.5, 0.5]"),
    ("validation_accuracy", [0.5, "", 0.5], "validation_accuracy can't be"),
    ("sum_log_chi", math.inf, "sum_log_chi can't be Infinity"),
    ("sum_log_chi", math.nan, "sum_log_chi can't be NaN"),
    ("first_layer_gradient", -1.0, "first_layer_gradient can't be -1.0"),
    ("rates", {"0.1": {}}, "rates can't be"),
    ("seconds", None, "seconds can't be none"),
    ("secunds", 1.0, "secunds is unknown"),
    ("\x1b[31m", 1.0, '"\\u001b[31m" is unknown'),
    ("learning_rate", 0.2, "line 5 is damaged: its checksum is another"),
    ("settings", [], "line 5 is no result; name another"),
    ("settings", {}, "line 5 was measured with data none, not digits"),
]


def test_a_wrong_field_is_named(cheap):
    assert run(MANY, "--out", "run").status == 0
    lines = lines_of("run")
    cell = json.loads(lines[4])
    missing = [
        ({n: v for n, v in cell.items() if n not in (name, "checksum")}, f"{name} is missing")
        for name in ("activation", "optimizer", "depth", "test_accuracy", "steps")
    ]
    wrong = [(cell | {name: value}, reason) for name, value, reason in WRONG]
    for damaged, reason in missing + wrong:
        write_lines("run", [*lines[:4], json.dumps(damaged), *lines[5:]])
        ran = run(MANY, "--out", "run")
        assert ran.status == 2
        assert "run/atlas.jsonl: line 5 " in ran.error
        assert reason in ran.error
        assert len(ran.error) < 300


def test_a_cell_measured_twice_with_other_results_is_refused(cheap):
    assert run(MANY, "--out", "run").status == 0
    lines = lines_of("run")
    cell = json.loads(lines[2])
    del cell["checksum"]
    later = json.dumps(cell | {"seconds": 1.0})
    write_lines("run", [*lines, later])
    assert run(MANY, "--out", "run").status == 0
    write_lines("run", [*lines, json.dumps(cell | {"learning_rate": 0.2}), later])
    ran = run(MANY, "--out", "run")
    assert ran.status == 2
    assert "line 17 measures again, otherwise, what line 3 does" in ran.error


def test_a_journal_of_an_older_version_goes_on(cheap):
    cheap.ends[6] = KeyboardInterrupt()
    run(MANY, "--out", "run")
    cells = [json.loads(line) for line in lines_of("run")]
    write_lines("run", [json.dumps({n: v for n, v in c.items() if n != "checksum"}) for c in cells])
    ran = run(MANY, "--out", "run")
    assert ran.status == 0
    assert "5 of 16 cells are done" in ran.err


def test_atlas_has_its_sizes(here, monkeypatch):
    grids = []

    def look(grid, *arguments, **options):
        grids.append(grid)
        return iter([])

    monkeypatch.setattr(atlas, "measure", look)
    given = "--quick --depths 3 --seeds 5 --activations relu --inits he,lecun --decay --epochs 7"
    for arguments in ("", "--quick", given):
        assert run(f"atlas {arguments}").status == 130
    assert len(grids) == 6 + 2 + 2
    assert [grid.depths for grid in grids[6:8]] == [(2, 4, 8, 16)] * 2
    assert grids[0] == atlas.Grid(
        optimizers=("sgd", "momentum", "adam", "lion", "muon", "deep_muon"),
        depths=(2, 4, 8, 16, 32),
    )
    assert [(grid.activation, grid.kernel_init) for grid in grids[:6]] == [
        *itertools.product(("sigmoid", "tanh", "relu"), ("lecun", "critical_orthogonal"))
    ]
    assert grids[-2] == atlas.Grid(
        optimizers=("momentum", "adam", "deep_muon"),
        depths=(3,),
        activation="relu",
        kernel_init="he",
        seeds=(0, 1, 2, 3, 4),
        epochs=7,
        decay=True,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--activations sigmiod", "argument --activations: unknown activation 'sigmiod': did you"),
        ("--inits lecun,orthogonal", "argument --inits: unknown initializer 'orthogonal'"),
        ("--inits ,", "expected a comma-separated list, got ','"),
        ("--optimizers adan", "argument --optimizers: unknown optimizer 'adan'"),
        ("--depths 0", "argument --depths/--depth: expected a whole number of at least 1"),
        ("--seeds 0", "argument --seeds: expected a whole number of at least 1, got '0'"),
        ("--learning-rates 0", "expected a number above 0, got '0'"),
        ("--batch-size 1151", "--batch-size 1151: there are only 1150 training examples"),
        ("--data nowhere", "nowhere"),
        ("--inits lecun,critical_normal --activations relu,softplus", "no critical point"),
    ],
)
def test_bad_options_get_one_line(here, arguments, message):
    ran = run(f"atlas {arguments}")
    assert ran.status == 2
    assert message in ran.error
    assert not list(here.glob("runs/*"))
