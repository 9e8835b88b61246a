"""shaped: every kind of chain starts as theory says, and what isn't one is refused by its path."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax import theory
from vanishjax.initializers import delta_orthogonal, shaped
from vanishjax.models import unstack_params

BATCH = jax.random.normal(jax.random.key(0), (128, 6)) ** 2, jnp.arange(128) % 3
WIDTH, DEPTH = 16, 5


def cross_entropy(outputs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


@functools.cache
def linen(**options):
    problem = vj.mlp_problem(
        6, (WIDTH,) * DEPTH, 3, **{"activation": "sigmoid", "key": jax.random.key(1)} | options
    )
    return problem.loss_fn, problem.params


def nnx_scanned():
    model = vj.NnxMLP(6, (WIDTH,) * DEPTH, 3, activation="sigmoid", scan=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    return lambda s, batch: cross_entropy(nnx.merge(graph, s)(batch[0]), batch[1]), state


def plain(between=lambda h, z: jnp.tanh(z)):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(6, 16), (16, 16), (16, 16), (16, 3)]
    params = [
        {"w": 5 * jax.random.normal(k, shape), "b": jnp.full(shape[1], 3.0)}
        for k, shape in zip(keys, shapes, strict=True)
    ]

    def loss_fn(params, batch):
        h = jnp.tanh(batch[0] @ params[0]["w"] + params[0]["b"])
        for layer in params[1:-1]:
            h = between(h, h @ layer["w"] + layer["b"])
        return cross_entropy(h @ params[-1]["w"] + params[-1]["b"], batch[1])

    return loss_fn, params


def equinox_model():
    model = eqx.nn.MLP(6, 3, 16, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch[0]), batch[1])

    return loss_fn, params


class Convolutions(nn.Module):
    """Three by three, on images of 6 x 6 with two channels."""

    depth: int = 3
    padding: str = "SAME"
    pool: bool = False

    @nn.compact
    def __call__(self, x):
        x = (x[:, :, None, None] * jnp.linspace(1, 2, 12).reshape(6, 2)).reshape(-1, 6, 6, 2)
        for _ in range(self.depth):
            x = nn.tanh(nn.Conv(8, (3, 3), padding=self.padding)(x))
        x = x.mean((1, 2)) if self.pool else x.reshape(x.shape[0], -1)
        return nn.Dense(3)(x)


def of_module(module):
    params = module.init(jax.random.key(0), BATCH[0])["params"]
    return lambda p, batch: cross_entropy(module.apply({"params": p}, batch[0]), batch[1]), params


# Model, activation, depth.
MODELS = {
    "linen": (linen, "sigmoid", DEPTH),
    "nnx-scanned": (nnx_scanned, "sigmoid", DEPTH),
    "plain": (plain, "tanh", 3),
    "equinox": (equinox_model, "relu", 3),
    "convolutions": (lambda: of_module(Convolutions()), "tanh", 3),
    "convolutions-pooled": (
        lambda: of_module(Convolutions(padding="CIRCULAR", pool=True)),
        "tanh",
        3,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_starts_where_theory_says(name):
    make, activation, depth = MODELS[name]
    loss_fn, params = make()
    after = shaped(loss_fn, params, BATCH)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, params)
    alpha, beta, delta, gamma = theory.shape(activation, depth)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(after)
    }
    layers = vj.find_layers(params, loss_fn, BATCH)
    found = []
    for pair in vj.layers.dense_layers(layers, after):
        paths = [leaf.path for leaf in (pair.kernel, pair.bias)]
        kernels, biases = pair.matrices(arrays[paths[0]]), pair.vectors(arrays[paths[1]])
        found += zip(pair.kernel_places, kernels, biases, strict=True)
    (_, first, first_bias), *hidden, (_, last, last_bias) = sorted(found, key=lambda x: x[0])
    assert len(hidden) == depth - 1
    for _, kernel, bias in hidden:
        lines = kernel[np.any(kernel != 0, axis=1)]  # of convolutions the core
        gram = lines @ lines.T / (alpha * gamma) ** 2
        np.testing.assert_allclose(gram, np.eye(len(lines)), atol=1e-4)
        np.testing.assert_allclose(bias, beta + delta * kernel.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last_bias, delta * last.sum(0), rtol=1e-4, atol=1e-4)
    assert np.sqrt(np.mean(last**2) * len(last)) == pytest.approx(abs(gamma), rel=1e-4)
    if "convolutions" not in name:
        z = np.asarray(BATCH[0]) @ first + first_bias
        np.testing.assert_allclose(z.mean(0), beta, rtol=1e-4)
        assert np.sqrt(np.mean((z - beta) ** 2)) == pytest.approx(abs(alpha), rel=1e-4)
    if name not in ("linen", "equinox", "convolutions"):
        return
    # Doing it again changes nothing.
    again = shaped(loss_fn, after, BATCH)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4 * np.abs(b).max())


def test_stacked_equals_unrolled():
    loss_fn, params = linen()
    stacked = unstack_params(shaped(loss_fn, params, BATCH))
    unrolled_loss, unrolled = linen(scan=False)
    del unrolled
    apart = shaped(unrolled_loss, unstack_params(params), BATCH)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), stacked, apart
    )


def test_layers_of_several_widths_and_activations():
    shapes = [(6, 24), (24, 12), (12, 32), (32, 3)]
    keys = jax.random.split(jax.random.key(0), 4)
    params = [
        {"w": jax.random.normal(k, s), "b": jnp.zeros(s[1])}
        for k, s in zip(keys, shapes, strict=True)
    ]
    functions = (jnp.tanh, jax.nn.gelu, jax.nn.sigmoid)

    def loss_fn(params, batch):
        h = batch[0]
        for f, layer in zip(functions, params[:-1], strict=True):
            h = f(h @ layer["w"] + layer["b"])
        return cross_entropy(h @ params[-1]["w"] + params[-1]["b"], batch[1])

    after = shaped(loss_fn, params, BATCH)
    numbers = [theory.shape(f, 3) for f in functions]
    for place in (1, 2):
        w = np.asarray(after[place]["w"])
        gain = np.linalg.norm(w) / min(w.shape) ** 0.5
        stretch = max(1.0, w.shape[1] / w.shape[0]) ** 0.5
        expected = stretch * abs(numbers[place].input_scale * numbers[place - 1].output_scale)
        assert gain == pytest.approx(expected, rel=1e-4)
        bias = numbers[place].input_shift + numbers[place - 1].output_shift * w.sum(0)
        np.testing.assert_allclose(after[place]["b"], bias, rtol=1e-4, atol=1e-4)


def start(activation, depth, width, method):
    """A wide network's shaped parameters, the numbers, and inputs of unit mean square."""
    problem = vj.mlp_problem(
        width, (width,) * depth, 3, activation=activation, scan=True, key=jax.random.key(3)
    )
    x = jax.random.normal(jax.random.key(4), (64, width))
    batch = x, jnp.arange(64) % 3
    return shaped(problem.loss_fn, problem.params, batch, method=method), batch[0]


