"""The monitor: what it sees is what happened, it rides everywhere, and it disturbs nothing."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vanishjax as vj
from vanishjax.health.course import assess
from vanishjax.health.monitor import MonitorState, monitor, read_health
from vanishjax.health.observation import Health, first_health
from vanishjax.health.response import GRADIENT_RMS
from vanishjax.layers import Layers, Leaf

DEPTH, WIDTH = 4, 8
RNG = np.random.default_rng(0)
STACKED = {
    "body": {
        "w": jnp.asarray(RNG.standard_normal((DEPTH, WIDTH, WIDTH)) / 3, jnp.float32),
        "b": jnp.asarray(RNG.standard_normal((DEPTH, WIDTH)) / 9, jnp.float32),
    },
    "head": jnp.asarray(RNG.standard_normal((WIDTH, 2)), jnp.float32),
}
BATCH = (
    jnp.asarray(RNG.standard_normal((16, WIDTH)), jnp.float32),
    jnp.asarray(RNG.standard_normal((16, 2)), jnp.float32),
)


def loss_fn(params, batch):
    def layer(x, p):
        return jnp.tanh(x @ p["w"] + p["b"]), None

    x, _ = jax.lax.scan(layer, batch[0], params["body"])
    return jnp.mean((x @ params["head"] - batch[1]) ** 2)


def separate(params):
    body = params["body"]
    return {
        **{f"{i}": {k: body[k][i] for k in ("w", "b")} for i in range(DEPTH)},
        "head": params["head"],
    }


def unrolled_loss_fn(params, batch):
    x = batch[0]
    for i in range(DEPTH):
        x = jnp.tanh(x @ params[f"{i}"]["w"] + params[f"{i}"]["b"])
    return jnp.mean((x @ params["head"] - batch[1]) ** 2)


LAYERS = vj.find_layers(STACKED, loss_fn, BATCH)
COUNT = len(LAYERS)
ADAM, SGD = optax.adam(1e-2), optax.sgd(1.0)
WATCHED, SEEN_SGD = monitor(ADAM, layers=LAYERS), monitor(SGD)


def train(tx, steps=5, params=STACKED, loss=loss_fn, batch=BATCH, **kwargs):
    state = vj.TrainState.create(params, tx)
    step = vj.make_train_step(loss, tx, **kwargs)
    healths = []
    for _ in range(steps):
        state, _ = step(state, batch)
        healths.append(jax.device_get(read_health(state)))
    return state, healths


@functools.cache
def first_update(tx, **static):
    """The first step of a transform, compiled once."""
    return jax.jit(lambda g, p, extra: tx.update(g, tx.init(p), p, **static, **extra))


def once(tx, gradient, params, *, value_fn=None, **extra):
    static = {} if value_fn is None else {"value_fn": value_fn}
    updates, state = first_update(tx, **static)(gradient, params, extra)
    return updates, read_health(state)


@functools.cache
def course(every=1):
    """What is seen of 20 steps of Adam."""
    return train(monitor(ADAM, layers=LAYERS, every=every), 20)[1]


def expected(tx, steps, params=STACKED):
    """The statistics by NumPy in float64, and the losses."""

    @jax.jit
    def step(params, state):
        loss, g = jax.value_and_grad(loss_fn)(params, BATCH)
        return loss, g, *tx.update(g, state, params)

    state, seen, losses = tx.init(params), [], []
    for _ in range(steps):
        loss, g, u, state = step(params, state)
        rows = []
        for tree in (g, u, params):
            leaves = [
                *(np.asarray(tree["body"][k], np.float64)[i] for i in range(DEPTH) for k in "wb"),
                np.asarray(tree["head"], np.float64),
            ]
            names = [f"body/{k}[{i}]" for i in range(DEPTH) for k in "wb"] + ["head"]
            norms = {n: np.linalg.norm(x) for n, x in zip(names, leaves, strict=True)}
            rows.append([norms[n] for n in LAYERS.names])
        seen.append(rows)
        losses.append(float(loss))
        params = optax.apply_updates(params, u)
    return np.array(seen), losses


def test_sees_norms_ratios_and_losses():
    norms, losses = expected(ADAM, 5)
    for step, health in enumerate(course()[:5]):
        assert health.step == step
        np.testing.assert_allclose(health.gradient_norm, norms[step, 0], rtol=1e-4)
        np.testing.assert_allclose(health.update_norm, norms[step, 1], rtol=1e-3)
        np.testing.assert_allclose(health.param_norm, norms[step, 2], rtol=1e-4)
        np.testing.assert_allclose(health.update_ratio, norms[step, 1] / norms[step, 2], rtol=1e-3)
        np.testing.assert_allclose(health.loss, losses[step], rtol=1e-4)
        np.testing.assert_allclose(health.first_loss, losses[0], rtol=1e-4)
        np.testing.assert_allclose(health.best_loss, min(losses[: step + 1]), rtol=1e-4)
        np.testing.assert_array_equal(health.zero_fraction, 0.0)
        np.testing.assert_array_equal(health.still_steps, 0)
        np.testing.assert_allclose(health.effectiveness, 1.0, rtol=1e-3)
        np.testing.assert_allclose(health.applied_fraction, 1.0)


@pytest.mark.parametrize(("tx", "every"), [(ADAM, 3), (optax.sgd(0.1, 0.9), 1), (vj.lamb(0.01), 3)])
def test_updates_and_state_are_those_of_the_transform(tx, every):
    watched = monitor(tx, layers=LAYERS, every=every)
    state, inner = watched.init(STACKED), tx.init(STACKED)
    ours, theirs = jax.jit(watched.update), jax.jit(tx.update)
    for scale in (1.0, 1e-20, 0.0):
        g = jax.tree.map(lambda p, scale=scale: scale * (p - 0.5), STACKED)
        update, state = ours(g, state, STACKED)
        wanted, inner = theirs(g, inner, STACKED)
        # The same but for how XLA fuses them.
        chex.assert_trees_all_close((update, state.inner_state), (wanted, inner), rtol=1e-5)


def test_bad_updates_pass_unchanged():
    params, g = {"w": jnp.ones(3)}, {"w": jnp.array([jnp.nan, jnp.inf, -0.0])}
    updates, health = once(monitor(optax.identity()), g, params)
    np.testing.assert_array_equal(updates["w"], g["w"])
    assert np.signbit(updates["w"][2])
    assert np.isnan(health.gradient_norm[0])


@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_norms_at_every_magnitude(scale):
    params = {"a": jnp.full((4, 4), scale), "b": jnp.ones(3), "c": jnp.zeros(2)}
    g = {"a": jnp.full((4, 4), scale), "b": jnp.zeros(3), "c": jnp.array([scale, 0.0])}
    _, health = once(SEEN_SGD, g, params)
    for norms in (health.gradient_norm, health.update_norm):
        np.testing.assert_allclose(norms, np.array([4 * scale, 0.0, scale]), rtol=1e-5)
    np.testing.assert_allclose(health.param_norm, [4 * scale, 3**0.5, 0.0], rtol=1e-5)
    np.testing.assert_allclose(health.update_ratio, [1.0, 0.0, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(health.zero_fraction, [0.0, 1.0, 0.5])


def test_counts_more_zeros_than_float32_has_integers():
    params = jnp.zeros(2**25 + 2, jnp.bfloat16)
    tx = monitor(SGD, sample=None)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(tx.init, params))
    update = jax.jit(tx.update)
    _, state = update(params.at[0].set(1.0), state, params)
    np.testing.assert_allclose(read_health(state).zero_fraction, 1.0, rtol=1e-6)
    np.testing.assert_allclose(read_health(state).gradient_norm, 1.0)


def test_large_models_are_sampled():
    """Within a few percent, from the same rows of all; a small model's norms are exact."""
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (600, 500)), "s": jax.random.normal(key, (3, 90, 80))}
    layers = Layers(
        (Leaf("s", (3, 90, 80), (0,)), Leaf("w", (600, 500))), (0, 1, 2, 3), (1, 2, 3, 4)
    )
    tx = optax.sgd(0.5)

    def norms(sample):
        return once(monitor(tx, layers=layers, sample=sample), params, params)[1]

    exact, sampled = norms(None), norms(2**15)
    expected = [*np.linalg.norm(params["s"], axis=(1, 2)), np.linalg.norm(params["w"])]
    np.testing.assert_allclose(exact.gradient_norm, expected, rtol=1e-5)
    np.testing.assert_allclose(sampled.gradient_norm, exact.gradient_norm, rtol=0.05)
    rows = np.asarray(params["w"])[::9]  # 2^15 of 321,600 entries
    estimate = np.linalg.norm(rows) * (600 / len(rows)) ** 0.5
    np.testing.assert_allclose(sampled.gradient_norm[3], estimate, rtol=1e-5)
    assert abs(estimate / exact.gradient_norm[3] - 1) > 1e-6
    # The very same entries are seen of update and parameters.
    np.testing.assert_allclose(sampled.update_ratio, 0.5, rtol=1e-5)
    np.testing.assert_array_equal(norms(10**6).gradient_norm, exact.gradient_norm)


