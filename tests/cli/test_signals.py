"""Signals that ask for the end: what they save, what they leave alone, and the exit status."""

import importlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.commands import read_json, vanishjax
from vanishjax import atlas, layers, model_file
from vanishjax.model_file import load_model
from vanishjax.report import depth_map, plots
from vanishjax.training import Checkpoints, checkpoint_steps, fit
from vanishjax.training.interruption import Interrupted, deferred, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
TRAIN = ["train", "--hidden", "4", "--epochs", "2", "--out", "run"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture
def handler():
    """Sets handlers of a user's own for one test."""
    before = {}

    def set_handler(number, action):
        before.setdefault(number, signal.signal(number, action))

    yield set_handler
    for number, action in before.items():
        signal.signal(number, action)


# --- the handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_note(number):
    with deferred() as stop:
        assert stop.signal == 0
        signal.raise_signal(number)
        assert stop.signal == number
        if number != signal.SIGINT:
            signal.raise_signal(number)  # shells and schedulers may send more than one
        else:
            signal.raise_signal(signal.SIGTERM)
        if number != signal.SIGINT:
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == number


def test_one_inside_another_shares_its_note():
    with deferred() as outer:
        with deferred() as inner:
            signal.raise_signal(signal.SIGINT)
        with deferred() as later:
            assert inner.signal == later.signal == outer.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(handler, number):
    handler(number, signal.SIG_IGN)
    for context in (deferred, interruptible):
        with context() as stop:
            signal.raise_signal(number)
        assert stop.signal == 0


def test_a_handler_of_the_users_own_goes_on(handler):
    got = []
    handler(signal.SIGTERM, lambda number, frame: got.append(number))
    with deferred() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert (stop.signal, got) == (0, [signal.SIGTERM])
        signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGINT


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_is_interrupted_wherever_it_stands(number):
    with interruptible() as stop:
        with pytest.raises(Interrupted) as raised:
            signal.raise_signal(number)
        assert raised.value.signal == stop.signal == number
        signal.raise_signal(signal.SIGTERM)  # changes nothing on the way out
        with deferred() as note:
            assert note.signal == number
            # What is written now must not keep a second Ctrl-C waiting.
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # the third is the kernel's


def wait():
    """Ten seconds in short sleeps: what Python sends itself cuts no sleep short."""
    for _ in range(1000):
        time.sleep(0.01)


def test_an_interrupt_that_a_callback_swallows_comes_again(capfd):
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work():
        dying = Dying()
        del dying  # what it raises is printed, and lost
        wait()

    with interruptible() as stop, pytest.raises(Interrupted):
        work()
    assert stop.signal == signal.SIGTERM
    assert capfd.readouterr() == ("", "")


def test_an_import_is_not_interrupted(here, monkeypatch):
    """Compiled modules abort the process where an exception reaches them as they load."""
    Path("signals_itself.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.1)\n"
    )
    monkeypatch.syspath_prepend(here)

    def work():
        importlib.import_module("signals_itself")
        wait()

    with interruptible() as stop, pytest.raises(Interrupted):
        work()
    assert stop.signal == signal.SIGTERM
    assert "signals_itself" in sys.modules


def test_no_handler_outside_the_main_thread():
    found = []

    def enter():
        with interruptible(), deferred() as stop:
            found.append((stop.signal, *map(signal.getsignal, SIGNALS)))

    before = tuple(signal.getsignal(number) for number in SIGNALS)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(0, *before)]


# --- fit


def train(on_epoch, epochs=5, **options):
    def loss_fn(w, batch):
        return ((w - batch) ** 2).mean()

    tx = optax.sgd(0.1)
    state = vj.TrainState.create(np.zeros(2, np.float32), tx)
    data = np.arange(12, dtype=np.float32).reshape(6, 2)
    return fit(loss_fn, tx, state, data, epochs=epochs, batch_size=3, on_epoch=on_epoch, **options)


@pytest.mark.parametrize("number", SIGNALS)
def test_fit_ends_and_gives_what_was_done(tmp_path, number):
    def on_epoch(progress):
        if progress.record["epoch"] == 2:
            signal.raise_signal(number)

    state, history = train(on_epoch, checkpoints=Checkpoints(tmp_path))
    assert (history.interrupted, history.signal) == (True, number)
    assert len(history.records) == 2
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert int(state.step) == 4


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_last_epoch_is_told_and_loses_nothing(number):
    _, history = train(lambda progress: signal.raise_signal(number), epochs=1)
    assert (history.interrupted, history.signal) == (False, number)


def test_fit_leaves_a_handler_of_the_users_own(handler):
    got = []
    handler(signal.SIGTERM, lambda number, frame: got.append(number))
    _, history = train(lambda progress: signal.raise_signal(signal.SIGTERM))
    assert (history.interrupted, history.signal, got) == (False, 0, [signal.SIGTERM] * 5)


# --- the commands


def signal_in(monkeypatch, module, name, number, times=1):
    """Signals that arrive as a function begins."""
    function = getattr(module, name)

    def signalled(*arguments, **options):
        for _ in range(times):
            signal.raise_signal(number)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, signalled)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", [(model_file, "save_model"), (plots, "learning_curves")])
