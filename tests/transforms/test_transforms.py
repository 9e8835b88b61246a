"""Each transform and optimizer against optax and against a ten-line float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishjax as vj
from vanishjax import numerics

STEPS = 50


def gradients(steps: int = STEPS) -> list[dict]:
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return rng.standard_normal(shape).astype(np.float32) * 10.0 ** rng.uniform(-3, 1)

    return [
        {"w": leaf(7, 5), "b": leaf(5), "nested": (leaf(), leaf(2, 3, 2))} for _ in range(steps)
    ]


def parameters() -> dict:
    return jax.tree.map(lambda g: 0.5 * g, gradients(1)[0])


def trajectory(tx, grads, params, jit=True):
    update = jax.jit(tx.update) if jit else tx.update
    state, out = tx.init(params), []
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        out.append(updates)
    return out


SCHEDULE = optax.linear_schedule(0.1, 0.01, 30)
MASK = {"w": True, "b": False, "nested": (False, True)}
PAIRS = {
    "sgd": (vj.sgd(0.1), optax.sgd(0.1)),
    "sgd-momentum": (vj.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "sgd-nesterov": (vj.sgd(0.1, 0.9, True), optax.sgd(0.1, 0.9, True)),
    "sgd-schedule": (vj.sgd(SCHEDULE, 0.9), optax.sgd(SCHEDULE, 0.9)),
    "adam": (vj.adam(0.1), optax.adam(0.1)),
    "adam-schedule": (vj.adam(SCHEDULE), optax.adam(SCHEDULE)),
    "adam-eps-root": (vj.adam(0.1, 0.8, 0.99, 1e-3, 1e-2), optax.adam(0.1, 0.8, 0.99, 1e-3, 1e-2)),
    "adamw": (vj.adamw(0.1, weight_decay=0.1), optax.adamw(0.1, weight_decay=0.1)),
    "adamw-mask": (
        vj.adamw(0.1, weight_decay=0.1, mask=MASK),
        optax.adamw(0.1, weight_decay=0.1, mask=MASK),
    ),
    "nadam": (vj.nadam(0.1), optax.nadam(0.1)),
    "nadamw": (vj.nadamw(0.1, weight_decay=0.1), optax.nadamw(0.1, weight_decay=0.1)),
    "rmsprop": (vj.rmsprop(0.1), optax.rmsprop(0.1)),
    "rmsprop-momentum": (
        vj.rmsprop(0.1, 0.8, 1e-3, 0.5, False, momentum=0.9, nesterov=True, bias_correction=True),
        optax.rmsprop(
            0.1, 0.8, 1e-3, 0.5, False, momentum=0.9, nesterov=True, bias_correction=True
        ),
    ),
    "lion": (vj.lion(0.1), optax.lion(0.1)),
    "lion-mask": (
        vj.lion(0.1, weight_decay=0.1, mask=MASK),
        optax.lion(0.1, weight_decay=0.1, mask=MASK),
    ),
    "clip": (vj.clip_by_global_norm(2.0), optax.clip_by_global_norm(2.0)),
    "clip-above": (vj.clip_by_global_norm(1e6), optax.clip_by_global_norm(1e6)),
    "sign": (vj.scale_by_sign(), optax.scale_by_sign()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_optax(name):
    mine, peer = (trajectory(tx, gradients(), parameters()) for tx in PAIRS[name])
    assert_equal(mine, peer)


@pytest.mark.parametrize("name", ["sgd-schedule", "adamw-mask", "rmsprop-momentum", "lion", "clip"])
def test_equals_optax_eagerly(name):
    mine, peer = (trajectory(tx, gradients(5), parameters(), jit=False) for tx in PAIRS[name])
    assert_equal(mine, peer)


def assert_equal(trees, peers, tolerance=1e-6):
    """Entry by entry, and relative to the largest of a leaf's trajectory: sums cancel."""
    for ours, theirs in zip(stack(trees), stack(peers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * abs(theirs).max())


def stack(trees):
    return jax.tree.leaves(jax.tree.map(lambda *xs: np.stack(xs), *trees))


def test_centered_rmsprop_equals_optax():
    # r^2 - m^2 cancels, so both carry the rounding of r^2 into the difference; eps bounds it.
    mine = trajectory(vj.rmsprop(0.1, 0.5, 0.1, centered=True), gradients(), parameters())
    peer = trajectory(optax.rmsprop(0.1, 0.5, 0.1, centered=True), gradients(), parameters())
    assert_equal(mine, peer)


# Float64 loops, but for the bias correction: 1 - b2^t keeps float32's absolute precision only,
# in optax and here. It is tested on its own.
def correction(decay, t):
    return float(vj.numerics.bias_correction(decay, jnp.array(t)))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_bias_correction_to_float32_precision(decay):
    for t in (1, 2, 3, 10, 100, 10_000):
        exact = 1 - float(np.float32(decay)) ** t
        # A power by repeated squaring rounds about twice per bit of t.
        assert abs(correction(decay, t) - exact) <= 2 * t.bit_length() * np.finfo(np.float32).epsneg


def loop_momentum(grads, decay=0.9, look_ahead=False):
    trace = 0.0
    for g in grads:
        trace = decay * trace + g
        yield g + decay * trace if look_ahead else trace


def loop_adam(grads, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        if nesterov:
            top = b1 * m / correction(b1, t + 1) + (1 - b1) * g / correction(b1, t)
        else:
            top = m / correction(b1, t)
        yield top / (np.sqrt(v / correction(b2, t) + eps_root) + eps)


def loop_rms(grads, decay=0.9, eps=1e-8, eps_in_sqrt=True, centered=False):
    m = v = 0.0
    for g in grads:
        m = decay * m + (1 - decay) * g
        v = decay * v + (1 - decay) * g**2
        variance = v - m**2 if centered else v
        yield g / (np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps)


def loop_lion(grads, b1=0.9, b2=0.99):
    m = 0.0
    for g in grads:
        yield np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g


def loop_clip(grads, max_norm):
    for g in grads:
        yield g * min(1.0, max_norm / np.sqrt((g**2).sum()))


LOOPS = {
    "momentum": (vj.momentum(0.9), lambda g: loop_momentum(g)),
    "nesterov": (vj.nesterov(0.8), lambda g: loop_momentum(g, 0.8, look_ahead=True)),
    "adam": (vj.scale_by_adam(), loop_adam),
    "adam-eps-root": (
        vj.scale_by_adam(0.8, 0.99, 1e-3, 1e-2),
        lambda g: loop_adam(g, 0.8, 0.99, 1e-3, 1e-2),
    ),
    "nadam": (vj.scale_by_adam(nesterov=True), lambda g: loop_adam(g, nesterov=True)),
    "rms": (vj.scale_by_rms(), loop_rms),
    "rms-outside": (
        vj.scale_by_rms(0.99, 1e-3, eps_in_sqrt=False),
        lambda g: loop_rms(g, 0.99, 1e-3, eps_in_sqrt=False),
    ),
    "stddev": (vj.scale_by_stddev(0.9, 0.1), lambda g: loop_rms(g, 0.9, 0.1, centered=True)),
    "lion": (vj.scale_by_lion(), loop_lion),
    "sign": (vj.scale_by_sign(), lambda g: (np.sign(x) for x in g)),
    "clip": (vj.clip_by_global_norm(0.5), lambda g: loop_clip(g, 0.5)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_equals_float64_loop(name):
    tx, loop = LOOPS[name]
    grads = [np.asarray(g["w"]) for g in gradients()]
    mine = trajectory(tx, grads, grads[0])
    assert_equal(mine, list(loop([g.astype(np.float64) for g in grads])))


SCALE_FREE = {
    "adam": vj.scale_by_adam(eps=0.0),
    "nadam": vj.scale_by_adam(eps=0.0, nesterov=True),
    "rms": vj.scale_by_rms(eps=0.0),
    "sign": vj.scale_by_sign(),
    "lion": vj.scale_by_lion(),
    "clip": vj.clip_by_global_norm(1e-38),
}


@settings(deadline=None, max_examples=15)
@given(exponent=st.integers(-119, 119), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", SCALE_FREE)
def test_scaled_gradients_give_the_same_update(name, exponent, seed):
    # A power of two rounds nothing, so only overflow and underflow could make a difference. At the
    # lower end one does: a moment, .1 * LIFT of a gradient, that cancels to less than the smallest
    # normal number becomes 0.
    flushed = np.finfo(np.float32).tiny / (0.1 * numerics.LIFT * 2.0**exponent)
    rng = np.random.default_rng(seed)
    grads = list(rng.uniform(0.5, 2.0, (6, 9)).astype(np.float32) * rng.choice([-1, 1], (6, 9)))
    scaled = [np.float32(2.0**exponent) * g for g in grads]
    base = trajectory(SCALE_FREE[name], grads, grads[0])
    moved = trajectory(SCALE_FREE[name], scaled, grads[0])
    for a, b in zip(moved, base, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=flushed)


@pytest.mark.parametrize("factory", [vj.adamw, vj.nadamw, vj.lion, vj.adam_atan2])
def test_the_mask_says_what_decays(factory):
    params = {"decays": jnp.ones(2), "stays": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    mask = {"decays": True, "stays": False}
    for chosen in (mask, lambda _: mask):
        tx = factory(0.5, weight_decay=0.5, mask=chosen)
        updates, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_array_equal(updates["decays"], -0.25)
        np.testing.assert_array_equal(updates["stays"], 0.0)


def test_what_optax_loses_is_kept():
    # The faults this package exists for; if optax mends one, this test says so.
    for g, tx, peer in [
        (np.float32(1e-12), vj.scale_by_adam(eps=0.0), optax.scale_by_adam()),
        (np.float32(1e-30), vj.scale_by_rms(eps=0.0), optax.scale_by_rms()),
        (
            np.full(2, 1e20, np.float32),
            vj.clip_by_global_norm(2**0.5),
            optax.clip_by_global_norm(2**0.5),
        ),
    ]:
        ours, _ = tx.update(g, tx.init(g))
        theirs, _ = peer.update(g, peer.init(g))
        assert np.all(np.abs(ours) > 0.9)
        assert np.all(np.abs(theirs) < 0.1)


def test_clip_reaches_the_norm_and_keeps_the_direction():
    g = {"a": jnp.full(1000, 2e38), "b": jnp.array([-1e38])}
    tx = vj.clip_by_global_norm(3.0)
    out, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(vj.numerics.global_norm(out), 3.0, rtol=1e-6)
    np.testing.assert_allclose(out["b"][0] / out["a"][0], -0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (vj.scale_by_adam, {"b1": 1.1}, r"b1 must lie in \[0, 1\), got 1.1"),
        (vj.scale_by_adam, {"eps": -1e-8}, "eps must not be negative"),
        (vj.scale_by_rms, {"decay": -0.1}, "decay must lie"),
        (vj.momentum, {"decay": 2}, "decay must lie"),
        (vj.scale_by_lion, {"b2": -1}, "b2 must lie"),
        (vj.clip_by_global_norm, {"max_norm": -1}, "max_norm must not be negative"),
        (vj.clip_by_global_norm, {"max_norm": float("nan")}, "max_norm must not be negative"),
    ],
)
def test_bad_arguments(factory, arguments, message):
    with pytest.raises(ValueError, match=message):
        factory(**arguments)


@pytest.mark.parametrize("factory", [vj.scale_by_adam, vj.momentum, vj.clip_by_global_norm])
@pytest.mark.parametrize("leaf", [np.arange(3), np.ones(2, np.complex64)], ids=["int", "complex"])
def test_leaf_that_is_not_real_floating_point_is_named(factory, leaf):
    with pytest.raises(ValueError, match=r"block/w: expected a real floating-point leaf"):
        factory().init({"block": {"w": leaf}})


def test_a_leaf_of_adam_is_a_small_part_of_a_program():
    """A tree of a thousand leaves is compiled in proportion to these lines."""

    def lines(tx):
        params = [jnp.ones((3, 4)), jnp.ones((3, 4))]
        texts = [
            jax.jit(tx.update).lower(tree, tx.init(tree)).as_text() for tree in (params, params[:1])
        ]
        return len(texts[0].splitlines()) - len(texts[1].splitlines())

    assert lines(vj.adam(1e-3)) <= 2.2 * lines(optax.adam(1e-3))