@pytest.mark.parametrize(
    ("tx", "share", "dtype"),
    [
        (optax.adam(1e-3), 1e-4, jnp.float32),
        (vj.adam(1e-3), 1e-4, jnp.bfloat16),
        (vj.adam(1e-3, eps_relative=True), 1.0, jnp.float32),
        (optax.sgd(0.1), 1.0, jnp.bfloat16),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), 1.0, jnp.float32),
    ],
)
def test_effectiveness(tx, share, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), STACKED)
    g = jax.tree.map(lambda p: jnp.full(p.shape, 1e-12, dtype), params)
    _, health = once(monitor(tx, layers=LAYERS), g, params)
    np.testing.assert_allclose(health.effectiveness, share, rtol=0.03)


@pytest.mark.parametrize("ratio", [1e-4, 1e-3, 3e-3, 1e-2, 1.0])
def test_applied_fraction_is_what_bfloat16_leaves(ratio):
    params = jnp.asarray(np.random.default_rng(1).standard_normal(100_000), jnp.bfloat16)
    g = jnp.full_like(params, ratio)
    update, health = once(SEEN_SGD, g, params)
    moved = np.asarray(params + update, np.float64) - np.asarray(params, np.float64)
    update = np.asarray(update, np.float64)
    np.testing.assert_allclose(
        np.log2(health.applied_fraction[0]), np.log2(moved @ update / (update @ update)), atol=1.0
    )


