"""`train --monitor`: what it shows, draws, writes and finds; and the loop's hook that feeds it."""

import contextlib
import io
import itertools
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import vanishjax as vj
from tests.commands import read_json, vanishjax
from vanishjax import cli, report
from vanishjax.cli.observer import MOST_OBSERVATIONS, Observer
from vanishjax.health import Health, monitor, read_health
from vanishjax.model_file import load_model
from vanishjax.training import TrainState, fit
from vanishjax.training.loop import CHUNK

NETWORK = ["train", "--depth", "12", "--width", "16", "--epochs", "3"]
SIGMOID = [*NETWORK, "--activation", "sigmoid"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the loop's hook


def quadratic(w, batch):
    return jnp.mean((w - batch) ** 2)


def observed_run(examples, batch_size=1, epochs=1, **arguments):
    tx = vj.sgd(0.01)
    state = TrainState.create(jnp.zeros(()), tx)
    train = jnp.arange(examples, dtype=jnp.float32)
    return fit(quadratic, tx, state, train, epochs=epochs, batch_size=batch_size, **arguments)


def test_fit_hands_out_every_step_in_order():
    # More steps than a chunk holds, and a smaller last batch; each epoch's before its on_epoch.
    seen, calls = [], []
    state, _ = observed_run(
        2 * CHUNK * 2 + 7,
        batch_size=2,
        epochs=2,
        observe=lambda state: {"step": state.step, "w": state.params},
        on_observed=lambda values: (seen.append(values), calls.append("steps")),
        on_epoch=lambda progress: calls.append("epoch"),
    )
    steps = np.concatenate([values["step"] for values in seen])
    assert steps.tolist() == list(range(1, 2 * (2 * CHUNK + 4) + 1))
    assert all(isinstance(values["w"], np.ndarray) for values in seen)
    assert seen[-1]["w"][-1] == state.params
    assert [call for call, _ in itertools.groupby(calls)] == ["steps", "epoch"] * 2


def test_fit_observed_is_fit():
    plain, history = observed_run(230)
    seen = []
    observed, same = observed_run(230, observe=lambda state: state.params, on_observed=seen.append)
    chex.assert_trees_all_close(plain.params, observed.params, rtol=1e-6)
    assert history.last["loss"] == pytest.approx(same.last["loss"], rel=1e-6)


def test_an_interrupted_fit_hands_out_what_was_done():
    seen = []

    def interrupt(steps):
        if not seen:
            signal.raise_signal(signal.SIGINT)
        seen.extend(steps)

    state, history = observed_run(
        CHUNK * 20, observe=lambda state: state.step, on_observed=interrupt
    )
    assert history.interrupted
    assert seen == list(range(1, int(state.step) + 1))
    assert int(state.step) == 2 * CHUNK


@pytest.mark.parametrize("name", ["observe", "on_observed"])
def test_fit_wants_both_or_none(name):
    with pytest.raises(ValueError, match="observe and on_observed go together"):
        observed_run(4, **{name: lambda values: values})


# --- end to end


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """A network whose first layers starve: its folder, what it printed, its result."""
    folder = tmp_path_factory.mktemp("sick")
    ran = vanishjax(*SIGMOID, "--monitor-every", 4, "--out", folder / "run",
                    "--tensorboard", folder / "events")  # fmt: skip
    assert ran.status == 0
    return folder, ran, read_json(folder / "run" / "train.json")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The same with ReLU, its result on standard output."""
    folder = tmp_path_factory.mktemp("healthy") / "run"
    ran = vanishjax(*NETWORK, "--monitor", "--monitor-every", 4, "--json", "--out", folder)
    assert ran.status == 0
    return folder, ran


def heat_rows(ran):
    lines = ran.err.splitlines()
    return [line.split("gradients ")[1].split()[0] for line in lines if line.startswith("epoch")]


def test_a_starving_network_is_found_and_named(sick):
    folder, ran, result = sick
    seen = result["monitor"]
    assert [finding["rule"] for finding in seen["findings"]] == ["blind_optimizer"]
    assert seen["findings"][0]["layers"][0] == "hidden_0/kernel"
    assert seen["every"] == 4
    assert seen["steps"] == list(range(0, 54, 4))
    assert len(seen["layers"]) == 26
    final = seen["final"]
    assert set(Health._fields) < set(final)
    assert final["step"] == 52
    assert final["gradient_rms"][0] < 1e-6 * final["gradient_rms"][-1]
    sizes = [64 * 16, 16, *[16 * 16, 16] * 11, 16 * 10, 10]
    assert final["gradient_norm"] == pytest.approx(final["gradient_rms"] * np.sqrt(sizes))
    assert "Blind optimizer (warning): hidden_0/kernel" in ran.out
    assert "Weakest gradient, hidden_0/kernel: " in ran.out
    assert f"saved model.safetensors, train.json, curves.png, monitor.png in {folder}" in ran.out
    assert f"next: tensorboard --logdir {folder / 'events'}" in ran.out
    assert "next: vanishjax diagnose, or cure, with the same options" in ran.out
    assert "next: vanishjax predict" not in ran.out


def test_without_a_terminal_each_epoch_is_one_plain_line(sick):
    _, ran, _ = sick
    start, *epochs = ran.err.splitlines()
    assert start.startswith("digits: ")
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for line, row in zip(epochs, heat_rows(ran), strict=True):
        assert len(row) == 26
        # It falls from the output to the input.
        assert list(row) == sorted(row)
        assert row[0] == "▁"
        assert row[-1] == "█"
        assert "weakest hidden_0/" in line
        assert "\x1b" not in line


def test_a_healthy_network_gets_no_finding_and_json_is_alone_on_stdout(healthy):
    folder, ran = healthy
    assert ran.out == (folder / "train.json").read_text()
    assert ran.json["monitor"]["findings"] == []
    assert set(heat_rows(ran)[-1]) <= set("▅▆▇█")
    assert (folder / "monitor.png").exists()


def test_monitoring_changes_no_number(healthy, here):
    folder, _ = healthy
    watched = read_json(folder / "train.json")
    plain = vanishjax(*NETWORK, "--json", "--out", "plain").json
    assert plain["monitor"] is None
    assert not Path("plain/monitor.png").exists()
    assert plain["settings"] == watched["settings"]
    assert plain["test_loss"] == pytest.approx(watched["test_loss"], rel=1e-4)
    assert plain["test_accuracy"] == pytest.approx(watched["test_accuracy"], abs=0.005)
    models = [load_model(path / "model.safetensors").params for path in (Path("plain"), folder)]
    chex.assert_trees_all_close(*models, rtol=1e-3, atol=1e-5)


def test_divergence_names_its_layers(here):
    ran = vanishjax("train", "--optimizer", "sgd", "--learning-rate", "1e30", "--quick",
                    "--hidden", "8", "--monitor", "--out", "run")  # fmt: skip
    assert ran.status == 1
    assert ran.err.splitlines()[-1].endswith("the loss became nan; try a smaller --learning-rate")
    seen = read_json("run/train.json")["monitor"]
    (finding,) = seen["findings"]
    assert finding["rule"] == "nonfinite"
    assert "output/kernel" in finding["layers"]
    assert seen["final"]["loss"] is None
    assert "Nonfinite (critical): " in ran.out
    assert ran.out.isascii()
    assert "not finite" in ran.out.splitlines()[-3]
    assert "!" in heat_rows(ran)[0]
    with Image.open("run/monitor.png") as image:
        assert image.format == "PNG"


def test_an_older_figure_is_guarded_and_does_not_outlive_its_run(here):
    Path("monitor.png").write_bytes(b"old")
    refused = vanishjax("train", "--quick", "--out", here)
    assert refused.status == 2
    assert "already holds monitor.png" in refused.error
    assert vanishjax("train", "--quick", "--out", here, "--overwrite").status == 0
    assert not Path("monitor.png").exists()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_shows_one_row_that_changes(here, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(Terminal()) as screen:
        assert cli.main([*SIGMOID, "--monitor", "--json"]) == 0
    json.loads(out.getvalue())
    shown = screen.getvalue()
    assert "\x1b[38;5;" in shown  # colored
    assert "\x1b[1A" in shown  # drawn over
    text = "\n".join(shown.splitlines()[-3:])
    assert "step 54/54  loss 2.3" in text
    assert "▁" in text
    assert "█" in text
    assert " output" in text
    assert "gradients" not in shown
    assert all(f"epoch {n}/3" in shown for n in (1, 2, 3))


# --- TensorBoard


def read_events(path):
    """The events of a file, each record's checksums tested."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data):
        crc = crc32c(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    data, events = path.read_bytes(), []
    while data:
        header, (length,) = data[:8], struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12])[0] == masked(header)
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(body)
        events.append(Event.FromString(body))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_every_observation(sick):
    folder, _, result = sick
    (path,) = (folder / "events").iterdir()
    assert "tfevents" in path.name
    version, *events = read_events(path)
    assert version.file_version == "brain.Event:2"
    seen = result["monitor"]
    assert [event.step for event in events] == seen["steps"]
    last = {value.tag: value.simple_value for value in events[-1].summary.value}
    assert last["loss"] == pytest.approx(seen["final"]["loss"])
    for quantity in ("gradient_norm", "update_ratio", "effectiveness"):
        assert [last[f"{quantity}/{name}"] for name in seen["layers"]] == pytest.approx(
            seen["final"][quantity]
        )
    assert len(last) == 1 + 3 * 26


