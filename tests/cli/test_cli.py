"""The commands: what they print and write, and what an interruption leaves."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.commands import Ran, check_documented, read_json, vanishjax
from vanishjax import atlas
from vanishjax.cli import compare, predict, train
from vanishjax.model_file import load_model
from vanishjax.training.data import load_dataset
from vanishjax.training.data.digits import read_digits

COMMAND = [sys.executable, "-m", "vanishjax"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run with defaults, what it printed, and its result."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    ran = vanishjax("train", "--out", folder)
    return folder, ran, read_json(folder / "train.json")


# --- train


def test_train_with_defaults_learns_and_says_so(trained):
    folder, ran, result = trained
    assert ran.status == 0
    assert result["test_accuracy"] > 0.7
    start, *epochs = ran.err.splitlines()
    assert start == (
        "digits: 1,150 training, 288 validation, 359 test examples; 6,570 parameters; adam"
    )
    assert [line.split("  ")[0] for line in epochs] == [f"epoch {n}/5" for n in range(1, 6)]
    for line in epochs:
        assert re.search(
            r"loss \d.*validation accuracy 0\.\d{4}  [\d,]+ steps/s  left 0:\d\d", line
        )
    score, saved, following = ran.out.splitlines()
    loss, accuracy = result["test_loss"], result["test_accuracy"]
    assert score == f"test loss {loss:.4f}  test accuracy {accuracy:.4f}"
    assert saved == f"saved model.safetensors, train.json, curves.png in {folder}"
    assert following == f"next: vanishjax predict IMAGE.png --model {folder}"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "train.json",
        "curves.png",
    }
    with Image.open(folder / "curves.png") as image:
        assert image.format == "PNG"


def test_train_writes_what_another_machine_needs(trained):
    _, _, result = trained
    check_documented(result, train)
    assert result["command"] == "train"
    assert result["settings"] == {
        "in_features": 64,
        "hidden": [64, 32],
        "classes": 10,
        "activation": "relu",
        "residual": None,
        "scan": False,
        "dtype": "float32",
        "param_dtype": "float32",
        "data": "digits",
        "loss": "cross_entropy",
        "optimizer": "adam",
        "learning_rate": 0.001,
        "momentum": None,
        "nesterov": False,
        "weight_decay": None,
        "clip_norm": None,
        "epochs": 5,
        "batch_size": 64,
        "validation_split": 0.2,
        "seed": 0,
    }
    assert result["examples"] == {"train": 1150, "validation": 288, "test": 359}
    history = result["history"]
    assert history["epoch"] == [1, 2, 3, 4, 5]
    assert all(len(values) == 5 for values in history.values())
    assert {"loss", "accuracy", "validation_loss", "validation_accuracy"} < history.keys()
    assert history["loss"][-1] < history["loss"][0]
    assert result["interrupted"] is False
    assert result["environment"]["packages"].keys() >= {"vanishjax", "jax", "optax"}
    assert result["environment"]["device"]["platform"] == "cpu"


def test_train_saves_the_network_that_it_scored(trained):
    folder, _, result = trained
    model = load_model(folder / "model.safetensors")
    test = load_dataset("digits").test
    predicted = np.argmax(model.predict_fn(model.params, test.inputs), axis=1)
    assert np.mean(predicted == test.labels) == pytest.approx(result["test_accuracy"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--optimizer", "sgd", "--momentum", ".9", "--nesterov"],
            {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "learning_rate": 0.01},
        ),
        (["--optimizer", "nadam"], {"optimizer": "nadam", "learning_rate": 0.001}),
        (
            ["--depth", "4", "--width", "16", "--residual", "rezero", "--optimizer", "RMSprop"],
            {"hidden": [16] * 4, "residual": "rezero", "scan": True, "optimizer": "rmsprop"},
        ),
        (
            ["--optimizer", "adamw", "--weight-decay", "0.1", "--clip-norm", "0.5"],
            {"weight_decay": 0.1, "clip_norm": 0.5},
        ),
        (
            ["--dtype", "bfloat16", "--activation", "hard-tanh", "--residual", "scaled"],
            {"dtype": "bfloat16", "activation": "hard_tanh", "residual": "scaled"},
        ),
    ],
)
def test_train_as_told(here, arguments, expected):
    common = ("--quick", "--out", "run", "--json", "--batch-size", "32", "--seed", "3")
    ran = vanishjax("train", *arguments, *common)
    assert ran.status == 0
    assert ran.out == Path("run/train.json").read_text()
    result = ran.json
    expected |= {"batch_size": 32, "seed": 3, "epochs": 1}
    assert result["settings"].items() >= expected.items()
    assert 0 <= result["test_accuracy"] <= 1
    assert result["test_loss"] < 4
    model = load_model("run/model.safetensors")
    assert {str(leaf.dtype) for layer in model.params.values() for leaf in layer.values()} == {
        result["settings"]["param_dtype"]
    }


def test_train_starts_by_the_initializer_asked_for(here):
    common = ("train", "--quick", "--depth", "3", "--width", "16", "--learning-rate", "1e-30")
    settings = vanishjax(*common, "--out", "usual", "--json").json["settings"]
    assert "init" not in settings  # a run of an older version goes on
    orthogonal = ("--init", "critical-orthogonal", "--activation", "sigmoid")
    settings = vanishjax(*common, *orthogonal, "--out", "run", "--json").json["settings"]
    assert settings["init"] == "critical_orthogonal"

    def is_orthogonal(folder):
        kernel = load_model(Path(folder, "model.safetensors")).params["hidden_stack"]["kernel"][0]
        gram = kernel.T @ kernel
        return np.allclose(gram, np.eye(16) * np.trace(gram) / 16, atol=1e-3 * gram.max())

    assert is_orthogonal("run")
    assert not is_orthogonal("usual")


def parameters(folder):
    model = load_model(Path(folder, "model.safetensors"))
    return np.concatenate([np.ravel(x) for x in model.params["output"].values()])


def test_weight_decay_and_clipping_reach_the_optimizer(here):
    common = ("train", "--quick", "--learning-rate", "0.01", "--optimizer", "adamw")
    vanishjax(*common, "--out", "plain")
    vanishjax(*common, "--out", "decayed", "--weight-decay", "5")
    assert np.linalg.norm(parameters("decayed")) < 0.6 * np.linalg.norm(parameters("plain"))
    common = ("train", "--quick", "--learning-rate", "1", "--optimizer", "sgd", "--json")
    free = vanishjax(*common).json["history"]["loss"][0]
    clipped = vanishjax(*common, "--clip-norm", "1e-6").json["history"]["loss"][0]
    assert free < 2.2 < clipped


def test_train_regresses(here):
    common = ("train", "--loss", "squared_error", "--epochs", "3", "--out")
    ran = vanishjax(*common, "run")
    assert ran.status == 0
    result = read_json("run/train.json")
    assert result["test_accuracy"] is None
    assert result["test_mean_absolute_error"] < 3
    assert result["settings"]["classes"] == 1
    assert {"mean_absolute_error", "validation_mean_absolute_error"} < result["history"].keys()
    assert f"test mean absolute error {result['test_mean_absolute_error']:.4f}" in ran.out
    assert "predict" not in ran.out
    Image.new("L", (8, 8)).save("a.png")
    refused = vanishjax("predict", "a.png", "--model", "run")
    assert refused.status == 2
    assert "predicts a number, not classes" in refused.error


def test_train_regresses_several_targets(here):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.savez("lines.npz", x=x, y=np.stack([x.sum(1), x[:, 0]], 1))
    ran = vanishjax("train", "--data", "lines.npz", "--loss", "squared_error", "--batch-size", "8",
                    "--json", "--quick")  # fmt: skip
    assert ran.status == 0
    assert ran.json["settings"]["classes"] == 2


def test_resume_replaces_nothing_where_there_is_nothing_to_go_on_from(here):
    run = ("train", "--quick", "--hidden", "8", "--out", "run")
    assert vanishjax(*run).status == 0
    model = Path("run", "model.safetensors").read_bytes()
    again = vanishjax(*run, "--seed", "1", "--resume")
    assert again.status == 2
    assert "--out run: already holds" in again.error
    assert Path("run", "model.safetensors").read_bytes() == model


def without_times(result):
    result["history"] = {k: v for k, v in result["history"].items() if "second" not in k}
    return result


def test_the_seed_decides_everything(here):
    first, same, other = (
        without_times(vanishjax("train", "--quick", "--json", "--seed", seed).json)
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first["test_loss"] != other["test_loss"]
    assert parameters("runs/train-001").tolist() == parameters("runs/train-002").tolist()
    # Where nothing is learned, the parameters are those that were drawn.
    vanishjax("train", "--quick", "--seed", 1, "--learning-rate", "1e-30")
    vanishjax("train", "--quick", "--seed", 2, "--learning-rate", "1e-30")
    drawn, others = parameters("runs/train-004"), parameters("runs/train-005")
    assert not np.allclose(drawn, others)


def test_a_run_that_diverges_fails_in_one_line_and_is_valid_json(here):
    ran = vanishjax("train", "--optimizer", "sgd", "--learning-rate", "1e30", "--json", "--quick")
    assert ran.status == 1
    assert ran.err.splitlines()[-1] == (
        "vanishjax: error: the loss became nan; try a smaller --learning-rate"
    )
    assert ran.json["test_loss"] is None
    assert ran.json["history"]["loss"] == [None]
    Image.new("L", (8, 8)).save("a.png")
    refused = vanishjax("predict", "a.png")
    assert refused.status == 2
    assert "its training diverged" in refused.error


# --- where results go


def test_default_folders_count_up_and_predict_takes_the_newest(here):
    assert vanishjax("train", "--quick", "--hidden", "8").status == 0
    assert vanishjax("train", "--quick", "--hidden", "9").status == 0
    assert sorted(os.listdir("runs")) == ["train-001", "train-002"]
    Image.new("L", (8, 8)).save("a.png")
    newest = vanishjax("predict", "a.png", "--json")
    assert newest.out == vanishjax("predict", "a.png", "--json", "--model", "runs/train-002").out
    assert newest.out != vanishjax("predict", "a.png", "--json", "--model", "runs/train-001").out
    os.utime("runs/train-001")
    assert newest.out != vanishjax("predict", "a.png", "--json").out


def test_older_results_are_replaced_only_on_request(trained, here):
    folder, _, _ = trained
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = vanishjax("train", "--quick", "--out", folder)
    assert refused.status == 2
    assert "already holds model.safetensors, train.json, curves.png" in refused.error
    assert "--overwrite" in refused.error
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in before.items():
        (here / name).write_bytes(content)
    assert vanishjax("train", "--quick", "--out", here, "--overwrite").status == 0
    assert read_json("train.json")["settings"]["epochs"] == 1


def test_a_full_disk_leaves_the_older_results(trained, here, monkeypatch):
    folder, _, _ = trained
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full)
    ran = vanishjax("train", "--quick", "--out", folder, "--overwrite")
    assert ran.status == 1
    assert ran.err.splitlines()[-1] == (
        f"vanishjax: error: {folder / 'model.safetensors'}: No space left on device"
    )
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_that_dies_leaves_no_empty_folder(here, monkeypatch):
    def out_of_memory(*arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nlong\nstory")
        yield

    monkeypatch.setattr(atlas, "measure", out_of_memory)
    ran = vanishjax("compare")
    assert ran.status == 1
    assert ran.error == (
        "vanishjax: error: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.; make the network "
        "or the batch smaller"
    )
    assert list(here.iterdir()) == [here / "runs"]
    assert not os.listdir("runs")


# --- predict


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The folder of a network, five digits in [0, 1] that it knows well, their probabilities."""
    folder = tmp_path_factory.mktemp("known")
    assert vanishjax("train", "--epochs", "30", "--out", folder).status == 0
    model = load_model(folder / "model.safetensors")
    images = np.asarray(read_digits().train.inputs)[:60].reshape(-1, 64) / np.float32(16)
    probabilities = np.asarray(jax.nn.softmax(model.predict_fn(model.params, images)))
    best = np.flatnonzero(probabilities.max(1) > 0.99)[:5]
    assert len(best) == 5
    return folder, images[best].reshape(-1, 8, 8), probabilities[best]