def test_counts_observations_that_stand_still():
    params = {"a": jnp.ones(4), "b": jnp.ones(4), "c": jnp.ones(4)}
    g = {"a": jnp.zeros(4), "b": jnp.full(4, 1e-12), "c": jnp.ones(4)}
    tx = monitor(optax.sgd(0.1))
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(1, 4):
        _, state = update(g, state, params)
        np.testing.assert_array_equal(read_health(state).still_steps, [step, step, 0])
    _, state = update(jax.tree.map(jnp.ones_like, g), state, params)
    np.testing.assert_array_equal(read_health(state).still_steps, 0)


def test_stacked_equals_separate():
    flat = separate(STACKED)
    layers = vj.find_layers(flat, unrolled_loss_fn, BATCH)
    _, unrolled = train(monitor(ADAM, layers=layers), 3, flat, unrolled_loss_fn)
    # Depth orders agree but for a layer's kernel and bias, which stand side by side.
    places = [layers.names.index(name_of(name)) for name in LAYERS.names]
    for one, other in zip(course()[:3], unrolled, strict=True):
        for name, a, b in zip(Health._fields, one, other, strict=True):
            b = b[places] if np.ndim(b) else b
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6, err_msg=name)


def name_of(stacked):
    if stacked == "head":
        return "head"
    return f"{stacked.split('[')[1][:-1]}/{stacked.split('/')[1][0]}"


# Skipping.


