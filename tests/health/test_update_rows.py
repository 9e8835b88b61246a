"""Rows of updates: the same as the update's own, and never from what the step overwrites."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.factories import PAIRED, factories
from vanishjax._jaxpr import WHOLE, Cut, Update
from vanishjax.layers import Layers, Leaf

SHAPES = {"bias": (3, 6), "kernel": (3, 12, 6), "scale": ()}
CUTS = [Cut(1, 2), Cut(1, 5), WHOLE]
LAYERS = Layers(
    (Leaf("bias", (3, 6), (0,)), Leaf("kernel", (3, 12, 6), (0,)), Leaf("scale", ())),
    tuple(range(7)),
    tuple(range(1, 8)),
)
OPTAX = {
    "optax adam": optax.adam(1e-2),
    "optax adam, bfloat16": optax.adam(1e-2, mu_dtype=jnp.bfloat16),
    "optax adamw": optax.adamw(1e-2),
    "optax chain": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-2, weight_decay=0.1)),
    "optax lamb": optax.lamb(1e-2),
    "optax masked": optax.masked(optax.adamw(1e-2), {"bias": False, "kernel": True, "scale": True}),
    "our lars, stacked": vj.lars(1e-2, layers=LAYERS),
    "our normalize_by_layer, stacked": vj.normalize_by_layer(layers=LAYERS),
    "identity": optax.identity(),
    "frozen": optax.set_to_zero(),
}
ALL = OPTAX | {name: make() for name, make in factories().items() if name not in PAIRED}


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


# In 16 bits, of ours those whose arithmetic differs.
NARROW = (*OPTAX, "adam", "adam_atan2", "lion", "muon", "nadamw", "sgd", "scale_by_rms")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.float32) for name in ALL), *((name, jnp.bfloat16) for name in NARROW)],
)
def test_rows_are_those_of_the_update_and_come_from_what_outlives_it(name, dtype):
    tx = optax.with_extra_args_support(ALL[name])
    params = tree(0, dtype)
    _, state = tx.update(tree(1, dtype), tx.init(params), params)
    state = jax.tree.map(jnp.copy, state)  # as a compiled step's: arrays of their own
    update = Update(tx.update, tree(2, dtype), state, params, {})
    found, expected = (update.steps, update.state), tx.update(tree(2, dtype), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = (np.asarray(array, np.float64) for array in (x, y))
        # The same but for how XLA fuses what is compiled apart: of an entry that products of
        # matrices all but cancel out, rounding to a millionth of the others is a larger part.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * np.abs(y).max(initial=0.0))
    leaves = jax.tree.leaves(params)
    steps = list(zip(jax.tree.leaves(update.steps), CUTS, strict=True))
    rows = {(number, cut): cut(leaves[number]) for number, cut in update.reads(steps)}
    wanted = [cut(x) for x, cut in steps]
    # As a compiled step does with what is donated to it.
    kept = {id(x) for x in jax.tree.leaves((update.state, update.steps, rows))}
    for x in jax.tree.leaves((state, params)):
        if id(x) not in kept and np.ndim(x):
            x.delete()
    seen = update.rows(steps, rows)
    for row, one in zip(seen, wanted, strict=True):
        assert row.shape == one.shape
        assert row.dtype == one.dtype
        np.testing.assert_array_equal(row, one)


def reads_steps(tx, params):
    """Whether rows of the larger arrays are read from the steps themselves."""
    update = Update(tx.update, tree(2), tx.init(params), params, {})
    leaves = jax.tree.leaves(params)
    steps = list(zip(jax.tree.leaves(update.steps), CUTS, strict=True))
    rows = {(number, cut): cut(leaves[number]) for number, cut in update.reads(steps)}
    for x in jax.tree.leaves(update.steps):
        if x.ndim:
            x.delete()
    try:
        update.rows(steps, rows)
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, 0.9),
        optax.adam(1e-2),
        optax.adamw(1e-2),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
        vj.sgd(0.1, 0.9, nesterov=True),
        vj.adam(1e-2),
        vj.adamw(1e-2),
        vj.nadam(1e-2),
        vj.adam_atan2(1e-2),
        vj.rmsprop(1e-2),
        vj.lamb(1e-2, layers=LAYERS),
    ],
)
def test_the_usual_updates_need_not_be_in_memory(tx):
    assert not reads_steps(optax.with_extra_args_support(tx), tree(0))


def test_what_only_the_old_state_tells_is_read_from_the_steps():
    def old(updates, state, params=None):
        return jax.tree.map(lambda s: 2 * s, state), updates

    delayed = optax.with_extra_args_support(
        optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), old)
    )
    assert reads_steps(delayed, tree(0))