def test_predict_says_what_the_network_says(known, here):
    folder, images, probabilities = known
    for image, expected in zip(images, probabilities, strict=True):
        Image.fromarray(np.uint8(np.rint(image * 255))).save("digit.png")
        ran = vanishjax("predict", "digit.png", "--model", folder, "--json")
        assert (ran.status, ran.err) == (0, "")
        check_documented(ran.json, predict)
        assert ran.json["image"] == "digit.png"
        assert ran.json["class"] == expected.argmax()
        np.testing.assert_allclose(ran.json["probabilities"], expected, atol=0.01)
        assert sum(ran.json["probabilities"]) == pytest.approx(1, abs=1e-5)
    shown = vanishjax("predict", "digit.png", "--model", folder / "model.safetensors").out
    (line,) = [line for line in shown.splitlines() if "likeliest" in line]
    assert line.split()[0] == str(expected.argmax())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("paper", ["black", "white"])
def test_predict_takes_any_size_mode_and_paper(known, here, mode, paper):
    folder, images, probabilities = known
    pixels = images[0] if paper == "black" else 1 - images[0]
    image = Image.fromarray(np.uint8(np.rint(pixels * 255))).resize((96, 96), Image.Resampling.BOX)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    name = "digit.jpg" if mode == "CMYK" else "digit.png"
    image = image if mode == "I;16" else image.convert(mode)
    image.save(name)
    ran = vanishjax("predict", name, "--model", folder, "--json")
    assert ran.status == 0
    assert ran.json["class"] == probabilities[0].argmax()


