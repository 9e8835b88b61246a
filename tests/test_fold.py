"""Folded programs say the same as those that they were made of, in fewer equations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.factories import factories
from vanishjax._jaxpr import Folded

FACTORIES = factories()


def blocks(count):
    """A network's parameters: blocks that are alike, and a head that isn't."""
    keys = iter(jax.random.split(jax.random.key(0), 2 * count + 2))

    def layer(outputs):
        return {
            "kernel": jax.random.normal(next(keys), (8, outputs)),
            "bias": 0.1 * jax.random.normal(next(keys), (outputs,)),
        }

    return {f"block_{i}": layer(8) for i in range(count)} | {"head": layer(4)}


def updates(tx):
    """`(params, gradient) -> update`, the second one."""

    def run(params, gradient):
        state = tx.init(params)
        for _ in range(2):
            update, state = tx.update(gradient, state, params)
        return update

    return run


def folded_call(fn, *arguments):
    """What `fn` returns, by its folded program, and that."""
    found, _, folded = both(fn, *arguments)
    return found, folded


def both(fn, *arguments):
    """What `fn` returns, by its folded program and by itself, and the folded program."""
    traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*arguments)
    folded = Folded(traced)
    # One program of both is compiled in half the time.
    arrays, plain = jax.jit(
        lambda *leaves: (folded(*leaves), jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *leaves))
    )(*jax.tree.leaves(arguments))
    leaves = [arrays[array][row] for array, row in folded.places]
    for leaf, shape in zip(leaves, jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    for array, shape in zip(arrays, folded.shapes, strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
    structure = jax.tree.structure(shapes)
    return *(jax.tree.unflatten(structure, own) for own in (leaves, plain)), folded


def partitioned():
    """Every other block by another transform."""
    labels = lambda params: {name: name[-1] in "02468" for name in params}  # noqa: E731
    return optax.partition({True: vj.adam(1e-3), False: optax.sgd(0.1)}, labels)


OTHERS = {
    "decay": lambda: optax.adamw(1e-3, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1e-2), optax.lamb(1e-3)),
    "partition": partitioned,
    "masked": lambda: optax.masked(
        vj.lars(0.1), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.sgd(1.0)),
    "muon": lambda: optax.contrib.muon(1e-2),
    "factored": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "every other step": lambda: optax.MultiSteps(vj.adam(1e-3), 2).gradient_transformation(),
}


TRANSFORMS = FACTORIES | OTHERS


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_folded_does_the_same(name):
    params = blocks(3 if name == "partition" else 2)  # so that two are treated alike
    gradient = jax.tree.map(lambda x: np.sin(9 * x), params)
    found, expected, _ = both(updates(TRANSFORMS[name]()), params, gradient)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def equations(fn, *arguments):
    return len(jax.make_jaxpr(fn)(*arguments).eqns)


@pytest.mark.parametrize(
    "make", [vj.adamw, optax.adamw, vj.lars, optax.sgd], ids=["adamw", "optax", "lars", "sgd"]
)
def test_more_blocks_take_no_more_equations(make):
    tx = make(1e-3)
    sizes = []
    for count in (3, 24):
        params = blocks(count)
        folded = Folded(jax.make_jaxpr(updates(tx))(params, params))
        sizes.append(equations(folded, *jax.tree.leaves((params, params))))
        assert len(folded.shapes) == 4
    # A stack takes one equation an array.
    assert sizes[1] - sizes[0] <= 2 * 2 * 2 * 21


def test_equal_values_are_computed_once():
    def twice(x, y):
        return jnp.sin(x) + 1, jnp.sin(x) + 1, jnp.sin(y) + 2

    _, folded = folded_call(twice, jnp.ones(3), jnp.zeros(3))
    assert folded.places == ((0, 0), (0, 0), (1, 0))


ARRAYS = np.arange(3000.0), np.arange(3000.0)[::-1]  # printed with dots between


@pytest.mark.parametrize(
    "pair",
    [
        (lambda x: x * 2.0, lambda x: x * 3.0),
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: x + jnp.nan, lambda x: x + jnp.inf),
        (lambda x: x[0] + ARRAYS[0], lambda x: x[0] + ARRAYS[1]),
        (
            lambda x: jax.lax.cond(x[0] > 0, lambda: ARRAYS[0].sum() * x, lambda: x),
            lambda x: jax.lax.cond(x[0] > 0, lambda: ARRAYS[1][:9].sum() * x, lambda: x),
        ),
        (
            lambda x: jax.lax.fori_loop(0, 2, lambda _, y: y[:3] * ARRAYS[0][:3], x),
            lambda x: jax.lax.fori_loop(0, 2, lambda _, y: y[:3] * ARRAYS[1][:3], x),
        ),
        (jnp.sin, jnp.cos),
        (jax.nn.relu, jax.nn.relu6),
        (lambda x: jnp.sum(x, 0), lambda x: jnp.max(x, 0)),
    ],
)
def test_what_differs_stays_apart(pair):
    x, y = jnp.array([1.0, 2.0, -3.0]), jnp.array([5.0, 7.0, 11.0])

    def both(x, y):
        return pair[0](x), pair[1](x), pair[0](y), pair[1](y)

    found, _ = folded_call(both, x, y)
    expected = both(x, y)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    chex.assert_trees_all_equal(*(jax.tree.map(jnp.signbit, t) for t in (found, expected)))


def test_calls_and_functions_with_derivatives_of_their_own():
    @functools.partial(jax.jit, static_argnums=1)
    def inner(x, power):
        return jax.nn.silu(x) ** power

    def run(params):
        return jax.tree.map(lambda x: inner(x, 2) + jax.checkpoint(jnp.tanh)(x), params)

    found, _ = folded_call(run, blocks(3))
    chex.assert_trees_all_close(found, run(blocks(3)), rtol=1e-6)


def test_outputs_may_be_arguments_constants_or_nothing():
    def run(x, y):
        return x, y, 3.0, ARRAYS[0], x

    (a, b, c, d, e), folded = folded_call(run, jnp.ones(2), jnp.zeros(2))
    assert (a.tolist(), b.tolist(), float(c), e.tolist()) == ([1, 1], [0, 0], 3.0, [1, 1])
    np.testing.assert_array_equal(d, ARRAYS[0])
    assert folded.places[0] == folded.places[4]
    assert folded_call(lambda x: (), jnp.ones(2))[0] == ()


def test_what_has_effects_happens_as_often_as_it_stands_there():
    seen = []

    def run(x):
        for _ in range(3):
            jax.debug.callback(lambda value: seen.append(float(value)), x)
        return x

    folded_call(run, jnp.ones([]))
    jax.effects_barrier()
    assert seen == 6 * [1.0]  # by the folded program and by itself
