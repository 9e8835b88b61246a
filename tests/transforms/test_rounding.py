"""Parameters of 16 bits that lose no update: stochastic rounding and Kahan summation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import vanishjax as vj
from tests.trajectory import run
from vanishjax.transforms.rounding import _Grid

MAKE = {"stochastic_round": vj.stochastic_round, "kahan_sum": vj.kahan_sum}
both = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
every_type = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])


def mean(x):
    return float(np.asarray(x, np.float64).mean())


def neighbors(x, dtype):
    """The numbers of a type on either side of x, by searching all of them."""
    words = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), dtype)
    with np.errstate(invalid="ignore"):  # some of the words are NaN
        numbers = np.asarray(words, np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    return numbers[np.searchsorted(numbers, x, "right") - 1], numbers[np.searchsorted(numbers, x)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_the_grid_is_the_types_own(dtype):
    """Its numbers are found without a cast, which compilers may leave out; casts tell them here."""
    grid, info = _Grid.of(dtype), jnp.finfo(dtype)
    rng = np.random.default_rng(0)
    powers = np.exp2(
        rng.uniform(np.log2(float(info.smallest_normal)) - 12, info.maxexp - 1, 40_000)
    )
    words = np.arange(2 ** (8 * jnp.dtype(dtype).itemsize - 1))
    words = words.astype(f"uint{8 * jnp.dtype(dtype).itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):  # some of the words are NaN
        numbers = words.astype(np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    numbers = numbers[(numbers == 0) | (numbers >= 2.0**-126)]  # what is smaller is flushed
    middles = (numbers[1:] + numbers[:-1]) / 2
    sizes = np.concatenate([powers, numbers, middles]).astype(np.float32)
    sizes = sizes[(sizes == 0) | (sizes >= 2.0**-126)]
    place = np.searchsorted(numbers, sizes, "right") - 1
    low, high, nearest = jax.jit(
        lambda x: (grid.below(x), grid.above(grid.below(x)), grid.nearest(x))
    )(sizes)
    np.testing.assert_array_equal(low, numbers[place])
    above_zero = sizes > 0
    beyond = np.append(numbers, np.inf)[place + 1]
    np.testing.assert_array_equal(high[above_zero], beyond[above_zero])
    np.testing.assert_array_equal(nearest, np.asarray(jnp.asarray(sizes).astype(dtype), np.float64))


def moved(tx, p, u, state=None):
    state = tx.init(p) if state is None else state
    updates, state = jax.jit(tx.update)(u, state, p)
    return jax.jit(optax.apply_updates)(p, updates), state


@both
def test_adam_on_a_weight_of_one_goes_where_float32_goes(make):
    """200 steps of 1e-3, each under half a unit in the last place: plain bfloat16 stays at 1."""

    def after(tx, dtype):
        params = jnp.ones(10_000, dtype)
        grads = jnp.ones((200, 10_000), dtype)
        state = tx.init(params)

        @jax.jit
        def train(params, state):
            def step(carry, gradient):
                params, state = carry
                updates, state = tx.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), grads)[0][0]

        end = train(params, state)
        assert end.dtype == dtype
        return mean(end)

    full = after(vj.adam(1e-3), jnp.float32)
    assert after(vj.adam(1e-3), jnp.bfloat16) == 1.0
    ours = after(optax.chain(vj.adam(1e-3), make()), jnp.bfloat16)
    assert abs(ours - full) < 0.01 * (1 - full)
    # optax's Adam keeps moments of 16 bits, whose own rounding takes 2.7% off the steps.
    assert abs(after(optax.chain(optax.adam(1e-3), make()), jnp.bfloat16) - full) < 0.01 * full


@every_type
def test_rounding_is_to_the_neighbors_and_right_on_average(dtype):
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-7, 3, 40)
    sizes[:4] = 2.0**-24, 3 * 2.0**-26, 2.0**-14, 1.0  # float16's subnormal numbers, powers of two
    p = jnp.asarray(rng.choice([-1, 1], 40) * sizes, dtype)
    u = jnp.asarray(rng.standard_normal(40) * 10.0 ** rng.uniform(-9, 3, 40), jnp.float32)
    x = np.asarray(p, np.float32) + np.asarray(u)
    low, high = neighbors(np.asarray(x, np.float64), dtype)
    tx, count = vj.stochastic_round(), 20_000
    many = jnp.tile(p, (count, 1))
    rounded, _ = moved(tx, many, jnp.tile(u, (count, 1)))
    assert rounded.dtype == dtype
    rounded = np.asarray(rounded, np.float64)
    assert np.all((rounded == low) | (rounded == high))
    share = np.where(high > low, (x - low) / np.where(high > low, high - low, 1), 0)
    seen = np.where(high > low, (rounded == high).mean(0), 0)
    assert np.all(abs(seen - share) < 4.5 * np.sqrt(share * (1 - share) / count) + 1e-9)


@every_type
def test_kahan_is_float32_rounded_at_the_end(dtype):
    """Parameter and compensation together are float32's sum; the parameter is that, rounded."""
    rng = np.random.default_rng(1)
    start = rng.standard_normal(500) * 10.0 ** rng.uniform(-4, 2, 500)
    start = jnp.asarray(start, dtype)
    steps = rng.standard_normal((300, 500)) * 10.0 ** rng.uniform(-9, -1, 500)
    steps = jnp.asarray(steps * abs(np.asarray(start, np.float64)), jnp.float32)
    steps = steps.at[:, :50].set(abs(steps[:, :50]))  # a long way, through powers of two
    tx = vj.kahan_sum()

    @jax.jit
    def train(p, full):
        def step(carry, u):
            p, state, full = carry
            updates, state = tx.update(u, state, p)
            return (optax.apply_updates(p, updates), state, full + u), None

        return jax.lax.scan(step, (p, tx.init(p), full), steps)[0]

    p, state, full = train(start, start.astype(jnp.float32))
    assert state.compensation.dtype == jnp.int16
    p, full = np.asarray(p, np.float64), np.asarray(full, np.float64)
    assert np.any(p != np.asarray(start, np.float64))
    low, high = neighbors(full, dtype)
    off = np.minimum(abs(full - low), abs(full - high))
    # At most float32's own rounding of 300 sums away from its nearest number.
    assert np.all(abs(p - full) <= off + 300 * 2.0**-24 * abs(full) + 2.0**-40)


