"""`vanishjax diagnose`: what it says of an MLP and of a user's own network, and what it refuses."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import vanishjax as vj
from tests.commands import check_documented, check_no_heavy_imports, read_json, vanishjax
from vanishjax import cli, initializers
from vanishjax.cli import network
from vanishjax.training.data import load_dataset

DEEP_SIGMOID = ("diagnose", "--activation", "sigmoid", "--depth", "24")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """The folder of a report on a deep sigmoid network, and what was printed."""
    folder = tmp_path_factory.mktemp("sick") / "report"
    return folder, vanishjax(*DEEP_SIGMOID, "--out", folder)


def rules(result):
    return [finding["rule"] for finding in result["findings"]]


# --- an MLP by options


def test_a_shallow_network_is_healthy(here):
    ran = vanishjax("diagnose", "--strict")
    assert (ran.status, ran.err) == (0, "")
    first, blank, header, *layers = ran.out.splitlines()
    assert first.startswith("Healthy")
    assert blank == ""
    assert header.startswith("layer ")
    assert [line.split()[0] for line in layers] == [
        "hidden_0/kernel",
        "hidden_1/kernel",
        "output/kernel",
    ]
    assert not list(here.iterdir())


def test_the_optimizer_is_described_as_for_train(here, monkeypatch):
    """The article's own: its momentum and clip reach the transform that is looked at."""
    seen = {}
    made = network.described_optimizer

    def spy(options, layers, total_steps):
        seen.update(vars(options))
        return made(options, layers, total_steps)

    monkeypatch.setattr(network, "described_optimizer", spy)
    arguments = ["--optimizer", "sgd", "--momentum", ".9", "--nesterov", "--clip-norm", "1"]
    assert vanishjax("diagnose", *arguments).status == 0
    asked = (seen["optimizer"], seen["momentum"], seen["nesterov"], seen["clip_norm"])
    assert asked == ("sgd", 0.9, True, 1.0)
    ran = vanishjax("diagnose", "--optimizer", "sgd", "--nesterov")
    assert (ran.status, "--nesterov needs --momentum" in ran.err) == (2, True)


def test_a_deep_sigmoid_is_not(sick):
    folder, ran = sick
    assert (ran.status, ran.err) == (0, "")
    first, *rest = ran.out.splitlines()
    assert first == "Won't train: mean collapse and vanishing gradient."
    assert any(line.startswith("✗ vanishing gradient: hidden_0/kernel") for line in rest)
    assert any("1. re-initialize" in line for line in rest)
    assert rest[-1] == f"saved diagnosis.json and diagnosis.png in {folder}"
    assert max(map(len, rest[:-1])) <= 100
    assert {path.name for path in folder.iterdir()} == {"diagnosis.json", "diagnosis.png"}


def test_the_picture_is_one(sick):
    folder, _ = sick
    with Image.open(folder / "diagnosis.png") as image:
        assert image.format == "PNG"
        assert image.size == (1500, 690)
        pixels = np.asarray(image.convert("L"))
    assert 0.02 < np.mean(pixels < 200) < 0.3


def test_json_is_the_verdict_and_nothing_else(sick, here):
    folder, _ = sick
    ran = vanishjax(*DEEP_SIGMOID, "--json", "--out", "again")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == Path("again/diagnosis.json").read_text()
    assert ran.json == read_json(folder / "diagnosis.json")
    train = load_dataset("digits").train
    problem = vj.mlp_problem(64, (64,) * 24, 10, activation="sigmoid", tx=vj.adam(1e-3))
    expected = vj.diagnose(
        problem.loss_fn, problem.params, (train.inputs[:256], train.labels[:256]), problem.tx
    )
    found = ran.json
    check_documented(found, cli.diagnose)
    assert found["healthy"] is expected.healthy is False
    assert rules(found) == [finding.rule for finding in expected.findings]
    assert found["probe"]["names"] == list(expected.probe.names)
    assert found["probe"]["batch_size"] == 256
    np.testing.assert_allclose(found["probe"]["log_chi"], expected.probe.log_chi, rtol=1e-3)
    np.testing.assert_allclose(found["effectiveness"], expected.effectiveness, rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--init critical_orthogonal", 0),
        # A stricter limit where steps shrink with the gradient.
        ("--depth 6", 0),
        ("--depth 6 --optimizer sgd", 1),
    ],
)
def test_strict_is_for_machines(arguments, status):
    ran = vanishjax(*DEEP_SIGMOID, "--strict", "--json", *arguments.split())
    assert (ran.status, ran.err) == (status, "")
    assert ran.json["healthy"] is (status == 0)


