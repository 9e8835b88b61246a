"""Critical initializers: their matrices, their homes in Flax, and the gradients they keep."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vanishjax import theory
from vanishjax.activations import ACTIVATIONS
from vanishjax.initializers import (
    center_biases,
    critical_bias,
    critical_normal,
    critical_orthogonal,
    small_output,
)
from vanishjax.layers import find_layers
from vanishjax.models import MLP, NnxMLP, mlp_problem

KEY = jax.random.key(0)
FACTORIES = [critical_orthogonal, critical_normal]
# The bias variance that stands behind the default, and the activation that is really critical.
DEFAULTS = {
    "tanh": ("tanh", 1e-4),
    "erf": ("erf", 1e-4),
    "hard_tanh": ("hard_tanh", 1e-4),
    "softsign": ("softsign", 1e-4),
    "elu": ("elu", 1e-4),
    "selu": ("selu", 1e-4),
    "centered_sigmoid": ("centered_sigmoid", 1e-4),
    "sigmoid": ("centered_sigmoid", 1e-4),
    "relu": ("relu", 0),
    "leaky_relu": ("leaky_relu", 0),
    "identity": ("identity", 0),
    "gelu": ("gelu", theory.critical_point("gelu").sigma_b2),
    "silu": ("silu", theory.critical_point("silu").sigma_b2),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_gain_is_critical(name):
    effective, sigma_b2 = DEFAULTS[name]
    sigma_w2 = theory.critical_sigma_w2(effective, sigma_b2)
    kernel = critical_orthogonal(name)(KEY, (32, 32))
    np.testing.assert_allclose(kernel @ kernel.T, sigma_w2 * np.eye(32), atol=2e-6 * sigma_w2)
    # The relative error of a variance estimated from n entries is sqrt(2 / n).
    kernel = critical_normal(name)(KEY, (200, 500))
    assert float(jnp.var(kernel)) * 200 == pytest.approx(sigma_w2, rel=5 * (2 / 1e5) ** 0.5)
    biases = critical_bias(name)(KEY, (100_000,))
    assert float(jnp.var(biases)) == pytest.approx(sigma_b2, rel=5 * (2 / 1e5) ** 0.5)


def test_the_sigmoid_of_the_literature():
    kernel = critical_orthogonal("sigmoid")(KEY, (16, 16))
    assert float(jnp.sum(kernel**2)) / 16 == pytest.approx(16.861, abs=5e-4)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_bias_variance_and_callables_are_heeded(factory):
    by_name = factory("tanh", 0.05)(KEY, (64, 64))
    unit = factory("identity")(KEY, (64, 64))
    np.testing.assert_allclose(by_name, 1.76095463960674**0.5 * unit, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(by_name, factory(lambda x: jnp.tanh(x), 0.05)(KEY, (64, 64)))


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (3, 3, 8, 32), (3, 4, 16), (2, 7)])
def test_shapes(shape):
    """The last axis is the output, all before it the fan-in."""
    fan_in, out = int(np.prod(shape[:-1])), shape[-1]
    kernel = critical_orthogonal("relu")(KEY, shape)
    assert kernel.shape == shape
    kernel = np.asarray(kernel, np.float64).reshape(fan_in, out)
    product = kernel.T @ kernel if fan_in >= out else kernel @ kernel.T
    np.testing.assert_allclose(
        product, 2 * max(1, out / fan_in) * np.eye(min(fan_in, out)), atol=2e-5
    )
    assert np.mean(kernel**2) == pytest.approx(2 / fan_in, rel=1e-5)
    draw = jax.jit(jax.vmap(lambda key: critical_normal("relu")(key, shape)))
    many = draw(jax.random.split(KEY, 200))
    assert float(jnp.mean(many**2)) == pytest.approx(2 / fan_in, rel=5 * (2 / many.size) ** 0.5)


@pytest.mark.parametrize("factory", [*FACTORIES, critical_bias])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_types_are_cast_from_float32(factory, dtype):
    init = factory("tanh")
    drawn = init(KEY, (24, 24), dtype)
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn, init(KEY, (24, 24)).astype(dtype))
    assert jax.eval_shape(lambda key: init(key, (24, 24), dtype), KEY).dtype == dtype


def test_float64_is_drawn_in_float64():
    with jax.enable_x64(True):
        kernel = critical_orthogonal("relu")(KEY, (24, 24), jnp.float64)
        np.testing.assert_allclose(kernel @ kernel.T, 2 * np.eye(24), atol=1e-13)


@pytest.mark.parametrize("factory", [*FACTORIES, critical_bias])
def test_errors_come_early(factory):
    with pytest.raises(ValueError, match=r"softplus - 0\.693147 has no critical point"):
        factory("softplus")
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        factory("tahn")
    with pytest.raises(ValueError, match=r"relu has no critical point with sigma_b2=0\.1"):
        factory("relu", 0.1)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_kernel_needs_two_axes(factory):
    with pytest.raises(ValueError, match=r"two axes at least, \[..., in, out\], got \(8,\)"):
        factory("relu")(KEY, (8,))


def linen_stack(**arguments):
    model = MLP((16,) * 5, 3, scan=True, kernel_init=critical_orthogonal("tanh"), **arguments)
    params = jax.jit(model.init)(KEY, jnp.ones([1, 16]))["params"]
    return params["hidden_stack"]["kernel"], params["hidden_0"]["kernel"]


def nnx_stack(**arguments):
    model = NnxMLP(
        16,
        (16,) * 5,
        3,
        scan=True,
        kernel_init=critical_orthogonal("tanh"),
        rngs=nnx.Rngs(0),
        **arguments,
    )
    return model.hidden_stack.kernel[...], model.hidden_0.kernel[...]


@pytest.mark.parametrize("make", [linen_stack, nnx_stack])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_stacks_hold_an_orthogonal_matrix_a_layer(make, dtype):
    sigma_w2 = theory.critical_sigma_w2("tanh", 1e-4)
    stack, single = make(param_dtype=dtype)
    assert stack.dtype == dtype
    assert stack.shape == (4, 16, 16)
    kernels = np.asarray(jnp.concatenate([stack, single[None]]), np.float64)
    accuracy = 2e-6 if dtype == jnp.float32 else 3e-2
    for kernel in kernels:
        np.testing.assert_allclose(kernel @ kernel.T, sigma_w2 * np.eye(16), atol=accuracy)
    assert len({kernel.tobytes() for kernel in kernels}) == 5


def test_made_inside_a_trace():
    """A module may make its initializer in `setup`, under `jit`, `vmap` or `grad`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8, kernel_init=critical_orthogonal(lambda x: jnp.tanh(x)))(x)

    def kernels(keys):
        return jax.vmap(lambda key: Net().init(key, jnp.ones(8))["params"]["Dense_0"]["kernel"])(
            keys
        )

    kernel = jax.jit(kernels)(jax.random.split(KEY, 2))[1]
    expected = theory.critical_sigma_w2("tanh", 1e-4) * np.eye(8)
    np.testing.assert_allclose(kernel @ kernel.T, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convolutions_of_linen_and_nnx(dtype):
    init = critical_orthogonal("relu")
    linen = nn.Conv(32, (3, 3), kernel_init=init, param_dtype=dtype)
    kernel = linen.init(KEY, jnp.ones([1, 8, 8, 4]))["params"]["kernel"]
    other = nnx.Conv(4, 32, (3, 3), kernel_init=init, param_dtype=dtype, rngs=nnx.Rngs(0)).kernel
    for value in (kernel, other[...]):
        assert value.shape == (3, 3, 4, 32)
        assert value.dtype == dtype
        matrix = np.asarray(value, np.float64).reshape(36, 32)
        np.testing.assert_allclose(matrix.T @ matrix, 2 * np.eye(32), atol=3e-2)


DEPTH, WIDTH = 50, 128
NO_BIASES = np.zeros([DEPTH, WIDTH], np.float32)


def gradient_growth(activation, kernel_init, bias_init=nn.initializers.zeros, center=False):
    """The factor by which 50 layers of width 128 multiply the gradient's squared norm, each."""
    f = ACTIVATIONS[activation]
    kernel_keys, bias_keys = jax.random.split(jax.random.key(3), (2, DEPTH))
    params = {
        "kernel": jax.lax.map(lambda key: kernel_init(key, (WIDTH, WIDTH)), kernel_keys),
        "bias": jax.lax.map(lambda key: bias_init(key, (WIDTH,)), bias_keys),
    }
    first, last = jax.random.normal(jax.random.key(1), [2, 16, WIDTH])

    def output(params, first, last, extra=NO_BIASES):
        def layer(z, layer):
            params, extra = layer
            return f(z) @ params["kernel"] + params["bias"] + extra, None

        return jax.lax.scan(layer, first, (params, extra))[0] @ last

    if center:
        # Data of the sigmoid's own kind: every layer here has one before it.
        data = {"bias": jnp.zeros(WIDTH), "kernel": jnp.eye(WIDTH)}

        def loss_fn(params, x):
            z = x @ params["data"]["kernel"] + params["data"]["bias"]
            return jnp.sum(output(params["stack"], z, last.T))

        params = {"data": data, "stack": params}
        layers = find_layers(params, loss_fn, first)
        params = center_biases(params, activation, layers)["stack"]
    # A signal a sample, so that they don't cancel; squared in float64, where 1e-31 has a square.
    backward = jax.jit(jax.vmap(jax.grad(output, 3), (None, 0, 0, None)))
    signals = np.asarray(backward(params, first, last, NO_BIASES), np.float64)
    norms = np.mean(np.sum(signals**2, -1), 0)
    return (norms[0] / norms[-1]) ** (1 / (DEPTH - 1))


def theoretical_growth(activation, sigma_w2, sigma_b2):
    q = theory.variance_map(activation, 1.0, sigma_w2, sigma_b2)
    total = theory.sum_log_chi(activation, sigma_w2, sigma_b2, DEPTH - 1, q=q)
    return math.exp(total / (DEPTH - 1))


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "relu", "selu"])
def test_critical_networks_keep_their_gradients(name):
    sigma_w2 = theory.critical_sigma_w2(*DEFAULTS[name])
    expected = theoretical_growth(name, sigma_w2, 0)
    assert expected == pytest.approx(1, abs=0.07)
    assert gradient_growth(name, critical_orthogonal(name)) == pytest.approx(expected, rel=0.01)
    assert gradient_growth(name, critical_normal(name)) == pytest.approx(expected, rel=0.03)


