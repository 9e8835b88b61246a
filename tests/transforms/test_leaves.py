"""Leaves out of the ordinary: right, or refused with their path, by all that is exported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.factories import factories
from vanishjax.training import TrainState, make_train_step

FACTORIES = factories()
every_factory = pytest.mark.parametrize("name", FACTORIES, scope="module")


HEALTHY = {"w": jnp.eye(2), "b": jnp.ones(2)}
# Beside each empty kernel its bias, as the transforms for pairs want it.
EMPTY = {
    str(shape): {"w": jnp.ones(shape), "b": jnp.ones(shape[-1])}
    for shape in [(3, 0), (0, 3), (3, 3, 0, 4)]
}


def first_update(tx, params):
    state = tx.init(params)
    updates, after = tx.update(jax.tree.map(lambda p: 0.5 * p, params), state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    return updates


@every_factory
def test_empty_leaves_change_nothing(name):
    tx, others = FACTORIES[name](), {"scalar": {"w": jnp.ones(())}, "healthy": HEALTHY}

    @jax.jit  # by one program, which computes once what is the same
    def both(others, empty):
        biases = {kind: {"b": layer["b"]} for kind, layer in empty.items()}
        return first_update(tx, others | empty), first_update(tx, others | biases)

    with_empty, without = both(others, EMPTY)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves((with_empty, without)))
    for kind in others:
        for ours, theirs in zip(
            *map(jax.tree.leaves, (with_empty[kind], without[kind])), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


STRANGE = {
    "complex": jnp.complex64,
    "float8": jnp.float8_e4m3fn,
    "float8_e5m2": jnp.float8_e5m2,
    "int": jnp.int32,
    "bool": jnp.bool_,
}


@every_factory
def test_types_that_nothing_is_computed_in_are_refused_with_their_path(name):
    tx = FACTORIES[name]()
    for kind, dtype in STRANGE.items():
        params = {"block": {"w": jnp.ones((2, 2), dtype), "b": jnp.ones(2, dtype)}}
        if name == "sgd" and kind == "complex":
            updates, _ = tx.update(jax.tree.map(lambda p: p * 1j, params), tx.init(params), params)
            np.testing.assert_allclose(updates["block"]["w"], -0.01j * np.ones((2, 2)), rtol=1e-6)
            continue
        with pytest.raises(ValueError, match=r"block/[bw]: expected a real floating-point leaf"):
            tx.init(params)


@pytest.mark.parametrize("parallel", [None, "jit", "pmap", "shard_map"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sgd", [optax.sgd, vj.sgd], ids=["optax", "ours"])
def test_complex_parameters_descend_in_a_training_step(parallel, accumulate, sgd):
    target = jnp.array([1.0 + 2.0j, -0.5j])
    loss_fn = lambda p, x: jnp.mean(x) * jnp.sum(jnp.abs(p["z"] - target) ** 2)  # noqa: E731
    tx = sgd(0.25)
    step = make_train_step(loss_fn, tx, parallel=parallel, accumulate=accumulate)
    state = TrainState.create({"z": jnp.zeros(2, jnp.complex64)}, tx)
    for _ in range(12):
        state, metrics = step(state, jnp.ones(16))
    np.testing.assert_allclose(state.params["z"], target, atol=1e-3)
    assert metrics["loss"] < 1e-5


def test_complex_parameters_are_named_by_what_refuses_them():
    params = {"block": {"z": jnp.zeros(2, jnp.complex64)}}
    for make in (vj.adam, lambda rate: vj.dynamic_loss_scale(vj.sgd(rate)), vj.muon):
        with pytest.raises(ValueError, match="block/z: expected a real floating-point leaf"):
            TrainState.create(params, make(0.1))


def test_empty_leaves_train():
    params = {"w": jnp.ones((3, 2)), "none": jnp.ones((3, 0)), "scale": jnp.ones(())}
    loss_fn = lambda p, x: jnp.mean((p["scale"] * x @ p["w"]) ** 2)  # noqa: E731
    tx = vj.monitor(vj.skip_nonfinite(vj.muon(0.1)))
    state, step = TrainState.create(params, tx), make_train_step(loss_fn, tx)
    losses = []
    for _ in range(5):
        state, metrics = step(state, jnp.eye(3))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert state.params["none"].shape == (3, 0)