@pytest.mark.parametrize(("activation", "method"), [("sigmoid", "dks"), ("tanh", "tat")])
def test_variance_and_correlations_of_a_wide_network_follow_the_maps(activation, method):
    depth, width = 12, 128
    params, x = start(activation, depth, width, method)
    f = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}[activation]
    numbers = theory.shape(activation, depth, method=method)

    def f_hat(z):
        return numbers.output_scale * (
            f(numbers.input_scale * z + numbers.input_shift) + numbers.output_shift
        )

    # The first kernel is square and orthogonal: correlations of inputs are those of its outputs.
    x = x - x.mean(0)
    near = (0.8 * x[:32] + 0.6 * x[32:])[:, None]  # correlation .8 with the first half
    inputs = jnp.concatenate([x[:32, None], near], 1)

    @jax.jit
    def measured(params, h):
        first, stack = params["hidden_0"], params["hidden_stack"]
        z = h @ first["kernel"]
        z = z / jnp.sqrt(jnp.mean(z**2)) * abs(numbers.input_scale) + numbers.input_shift

        def layer(z, p):
            return f(z) @ p["kernel"] + p["bias"], z

        _, z = jax.lax.scan(layer, z, stack)
        z = (z - numbers.input_shift) / abs(numbers.input_scale)
        q = jnp.mean(z**2, axis=(1, 2, 3))
        return q, jnp.mean(z[:, :, 0] * z[:, :, 1], axis=(1, 2)) / q

    q, c = measured(params, inputs)
    expected = [float(c[0])]
    for _ in range(depth - 2):
        expected.append(theory.correlation_map(f_hat, expected[-1], 1.0, 1.0, 0.0))
    # The variance map is neutral: a layer's error, about 1 / width, adds up to that of the last.
    np.testing.assert_allclose(q, 1, atol=depth / width)
    np.testing.assert_allclose(c, expected, atol=0.25 * depth / width)