def test_a_centered_sigmoid_keeps_its_gradients():
    kernels, biases = critical_orthogonal("sigmoid"), critical_bias("sigmoid")
    expected = theoretical_growth(
        "centered_sigmoid", *theory.critical_point("centered_sigmoid", 1e-4)[:2]
    )
    growth = gradient_growth("sigmoid", kernels, biases, center=True)
    assert growth == pytest.approx(expected, rel=0.01)
    assert growth == pytest.approx(1, abs=0.05)
    assert gradient_growth("sigmoid", kernels, biases) < 0.5


def test_gelu_keeps_its_gradients_together_with_its_biases():
    kernels, biases = critical_orthogonal("gelu"), critical_bias("gelu")
    # Near 1 only: the variance map's slope is 1 too, so that a finite network's variance drifts.
    assert gradient_growth("gelu", kernels, biases) == pytest.approx(1, abs=0.08)
    assert gradient_growth("gelu", kernels) < 0.6


def test_a_sigmoid_as_it_comes_loses_its_gradients():
    growth = gradient_growth("sigmoid", nn.initializers.lecun_normal())
    assert growth == pytest.approx(0.0557207, rel=0.03)
    assert growth == pytest.approx(theoretical_growth("sigmoid", 1, 0), rel=0.03)


def centered_network(params, x, names):
    """The network of sigmoid(x) - 1/2 that a centered sigmoid network must equal."""
    h = x
    for number, name in enumerate(names):
        W, b = params[name]["kernel"], params[name]["bias"]
        h = (jax.nn.sigmoid(h) - 0.5 if number else h) @ W + b
    return h


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_centering_makes_the_centered_network(scan):
    problem = mlp_problem(
        6,
        (8,) * 4,
        3,
        scan=scan,
        kernel_init=critical_orthogonal("sigmoid"),
        bias_init=critical_bias("sigmoid", 0.3),
    )
    x = jax.random.normal(KEY, [5, 6])
    layers = find_layers(problem.params, problem.loss_fn, (x, jnp.zeros(5, int)))
    centered = jax.jit(lambda params: center_biases(params, "sigmoid", layers))(problem.params)
    assert jax.tree.structure(centered) == jax.tree.structure(problem.params)
    plain = mlp_problem(6, (8,) * 4, 3, scan=False)
    flat = problem.params
    if scan:
        flat = {
            **{k: v for k, v in flat.items() if k != "hidden_stack"},
            **{
                f"hidden_{i + 1}": jax.tree.map(lambda a, i=i: a[i], flat["hidden_stack"])
                for i in range(3)
            },
        }
    expected = centered_network(flat, x, [*sorted(plain.params)])
    np.testing.assert_allclose(problem.predict_fn(centered, x), expected, atol=2e-5)