def test_every_option_reaches_the_network(here, monkeypatch):
    seen = []

    def look(loss_fn, params, batch, tx, *, steps):
        assert steps is None
        seen.append((params, batch, tx))
        raise ValueError("seen")

    monkeypatch.setattr("vanishjax.health.diagnose", look)
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.savez("lines.npz", x=x, y=x.sum(1))
    for arguments in (
        "--data lines.npz --loss squared_error --hidden 5,7 --seed 3 --dtype bfloat16",
        "--hidden 5 --batch-size 9 --init he --optimizer lars",
        "--hidden 5 --seed 1 --batch-size 1150 --optimizer sgd --learning-rate 0.5",
        "--depth 3 --width 8 --activation sigmoid --init critical_normal",
        "--depth 3 --width 8 --activation sigmoid --init critical_normal --residual scaled",
    ):
        ran = vanishjax("diagnose", *arguments.split())
        assert (ran.status, ran.error) == (2, "vanishjax: error: seen"), arguments
    lines, he, seeded, critical, residual = seen

    params, (inputs, labels), _ = lines
    assert params["hidden_1"]["kernel"].shape == (5, 7)
    assert params["output"]["kernel"].shape == (7, 1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((params, inputs))} == {"bfloat16"}
    # All there are, since no other number was asked for.
    assert 20 < len(inputs) == len(labels) < 60
    refused = vanishjax("diagnose", "--data", "lines.npz", "--loss", "squared_error",
                        "--batch-size", "60")  # fmt: skip
    assert "--batch-size 60: there are only" in refused.error

    params, (inputs, _), tx = he
    assert len(inputs) == 9
    drawn = jax.nn.initializers.he_normal()
    expected = vj.mlp_problem(64, (5,), 10, kernel_init=drawn, key=jax.random.key(0)).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    tx.update(params, tx.init(params), params)

    params, (inputs, labels), tx = seeded
    train = load_dataset("digits", seed=1).train
    np.testing.assert_array_equal(inputs, train.inputs)
    np.testing.assert_array_equal(labels, train.labels)
    expected = vj.mlp_problem(64, (5,), 10, key=jax.random.key(1)).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["output"]["kernel"], -0.5 * params["output"]["kernel"])

    # Centered where an activation feeds the next layer, not where a stream does.
    params, residual_params = critical[0], residual[0]
    bias = initializers.critical_bias("sigmoid")
    drawn = initializers.critical_normal("sigmoid")
    architecture = {"activation": "sigmoid", "kernel_init": drawn, "bias_init": bias}
    expected = vj.mlp_problem(64, (8,) * 3, 10, **architecture, residual="scaled").params
    jax.tree.map(np.testing.assert_array_equal, residual_params, expected)
    kernel, shifted = params["output"]["kernel"], params["output"]["bias"]
    plain = vj.mlp_problem(64, (8,) * 3, 10, **architecture).params["output"]["bias"]
    np.testing.assert_allclose(shifted, plain - 0.5 * kernel.sum(0), rtol=1e-5, atol=1e-6)


# --- a network of the user's own

NETWORKS = """
import jax, jax.numpy as jnp, optax
import numpy as np
import vanishjax as vj

print("imported")
x, y = jax.random.normal(jax.random.key(0), (32, 8)), jnp.arange(32) % 4
batch = (x, y)
params = {"w": jax.random.normal(jax.random.key(1), (8, 4))}


def loss_fn(params, batch):
    print("traced")
    return jnp.mean((batch[0] @ params["w"]) ** 2)


def healthy():
    print("made")
    return loss_fn, params, batch


def with_tx():
    return [lambda p, b: 1e-20 * loss_fn(p, b), params, batch, optax.adam(1e-3)]


def of_problem():
    return vj.mlp_problem(8, (32,) * 24, 4, activation="sigmoid"), batch


def late():
    def loss(params, batch):
        import beside

        return beside.loss(params, batch)

    return loss, params, batch


def several():
    return loss_fn, params, [batch] * 3


def a_list():
    return loss_fn, params, [x, y]


def several_wrong():
    return loss_fn, params, [(x.T, y)] * 3


def nan():
    return loss_fn, params, (x.at[3, 1].set(jnp.nan), y)


def empty():
    return loss_fn, params, (x[:0], y)


def vector():
    return lambda p, b: (b[0] @ p["w"])[:, 0], params, batch


def number():
    return lambda p, b: jnp.argmax(b[0] @ p["w"]), params, batch


def integers():
    return loss_fn, {"w": jnp.ones((8, 4), int)}, batch


def loop():
    def loss(params, batch):
        return jax.lax.while_loop(lambda c: c < 9, lambda c: 2 * c, jnp.sum(batch[0] @ params["w"]))

    return loss, params, batch


def callback():
    def loss(params, batch):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(np.sum, shape, batch[0] @ params["w"])

    return loss, params, batch


def mismatch():
    return lambda p, b: jnp.sum(b[0] @ p["w"].T), params, batch


def one_argument():
    return lambda p: 0.0, params, batch


def words():
    return loss_fn, params, (x, np.array(["a"] * 32, object))


def raises():
    return {}["missing"]


def leaves():
    raise SystemExit(3)


def needs(depth):
    return healthy()


def nothing():
    pass


def two():
    return loss_fn, params


def problem_alone():
    return of_problem()[0]


def swapped():
    return params, loss_fn, batch


def no_tx():
    return loss_fn, params, batch, 0.001
"""


