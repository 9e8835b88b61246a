"""The probe: against brute force, against theory, on every kind of model, and on bad input."""

import functools
import inspect
import json
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from tests import zoo
from vanishjax import _jaxpr, numerics, theory
from vanishjax._jaxpr.activation import _known_slopes
from vanishjax.activations import ACTIVATIONS
from vanishjax.compilation import jit_once
from vanishjax.health import measuring, probe

KEY = jax.random.key(0)


def data(batch=64, features=8, classes=4, seed=1):
    x = jax.random.normal(jax.random.key(seed), (batch, features))
    return x, jnp.arange(batch) % classes


def chain(widths, activation=jnp.tanh, seed=0, dtype=jnp.float32):
    """A plain network, as a loss of parameters and of perturbations of each pre-activation."""
    keys = jax.random.split(jax.random.key(seed), len(widths))
    params = [
        {"w": (jax.random.normal(k, (a, b)) / a**0.5).astype(dtype), "b": jnp.full(b, 0.1, dtype)}
        for k, a, b in zip(keys, widths, widths[1:], strict=False)
    ]

    def forward(params, x, shifts=None):
        outputs = []
        for i, layer in enumerate(params):
            z = x @ layer["w"] + layer["b"]
            z = z if shifts is None else z + shifts[i]
            outputs.append(z)
            x = z if i == len(params) - 1 else activation(z)
        return outputs

    def loss_fn(params, batch, shifts=None):
        return vj.losses.cross_entropy(forward(params, batch[0], shifts)[-1], batch[1])

    return params, loss_fn, forward


@pytest.fixture(scope="module")
def small():
    """A small network: its parameters, its loss, what each layer puts out, and the probe."""
    params, loss_fn, forward = chain((8, 16, 12, 20, 4))
    outputs = jax.jit(forward)(params, data()[0])
    return params, loss_fn, outputs, probe(loss_fn, params, data())


def test_equals_brute_force_on_a_small_network(small):
    params, loss_fn, outputs, found = small
    batch = data()
    shifts = [jnp.zeros_like(z) for z in outputs]
    cotangents = jax.jit(jax.grad(loss_fn, argnums=2))(params, batch, shifts)
    norms = np.array([np.linalg.norm(c) for c in cotangents])
    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(params, batch)

    assert found.names == ("0/w", "1/w", "2/w", "3/w")
    assert found.is_chain.all()
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(found.log_chi[:-1], 2 * np.log(norms[:-1] / norms[1:]), atol=1e-5)
    assert found.log_chi[-1] == 0
    np.testing.assert_allclose(found.sum_log_chi, 2 * np.log(norms[0] / norms[-1]), atol=1e-5)
    rms = [np.sqrt(np.mean(np.square(c))) for c in cotangents]
    np.testing.assert_allclose(found.backward_rms, rms, rtol=1e-5)
    rms = [np.sqrt(np.mean(np.square(g["w"]))) for g in gradients]
    np.testing.assert_allclose(found.gradient_rms, rms, rtol=1e-5)
    np.testing.assert_allclose(found.log_gradient_rms, np.log(rms), atol=1e-5)
    rms = [np.sqrt(np.mean(np.square(z))) for z in outputs]
    np.testing.assert_allclose(found.preactivation_rms, rms, rtol=1e-6)
    assert found.widths.tolist() == [16, 12, 20, 4]
    assert found.batch_size == 64


def test_features_equal_numpy(small):
    _, _, outputs, found = small
    for i, z in enumerate(outputs):
        h = np.asarray(z if i == 3 else np.tanh(z), np.float64)
        centered = h - h.mean(0)
        values = np.linalg.eigvalsh(centered.T @ centered)
        np.testing.assert_allclose(
            found.centered_energy[i], (centered**2).sum() / (h**2).sum(), rtol=1e-4
        )
        rank = values.sum() ** 2 / (values**2).sum()
        np.testing.assert_allclose(found.effective_rank[i], rank, rtol=1e-4)