def test_centering_nnx_and_convolutions():
    class Net(nnx.Module):
        def __init__(self, rngs):
            init = critical_orthogonal("sigmoid")
            self.first = nnx.Conv(2, 3, (3,), padding="VALID", kernel_init=init, rngs=rngs)
            self.later = nnx.Conv(3, 4, (3,), padding="VALID", kernel_init=init, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)

        def __call__(self, x, mean=0.0):
            return self.norm(self.later(jax.nn.sigmoid(self.first(x)) - mean))

    model, x = Net(nnx.Rngs(0)), jax.random.normal(KEY, [5, 9, 2])
    expected = model(x, mean=0.5)
    assert float(jnp.max(jnp.abs(model(x) - expected))) > 0.1
    nnx.update(model, center_biases(nnx.state(model, nnx.Param), "sigmoid"))
    np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_centering_leaves_the_rest_alone():
    params = {
        "a": {"kernel": jnp.ones([2, 2]), "bias": jnp.ones(2, jnp.bfloat16)},
        "b": {"kernel": jnp.ones([2, 2])},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "z": {"kernel": jnp.ones([2, 2], jnp.bfloat16), "bias": jnp.ones(2, jnp.bfloat16)},
    }
    centered = center_biases(params, "softplus")
    assert centered["z"]["bias"].dtype == jnp.bfloat16
    np.testing.assert_allclose(centered["z"]["bias"], 1 - 2 * np.log(2), atol=4e-3)
    centered["z"] = params["z"]
    jax.tree.map(np.testing.assert_array_equal, centered, params)
    jax.tree.map(np.testing.assert_array_equal, center_biases(params, "tanh"), params)
    assert center_biases({}, "sigmoid") == {}


