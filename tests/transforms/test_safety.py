"""The guards: a layer that isn't finite is skipped and named, a scaled loss loses nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

import vanishjax as vj
from tests.trajectory import assert_close, in_precision, run

STEPS = 5


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"hidden": {"kernel": (4, 3, 3), "bias": (4, 3)}, "head": (3, 2), "gain": ()}
    return jax.tree.map(
        lambda s: rng.standard_normal(s).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def forward(params, x):
    def layer(x, w):
        return jnp.tanh(x @ w["kernel"] + w["bias"]), None

    x, _ = jax.lax.scan(layer, x, params["hidden"])
    return jnp.sum(params["gain"] * (x @ params["head"]))


PARAMS = parameters()
LAYERS = vj.find_layers(PARAMS, forward, jnp.ones((2, 3)))
# What each layer of the stack gets from the second step on, the first being clean.
BAD = {("hidden", "kernel", 3): np.nan, ("hidden", "bias", 0): np.inf, ("head",): -np.inf}
NAMES = {"hidden/kernel[3]": 1, "hidden/bias[0]": 1, "head": 1}
INNER = {
    "adam": lambda: vj.adam(0.1),
    "muon": lambda: vj.muon(0.1, layers=LAYERS),
    "lamb": lambda: vj.lamb(0.1, layers=LAYERS),
    "optax-adam": lambda: optax.adam(0.1),
    "partition": lambda: optax.partition(
        {"ours": vj.adamw(0.1), "theirs": optax.sgd(0.1, momentum=0.9)},
        {"hidden": {"kernel": "ours", "bias": "theirs"}, "head": "theirs", "gain": "ours"},
    ),
    "masked": lambda: optax.chain(
        optax.masked(vj.momentum(0.9), {"hidden": True, "head": True, "gain": False}),
        optax.scale(-0.1),
    ),
    "multi-steps": lambda: optax.MultiSteps(vj.sgd(0.1, 0.9), 2).gradient_transformation(),
    "inject": lambda: optax.inject_hyperparams(vj.adam)(0.1),
}


def gradients(steps=STEPS, dtype=np.float32):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: rng.standard_normal((steps, *p.shape)).astype(dtype), PARAMS)


def spoil(grads, step, bad=BAD):
    """The gradients with the bad layers' second entry replaced at one step."""
    grads = jax.tree.map(np.array, grads)
    for (*path, last), value in bad.items():
        leaf = functools.reduce(lambda tree, key: tree[key], path, grads)
        if isinstance(last, str):
            leaf[last][step].flat[1] = value
        else:
            leaf[step, last].flat[1] = value
    return grads


def is_bad():
    """True for the entries of bad layers."""
    mask = jax.tree.map(lambda p: np.zeros(p.shape, bool), PARAMS)
    mask["hidden"]["kernel"][3] = mask["hidden"]["bias"][0] = mask["head"][:] = True
    return mask


def for_each(tree, fn):
    for a, bad in zip(jax.tree.leaves(tree), jax.tree.leaves(is_bad()), strict=True):
        fn(np.asarray(a), bad)


def moments(state):
    """The arrays of a state that belong to a parameter, with that parameter's mask."""
    masks = {
        jax.tree_util.keystr(path): (mask, mask.shape)
        for path, mask in jax.tree_util.tree_leaves_with_path(is_bad())
    }
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        for name, (mask, shape) in masks.items():
            if jax.tree_util.keystr(path).endswith(name) and x.shape == shape:
                yield np.asarray(x), mask