def test_dead_and_saturated_units_are_counted():
    params, loss_fn, _ = chain((8, 10, 4), jax.nn.relu)
    params[0]["b"] = jnp.where(jnp.arange(10) < 3, -100.0, 0.1)
    assert probe(loss_fn, params, data()).dead_fraction.tolist() == pytest.approx([0.3, 0.0])

    params, loss_fn, forward = chain((8, 10, 4), jax.nn.sigmoid)
    params[0]["w"] *= 10
    found = probe(loss_fn, params, data())
    z = np.asarray(jax.jit(forward)(params, data()[0])[0], np.float64)
    s = 1 / (1 + np.exp(-z))
    assert found.saturated_fraction[0] == pytest.approx(np.mean(s * (1 - s) < 0.0125), abs=1e-3)
    assert found.saturated_fraction[0] > 0.5
    assert found.saturated_fraction[1] == found.dead_fraction[1] == 0  # no activation


@pytest.mark.parametrize(("activation", "scale"), [("selu", 1.0), ("tanh", 1.76)])
def test_sum_log_chi_is_theorys_at_depth_200(activation, scale):
    problem = vj.mlp_problem(
        64,
        (128,) * 200,
        10,
        activation=activation,
        kernel_init=nn.initializers.variance_scaling(scale, "fan_in", "normal"),
    )
    found = probe(problem.loss_fn, problem.params, data(128, 64, 10))
    expected = theory.sum_log_chi(activation, scale, 0.0, 200)
    assert found.sum_log_chi == pytest.approx(expected, rel=0.1)
    assert found.log_chi.sum() == pytest.approx(found.sum_log_chi, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "scale"), [("relu", 1.0), ("tanh", 1 / 3)])
def test_sum_log_chi_is_theorys_at_width_256(activation, scale):
    problem = vj.mlp_problem(
        64,
        (256,) * 80,
        10,
        activation=activation,
        kernel_init=nn.initializers.variance_scaling(scale, "fan_in", "normal"),
    )
    found = probe(problem.loss_fn, problem.params, data(64, 64, 10))
    assert found.sum_log_chi == pytest.approx(
        theory.sum_log_chi(activation, scale, 0.0, 80), rel=0.03
    )


def counted(monkeypatch):
    """Counts the looks in which bottlenecks normalize."""
    looks, look = [], measuring._normalizing
    monkeypatch.setattr(measuring, "_normalizing", lambda *a: (looks.append(1), look(*a))[1])
    return looks


def test_depth_1000_where_every_gradient_is_zero(monkeypatch):
    looks = counted(monkeypatch)
    problem = vj.mlp_problem(8, (32,) * 1000, 4, activation="sigmoid")
    found = probe(problem.loss_fn, problem.params, data())
    assert len(looks) == 1
    assert np.isfinite(found.log_chi).all()
    assert (found.gradient_rms[:900] == 0).all()
    assert np.isfinite(found.log_gradient_rms).all()
    assert found.sum_log_chi == pytest.approx(theory.sum_log_chi("sigmoid", 1, 0, 1000), rel=0.1)
    assert found.log_gradient_rms[0] < -1300


def test_the_losss_scale_changes_nothing_but_the_gradients():
    params, loss_fn, _ = chain((8, 16, 16, 4))

    def times(factor):
        return probe(scaled, params, (*data(), jnp.float32(factor)))

    def scaled(params, batch):
        return batch[2] * loss_fn(params, batch)

    one = times(1.0)
    for factor in (1e-6, 1e6):
        other = times(factor)
        np.testing.assert_allclose(other.log_chi, one.log_chi, atol=1e-4)
        np.testing.assert_allclose(other.gradient_rms, factor * one.gradient_rms, rtol=1e-4)
        np.testing.assert_array_equal(other.effective_rank, one.effective_rank)


def test_unrolled_scanned_linen_and_nnx_are_one():
    batch = data()
    arguments = {"activation": "tanh", "key": KEY}
    scanned = vj.mlp_problem(8, (16,) * 5, 4, scan=True, **arguments)
    model = vj.MLP((16,) * 5, 4, activation="tanh")
    params = vj.models.unstack_params(scanned.params)

    def unrolled(params, batch):
        return vj.losses.cross_entropy(model.apply({"params": params}, batch[0]), batch[1])

    one, other = probe(scanned.loss_fn, scanned.params, batch), probe(unrolled, params, batch)
    assert one.names[2] == "hidden_stack/kernel[1]"
    assert other.names[2] == "hidden_2/kernel"
    for field in ("log_chi", "gradient_rms", "preactivation_rms", "effective_rank", "is_chain"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-4, atol=1e-5)


