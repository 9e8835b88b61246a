"""Many steps as one compiled loop are the same steps one after the other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vanishjax.training import TrainState, local_step, scan_steps

DATA = jnp.arange(12.0).reshape(6, 2)
ROWS = jnp.array([[0, 1], [2, 5], [3, 3]])


def _loss(w, batch):
    return jnp.mean((batch @ w - 1) ** 2), {"mean": jnp.mean(batch)}


def _start(tx):
    return TrainState.create(jnp.array([0.5, -0.25]), tx)


def _assert_same(found, expected):
    (found, outs), (expected, expected_outs) = found, expected
    chex.assert_trees_all_close(
        (found.params, found.opt_state, outs),
        (expected.params, expected.opt_state, expected_outs),
        rtol=1e-6,
    )


def _one_by_one(step, state, batches):
    outs = []
    for batch in batches:
        state, metrics = step(state, batch)
        outs.append(metrics)
    return state, jax.tree.map(lambda *x: jnp.stack(x), *outs)


def test_a_scan_is_its_steps_one_after_the_other():
    tx = optax.adam(0.1)
    step = local_step(_loss, tx, has_aux=True)
    expected = _one_by_one(step, _start(tx), DATA[ROWS])
    found = jax.jit(lambda s: scan_steps(step, s, DATA[ROWS]))(_start(tx))
    _assert_same(found, expected)
    assert found[0].step == len(ROWS)
    chex.assert_shape(found[1]["loss"], (len(ROWS),))


def test_batches_are_made_in_the_loop():
    """So that no more than one batch is there at a time."""
    tx = optax.sgd(0.01)
    step = local_step(_loss, tx, has_aux=True)
    whole = scan_steps(step, _start(tx), DATA[ROWS])
    made = scan_steps(step, _start(tx), ROWS, lambda rows: DATA[rows])
    _assert_same(made, whole)
    program = jax.make_jaxpr(lambda rows: scan_steps(step, _start(tx), rows, lambda r: DATA[r]))
    sizes = [v.aval.size for e in program(ROWS).eqns for v in e.outvars]
    assert max(sizes) < DATA[ROWS].size


def test_the_same_batch_again_and_again():
    tx = optax.sgd(0.01)
    step = local_step(_loss, tx, has_aux=True)
    expected = _one_by_one(step, _start(tx), [DATA] * 3)
    _assert_same(scan_steps(step, _start(tx), batch_of=lambda _: DATA, length=3), expected)


def test_what_is_observed_is_of_the_state_after_each_step():
    tx = optax.sgd(0.01)
    step = local_step(_loss, tx, has_aux=True)
    end, (metrics, seen) = scan_steps(
        step, _start(tx), DATA[ROWS], observe=lambda state: {"w": state.params, "n": state.step}
    )
    np.testing.assert_array_equal(seen["n"], [1, 2, 3])
    np.testing.assert_array_equal(seen["w"][-1], end.params)
    chex.assert_shape(metrics["mean"], (3,))


def test_a_number_of_steps_is_needed():
    step = local_step(_loss, optax.sgd(0.01), has_aux=True)
    with pytest.raises(ValueError, match="length"):
        scan_steps(step, _start(optax.sgd(0.01)), batch_of=lambda _: DATA)