MAIN = "import sys; from vanishjax.cli import main; sys.exit(main())"


@pytest.fixture
def networks(here, monkeypatch):
    """A file of networks in the current folder, and a module beside it."""
    Path("networks.py").write_text(NETWORKS)
    Path("beside.py").write_text(
        "def loss(params, batch):\n    return (batch[0] @ params['w']).std()\n"
    )
    before = set(sys.modules)
    yield here
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(here)):
            del sys.modules[name]


def line_of(text):
    lines = NETWORKS.splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return f"(networks.py:{number})"


def test_of_a_list_of_batches_the_first_is_looked_at(networks):
    ran = vanishjax("diagnose", "networks.py:several", "--json")
    assert ran.status == 0
    assert ran.json["probe"]["batch_size"] == 32
    looked = "networks.py:several: looked at the first of its list of 3 batches"
    assert looked in ran.err
    ran = vanishjax("diagnose", "networks.py:several", "--steps", 5, "--json")
    assert f"{looked}, and judged the steps by the second" in ran.err
    assert ran.json["learning"]["held_out"] is not None
    one = vanishjax("diagnose", "networks.py:a_list", "--json")
    assert (one.status, one.json["probe"]) == (0, ran.json["probe"])
    assert "first of" not in one.err
    wrong = vanishjax("diagnose", "networks.py:several_wrong")
    assert (wrong.status, "first of" in wrong.err) == (2, False)
    assert "networks.py:several_wrong: its loss_fn raised TypeError" in wrong.err


def test_a_target_is_imported_called_and_looked_at(networks):
    path = list(sys.path)
    for target in ("networks.py:healthy", "networks:healthy", f"{networks}/networks.py:healthy"):
        ran = vanishjax("diagnose", target, "--json", "--strict")
        assert ran.status == 0
        assert ran.json["probe"]["names"] == ["w"]
        assert ran.json["probe"]["batch_size"] == 32
        assert ran.json["effectiveness"] is None
        # What it prints isn't part of the result.
        said = ran.err.splitlines()
        assert said[:2] == ["imported", "made"]
        assert set(said[2:]) == {"traced"}
    assert sys.path == path


def test_a_target_may_import_from_its_own_folder_late(networks):
    Path("deep/down").mkdir(parents=True)
    for file in ("networks.py", "beside.py"):
        Path(file).rename(Path("deep/down", file))
    ran = vanishjax("diagnose", "deep/down/networks.py:late", "--json")
    assert (ran.status, ran.err) == (0, "imported\n")


def test_a_file_imports_nothing_of_the_current_folder(networks):
    """As under `python FILE`; a module does, as under `python -m`."""
    Path("deep").mkdir()
    Path("networks.py").rename(Path("deep", "networks.py"))
    ran = vanishjax("diagnose", "deep/networks.py:late")
    assert ran.status == 2
    assert "its loss_fn raised ModuleNotFoundError: No module named 'beside'" in ran.err
    assert vanishjax("diagnose", "deep.networks:late", "--json").status == 0


