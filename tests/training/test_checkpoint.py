"""Checkpoints: the same state bit for bit, on other devices, after a kill, or a clear error."""

import collections
import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vanishjax as vj
from vanishjax.training import best_checkpoint, checkpoint_notes, checkpoint_steps
from vanishjax.training.checkpoint import Notes
from vanishjax.training.manifest import check, describe_all, is_key, named_leaves
from vanishjax.training.records import json_checksum
from vanishjax.training.resumption import Position
from vanishjax.training.storage import Damaged

BATCH = jax.random.normal(jax.random.key(0), (16, 8)), jnp.arange(16) % 3


@functools.cache
def problem(width=16):
    return vj.mlp_problem(8, (width,) * 4, 3, activation="tanh")


def start(tx, width=16):
    return vj.TrainState.create(problem(width).params, tx, jax.random.key(7))


def trained(step, state, steps):
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return state


CHAINS = {
    "guarded": lambda: vj.monitor(vj.skip_nonfinite(vj.nadamw(1e-3))),
    "deep_muon": lambda: vj.deep_muon(1e-2, 20, recondition=True),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_goes_on_bit_for_bit(tmp_path, name):
    tx = CHAINS[name]()
    step = vj.make_train_step(problem().loss_fn, tx)
    # On a device by name, as what is restored: one program then serves both.
    half = trained(step, jax.device_put(start(tx), jax.devices()[0]), 3)
    vj.save_checkpoint(tmp_path, half)
    whole = trained(step, half, 3)
    restored = vj.restore_checkpoint(tmp_path, start(tx))
    assert int(restored.step) == 3
    again = trained(step, restored, 3)
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
    with pytest.raises(ValueError, match=r"is damaged: .* can't be read") as error:
        vj.restore_checkpoint(tmp_path, state)
    said = str(error.value)
    assert said.startswith(str(tmp_path / "5"))
    assert said.endswith("delete it to go on from step 3")
    assert len(said.splitlines()) == 1
    chex.assert_trees_all_equal(vj.restore_checkpoint(tmp_path, state, step=3), state)


def newest(folder):
    """The largest file of the latest checkpoint: its data."""
    place = folder / str(checkpoint_steps(folder)[-1])
    return max(place.rglob("state/*/d/*"), key=lambda path: path.stat().st_size)


def empty_arrays(place):
    for path in place.rglob("state/**/d/*"):
        path.write_bytes(b"")


def test_a_flipped_bit_is_never_restored(tmp_path):
    tree = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "b": jnp.ones(3)}
    for step in (1, 2):
        vj.save_checkpoint(tmp_path, tree, step=step)
    data = newest(tmp_path).read_bytes()
    assert len(data) > 10_000
    ends = []
    for place in np.random.default_rng(0).integers(0, len(data), 20):
        harmed = bytearray(data)
        harmed[place] ^= 16
        newest(tmp_path).write_bytes(harmed)
        try:
            chex.assert_trees_all_equal(vj.restore_checkpoint(tmp_path, tree), tree)
        except ValueError as error:
            ends.append(str(error))
    assert len(ends) >= 18
    for said in ends:
        assert "2: is damaged: " in said
        assert said.endswith("; delete it to go on from step 1")


def read_all(folder, like, step=None):
    best_checkpoint(folder)
    checkpoint_notes(folder, step=step)
    return vj.restore_checkpoint(folder, like, step=step)


def test_only_a_checkpoint_that_was_read_is_called_whole(tmp_path):
    tree = {"w": jnp.arange(3.0)}
    for step in range(4):
        vj.save_checkpoint(tmp_path, tree, step=step, keep=None)
    for step, part in ((3, "state"), (2, "content"), (1, "metrics")):
        for path in (tmp_path / str(step) / part).rglob("*"):
            if path.is_file():
                path.write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"3: is damaged: .* delete it to go on from step 0$"):
        vj.restore_checkpoint(tmp_path, tree)
    with pytest.raises(ValueError, match=r"1: is damaged: metrics .* go on from step 0$"):
        best_checkpoint(tmp_path)
    (tmp_path / "0" / "content" / "metadata").unlink()
    with pytest.raises(ValueError, match=r"3: is damaged: .*; no other is whole$"):
        vj.restore_checkpoint(tmp_path, tree)
    # Saving goes on, and keeps what it can't judge.
    vj.save_checkpoint(tmp_path, tree, step=4, keep=1)
    assert checkpoint_steps(tmp_path) == [0, 1, 2, 4]


