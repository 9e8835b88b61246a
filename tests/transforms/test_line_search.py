"""Transforms that want the loss function, or keep the parameters: in every kind of step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import vanishjax as vj
from vanishjax.training import TrainState, fit, make_train_step

RNG = np.random.default_rng(0)
X = RNG.standard_normal((19, 3)).astype(np.float32)  # divides among no number of devices
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.25).astype(np.float32)
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


SEARCHES = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)
    ),
    "zoom": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(15)),
    "monitored": lambda: vj.monitor(optax.lbfgs()),
    "skipping": lambda: vj.skip_nonfinite(optax.lbfgs()),
    "scaled": lambda: vj.dynamic_loss_scale(optax.lbfgs()),
}
ALIASES = {"prodigy": lambda: contrib.prodigy(1.0), "dog": contrib.dog, "dowg": contrib.dowg}
PARALLEL = [None, "jit", "pmap", "shard_map"]


def by_hand(tx, steps):
    """The loop of optax's documentation."""
    params, state = PARAMS, tx.init(PARAMS)
    value_fn = lambda p: loss_fn(p, (X, Y))  # noqa: E731

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize(
    ("name", "parallel", "accumulate"),
    [
        *((name, None, 1) for name in SEARCHES),
        *(("lbfgs", parallel, 1) for parallel in PARALLEL[1:]),
        *(("backtracking", parallel, 2) for parallel in PARALLEL),
    ],
)
def test_line_searches_step_as_by_hand(name, parallel, accumulate):
    plain = {"monitored": "lbfgs", "skipping": "lbfgs", "scaled": "lbfgs"}.get(name, name)
    tx = SEARCHES[name]()
    step = make_train_step(loss_fn, tx, parallel=parallel, accumulate=accumulate)
    state = TrainState.create(PARAMS, tx)
    for _ in range(3):
        state, _ = step(state, (X, Y))
    expected = by_hand(SEARCHES[plain](), 3)
    # A search amplifies how sums were rounded.
    np.testing.assert_allclose(state.params["w"], expected["w"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.params["b"], expected["b"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_function_gives_the_step_its_own_loss_and_gradient(parallel, accumulate):
    """With dropout: the key is the step's, on every device and of every microbatch."""

    def noisy(params, batch, key):
        x, y = batch
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        return loss_fn(params, (x * kept, y)), {"seen": jnp.mean(y)}

    def look(updates, state, params=None, *, value, grad, value_fn, **extra):
        again, slope = jax.value_and_grad(value_fn)(params)
        return updates, (value, again, value_fn(params), grad, slope, updates)

    nothing = (jnp.zeros(()),) * 3 + (PARAMS,) * 3
    tx = optax.GradientTransformationExtraArgs(lambda params: nothing, look)
    step = make_train_step(
        noisy, tx, parallel=parallel, accumulate=accumulate, has_aux=True, with_key=True
    )
    state, metrics = step(TrainState.create(PARAMS, tx), (X, Y))
    value, again, plain, grad, slope, updates = state.opt_state
    np.testing.assert_allclose([again, plain], [value, value], rtol=1e-6)
    np.testing.assert_allclose(value, metrics["loss"], rtol=1e-6)
    for g, s, u in zip(*map(jax.tree.leaves, (grad, slope, updates)), strict=True):
        np.testing.assert_allclose(s, g, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(u, g)


def test_a_loss_scale_hands_on_the_plain_loss():
    seen = []

    def look(updates, state, params=None, *, value, grad, value_fn, **extra):
        jax.debug.callback(lambda *x: seen.append(x), value, value_fn(params), grad["w"])
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), look)
    params = {"w": jnp.ones(3, jnp.float16), "b": jnp.ones((), jnp.float16)}
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16), (X, Y))
    tx = vj.dynamic_loss_scale(spy, initial_scale=2.0**8)
    state, metrics = make_train_step(loss_fn, tx)(TrainState.create(params, tx), half)
    jax.block_until_ready(state)
    jax.effects_barrier()
    [(value, again, grad)] = seen
    assert again.dtype == np.float16
    np.testing.assert_allclose([value, again], [metrics["loss"]] * 2, rtol=1e-3)
    np.testing.assert_allclose(grad, jax.grad(loss_fn)(params, half)["w"], rtol=2e-2)


def test_a_skipped_layer_does_not_spoil_a_search():
    def broken(params, batch):
        return loss_fn(params["good"], batch) + 0 * jnp.sqrt(params["bad"] - params["bad"])

    tx = vj.skip_nonfinite(optax.lbfgs())
    params = {"good": PARAMS, "bad": jnp.ones(())}
    state = TrainState.create(params, tx)
    step = make_train_step(broken, tx)
    for _ in range(3):
        state, metrics = step(state, (X, Y))
    assert float(metrics["loss"]) < 0.1
    assert float(state.params["bad"]) == 1.0
    assert vj.read_skipped(state.opt_state, params) == {"bad": 3}


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("parallel", PARALLEL)
def test_states_that_share_arrays_with_the_parameters(name, parallel):
    tx = ALIASES[name]()
    step, state = make_train_step(loss_fn, tx, parallel=parallel), TrainState.create(PARAMS, tx)
    params, inner = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        state, _ = step(state, (X, Y))
        updates, inner = tx.update(jax.grad(loss_fn)(params, (X, Y)), inner, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-4)


def test_arrays_shared_within_the_state_and_states_made_by_a_program():
    shared = optax.GradientTransformation(
        lambda params: (lambda zeros: (zeros, zeros))(jnp.zeros(3)),
        lambda updates, state, params=None: (updates, state),
    )
    tx = optax.chain(shared, contrib.prodigy(1.0))
    for create in (TrainState.create, jax.jit(TrainState.create, static_argnums=1)):
        state = create(PARAMS, tx)
        state, _ = make_train_step(loss_fn, tx)(state, (X, Y))
        assert np.isfinite(state.params["w"]).all()


@pytest.mark.parametrize("name", ["lbfgs", "prodigy"])
def test_fit_and_trials_run_them(name):
    tx = (SEARCHES | ALIASES)[name]()
    state = TrainState.create(PARAMS, tx)
    _, history = fit(loss_fn, tx, state, (X, Y), epochs=3, batch_size=19)
    assert history.records[-1]["loss"] < history.records[0]["loss"]


@pytest.mark.parametrize("name", ["backtracking"])
def test_a_diagnosis_with_a_line_search_leaves_its_steps_unknown(name):
    problem = vj.mlp_problem(4, (8, 8), 3, activation="tanh")
    batch = jax.random.normal(jax.random.key(0), (32, 4)), jnp.arange(32) % 3
    verdict = vj.diagnose(problem.loss_fn, problem.params, batch, SEARCHES[name]())
    assert verdict.healthy
    assert np.isnan(verdict.effectiveness).all()
    assert "Not measured: the optimizer's steps" in str(verdict)


def test_a_missing_argument_of_the_user_s_own_is_still_an_error():
    def update(updates, state, params=None, *, temperature, **extra):
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    with pytest.raises(TypeError, match="temperature"):
        vj.monitor(tx).init(PARAMS)


def test_the_step_count_stays_at_its_largest():
    tx = vj.sgd(0.1)
    state = TrainState.create(PARAMS, tx)._replace(step=jnp.array(2**31 - 2, jnp.int32))
    step = make_train_step(loss_fn, tx)
    for _ in range(3):
        state, _ = step(state, (X, Y))
        assert int(state.step) == 2**31 - 1