def test_event_files_are_replaced_only_on_request(here):
    Path("events").mkdir()
    Path("events/events.out.tfevents.1.a").touch()
    arguments = (
        "train",
        "--quick",
        "--hidden",
        "4",
        "--optimizer",
        "sgd",
        "--tensorboard",
        "events",
    )
    refused = vanishjax(*arguments)
    assert refused.status == 2
    assert "--tensorboard events: already holds event files" in refused.err.splitlines()[-1]
    assert list(Path("runs").iterdir()) == []
    assert vanishjax(*arguments, "--overwrite").status == 0
    (path,) = Path("events").iterdir()
    assert len(read_events(path)) == 3


def test_a_file_in_the_way_of_the_events(here):
    Path("file").touch()
    ran = vanishjax("train", "--quick", "--tensorboard", "file")
    assert ran.status == 2
    assert "--tensorboard file: is a file; name a folder" in ran.err.splitlines()[-1]


def test_without_tensorboardx_one_line(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    ran = vanishjax("train", "--quick", "--tensorboard", "events")
    assert ran.status == 2
    assert ran.error == (
        "vanishjax: error: --tensorboard needs tensorboardX: pip install tensorboardX"
    )
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_a_bad_interval(here, value):
    ran = vanishjax("train", "--quick", f"--monitor-every={value}")
    assert ran.status == 2
    assert f"--monitor-every: expected a whole number of at least 1, got '{value}'" in ran.error


# --- the parts


def test_heat_row_counts_decades():
    rms = [1.0, 0.11, 0.09, 1.1e-3, 1e-7 * 1.1, 1e-30, 0.0, np.nan, np.inf]
    assert report.heat_row(rms, 80).plain == "██▇▆▂▁0!!"
    assert report.heat_row(np.array(rms) * 1e-30, 80).plain == "██▇▆▂▁0!!"
    assert report.heat_row(rms, 80, ascii_only=True).plain == "8876210!!"
    assert report.heat_row([0.0, 0.0], 80).plain == "00"
    assert report.heat_row([np.nan], 80).plain == "!"


def test_heat_row_pools_by_the_worst():
    rms = np.ones(1000)
    rms[137], rms[500], rms[999] = 1e-5, 0.0, np.nan
    row = report.heat_row(rms, 10).plain
    assert row == "█▃███0███!"
    assert len(report.heat_row(rms, 0).plain) == 1


def test_heat_row_is_told_apart_by_every_color_vision():
    # Red and green never tell; the ends differ in blue, which nearly everyone sees.
    spans = report.heat_row([1e-9, 1.0], 2).spans
    assert [str(span.style).lower() for span in spans] == ["#d55e00", "#0072b2"]


def test_weakest_layer():
    names = ["a", "b", "c"]
    assert report.weakest_layer(names, [1.0, 2e-4, 1e-3]) == "b: 2e-04 of the largest"
    assert report.weakest_layer(names, [1.0, 2e-4, 0.0]) == "c: zero"
    assert report.weakest_layer(names, [0.0, np.nan, np.inf]) == "b: not finite"


def summary(findings=(), still=(0, 0), ratios=(1e-3, 1e-3)):
    final = {"gradient_rms": [1.0, 0.5], "update_ratio": ratios, "still_steps": still}
    record = {"layers": ["a", "b"], "final": final, "findings": findings}
    return report.monitor_summary(record).splitlines()


def test_summary_says_only_what_is_true():
    assert summary()[0] == "All 2 layers kept moving, each by 1e-03 of its weights a step."
    assert summary(still=(2, 0), ratios=(0.0, 2e-3))[0] == (
        "1 of 2 layers moved at the end, each by 2e-03 of its weights a step."
    )
    assert summary(still=(2, 2), ratios=(0.0, 0.0))[0] == "0 of 2 layers moved at the end."
    assert summary()[-1] == "Weakest gradient, b: 5e-01 of the largest."


def test_summary_draws_layers_together():
    names = [f"s/{kind}[{i}]" for i in range(9) for kind in ("kernel", "bias")]
    finding = {"rule": "dead_units", "severity": "critical", "layers": names,
               "cause": "They died.", "remedies": ["rest", "more"]}  # fmt: skip
    assert summary([finding])[:3] == [
        "Dead units (critical): s/kernel[0..8], s/bias[0..8]",
        "  They died.",
        "  Try: rest",
    ]


def record(layers=4, steps=8):
    rng = np.random.default_rng(0)
    rms = 10.0 ** -rng.uniform(0, 2, (steps, layers))
    return {
        "layers": [f"w[{i}]" for i in range(layers)],
        "steps": list(range(0, 16 * steps, 16)),
        "loss": np.geomspace(2.3, 0.1, steps).tolist(),
        "gradient_rms": rms,
        "update_ratio": rms * 1e-3,
        "final": {
            "gradient_rms": rms[-1],
            "update_ratio": rms[-1] * 1e-3,
            "still_steps": [0] * layers,
        },
        "findings": [],
    }


def test_plot_monitor(tmp_path, figures):
    drawn = record()
    drawn["gradient_rms"][2:, 0] = 0.0
    drawn["gradient_rms"][5, 1] = np.nan
    assert report.plot_monitor(drawn, tmp_path / "a.png", "caption") == tmp_path / "a.png"
    loss, corner, heat, profile, bar = figures[0].axes
    assert figures[0].get_suptitle().startswith("All 4 layers kept moving")
    assert loss.get_ylabel() == "loss"
    assert (heat.get_xlabel(), profile.get_xlabel()) == ("training step", "update / weight")
    assert [label.get_text() for label in heat.get_yticklabels()] == drawn["layers"]
    # Steps stand above one another, and layers beside one another.
    assert loss.get_xlim() == heat.get_xlim() == (0, 128)
    assert heat.get_ylim() == profile.get_ylim() == (3.5, -0.5)
    legend = [text.get_text() for text in heat.get_legend().get_texts()]
    assert legend == ["exactly zero", "not finite"]
    pixels = heat.images[0].get_array()
    hexes = ["#" + bytes(np.round(255 * x[:3]).astype(np.uint8)).hex() for x in pixels[:2, -32]]
    assert hexes[0] == report.plots.OKABE_ITO["sky_blue"].lower()
    assert {line.get_xdata()[0] for line in profile.lines[:1]} == {1e-3}
    assert "1e-3, the rule of thumb" in [t.get_text() for t in corner.get_legend().get_texts()]
    # Six decades at least: a healthy network looks calm.
    assert np.diff(bar.get_ylim()) == 6


def test_plot_monitor_says_what_it_found_in_full(tmp_path, figures):
    drawn = record(layers=400)
    found = {"rule": "stalled_layer", "severity": "warning", "layers": drawn["layers"]}
    drawn["findings"] = [found]
    report.plot_monitor(drawn, tmp_path / "a.png")
    found["layers"] = [f"layer_of_many_words{i}" for i in range(0, 400, 2)]
    report.plot_monitor(drawn, tmp_path / "a.png")
    full, shortened = (figure.get_suptitle().replace("\n", " ") for figure in figures)
    assert full == "Stalled layer (warning): w[0..399]"
    assert shortened.endswith(" ...")
    assert len(shortened) <= 200


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (400, 3), (3, 1000)])
def test_plot_monitor_of_any_size(tmp_path, figures, layers, steps):
    report.plot_monitor(record(layers, steps), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 1650
        assert image.size[1] < 1600
    assert len(figures[0].axes[2].get_yticks()) <= 26


def test_plot_monitor_of_a_run_that_was_never_finite(tmp_path):
    drawn = record(2, 2)
    for name in ("loss", "gradient_rms", "update_ratio"):
        drawn[name] = np.full_like(drawn[name], np.nan)
    report.plot_monitor(drawn, tmp_path / "a.png")
    drawn["steps"] = []
    with pytest.raises(ValueError, match="no observations"):
        report.plot_monitor(drawn, tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def health(step, gradient=1.0):
    params = jnp.ones(2)
    tx = monitor(vj.sgd(0.1))
    _, state = tx.update(jnp.full(2, gradient), tx.init(params), params, value=jnp.float32(1.0))
    seen = jax.tree.map(np.asarray, read_health(state))
    return seen._replace(step=np.asarray(step, np.int32))


def observer(**arguments):
    console = Console(file=io.StringIO(), width=60)
    layers = SimpleNamespace(names=("w",))
    return Observer(console, layers, [2], 1, 5000, **arguments)


def test_observer_keeps_each_observation_once():
    watching, one = observer(), health(0)
    steps = [0, 0, 0, 3, 3, 6]
    stacked = Health(*(np.stack([np.asarray(field)] * 6) for field in one))
    watching.take((np.arange(1, 7), stacked._replace(step=np.array(steps, np.int32))))
    later = stacked._replace(step=np.array([6, 6, 9, 9, 9, 12], np.int32))
    watching.take((np.arange(7, 13), later))
    assert watching.result()["steps"] == [0, 3, 6, 9, 12]
    assert watching.result()["final"]["gradient_rms"] == pytest.approx([1.0])


def test_observer_stays_small_and_forgets_nothing_that_broke():
    good, bad = health(0), health(0, np.nan)
    watching = observer()
    count = 2 * MOST_OBSERVATIONS
    for step in range(count):
        one = bad if step == 301 else good
        stacked = jax.tree.map(lambda x: np.asarray(x)[None], one)
        stacked = stacked._replace(step=np.array([step], np.int32))
        watching.take((np.array([step + 1]), stacked))
    result = watching.result()
    assert len(result["steps"]) < MOST_OBSERVATIONS
    assert result["steps"][0] == 0
    assert result["steps"][-1] == count - 1
    assert 301 in result["steps"]
    (finding,) = result["findings"]
    assert (finding["rule"], finding["evidence"]["first_step"]) == ("nonfinite", 301)


def test_the_report_room_needs_no_tensorboardx():
    code = (
        "import sys; sys.modules['tensorboardX'] = None\n"
        "import vanishjax.report, vanishjax.cli\n"
        "try: vanishjax.report.EventFile('x')\n"
        "except ModuleNotFoundError: print('missing')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "missing\n"
