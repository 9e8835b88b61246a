"""Several processes on the loopback address: one trajectory, and no peer that dies unheard."""

import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.lost_peers import together
from tests.commands import read_json, vanishjax
from vanishjax.training import checkpoint_notes, checkpoint_steps

# Five steps of 229 and one of five, which two and three devices divide unevenly.
TRAIN = [
    *("train", "--hidden", "16", "--optimizer", "sgd", "--learning-rate", "0.1"),
    *("--batch-size", "229", "--epochs", "2"),
]


def ended(processes, seconds=90):
    """What each said on standard error, and its status."""
    said = [process.communicate(timeout=seconds)[1] for process in processes]
    return said, [process.returncode for process in processes]


def wait_for(folder, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not checkpoint_steps(folder / "checkpoints"):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process on one device trains."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert vanishjax(*TRAIN, "--out", folder).status == 0
    return folder


@pytest.mark.slow
def test_processes_train_what_one_trains(tmp_path, alone):
    more = ["--shard-state", "--accumulate", "2", "--checkpoint-every", "epoch"]
    with together(3, *TRAIN, *more, "--out", tmp_path) as processes:
        said, statuses = ended(processes)
    assert statuses == [0] * 3, said
    # Only the first says and writes anything.
    assert all("epoch 1/2" not in text for text in said[1:])
    expected = load_file(alone / "model.safetensors")
    for name, found in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-5)
    mine, theirs = (read_json(folder / "train.json") for folder in (tmp_path, alone))
    np.testing.assert_allclose(mine["history"]["loss"], theirs["history"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(mine["test_loss"], theirs["test_loss"], rtol=1e-5)
    # A process alone goes on with what several have saved.
    assert checkpoint_steps(tmp_path / "checkpoints") == [6, 12]
    ran = vanishjax(*TRAIN, "--epochs", "3", "--out", tmp_path, "--resume")
    assert ran.status == 0
    assert "going on from step 12" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "victim", "blow", "seconds", "reason"),
    [
        (2, 0, signal.SIGKILL, 15, "process 0 has died"),
        (2, 1, signal.SIGKILL, 15, "process 1 has died"),
        (3, 1, signal.SIGSTOP, 30, "process 1 has stopped answering"),
    ],
)
def test_a_lost_peer_ends_the_run_with_a_line_and_a_whole_checkpoint(
    tmp_path, count, victim, blow, seconds, reason
):
    endless = [*TRAIN, "--epochs", "100000", "--checkpoint-every", "60", "--out", tmp_path]
    with together(count, *endless) as processes:
        wait_for(tmp_path, processes[0])
        processes[victim].send_signal(blow)
        struck = time.monotonic()
        others = [process for index, process in enumerate(processes) if index != victim]
        said, statuses = ended(others)
        assert time.monotonic() - struck < seconds
    for text, status in zip(said, statuses, strict=True):
        assert status == 1, text
        assert f"vanishjax: error: {reason}" in text
    assert checkpoint_notes(tmp_path / "checkpoints").record["position"]["records"]


@pytest.mark.slow
@pytest.mark.parametrize(("interrupted", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_an_interrupt_of_one_ends_all_and_loses_nothing(tmp_path, interrupted, number):
    endless = [*TRAIN, "--epochs", "100000", "--checkpoint-every", "60", "--out", tmp_path]
    with together(2, *endless) as processes:
        wait_for(tmp_path, processes[0])
        processes[interrupted].send_signal(number)
        said, statuses = ended(processes, 15)
    assert statuses == [128 + number] * 2, said
    assert "what was done is saved, go on with --resume" in said[0]
    assert not said[1]
    # More than the last whole epoch: what was done since is saved too.
    last = checkpoint_steps(tmp_path / "checkpoints")[-1]
    more = ["--epochs", str(last // 6 + 1), "--resume"]
    ran = vanishjax(*TRAIN, *more, "--out", tmp_path)
    assert ran.status == 0
    assert f"going on from step {last}" in ran.err


def test_more_devices_than_there_are(tmp_path):
    ran = vanishjax(*TRAIN, "--devices", "99", "--out", tmp_path)
    assert ran.status == 2
    assert "--devices 99: there are only 8" in ran.err


@pytest.mark.parametrize(
    "how",
    [
        ["--devices", "3"],
        ["--parallel", "pmap"],
        ["--parallel", "shard_map"],
        ["--shard-state", "zero1"],
    ],
)
def test_the_command_on_many_devices(tmp_path, alone, how):
    ran = vanishjax(*TRAIN, "--out", tmp_path / "many", *how, "--accumulate", "2")
    assert ran.status == 0
    one, many = (load_file(f / "model.safetensors") for f in (alone, tmp_path / "many"))
    for name, found in many.items():
        np.testing.assert_allclose(found, one[name], rtol=1e-5, atol=1e-5)
