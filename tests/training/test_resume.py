"""Going on with a run: the same bits as if it had never been interrupted, or a clear error."""

import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from benchmarks import resume
from tests.commands import read_json, vanishjax
from vanishjax.model_file import load_model
from vanishjax.training import Checkpoints, best_checkpoint, checkpoint_notes, checkpoint_steps, fit
from vanishjax.training.evaluation import Means
from vanishjax.training.loop import CHUNK

EXAMPLES, BATCH = 150, 4  # 37 steps of four and one of two
X = np.random.default_rng(0).standard_normal((EXAMPLES, 3)).astype(np.float32)
TRAIN = X, X @ np.array([1.0, -2.0, 0.5], np.float32)
VALIDATION = TRAIN[0][:31], TRAIN[1][:31]


def loss_fn(params, batch, key):
    x, y = batch
    kept = 1.0 if key is None else jax.random.bernoulli(key, 0.9, x.shape)
    error = (x * kept) @ params["w"] + params["b"] - y
    return jnp.mean(error**2), {"worst": jnp.max(abs(error))}


TX = vj.monitor(vj.sgd(0.01, momentum=0.9))


def start(seed=5):
    return vj.TrainState.create({"w": jnp.ones(3), "b": jnp.zeros(())}, TX, jax.random.key(seed))


class Seen:
    """What was observed: part of the run, kept beside its state. Ctrl-C comes at a given step."""

    def __init__(self, interrupt_at=None):
        self.norms, self.interrupt_at = [], interrupt_at

    def take(self, observed):
        steps, norms = observed
        self.norms += norms.tolist()
        if self.interrupt_at is not None and steps[-1] >= self.interrupt_at:
            self.interrupt_at = None
            signal.raise_signal(signal.SIGINT)

    def arrays(self):
        return {"norms": np.array(self.norms, np.float32)}

    def restore(self, arrays):
        self.norms = arrays["norms"].tolist() if arrays else []


def train(seen, epochs=3, folder=None, state=None, **checkpoints):
    kept = None
    if folder is not None:
        kept = Checkpoints(folder, also=seen.arrays, on_resume=seen.restore, **checkpoints)
    return fit(
        loss_fn,
        TX,
        start() if state is None else state,
        TRAIN,
        epochs=epochs,
        batch_size=BATCH,
        validation=VALIDATION,
        has_aux=True,
        with_key=True,
        observe=lambda s: (s.step, optax.tree.norm(s.params)),
        on_observed=seen.take,
        checkpoints=kept,
    )


def comparable(state, history):
    curves = {k: v for k, v in history.to_dict().items() if "second" not in k}
    return state._replace(key=jax.random.key_data(state.key)), curves


@pytest.fixture(scope="module")
def whole():
    """The run that nothing interrupts and nothing saves."""
    seen = Seen()
    return comparable(*train(seen)), seen.norms


@pytest.mark.parametrize(("every", "interrupt_at"), [(7, 9), (None, 60), (37, 76)])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, whole, every, interrupt_at):
    seen = Seen(interrupt_at)
    half, history = train(seen, folder=tmp_path, every=every)
    assert history.interrupted
    assert checkpoint_steps(tmp_path)[-1] == int(half.step) < 114
    # What is saved must not depend on what this process still knows.
    seen = Seen()
    ended = comparable(*train(seen, folder=tmp_path, every=every, resume=True))
    chex.assert_trees_all_equal(ended, whole[0])
    assert seen.norms == whole[1]


def test_a_chain_of_interruptions_in_one_epoch(tmp_path, whole):
    for stop, every in ((5, 5), (11, 10), (30, 60), (90, 2 * CHUNK)):
        train(Seen(stop), folder=tmp_path, every=every, resume=True)
    seen = Seen()
    ended = comparable(*train(seen, folder=tmp_path, every=100, resume=True))
    chex.assert_trees_all_equal(ended, whole[0])
    assert seen.norms == whole[1]


