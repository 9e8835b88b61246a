"""Meshes of the user's own: explicit or automatic axes, one or several, in force or only passed."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vanishjax as vj
from vanishjax.training import make_evaluate

KINDS = [None, "jit", "shard_map", "pmap"]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32)
TX = vj.sgd(0.1, momentum=0.9)
EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto


def loss_fn(params, batch, *, state):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"])
    return jnp.mean((hidden @ params["v"] - y) ** 2), 0.9 * state + 0.1 * jnp.mean(hidden)


PROBLEM = vj.Problem(
    loss_fn,
    {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "v": np.ones((4, 1), np.float32)},
    TX,
    model_state=np.zeros((), np.float32),
    with_state=True,
)


def stepped(step, place=lambda batch: batch, own=lambda state: state):
    state, losses = own(vj.TrainState.create(PROBLEM)), []
    for _ in range(3):
        state, metrics = step(state, place((X, Y)))
        losses.append(float(metrics["loss"]))
    return jax.device_get((state.params, state.model_state)), losses


ALONE = stepped(vj.make_train_step(PROBLEM))
FITTED = vj.fit(PROBLEM, vj.TrainState.create(PROBLEM), [(X, Y)], epochs=3, validation=(X, Y))


def in_force(mesh, held):
    return jax.set_mesh(mesh) if held else contextlib.nullcontext()


MESHES = {
    "explicit": ((4,), ("batch",), (EXPLICIT,)),
    "auto": ((4,), ("data",), (AUTO,)),
    "several": ((2, 4), ("model", "data"), (EXPLICIT, EXPLICIT)),
    "several auto": ((4, 2), ("rows", "model"), (AUTO, AUTO)),
}
DIVIDING = {"explicit": "batch", "auto": "data", "several": "data", "several auto": "rows"}


@pytest.fixture(params=MESHES)
def mesh(request):
    shape, names, types = MESHES[request.param]
    return jax.make_mesh(shape, names, axis_types=types), DIVIDING[request.param]


@pytest.mark.parametrize("held", [False, True], ids=["passed", "in force"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_mesh_is_that_of_one_device(kind, held, mesh):
    mesh, axis = mesh
    spread = NamedSharding(mesh, PartitionSpec(axis))
    whole = NamedSharding(mesh, PartitionSpec())
    places = [
        lambda batch: batch,
        lambda batch: jax.device_put(batch, spread),
        lambda batch: jax.device_put(batch, whole),
    ]
    step = vj.make_train_step(PROBLEM, parallel=kind, mesh=None if kind is None else mesh)
    with in_force(mesh, held):
        for place in places:
            found = stepped(step, place)
            chex.assert_trees_all_close(found, ALONE, rtol=1e-5, atol=1e-7)
        if kind is not None:
            found = stepped(step, places[1], lambda s: jax.device_put(s, whole))
            chex.assert_trees_all_close(found, ALONE, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("held", [False, True], ids=["passed", "in force"])
@pytest.mark.parametrize("kind", ["jit", "shard_map", "pmap"])
def test_fit_on_a_mesh_is_that_on_one_device(kind, held, mesh, tmp_path):
    mesh, axis = mesh
    placed = jax.device_put((X, Y), NamedSharding(mesh, PartitionSpec(axis)))
    evaluate = make_evaluate(PROBLEM)
    with in_force(mesh, held):
        for train, size in (([placed], {}), (placed, {"batch_size": 16})):
            state, history = vj.fit(
                PROBLEM,
                vj.TrainState.create(PROBLEM),
                train,
                epochs=3,
                validation=placed,
                parallel=kind,
                mesh=mesh,
                **size,
            )
            for name in ("loss", "validation_loss"):
                np.testing.assert_allclose(
                    history.to_dict()[name], FITTED[1].to_dict()[name], rtol=1e-5
                )
            found = evaluate(state, placed)
            np.testing.assert_allclose(found["loss"], history.last["validation_loss"], rtol=1e-6)
        vj.save_checkpoint(tmp_path, state)
        again = vj.restore_checkpoint(tmp_path, state)
    chex.assert_trees_all_equal(
        *(jax.device_get((s.params, s.opt_state, s.model_state)) for s in (again, state))
    )


def test_a_state_is_divided_along_the_batch_axis_alone():
    mesh = jax.make_mesh((2, 4), ("model", "data"))
    state = vj.shard_state(vj.TrainState.create(PROBLEM), mesh, "fsdp")
    assert state.params["w"].sharding.spec == PartitionSpec(None, "data")
    step = vj.make_train_step(PROBLEM, parallel="jit", mesh=mesh, shard_state="fsdp")
    state, _ = step(state, (X, Y))
    assert state.params["w"].sharding.spec == PartitionSpec(None, "data")


@pytest.mark.parametrize("kind", ["jit", "shard_map", "pmap"])
def test_an_uneven_batch_that_lies_on_one_device_goes_to_the_mesh(kind):
    mesh = jax.make_mesh((4,), ("batch",))
    step = vj.make_train_step(PROBLEM, parallel=kind, mesh=mesh)
    batch = jax.device_put((X[:15], Y[:15]), jax.devices()[5])
    state, metrics = step(vj.TrainState.create(PROBLEM), batch)
    loss, _ = loss_fn(PROBLEM.params, (X[:15], Y[:15]), state=0.0)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert int(state.step) == 1