@in_precision(INNER)
def test_bad_layers_are_skipped_and_the_others_go_on(name, dtype):
    # Muon and lamb look at no layer but the own one, so the good ones know nothing of the bad.
    inner = INNER[name]()
    tx = vj.skip_nonfinite(inner, layers=LAYERS)
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    healthy = jax.tree.map(lambda g: g[:2], gradients(dtype=dtype))
    grads = spoil(healthy, 1)
    with jax.enable_x64(dtype is np.float64):
        updates, state = run(tx, grads, params)
        clean, unguarded = run(inner, healthy, params)
        _, earlier = run(tx, jax.tree.map(lambda g: g[:1], grads), params)
    assert vj.read_skipped(state, LAYERS) == NAMES
    assert list(np.asarray(state.last)) == [name in NAMES for name in LAYERS.names]

    assert_close(*(jax.tree.map(lambda u: u[:1], each) for each in (updates, clean)))
    for ours, theirs, bad in zip(*map(jax.tree.leaves, (updates, clean, is_bad())), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[1][bad], 0.0)
        assert_close(np.asarray(ours)[1][~bad], np.asarray(theirs)[1][~bad])
    seen = 0
    for (ours, bad), (kept, _), (good, _) in zip(
        *map(moments, (state.inner_state, earlier.inner_state, unguarded)), strict=True
    ):
        np.testing.assert_array_equal(ours[bad], kept[bad])
        assert_close(ours[~bad], good[~bad])
        seen += 1
    assert seen >= 3


def test_after_a_skipped_step_the_layer_goes_on_from_where_it_was():
    # Momentum has no step count: a skipped step is as if it had not been.
    tx = vj.skip_nonfinite(vj.sgd(0.1, 0.9), layers=LAYERS)
    spoiled, _ = run(tx, spoil(gradients(), 2), PARAMS)
    without, _ = run(
        vj.sgd(0.1, 0.9), jax.tree.map(lambda g: np.delete(g, 2, 0), gradients()), PARAMS
    )
    for ours, theirs, bad in zip(*map(jax.tree.leaves, (spoiled, without, is_bad())), strict=True):
        kept = np.delete(np.asarray(ours), 2, 0)
        assert_close(kept[:, bad], np.asarray(theirs)[:, bad])


def test_alone_in_a_chain_the_bad_gradients_become_zero():
    grads = spoil(gradients(), 1)
    tx = optax.chain(vj.skip_nonfinite(layers=LAYERS), vj.clip_by_global_norm(1e9), vj.adam(0.1))
    updates, state = run(tx, grads, PARAMS)
    zeroed = jax.tree.map(np.array, gradients())
    for g, bad in zip(jax.tree.leaves(zeroed), jax.tree.leaves(is_bad()), strict=True):
        g[1] = np.where(bad, 0.0, g[1])
    expected, _ = run(vj.adam(0.1), zeroed, PARAMS)
    assert_close(updates, expected)
    assert vj.read_skipped(state, LAYERS) == NAMES


def test_an_inner_transform_that_looks_at_all_layers_sees_no_bad_one():
    inner = optax.chain(vj.clip_by_global_norm(0.1), vj.sgd(0.1, 0.9))
    grads = spoil(gradients(), 1)
    updates, _ = run(vj.skip_nonfinite(inner, layers=LAYERS), grads, PARAMS)
    zeroed = jax.tree.map(np.array, gradients())
    for g, bad in zip(jax.tree.leaves(zeroed), jax.tree.leaves(is_bad()), strict=True):
        g[1] = np.where(bad, 0.0, g[1])
    expected, _ = run(inner, zeroed, PARAMS)
    for ours, theirs, bad in zip(*map(jax.tree.leaves, (updates, expected, is_bad())), strict=True):
        assert_close(np.asarray(ours)[:, ~bad], np.asarray(theirs)[:, ~bad])


def test_counts_add_up_and_the_last_step_is_told_apart():
    grads = gradients()
    for step in (0, 2, 4):
        grads = spoil(grads, step)
    _, state = run(vj.skip_nonfinite(layers=LAYERS), grads, PARAMS)
    assert vj.read_skipped(state, LAYERS) == dict.fromkeys(NAMES, 3)
    _, state = run(vj.skip_nonfinite(layers=LAYERS), jax.tree.map(lambda g: g[:4], grads), PARAMS)
    assert not np.any(state.last)
    assert vj.read_skipped(state, LAYERS) == dict.fromkeys(NAMES, 2)


