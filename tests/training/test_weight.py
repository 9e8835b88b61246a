"""A metric named `weight`: means over tokens are those of the whole batch, however it's divided."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vanishjax as vj
from vanishjax.training import make_evaluate
from vanishjax.training.evaluation import Means

KINDS = [None, "jit", "shard_map", "pmap"]
RNG = np.random.default_rng(0)
TOKENS = 6
TX = vj.sgd(0.3, momentum=0.9)
PARAMS = {"w": jnp.ones(3), "b": jnp.zeros(())}


def data(examples, empty=()):
    x = RNG.standard_normal((examples, TOKENS, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + 0.3
    mask = np.arange(TOKENS) < RNG.integers(1, TOKENS + 1, (examples, 1))
    mask[list(empty)] = False
    return x, y, mask


def loss_fn(params, batch):
    x, y, mask = batch
    count = jnp.sum(mask)
    error = jnp.where(mask, x @ params["w"] + params["b"] - y, 0.0)
    # 0/0 where nothing is left.
    return jnp.sum(error**2) / count, {
        "weight": count,
        "absolute": jnp.sum(jnp.abs(error)) / count,
    }


def trained(batches, **arguments):
    step = vj.make_train_step(loss_fn, TX, has_aux=True, **arguments)
    state, curve = vj.TrainState.create(PARAMS, TX), []
    for batch in batches:
        state, metrics = step(state, batch)
        curve.append(jax.device_get(metrics))
    return jax.device_get(state.params), curve


# Divides among 8 devices and 4 microbatches, has a rest, and is mostly empty: the first sixteen
# examples are the parts of whole devices, every fourth one those of a microbatch.
BATCHES = [
    data(32),
    data(37),
    data(32, empty=range(16)),
    data(37, empty=[*range(0, 37, 4), *range(16)]),
    data(35, empty=range(32, 35)),
    data(35, empty=range(32)),
]
WHOLE = trained(BATCHES)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_token_means_are_those_of_the_whole_batch(kind, accumulate):
    params, curve = trained(BATCHES, parallel=kind, accumulate=accumulate)
    chex.assert_trees_all_close(params, WHOLE[0], rtol=1e-6, atol=1e-6)
    for metrics, expected, batch in zip(curve, WHOLE[1], BATCHES, strict=True):
        assert set(metrics) == {"loss", "absolute", "weight"}
        chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
        assert metrics["weight"] == batch[2].sum()


def test_one_gradient_is_that_of_the_whole_batch_to_a_millionth():
    batch = data(64, empty=[0, 4, 8])
    expected = jax.grad(loss_fn, has_aux=True)(PARAMS, batch)[0]
    for kind in KINDS:
        step = vj.make_train_step(loss_fn, vj.sgd(1.0), parallel=kind, accumulate=4, has_aux=True)
        state, _ = step(vj.TrainState.create(PARAMS, vj.sgd(1.0)), batch)
        gradient = jax.tree.map(lambda old, new: old - new, PARAMS, jax.device_get(state.params))
        chex.assert_trees_all_close(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_a_token_changes_nothing_and_is_nan_nowhere(kind):
    batch = data(19, empty=range(19))
    params, (metrics,) = trained([batch], parallel=kind)
    chex.assert_trees_all_equal(params, jax.device_get(PARAMS))
    chex.assert_trees_all_equal(metrics, {"loss": 0.0, "absolute": 0.0, "weight": 0.0})


def test_large_and_small_gradients_keep_their_size():
    def loss(w, batch):
        x, mask = batch
        return jnp.sum(w * x * mask) / jnp.sum(mask), {"weight": jnp.sum(mask)}

    mask = jnp.arange(32) % 5 > 0
    for size in (1e36, 1e-36):
        for kind in KINDS:
            tx = vj.sgd(1.0)
            step = vj.make_train_step(loss, tx, parallel=kind, accumulate=2, has_aux=True)
            state, _ = step(vj.TrainState.create(jnp.zeros(()), tx), (jnp.full(32, size), mask))
            np.testing.assert_allclose(state.params, -size, rtol=1e-5)


def test_an_empty_part_leaves_the_model_state_alone():
    def loss(w, batch, *, state):
        x, mask = batch
        mean = jnp.sum(x * mask) / jnp.sum(mask)
        return w * mean, (0.5 * state + 0.5 * mean, {"weight": jnp.sum(mask)})

    problem = vj.Problem(
        loss, jnp.ones(()), vj.sgd(0.1), model_state=0.0, has_aux=True, with_state=True
    )
    step = vj.make_train_step(problem, accumulate=2)
    # Microbatches are of every second example.
    batch = jnp.array([1.0, 5.0, 1.0, 7.0]), jnp.array([False, True, False, True])
    state, metrics = step(vj.TrainState.create(problem), batch)
    assert (float(state.model_state), float(metrics["loss"])) == (3.0, 6.0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_epoch_and_an_evaluation_are_means_over_tokens(stream):
    train = data(30, empty=range(10))
    batches = [jax.tree.map(lambda a, i=i: a[i : i + 8], train) for i in range(0, 30, 8)]
    # Nothing moves, so that every batch sees the same parameters.
    still = vj.sgd(0.0)
    arguments = {} if stream else {"batch_size": 8}
    _, history = vj.fit(
        loss_fn,
        still,
        vj.TrainState.create(PARAMS, still),
        batches if stream else train,
        epochs=2,
        validation=batches if stream else train,
        has_aux=True,
        **arguments,
    )
    loss, metrics = loss_fn(PARAMS, train)
    for front in ("", "validation_"):
        np.testing.assert_allclose(history.last[f"{front}loss"], loss, rtol=1e-6)
        np.testing.assert_allclose(history.last[f"{front}absolute"], metrics["absolute"], rtol=1e-6)
        assert history.last[f"{front}weight"] == train[2].sum()
    evaluate = make_evaluate(loss_fn, has_aux=True, batch_size=7)
    np.testing.assert_allclose(evaluate(PARAMS, train)["loss"], loss, rtol=1e-6)


def test_weighted_means_do_not_depend_on_where_they_are_cut():
    rng = np.random.default_rng(1)
    values = {
        "loss": rng.standard_normal(100).astype(np.float32),
        "weight": rng.integers(0, 9, 100).astype(np.float32),
    }
    once = Means().add(3, values)
    cut = Means()
    for rows in np.split(np.arange(100), [1, 18, 50, 93]):
        cut = cut.add(3, {name: value[rows] for name, value in values.items()})
    assert cut == once
    np.testing.assert_allclose(
        once.values()["loss"], np.average(values["loss"], weights=values["weight"]), rtol=1e-6
    )
    empty = Means().add(3, {"loss": [np.nan], "weight": [0.0]})
    assert np.isnan(empty.values()["loss"])
    assert empty.add(3, {"loss": [2.0], "weight": [1.0]}).values()["loss"] == 2.0


def test_a_weight_that_is_no_scalar_is_named():
    step = vj.make_train_step(lambda w, x: (w.sum(), {"weight": x}), TX, has_aux=True)
    with pytest.raises(ValueError, match=r"'weight' must be a scalar.* got shape \[4\]"):
        step(vj.TrainState.create(jnp.ones(2), TX), jnp.ones(4))


# --- other metrics


def test_nested_metrics_are_flattened():
    def nested(w, batch):
        right = jnp.sum(batch > 1)
        return jnp.mean(w * batch), {"accuracy": {"top1": 0.5, "top5": {"of": 0.9}}, "n": right}

    train = jnp.arange(8.0)
    _, history = vj.fit(
        nested,
        TX,
        vj.TrainState.create(jnp.ones(()), TX),
        train,
        epochs=1,
        batch_size=4,
        validation=train,
        has_aux=True,
    )
    assert {"accuracy/top1", "accuracy/top5/of", "validation_accuracy/top1", "n"} <= {*history.last}
    np.testing.assert_allclose(history.last["accuracy/top5/of"], 0.9, rtol=1e-6)
    assert history.last["validation_n"] == 6


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_whole_numbers_are_not_cut_off(kind):
    def counting(w, batch):
        return jnp.mean(w * batch), {"n": jnp.sum(batch > 3), "any": jnp.max(batch) > 3}

    step = vj.make_train_step(counting, TX, parallel=kind, accumulate=2, has_aux=True)
    batch = jnp.arange(18.0)
    _, metrics = step(vj.TrainState.create(jnp.ones(()), TX), batch)
    size, devices = (16, 8) if kind in ("shard_map", "pmap") else (18 if kind is None else 16, 1)
    parts = [part[i::2] for part in np.split(np.arange(float(size)), devices) for i in range(2)]
    expected = np.mean([np.sum(part > 3) for part in parts])
    if size < 18:
        expected = (size * expected + (18 - size) * 2) / 18
    np.testing.assert_allclose(metrics["n"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"per_class": jnp.ones(3)}, r"'per_class' must be a scalar.* got shape \[3\]"),
        ({"a": {"b": 1.0}, "a/b": 1.0}, "two metrics have the name 'a/b'"),
    ],
)
def test_metrics_that_can_not_be_averaged_are_named(metrics, message):
    with pytest.raises(ValueError, match=message):
        vj.fit(
            lambda w, batch: (jnp.mean(w * batch), metrics),
            TX,
            vj.TrainState.create(jnp.ones(()), TX),
            jnp.arange(4.0),
            epochs=1,
            batch_size=2,
            has_aux=True,
        )