def test_a_signal_after_the_last_epoch_loses_no_model(here, monkeypatch, number, place):
    signal_in(monkeypatch, *place, number)
    ran = vanishjax(*TRAIN)
    assert ran.status == 128 + number
    assert ran.err.splitlines()[-1] == (
        "vanishjax: interrupted after the last of 2 epochs; everything is saved"
    )
    assert sorted(os.listdir("run")) == ["curves.png", "model.safetensors", "train.json"]
    result = read_json("run/train.json")
    assert result["interrupted"] is False
    assert result["test_loss"] > 0
    load_model("run/model.safetensors")


def test_a_second_ctrl_c_ends_at_once(here, monkeypatch):
    signal_in(monkeypatch, model_file, "save_model", signal.SIGINT, times=2)
    ran = vanishjax(*TRAIN)
    assert (ran.status, ran.err.splitlines()[-1]) == (130, "vanishjax: interrupted")
    assert not Path("run").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_step_leaves_nothing(here, monkeypatch, number):
    signal_in(monkeypatch, layers, "find_layers", number)
    ran = vanishjax(*TRAIN)
    assert (ran.status, ran.err.splitlines()[-1]) == (128 + number, "vanishjax: interrupted")
    assert not Path("run").exists()


@pytest.fixture
def cells(monkeypatch):
    """Cells without training; `signals[n]` comes before the n-th."""
    signals = {}

    def measure(grid, *arguments, **options):
        for number, depth in enumerate(grid.depths):
            if number in signals:
                signal.raise_signal(signals[number])
            yield {
                "optimizer": "adam",
                "depth": depth,
                "learning_rate": 0.1,
                "validation_accuracy": [0.5] * len(grid.seeds),
                "test_accuracy": [0.5] * len(grid.seeds),
                "rates": {"0.1": 0.5},
                "first_layer_gradient": 1.0,
                "last_layer_gradient": 1.0,
                "sum_log_chi": -1.0,
                "steps": 1,
                "seconds": 1.0,
            }

    monkeypatch.setattr(atlas, "measure", measure)
    return signals


GRID = ["--optimizers", "adam", "--depths", "2,4", "--out", "run"]


@pytest.mark.parametrize("number", SIGNALS)
def test_cells_that_are_done_are_kept(here, cells, number):
    cells[1] = number
    ran = vanishjax("compare", *GRID)
    assert ran.status == 128 + number
    assert ran.err.splitlines()[-1] == "vanishjax: interrupted; the cells that were done are saved"
    result = read_json("run/compare.json")
    assert (result["interrupted"], len(result["cells"])) == (True, 1)
    only = ["--activations", "tanh", "--inits", "he", "--overwrite"]
    ran = vanishjax("atlas", *GRID, *only)
    assert ran.status == 128 + number
    assert ran.err.splitlines()[-1] == "vanishjax: interrupted; the same command goes on from here"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_last_cell_loses_nothing(here, cells, monkeypatch, number):
    signal_in(monkeypatch, depth_map, "trainable_depth", number)
    ran = vanishjax("compare", *GRID)
    assert ran.status == 128 + number
    assert (
        ran.err.splitlines()[-1]
        == "vanishjax: interrupted after the last cell; everything is saved"
    )
    assert read_json("run/compare.json")["interrupted"] is False
    assert sorted(os.listdir("run")) == ["compare.json", "trainable_depth.png"]


# --- processes

ENDLESS = [sys.executable, "-m", "vanishjax", *TRAIN, "--epochs", "1000000"]


def test_a_terminal_that_is_closed_loses_nothing(here):
    """Its SIGHUP comes when nothing can be written on it any more."""
    main, other = pty.openpty()
    # A new session's first terminal is the one that rules it.
    on_terminal = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(other)]
    process = subprocess.Popen([*on_terminal, *ENDLESS], start_new_session=True)
    said = b""
    while b"2/1000000" not in said:
        said += os.read(main, 4096)
    os.close(other)
    os.close(main)
    assert process.wait(60) == 129
    assert read_json("run/train.json")["interrupted"] is True
    load_model("run/model.safetensors")


_SIGNALLED_AS_IT_COMPILES = """if True:
    import os, signal, sys, threading
    import jax, jax.numpy as jnp
    from vanishjax import __main__, cli

    def long(x):
        for i in range(400):
            x = jnp.sin(x[: 900 - i]) @ jnp.ones((x[: 900 - i].shape[0], 901))
        return x

    def run(options):
        program = jax.jit(long).lower(jnp.ones(901))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        program.compile()

    cli._run = run
    print("is flushed")
    sys.exit(__main__.main())
"""


def test_a_signal_while_xla_compiles_ends_the_process_in_order(tmp_path):
    """XLA's threads go on after the interrupt, and would meet what Python has torn down."""
    ran = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_AS_IT_COMPILES], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (143, "is flushed\n"), ran
    assert ran.stderr == "vanishjax: interrupted\n"