def test_every_observes_only_its_steps():
    for step, health in enumerate(course(every=2)[:5]):
        assert health.step == 2 * (step // 2)
        wanted = course()[2 * (step // 2)]._replace(best_loss=health.best_loss)
        chex.assert_trees_all_close(health, wanted, rtol=1e-5)


def test_between_observations_nothing_is_computed():
    tx = monitor(optax.sgd(0.1), layers=LAYERS, every=4)
    state = tx.init(STACKED)
    program = jax.make_jaxpr(tx.update)(STACKED, state, STACKED)
    params, rest = (e for e in program.eqns if e.primitive.name == "cond")
    outside = {e.primitive.name for e in program.eqns}
    assert not outside & {"dot_general", "reduce_sum", "erf"}
    skip, observe = (branch.jaxpr.eqns for branch in params.params["branches"])
    assert {e.primitive.name for e in skip} == {"broadcast_in_dim"}  # zeros
    assert "dot_general" in {e.primitive.name for e in observe}
    skip, observe = (branch.jaxpr.eqns for branch in rest.params["branches"])
    assert not skip
    assert {"dot_general", "reduce_sum"} <= {e.primitive.name for e in observe}
    # Every step observed: no branches at all but those that guard against overflow.
    program = jax.make_jaxpr(monitor(optax.sgd(0.1), layers=LAYERS).update)(STACKED, state, STACKED)
    assert sum(e.primitive.name == "cond" for e in program.eqns) == 2


@pytest.mark.parametrize("every", [1, 16])
def test_a_look_at_many_layers_takes_no_more_operations_than_at_a_few(every):
    def taken(depth):
        params = {
            f"{i}": {"kernel": jnp.ones((300, 64)), "bias": jnp.ones(64)} for i in range(depth)
        }
        tx = monitor(ADAM, every=every, sample=2**10)
        program = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
        return {name: program.count(f" {name}[") for name in ("dot_general", "reduce_sum", "cond")}

    assert taken(9) == taken(3)


def test_no_copy_of_the_parameters():
    # Donated parameters whose norm is taken would be copied, at five times the monitor's cost.
    params = {"w": jnp.ones((64, 64)), "v": jnp.ones((64, 64))}

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"]) @ params["v"])

    def copies(tx):
        state = vj.TrainState.create(params, tx)
        text = vj.make_train_step(loss, tx).lower(state, jnp.ones((8, 64))).compile().as_text()
        return text.count("= f32[64,64]{1,0} copy(")

    plain = copies(ADAM)
    assert all(copies(monitor(ADAM, every=every)) <= plain for every in (1, 4))


# Where it rides.


def test_structure_and_types_are_constant():
    tx = monitor(ADAM, layers=LAYERS, every=2)
    first = tx.init(STACKED)
    assert isinstance(first, MonitorState)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, jax.eval_shape(tx.init, STACKED))
    for value in (None, 1, jnp.ones([], jnp.bfloat16)):
        extra = {} if value is None else {"value": value}
        _, state = jax.eval_shape(tx.update, STACKED, first, STACKED, **extra)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
    health = read_health(first)
    scalars = {"step", "loss", "first_loss", "best_loss"}
    for name, x in zip(Health._fields, health, strict=True):
        chex.assert_shape(x, () if name in scalars else (COUNT,))
        chex.assert_type(x, jnp.int32 if name in ("step", "still_steps") else jnp.float32)
    assert health.step == -1
    chex.assert_shape(first.response.effectiveness, (len(GRADIENT_RMS), COUNT))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(first))


def test_in_a_scan_and_compiled_once():
    tx = monitor(ADAM, layers=LAYERS, every=2)

    def step(carry, _):
        params, state = carry
        loss, g = jax.value_and_grad(loss_fn)(params, BATCH)
        u, state = tx.update(g, state, params, value=loss)
        return (optax.apply_updates(params, u), state), read_health(state)

    run = jax.jit(lambda c: jax.lax.scan(step, c, None, 5))
    _, scanned = run((STACKED, tx.init(STACKED)))
    healths = jax.tree.map(lambda *x: np.stack(x), *course(every=2)[:5])
    chex.assert_trees_all_close(scanned, healths, rtol=1e-3)

    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(STACKED)
    for _ in range(3):
        _, state = update(STACKED, state, STACKED, value=jnp.ones([]))


@pytest.mark.parametrize(
    ("parallel", "every"), [("jit", 1), ("pmap", 2), ("shard_map", 1), ("shard_map", 2)]
)
def test_data_parallel(parallel, every):
    _, healths = train(monitor(ADAM, layers=LAYERS, every=every), 3, parallel=parallel)
    for one, other in zip(healths, course(every)[:3], strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-7)


def test_sharded_parameters():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def place(p):
        axis = p.ndim - 1
        parts = ["x" if a == axis and p.shape[a] % 8 == 0 else None for a in range(p.ndim)]
        return jax.device_put(p, NamedSharding(mesh, PartitionSpec(*parts)))

    params = jax.tree.map(place, STACKED)
    _, state = jax.jit(WATCHED.update)(params, jax.jit(WATCHED.init)(params), params)
    _, alone = once(WATCHED, STACKED, STACKED)
    chex.assert_trees_all_close(read_health(state), alone, rtol=1e-4)


def test_under_vmap():
    tx = monitor(ADAM, layers=LAYERS, every=2)
    scales = jnp.array([1.0, 1e-12, 0.0])
    several = jax.vmap(lambda s: jax.tree.map(lambda p: s * p, STACKED))(scales)
    state = tx.init(STACKED)
    _, states = jax.jit(jax.vmap(tx.update, in_axes=(0, None, None)))(several, state, STACKED)
    update = jax.jit(tx.update)
    for i in range(3):
        g, health = jax.tree.map(lambda x, i=i: x[i], (several, read_health(states)))
        alone = read_health(update(g, state, STACKED)[1])
        chex.assert_trees_all_close(health, alone, rtol=1e-4)


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e9), tx),
    "multi-steps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "inject": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate)), static_args=()
    )(rate=1.0),
    "loss-scale": lambda tx: vj.dynamic_loss_scale(tx, initial_scale=1.0),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_is_found_anywhere(name):
    _, found = once(WRAPPED[name](WATCHED), STACKED, STACKED)
    chex.assert_trees_all_close(found, once(WATCHED, STACKED, STACKED)[1], rtol=1e-5)