# --- compare

TINY = "--optimizers sgd,adam --depths 2 --epochs 1 --seeds 1 --width 8"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    return folder, vanishjax("compare", *TINY.split(), "--out", folder)


def test_compare_shows_every_cell(compared):
    folder, ran = compared
    assert ran.status == 0
    assert [line.split(":")[0] for line in ran.err.splitlines()] == ["sgd depth 2", "adam depth 2"]
    lines = ran.out.splitlines()
    assert lines[0].rstrip() == "digits, sigmoid, width 8, epochs 1, batch size 64, 1 seed"
    assert [line.split()[:2] for line in lines if line.startswith(("sgd", "adam"))] == [
        ["sgd", "2"],
        ["adam", "2"],
    ]
    assert "Deepest network trained to a mean test accuracy of 50 %" in ran.out
    assert lines[-1] == f"saved compare.json and trainable_depth.png in {folder}"
    with Image.open(folder / "trainable_depth.png") as image:
        assert image.format == "PNG"


def test_compare_writes_every_cell(compared):
    folder, _ = compared
    result = read_json(folder / "compare.json")
    check_documented(result, compare)
    assert result["settings"] == {
        "data": "digits",
        "classes": 10,
        "activation": "sigmoid",
        "residual": None,
        "width": 8,
        "epochs": 1,
        "batch_size": 64,
        "seeds": [0],
        "validation_split": 0.2,
        "trainable_accuracy": 0.5,
    }
    assert [(cell["optimizer"], cell["depth"]) for cell in result["cells"]] == [
        ("sgd", 2),
        ("adam", 2),
    ]
    for cell in result["cells"]:
        assert len(cell["test_accuracy"]) == len(cell["validation_accuracy"]) == 1
        assert cell["learning_rate"] in map(float, cell["rates"])
        assert 0 < cell["first_layer_gradient"] < cell["last_layer_gradient"]
    assert result["trainable_depth"].keys() == {"sgd", "adam"}
    assert result["interrupted"] is False
    assert result["environment"]["packages"]["jax"]