def test_without_layers_a_kernel_and_its_bias_tell_the_stack():
    updates, state = run(vj.skip_nonfinite(), spoil(gradients(), 1), PARAMS)
    assert vj.read_skipped(state, PARAMS) == NAMES
    dead = np.all(np.asarray(updates["hidden"]["kernel"])[1] == 0, axis=(1, 2))
    assert list(dead) == [False, False, False, True]


def test_without_layers_a_stack_of_kernels_alone_is_one():
    grads = spoil(gradients(), 1)["hidden"]["kernel"]
    updates, state = run(vj.skip_nonfinite(), {"kernel": grads}, {"kernel": grads[0]})
    assert vj.read_skipped(state, {"kernel": grads[0]}) == {"kernel": 1}
    np.testing.assert_array_equal(updates["kernel"][1], 0.0)


def test_skips_under_vmap_and_eagerly():
    tx = vj.skip_nonfinite(vj.adam(0.1), layers=LAYERS)
    good = jax.tree.map(lambda g: g[0], gradients())
    bad = jax.tree.map(lambda g: g[0], spoil(gradients(), 0))
    both = jax.tree.map(lambda *g: np.stack(g), good, bad)
    updates, states = jax.vmap(tx.update, in_axes=(0, None))(both, tx.init(PARAMS))
    assert not np.any(states.skipped[0])
    second = jax.tree.map(lambda x: x[1], states)
    assert vj.read_skipped(second, LAYERS) == NAMES
    one, state = tx.update(bad, tx.init(PARAMS))
    assert vj.read_skipped(state, LAYERS) == NAMES
    assert_close(jax.tree.map(lambda u: u[1], updates), one)


def test_skips_in_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = vj.skip_nonfinite(vj.sgd(1.0, 0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model)
    optimizer.update(model, grads)
    kernel, bias = np.asarray(model.kernel[...]), np.asarray(model.bias[...])
    grads["kernel"].set_value(jnp.full((3, 2), jnp.nan))
    optimizer.update(model, grads)
    np.testing.assert_array_equal(model.kernel[...], kernel)
    assert np.all(model.bias[...] != bias)
    trace = nnx.to_pure_dict(nnx.state(optimizer.opt_state))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(trace))


def test_float16_gradients_that_overflowed():
    params = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2, jnp.float16)}
    grads = {"a": jnp.array([[6e4, np.inf]], jnp.float16), "b": jnp.full((1, 2), 6e4, jnp.float16)}
    updates, state = run(vj.skip_nonfinite(vj.adam(0.5)), grads, params)
    np.testing.assert_array_equal(updates["a"], 0.0)
    np.testing.assert_array_equal(updates["b"], -0.5)
    assert vj.read_skipped(state, params) == {"a": 1}


def test_read_skipped_of_other_states_and_layers():
    with pytest.raises(ValueError, match="holds no skip_nonfinite"):
        vj.read_skipped(vj.adam(0.1).init(PARAMS), PARAMS)
    state = vj.skip_nonfinite(layers=LAYERS).init(PARAMS)
    with pytest.raises(ValueError, match="counts 10 layers, but 8 were given"):
        vj.read_skipped(state, PARAMS["hidden"])


# Loss scaling.


def scaled(tx, scale=8.0, **kwargs):
    return vj.dynamic_loss_scale(tx, initial_scale=scale, **kwargs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**15])
