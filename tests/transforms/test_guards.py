"""Guards inside and around other wrappers: right, or refused with the order that is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import vanishjax as vj
from vanishjax.training import TrainState, make_train_step

PARAMS = {"a": jnp.ones(3), "b": jnp.ones(2)}
NAN, INF = float("nan"), float("inf")


def gradient(a=1.0, b=1.0, dtype=jnp.float32):
    return {"a": jnp.full(3, a, dtype), "b": jnp.full(2, b, dtype)}


def steps(tx, gradients, params=PARAMS):
    """The updates for some gradients, one after the other, and the last state."""
    state, update, updates = tx.init(params), jax.jit(tx.update), []
    for g in gradients:
        step, state = update(g, state, params)
        updates.append(jax.tree.map(lambda u: float(u[0]), step))
    return updates, state


def scaled(inner=None, scale=8.0):
    return vj.dynamic_loss_scale(inner, initial_scale=scale)


SGD = optax.sgd(1.0)
HALF = {"a": True, "b": False}
LABELS = {"a": "one", "b": "two"}

# What is wrong with each order, and the text that says what is right.
WRONG_SCALES = {
    "multi-steps": (
        lambda: optax.MultiSteps(scaled(SGD), 2),
        r"dynamic_loss_scale\(optax.MultiSteps\(\.\.\.\)\)",
    ),
    "multi-steps-chain": (
        lambda: optax.MultiSteps(optax.chain(scaled(SGD)), 2).gradient_transformation(),
        r"dynamic_loss_scale\(optax.MultiSteps\(\.\.\.\)\)",
    ),
    "skip": (
        lambda: vj.skip_nonfinite(scaled(SGD)),
        r"dynamic_loss_scale\(skip_nonfinite\(\.\.\.\)\)",
    ),
    "skip-chain": (
        lambda: vj.skip_nonfinite(optax.chain(scaled(SGD), optax.identity())),
        r"dynamic_loss_scale\(skip_nonfinite\(\.\.\.\)\)",
    ),
    "skip-before": (
        lambda: optax.chain(vj.skip_nonfinite(), scaled(SGD)),
        r"dynamic_loss_scale\(optax.chain\(\.\.\.\)\)",
    ),
    "two": (
        lambda: optax.partition({"one": scaled(SGD, 512.0), "two": scaled(SGD)}, LABELS),
        r"holds 2 dynamic_loss_scale.*dynamic_loss_scale\(optax.partition",
    ),
    "two-nested": (lambda: scaled(optax.chain(scaled(SGD))), "holds 2 dynamic_loss_scale"),
    "two-in-a-row": (lambda: optax.chain(scaled(), scaled(SGD)), "holds 2 dynamic_loss_scale"),
    "partition": (
        lambda: optax.partition({"one": scaled(SGD), "two": SGD}, LABELS),
        r"dynamic_loss_scale\(optax.partition\(\.\.\.\)\)",
    ),
    "masked": (
        lambda: optax.masked(scaled(SGD), HALF),
        r"dynamic_loss_scale\(optax.masked\(\.\.\.\)\)",
    ),
    "clip": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), scaled(SGD)),
        r"comes after another.*dynamic_loss_scale\(optax.chain\(\.\.\.\)\)",
    ),
    "our-clip-inside-chains": (
        lambda: optax.chain(optax.chain(vj.clip_by_layer_norm(1.0), optax.chain(scaled(SGD)))),
        r"comes after another.*dynamic_loss_scale\(optax.chain\(\.\.\.\)\)",
    ),
    "named-chain": (
        lambda: optax.named_chain(("z", optax.clip(1.0)), ("a", scaled(SGD))),
        r"dynamic_loss_scale\(optax.chain\(\.\.\.\)\)",
    ),
    "apply-if-finite": (
        lambda: optax.apply_if_finite(scaled(SGD), 5),
        r"dynamic_loss_scale\(optax.apply_if_finite\(\.\.\.\)\)",
    ),
    "schedule-free": (
        lambda: contrib.schedule_free(scaled(SGD), 1.0),
        r"dynamic_loss_scale\(ScheduleFree\(\.\.\.\)\)",
    ),
    "recondition": (
        lambda: vj.recondition(scaled(SGD)),
        r"dynamic_loss_scale\(recondition\(\.\.\.\)\)",
    ),
    "monitor": (
        lambda: vj.monitor(optax.masked(scaled(SGD), HALF)),
        r"dynamic_loss_scale\(optax.masked\(\.\.\.\)\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_SCALES)
def test_a_loss_scale_that_misses_a_gradient_is_refused(name):
    make, message = WRONG_SCALES[name]

    def looked_at():
        return vj.read_loss_scale(make().init(PARAMS))

    def trained():
        loss_fn = lambda p, x: jnp.sum(p["a"]) + jnp.sum(p["b"]) + 0 * jnp.sum(x)  # noqa: E731
        state = TrainState(jnp.zeros([], jnp.int32), PARAMS, make().init(PARAMS), jax.random.key(0))
        make_train_step(loss_fn, make())(state, jnp.ones(2))

    for refused in (looked_at, lambda: TrainState.create(PARAMS, make()), trained):
        with pytest.raises(ValueError, match=message):
            refused()


@pytest.mark.parametrize("name", ["multi-steps", "multi-steps-chain", "skip", "two-nested"])
def test_what_can_be_known_at_init_is_refused_there(name):
    make, message = WRONG_SCALES[name]
    tx = make()
    for init in (tx.init, jax.jit(tx.init), lambda params: jax.eval_shape(tx.init, params)):
        with pytest.raises(ValueError, match=message):
            init(PARAMS)


RIGHT_SCALES = {
    "chain": lambda: scaled(optax.chain(optax.clip_by_global_norm(1e3), SGD)),
    "first": lambda: optax.chain(scaled(SGD), optax.scale(1.0)),
    "named": lambda: optax.named_chain(("z", scaled(SGD)), ("a", optax.scale(1.0))),
    "partition": lambda: scaled(optax.partition({"one": SGD, "two": SGD}, LABELS)),
    "inject": lambda: optax.inject_hyperparams(lambda rate: scaled(optax.sgd(rate)))(1.0),
    "monitor": lambda: vj.monitor(scaled(SGD)),
    "monitored": lambda: scaled(vj.monitor(SGD)),
    "skip": lambda: scaled(vj.skip_nonfinite(SGD)),
    "multi-steps": lambda: scaled(optax.MultiSteps(SGD, 1)),
}


@pytest.mark.parametrize("name", RIGHT_SCALES)
def test_a_loss_scale_that_sees_every_gradient_backs_off_and_goes_on(name):
    updates, state = steps(RIGHT_SCALES[name](), [gradient(8.0, 16.0), gradient(INF), gradient()])
    assert updates == [{"a": -1, "b": -2}, {"a": 0, "b": 0}, {"a": -0.25, "b": -0.25}]
    assert float(vj.read_loss_scale(state)) == 4.0
    # The state of a whole training run does too.
    train_state = TrainState(jnp.zeros([]), PARAMS, state, jax.random.key(0))
    assert float(vj.read_loss_scale(train_state)) == 4.0


def test_clipping_sees_the_plain_gradient():
    params = {"w": jnp.ones(4)}
    loss_fn = lambda p, x: jnp.sum(p["w"]) * jnp.mean(x) / 20  # noqa: E731
    tx = scaled(optax.chain(optax.clip_by_global_norm(1.0), SGD), 2.0**10)
    state, _ = make_train_step(loss_fn, tx)(TrainState.create(params, tx), jnp.ones(2))
    np.testing.assert_allclose(state.params["w"], 1 - 1 / 20, rtol=1e-6)


def test_accumulation_goes_on_after_an_overflow():
    params = {"w": jnp.ones(2, jnp.float16)}
    loss_fn = lambda p, x: jnp.mean((p["w"] * x).astype(jnp.float32)) * 100  # noqa: E731
    tx = vj.dynamic_loss_scale(optax.MultiSteps(optax.sgd(1e-3), 2), initial_scale=2.0**13)
    state, step = TrainState.create(params, tx), make_train_step(loss_fn, tx)
    moved = []
    for _ in range(8):
        before = np.asarray(state.params["w"], np.float32)
        state, _ = step(state, jnp.ones((4, 2), jnp.float16))
        moved.append(float(np.abs(state.params["w"] - before).max()))
        assert np.isfinite(state.params["w"]).all()
    # Overflows until the scale fits, then every second microbatch moves.
    overflows = int(state.opt_state.overflows)
    assert 0 < overflows < 6
    np.testing.assert_allclose(np.array(moved[overflows:]) > 0, np.arange(8 - overflows) % 2 == 1)


# skip_nonfinite.

WRONG_SKIPS = {
    "plain": lambda: optax.MultiSteps(vj.skip_nonfinite(SGD), 2),
    "chain": lambda: optax.MultiSteps(optax.chain(vj.skip_nonfinite(), SGD), 2),
    "masked": lambda: optax.MultiSteps(optax.masked(vj.skip_nonfinite(SGD), HALF), 2),
    "scaled": lambda: scaled(optax.MultiSteps(vj.skip_nonfinite(SGD), 2)),
}


@pytest.mark.parametrize("name", WRONG_SKIPS)
def test_skipping_inside_an_accumulation_is_refused(name):
    tx = WRONG_SKIPS[name]()
    for init in (tx.init, jax.jit(tx.init), lambda p: TrainState.create(p, tx)):
        with pytest.raises(ValueError, match=r"skip_nonfinite\(optax.MultiSteps\(\.\.\.\)\)"):
            init(PARAMS)


def accumulating(mean=True, inner=SGD, k=2):
    return vj.skip_nonfinite(optax.MultiSteps(inner, k, use_grad_mean=mean))


def test_a_microbatch_that_is_bad_leaves_the_layer_s_accumulated_gradient_as_it_was():
    good, bad = gradient(4.0, 6.0), gradient(NAN, 2.0)
    for order, mean, moves in (
        ([bad, good, good, good], True, [0, -2, 0, -4]),
        ([good, bad, good, good], True, [0, 0, 0, -4]),
        ([bad, good, good, good], False, [0, -4, 0, -8]),
        # What the layer had waits for the next step: in a sum nothing is lost.
        ([good, bad, good, good], False, [0, 0, 0, -12]),
        ([bad, bad, good, good], True, [0, 0, 0, -4]),
    ):
        updates, state = steps(accumulating(mean), order)
        assert [u["a"] for u in updates] == moves
        count = sum(g is bad for g in order)
        assert vj.read_skipped(state, PARAMS) == {"a": count}
        others = [0, -(12 - 4 * count), 0, -12]
        assert [u["b"] for u in updates] == [u / 2 if mean else u for u in others]
        np.testing.assert_array_equal(state.inner_state.acc_grads["a"], 0.0)


def test_a_layer_bad_in_all_microbatches_keeps_its_moments():
    tx = accumulating(inner=optax.sgd(1.0, momentum=0.5))
    bad = gradient(NAN, 1.0)
    updates, state = steps(tx, [gradient(), gradient(), bad, bad, gradient(), gradient()])
    assert [u["a"] for u in updates] == [0, -1, 0, 0, 0, -1.5]
    assert [u["b"] for u in updates] == [0, -1, 0, -1.5, 0, -1.75]
    assert vj.read_skipped(state, PARAMS) == {"a": 2}


def test_a_microbatch_that_is_bad_everywhere_never_was():
    updates, state = steps(accumulating(), [gradient(2.0), gradient(NAN, INF), gradient(4.0)])
    assert [u["a"] for u in updates] == [0, 0, -3]
    assert int(state.inner_state.gradient_step) == 1


COUNTED = {
    "adam": lambda: optax.adam(0.1),
    "ours": lambda: vj.adamw(0.1),
    "schedule": lambda: vj.sgd(optax.linear_schedule(1.0, 0.0, 10)),
    "chain": lambda: optax.chain(vj.clip_by_global_norm(1.0), vj.muon(0.1)),
    "partition": lambda: optax.partition({"one": vj.adam(0.1), "two": vj.lion(0.1)}, LABELS),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(1.0, 0.0, 10)),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 0), SGD),
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("guard", [vj.skip_nonfinite, vj.dynamic_loss_scale])
def test_a_step_that_moves_nothing_advances_nothing(name, guard):
    tx = guard(COUNTED[name]())
    bad = gradient(NAN, -INF)
    _, before = steps(tx, [gradient()])
    updates, after = steps(tx, [gradient(), bad, bad])
    assert updates[1:] == [{"a": 0, "b": 0}] * 2
    for x, y in zip(*map(jax.tree.leaves, (after.inner_state, before.inner_state)), strict=True):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*map(jax.random.key_data, (x, y)) if is_key else (x, y))


def test_empty_layers_do_not_count_as_moving():
    params = {"a": jnp.ones(2), "none": jnp.ones((3, 0))}
    tx = vj.skip_nonfinite(optax.adam(0.1))
    bad = {"a": jnp.full(2, NAN), "none": jnp.ones((3, 0))}
    _, state = tx.update(bad, tx.init(params), params)
    assert int(state.inner_state[0].count) == 0


def test_while_one_layer_moves_counts_advance():
    _, state = steps(vj.skip_nonfinite(optax.adam(0.1)), [gradient(), gradient(NAN)])
    assert int(state.inner_state[0].count) == 2
    np.testing.assert_allclose(state.inner_state[0].mu["a"], 0.1, rtol=1e-6)


# Where a state lies.


def deep():
    """A tree whose depth order is not its own."""

    def forward(p, x):
        return jnp.sum(jnp.tanh(x @ p["z"]) @ p["a"] * p["m"])

    params = {"z": jnp.ones((2, 3)), "a": jnp.ones((3, 2)), "m": jnp.ones(2)}
    return params, vj.find_layers(params, forward, jnp.ones((4, 2)))


@pytest.mark.parametrize("given", [True, False])
def test_the_parameters_name_the_layers_that_were_skipped(given):
    params, layers = deep()
    assert layers.names == ("z", "a", "m")
    tx = vj.skip_nonfinite(SGD, layers=layers if given else None)
    bad = params | {"a": jnp.full((3, 2), NAN)}
    _, state = tx.update(bad, tx.init(params), params)
    assert vj.read_skipped(state, layers) == vj.read_skipped(state, params) == {"a": 1}


READERS = {
    "monitor": (vj.monitor, lambda s, p: vj.read_health(s).gradient_norm),
    "skip_nonfinite": (vj.skip_nonfinite, lambda s, p: list(vj.read_skipped(s, p).values())),
    "dynamic_loss_scale": (vj.dynamic_loss_scale, lambda s, p: vj.read_loss_scale(s)),
}


@pytest.mark.parametrize("name", READERS)
def test_absent_is_an_error_that_says_what_to_wrap(name):
    _, read = READERS[name]
    message = rf"holds no {name}: wrap the transform in {name}\(tx\)"
    for tx in (vj.adam(0.1), optax.MultiSteps(optax.masked(optax.sgd(0.1), HALF), 2)):
        with pytest.raises(ValueError, match=message):
            read(tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", ["monitor", "skip_nonfinite"])
def test_is_found_in_every_wrapper(name):
    wrap, read = READERS[name]
    whole = {"a": True, "b": True}
    around = [
        lambda tx: optax.chain(optax.identity(), optax.chain(tx)),
        lambda tx: optax.masked(tx, whole),
        lambda tx: optax.partition({"one": tx}, {"a": "one", "b": "one"}),
        lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(1.0),
        lambda tx: vj.dynamic_loss_scale(tx, initial_scale=1.0),
        lambda tx: optax.apply_if_finite(tx, 3),
    ]
    # The guard alone is called with one layer bad, which a loss scale would not let through.
    g = gradient(2.0) if name == "monitor" else gradient(NAN)
    for make in around[: None if name == "monitor" else 4]:
        tx = make(wrap(SGD))
        _, state = tx.update(g, tx.init(PARAMS), PARAMS)
        np.testing.assert_allclose(read(state, PARAMS)[0], 12**0.5 if name == "monitor" else 1)


def test_several_guards_are_read_one_by_one():
    tx = optax.partition({"one": vj.skip_nonfinite(SGD), "two": vj.skip_nonfinite(SGD)}, LABELS)
    _, state = tx.update(gradient(NAN), tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="holds 2 skip_nonfinite"):
        vj.read_skipped(state, PARAMS)
    assert vj.read_skipped(state.inner_states["one"], {"a": PARAMS["a"]}) == {"a": 1}


def test_what_was_read_outlives_donated_steps():
    loss_fn = lambda p, x: jnp.mean((x @ p["a"]) ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731
    tx = vj.monitor(vj.dynamic_loss_scale(vj.sgd(0.1)))
    step, state = make_train_step(loss_fn, tx), TrainState.create(PARAMS, tx)
    kept = []
    for _ in range(3):
        state, _ = step(state, jnp.ones((4, 3)))
        kept.append((vj.read_health(state.opt_state), vj.read_loss_scale(state.opt_state)))
    assert [int(health.step) for health, _ in kept] == [0, 1, 2]
    assert [float(scale) for _, scale in kept] == [2.0**15] * 3


def test_float32_parameters_keep_float32_states_among_doubles():
    params = {"w": jnp.ones((2, 2), jnp.float32), "b": jnp.ones(2, jnp.float32)}
    with jax.enable_x64(True):
        for make in (vj.center, vj.recondition, vj.polar_growth, vj.monitor):
            tx = make(vj.adam(0.1))
            state = tx.init(params)
            _, after = jax.jit(tx.update)(params, state, params)
            for x in jax.tree.leaves((state, after)):
                assert x.dtype != jnp.float64, make