def test_masked_and_missing_leaves():
    params = {"a": jnp.ones(4), "b": jnp.ones((2, 2))}
    tx = optax.masked(monitor(optax.adam(1e-3)), {"a": True, "b": False})
    _, health = once(tx, params, params)
    chex.assert_shape(health.gradient_norm, (1,))
    params = {"a": jnp.ones(4), "b": None}
    _, health = once(SEEN_SGD, params, params)
    np.testing.assert_allclose(health.gradient_norm, [2.0])
    # Layers of the whole tree: what is masked out counts as nothing.
    layers = vj.find_layers({"a": jnp.ones(4), "b": jnp.ones((2, 2))})
    tx = optax.masked(monitor(optax.sgd(0.1), layers=layers), {"a": True, "b": False})
    full = {"a": jnp.ones(4), "b": jnp.ones((2, 2))}
    _, health = once(tx, full, full)
    np.testing.assert_allclose(health.gradient_norm, [2.0, 0.0])
    assert np.all(np.isfinite(health.zero_fraction))


def test_in_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, monitor(vj.sgd(1.0, 0.9)), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model)
    optimizer.update(model, grads)
    health = read_health(optimizer.opt_state)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(health))
    np.testing.assert_allclose(np.asarray(health.gradient_norm[...]), [2**0.5, 6**0.5], rtol=1e-5)


def test_a_transform_that_cannot_be_measured():
    def loss(w):
        return jnp.sum((w - 1.0) ** 2)

    tx, w = monitor(optax.lbfgs()), jnp.zeros(3)
    value, g = jax.value_and_grad(loss)(w)
    _, health = once(tx, g, w, value=value, grad=g, value_fn=loss)
    assert np.isnan(health.effectiveness[0])
    np.testing.assert_allclose(health.gradient_norm, 12**0.5, rtol=1e-6)


