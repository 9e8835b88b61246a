"""A checkpoint of an earlier version goes on: to the bits of optimized programs, as it was made."""

import tarfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.training.test_checkpoint import empty_arrays
from vanishjax.training import best_checkpoint, checkpoint_steps

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def old_checkpoint(tmp_path):
    """What the version before checksums made of the run of `old_run`: 2 epochs, step 4."""
    with tarfile.open(DATA / "checkpoint_without_checksums.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def old_run(epochs, folder=None):
    x = np.arange(12, dtype=np.float32).reshape(6, 2) / 12
    data = x, x @ np.array([1.0, -2.0], np.float32)

    def loss_fn(params, batch):
        return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)

    tx = optax.sgd(0.1, momentum=0.9)
    state = vj.TrainState.create({"w": jnp.zeros(2)}, tx, jax.random.key(7))
    seen = {}
    kept = folder and vj.Checkpoints(
        folder, resume=True, settings={"rate": 0.1}, also=lambda: seen, on_resume=seen.update
    )
    options = {"epochs": epochs, "batch_size": 4, "validation": data, "checkpoints": kept}
    return vj.fit(loss_fn, tx, state, data, **options)[0], state, seen


def test_a_checkpoint_without_checksums_goes_on(old_checkpoint):
    once, fresh, _ = old_run(3)
    assert best_checkpoint(old_checkpoint) == 4
    alone = vj.restore_checkpoint(old_checkpoint, fresh, only="params")
    np.testing.assert_allclose(alone.params["w"], [-0.45797667, -0.5299642], rtol=1e-6)
    assert alone.key is fresh.key
    resumed, _, seen = old_run(3, old_checkpoint)
    key = lambda s: s._replace(key=jax.random.key_data(s.key))  # noqa: E731
    chex.assert_trees_all_equal(key(resumed), key(once))
    np.testing.assert_array_equal(seen["seen"], np.arange(3))
    assert checkpoint_steps(old_checkpoint) == [4, 6]
    empty_arrays(old_checkpoint / "6")
    with pytest.raises(ValueError, match="6: is damaged: .* delete it to go on from step 4$"):  # noqa: RUF043
        vj.restore_checkpoint(old_checkpoint, fresh)