@pytest.mark.parametrize("part", ["state", "content", "record", "metrics", "arrays"])
def test_parts_of_another_step_are_not_taken(tmp_path, part):
    for step in (1, 2):
        tree, notes = {"w": jnp.full(3, step)}, Notes({"at": step}, {"at": np.full(2, step)})
        vj.save_checkpoint(tmp_path, tree, step=step, loss=step, notes=notes)
    for step in (1, 2):
        (tmp_path / str(step) / part).rename(tmp_path / f"{part}{step}")
    for step in (1, 2):
        (tmp_path / f"{part}{3 - step}").rename(tmp_path / str(step) / part)
    with pytest.raises(ValueError, match="1: is damaged: .*; no other is whole"):  # noqa: RUF043
        read_all(tmp_path, tree, step=1)


@pytest.mark.parametrize("text", ["null", "[]", "{}", "1", '"a"', "[[1]]", "[" * 10_000, ""])
@pytest.mark.parametrize("name", ["state/_METADATA", "content/metadata", "metrics/metrics"])
def test_json_of_other_types(tmp_path, capfd, name, text):
    for step in (1, 2):
        vj.save_checkpoint(tmp_path, {"w": jnp.ones(3)}, step=step, loss=1.0)
    (tmp_path / "2" / name).write_text(text)
    with pytest.raises(ValueError, match=f"2: is damaged: {name.split('/')[0]} .* from step 1$"):
        read_all(tmp_path, {"w": jnp.ones(3)})
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_that_claims_more_than_asked_for_is_not_read(tmp_path):
    """The manifest is forged with its checksum: storage holds 4 GB of zeros in a few bytes."""
    vj.save_checkpoint(tmp_path, {"w": np.ones(3, np.float32), "j": jnp.ones(3)}, step=1)
    base = {"driver": "file", "path": f"{tmp_path}/1/state/"}
    for name in ("0", "1"):
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        metadata = {"shape": [1 << 30], "dtype": "<f4", "chunks": [1 << 30], "fill_value": 0.0}
        spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
        ts.open(spec, create=True, delete_existing=True).result()
    for like in ({"w": np.ones(3, np.float32), "j": jnp.ones(3)},):
        with pytest.raises(ValueError, match="is damaged: state holds an array of another shape"):
            vj.restore_checkpoint(tmp_path, like)


