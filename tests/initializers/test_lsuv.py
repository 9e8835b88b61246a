"""lsuv: unit variance and zero mean in every model, and what it leaves alone."""

import functools
import os
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax.initializers import lsuv
from vanishjax.models import unstack_params

BATCH = jax.random.normal(jax.random.key(0), (128, 6)) ** 2, jnp.arange(128) % 3


def cross_entropy(outputs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


@functools.cache
def linen(**options):
    problem = vj.mlp_problem(
        6, (16,) * 5, 3, activation="sigmoid", key=jax.random.key(1), **options
    )
    return problem.loss_fn, problem.params


def nnx_scanned():
    model = vj.NnxMLP(6, (16,) * 5, 3, activation="sigmoid", scan=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    return lambda s, batch: cross_entropy(nnx.merge(graph, s)(batch[0]), batch[1]), state


def plain():
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        (jax.random.normal(k, shape), jnp.full(shape[1], 3.0))
        for k, shape in zip(keys, [(6, 16), (16, 16), (16, 3)], strict=True)
    ]
    params = [{"w": 5 * w, "b": b} for w, b in params]

    def loss_fn(params, batch):
        h = batch[0]
        for layer in params[:-1]:
            h = jnp.tanh(h @ layer["w"] + layer["b"])
        return cross_entropy(h @ params[-1]["w"] + params[-1]["b"], batch[1])

    return loss_fn, params


def equinox_model():
    model = eqx.nn.MLP(6, 3, 16, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch[0]), batch[1])

    return loss_fn, params


def convolutions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x.reshape(-1, 6, 1, 1) * jnp.ones((1, 1, 6, 1))))
            return nn.Dense(3)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))

    params = Net().init(jax.random.key(0), BATCH[0])["params"]
    return lambda p, batch: cross_entropy(Net().apply({"params": p}, batch[0]), batch[1]), params


MODELS = {
    "linen": linen,
    "nnx-scanned": nnx_scanned,
    "plain": plain,
    "equinox": equinox_model,
    "convolutions": convolutions,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_unit_rms_and_zero_mean(name):
    loss_fn, params = MODELS[name]()
    after = lsuv(loss_fn, params, BATCH)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, params)
    found = vj.probe(loss_fn, after, BATCH)
    assert not found.unmeasured
    np.testing.assert_allclose(found.preactivation_rms, 1, rtol=1e-4)
    # Doing it again changes nothing: the means are zero, the scales one.
    again = lsuv(loss_fn, after, BATCH)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def preactivations(params):
    h, found = BATCH[0], []
    for i in range(5):
        z = h @ params[f"hidden_{i}"]["kernel"] + params[f"hidden_{i}"]["bias"]
        h, found = jax.nn.sigmoid(z), [*found, z]
    return found


@functools.cache
def adjusted(scan):
    """The same network, stacked or not, before and after, layer by layer."""
    loss_fn, _ = linen(scan=scan)
    _, stacked = linen(scan=True)
    before = unstack_params(stacked)
    return before, unstack_params(lsuv(loss_fn, stacked if scan else before, BATCH))


@pytest.mark.parametrize("scan", [True, False])
def test_means_and_directions(scan):
    before, after = adjusted(scan)
    for i, z in enumerate(preactivations(after)):
        np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(z**2)), 1, rtol=1e-5)
        w = np.asarray(after[f"hidden_{i}"]["kernel"], np.float64)
        left, _, right = np.linalg.svd(before[f"hidden_{i}"]["kernel"], full_matrices=False)
        np.testing.assert_allclose(w / np.linalg.norm(w, 2), left @ right, atol=1e-4)


@pytest.mark.parametrize("model", [linen, nnx_scanned])
def test_any_variance(model):
    loss_fn, params = model()
    small = lsuv(loss_fn, params, BATCH, variance=0.04)
    found = vj.probe(loss_fn, small, BATCH)
    np.testing.assert_allclose(found.preactivation_rms, 0.2, rtol=1e-3)


def test_small_variance_keeps_deep_gradients_and_unit_variance_does_not():
    """tanh: each layer hands on 1.17 times the energy at unit variance, 1 + 4/3 v^2 at small v."""
    problem = vj.mlp_problem(6, (64,) * 45, 3, activation="tanh", key=jax.random.key(1))
    unit, small = (
        vj.probe(
            problem.loss_fn,
            lsuv(problem.loss_fn, problem.params, BATCH, variance=variance),
            BATCH,
        )
        for variance in (1.0, 0.1)
    )
    assert unit.sum_log_chi > 6
    assert abs(small.sum_log_chi) < 2