def test_a_finished_run_goes_on_with_more_epochs(tmp_path, whole):
    train(Seen(), epochs=1, folder=tmp_path)
    seen = Seen()
    chex.assert_trees_all_equal(comparable(*train(seen, folder=tmp_path, resume=True)), whole[0])
    # And once more: nothing is left to do.
    again = comparable(*train(Seen(), folder=tmp_path, resume=True))
    chex.assert_trees_all_equal(again, whole[0])
    with pytest.raises(ValueError, match=r"holds 3 epochs; epochs must be at least that, got 2"):
        train(Seen(), epochs=2, folder=tmp_path, resume=True)


def test_resuming_from_nothing_is_starting(tmp_path, whole):
    ended = comparable(*train(Seen(), folder=tmp_path, resume=True))
    chex.assert_trees_all_equal(ended, whole[0])


def test_the_latest_and_the_best_stay(tmp_path):
    _, history = train(Seen(), epochs=6, folder=tmp_path, keep=2)
    losses = history.to_dict()["validation_loss"]
    assert checkpoint_steps(tmp_path)[-2:] == [38 * 5, 38 * 6]
    assert best_checkpoint(tmp_path) == 38 * (1 + int(np.argmin(losses)))
    position = checkpoint_notes(tmp_path).record["position"]
    assert len(position["records"]) == 6


def test_the_best_outlives_the_latest(tmp_path):
    for step, loss in enumerate([3.0, 1.0, None, float("nan"), 2.0, 4.0]):
        vj.save_checkpoint(tmp_path, {"w": jnp.ones(2)}, step=step, keep=2, loss=loss)
    assert checkpoint_steps(tmp_path) == [1, 4, 5]
    assert best_checkpoint(tmp_path) == 1


@pytest.fixture(scope="module")
def of_one_epoch(tmp_path_factory):
    """The checkpoints of a run of one epoch."""
    folder = tmp_path_factory.mktemp("of_one_epoch")
    train(Seen(), epochs=1, folder=folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, "was saved with batch_size 4, not 5; give what it was"),
        ({"train": (X + 1, TRAIN[1])}, r"training data of checksum \w{8}, not \w{8}"),
        ({"validation": None}, "validation data of checksum"),
        ({"state": start(6)}, r"was saved with key \[0, 5\], not \[0, 6\]"),
        ({"settings": {"rate": 0.1}}, "was saved with rate none, not 0.1"),
    ],
    ids=["batch", "data", "validation", "key", "settings"],
)
def test_another_run_is_refused_by_what_differs(of_one_epoch, change, message):
    changed = {"state": start(), "train": TRAIN, "validation": VALIDATION, "batch_size": BATCH}
    changed |= {"settings": {}} | change
    kept = Checkpoints(of_one_epoch, resume=True, settings=changed.pop("settings"))
    with pytest.raises(ValueError, match=message):
        fit(loss_fn, TX, epochs=1, has_aux=True, with_key=True, checkpoints=kept, **changed)


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Checkpoints(tmp_path, every=0)
    train(Seen(), epochs=1, folder=tmp_path)
    with pytest.raises(ValueError, match=r"already holds checkpoints; go on .* resume=True"):
        train(Seen(), folder=tmp_path)
    other = vj.TrainState.create({"w": jnp.ones(4), "b": jnp.zeros(())}, TX, jax.random.key(5))
    with pytest.raises(ValueError, match=r"params/w has shape \[3\] in the checkpoint, \[4\]"):
        train(Seen(), folder=tmp_path, state=other, resume=True)
    vj.save_checkpoint(tmp_path, start(), step=1000)
    with pytest.raises(ValueError, match="1000: no checkpoint of a run of fit"):
        train(Seen(), folder=tmp_path, resume=True)


def test_means_do_not_depend_on_where_they_are_cut():
    values = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    once = Means().add(3, {"loss": values})
    cut = Means()
    for part in np.split(values, [1, 18, 50, 93]):
        cut = cut.add(3, {"loss": part})
    assert cut == once


# --- the command