def test_the_type_is_kept():
    problem = vj.mlp_problem(6, (16,) * 4, 3, activation="tanh", param_dtype=jnp.bfloat16)
    batch = BATCH[0].astype(jnp.bfloat16), BATCH[1]
    after = shaped(problem.loss_fn, problem.params, batch)
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}


def test_a_head_of_zeros_stays_and_unused_parameters_stay():
    loss_fn, params = linen()
    params = params | {"output": jax.tree.map(jnp.zeros_like, params["output"])}
    after = shaped(loss_fn, params | {"unused": {"kernel": jnp.ones((2, 2))}}, BATCH)
    assert not np.any(after["output"]["kernel"])
    np.testing.assert_array_equal(after["unused"]["kernel"], 1)


def test_an_activation_of_ones_own():
    def own(x):
        return jnp.tanh(x) + 0.1 * x

    loss_fn, params = linen(activation=own)
    with pytest.raises(ValueError, match="activation behind it isn't a known one"):
        shaped(loss_fn, params, BATCH)
    after = shaped(loss_fn, params, BATCH, activation=own)
    w = after["hidden_stack"]["kernel"][0]
    numbers = theory.shape(own, DEPTH)
    gain = numbers.input_scale * numbers.output_scale
    np.testing.assert_allclose(w @ w.T, gain**2 * np.eye(WIDTH), atol=1e-4)
    with pytest.raises(ValueError, match="the activation behind it isn't tanh"):
        shaped(loss_fn, params, BATCH, activation="tanh")


class Odd(nn.Module):
    """A chain with one thing too many."""

    kind: str

    @nn.compact
    def __call__(self, x):
        kind = self.kind
        for i in range(3):
            dense = nn.Dense(16, use_bias=kind != "bias", name=f"layer_{i}")
            z = dense(x)
            if kind == "norm" and i == 1:
                z = nn.LayerNorm(name="norm")(z)
            if kind == "bare norm" and i == 1:
                z = (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True)
            if kind == "scale" and i == 1:
                z = 2 * z
            y = nn.glu(jnp.concatenate([z, z], -1)) if kind == "gate" else nn.tanh(z)
            if kind == "norm behind" and i == 1:
                y = y / jnp.sqrt(jnp.mean(y**2, -1, keepdims=True))
            x = x + y if kind == "residual" and i == 1 else y
            x = dense(x) if kind == "tied" and i == 1 else x
            x = x.reshape(-1, 8, 2).mean(-1) if kind == "pooling" and i == 1 else x
        return nn.Dense(3, name="head")(x)