def test_stacked_equals_unrolled():
    (_, apart), (_, together) = adjusted(scan=False), adjusted(scan=True)
    for name in apart:
        for part in ("kernel", "bias"):
            np.testing.assert_allclose(together[name][part], apart[name][part], atol=1e-3)


def test_scale_alone_keeps_directions_and_biases():
    loss_fn, params = linen(scan=False)
    after = lsuv(loss_fn, params, BATCH, centered=False, orthogonal=False)
    for i in range(5):
        was, now = params[f"hidden_{i}"], after[f"hidden_{i}"]
        ratio = np.asarray(now["kernel"] / was["kernel"])
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)
        np.testing.assert_array_equal(now["bias"], was["bias"])
    for z in preactivations(after):
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(z**2)), 1, rtol=1e-5)


def test_a_deep_sigmoid_network_is_cured_by_centering_and_not_without():
    problem = vj.mlp_problem(6, (32,) * 32, 3, activation="sigmoid", key=jax.random.key(1))
    verdict = {
        centered: vj.diagnose(
            problem.loss_fn, lsuv(problem.loss_fn, problem.params, BATCH, centered=centered), BATCH
        )
        for centered in (True, False)
    }
    assert verdict[True].healthy, str(verdict[True])
    assert "mean_collapse" in [finding.rule for finding in verdict[False].findings]


def test_left_alone():
    def loss_fn(params, batch):
        x, labels = batch
        h = jnp.tanh(jnp.tanh(x @ params["tied"]) @ params["tied"])
        h = jnp.tanh(h @ params["zero"]) + h
        return cross_entropy(h @ params["head"]["kernel"] * params["gain"], labels)

    params = {
        "tied": jnp.eye(6) * 3,
        "zero": jnp.zeros((6, 6)),
        "head": {"kernel": jnp.ones((6, 3)) + jnp.eye(6, 3)},
        "gain": jnp.ones(()),
        "unused": jnp.ones((2, 2)),
    }
    after = lsuv(loss_fn, params, BATCH)
    for name in ("tied", "zero", "gain", "unused"):
        np.testing.assert_array_equal(after[name], params[name])
    # No bias beside it: rescaled, not centered.
    assert not np.array_equal(after["head"]["kernel"], params["head"]["kernel"])


