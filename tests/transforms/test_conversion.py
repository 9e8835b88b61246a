"""State carried over from optax and back: a run goes on as if nothing had happened."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import vanishjax as vj
from tests.trajectory import assert_close, in_precision

PAIRS = {
    "sgd": (vj.sgd(0.1), optax.sgd(0.1)),
    "momentum": (vj.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "adam": (vj.adam(0.1), optax.adam(0.1)),
    "adamw": (vj.adamw(0.1), optax.adamw(0.1)),
    "nadam": (vj.nadam(0.1), optax.nadam(0.1)),
    "rmsprop": (vj.rmsprop(0.1), optax.rmsprop(0.1)),
    "rmsprop-all": (
        vj.rmsprop(0.1, centered=True, momentum=0.9, bias_correction=True, eps=0.1),
        optax.rmsprop(0.1, centered=True, momentum=0.9, bias_correction=True, eps=0.1),
    ),
    "lion": (vj.lion(0.1), optax.lion(0.1)),
    "lars": (vj.lars(0.1), optax.lars(0.1)),
    "lamb": (vj.lamb(0.1), optax.lamb(0.1)),
    "muon": (vj.muon(0.1), contrib.muon(0.1)),
    "clip": (
        optax.chain(vj.clip_by_global_norm(1.0), vj.adam(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    ),
}


def run(tx, params, state, grads):
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@in_precision(PAIRS)
@pytest.mark.parametrize("direction", ["from-optax", "to-optax"])
def test_run_goes_on_in_the_other_library(name, direction, dtype):
    ours, theirs = PAIRS[name]
    first, second = (theirs, ours) if direction == "from-optax" else (ours, theirs)
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((4, 3)).astype(dtype), "b": np.ones(3, dtype)}
    grads = [
        jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(dtype), params)
        for _ in range(10)
    ]
    with jax.enable_x64(dtype is np.float64):
        expected, _ = run(first, params, first.init(params), grads)
        middle, state = run(first, params, first.init(params), grads[:5])
        state = vj.convert_state(state, like=second.init(params))
        found, _ = run(second, middle, state, grads[5:])
    # Five updates are made by the other library, a tenth of a step each: half a step's rounding.
    assert_close(found, expected)


def test_there_and_back_is_the_same():
    params = {"w": jnp.array([1e-15, 1.0])}
    tx = vj.adam(0.1)
    _, state = tx.update(params, tx.init(params))
    there = vj.convert_state(state, like=optax.adam(0.1).init(params))
    back = vj.convert_state(there, like=tx.init(params))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("state", "like", "message"),
    [
        (optax.sgd(0.1, 0.9), vj.adam(0.1), r"state\[0\]: a TraceState doesn't correspond to"),
        (
            optax.chain(optax.adam(0.1), optax.identity(), optax.sgd(0.1)),
            vj.adam(0.1),
            "transforms against",
        ),
    ],
)
def test_chains_that_do_not_correspond(state, like, message):
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=message):
        vj.convert_state(state.init(params), like=like.init(params))


def test_other_parameters():
    with pytest.raises(ValueError, match=r"state\[0\]\.mu: shape \(3,\) against \(2,\)"):
        vj.convert_state(optax.adam(0.1).init(jnp.ones(3)), like=vj.adam(0.1).init(jnp.ones(2)))