@both
@every_type
def test_no_move_without_an_update(make, dtype):
    rng = np.random.default_rng(2)
    p = jnp.asarray(rng.standard_normal(1000) * 10.0 ** rng.uniform(-7, 4, 1000), dtype)
    tx = make()
    u = jnp.asarray(rng.standard_normal(1000) * 1e-4, jnp.float32)
    p, state = moved(tx, p, u)
    for _ in range(3):
        after, state = moved(tx, p, jnp.zeros(1000), state)
        np.testing.assert_array_equal(np.asarray(after), np.asarray(p))


@both
@every_type
def test_the_ends_of_the_range(make, dtype):
    largest, least = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    p = jnp.array([1.0, 1.0, -1.0, jnp.inf, jnp.nan, largest, -largest, 0.0, 1.0], dtype)
    u = jnp.array(
        [jnp.nan, jnp.inf, -jnp.inf, 1.0, 1.0, largest / 1024, -largest / 1024, 0.0, -1.0]
    )
    after, state = moved(make(), p, u)
    expected = [np.nan, np.inf, -np.inf, np.inf, np.nan, largest, -largest, 0.0, 0.0]
    np.testing.assert_array_equal(np.asarray(after, np.float64), expected)
    again, _ = moved(make(), after, jnp.full(9, 0.0), state)
    np.testing.assert_array_equal(np.asarray(again, np.float64), expected)
    if dtype == jnp.float16:  # a processor may flush bfloat16's subnormal numbers
        p, total = jnp.zeros(20_000, dtype), 0.0
        tx = make()
        state = tx.init(p)
        for _ in range(8):
            p, state = moved(tx, p, jnp.full(20_000, least / 4), state)
            total += least / 4
        assert abs(mean(p) / total - 1) < 0.05


