"""Checkpoints: the same state bit for bit, on other devices, after a kill, or a clear error."""

import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vanishjax as vj
from vanishjax.training import checkpoint_steps

BATCH = jax.random.normal(jax.random.key(0), (16, 8)), jnp.arange(16) % 3


def problem(width=16):
    return vj.mlp_problem(8, (width,) * 4, 3, activation="tanh")


def start(tx, width=16):
    return vj.TrainState.create(problem(width).params, tx, jax.random.key(7))


def trained(tx, state, steps):
    step = vj.make_train_step(problem().loss_fn, tx)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return state


CHAINS = {
    "adam": lambda: vj.adam(1e-3),
    "monitor": lambda: vj.monitor(vj.nadamw(1e-3)),
    "muon": lambda: vj.muon(1e-3),
    "deep_muon": lambda: vj.deep_muon(1e-2, 20, recondition=True),
    "guards": lambda: vj.skip_nonfinite(optax.chain(vj.nesterov(0.9), optax.scale(-0.1))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_goes_on_bit_for_bit(tmp_path, name):
    tx = CHAINS[name]()
    half = trained(tx, start(tx), 3)
    vj.save_checkpoint(tmp_path, half)
    whole = trained(tx, half, 3)
    restored = vj.restore_checkpoint(tmp_path, start(tx))
    assert int(restored.step) == 3
    again = trained(tx, restored, 3)
    key = lambda s: s._replace(key=jax.random.key_data(s.key))  # noqa: E731
    chex.assert_trees_all_equal(key(again), key(whole))
    chex.assert_trees_all_equal_shapes_and_dtypes(key(again), key(whole))


def test_the_latest_are_kept_and_a_step_is_never_written_twice(tmp_path):
    state = start(vj.adam(1e-3))
    for step in (1, 2, 5, 9):
        path = vj.save_checkpoint(tmp_path, state, step=step, keep=2)
        assert path == tmp_path / str(step)
        assert path.is_dir()
    assert checkpoint_steps(tmp_path) == [5, 9]
    with pytest.raises(ValueError, match="already holds a checkpoint of step 9"):
        vj.save_checkpoint(tmp_path, state, step=9)
    assert int(vj.restore_checkpoint(tmp_path, state, step=5).step) == 0


def test_any_pytree(tmp_path):
    tree = {"w": jnp.arange(3, dtype=jnp.bfloat16), "n": (jnp.ones(()), jax.random.key(1))}
    with pytest.raises(ValueError, match="pass step="):
        vj.save_checkpoint(tmp_path, tree)
    vj.save_checkpoint(tmp_path, tree, step=4)
    found = vj.restore_checkpoint(tmp_path, tree)
    np.testing.assert_array_equal(found["w"], tree["w"])
    assert found["w"].dtype == jnp.bfloat16
    assert jax.random.key_data(found["n"][1]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (lambda: start(vj.adam(1e-3), 8), r"params/hidden_0/bias has shape \[16\] in the .* \[8\]"),
        (lambda: start(vj.sgd(0.1)), "opt_state/0/count is only in the checkpoint"),
        (lambda: start(vj.lion(1e-3)), "opt_state/0/nu_root/.* is only in the checkpoint"),
        (lambda: start(vj.monitor(vj.adam(1e-3))), "opt_state/.* is missing in the checkpoint"),
        (
            lambda: start(vj.adam(1e-3, mu_dtype=jnp.bfloat16)),
            "opt_state/0/mu/.* has type float32 in the checkpoint, bfloat16 in the state",
        ),
    ],
    ids=["width", "fewer", "lion", "more", "type"],
)
def test_another_model_or_chain_is_refused_by_the_first_difference(tmp_path, like, message):
    vj.save_checkpoint(tmp_path, start(vj.adam(1e-3)))
    with pytest.raises(ValueError, match=message):
        vj.restore_checkpoint(tmp_path, like())


def test_what_is_not_there(tmp_path):
    state = start(vj.adam(1e-3))
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        vj.restore_checkpoint(tmp_path / "nowhere", state)
    vj.save_checkpoint(tmp_path, state)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; there are 0"):
        vj.restore_checkpoint(tmp_path, state, step=7)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        vj.save_checkpoint(tmp_path, state, step=1, keep=0)


@pytest.mark.parametrize("part", ["state", "content"])
@pytest.mark.parametrize("harm", ["emptied", "gone"])
def test_a_damaged_one_says_which_is_whole(tmp_path, part, harm):
    state = start(vj.adam(1e-3))
    for step in (3, 5):
        vj.save_checkpoint(tmp_path, state, step=step)
    files = [path for path in (tmp_path / "5" / part).rglob("*") if path.is_file()]
    assert files
    for file in files:
        file.write_bytes(b"") if harm == "emptied" else file.unlink()
    with pytest.raises(ValueError, match="is damaged, for it can't be read") as error:
        vj.restore_checkpoint(tmp_path, state)
    said = str(error.value)
    assert said.startswith(str(tmp_path / "5"))
    assert said.endswith("delete it to go on from step 3")
    assert len(said.splitlines()) == 1
    chex.assert_trees_all_equal(vj.restore_checkpoint(tmp_path, state, step=3), state)


@pytest.mark.parametrize(("before", "after"), [(8, 2), (1, 8), (4, 1)])
def test_on_another_number_of_devices(tmp_path, before, after):
    values = jnp.arange(32.0).reshape(8, 4)

    def laid_out(devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        return jax.device_put(values, NamedSharding(mesh, PartitionSpec("data")))

    vj.save_checkpoint(tmp_path, {"w": laid_out(before)}, step=0)
    like = {"w": jax.device_put(jnp.zeros_like(values), laid_out(after).sharding)}
    found = vj.restore_checkpoint(tmp_path, like)["w"]
    np.testing.assert_array_equal(found, values)
    assert found.sharding == laid_out(after).sharding


SAVER = """
import sys, jax, jax.numpy as jnp
import vanishjax as vj
folder = sys.argv[1]
value = jnp.zeros(200_000)
print("ready", flush=True)
for step in range(10_000):
    vj.save_checkpoint(folder, {"w": value + step, "step": jnp.array(step)}, step=step)
"""


@pytest.mark.slow
def test_a_kill_in_mid_save_leaves_a_whole_checkpoint(tmp_path):
    """Killed at five moments; every time the latest checkpoint is whole, and saving goes on."""
    rng = np.random.default_rng(0)
    like = {"w": jnp.zeros(200_000), "step": jnp.array(0)}
    for trial in range(5):
        folder = tmp_path / str(trial)
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, folder], stdout=subprocess.PIPE, text=True
        ) as saver:
            assert saver.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 60
            while not checkpoint_steps(folder) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            saver.send_signal(signal.SIGKILL)
        found = vj.restore_checkpoint(folder, like)
        step = int(found["step"])
        assert step == checkpoint_steps(folder)[-1]
        np.testing.assert_array_equal(found["w"], np.full(200_000, step, np.float32))
        vj.save_checkpoint(folder, found, step=step + 1)
        assert checkpoint_steps(folder)[-1] == step + 1
