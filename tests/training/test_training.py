"""The training step, its parallel wrappers, and the loop."""

import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.training import TrainState, fit, local_step, make_evaluate, make_train_step
from vanishjax.training.batches import shuffled
from vanishjax.training.loop import CHUNK


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def problem(examples=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((examples, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + 0.25
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    return params, (x, y)


def by_hand(params, batches, rate):
    """SGD on the mean squared error in float64, gradient written out."""
    w, b = np.array([1.0, 1.0, 1.0]), 0.0
    for x, y in batches:
        x, y = np.float64(x), np.float64(y)
        error = x @ w + b - y
        w, b = w - rate * 2 * x.T @ error / len(y), b - rate * 2 * error.mean()
    return {"w": w, "b": b}


def test_step_equals_gradient_descent_by_hand():
    params, (x, y) = problem()
    tx = vj.sgd(0.1)
    step = make_train_step(loss_fn, tx)
    state = TrainState.create(params, tx)
    batches = [(x[i::4], y[i::4]) for i in range(4)]
    for batch in batches:
        state, metrics = step(state, batch)
    chex.assert_trees_all_close(state.params, by_hand(params, batches, 0.1), rtol=1e-5)
    assert int(state.step) == 4
    assert set(metrics) == {"loss"}
    # The caller's own arrays outlive the donated state.
    np.testing.assert_array_equal(params["w"], 1.0)


class LocalStep(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_variants_agree(self):
        params, batch = problem()
        tx = vj.adam(0.1)
        state, metrics = self.variant(local_step(loss_fn, tx))(TrainState.create(params, tx), batch)
        np.testing.assert_allclose(metrics["loss"], loss_fn(params, batch), rtol=1e-6)
        np.testing.assert_allclose(abs(state.params["w"] - 1.0), 0.1, rtol=1e-4)


def test_compiled_step_copies_no_buffer():
    # A crossed order of donated state costs five times the step: the HLO shows it as copies.
    params = {"w": jnp.ones((256, 256))}
    tx = vj.adam(1e-3)
    state = TrainState.create(params, tx)
    step = make_train_step(lambda p, b: jnp.mean(jnp.tanh(b @ p["w"]) ** 2), tx)
    text = step.lower(state, jnp.ones((32, 256))).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and "f32[256,256]" in line]
    assert copies == []
    assert "input_output_alias" in text


@pytest.mark.parametrize("parallel", ["jit", "pmap", "shard_map"])
def test_parallel_equals_one_device(parallel):
    # SGD, because Adam would hide a gradient that is summed instead of averaged.
    params, (x, y) = problem()
    tx = vj.sgd(0.1, momentum=0.9)
    plain, split = make_train_step(loss_fn, tx), make_train_step(loss_fn, tx, parallel=parallel)
    alone = together = None
    alone, together = TrainState.create(params, tx), TrainState.create(params, tx)
    for i in range(20):
        batch = (x[i % 2 :: 2], y[i % 2 :: 2])
        alone, loss = plain(alone, batch)
        together, split_loss = split(together, batch)
        np.testing.assert_allclose(loss["loss"], split_loss["loss"], rtol=1e-5, atol=1e-9)
    assert jax.device_count() == 8
    chex.assert_trees_all_close(alone.params, together.params, rtol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(alone, together)


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_every_device_and_step_has_its_own_key(parallel):
    def noisy(params, batch, key):
        return params["w"] * jax.random.normal(key) + 0 * batch.sum()

    tx = vj.sgd(1.0)
    step = make_train_step(noisy, tx, parallel=parallel, with_key=True)
    state = TrainState.create({"w": jnp.zeros(())}, tx, jax.random.key(3))
    expected = 0.0
    for t in range(2):
        state, _ = step(state, jnp.ones(8))
        keys = [
            jax.random.fold_in(jax.random.fold_in(jax.random.key(3), t), device)
            for device in range(8)
        ]
        expected -= np.mean([jax.random.normal(key) for key in keys])
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)


def test_unknown_parallel():
    with pytest.raises(ValueError, match="parallel must be None, 'jit', 'pmap' or 'shard_map'"):
        make_train_step(loss_fn, vj.sgd(0.1), parallel="threads")


@pytest.mark.parametrize("parallel", [None, "pmap", "shard_map", "jit"])
def test_loss_scale_is_applied_and_taken_off(parallel):
    # In float16 this gradient, 1e-9, is zero unless the loss is scaled up.
    def tiny(params, batch):
        return jnp.mean((params["w"] * batch).astype(jnp.float16) * jnp.float16(6e-8)) / 64

    params, batch = {"w": jnp.zeros(8, jnp.float16)}, jnp.full((8, 8), 2.0, jnp.float16)
    plain = vj.sgd(1e4)
    scaled = vj.dynamic_loss_scale(plain, initial_scale=2.0**14)
    step = make_train_step(tiny, plain, parallel=parallel)
    lost, _ = step(TrainState.create(params, plain), batch)
    step = make_train_step(tiny, scaled, parallel=parallel)
    kept, metrics = step(TrainState.create(params, scaled), batch)
    np.testing.assert_array_equal(lost.params["w"], 0.0)
    np.testing.assert_allclose(kept.params["w"], -1e4 * 8 * 2 * 6e-8 / 64 / 64, rtol=0.02)
    assert float(metrics["loss"]) == 0.0


def test_aux_metrics():
    params, batch = problem()
    tx = vj.sgd(0.1)
    with_aux = lambda p, b: (loss_fn(p, b), {"w0": p["w"][0]})  # noqa: E731
    step = make_train_step(with_aux, tx, has_aux=True)
    _, metrics = step(TrainState.create(params, tx), batch)
    assert float(metrics["w0"]) == 1.0


def test_fit_visits_every_example_once_an_epoch():
    # With rate 1 and this loss, w counts how often each example was seen.
    counts = lambda w, rows: -jnp.mean(jax.nn.one_hot(rows, 10) @ w) * rows.shape[0]  # noqa: E731
    tx = vj.sgd(1.0)
    state = TrainState.create(jnp.zeros(10), tx)
    state, history = fit(counts, tx, state, jnp.arange(10), epochs=3, batch_size=4)
    np.testing.assert_array_equal(state.params, 3.0)
    assert int(state.step) == 9
    assert history.to_dict()["epoch"] == [1, 2, 3]


def test_fit_learns_and_records():
    params, train = problem(130)
    _, validation = problem(50, seed=1)
    tx = vj.adam(0.05)
    seen = []
    state, history = fit(
        loss_fn,
        tx,
        TrainState.create(params, tx),
        train,
        epochs=40,
        batch_size=32,
        validation=validation,
        on_epoch=seen.append,
    )
    curves = history.to_dict()
    assert curves["loss"][0] > 1.0
    assert curves["loss"][-1] < 1e-3
    np.testing.assert_allclose(
        curves["validation_loss"][-1], loss_fn(state.params, validation), rtol=1e-4
    )
    assert [progress.record["epoch"] for progress in seen] == list(range(1, 41))
    assert seen[-1].remaining_seconds == 0
    np.testing.assert_allclose(state.params["w"], [1.0, -2.0, 0.5], atol=0.02)


def test_fit_is_decided_by_its_key():
    params, train = problem()
    tx = vj.sgd(0.05)

    def run(seed):
        state = TrainState.create(params, tx, jax.random.key(seed))
        return fit(loss_fn, tx, state, train, epochs=2, batch_size=16)[0].params

    chex.assert_trees_all_equal(run(0), run(0))
    assert not np.array_equal(run(0)["w"], run(1)["w"])


def test_chunks_equal_single_steps():
    # More steps than a chunk holds, and a smaller last batch.
    params, train = problem(2 * CHUNK + 7)
    tx = vj.sgd(0.05, momentum=0.9)
    state, _ = fit(loss_fn, tx, TrainState.create(params, tx), train, epochs=1, batch_size=2)
    step, single = make_train_step(loss_fn, tx), TrainState.create(params, tx)
    order = shuffled(single.key, 0, 2 * CHUNK + 7)
    for start in range(0, len(order), 2):
        rows = order[start : start + 2]
        single, _ = step(single, jax.tree.map(lambda a, rows=rows: a[rows], train))
    chex.assert_trees_all_close(state.params, single.params, rtol=1e-5)


def test_evaluate_weighs_the_last_batch_by_its_size():
    evaluate = make_evaluate(lambda _, b: jnp.mean(b), batch_size=4)
    assert evaluate(None, jnp.array([0.0, 0.0, 0.0, 0.0, 10.0])) == {"loss": 2.0}


@pytest.mark.parametrize(
    ("train", "arguments", "message"),
    [
        ((np.ones((4, 3)), np.ones(5)), {}, r"one length.*\[0\]: 4, \[1\]: 5"),
        ((np.ones((0, 3)), np.ones(0)), {}, "at least one example"),
        (problem(8)[1], {"batch_size": 9}, "between 1 and the 8 training examples, got 9"),
        (problem(8)[1], {"batch_size": 0}, "batch_size must lie between"),
        (problem(8)[1], {"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_fit_refuses(train, arguments, message):
    tx = vj.sgd(0.1)
    state = TrainState.create(problem()[0], tx)
    with pytest.raises(ValueError, match=message):
        fit(loss_fn, tx, state, train, **{"epochs": 1, "batch_size": 2, **arguments})


def test_interrupt_keeps_what_was_done():
    params, train = problem(64)
    tx = vj.sgd(0.01)

    def interrupt(progress):
        if progress.record["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    state, history = fit(
        loss_fn,
        tx,
        TrainState.create(params, tx),
        train,
        epochs=1000,
        batch_size=32,
        on_epoch=interrupt,
    )
    assert history.interrupted
    assert len(history.records) == 2
    assert int(state.step) == 4
    assert np.isfinite(state.params["w"]).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fit_outside_the_main_thread():
    params, train = problem(16)
    tx = vj.sgd(0.01)
    out = []
    thread = threading.Thread(
        target=lambda: out.append(
            fit(loss_fn, tx, TrainState.create(params, tx), train, epochs=1, batch_size=8)
        )
    )
    thread.start()
    thread.join()
    assert int(out[0][0].step) == 2


def test_article_toy_loop():
    # Two samples, loss (y - t)^2 / (2 pi gamma), Adam, 1,000 steps.
    x, targets, gamma = jnp.array([[1.0, 2.0], [2.0, 3.0]]), jnp.array([[0.1], [0.2]]), 1.0

    def loss(params, batch):
        inputs, t = batch
        return jnp.mean((inputs @ params["w"] + params["b"] - t) ** 2 / (2 * jnp.pi * gamma))

    tx = optax.chain(vj.clip_by_global_norm(1.0), vj.adam(0.01))
    state = TrainState.create({"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)}, tx)
    step = make_train_step(loss, tx)
    for _ in range(1000):
        state, metrics = step(state, (x, targets))
    assert metrics["loss"] < 1e-8
    np.testing.assert_allclose(x @ state.params["w"] + state.params["b"], targets, atol=1e-3)