def test_centering_of_several_features():
    """`nn.DenseGeneral` with two output axes, and one input axis or two."""
    params = {
        "a": {"kernel": jnp.ones([5, 4]), "bias": jnp.zeros(4)},
        "b": {"kernel": jnp.ones([4, 2, 3]), "bias": jnp.zeros([2, 3])},
        "c": {"kernel": jnp.ones([2, 3, 7]), "bias": jnp.zeros(7)},
    }
    centered = center_biases(params, "sigmoid")
    np.testing.assert_array_equal(centered["b"]["bias"], np.full([2, 3], -2.0))
    np.testing.assert_array_equal(centered["c"]["bias"], np.full(7, -3.0))

    def loss_fn(params, x):
        def layer(h, params):
            heads = jnp.einsum("i,ihd->hd", h, params["kernel"]) + params["bias"]
            return jax.nn.sigmoid(heads.ravel()), None

        return jnp.sum(jax.lax.scan(layer, x, params)[0])

    params = {"kernel": jnp.ones([5, 6, 2, 3]), "bias": jnp.zeros([5, 2, 3])}
    centered = center_biases(params, layers=find_layers(params, loss_fn, jnp.ones(6)))
    expected = np.repeat([0.0, -3.0, -3.0, -3.0, -3.0], 6).reshape(5, 2, 3)
    np.testing.assert_array_equal(centered["bias"], expected)


