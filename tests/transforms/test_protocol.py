"""The optax protocol, for every exported factory: found in `__all__`, so no list can drift."""

import functools
import inspect
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import vanishjax as vj
from tests.factories import PAIRED, REQUIRED, ROUNDING, factories
from vanishjax import numerics

FACTORIES = factories()
# All tests of one after those of another: they share programs, and keep few.
every_factory = pytest.mark.parametrize("name", FACTORIES, scope="module")


def test_the_factories_are_found():
    expected = {"adam", "scale_by_adam", "sgd", "momentum", "nesterov", "clip_by_global_norm"}
    assert expected <= set(FACTORIES)


def tree(dtype=jnp.float32):
    return {
        "dense": {"kernel": jnp.full((4, 3), 0.5, dtype), "bias": jnp.full(3, 0.25, dtype)},
        "scale": jnp.asarray(1.0, dtype),
    }


@functools.cache
def normal(seed, place, shape, dtype):
    key = jax.random.split(jax.random.key(seed), 99)[place]
    return jax.random.normal(key, shape).astype(dtype)


def gradient(params, seed=0):
    place = itertools.count()
    return jax.tree.map(lambda p: normal(seed, next(place), p.shape, p.dtype), params)


def run(tx, params, steps=3):
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(steps):
        updates, state = update(gradient(params, i), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@every_factory
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_types_shapes_and_structure_stay(name, dtype):
    tx, params = FACTORIES[name](), tree(dtype)
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    expected = tree(jnp.float32) if name in ROUNDING else params
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    # Not even a weak type may change: it would retrace the step.
    avals = lambda t: [jax.typeof(x) for x in jax.tree.leaves(t)]  # noqa: E731
    assert avals(after) == avals(state)
    assert avals(jax.eval_shape(optax.apply_updates, params, updates)) == avals(params)


# Argument -> the field of the state whose type it is.
STATE_TYPES = {"mu_dtype": "mu", "nu_dtype": "nu_root", "accumulator_dtype": "trace"}
TYPED = [
    (name, argument)
    for name in FACTORIES
    for argument in STATE_TYPES
    if argument in inspect.signature(getattr(vj, name)).parameters
]


@pytest.mark.parametrize(("name", "argument"), TYPED)
def test_state_has_the_type_asked_for_and_keeps_it(name, argument):
    factory = getattr(vj, name)
    needed = REQUIRED | {"momentum": 0.9}  # sgd has no trace without it
    given = {k: v for k, v in needed.items() if k in inspect.signature(factory).parameters}
    tx, params = factory(**given, **{argument: jnp.bfloat16}), tree()
    for state in (tx.init(params), run(tx, params)[1]):
        types = {field: set() for field in STATE_TYPES.values()}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            for field in types.keys() & {getattr(key, "name", None) for key in path}:
                types[field].add(leaf.dtype)
        assert types.pop(STATE_TYPES[argument]) == {jnp.dtype(jnp.bfloat16)}
        assert set().union(*types.values()) <= {jnp.dtype(jnp.float32)}


def program_of(name):
    """The program of an update, inner programs too, as text."""
    tx, params = FACTORIES[name](), tree()
    with jax.default_matmul_precision("default"):
        return str(jax.make_jaxpr(tx.update)(gradient(params), tx.init(params), params))


# What brings singular values near to 1, and not to it: coarse products are enough.
COARSE = {"muon", "orthogonalize", "scale_by_muon"}


@every_factory
def test_products_have_the_precision_of_their_type(name):
    # Accelerators round the factors of a product where nothing else is said.
    products = program_of(name).split("dot_general[")[1:]
    own = [text.partition("preferred_element_type")[0] for text in products]
    coarse = [text for text in own if "Precision.HIGHEST" not in text]
    assert bool(coarse) == (name in COARSE)


# What does something else at its first step, or at one that is skipped.
BRANCHING = {"dynamic_loss_scale", "polar_growth", "recondition"}


@pytest.fixture(scope="module")
def programs_on_accelerators():
    """By factory the program of an update where branches cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics.norms, "branches_are_cheap", lambda: False)
        jax.clear_caches()
        found = {name: program_of(name) for name in FACTORIES}
    jax.clear_caches()
    return found


@every_factory
def test_where_branches_cost_there_is_none(name, programs_on_accelerators):
    assert (" cond[" in programs_on_accelerators[name]) == (name in BRANCHING)


@every_factory
def test_zero_gradients_give_finite_updates(name):
    tx, params = FACTORIES[name](), tree()
    zeros = optax.tree.zeros_like(params)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(zeros, state, params)
        chex.assert_tree_all_finite((updates, state))


@every_factory
def test_zeros_stay_zeros(name):
    # With parameters at zero, weight decay adds nothing either.
    tx, params = FACTORIES[name](), optax.tree.zeros_like(tree())
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    chex.assert_trees_all_equal(updates, params)


@every_factory
def test_rides_in_a_scan_under_vmap_and_equals_the_plain_loop(name):
    tx = FACTORIES[name]()
    grads = jax.tree.map(lambda *g: np.stack(g), *(gradient(tree(), i) for i in range(3)))

    def scanned(params):
        def body(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

    batch = [tree(), jax.tree.map(lambda p: 2 * p, tree())]
    together = jax.jit(jax.vmap(scanned))(jax.tree.map(lambda *p: np.stack(p), *batch))
    for i, params in enumerate(batch):
        alone = jax.tree.map(lambda x, i=i: x[i], jax.device_get(together))
        chex.assert_trees_all_close(alone, jax.device_get(run(tx, params)), rtol=1e-5)


@every_factory
def test_init_under_eval_shape(name):
    tx, params = FACTORIES[name](), tree()
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), tx.init(params))


class Pair(NamedTuple):
    weight: jax.Array
    bias: jax.Array | None


TREES = {
    "none": {"a": jnp.ones(2), "b": None},
    "namedtuple": Pair(jnp.ones((2, 2)), None),
    "list": [(jnp.ones(()),)],
    "python-number": {"number": 0.5},
    "bare": jnp.ones(3),
    "empty": {"empty": jnp.zeros((0, 3)), "one": jnp.ones((1, 1))},
}


@every_factory
def test_trees(name):
    tx, trees = FACTORIES[name](), dict(TREES)
    if name in PAIRED:
        for kind in ("namedtuple", "empty"):
            with pytest.raises(ValueError, match=r"(weight|empty): no bias beside it"):
                tx.init(trees.pop(kind))

    @jax.jit  # all by one program, to which a number in a tree is a number
    def updated():
        grads = {kind: jax.tree.map(lambda p: 0.1 * p, params) for kind, params in trees.items()}
        return {kind: tx.update(grads[kind], tx.init(p), p)[0] for kind, p in trees.items()}

    found = updated()
    for kind, params in trees.items():
        assert jax.tree.structure(found[kind]) == jax.tree.structure(params), kind
        assert jax.tree.map(jnp.shape, found[kind]) == jax.tree.map(jnp.shape, params), kind
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[kind])), kind


@every_factory
def test_wrappers_of_optax(name):
    make, params = FACTORIES[name], tree()
    # What needs the biases gets them too.
    left = {"kernel": name not in PAIRED, "bias": False}
    mask = {"dense": left, "scale": True}
    labels = jax.tree.map(lambda ours: "ours" if ours else "theirs", mask)
    wrapped = {
        "masked": optax.masked(make(), mask),
        "partition": optax.partition({"ours": make(), "theirs": optax.sgd(0.1)}, labels),
        "multi_steps": optax.MultiSteps(make(), 2),
    }
    if name in ("skip_nonfinite", "dynamic_loss_scale"):
        # They go around an accumulation: a NaN would never leave it.
        with pytest.raises(ValueError, match=rf"{name}\(optax.MultiSteps\(\.\.\.\)\)"):
            wrapped.pop("multi_steps").init(params)

    @jax.jit  # all by one program
    def step(params, states, grads):
        found = {kind: tx.update(grads, states[kind], params[kind]) for kind, tx in wrapped.items()}
        updates, states = ({kind: each[i] for kind, each in found.items()} for i in (0, 1))
        return optax.apply_updates(params, updates), states

    after, states = (
        [dict.fromkeys(wrapped, params)],
        {k: tx.init(params) for k, tx in wrapped.items()},
    )
    for i in range(3):
        moved, states = step(after[-1], states, gradient(params, i))
        after.append(moved)
    for found in after[-1].values():
        chex.assert_tree_all_finite(found)
        chex.assert_trees_all_equal_shapes_and_dtypes(found, params)
    # What the mask leaves out gets the plain gradient, what the partition does is optax's own.
    bias, grads = 0.25, [gradient(params, i)["dense"]["bias"] for i in range(3)]
    np.testing.assert_allclose(after[1]["masked"]["dense"]["bias"], bias + grads[0], rtol=1e-6)
    descended = bias - 0.1 * sum(map(np.asarray, grads))
    np.testing.assert_allclose(after[-1]["partition"]["dense"]["bias"], descended, rtol=1e-6)


@every_factory
def test_inject_hyperparams(name):
    factory = getattr(vj, name)
    parameters = inspect.signature(factory).parameters.values()
    arguments = {p.name: REQUIRED[p.name] for p in parameters if p.default is p.empty}
    # A number of iterations or an axis is part of the program: optax wants such named as static.
    static = [p.name for p in parameters if p.annotation in (int, int | None)]
    injected = optax.inject_hyperparams(factory, static_args=static)(**arguments)
    with_injection, _ = run(injected, tree())
    plain, _ = run(FACTORIES[name](), tree())
    # An injected b2 = .999 is rounded to float32 before it is taken from 1: 1.3e-5 of 1 - b2.
    chex.assert_trees_all_close(with_injection, plain, rtol=1e-4, atol=1e-5)


@every_factory
def test_flax_train_state_and_nnx_optimizer(name):
    model, x = nnx.Linear(4, 2, rngs=nnx.Rngs(0)), np.linspace(-1, 2, 12).reshape(3, 4) ** 2
    optimizer = nnx.Optimizer(model, FACTORIES[name](), wrt=nnx.Param)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state = TrainState.create(apply_fn=None, params=params, tx=FACTORIES[name]())
    before = jax.device_get(params)

    @nnx.jit
    def step(model, optimizer, state):
        grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads)
        return state.apply_gradients(grads=nnx.to_pure_dict(grads))

    after = step(model, optimizer, state)
    assert int(after.step) == 1
    chex.assert_tree_all_finite(after.params)
    assert np.all(np.isfinite(model.kernel[...]))
    # One layer has no gain to be read: recondition leaves it as it is.
    assert np.array_equal(before["kernel"], model.kernel[...]) == (name == "recondition")


@every_factory
def test_float64_is_kept(name):
    with jax.enable_x64(True):
        tx, params = FACTORIES[name](), tree(jnp.float64)
        updates, _ = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