@both
def test_leaves_of_32_bits_pass(make):
    params = {"full": jnp.ones(3), "half": jnp.ones(3, jnp.bfloat16), "none": None}
    updates = {"full": jnp.full(3, 1e-9), "half": jnp.full(3, 1e-3), "none": None}
    tx = make()
    state = tx.init(params)
    steps, after = tx.update(updates, state, params)
    assert steps["full"] is updates["full"]
    assert steps["half"].dtype == jnp.float32
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert sum(x.nbytes for x in jax.tree.leaves(after)) == (6 if make is vj.kahan_sum else 4)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(updates, state)


def test_random_numbers_follow_from_the_seed_the_step_and_the_leaf():
    p = {"a": jnp.ones(256, jnp.bfloat16), "b": jnp.ones(256, jnp.bfloat16)}
    u = jax.tree.map(lambda _: jnp.full(256, 1e-3), p)
    first, state = moved(vj.stochastic_round(), p, u)
    again, _ = moved(vj.stochastic_round(), p, u)
    other, _ = moved(vj.stochastic_round(seed=1), p, u)
    later, _ = moved(vj.stochastic_round(), p, u, state)
    draws = {tuple(np.asarray(x, float)) for x in (*first.values(), other["a"], later["a"])}
    assert len(draws) == 4
    np.testing.assert_array_equal(np.asarray(first["a"]), np.asarray(again["a"]))


@both
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_the_same_however_arrays_are_divided(make, kind):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    p, u = jnp.ones((8, 32), jnp.bfloat16), jnp.full((8, 32), 1e-3)
    whole, _ = moved(make(), p, u)
    spread = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("x"))) for x in (p, u)]
    with jax.default_prng_impl("rbg"):
        divided, _ = moved(make(), *spread)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(divided))


@both
def test_inside_a_train_step_and_a_guard(make):
    """On two microbatches, on four devices, in nnx, and under a guard that skips a layer."""

    def loss_fn(params, batch):
        return jnp.mean(batch @ params["w"].astype(jnp.float32)) + jnp.sum(params["b"])

    params = {"w": jnp.ones((4, 3), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    batch = jnp.ones((8, 4))
    results = []
    for options in ({}, {"accumulate": 2, "parallel": "shard_map"}):
        tx = optax.chain(vj.sgd(1e-3), make())
        step = vj.make_train_step(loss_fn, tx, **options)
        state = vj.TrainState.create(jax.tree.map(jnp.copy, params), tx)
        for _ in range(20):
            state, _ = step(state, batch)
        assert state.params["b"].dtype == jnp.bfloat16
        assert 0.95 < mean(state.params["b"]) < 0.99
        results.append(np.asarray(state.params["b"], float))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)

    guarded = vj.skip_nonfinite(inner=optax.chain(vj.sgd(1e-2), make()))
    behind = optax.chain(vj.skip_nonfinite(inner=vj.sgd(1e-2)), make())
    bad = {"w": jnp.full((4, 3), jnp.nan), "b": jnp.ones(3)}
    for tx in (guarded, behind):
        after, state = params, tx.init(params)
        for _ in range(5):
            after, state = moved(tx, after, bad, state)
        np.testing.assert_array_equal(np.asarray(after["w"]), np.asarray(params["w"]))
        assert mean(after["b"]) < 0.97

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    model.kernel[...] = params["w"]
    optimizer = nnx.Optimizer(model, optax.chain(vj.sgd(1e-3), make()), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m.kernel[...]))(model))

    for _ in range(20):
        train(model, optimizer)
    assert model.kernel.dtype == jnp.bfloat16
    assert 0.95 < mean(model.kernel[...]) < 0.99


def test_constants_too():
    """XLA takes a cast and a cast back for nothing: what it knows is rounded all the same."""
    tx = vj.stochastic_round()
    grads, params = jnp.full((3, 64), 1e-3), jnp.ones(64, jnp.bfloat16)
    updates, _ = run(tx, grads, params)
    landed = np.asarray(params, np.float32) + np.asarray(updates)
    assert np.all((landed == 1.0) | (landed == 1.0078125))
    assert np.ptp(landed) > 0