ODD = {
    "bias": "layer_0/kernel: no bias beside it",
    "norm": "norm/(bias|scale): neither a kernel nor the bias of one",
    "bare norm": "layer_1/kernel: more than a bias lies between",
    "scale": "layer_1/kernel: (more than a bias|the activation behind it isn't a known one)",
    "gate": "layer_0/kernel: (the activation behind it|no elementwise activation)",
    "norm behind": "layer_2/kernel: what it takes in isn't what the activation behind layer_1",
    "residual": "layer_2/kernel: what it takes in isn't what .* layer_1/kernel puts out",
    "tied": "layer_1/kernel: the data meets it more than once",
    "pooling": "layer_2/kernel: what it takes in isn't",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_chain_is_refused_by_its_path(kind):
    with pytest.raises(ValueError, match=f"^{ODD[kind]}"):
        shaped(*of_module(Odd(kind)), BATCH)


def test_other_refusals():
    layer = {"w": jnp.ones((3, 3)), "b": jnp.zeros(3)}
    for residual in ("scaled", "rezero"):
        with pytest.raises(ValueError, match=r"^hidden|gain"):
            shaped(*linen(residual=residual), BATCH)
    with pytest.raises(ValueError, match="two kernels at least"):
        shaped(
            lambda p, x: jnp.mean(x[0] @ p["w"] + p["b"]), layer | {"w": jnp.ones((6, 3))}, BATCH
        )
    with pytest.raises(ValueError, match="hard_tanh has no DKS shape at depth 5"):
        shaped(*linen(activation="hard_tanh"), BATCH)
    with pytest.raises(ValueError, match="selu has no TAT shape at depth 5"):
        shaped(*linen(activation="selu"), BATCH, method="tat")
    with pytest.raises(ValueError, match=r"hidden_stack/kernel\[0\]: not of full rank"):
        shaped(*linen(kernel_init=nn.initializers.ones), BATCH)
    with pytest.raises(ValueError, match="hidden_0/kernel: what it puts out is the same"):
        shaped(*linen(), (jnp.ones((8, 6)), jnp.zeros(8, int)))

    def looked_up(params, batch):
        h = jnp.tanh(params["table"]["w"][batch[1]] + params["table"]["b"])
        return jnp.mean(h @ params["out"]["w"] + params["out"]["b"])

    with pytest.raises(ValueError, match="table/w: a lookup"):
        shaped(looked_up, {"table": layer, "out": layer}, BATCH)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 8, 12), (2, 4, 12, 8), (8, 8)])
def test_delta_orthogonal_keeps_what_lies_in_the_middle(shape):
    kernel = np.asarray(delta_orthogonal(jax.random.key(0), shape, gain=2.0))
    *positions, inputs, outputs = shape
    middle = kernel[tuple((n - 1) // 2 for n in positions)]
    size = 2 * max(1.0, outputs / inputs) ** 0.5
    gram = middle @ middle.T if inputs <= outputs else middle.T @ middle
    np.testing.assert_allclose(gram, size**2 * np.eye(min(inputs, outputs)), atol=1e-5)
    assert np.count_nonzero(kernel) == middle.size
    assert delta_orthogonal(jax.random.key(0), shape, jnp.bfloat16).dtype == jnp.bfloat16


def test_delta_orthogonal_is_an_initializer():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    module = nn.Conv(8, (3, 3), kernel_init=delta_orthogonal)
    y, _ = module.init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    with pytest.raises(ValueError, match="needs a shape"):
        delta_orthogonal(jax.random.key(0), (3,))


def test_a_thousand_softplus_layers_start_alike_for_inputs_of_any_size():
    """Before the first kernel has its size, inputs larger than they should be overflow in them."""
    problem = vj.mlp_problem(8, (16,) * 1000, 4, activation="softplus")
    for size in (0.1, 4.0):
        batch = size * jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
        params = shaped(problem, batch)
        gradients = vj.probe(problem.loss_fn, params, batch).gradient_rms[1:-1]
        assert gradients.max() < 16 * gradients.min()
