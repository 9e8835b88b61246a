"""deep_adam and scale_by_depth: the start, known means, rates, and a deep network trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import vanishjax as vj
from vanishjax import theory
from vanishjax.initializers import shaped
from vanishjax.models import stack_params, unstack_params
from vanishjax.training.data import load_dataset

WIDTH, DEPTH = 6, 9


def problem_of(depth=DEPTH, width=WIDTH, **options):
    settings = {"activation": "sigmoid", "scan": True, "key": jax.random.key(2)} | options
    return vj.mlp_problem(4, (width,) * depth, 3, **settings)


def gradient_like(params, seed=0):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)


def run(tx, params, steps=3, seed=0):
    state, update = tx.init(params), jax.jit(tx.update)
    found = []
    for i in range(steps):
        updates, state = update(gradient_like(params, seed + i), state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return params, found


@pytest.mark.parametrize(
    ("activation", "method"), [("sigmoid", "dks"), ("relu", "dks"), ("tanh", "tat")]
)
def test_the_first_update_moves_to_the_shaped_start(activation, method):
    params = problem_of(activation=activation).params
    tx = vj.deep_adam(0.1, 100, activation=activation, method=method)
    after, _ = run(tx, params, 1)
    alpha, beta, delta, gamma = theory.shape(activation, DEPTH, method=method)
    kernels, biases = (np.asarray(after["hidden_stack"][k]) for k in ("kernel", "bias"))
    for before, kernel, bias in zip(params["hidden_stack"]["kernel"], kernels, biases, strict=True):
        left, _, right = np.linalg.svd(np.asarray(before, np.float64))
        np.testing.assert_allclose(kernel / abs(alpha * gamma), left @ right, atol=1e-4)
        np.testing.assert_allclose(bias, beta + delta * kernel.sum(0), atol=1e-4 * abs(gamma))
    first, last = after["hidden_0"], after["output"]
    assert np.sqrt(np.mean(first["kernel"] ** 2) * 4) == pytest.approx(abs(alpha), rel=1e-5)
    np.testing.assert_allclose(first["bias"], beta, rtol=1e-5)
    assert np.sqrt(np.mean(last["kernel"] ** 2) * WIDTH) == pytest.approx(abs(gamma), rel=1e-5)
    np.testing.assert_allclose(last["bias"], delta * last["kernel"].sum(0), rtol=1e-4, atol=1e-4)


def test_what_is_shaped_already_stays():
    problem = problem_of()
    batch = 3 * jax.random.normal(jax.random.key(0), (64, 4)), jnp.arange(64) % 3
    params = shaped(problem.loss_fn, problem.params, batch)
    after, _ = run(vj.deep_adam(0.1, 100, activation="sigmoid"), params, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), after, params)
    # And without a start nothing is moved but by steps, which begin at once.
    tx = vj.deep_adam(0.1, 100, activation="sigmoid", start=False)
    _, (first,) = run(tx, problem.params, 1)
    assert 0 < np.abs(first["hidden_stack"]["kernel"]).max() < 0.1


def rates(depth=DEPTH, eta=0.1, rest=0.03):
    alpha, _, _, gamma = theory.shape("sigmoid", depth)
    return {
        "hidden_0": (rest * eta * alpha, rest * eta * alpha),
        "hidden_stack": (eta / depth * alpha * gamma / WIDTH**0.5, rest * eta / depth * alpha),
        "output": (rest * eta * gamma, rest * eta),
    }


def test_steps_are_adam_in_coordinates_without_the_known_mean():
    params = problem_of().params
    tx = vj.deep_adam(lambda _: 0.1, 100, activation="sigmoid", start=False)
    gradients = [gradient_like(params, seed) for seed in range(3)]
    state, update = tx.init(params), jax.jit(tx.update)
    moments = {}
    for count, gradient in enumerate(gradients, 1):
        updates, state = update(gradient, state, params)
        for name, (kernel_rate, bias_rate) in rates().items():
            delta = 0.0 if name == "hidden_0" else theory.shape("sigmoid", DEPTH).output_shift
            wide = {k: np.asarray(x, np.float64) for k, x in gradient[name].items()}
            freed = {"kernel": wide["kernel"] + delta * wide["bias"][..., None, :]}
            freed["bias"] = wide["bias"]
            direction = {}
            for part, g in freed.items():
                m, v = moments.get((name, part), (0.0, 0.0))
                m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
                moments[name, part] = m, v
                direction[part] = m / (1 - 0.9**count) / np.sqrt(v / (1 - 0.99**count))
            kernel = -kernel_rate * direction["kernel"]
            bias = -bias_rate * direction["bias"] + delta * kernel.sum(-2)
            np.testing.assert_allclose(updates[name]["kernel"], kernel, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(updates[name]["bias"], bias, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "method"), [(jnp.float32, "dks"), (jnp.float64, "dks"), (jnp.float32, "tat")]
)
def test_a_kernels_step_keeps_the_mean_of_what_its_layer_puts_out(dtype, method):
    with jax.enable_x64(dtype == jnp.float64):
        params = problem_of(param_dtype=dtype).params
        mean = jnp.linspace(-1, 2, 4, dtype=dtype)
        settings = {"activation": "sigmoid", "method": method, "input_mean": mean}
        tx = vj.deep_adam(0.1, 100, rest_rate=1.0, start=False, **settings)
        no_bias = jax.tree_util.tree_map_with_path(
            lambda path, g: g if "kernel" in jax.tree_util.keystr(path) else 0 * g,
            gradient_like(params),
        )
        updates, _ = jax.jit(tx.update)(no_bias, tx.init(params), params)
        alpha, beta, *_ = theory.shape("sigmoid", DEPTH, method=method)
        x, w = np.polynomial.hermite_e.hermegauss(60)
        activation = w @ (1 / (1 + np.exp(-alpha * x - beta))) / w.sum()
        for name, layer in updates.items():
            h = mean if name == "hidden_0" else jnp.full(WIDTH, activation, dtype)
            kernel, bias = (np.asarray(layer[k], np.float64) for k in ("kernel", "bias"))
            shift = np.einsum("i,...io->...o", np.asarray(h, np.float64), kernel) + bias
            size = np.abs(np.asarray(h, np.float64)) @ np.abs(kernel)
            assert np.all(size > 0)
            assert np.max(np.abs(shift) / size) < 8 * float(jnp.finfo(dtype).eps)


def test_the_rate_rises_and_falls():
    params = problem_of(3).params
    gradient = gradient_like(params)
    made = {
        total: vj.deep_adam(0.1, total, activation="sigmoid", start=False) for total in (10, 1000)
    }
    compiled = {total: jax.jit(tx.update) for total, tx in made.items()}

    def size(total, count):
        state = made[total].init(params)._replace(count=jnp.array(count, jnp.int32))
        updates, _ = compiled[total](gradient, state, params)
        return float(jnp.abs(updates["hidden_stack"]["kernel"]).mean())

    top = size(1000, 50)
    assert size(1000, 0) == pytest.approx(top / 50, rel=1e-4)
    assert size(1000, 525) == pytest.approx(0.51 * top, rel=1e-4)
    assert size(1000, 1000) == pytest.approx(0.02 * top, rel=1e-4)
    assert size(1000, 5000) == pytest.approx(0.02 * top, rel=1e-4)
    # A short run warms up for a fifth of it.
    assert size(10, 0) == pytest.approx(top / 2, rel=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_stacked_equals_unrolled(activation):
    problem = problem_of(activation=activation)
    tx = vj.deep_adam(0.1, 20, activation=activation)
    stacked, _ = run(tx, problem.params)
    params = unstack_params(problem.params)

    state = tx.init(params)
    for i in range(3):
        gradient = unstack_params(gradient_like(problem.params, i))
        updates, state = jax.jit(tx.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        stack_params(params),
        stacked,
    )


def test_sharded_equals_whole():
    params = problem_of(DEPTH).params
    tx = vj.deep_adam(0.1, 20, activation="sigmoid")
    whole, _ = run(tx, params)
    mesh = jax.make_mesh((8,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = {
        name: jax.device_put(
            layer,
            NamedSharding(
                mesh, PartitionSpec("layers") if name == "hidden_stack" else PartitionSpec()
            ),
        )
        for name, layer in params.items()
    }
    apart, _ = run(tx, placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), apart, whole)


def test_convolutions_keep_their_middle():
    shapes = [(3, 3, 2, 8), (3, 3, 8, 8), (3, 3, 8, 8), (8, 3)]
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        f"layer_{i}": {"kernel": jax.random.normal(k, s), "bias": jnp.zeros(s[-1])}
        for i, (k, s) in enumerate(zip(keys, shapes, strict=True))
    }
    after, _ = run(vj.deep_adam(0.1, 20, activation="tanh"), params, 1)
    numbers = theory.shape("tanh", 3)
    for name in ("layer_1", "layer_2"):
        kernel = np.asarray(after[name]["kernel"])
        core = kernel[1, 1] / (numbers.input_scale * numbers.output_scale)
        np.testing.assert_allclose(core @ core.T, np.eye(8), atol=1e-4)
        assert np.count_nonzero(kernel) == 64
        bias = numbers.input_shift + numbers.output_shift * kernel.sum((0, 1, 2))
        np.testing.assert_allclose(after[name]["bias"], bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"activation": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"method": "dsk"}, "did you mean 'dks'"),
        ({"rest_rate": -1.0}, "rest_rate must not be negative"),
        ({"b1": 1.0}, "b1 must lie in"),
    ],
)
def test_a_bad_argument_is_refused_by_the_factory(arguments, message):
    settings = {"total_steps": 10, "activation": "tanh"} | arguments
    with pytest.raises(ValueError, match=message):
        vj.deep_adam(0.1, **settings)


def test_a_bad_network_is_refused_at_init():
    params = problem_of().params
    with pytest.raises(ValueError, match="hard_tanh has no DKS shape at depth 9"):
        vj.deep_adam(0.1, 10, activation="hard_tanh").init(params)
    with pytest.raises(ValueError, match=r"input_mean must have shape \(4,\).*hidden_0/kernel"):
        vj.deep_adam(0.1, 10, activation="tanh", input_mean=jnp.ones(3)).init(params)
    with pytest.raises(ValueError, match="no bias beside it"):
        vj.deep_adam(0.1, 10, activation="tanh").init({"a": {"kernel": jnp.ones((2, 2))}})


def test_scale_by_depth_divides_hidden_layers_stacked_or_not():
    params = problem_of().params
    for tree in (params, unstack_params(params)):
        tx = vj.scale_by_depth()
        ones = jax.tree.map(jnp.ones_like, tree)
        scaled, _ = tx.update(ones, tx.init(tree))
        for name, layer in scaled.items():
            expected = 1.0 if name in ("hidden_0", "output") else 1 / DEPTH
            for x in jax.tree.leaves(layer):
                np.testing.assert_allclose(x, expected, rtol=1e-6)
    # Kernels of a plain stack with nothing before and behind it; two kernels have none between.
    stack = {"w": jnp.ones((5, 2, 2)), "b": jnp.ones((5, 2))}
    scaled, _ = vj.scale_by_depth().update(stack, vj.scale_by_depth().init(stack))
    np.testing.assert_allclose(scaled["w"][:, 0, 0], [1, 0.25, 0.25, 0.25, 1])
    two = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    scaled, _ = vj.scale_by_depth().update(two, vj.scale_by_depth().init(two))
    np.testing.assert_array_equal(scaled["a"], 1)


def test_three_hundred_plain_layers_learn_the_digits():
    data = load_dataset("digits", validation_split=0.2, seed=0)
    inputs, labels = jnp.asarray(data.train.inputs), jnp.asarray(data.train.labels)
    steps, depth = 150, 300
    problem = vj.mlp_problem(64, (16,) * depth, 10, activation="sigmoid", scan=True)
    tx = vj.deep_adam(0.1, steps, activation="sigmoid")
    rows = np.random.default_rng(0).integers(0, len(labels), (steps, 64))

    @jax.jit
    def train(params, state, rows):
        def step(carry, rows):
            params, state = carry
            gradient = jax.grad(problem.loss_fn)(params, (inputs[rows], labels[rows]))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), rows)[0][0]

    params = train(problem.params, tx.init(problem.params), rows)
    test = jnp.asarray(data.test.inputs), jnp.asarray(data.test.labels)
    right = jnp.argmax(problem.predict_fn(params, test[0]), axis=-1) == test[1]
    # A linear classifier, which the start nearly is, gets about .95; chance is .1.
    assert float(right.mean()) > 0.9