def test_bad_input():
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="every must be an integer of at least 1"):
            monitor(ADAM, every=every)
    with pytest.raises(TypeError, match="must be a gradient transform, got float"):
        monitor(0.1)
    with pytest.raises(ValueError, match="holds no monitor"):
        read_health(ADAM.init(STACKED))
    with pytest.raises(ValueError, match="w: expected a real floating-point leaf"):
        monitor(ADAM).init({"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="without leaves"):
        monitor(ADAM).init({})
    with pytest.raises(ValueError, match="w: no such parameter"):
        monitor(ADAM, layers=LAYERS).init({"w": jnp.ones(3)})
    tx = monitor(ADAM)
    state = tx.init(STACKED)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(STACKED, state)
    with pytest.raises(ValueError, match="value must be a scalar"):
        tx.update(STACKED, state, STACKED, value=jnp.ones(2))


# The course.

NAMES = ("a", "b", "c")


def history(steps=12, **fields):
    """A healthy run, with some of its fields (constants, or functions of the step) replaced."""
    usual = {
        "loss": lambda t: 2.0 - 0.02 * t,
        "first_loss": 2.0,
        "best_loss": lambda t: 2.0 - 0.02 * t,
        "gradient_norm": [1.0, 0.5, 2.0],
        "update_norm": 0.01,
        "param_norm": 1.0,
        "update_ratio": 0.01,
        "zero_fraction": 0.1,
        "effectiveness": 1.0,
        "applied_fraction": 1.0,
        "still_steps": 0,
    }
    healths = []
    for t in range(steps):
        row = {}
        for name, value in {**usual, **fields}.items():
            value = np.asarray(value(t) if callable(value) else value, np.float32)
            row[name] = value if name.endswith("loss") else np.broadcast_to(value, 3)
        healths.append(Health(step=np.int32(t), **row))
    return healths


def verdict(healths):
    return {f.rule: f.layers for f in assess(healths, NAMES)}


def falling(t):
    return [1.0, 0.5 * 10.0 ** (-t / 2), 2.0]


def test_a_healthy_course():
    assert assess(history(), NAMES) == []
    assert assess([], NAMES) == []
    untouched = first_health(COUNT, jnp.float32)
    assert assess([untouched], LAYERS) == []


@pytest.mark.parametrize(
    ("fields", "rule", "layers"),
    [
        ({"gradient_norm": lambda t: [1, np.nan if t == 3 else 1, 1]}, "nonfinite", ("b",)),
        ({"param_norm": lambda t: [1, 1, np.inf if t > 8 else 1]}, "nonfinite", ("c",)),
        ({"still_steps": lambda t: [0, t, 0], "update_norm": [1, 0, 1]}, "stalled_layer", ("b",)),
        ({"still_steps": lambda t: [t, 0, 0]}, "underflow", ("a",)),
        ({"effectiveness": [1.0, 0.05, 1e-9]}, "blind_optimizer", ("b", "c")),
        ({"gradient_norm": falling}, "vanishing_gradient", ("b",)),
        (
            {"gradient_norm": lambda t: [1, 1, 1] if t < 5 else [1, 0, 0]},
            "vanishing_gradient",
            ("b", "c"),
        ),
        ({"zero_fraction": lambda t: [0.1, t / 12, 0.1]}, "dead_units", ("b",)),
    ],
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_each_rule_fires_at_every_scale_of_the_loss(fields, rule, layers, scale):
    healths = [
        h._replace(
            gradient_norm=h.gradient_norm * np.float32(scale),
            loss=h.loss * np.float32(scale),
            first_loss=h.first_loss * np.float32(scale),
        )
        for h in history(**fields)
    ]
    assert verdict(healths) == {rule: layers}
    (finding,) = assess(healths, NAMES)
    assert finding.remedies
    assert all(np.isfinite(x) for x in finding.evidence.values())
    assert isinstance(finding.to_dict()["cause"], str)


@pytest.mark.parametrize(
    "fields",
    [
        # Converged, by loss: whatever the gradients do.
        {"gradient_norm": falling, "loss": lambda t: 2.0 * 0.5**t},
        {"effectiveness": 1e-3, "loss": lambda t: 2.0 * 0.5**t},
        {"still_steps": lambda t: t, "update_norm": 0, "loss": lambda t: 2.0 * 0.5**t},
        # All have fallen together: a minimum, at whatever loss.
        {"gradient_norm": lambda t: np.array([1.0, 0.5, 2.0]) * 10.0 ** (-t / 2)},
        # Uneven from the start, or noisy, but not getting worse.
        {"gradient_norm": [1.0, 1e-6, 1e-12]},
        {"gradient_norm": lambda t: [1.0, 1.0 if t % 2 else 0.01, 2.0]},
        {"gradient_norm": lambda t: [1.0, 1e-9 if t == 5 else 1.0, 2.0]},
        # Dark pixels; a rise that is small; a rise to little.
        {"zero_fraction": 0.8},
        {"zero_fraction": lambda t: [0.1, 0.6 + t / 100, 0.1]},
        {"zero_fraction": lambda t: [0.0, t / 30, 0.0]},
        # No gradient: nothing to be blind to. Unknown: no verdict.
        {"effectiveness": 0.0, "gradient_norm": 0.0},
        {"effectiveness": np.nan},
        {"effectiveness": 0.5},
        {"still_steps": 2},
    ],
)
def test_what_is_no_ailment(fields):
    assert verdict(history(**fields)) == {}


@pytest.mark.parametrize("gradient", [[1.0, 0.5, 2.0], [1.0, 0.0, 2.0]])
def test_what_is_frozen_from_the_start_is_a_note(gradient):
    still = {"still_steps": lambda t: [0, t + 1, 0]}
    frozen = still | {"gradient_norm": gradient, "update_norm": [0.01, 0, 0.01]}
    (finding,) = assess(history(**frozen), NAMES)
    assert (finding.rule, finding.severity, finding.layers) == ("stalled_layer", "note", ("b",))
    moved_once = frozen | {"update_norm": lambda t: [0.01, 0 if t > 4 else 0.01, 0.01]}
    tiny = frozen | {"gradient_norm": [1.0, 1e-20, 2.0]}
    for course in (moved_once, tiny):
        found = {one.rule: one.severity for one in assess(history(**course), NAMES)}
        assert found["stalled_layer"] == "warning"
    nothing_moves = {"still_steps": lambda t: t + 1, "update_norm": 0.0}
    (finding,) = assess(history(**nothing_moves), NAMES)
    assert (finding.rule, finding.severity) == ("stalled_layer", "critical")


def test_frozen_layers_of_a_run_raise_no_warning():
    labels = {"head": "train", "body": "freeze"}
    groups = {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}
    tx = monitor(optax.partition(groups, labels))
    params = {"body": jnp.ones((3, 3)), "head": jnp.ones((3, 1))}
    state, healths = tx.init(params), []
    layers = vj.find_layers(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.sum(jnp.tanh(p["body"] @ p["head"]) ** 2))(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(10):
        params, state = step(params, state)
        healths.append(read_health(state))
    (finding,) = assess(healths, layers)
    assert (finding.severity, finding.layers) == ("note", ("body",))


def test_change_needs_a_history_and_severity_an_extent():
    assert verdict(history(7, gradient_norm=lambda t: falling(2 * t))) == {}
    repeated = history(2, gradient_norm=lambda t: falling(12 * t)) * 6
    assert verdict(repeated) == {}
    (one,) = assess(history(effectiveness=[1.0, 0.01, 1.0]), NAMES)
    (all_of_them,) = assess(history(effectiveness=0.01), NAMES)
    assert (one.severity, all_of_them.severity) == ("warning", "critical")
    (past,) = assess(history(update_norm=lambda t: np.nan if t == 2 else 1.0), NAMES)
    assert (past.severity, past.evidence["first_step"]) == ("warning", 2.0)
    both = history(effectiveness=[1.0, 0.01, 1.0], param_norm=lambda t: np.nan)
    assert [f.severity for f in assess(both, NAMES)] == ["critical", "warning"]


def test_layers_that_do_not_fit():
    with pytest.raises(ValueError, match="observation 0 has 3 layers, but 2 were named"):
        assess(history(), ("a", "b"))


def test_the_course_of_real_runs():
    healthy = course()
    assert assess(healthy, LAYERS) == []
    # The same network with a loss so small that Adam's epsilon takes all of the step.
    _, blind = train(WATCHED, 20, loss=lambda p, b: 1e-12 * loss_fn(p, b))
    assert "blind_optimizer" in {f.rule for f in assess(blind, LAYERS)}
    _, cured = train(
        monitor(vj.adam(1e-2, eps_relative=True), layers=LAYERS),
        20,
        loss=lambda p, b: 1e-12 * loss_fn(p, b),
    )
    assert assess(cured, LAYERS) == []
    for ours, theirs in zip(cured, healthy, strict=True):
        np.testing.assert_allclose(ours.update_norm, theirs.update_norm, rtol=0.02)


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_not_finite_shows_in_large_layers(every):
    params = {"a": jnp.full((256, 256), 1e-3), "b": jnp.ones(3)}
    tx = monitor(vj.adam(1e-3), every=every)
    update, start = jax.jit(tx.update), tx.init(params)
    for bad in (np.nan, np.inf):
        gradient = {"a": params["a"].at[3, 5].set(bad), "b": params["b"]}
        health = read_health(update(gradient, start, params)[1])
        np.testing.assert_equal(float(health.gradient_norm[0]), bad)
        assert np.isnan(health.update_norm[0])
        assert np.isfinite(health.gradient_norm[1])
        (finding,) = assess([health], ["a", "b"])
        assert (finding.rule, finding.layers) == ("nonfinite", ("a",))
        broken = params | {"a": gradient["a"]}
        np.testing.assert_equal(
            float(read_health(update(params, start, broken)[1]).param_norm[0]), bad
        )


def test_doubles_are_seen_in_doubles():
    with jax.enable_x64(True):
        params = {"a": jnp.full((8, 8), 1e-60), "b": jnp.ones(3, jnp.float32)}
        tx = monitor(vj.adam(1e-3))
        state = tx.init(params)
        gradient = {"a": jnp.full((8, 8), 1e-47), "b": jnp.full(3, 1e-3, jnp.float32)}
        after = jax.jit(tx.update)(gradient, state, params, value=1e-45)[1]
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        health = read_health(after)
        np.testing.assert_allclose(health.gradient_norm, [8e-47, 1e-3 * 3**0.5], rtol=1e-5)
        np.testing.assert_allclose(health.param_norm, [8e-60, 3**0.5], rtol=1e-5)
        np.testing.assert_allclose(float(health.loss), 1e-45, rtol=1e-12)
        np.testing.assert_allclose(health.effectiveness, [1e-39, 1.0], rtol=0.1)
        assert [one.rule for one in assess([health], ["a", "b"])] == ["blind_optimizer"]


def test_an_nnx_optimizers_observations_are_plain_arrays():
    model = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, monitor(optax.adam(1e-3)), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (4, 6, 8))

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: 0.01 * jnp.mean((model(x) - x[:, ::-1]) ** 2))(model)
        optimizer.update(model, gradients)

    seen = []
    for _ in range(3):
        step(model, optimizer)
        seen.append(read_health(optimizer.opt_state))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(seen[0]))
    assert isinstance(seen[0].step, jax.Array)
    layers = vj.find_layers(nnx.state(model, nnx.Param))
    # The key's bias gets a gradient of rounding errors: no optimizer need see it.
    place = [name.startswith("key/bias") for name in layers.names].index(True)
    assert 0 < seen[-1].gradient_norm[place] < 1e-6
    assert seen[-1].effectiveness[place] < 0.1
    assert assess(seen, layers) == []
