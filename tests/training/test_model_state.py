"""A network that carries a state beside its parameters: BatchNorm, counters, keys."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import vanishjax as vj
from vanishjax.training import make_evaluate

KINDS = [None, "jit", "shard_map", "pmap"]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 5)).astype(np.float32) * 2 + 1
Y = (X[:, :1] > 1).astype(np.float32)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not training, momentum=0.9)(x)
        x = nn.Dropout(0.3, deterministic=not training)(nn.relu(x))
        return nn.Dense(1)(x)


NETWORK = Network()
VARIABLES = NETWORK.init(jax.random.key(0), X[:2], False)
TX = optax.sgd(0.1, momentum=0.9)


def loss_fn(params, batch, *, state, key):
    x, y = batch
    out, updated = NETWORK.apply(
        {"params": params, "batch_stats": state},
        x,
        True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    return jnp.mean((out - y) ** 2), updated["batch_stats"]


def evaluate_fn(params, batch, *, state, key):
    assert key is None
    out = NETWORK.apply({"params": params, "batch_stats": state}, batch[0], False)
    return jnp.mean((out - batch[1]) ** 2), state


PROBLEM = vj.Problem(
    loss_fn,
    VARIABLES["params"],
    TX,
    model_state=VARIABLES["batch_stats"],
    with_key=True,
    with_state=True,
    evaluate_fn=evaluate_fn,
    assemble=lambda params, state: {"params": params, "batch_stats": state},
)


def start():
    return vj.TrainState.create(PROBLEM, jax.random.key(3))


def bare(batches):
    """The loop that everybody writes."""
    params, state = PROBLEM.params, PROBLEM.model_state
    opt_state, losses = TX.init(params), []
    value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    for number, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(3), number)
        (loss, state), gradient = value_and_grad(params, batch, state=state, key=key)
        updates, opt_state = TX.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, state, losses


def test_fit_with_dropout_and_batch_norm_is_the_bare_loop():
    batches = [(X[i::4], Y[i::4]) for i in range(4)]
    state, history = vj.fit(PROBLEM, start(), batches, epochs=5, validation=(X, Y))
    params, statistics, expected = bare(batches * 5)
    chex.assert_trees_all_close(state.model_state, statistics, rtol=1e-5)
    chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        history.to_dict()["loss"], np.reshape(expected, (5, 4)).mean(1), rtol=1e-5
    )
    model = PROBLEM.model(state.params, state.model_state)
    loss, _ = evaluate_fn(model["params"], (X, Y), state=model["batch_stats"], key=None)
    np.testing.assert_allclose(history.last["validation_loss"], loss, rtol=1e-5)
    assert history.last["loss"] < expected[0]


def test_steps_with_dropout_and_batch_norm_are_the_bare_loop():
    batches = [(X[i::4], Y[i::4]) for i in range(4)] * 5
    params, statistics, expected = bare(batches)
    for step in (
        vj.make_train_step(PROBLEM),
        vj.make_train_step(loss_fn, TX, with_key=True, with_state=True),
    ):
        state, losses = start(), []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        chex.assert_trees_all_close(state.model_state, statistics, rtol=1e-5)
        chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-6)


# --- devices, microbatches, left-over examples


def recording(params, batch, *, state):
    """A running mean of the data, a count of calls, and the size of the batch last seen."""
    new = {
        "mean": 0.5 * state["mean"] + 0.5 * jnp.mean(batch),
        "calls": state["calls"] + 1,
        "key": jax.random.fold_in(state["key"], 1),
        "size": jnp.array(len(batch), jnp.int32),
        "spread": (jnp.max(batch) > 0.0) | state["spread"],
    }
    return jnp.mean(params * batch), (new, {"largest": jnp.max(batch)})


RECORDING = vj.Problem(
    recording,
    jnp.ones(()),
    vj.sgd(0.0),
    model_state={
        "mean": 0.0,
        "calls": 0,
        "key": jax.random.key(7),
        "size": 0,
        "spread": jnp.array(False),
    },
    has_aux=True,
    with_state=True,
)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_goes_through_the_parts_in_order(kind, accumulate):
    batch = jnp.arange(1.0, 20.0)  # 16 and 3
    step = vj.make_train_step(RECORDING, parallel=kind, accumulate=accumulate)
    state, metrics = step(vj.TrainState.create(RECORDING), batch)
    mapped = kind in ("shard_map", "pmap")
    whole = 19 if (kind, accumulate) == (None, 1) else 18 if kind is None else 16
    heads = [batch[:whole][i::accumulate] for i in range(accumulate)]
    mean = 0.0
    for part in [*heads, *([batch[whole:]] if whole < 19 else [])]:
        mean = 0.5 * mean + 0.5 * float(jnp.mean(part))
    if mapped:
        # Each device's parts are of consecutive examples; their means average to the same.
        mean = 0.0
        devices = jnp.split(batch[:16], 8)
        for number in range(accumulate):
            means = [float(jnp.mean(part[number::accumulate])) for part in devices]
            mean = 0.5 * mean + 0.5 * np.mean(means)
        mean = 0.5 * mean + 0.5 * float(jnp.mean(batch[16:]))
    found = state.model_state
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-6)
    calls = accumulate + (whole < 19)
    assert int(found["calls"]) == calls
    key = jax.random.key(7)
    for _ in range(calls):
        key = jax.random.fold_in(key, 1)
    chex.assert_trees_all_equal(*map(jax.random.key_data, (found["key"], key)))
    assert found["size"].dtype == jnp.int32
    assert found["spread"].dtype == bool
    assert bool(found["spread"])
    for leaf in jax.tree.leaves(state._replace(key=0, model_state={**found, "key": 0})):
        if isinstance(leaf, jax.Array):
            values = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert all((value == values[0]).all() for value in values)
    if not mapped and accumulate == 1 and kind is None:
        assert float(metrics["largest"]) == 19


def test_under_jit_the_statistics_are_those_of_the_whole_batch():
    problem = dataclasses.replace(PROBLEM, evaluate_fn=None)
    alone, _ = vj.make_train_step(problem)(start(), (X, Y))
    split, _ = vj.make_train_step(problem, parallel="jit")(start(), (X, Y))
    chex.assert_trees_all_close(
        jax.device_get(split.model_state), jax.device_get(alone.model_state), rtol=1e-5
    )


# --- evaluation, checkpoints


def test_evaluation_takes_the_running_statistics():
    evaluate = make_evaluate(PROBLEM, batch_size=24)
    state, _ = vj.make_train_step(PROBLEM)(start(), (X, Y))
    expected, _ = evaluate_fn(state.params, (X, Y), state=state.model_state, key=None)
    np.testing.assert_allclose(evaluate(state, (X, Y))["loss"], expected, rtol=1e-5)
    found = evaluate(state.params, (X, Y), state.model_state)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="takes a model state: evaluate"):
        evaluate(state.params, (X, Y))


def test_a_run_with_a_model_state_goes_on_with_the_same_bits(tmp_path):
    def train(epochs, folder, resume=False):
        kept = vj.Checkpoints(folder, resume=resume)
        return vj.fit(PROBLEM, start(), (X, Y), epochs=epochs, batch_size=24, checkpoints=kept)[0]

    whole = train(3, tmp_path / "once")
    train(1, tmp_path / "twice")
    again = train(3, tmp_path / "twice", resume=True)
    chex.assert_trees_all_equal(*(s._replace(key=0) for s in (again, whole)))


def test_a_checkpoint_from_before_there_were_model_states_restores(tmp_path):
    import collections

    state = vj.TrainState.create(jnp.arange(3.0), TX, jax.random.key(1))
    old = collections.namedtuple("TrainState", ["step", "params", "opt_state", "key"])
    vj.save_checkpoint(tmp_path, old(*state[:4]), step=0)
    found = vj.restore_checkpoint(tmp_path, vj.TrainState.create(jnp.zeros(3), TX))
    chex.assert_trees_all_equal(found.params, state.params)
    assert found.model_state is None
    # Parameters alone go on in a network that carries something now.
    like = vj.TrainState.create(jnp.zeros(3), TX, model_state={"mean": jnp.ones(2)})
    with pytest.raises(ValueError, match="model_state/mean is missing in the checkpoint"):
        vj.restore_checkpoint(tmp_path, like)
    found = vj.restore_checkpoint(tmp_path, like, only="params")
    chex.assert_trees_all_equal((found.params, found.model_state["mean"]), (state[1], jnp.ones(2)))


# --- mix-ups


def test_the_callers_own_arrays_outlive_the_step():
    state = start()
    vj.make_train_step(PROBLEM)(state, (X, Y))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(PROBLEM.model_state))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vj.make_train_step(loss_fn), "tx is missing"),
        (lambda: vj.make_train_step(PROBLEM, with_key=True), "flags and a model state of its own"),
        (lambda: vj.make_train_step(PROBLEM, start()), "tx must be a gradient transform"),
        (lambda: vj.make_train_step(start(), TX), "got a TrainState"),
        (lambda: vj.TrainState.create(VARIABLES["params"]), "tx is missing"),
        (lambda: vj.TrainState.create(PROBLEM, model_state=1), "a model state of its own"),
        (
            lambda: vj.TrainState.create(PROBLEM, jax.random.key(0), jax.random.key(1)),
            "two keys",
        ),
        (lambda: vj.fit(PROBLEM, (X, Y), epochs=1, batch_size=4), "state must be a TrainState"),
        (lambda: vj.fit(loss_fn, start(), (X, Y), epochs=1, batch_size=4), "tx must be a gradient"),
        (lambda: vj.fit(PROBLEM, TX, start(), epochs=1, batch_size=4), "train is missing"),
        (
            lambda: vj.fit(PROBLEM, start(), (X, Y), (X, Y), epochs=1, batch_size=4),
            "one argument too many",
        ),
        (
            lambda: vj.fit(PROBLEM, start(), (X, Y), epochs=1, batch_size=4, with_state=True),
            "flags and a model state of its own",
        ),
    ],
)
def test_mix_ups_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_problem_without_a_transform():
    problem = dataclasses.replace(PROBLEM, tx=None)
    for call in (vj.TrainState.create, vj.make_train_step):
        with pytest.raises(ValueError, match="this problem has no transform"):
            call(problem)
    state = vj.TrainState.create(problem, TX, jax.random.key(3))
    vj.make_train_step(problem, TX)(state, (X, Y))


@pytest.mark.parametrize(
    ("given", "returned", "message"),
    [
        (jnp.ones(2), jnp.ones(3), r"was float32\[2\], is float32\[3\]"),
        ({"a": jnp.ones(2)}, {"a": jnp.ones(2, jnp.bfloat16)}, r"\['a'\] was float32\[2\], is bfl"),
        ({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, "of the structure that it got"),
        (None, {"b": jnp.ones(2)}, "the TrainState has none to begin with"),
    ],
)
def test_a_model_state_of_another_form_is_named(given, returned, message):
    def loss(w, batch, *, state):
        del state
        return jnp.mean(w * batch), returned

    step = vj.make_train_step(loss, TX, with_state=True)
    with pytest.raises(TypeError, match=message):
        step(vj.TrainState.create(jnp.ones(()), TX, model_state=given), jnp.ones(4))