@pytest.mark.parametrize(
    "tree",
    [
        {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
        {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
        {"": jnp.ones(2), "'a/b'": jnp.zeros(2), "a/b": jnp.full(2, 3), "..": jnp.full(2, 4)},
        {"0": jnp.ones(2), "%2F": [jnp.zeros(2)], "\n": jnp.ones(())},
        [jnp.zeros((0, 3)), np.zeros((2, 0), np.int8), jnp.zeros(0, jnp.bfloat16)],
        {
            "keys": jax.random.split(jax.random.key(0, impl="rbg"), 3),
            "none": jax.random.key(1)[None][:0],
        },
        {"n": 3, "f": 0.1, "b": True, "c": 1j, "np": np.float64(0.1), "i": np.arange(3)},
        {"nan": jnp.array([jnp.nan, -0.0, jnp.inf]), "int4": jnp.arange(3, dtype=jnp.int4)},
        jnp.ones(3),
    ],
    ids=["dot", "slash", "quotes", "names", "empty", "keys", "numbers", "values", "array"],
)
def test_trees_of_every_kind(tmp_path, tree):
    vj.save_checkpoint(tmp_path, tree, step=1)
    blank = lambda x: x if isinstance(x, bool | int | float | complex) else x * 0  # noqa: E731
    like = jax.tree.map(lambda x: x if is_key(x) else blank(x), tree)
    found = vj.restore_checkpoint(tmp_path, like)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert isinstance(new, type(old))
        assert is_key(new) == is_key(old)
        if is_key(new):
            assert jax.random.key_impl(new) == jax.random.key_impl(old)
            new, old = jax.random.key_data(new), jax.random.key_data(old)
        assert np.asarray(new).dtype == np.asarray(old).dtype
        assert np.shape(new) == np.shape(old)
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def test_what_has_no_name_or_no_place_is_refused(tmp_path):
    twice = collections.OrderedDict([(1, jnp.ones(2)), ("1", jnp.zeros(2))])
    with pytest.raises(ValueError, match=r"\[1\] and \['1'\] have the same name .* 1: rename one"):
        vj.save_checkpoint(tmp_path, twice, step=0)
    with pytest.raises(ValueError, match="a/b is of type str: a checkpoint holds arrays"):
        vj.save_checkpoint(tmp_path, {"a": {"b": "text"}}, step=0)
    with pytest.raises(ValueError, match="names is of type <U1"):
        vj.save_checkpoint(tmp_path, {}, step=0, notes=Notes(arrays={"names": np.array(["a"])}))
    with pytest.raises(ValueError, match="record/f is a complex, which JSON can't hold"):
        vj.save_checkpoint(tmp_path, {}, step=0, notes=Notes({"f": 1j}))
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


@pytest.mark.parametrize("step", [-1, 1.5, True, np.bool_(True), "1", np.array([1]), jnp.ones(())])
def test_steps_are_whole_numbers(tmp_path, step):
    tree = {"w": jnp.ones(2)}
    message = "step must be (a whole number, got|at least 0, got -1)"
    with pytest.raises(ValueError, match=message):
        vj.save_checkpoint(tmp_path, tree, step=step)
    vj.save_checkpoint(tmp_path, tree, step=np.int64(1))
    for read in (
        lambda: vj.restore_checkpoint(tmp_path, tree, step=step),
        lambda: checkpoint_notes(tmp_path, step=step),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    vj.restore_checkpoint(tmp_path, tree, step=jnp.array(1))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", ["write_text", "tensorstore"])
def test_a_failed_save_is_one_line_and_loses_nothing(tmp_path, monkeypatch, capfd, number, where):
    tree = {"w": jnp.ones(3)}
    vj.save_checkpoint(tmp_path, tree, step=1)

    def fail(*arguments, **options):
        if where == "tensorstore":
            raise ValueError(f"Failed: Error writing [os_error_code='{number}']")
        raise OSError(number, os.strerror(number))

    handler = ocp.PyTreeCheckpointHandler if where == "tensorstore" else ocp.JsonCheckpointHandler
    with monkeypatch.context() as patched:
        patched.setattr(handler, "async_save", fail)
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            vj.save_checkpoint(tmp_path, tree, step=2)
    assert error.value.errno == number
    assert error.value.filename == str(tmp_path / "2")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert capfd.readouterr() == ("", "")
    chex.assert_trees_all_equal(vj.restore_checkpoint(tmp_path, tree), tree)


LIMITED = """
import resource, sys, jax, jax.numpy as jnp
import vanishjax as vj
from vanishjax.cli import main
class Command:
    @staticmethod
    def run(options):
        value = jax.random.normal(jax.random.key(0), (300_000,))
        vj.save_checkpoint(sys.argv[1], {"w": value[:3]}, step=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        vj.save_checkpoint(sys.argv[1], {"w": value}, step=2)
import vanishjax.cli
vanishjax.cli._run = Command.run
sys.exit(main([]))
"""


def test_the_system_refuses_to_write(tmp_path):
    """A limit on the size of files fails where a full disk does, in the middle of the data."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path / '2'}: File too large, so this checkpoint was not saved" in line
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_parameters_alone_go_on_in_another_chain(tmp_path):
    def create(tx, width=3):
        return vj.TrainState.create({"w": jnp.ones((width, 2))}, tx, jax.random.key(3))

    old = create(optax.sgd(0.1, momentum=0.9))
    old = old._replace(params={"w": jnp.arange(6.0).reshape(3, 2)}, step=old.step + 2)
    vj.save_checkpoint(tmp_path, old)
    fresh = create(optax.chain(optax.clip(1.0), optax.adam(0.1)))
    with pytest.raises(ValueError, match=r'only="params"\) takes the parameters alone'):
        vj.restore_checkpoint(tmp_path, fresh)
    found = vj.restore_checkpoint(tmp_path, fresh, only="params")
    chex.assert_trees_all_equal(found.params, old.params)
    for new, given in zip(jax.tree.leaves(found), jax.tree.leaves(fresh), strict=True):
        assert new is given or any(new is leaf for leaf in jax.tree.leaves(found.params))
    found = vj.restore_checkpoint(tmp_path, fresh, only=("params", "step"))
    assert int(found.step) == 2
    with pytest.raises(ValueError, match="only: the state to restore into has no arrays in 'par'"):
        vj.restore_checkpoint(tmp_path, fresh, only="par")
    with pytest.raises(ValueError, match=r"params/w has shape \[3, 2\]"):
        vj.restore_checkpoint(tmp_path, create(optax.sgd(0.1), width=4), only="params")
    empty_arrays(tmp_path / "2")
    with pytest.raises(ValueError, match="2: is damaged: state can't be read; no other lies there"):
        vj.restore_checkpoint(tmp_path, fresh, only="params")


def test_regions_of_spread_arrays_are_compared():
    """As processes save and compare what each of them has, here in one."""
    values = jnp.arange(32.0).reshape(8, 4)
    entry = describe_all(named_leaves({"w": values}))[0]
    assert entry.checksums[0][0] == ()
    halves = [((0, 8), (0, 2)), ((0, 8), (2, 4))]
    parts = describe_all(named_leaves([values[:, :2], values[:, 2:]]))
    sums = [part.checksums[0][1] for part in parts]
    entry = entry._replace(checksums=tuple(zip(halves, sums, strict=True)))
    check([entry], [values])
    with pytest.raises(Damaged, match="w does not match its checksum"):
        check([entry], [values.at[7, 3].set(0)])


@pytest.mark.parametrize(
    "value", [(1, (2, 3)), float("nan"), {1: 2}, np.float32(0.1), jnp.int32(3), {"a": [np.inf]}]
)
def test_settings_of_every_kind_are_the_same_again(tmp_path, value):
    state = vj.TrainState.create({"w": jnp.ones(2)}, optax.sgd(0.1))
    vj.Checkpoints(tmp_path, settings={"f": value}).save(state, Position())
    again = vj.Checkpoints(tmp_path, settings={"f": value}, resume=True)
    assert int(again.restore(state)[0].step) == 0
    with pytest.raises(ValueError, match="was saved with f "):
        vj.Checkpoints(tmp_path, settings={"f": 7}, resume=True).restore(state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": print}, "settings/f/a is a builtin_function_or_method, which JSON can't hold"),
        (np.ones(2), "settings/f is a ndarray, which JSON can't hold"),
        ({1: 2, "1": 3}, "settings/f has the name '1' twice"),
        ({(1, 2): 3}, r"settings/f has the name \(1, 2\); names must be text"),
    ],
    ids=["function", "array", "twice", "tuple"],
)
def test_settings_that_cannot_be_kept_are_refused_at_once(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        vj.Checkpoints(tmp_path, settings={"f": value})
    with pytest.raises(ValueError, match=r"keep must be a whole number, got 1\.5"):
        vj.Checkpoints(tmp_path, keep=1.5)


def test_a_new_checkpoint_never_counts_as_an_old_one(tmp_path):
    tree = {"w": jnp.ones(3)}
    vj.save_checkpoint(tmp_path, tree, step=1)
    content = tmp_path / "1" / "content" / "metadata"
    whole = json.loads(content.read_text())
    without = {name: value for name, value in whole.items() if name != "checksum"}
    other = {**without, "format": 1}
    for forged in (without, other, {**whole, "format": 1}, [["w", [3], "float32"]]):
        content.write_text(json.dumps(forged))
        with pytest.raises(ValueError, match="1: is damaged"):
            vj.restore_checkpoint(tmp_path, tree)
    newer = {**without, "format": 9}
    content.write_text(json.dumps({**newer, "checksum": json_checksum(newer)}))
    with pytest.raises(ValueError, match="this version can't read format 9"):
        vj.restore_checkpoint(tmp_path, tree)


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