def test_compare_prints_json_and_nothing_else(here):
    arguments = (
        "--optimizers adam,adam --depths 1 --width 8 --epochs 1 --seeds 2 --seed 5 --json --quick "
        "--learning-rates .1,.1 --residual scaled --activation tanh"
    )
    ran = vanishjax("compare", *arguments.split())
    assert ran.status == 0
    assert ran.out == Path("runs/compare-001/compare.json").read_text()
    (cell,) = ran.json["cells"]
    assert cell["rates"].keys() == {"0.1"}
    assert ran.json["settings"]["seeds"] == [5, 6]
    assert ran.json["settings"]["residual"] == "scaled"
    assert ran.json["settings"]["epochs"] == 1


def test_compare_on_one_network_of_the_users_widths(here):
    arguments = "--hidden 12,5,7 --optimizers sgd,muon --epochs 1 --seeds 1 --learning-rates .1"
    ran = vanishjax("compare", *arguments.split())
    assert ran.status == 0
    title = "digits, sigmoid, hidden layers 12,5,7, epochs 1, batch size 64, 1 seed"
    assert " ".join(ran.out.split()).startswith(title)  # as wide as the table
    result = read_json("runs/compare-001/compare.json")
    assert result["settings"]["hidden"] == [12, 5, 7]
    assert "width" not in result["settings"]
    assert [(cell["optimizer"], cell["depth"]) for cell in result["cells"]] == [
        ("sgd", 3),
        ("muon", 3),
    ]
    for clash in ("--depths 3", "--width 5"):
        refused = vanishjax("compare", "--hidden", "12,5", *clash.split())
        assert refused.status == 2
        assert "--hidden is one network: leave out --depths and --width" in refused.error