def test_unscales_exactly(dtype, scale):
    # With an inner transform, whose float32 keeps what the gradient's own type could not.
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.standard_normal((3, 50)), dtype)
    seen = []

    def spy(updates, state, params=None):
        jax.debug.callback(lambda u: seen.append(np.asarray(u)), updates, ordered=True)
        return updates, state

    inner = optax.GradientTransformation(lambda p: optax.EmptyState(), spy)
    tx = scaled(inner, scale, min_scale=scale)
    run(tx, grads, jnp.zeros(50, dtype))
    jax.effects_barrier()
    assert len(seen) == 3
    for ours, g in zip(seen, np.asarray(grads, np.float32), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, np.ldexp(g, -int(np.log2(scale))))


def test_equals_the_plain_run():
    grads = gradients()
    eightfold = jax.tree.map(lambda g: 8 * g, grads)
    unscaled, _ = run(scaled(optax.identity()), eightfold, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, unscaled, grads)
    # Adam within another program: XLA may contract other multiply-adds there.
    plain, _ = run(vj.adam(0.1), grads, PARAMS)
    guarded, _ = run(scaled(vj.adam(0.1)), eightfold, PARAMS)
    assert_close(guarded, plain)


def test_without_inner_it_unscales_alone():
    updates, _ = run(scaled(None), np.array([[8.0, -16.0]], np.float32), jnp.zeros(2))
    np.testing.assert_array_equal(updates, [[1.0, -2.0]])


def test_backs_off_and_grows():
    tx = scaled(vj.sgd(1.0), growth_interval=3, factor=4.0, max_scale=32.0, min_scale=0.5)
    grads = np.array([1, 1, np.inf, 1, 1, 1, 1, 1, 1, np.nan, np.inf, np.inf, 1], np.float32)
    state, scales, good, overflows = tx.init(jnp.zeros(1)), [], [], []
    update = jax.jit(tx.update)
    for g in grads:
        step, state = update(jnp.array([g]), state)
        assert np.isfinite(step[0])
        assert (step[0] == 0) == (not np.isfinite(g))
        scales.append(float(vj.read_loss_scale(state)))
        good.append(int(state.good_steps))
        overflows.append(int(state.overflows))
    assert scales == [8, 8, 2, 2, 2, 8, 8, 8, 32, 8, 2, 0.5, 0.5]
    assert good == [1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 1]
    assert overflows == [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 4]


def test_never_infinite_after_ten_thousand_good_steps():
    tx = vj.dynamic_loss_scale(vj.sgd(1.0), growth_interval=1)
    updates, state = run(tx, jnp.ones((10_000, 1)), jnp.zeros(1))
    assert float(state.scale) == 2.0**126
    assert int(state.overflows) == 0
    assert np.all(np.isfinite(updates))
    # The inverse is still a normal number: unscaling goes on to be exact.
    np.testing.assert_array_equal(updates[-1], -(2.0**-126))


def test_never_below_its_least_after_ten_thousand_bad_steps():
    tx = vj.dynamic_loss_scale(vj.sgd(1.0))
    updates, state = run(tx, jnp.full((10_000, 1), jnp.nan), jnp.zeros(1))
    assert float(state.scale) == 1.0
    assert int(state.overflows) == 10_000
    np.testing.assert_array_equal(updates, 0.0)


@pytest.mark.parametrize("name", INNER)
def test_overflow_keeps_the_inner_state(name):
    tx = scaled(INNER[name]())
    _, earlier = run(tx, jax.tree.map(lambda g: g[:1], gradients()), PARAMS)
    spoiled = spoil(gradients(), 1, {("head",): np.inf})
    updates, state = run(tx, jax.tree.map(lambda g: g[:2], spoiled), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, earlier.inner_state)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u[1], 0.0), updates)
    assert float(state.scale) == 4.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "inner",
    [vj.adamw(0.1), optax.adamw(0.1), optax.lamb(0.1), contrib.muon(0.1), optax.sgd(0.1, 0.9)],
)
def test_inner_gets_single_precision_whatever_the_parameters(inner, dtype):
    # Both branches of the step must agree on the types of an inner state, optax's included.
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    grads = jax.tree.map(lambda g: jnp.asarray(8 * g, dtype), gradients())
    updates, state = run(scaled(inner), grads, params)
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    assert {x.dtype for x in jax.tree.leaves(state.inner_state)} <= {
        jnp.dtype(t) for t in (jnp.float32, jnp.int32)
    }


