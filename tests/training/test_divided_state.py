"""A state that is divided among devices: its numbers, its sizes, and what is sent."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from benchmarks import scaling
from tests.training.test_parallel import BATCH, PROBLEM, mesh
from vanishjax.training import shard_state

LAYERS = vj.find_layers(PROBLEM.params, PROBLEM.loss_fn, BATCH)
CHAINS = {
    "clips": lambda: optax.chain(
        vj.clip_by_global_norm(0.5), vj.clip_by_layer_norm(0.1, LAYERS), vj.sgd(0.5)
    ),
    # Adam and a trust ratio: with eps as large as the gradients, a last digit can't turn a step.
    "lamb": lambda: vj.lamb(1e-2, eps=1e-2, layers=LAYERS),
    "deep_muon": lambda: vj.deep_muon(1e-2, 20, layers=LAYERS),
    "monitor": lambda: vj.monitor(vj.sgd(0.1, momentum=0.9), layers=LAYERS),
}


def trained(tx, kind, steps=5):
    parallel = None if kind == "one device" else "jit"
    sharded = kind if parallel and kind != "whole" else None
    step = vj.make_train_step(PROBLEM.loss_fn, tx, parallel=parallel, shard_state=sharded)
    state = vj.TrainState.create(PROBLEM.params, tx)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return state


def bytes_per_device(tree):
    device = jax.devices()[3]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


@pytest.mark.parametrize("name", CHAINS)
def test_a_divided_state_gives_the_numbers_of_a_whole_one(name):
    tx = CHAINS[name]()
    one = trained(tx, "one device")
    for kind in ("zero1", "fsdp"):
        state = trained(tx, kind)
        chex.assert_trees_all_close(state.params, one.params, rtol=1e-4, atol=1e-6)
        if name == "monitor":
            mine, theirs = vj.read_health(state), vj.read_health(one)
            chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_divided_state_takes_an_eighth_on_each_device():
    tx = vj.adam(1e-3)
    wide = vj.mlp_problem(64, (128, 128), 8, activation="relu").params
    state = vj.TrainState.create(wide, tx)
    sizes = {
        kind: (bytes_per_device(s.opt_state), bytes_per_device(s.params))
        for kind, s in ((k, shard_state(state, kind=k)) for k in (None, "zero1", "fsdp"))
    }
    whole = sizes[None]
    assert sizes["zero1"][0] <= whole[0] / 7
    assert sizes["zero1"][1] == whole[1]
    assert sizes["fsdp"][0] <= whole[0] / 7
    assert sizes["fsdp"][1] <= whole[1] / 7


@pytest.mark.parametrize("kind", ["zero1", "fsdp"])
@pytest.mark.parametrize("optimizer", ["muon", "deep_muon"])
def test_a_divided_matrix_is_sent_once_not_for_every_product(optimizer, kind):
    problem = vj.mlp_problem(64, (64,) * 2, 8, activation="tanh", scan=False)
    batch = jnp.ones((32, 64)), jnp.arange(32) % 8
    layers = vj.find_layers(problem.params, problem.loss_fn, batch)
    program = scaling.program_of(problem, scaling.chains(layers)[optimizer], batch, kind)
    found = scaling.collectives(program)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params))
    # The gradient's all-reduce counts twice, then momentum and parameters are gathered once each;
    # the products' sums would make thirteen of it, as they do of optax's Muon.
    assert scaling.sent(found, 8) < 4.2 * size * 7 / 8


def test_a_step_keeps_the_state_divided_and_the_stack_whole():
    state = trained(vj.adam(1e-2), "fsdp", steps=2)
    stack = state.params["hidden_stack"]["kernel"]
    assert stack.sharding.spec == jax.sharding.PartitionSpec(None, None, "batch")
    assert state.opt_state[0].mu["hidden_stack"]["kernel"].sharding.spec == stack.sharding.spec
    assert state.step.sharding.is_fully_replicated


def test_probe_sees_the_same_in_divided_parameters():
    tx = vj.sgd(0.1)
    state = shard_state(vj.TrainState.create(PROBLEM.params, tx))
    mine = vj.probe(PROBLEM.loss_fn, state.params, BATCH)
    theirs = vj.probe(PROBLEM.loss_fn, PROBLEM.params, BATCH)
    np.testing.assert_allclose(mine.log_chi, theirs.log_chi, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine.gradient_rms, theirs.gradient_rms, rtol=1e-4)


def test_a_divided_run_goes_on_with_fewer_devices(tmp_path):
    tx = vj.sgd(0.1, momentum=0.9)
    vj.save_checkpoint(tmp_path, trained(tx, "fsdp", steps=2))
    whole = trained(tx, "whole", steps=4)
    fresh = vj.TrainState.create(PROBLEM.params, tx)
    for devices, sharded in ((8, "zero1"), (4, "fsdp"), (2, "fsdp"), (1, None)):
        like = shard_state(fresh, mesh(devices), sharded)
        state = vj.restore_checkpoint(tmp_path, like)
        step = vj.make_train_step(
            PROBLEM.loss_fn, tx, parallel="jit", mesh=mesh(devices), shard_state=sharded
        )
        for _ in range(2):
            state, _ = step(state, BATCH)
        chex.assert_trees_all_close(
            jax.device_get(state.params), jax.device_get(whole.params), rtol=1e-5, atol=1e-7
        )