def layers_of(sizes, scale=5.0):
    keys = jax.random.split(jax.random.key(3), len(sizes))
    return [
        {"kernel": scale * jax.random.normal(key, (a, b)) / a**0.5, "bias": jnp.ones(b)}
        for key, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def chain(layers, x):
    for layer in layers[:-1]:
        x = jnp.tanh(dense(layer, x))
    return dense(layers[-1], x)


def assert_unit_variance(layers, x):
    for layer in layers:
        out = dense(layer, x)
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(out.std(), 1, rtol=1e-4)
        x = jnp.tanh(out)


def test_twins_are_adjusted_by_the_first_and_what_comes_after_by_both():
    x = jax.random.normal(jax.random.key(0), (256, 8))
    pair = x, 3 + x[::-1] ** 2

    def between(params, pair):
        one, other = (jnp.tanh(chain(params["twin"], x)) for x in pair)
        return jnp.abs(one - other)

    def loss_fn(params, pair):
        return jnp.mean(dense(params["head"], between(params, pair)) ** 2)

    params = {"twin": layers_of([8, 16, 16, 6]), "head": layers_of([6, 1])[0]}
    new = lsuv(loss_fn, params, pair)
    assert_unit_variance(new["twin"], pair[0])
    assert_unit_variance([new["head"]], between(new, pair))


def backward(u):
    return lambda z: jax.grad(u)(z)[1] - jax.hessian(u)(z)[0, 0]


def forward(u):
    def slope(f, direction):
        return lambda z: jax.jvp(f, (z,), (jnp.array(direction),))[1]

    x, t = [1.0, 0.0], [0.0, 1.0]
    return lambda z: slope(u, t)(z) - slope(slope(u, x), x)(z)


@pytest.mark.parametrize("residual", [backward, forward])
def test_the_network_of_a_differential_equation_is_adjusted_where_it_is_evaluated(residual):
    points = 2 * jax.random.uniform(jax.random.key(0), (128, 2)) - 1

    def loss_fn(layers, points):
        inside = jax.vmap(residual(lambda z: chain(layers, z)[0]))(points)
        return jnp.mean((jax.vmap(lambda z: chain(layers, z)[0])(points) - 1) ** 2 + inside**2)

    layers = layers_of([2, 16, 16, 1])
    new = lsuv(loss_fn, layers, points)
    assert_unit_variance(new[:-1], points)
    assert not np.array_equal(new[-1]["kernel"], layers[-1]["kernel"])


def test_a_decoder_that_is_the_encoder_turned_round_goes_with_it():
    x = jax.random.normal(jax.random.key(0), (256, 8))

    def loss_fn(params, x):
        return jnp.mean((jnp.tanh(dense(params, x)) @ params["kernel"].T - x) ** 2)

    (params,) = layers_of([8, 4], 30.0)
    new = lsuv(loss_fn, params, x)
    assert_unit_variance([new], x)
    assert loss_fn(new, x) < 1


def test_kernels_of_another_size_can_be_left_to_it():
    """Only what they put out is centered."""
    x = 2 + jax.random.normal(jax.random.key(0), (256, 8))
    layers = layers_of([8, 16, 4])

    def loss_fn(layers, x):
        return jnp.mean(chain(layers, x) ** 2)

    new = lsuv(loss_fn, layers, x, orthogonal=False, variance=None)
    for before, after in zip(layers, new, strict=True):
        np.testing.assert_array_equal(after["kernel"], before["kernel"])
        out = dense(after, x)
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
        x = jnp.tanh(out)


def test_what_carries_only_rounding_errors_is_not_blown_up():
    """All inputs alike: there is no variance to bring to one."""
    loss_fn, params = linen(scan=False)
    same = jnp.ones((128, 6)), BATCH[1]
    after = lsuv(loss_fn, params, same)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(after)) < 100


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_types_stay(dtype):
    loss_fn, params = linen(param_dtype=dtype, dtype=dtype)
    after = lsuv(loss_fn, params, (BATCH[0].astype(dtype), BATCH[1]))
    assert all(x.dtype == dtype for x in jax.tree.leaves(after))
    np.testing.assert_allclose(
        vj.probe(loss_fn, after, (BATCH[0].astype(dtype), BATCH[1])).preactivation_rms, 1, rtol=0.05
    )


def test_bad_input():
    with pytest.raises(ValueError, match="w: expected a real floating-point leaf"):
        lsuv(lambda p, b: jnp.sum(p["w"] * b), {"w": jnp.arange(3)}, jnp.ones(3))
    with pytest.raises(ValueError, match="must return a scalar"):
        lsuv(lambda p, b: p["w"] * b, {"w": jnp.ones(3)}, jnp.ones(3))
    with pytest.raises(ValueError, match="variance must be positive, got 0"):
        lsuv(lambda p, b: jnp.sum(p["w"] * b), {"w": jnp.ones(3)}, jnp.ones(3), variance=0)


MANY_STACKS = """
import jax
from benchmarks.real_networks import initial
from benchmarks.real_zoo import held_out_networks
from vanishjax.initializers import lsuv

(network,) = (one for one in held_out_networks() if one.name == "no skips 20")
batch = jax.tree.map(lambda x: x[:32], network.task().train)
jax.block_until_ready(lsuv(network.loss, initial(network)(0), batch))
print("done")
"""


def test_stacks_do_not_wait_for_each_other():
    """Batched decompositions of a transformer's stacks never ended on two cores."""
    command = [sys.executable, "-c", MANY_STACKS]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout == "done\n", done.stderr


class WeightNormalized(nn.Module):
    """Kernels that are normalized, and get their size from gains beside them."""

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = jnp.tanh(nn.WeightNorm(nn.Dense(16))(x))
        return nn.Dense(3)(x)


def own_gains(params, x, *, gained=True):
    preactivations = []
    for layer in params:
        kernel = layer["w"] / jnp.linalg.norm(layer["w"], axis=0)
        x = x @ (kernel * layer["g"] if gained else kernel) + layer["b"]
        preactivations.append(x)
        x = jnp.tanh(x)
    return preactivations