def a_layer_and_a_stack(length):
    return {
        "a": {"kernel": jnp.ones([4, 4]), "bias": jnp.zeros(4)},
        "b": {"kernel": jnp.ones([length, 4, 4]), "bias": jnp.zeros([length, 4])},
    }


def test_centering_of_a_stack_that_its_shapes_tell():
    centered = center_biases(a_layer_and_a_stack(3), "sigmoid")
    np.testing.assert_array_equal(centered["a"]["bias"], np.zeros(4))
    np.testing.assert_array_equal(centered["b"]["bias"], np.full((3, 4), -2.0))


def test_a_stack_as_long_as_wide_that_nobody_told_is_refused():
    # It may be one layer from 4 inputs to 4 times 4 outputs as well.
    with pytest.raises(ValueError, match=r"b/bias .* pass layers=find_layers\(params, loss_fn"):
        center_biases(a_layer_and_a_stack(4), "sigmoid")


def test_a_bias_of_another_width_is_refused():
    params = {"kernel": jnp.ones([4, 6]), "bias": jnp.zeros(1)}
    with pytest.raises(ValueError, match=r"bias of shape \(1,\) doesn't tell its layers"):
        center_biases(params, "sigmoid")


@pytest.mark.parametrize("normalized", [True, False])
def test_a_head_tied_to_an_embedding_is_made_small_as_a_whole(normalized):
    """Without normalization what the head puts out grows with the square of its kernel."""
    tokens = jax.random.randint(jax.random.key(0), (32, 6), 0, 11)
    params = {
        "embedding": 40 * jax.random.normal(jax.random.key(1), (11, 16)),
        "hidden": jax.random.normal(jax.random.key(2), (16, 16)) / 4,
    }

    def logits(p, tokens):
        x = p["embedding"][tokens]
        if normalized:
            x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6)
        return jnp.tanh(x @ p["hidden"]) @ p["embedding"].T

    def loss_fn(p, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits(p, batch), batch).mean()

    assert loss_fn(params, tokens) > 20 * jnp.log(11)
    new = small_output(loss_fn, params, tokens)
    np.testing.assert_array_equal(new["hidden"], params["hidden"])
    ratios = new["embedding"] / params["embedding"]
    np.testing.assert_allclose(ratios, ratios[0, 0], rtol=1e-5)
    spread = logits(new, tokens)
    size = jnp.sqrt(jnp.mean((spread - spread.mean((0, 1))) ** 2))
    assert 0.05 < size < 0.2
    assert loss_fn(new, tokens) < 1.02 * jnp.log(11)


def test_a_last_kernel_in_a_loop_is_not_made_small():
    def loss_fn(w, x):
        return jnp.mean(jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), x) ** 2)

    with pytest.raises(ValueError, match="stands in a loop"):
        small_output(loss_fn, jnp.eye(4), jnp.ones((8, 4)))
    assert (small_output(loss_fn, jnp.eye(4), jnp.ones((8, 4)), below=0.4) == jnp.eye(4)).all()


@pytest.mark.parametrize(("targets", "made_small"), [(0.1, True), (1.0, False)])
def test_an_output_is_made_small_only_where_that_lowers_the_loss_as_asked(targets, made_small):
    x = jax.random.normal(jax.random.key(0), (256, 8))

    def loss_fn(w, x):
        return jnp.mean((x @ w - targets * x[:, ::-1]) ** 2)

    new = small_output(loss_fn, jnp.eye(8), x, below=0.4)
    assert bool((new != jnp.eye(8)).any()) == made_small
    assert (small_output(loss_fn, jnp.eye(8), x) != jnp.eye(8)).any()