@pytest.mark.parametrize("launcher", [["-m", "vanishjax"], ["-c", MAIN]])
def test_a_file_in_the_current_folder_stands_in_for_no_library(networks, launcher):
    Path("deep").mkdir()
    Path("deep", "net.py").write_text("import jax\n\ndef f():\n    raise ValueError(jax.__name__)")
    Path("jax.py").write_text("raise SystemExit('run')")
    environment = os.environ | {"PYTHONPATH": str(Path(vj.__file__).parents[1])}
    command = [sys.executable, *launcher, "diagnose", "deep/net.py:f"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    place = f"({Path('deep', 'net.py')}:4)"
    assert done.stderr == f"vanishjax: error: deep/net.py:f raised ValueError: jax {place}\n"


def test_a_target_brings_its_optimizer(networks):
    ran = vanishjax("diagnose", "networks.py:with_tx", "--json", "--strict")
    assert ran.status == 1
    assert rules(ran.json) == ["blind_optimizer"]


def test_a_target_may_be_a_problem(networks):
    ran = vanishjax("diagnose", "networks:of_problem", "--strict", "--out", "report")
    assert ran.status == 1
    assert ran.out.startswith("Won't train: mean collapse and vanishing gradient.")
    result = read_json("report/diagnosis.json")
    assert rules(result) == ["mean_collapse", "vanishing_gradient", "blind_optimizer"]
    assert len(result["effectiveness"]) == 50


def test_older_results_are_replaced_only_on_request(networks):
    Path("report").mkdir()
    Path("report/diagnosis.json").write_text("old")
    refused = vanishjax("diagnose", "networks:healthy", "--out", "report")
    assert refused.status == 2
    assert "--out report: already holds diagnosis.json; name another folder" in refused.error
    assert [path.read_text() for path in Path("report").iterdir()] == ["old"]
    assert vanishjax("diagnose", "networks:healthy", "--out", "report", "--overwrite").status == 0
    assert read_json("report/diagnosis.json")["healthy"] is True
    assert Path("report/diagnosis.png").exists()


@pytest.mark.parametrize(
    ("target", "color"), [("networks:healthy", "1;32"), ("networks:with_tx", "1;31")]
)
def test_a_terminal_gets_color_and_progress(networks, monkeypatch, target, color):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    ran = vanishjax("diagnose", target)
    assert ran.status == 0
    assert ran.out.startswith(f"\x1b[{color}m")
    assert "compiling the network" in ran.err
    assert "\x1b" not in vanishjax("diagnose", target, "--json").out


def test_a_terminal_that_knows_no_blocks_gets_question_marks(networks):
    written = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(written, "ascii")) as out:
        assert cli.main(["diagnose", "networks:healthy"]) == 0
        out.flush()
    assert b"????" in written.getvalue()