def gained_params():
    sizes = [(6, 16), (16, 16), (16, 16), (16, 3)]
    return [
        {
            "w": jax.random.normal(jax.random.key(i), size),
            "g": jnp.full(size[1], 0.1),
            "b": jnp.full(size[1], 0.3),
        }
        for i, size in enumerate(sizes)
    ]


def test_a_normalized_kernel_gets_its_size_by_its_gain():
    def loss_fn(params, batch):
        return cross_entropy(own_gains(params, batch[0])[-1], batch[1])

    params = gained_params()
    new = lsuv(loss_fn, params, BATCH)
    for z in own_gains(new, BATCH[0]):
        assert float(z.std()) == pytest.approx(1, rel=1e-3)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    # The gains of a layer stay alike: only how large they are was at fault.
    assert all(float(jnp.ptp(layer["g"])) < 1e-5 for layer in new)

    def scanned_loss(tree, batch):
        h = jnp.tanh(own_gains([tree["first"]], batch[0])[0])

        def body(h, layer):
            return jnp.tanh(own_gains([layer], h)[0]), None

        h, _ = jax.lax.scan(body, h, tree["stack"])
        return cross_entropy(own_gains([tree["last"]], h)[0], batch[1])

    first, *hidden, last = params
    tree = {"first": first, "stack": jax.tree.map(lambda *x: jnp.stack(x), *hidden), "last": last}
    stacked = lsuv(scanned_loss, tree, BATCH)
    for i, layer in enumerate(new[1:-1]):
        np.testing.assert_allclose(stacked["stack"]["g"][i], layer["g"], rtol=1e-4)


def test_flax_weight_norm_gets_unit_variance():
    model = WeightNormalized()
    variables = model.init(jax.random.key(0), BATCH[0])
    params = jax.tree.map(lambda x: 0.1 * x if x.ndim == 1 else x, variables["params"])

    def loss_fn(params, batch):
        return cross_entropy(model.apply({"params": params}, batch[0]), batch[1])

    found = vj.probe(loss_fn, lsuv(loss_fn, params, BATCH), BATCH)
    np.testing.assert_allclose(found.preactivation_rms, 1, rtol=1e-3)


def test_a_kernel_that_nothing_can_size_is_left_alone():
    def loss_fn(params, batch):
        return cross_entropy(10 * own_gains(params, batch[0], gained=False)[-1], batch[1])

    params = gained_params()
    new = lsuv(loss_fn, params, BATCH)
    for before, after in zip(params, new, strict=True):
        np.testing.assert_array_equal(before["w"], after["w"])
        np.testing.assert_array_equal(before["b"], after["b"])


def test_a_normalized_kernel_beside_what_has_no_forward_derivative():
    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g,))

    def loss_fn(params, batch):
        return cross_entropy(own_gains(params, same(batch[0]))[-1], batch[1])

    new = lsuv(loss_fn, gained_params(), BATCH)
    assert float(own_gains(new, BATCH[0])[-1].std()) == pytest.approx(1, rel=1e-3)


class Latents(nn.Module):
    """Latents that are parameters look at the data: positions that no input tells apart."""

    @nn.compact
    def __call__(self, x):
        latents = self.param("latents", nn.initializers.normal(1.0), (5, 16))
        h = jnp.broadcast_to(latents, (len(x), 5, 16))
        h = h + nn.MultiHeadDotProductAttention(2, name="cross")(h, x[..., None])
        h = h + nn.MultiHeadDotProductAttention(2, name="own")(h, h)
        return nn.Dense(3, name="out")(h.mean(axis=1))


def test_positions_that_are_parameters_share_a_bias():
    model = Latents()
    params = model.init(jax.random.key(0), BATCH[0])["params"]

    def loss_fn(params, batch):
        return cross_entropy(model.apply({"params": params}, batch[0]), batch[1])

    new = lsuv(loss_fn, params, BATCH)
    _, seen = model.apply({"params": new}, BATCH[0], capture_intermediates=True)
    own = seen["intermediates"]["own"]
    for name in ("query", "key", "value"):
        (y,) = own[name]["__call__"]
        np.testing.assert_allclose(y.mean(axis=(0, 1)), 0, atol=1e-4)
        assert float(vj.numerics.rms(y)) == pytest.approx(1, rel=1e-3)
