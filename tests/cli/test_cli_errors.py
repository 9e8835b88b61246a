"""What the commands refuse: one line that says what was wrong and what would be right."""

import gzip
import re
import struct
import urllib.request
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.commands import check_no_heavy_imports, vanishjax
from vanishjax import atlas, cli
from vanishjax.model_file import TrainedModel, save_model
from vanishjax.training.data import load_dataset


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file_in_the_way():
    Path("afile").touch()
    return "afile"


def write_npz(**changes):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(40, 4)).astype(np.float32), "y": np.arange(40) % 4}
    np.savez("a.npz", **{**arrays, **{k: f(arrays[k]) for k, f in changes.items()}})
    return "a.npz"


def idx(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes()


def write_idx(**changes):
    images, labels = np.zeros((40, 4, 4)), np.arange(40) % 10
    contents = {
        "train-images-idx3-ubyte": idx(images),
        "train-labels-idx1-ubyte": idx(labels),
        "t10k-images-idx3-ubyte": idx(images),
        "t10k-labels-idx1-ubyte": idx(labels),
    }
    Path("idx").mkdir()
    for name, content in contents.items():
        change = changes.get(name.split("-")[1], lambda content: content)
        content = change(content) if name.startswith("train") else content
        if content is not None:
            Path("idx", name).write_bytes(content)
    return "idx"


def with_nan(x):
    x[3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "nowhere.npz", "nowhere.npz"),
        (lambda: "mnits", "mnits: no such data set or file; use digits, mnist"),
        (file_in_the_way, "afile: neither an .npz file nor a folder"),
        (lambda: (Path("e").mkdir(), "e")[1], "train-images-idx3-ubyte"),
        (lambda: (Path("a.npz").write_text("no"), "a.npz")[1], "a.npz: not an .npz archive"),
        (lambda: write_npz(y=lambda y: y[:-1]), "39"),
        (lambda: write_npz(y=lambda y: y - 1), "label -1 at index 0 is negative"),
        (lambda: write_npz(y=lambda y: y * 1000), "label 1000 at index 1 is out of range"),
        (lambda: write_npz(y=lambda y: y * 0), "a: all labels are 0; it takes two classes"),
        (lambda: write_npz(x=with_nan), "nan"),
        (lambda: write_npz(x=lambda x: x[:0], y=lambda y: y[:0]), "a.npz"),
        (lambda: write_idx(images=lambda c: None), "train-images-idx3-ubyte"),
        (lambda: write_idx(images=lambda c: c[:-5]), "truncated"),
        (lambda: write_idx(images=lambda c: b"PK" + c), "not an IDX file"),
        (lambda: write_idx(images=lambda c: gzip.compress(c)[:-9]), "truncated or damaged gzip"),
        (lambda: write_idx(labels=lambda c: idx(np.arange(39) % 10)), "39"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_bad_data_gets_one_line(here, make, message, command):
    data = make()
    ran = vanishjax(command, "--quick", "--data", data, "--batch-size", "2")
    assert ran.status == 2
    assert message in ran.error
    assert not Path("runs").exists()


def test_labels_out_of_mnist_range(here):
    folder = write_idx(labels=lambda c: c[:-1] + b"\x0a")
    ran = vanishjax("train", "--data", "mnist", "--data-dir", folder)
    assert ran.status == 2
    assert "label 10 at index 39 is out of range; classes are 0 to 9" in ran.error


@pytest.mark.parametrize("command", ["train", "compare"])
def test_no_network_says_what_to_do(here, monkeypatch, command):
    def unreachable(*arguments, **options):
        raise URLError("unreachable")

    monkeypatch.setenv("VANISHJAX_CACHE", str(here / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    ran = vanishjax(command, "--data", "mnist")
    assert ran.status == 2
    assert "cannot download mnist" in ran.error
    assert "--data-dir" in ran.error
    assert not Path("runs").exists()


def test_a_download_shows_one_line_a_file(here, monkeypatch, capsys):
    from vanishjax.cli import inputs

    def slow(source, *, progress, **options):
        for done in (1_000_000, 2_000_000, 3_000_000):
            progress("train-images", done, 3_000_000)
        return load_dataset("digits")

    monkeypatch.setattr(inputs, "load_dataset", slow)
    monkeypatch.setattr(atlas, "measure", lambda *arguments: iter([]))
    ran = vanishjax("compare", "--data", "mnist")
    assert ran.err.splitlines() == [
        "downloading train-images: 3.0 of 3.0 MB",
        "vanishjax: interrupted",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --optimizer adan", "unknown optimizer 'adan': did you mean 'adam'? known: sgd,"),
        ("train --activation rleu", "did you mean 'relu'?"),
        ("train --residual skip", "unknown residual 'skip': known: scaled, rezero"),
        ("train --dtype float16", "unknown dtype 'float16'"),
        ("train --loss mse", "unknown loss 'mse': known: cross_entropy, squared_error"),
        ("train --validation-split 0", "expected a number above 0 and below 1, got '0'"),
        ("train --validation-split 1", "expected a number above 0 and below 1, got '1'"),
        ("train --validation-split 1e-9", "holds out 0 of 1438 examples"),
        ("train --batch-size 1151", "--batch-size 1151: there are only 1150 training examples"),
        ("compare --batch-size 1151", "--batch-size 1151: there are only 1150 training examples"),
        ("train --batch-size 0", "expected a whole number of at least 1, got '0'"),
        ("train --depth 0", "argument --depth: expected a whole number of at least 1, got '0'"),
        ("train --depth 100001", "expected a whole number of at most 100,000, got '100001'"),
        ("compare --depths 2,0", "expected a whole number of at least 1, got '0'"),
        ("train --hidden 64,x", "expected a whole number of at least 1, got 'x'"),
        ("train --hidden ,", "expected a comma-separated list, got ','"),
        ("train --hidden 8 --depth 2", "--depth and --hidden both say how many layers"),
        ("train --width 8", "--width goes with --depth"),
        ("train --learning-rate -0.1", "expected a number above 0, got '-0.1'"),
        ("train --learning-rate nan", "expected a number above 0, got 'nan'"),
        ("train --learning-rate inf", "expected a number above 0, got 'inf'"),
        ("compare --learning-rates .1,0", "expected a number above 0, got '0'"),
        ("train --optimizer sgd --momentum 1", "at least 0 and below 1, got '1'"),
        (
            "train --momentum .9",
            "--momentum goes with --optimizer sgd or rmsprop or lars, not adam",
        ),
        ("train --nesterov", "--nesterov with adam is --optimizer nadam"),
        ("train --optimizer sgd --nesterov", "--nesterov needs --momentum"),
        ("train --weight-decay .1", "--weight-decay goes with --optimizer adamw"),
        ("train --clip-norm 0", "expected a number above 0, got '0'"),
        ("train --epochs 2.5", "expected a whole number of at least 1, got '2.5'"),
        ("train --seed -1", "expected a whole number of at least 0, got '-1'"),
        ("compare --seed 4294967296", "expected a whole number of at most 2,147,483,647"),
        ("compare --optimizers sgd,nestrov", "did you mean 'nesterov'?"),
        ("train --data-dir .", "--data-dir: the digits come with the package"),
        ("predict", "the following arguments are required: IMAGE"),
        ("train now", "unrecognized arguments: now"),
        ("train a\nb", "unrecognized arguments: a b"),
        ("trian", "invalid choice: 'trian'"),
        ("train --data a\0b", "expected a path"),
        ("train --resume", "--resume: there is no run with checkpoints under runs/"),
        (
            "train --checkpoint-every 0",
            "expected a whole number of at least 1, got '0'; or 'epoch'",
        ),
        ("train --keep-checkpoints 0", "expected a whole number of at least 1, got '0'"),
        ("train --processes 2", "--processes and --process-id go with --coordinator HOST:PORT"),
        (
            "train --coordinator here",
            "--coordinator takes HOST:PORT, such as 10.0.0.1:1234, got",
        ),
        ("train --coordinator h:1", "needs --processes N and --process-id I"),
        (
            "train --coordinator h:1 --processes 2 --process-id 2",
            "--process-id counts from 0 to 1, got 2",
        ),
        (
            "train --coordinator h:1 --processes 2 --process-id 1",
            "--coordinator needs --out DIR, a folder that all processes share",
        ),
        (
            "train --parallel pmap --shard-state",
            "--shard-state goes with --parallel jit, not pmap",
        ),
        ("train --parallel threads", "unknown way to run in parallel 'threads'"),
        ("train --shard-state zero3", "unknown way to divide the state 'zero3'"),
        ("train --accumulate 0", "expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_usage_gets_one_line(here, arguments, message):
    ran = vanishjax(*arguments.split(" "))
    assert ran.status == 2
    assert message in ran.error
    assert not list(here.iterdir())


def test_no_command_shows_what_one_can_do_on_one_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = vanishjax()
    assert ran.status == 2
    assert all(f"    {command.NAME} " in ran.out for command in cli.COMMANDS)
    assert "vanishjax compare --quick" in ran.out
    lines = ran.out.splitlines()
    assert len(lines) <= 23  # and the next prompt
    assert max(map(len, lines)) <= 80
    assert vanishjax("--version").out.startswith("vanishjax ")


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.NAME)
def test_help_fits_the_terminal(command, monkeypatch):
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = vanishjax(command.NAME, "--help").out.splitlines()
        assert columns - 20 < max(map(len, lines)) <= columns
        assert "JSON (null where a number isn't finite):" in lines


FLAGS = sorted(
    {
        flag
        for command in cli.COMMANDS
        for flag in re.findall(r"--[a-z-]+", vanishjax(command.NAME, "--help").out)
    }
)
WORDS = st.sampled_from(
    [*FLAGS, "train", "compare", "predict", "1", "0", "-1", "adam", "sgd,adam", ".5", "", "--", "-"]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(WORDS | st.text(max_size=5), max_size=6))
def test_no_arguments_get_a_traceback(here, monkeypatch, arguments):
    from vanishjax.cli import inputs

    def stop(*arguments):
        raise ValueError("stopped before the work")

    monkeypatch.setattr(inputs, "load_data", stop)
    ran = vanishjax(*arguments)
    if ran.out:
        assert ran.err == ""
    else:
        assert (ran.status, len(ran.err.splitlines())) == (2, 1), ran


# --- images and models


def huge_png():
    """A PNG whose header claims 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)

    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT", b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    Path("a.png").write_bytes(content)


def truncated_png():
    Image.effect_noise((64, 64), 50).save("a.png")
    content = Path("a.png").read_bytes()
    Path("a.png").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "a.png: no such file; give the path of an image"),
        (lambda: Path("a.png").mkdir(), "a.png: is a folder; give the path of an image"),
        (lambda: Path("a.png").write_text("hello"), "a.png: not an image that can be read"),
        (lambda: Path("a.png").touch(), "a.png: not an image that can be read"),
        (truncated_png, "a.png: truncated or damaged image"),
        (huge_png, "a.png: over the limit of 50000000 pixels"),
    ],
)
def test_predict_refuses_what_is_no_image(here, make, message):
    make()
    ran = vanishjax("predict", "a.png", "--model", "model.safetensors")
    assert ran.status == 2
    assert message in ran.error


def foreign_model(**description):
    folder = Path("model.safetensors")
    shapes = {"hidden_0": (64, 2), "output": (2, 3)}
    params = {
        name: {"kernel": np.zeros(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}
        for name, shape in shapes.items()
    }
    architecture = {"in_features": 64, "hidden": [2], "classes": 3, "activation": "relu"}
    save_model(folder, TrainedModel(params, architecture, description))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "model.safetensors: no such model file; train one with"),
        (lambda: Path("model.safetensors").touch(), "not a model that `vanishjax train` saved"),
        (lambda: foreign_model(data="texts"), "was trained on texts, whose inputs are no images"),
        (lambda: foreign_model(image_shape=[8, 8]), "predicts a number, not classes"),
        (lambda: foreign_model(image_shape=[8, 7], classes=3), "but its network takes 64 inputs"),
        (lambda: foreign_model(image_shape=[10**400, 8], classes=3), "null or height and width"),
        (
            lambda: foreign_model(
                image_shape=[8, 8], classes=3, normalization={"offset": 0, "scale": 1e-300}
            ),
            "its normalization takes the image's pixels beyond float32",
        ),
        (lambda: foreign_model(image_shape=[8, 8], classes=3), "normalization: offset and scale"),
    ],
)
def test_predict_refuses_what_is_no_model(here, make, message):
    make()
    Image.linear_gradient("L").save("a.png")
    ran = vanishjax("predict", "a.png", "--model", "model.safetensors")
    assert ran.status == 2
    assert message in ran.error


def test_predict_without_a_model_says_how_to_get_one(here):
    ran = vanishjax("predict", "a.png")
    assert ran.status == 2
    assert ran.error == (
        "vanishjax: error: no trained model under runs/; run `vanishjax train` first, or name one "
        "with --model"
    )


# --- output folders


def folder_with_results():
    Path("old").mkdir()
    Path("old/train.json").write_text("{}")
    return "old"


def below_a_file():
    return f"{file_in_the_way()}/out"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folder_with_results, "--out old: already holds train.json; name another folder, or pass"),
        (file_in_the_way, "--out afile: is a file; name another folder with --out"),
        # Permission bits don't bind root, under whom tests may run; a file does.
        (below_a_file, "--out afile/out: can't write there (Not a directory); name another"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_an_output_folder_that_cannot_be_used(here, make, message, command):
    if command == "compare":
        message = message.replace("train.json", "compare.json")
    out = make()
    if out == "old":
        Path("old/compare.json").write_text("{}")
    ran = vanishjax(command, "--quick", "--out", out)
    assert ran.status == 2
    assert message in ran.error


def test_runs_that_cannot_be_made(here):
    Path("runs").touch()
    ran = vanishjax("train", "--quick")
    assert ran.status == 2
    assert ran.error == "vanishjax: error: runs: is a file; name another folder with --out"


def test_help_and_errors_come_before_the_heavy_imports(here):
    commands = """
        --help
        train --help
        compare --help
        predict --help
        --version
        train --optimizer adan
        train --data nowhere
        train --batch-size 5000
        train --out commands
        compare --data nowhere
        compare --out commands
        atlas --help
        atlas --inits lecum
        atlas --data nowhere
        atlas --out commands
        predict nowhere.png
        predict nowhere.png --model commands
    """
    check_no_heavy_imports(filter(None, map(str.strip, commands.splitlines())))


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "--out"),
        ("train", "--data"),
        ("train", "--data-dir"),
        ("train", "--tensorboard"),
        ("compare", "--out"),
        ("atlas", "--data"),
        ("cure", "--out"),
        ("diagnose", "--out"),
        ("predict", "--model"),
    ],
)
def test_an_empty_path_is_refused(here, command, option):
    image = ["image.png"] if command == "predict" else []
    for empty in ("", " ", "\0"):
        ran = vanishjax(command, *image, option, empty)
        assert ran.status == 2
        assert f"argument {option}: expected a path, got {empty!r}" in ran.error
    assert not list(here.iterdir())


def test_no_image_is_refused(here):
    ran = vanishjax("predict", "")
    assert ran.status == 2
    assert "argument IMAGE: expected a path, got ''" in ran.error