RETURNS = "must return (loss_fn, params, batch), (loss_fn, params, batch, tx) or (problem, batch)"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nan", ": batch[0] holds 1 values that are infinite or NaN, the first at index (3, 1)"),
        ("empty", ": batch[0] is empty: its shape is (0, 8)"),
        ("vector", ": loss_fn must return a scalar or (scalar, aux), got (32,)"),
        ("number", ": loss_fn must return a real number to be differentiated, got int32"),
        ("integers", ": w: expected a real floating-point leaf, got int32[8,4]"),
        ("loop", ": loss_fn can't be differentiated: Reverse-mode differentiation does not work"),
        (
            "callback",
            ": its loss_fn raised ValueError: Pure callbacks do not support JVP. Please use "
            "`jax.custom_jvp` to use callbacks while taking gradients. "
            + line_of("jax.pure_callback"),
        ),
        (
            "mismatch",
            ": its loss_fn raised TypeError: dot_general requires contracting dimensions to have "
            "the same shape, got (8,) and (4,). " + line_of('p["w"].T'),
        ),
        ("one_argument", ": its loss_fn raised TypeError: one_argument.<locals>.<lambda>() takes"),
        ("words", ": batch[1] is an array of object: pass numbers"),
        ("raises", " raised KeyError: 'missing' " + line_of('{}["missing"]')),
        ("leaves", " raised SystemExit: 3 " + line_of("SystemExit(3)")),
        ("needs", " raised TypeError: needs() missing 1 required positional argument: 'depth'"),
        ("nothing", f": {RETURNS}, got None"),
        ("two", f": {RETURNS}, got (function, dict)"),
        ("problem_alone", f": {RETURNS}, got Problem"),
        ("swapped", ": must return loss_fn(params, batch) first, a function, got (dict, function,"),
        ("no_tx", ": must return a gradient transform with init and update fourth, such as"),
        ("params", ": is no function but dict; name a function that returns (loss_fn, params"),
    ],
)
def test_what_is_wrong_with_a_target(networks, function, message):
    ran = vanishjax("diagnose", f"networks.py:{function}", "--out", "report")
    assert ran.status == 2
    assert ran.out == ""
    said = [line for line in ran.err.splitlines() if line not in ("imported", "made", "traced")]
    assert len(said) == 1
    assert said[0].startswith(f"vanishjax: error: networks.py:{function}{message}")
    assert not Path("report/diagnosis.json").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("networks", "networks: say which function returns the network, as networks:FUNCTION"),
        ("networks.py", "networks.py: say which function returns the network, as networks.py:FUN"),
        ("", "TARGET: say which function returns the network, as MODULE:FUNCTION"),
        ("networks:", "networks:: expected MODULE:FUNCTION or FILE.py:FUNCTION"),
        (":healthy", ":healthy: expected MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("a b:c", "a b:c: expected MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("a\0.py:c", "expected MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("nowhere.py:f", "nowhere.py: no such file"),
        ("./:f", "./: is a folder"),
        ("./text.txt:f", "./text.txt: not a Python file; its name must end in .py"),
        ("nettworks:f", "nettworks: no module named 'nettworks', neither in "),
        ("nettworks:f", "nor installed; did you mean 'networks'?"),
        ("beside.net:f", "beside.net: no module named 'beside.net', neither in "),
        ("beside:los", "beside: has no function 'los'; did you mean 'loss'?"),
        (
            "needy:f",
            "needy: importing it raised ModuleNotFoundError: No module named 'torch_of_mine' "
            "(needy.py:2)",
        ),
        ("needy.py:f", "needy.py: importing it raised ModuleNotFoundError: No module named 'torch"),
        ("broken:f", "broken: importing it raised SyntaxError: invalid syntax (broken.py:2)"),
        ("broken.py:f", "broken.py: importing it raised SyntaxError: invalid syntax (broken.py:2)"),
    ],
)
def test_a_target_that_cannot_be_found(networks, target, message):
    Path("needy.py").write_text("x = 1\nimport torch_of_mine\n")
    Path("broken.py").write_text("x = 1\ndef (:\n")
    Path("text.txt").touch()
    ran = vanishjax("diagnose", target)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "net:make --seed 0 --batch-size 8",
            "--batch-size, --seed: for an MLP of ours; net:make brings its own network, batch and",
        ),
        ("net:make --optimizer adam --activation relu", "--activation, --optimizer: for an MLP"),
        ("--init hee", "unknown initializer 'hee': did you mean 'he'? known: lecun, he, critical"),
        ("--overwrite", "--overwrite goes with --out: without it nothing is written"),
        ("--hidden 8 --depth 2", "--depth and --hidden both say how many layers"),
        ("--width 8", "--width goes with --depth"),
        ("--batch-size 1151", "--batch-size 1151: there are only 1150 training examples"),
        ("--optimizer adan", "unknown optimizer 'adan': did you mean 'adam'?"),
        ("--learning-rate 0", "expected a number above 0, got '0'"),
        ("--data nowhere", "nowhere: no such data set or file"),
        ("--data-dir .", "--data-dir: the digits come with the package"),
        ("--out afile", "--out afile: is a file; name another folder with --out"),
        ("--activation softplus --init critical-normal", "has no critical point"),
        ("net:make again", "unrecognized arguments: again"),
    ],
)
def test_bad_usage_gets_one_line(here, arguments, message):
    Path("afile").touch()
    ran = vanishjax("diagnose", *arguments.split())
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.error
    assert [path.name for path in here.iterdir()] == ["afile"]


FLAGS = ["--" + name.replace("_", "-") for name in [*network.NETWORK, "out", "json", "strict"]]
WORDS = st.sampled_from([*FLAGS, "1", "0", "adam", "a:b", "a.py:b", ":", "", "--", "-"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(WORDS | st.text(max_size=5), max_size=5))
def test_no_arguments_get_a_traceback(here, monkeypatch, arguments):
    from vanishjax.cli import inputs

    def stop(*arguments):
        raise ValueError("stopped before the work")

    monkeypatch.setattr(inputs, "load_data", lambda *arguments, **options: stop())
    ran = vanishjax("diagnose", *arguments)
    if ran.out:
        assert ran.err == ""
    else:
        assert (ran.status, len(ran.err.splitlines())) == (2, 1), ran


def test_the_options_have_the_defaults_that_the_help_names():
    shown = " ".join(vanishjax("diagnose", "--help").out.split())
    for name in ("activation", "init", "loss", "optimizer", "data", "seed", "dtype"):
        metavar = shown.index(f" --{name} ", shown.index("TARGET module"))
        described = shown[metavar:].split(" --")[1]
        assert f"(default: {network.NETWORK[name]})" in described


def test_errors_come_before_the_heavy_imports(networks):
    commands = (
        "diagnose --help",
        "diagnose nowhere:make",
        "diagnose nowhere.py:make",
        "diagnose beside:los",
        "diagnose --data nowhere",
        "diagnose --batch-size 5000",
        "diagnose --init hee",
        "diagnose --out commands",
    )
    check_no_heavy_imports(commands)