def test_a_residual_network_is_tapped_at_its_sums():
    problem = vj.mlp_problem(8, (16,) * 6, 4, activation="tanh", residual="scaled")
    batch = data()
    found = probe(problem.loss_fn, problem.params, batch)
    params = vj.models.unstack_params(problem.params)

    def stream(params, shifts):
        """The network by hand, with a perturbation of every tapped value."""
        z = batch[0] @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"] + shifts[0]
        h = jnp.tanh(z) + shifts[1]
        for i in range(1, 6):
            layer = params[f"hidden_{i}"]
            h = h + 5**-0.5 * jnp.tanh(h @ layer["kernel"] + layer["bias"]) + shifts[i + 1]
        logits = h @ params["output"]["kernel"] + params["output"]["bias"] + shifts[7]
        return vj.losses.cross_entropy(logits, batch[1])

    shifts = [jnp.zeros([64, 16])] * 7 + [jnp.zeros([64, 4])]
    loss, cotangents = jax.jit(jax.value_and_grad(stream, 1))(params, shifts)
    np.testing.assert_allclose(loss, found.loss, rtol=1e-6)
    norms = [np.linalg.norm(c) for c in cotangents]
    # The first layer and the output are a chain; each branch counts as the block it belongs to.
    ends = np.log([norms[0], *norms[1:6], norms[7]])
    assert found.is_chain.tolist() == [True] + [False] * 5 + [True]
    np.testing.assert_allclose(found.log_chi[:-1], 2 * (ends[:-1] - ends[1:]), atol=1e-4)


# One of several alike is enough: each takes seconds to compile. Of four frameworks' chains of
# dense layers linen's is left.
ALIKE = """
    conv_batch_norm_inference equinox_mlp gru_unrolled haiku_gru haiku_mlp linen_scan_last_axis
    linen_scan_remat lstm_scanned lstm_unrolled nnx_list scan_last_axis scan_long scan_of_one
    scan_reverse tied_weight"""
MODELS = [
    name
    for name, make in vars(zoo).items()
    if getattr(make, "__annotations__", {}).get("return") in ("Model", zoo.Model)
    and not inspect.signature(make).parameters
    and name not in {"while_loop", *ALIKE.split()}
]


@functools.cache
def probed(name):
    model = getattr(zoo, name)()
    return model, probe(model.loss_fn, model.params, model.batch)


@pytest.mark.filterwarnings("ignore::vanishjax.LayerOrderWarning")
@pytest.mark.parametrize("name", MODELS)
def test_any_model_is_probed(name):
    model, found = probed(name)

    def loss_fn(params):
        return jnp.asarray(jax.tree.leaves(model.loss_fn(params, model.batch))[0])

    # Compiled like the probe's: 16-bit sums depend on it.
    loss, gradients = jit_once(jax.value_and_grad(loss_fn))(model.params)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    layers = found.parameters.layers
    squares, sizes = [], []
    for leaf, x in zip(layers.leaves, jax.tree.leaves(gradients), strict=True):
        square = np.square(np.asarray(x, np.float64))
        squares += np.ravel(square.sum(leaf.inner_axes)).tolist()
        sizes += [np.prod([x.shape[axis] for axis in leaf.inner_axes])] * math.prod(leaf.stack)
    norms = np.sqrt(squares)[list(layers.order)]
    sizes = np.array(sizes)[list(layers.order)]
    # A bias before a normalization has no gradient but rounding.
    rounding = 1e-6 * norms.max()
    np.testing.assert_allclose(found.parameters.rms, norms / sizes**0.5, rtol=1e-4, atol=rounding)
    # The logarithms that the taps carry agree with plain gradients where those are normal.
    plain = found.gradient_rms > rounding
    np.testing.assert_allclose(
        found.log_gradient_rms[plain], np.log(found.gradient_rms[plain]), atol=1e-3
    )
    kernels = {one.rpartition("@")[0] or one for one in found.names}
    assert kernels <= {*layers.names, *(leaf.path for leaf in layers.leaves)}
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_kernel_used_in_every_time_step_is_named_by_number():
    names = probed("scan_over_time")[1].names
    assert names[:4] == ("z@0", "h@0", "z@1", "h@1")