def test_inner_gets_the_parameters_in_single_precision():
    seen = []

    def update(updates, state, params):
        seen.extend(jax.tree.leaves((updates, params)))
        return updates, state

    tx = scaled(optax.GradientTransformation(lambda params: optax.EmptyState(), update))
    params = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(3, jnp.bfloat16)}
    tx.update(params, tx.init(params), params)
    assert [x.dtype for x in seen] == [jnp.float32] * 4


def train(tx, guarded, steps=200):
    """A float16 regression whose gradients are about 1e-9, where float16 ends at 6e-8."""
    x = jax.random.normal(jax.random.key(0), (16, 4), jnp.float16)
    target = x @ jnp.array([1.0, -2.0, 0.5, 0.0], jnp.float16)

    def loss_fn(w, scale):
        # The scale comes in where the loss is still float32, as in mixed precision.
        error = (x @ w - target).astype(jnp.float32)
        return (2.0**-30 * scale) * jnp.mean(error**2)

    def step(carry, _):
        w, state = carry
        grads = jax.grad(loss_fn)(w, vj.read_loss_scale(state) if guarded else 1.0)
        updates, state = tx.update(grads, state, w)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.zeros(4, jnp.float16)
    (w, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, steps))((w, tx.init(w)))
    return np.asarray(w, np.float32), state


def test_float16_gradients_that_underflow_train_with_it_and_not_without():
    inner = vj.adam(0.05, eps=0.0)
    without, _ = train(inner, guarded=False)
    np.testing.assert_array_equal(without, 0.0)
    tx = vj.dynamic_loss_scale(inner, initial_scale=2.0**15, growth_interval=5)
    found, state = train(tx, guarded=True)
    np.testing.assert_allclose(found, [1.0, -2.0, 0.5, 0.0], atol=0.02)
    # It went too far once or more, and came back.
    assert 0 < int(state.overflows) < 20
    assert np.isfinite(state.scale)


def test_the_guards_together():
    # The scale must fall when a gradient overflows, so it stands first; the layers' guard within.
    tx = scaled(vj.skip_nonfinite(vj.adam(0.1), layers=LAYERS))
    _, state = run(tx, spoil(gradients(), 1), PARAMS)
    assert float(vj.read_loss_scale(state)) == 4.0
    assert vj.read_skipped(state, LAYERS) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_scale": 3.0}, "initial_scale must be a power of two, got 3.0"),
        ({"initial_scale": float("inf")}, "initial_scale must be a power of two"),
        ({"initial_scale": -2.0}, "initial_scale must be a power of two"),
        ({"factor": 1.5}, "factor must be a power of two"),
        ({"factor": 1.0}, "factor must be above 1"),
        ({"growth_interval": 0}, "growth_interval at least 1"),
        ({"max_scale": 2.0**127}, "max_scale <= 2.126"),
        ({"initial_scale": 2.0, "min_scale": 4.0}, "expected .* min_scale <= initial_scale"),
        ({"initial_scale": 2.0**-130, "min_scale": 2.0**-130}, "min_scale"),
    ],
)
def test_bad_scales(arguments, message):
    with pytest.raises(ValueError, match=message):
        vj.dynamic_loss_scale(**arguments)


@pytest.mark.parametrize("guard", [vj.skip_nonfinite, vj.dynamic_loss_scale])
@pytest.mark.parametrize("leaf", [np.arange(3), np.ones(2, np.complex64)], ids=["int", "complex"])
def test_leaf_that_is_not_real_floating_point_is_named(guard, leaf):
    with pytest.raises(ValueError, match="block/w: expected a real floating-point"):
        guard().init({"block": {"w": leaf}})