def test_compare_has_its_sizes(here, monkeypatch):
    grids = []

    def look(grid, *arguments):
        grids.append(grid)
        raise ValueError("seen")

    monkeypatch.setattr(atlas, "measure", look)
    given = "--quick --depths 3 --seeds 5 --width 7 --residual rezero --activation tanh"
    for arguments in ("", "--quick", f"{given} --batch-size 9 --learning-rates 1,2"):
        assert vanishjax("compare", *arguments.split()).status == 2
    default, quick, mixed = grids
    assert default == atlas.Grid()
    assert quick == atlas.Grid(
        optimizers=("sgd", "nesterov", "adam", "nadam", "deep_muon"),
        depths=(2, 4, 8),
        seeds=(0, 1),
        epochs=15,
    )
    assert mixed == atlas.Grid(
        optimizers=quick.optimizers,
        depths=(3,),
        width=7,
        activation="tanh",
        residual="rezero",
        learning_rates=(1.0, 2.0),
        seeds=(0, 1, 2, 3, 4),
        epochs=15,
        batch_size=9,
    )


# --- processes


def interrupt(arguments, marker):
    """Runs a command, presses Ctrl-C once a line with the marker stands on standard error."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            if marker in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Ran(process.returncode, out, err)


def test_ctrl_c_keeps_what_was_trained(here):
    ran = interrupt(["train", "--epochs", "1000000", "--out", "run"], "epoch")
    assert ran.status == 130
    last = ran.err.splitlines()[-1]
    assert re.fullmatch(
        r"vanishjax: interrupted in epoch \d+ of 1000000; what was done is saved", last
    )
    assert "Traceback" not in ran.err
    assert {path.name for path in Path("run").iterdir()} == {
        "model.safetensors",
        "train.json",
        "curves.png",
    }
    result = read_json("run/train.json")
    assert result["interrupted"] is True
    assert len(result["history"]["loss"]) >= 1
    load_model("run/model.safetensors")


def test_ctrl_c_keeps_the_cells_that_are_done(here):
    arguments = ["compare", "--depths", "2,3", "--width", "8", "--epochs", "3", "--out", "run"]
    ran = interrupt(arguments, "sgd depth 2")
    assert ran.status == 130
    assert ran.err.splitlines()[-1] == (
        "vanishjax: interrupted; the cells that were done are saved"
    )
    assert "Traceback" not in ran.err
    result = read_json("run/compare.json")
    assert result["interrupted"] is True
    assert 1 <= len(result["cells"]) < 14
    assert result["cells"][0]["optimizer"] == "sgd"
    with Image.open("run/trainable_depth.png") as image:
        image.load()
    assert len(list(Path("run").iterdir())) == 2


def test_ctrl_c_before_the_first_cell_leaves_nothing(here, monkeypatch):
    def at_once(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(atlas, "measure", at_once)
    ran = vanishjax("compare")
    assert ran.status == 130
    assert ran.error == "vanishjax: interrupted"
    assert not os.listdir("runs")


def test_a_reader_that_leaves_gets_no_traceback():
    process = subprocess.Popen(
        [*COMMAND, "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()