def test_what_is_hidden_is_said():
    assert probed("custom_rules")[1].unmeasured == ("a", "c")


def test_16_bit_networks():
    params, loss_fn, _ = chain((8, 32, 32, 4))
    wide = probe(loss_fn, params, data())
    for dtype in (jnp.bfloat16, jnp.float16):
        params, loss_fn, _ = chain((8, 32, 32, 4), dtype=dtype)
        found = probe(loss_fn, params, (data()[0].astype(dtype), data()[1]))
        np.testing.assert_allclose(found.log_chi, wide.log_chi, atol=0.1)
        assert set(found.dtypes) == {jnp.dtype(dtype).name}


def test_float16_gradients_that_underflow_have_a_logarithm():
    params, loss_fn, _ = chain((8, 32, 32, 4), dtype=jnp.float16)
    x, labels = data()

    def scaled(params, batch):
        return batch[2] * loss_fn(params, batch)

    tiny, usual = (
        probe(scaled, params, (x.astype(jnp.float16), labels, jnp.float32(scale)))
        for scale in (1e-9, 1.0)
    )
    assert (tiny.gradient_rms == 0).any()
    assert tiny.sum_log_chi == pytest.approx(usual.sum_log_chi, abs=0.5)


def test_a_gain_of_zero_alone_needs_no_second_look(monkeypatch):
    """Unless the rest may have underflowed."""
    looks = counted(monkeypatch)
    key = jax.random.key(0)
    params = {
        "in": jax.random.normal(key, (8, 16)),
        "branch": jax.random.normal(key, (16, 16)) / 4,
        "gain": jnp.zeros(()),
        "out": jax.random.normal(key, (16, 4)) / 4,
    }

    def loss_fn(params, batch):
        x, scale = batch
        x = jnp.tanh(x @ params["in"])
        x = x + params["gain"] * jnp.tanh(x @ params["branch"])
        return scale * jnp.mean((x @ params["out"]) ** 2)

    gradient = jax.jit(jax.grad(loss_fn))(params, (data()[0], 1.0))["in"]
    for scale, taken in ((1.0, 0), (1e-15, 0), (1e-20, 1), (1e-35, 1)):
        looks.clear()
        found = probe(loss_fn, params, (data()[0], jnp.float32(scale)))
        assert len(looks) == taken
        rms = dict(zip(found.names, found.gradient_rms, strict=True))
        assert [name for name, one in rms.items() if one == 0] == ["branch"]
        expected = np.log(np.sqrt(np.mean(np.square(gradient)))) + np.log(scale)
        logs = dict(zip(found.names, found.log_gradient_rms, strict=True))
        assert logs["in"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("ignore::vanishjax.LayerOrderWarning")
@pytest.mark.parametrize("name", ["tied_transformer", "conv_batch_norm_training", "scan_nested"])
def test_both_looks_see_the_same(name, monkeypatch):
    model, first = probed(name)
    looks = counted(monkeypatch)
    monkeypatch.setattr(measuring, "underflow_free", lambda _: np.finfo(np.float64).max)
    second = probe(model.loss_fn, model.params, model.batch)
    assert looks
    for field in ("log_chi", "log_backward_rms", "log_gradient_rms", "reach"):
        one, other = (np.asarray(getattr(x, field)) for x in (first, second))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("extreme", [jnp.max, jnp.min])
@pytest.mark.parametrize("rows", [16, 32])
def test_what_is_computed_twice_may_be_the_largest(extreme, rows):
    """JAX's own gradient compares for equality, and unoptimized programs round in two ways."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"first": (4, 16), "second": (16, 16), "last": (16, 3)}
    params = {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }

    def loss(params, batch):
        x = batch[0] @ params["first"] @ params["second"]
        groups = x.reshape(*x.shape[:-1], 2, 8)
        away = groups - groups.mean((1, 3), keepdims=True)
        normal = away * jax.lax.rsqrt(away.var((1, 3), keepdims=True) + 1e-5)
        # Ties share it, and what is masked gets nothing.
        never = -jnp.inf if extreme is jnp.max else jnp.inf
        kept = jnp.where(batch[2], jax.nn.relu(normal).reshape(x.shape), never)
        logits = extreme(kept, 1) @ params["last"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    mask = jnp.arange(24)[:, None] < 20
    batch = jax.random.normal(keys[3], (rows, 24, 4)), jnp.arange(rows) % 3, mask
    found = probe(loss, params, batch).parameters
    gradient = jax.grad(loss)(params, batch)
    expected = [numerics.rms(gradient[name]) for name in ("first", "last", "second")]
    by_name = dict(zip(found.layers.names, found.rms, strict=True))
    np.testing.assert_allclose([by_name[name] for name in sorted(by_name)], expected, rtol=1e-3)


def test_compiled_once_for_a_loss():
    params, loss_fn, _ = chain((8, 16, 4))
    count = 0

    def counted(params, batch):
        nonlocal count
        count += 1
        return loss_fn(params, batch)

    probe(counted, params, data())
    traced = count
    probe(counted, params, data(seed=2))
    assert count == traced


def test_a_batch_may_hold_settings():
    params, loss_fn, _ = chain((8, 16, 4))
    x, y = data()

    def loss(params, batch):
        assert batch["mode"] == "train"
        return loss_fn(params, (batch["x"], batch["y"])) * (2 if batch["double"] else 1)

    batch = {"x": x, "y": y, "mode": "train", "double": True}
    assert probe(loss, params, batch).loss == pytest.approx(2 * float(loss_fn(params, (x, y))))


# Activations.


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "identity"])
def test_activations_are_recognized(name):
    f = ACTIVATIONS[name]
    found = []

    def observe(site, x):
        found.append((site, x))
        return jnp.zeros(())

    def loss_fn(w, x):
        return jnp.mean(f(x @ w) ** 2)

    w, x = jax.random.normal(KEY, (4, 5)), jax.random.normal(KEY, (7, 4))
    program = _jaxpr.flatten(_jaxpr.trace_loss(loss_fn, w, x))
    anatomy = _jaxpr.dissect(program, _jaxpr.parameter_uses(program))
    dummies = _jaxpr.dummies_for(anatomy)
    _jaxpr.tapped_loss(program, anatomy, observe, [w, x], dummies, normalize=False)
    ((site, z),) = found
    slopes = jax.vmap(jax.vmap(jax.grad(f)))(z)
    np.testing.assert_allclose(z, x @ w, rtol=1e-6)
    # The square that the loss takes the mean of is no part of it.
    np.testing.assert_allclose(site.activation.slope(z), slopes, rtol=1e-5, atol=1e-6)


def test_only_what_is_flat_on_both_sides_saturates():
    bounded = ("sigmoid", "tanh", "erf", "hard_tanh", "softsign")
    unbounded = ("relu", "gelu", "silu", "selu", "softplus", "leaky_relu")
    names = bounded + unbounded
    keys = jax.random.split(KEY, len(names))
    params = {
        name: 300 * jax.random.normal(key, (8, 16)) for name, key in zip(names, keys, strict=True)
    }

    def loss_fn(params, batch):
        parts = [ACTIVATIONS[name](batch[0] @ w) for name, w in params.items()]
        return vj.losses.cross_entropy(sum(parts)[:, :4], batch[1])

    found = probe(loss_fn, params, data())
    saturated = dict(zip(found.names, found.saturated_fraction > 0.5, strict=True))
    assert saturated == {name: name in bounded for name in names}


def test_a_networks_activations_are_those_that_the_last_one_had():
    """What was measured is known again, if the derivative is the same, not but the value."""

    @jax.custom_vjp
    def steep(x):
        return jnp.tanh(x)

    steep.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (8 * g * (1 - jnp.tanh(x) ** 2),))

    def steepest(activation):
        before = _known_slopes.cache_info().misses
        program = _jaxpr.flatten(
            _jaxpr.trace_loss(lambda w, x: jnp.mean(activation(x @ w) ** 2), w, x)
        )
        sites = _jaxpr.dissect(program, _jaxpr.parameter_uses(program)).sites
        (found,) = {site.activation.steepest for site in sites.values()}
        return found, _known_slopes.cache_info().misses - before

    w, x = jnp.ones((4, 23)), jnp.ones((7, 4))  # of a shape that no other test has
    assert [steepest(f) for f in (jnp.tanh, jnp.tanh, steep)] == [
        (pytest.approx(1, abs=1e-3), 1),
        (pytest.approx(1, abs=1e-3), 0),
        (pytest.approx(8, abs=1e-2), 1),
    ]


# Bad input.


def bad(loss_fn=None, params=None, batch=None):
    usual, usual_loss, _ = chain((8, 16, 4))
    return probe(loss_fn or usual_loss, usual if params is None else params, batch or data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_fn": lambda p, b: b[0] @ p[0]["w"]}, r"must return a scalar .* got \(64, 16\)"),
        (
            {"loss_fn": lambda p, b: jnp.argmax(b[0] @ p[0]["w"])},
            "must return a real number to be differentiated, got int32",
        ),
        (
            {
                "loss_fn": lambda p, b: jax.lax.while_loop(
                    lambda x: x < 1, lambda x: x + jnp.sum(p[0]["w"] ** 2), jnp.sum(b[0])
                )
            },
            "can't be differentiated: Reverse-mode",
        ),
        ({"batch": (jnp.ones([0, 8]), jnp.ones([0], int))}, r"batch\[0\] is empty: .*\(0, 8\)"),
        (
            {"batch": (jnp.ones([4, 8]).at[2, 3].set(jnp.nan), jnp.zeros(4, int))},
            r"batch\[0\] holds 1 values .* index \(2, 3\)",
        ),
        (
            {"params": [{"w": jnp.ones([8, 4], int)}]},
            r"0/w: .* got int32\[8,4\]; keep it out of params: let the loss close over it",
        ),
        ({"params": [{"key": jax.random.key(0)}]}, r"0/key: .* got key<.*; keep it out of params"),
        (
            {"params": nn.Dense(3)},
            r"got Dense; Dense is a whole model: pass vanishjax.Problem.from_linen\(model, var",
        ),
        ({"params": {"f": jnp.tanh}}, "f: .* got .*; params are a tree of arrays"),
        ({"loss_fn": lambda p, b: (jnp.sum(b[0] @ p[0]["w"]), 1.0, 2.0)}, "scalar or .scalar, aux"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        bad(**arguments)
    assert "\n" not in str(caught.value)


def test_arrays_have_one_entry_a_layer(small):
    *_, found = small
    for field in ("log_chi", "gradient_rms", "backward_rms", "centered_energy", "slope_rms"):
        chex.assert_shape(getattr(found, field), (4,))
        assert getattr(found, field).dtype == np.float64
    assert len(found) == 4
    chex.assert_shape(found.parameters.rms, (8,))


def test_an_activation_with_a_derivative_of_its_own():
    """Through `custom_vjp` only the way back is known: the slope is what comes back."""

    @jax.custom_vjp
    def twice(x):
        return jnp.tanh(x)

    twice.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (2 * g * (1 - jnp.tanh(x) ** 2),))
    x, weights = jax.random.normal(jax.random.key(0), (16, 4)), [0.3 * jnp.ones((4, 4))] * 3

    def loss_of(activation):
        def loss_fn(weights, x):
            for w in weights:
                x = activation(x @ w)
            return jnp.mean(x**2)

        return probe(loss_fn, weights, x)

    plain, steeper = loss_of(jnp.tanh), loss_of(twice)
    np.testing.assert_allclose(steeper.slope_rms, 2 * plain.slope_rms, rtol=1e-5)
    np.testing.assert_allclose(steeper.log_chi[:-1], plain.log_chi[:-1] + 2 * np.log(2), rtol=1e-4)


def test_what_hands_no_gradient_back_is_no_activation():
    """A choice of branches for each example reads what isn't chosen behind a `stop_gradient`."""

    def loss_fn(params, x):
        h = jax.nn.relu(x @ params["first"])
        h = jax.vmap(lambda row: jax.lax.cond(row.sum() > 3, lambda r: 2 * r, lambda r: r, row))(h)
        return jnp.mean((h @ params["last"]) ** 2)

    layers, _, _ = chain((8, 16, 4))
    found = probe(loss_fn, {"first": layers[0]["w"], "last": layers[1]["w"]}, data()[0])
    assert found.activations == ("rectifier", None)
    assert found.dead_fraction[0] == 0