# Five steps an epoch, all of one size: every run compiles one program.
SMALL = ["--hidden", "8", "--batch-size", "230", "--epochs", "4", "--monitor-every", "4"]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The command's run that nothing interrupts and nothing saves."""
    folder = tmp_path_factory.mktemp("once") / "run"
    assert vanishjax("train", *SMALL, "--out", folder).status == 0
    return folder


def run_of(folder):
    result = read_json(folder / "train.json")
    for name in ("seconds", "steps_per_second"):
        result["history"].pop(name)
    return load_model(folder / "model.safetensors").params, result


def test_the_command_goes_on_bit_for_bit(tmp_path, monkeypatch, once):
    monkeypatch.chdir(tmp_path)
    twice = tmp_path / "runs" / "train-001"
    fewer = [*SMALL, "--epochs", "1", "--checkpoint-every", "1", "--keep-checkpoints", "2"]
    assert vanishjax("train", *fewer).status == 0
    assert checkpoint_steps(twice / "checkpoints") == [4, 5]
    ran = vanishjax("train", *SMALL, "--resume", "--checkpoint-every", "epoch")
    assert ran.status == 0
    assert f"going on from step 5 in {twice.relative_to(tmp_path)}/checkpoints" in ran.err
    chex.assert_trees_all_equal(run_of(twice)[0], run_of(once)[0])
    assert run_of(twice)[1] == run_of(once)[1]
    # The folder isn't taken for a new run's, nor another run's for this one.
    for arguments, message in [
        ([], "already holds checkpoints; go on from them with --resume"),
        (["--resume", "--seed", "1"], "was saved with seed 0, not 1"),
        (["--resume", "--hidden", "9"], "was saved with hidden [8], not [9]"),
    ]:
        ran = vanishjax("train", *SMALL, "--out", twice, *arguments)
        assert ran.status == 2
        assert message in ran.err.splitlines()[-1]
    assert vanishjax("train", *SMALL, "--out", twice, "--overwrite").status == 0
    assert not (twice / "checkpoints").exists()


def test_a_horizon_is_part_of_the_run(tmp_path):
    deep = ["--hidden", "8", "--batch-size", "230", "--optimizer", "deep_adam", "--out", tmp_path]
    assert vanishjax("train", *deep, "--epochs", "1", "--checkpoint-every", "epoch").status == 0
    ran = vanishjax("train", *deep, "--epochs", "2", "--resume")
    assert ran.status == 2
    assert "was saved with epochs 1, not 2" in ran.err.splitlines()[-1]


def test_a_signal_saves_and_the_run_goes_on(tmp_path):
    command = [sys.executable, "-m", "vanishjax", "train", *SMALL, "--epochs", "1000000"]
    command += ["--checkpoint-every", "epoch", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "2/1000000" in line:
                break
        process.send_signal(signal.SIGTERM)
        err = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1].endswith("what was done is saved, go on with --resume")
    epochs = len(read_json(tmp_path / "train.json")["history"]["loss"])
    ran = vanishjax("train", *SMALL, "--epochs", epochs, "--out", tmp_path, "--resume")
    assert ran.status == 0
    ran = vanishjax("train", *SMALL, "--epochs", epochs, "--out", tmp_path / "once")
    chex.assert_trees_all_equal(run_of(tmp_path)[0], run_of(tmp_path / "once")[0])
    assert run_of(tmp_path)[1] == run_of(tmp_path / "once")[1]


@pytest.mark.slow
def test_a_kill_in_mid_save_loses_nothing(tmp_path, once):
    """One run; twenty are killed by `benchmarks.resume`, at random moments too."""
    saved = [*SMALL, "--checkpoint-every", "1", "--resume"]
    killed = resume.start(tmp_path, *saved)
    resume.wait(killed, lambda: checkpoint_steps(tmp_path / "checkpoints"))
    assert resume.kill(killed, tmp_path, 0.0, True)
    assert vanishjax("train", *saved, "--out", tmp_path).status == 0
    assert resume.same(tmp_path, once)
