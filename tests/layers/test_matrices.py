"""Kernels as the matrices that multiply the data: read off losses of every kind, and used."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

import vanishjax as vj
from vanishjax.layers.matrices import kernel_places
from vanishjax.transforms import orthogonalization

KEY = jax.random.key(0)


class Case(NamedTuple):
    """A loss, and for some paths what their arrays are as matrices `[..., inputs, outputs]`."""

    loss_fn: Callable[[Any, Any], Any]
    params: Any
    batch: Any
    matrices: dict[str, Callable[[np.ndarray], np.ndarray]]
    by_names: bool = True  # whether names and shapes tell the same


def same(x):
    return x


def heads_out(x):
    return x.reshape(len(x), -1)


def heads_in(x):
    return x.reshape(-1, x.shape[-1])


def transposed(x):
    return x.T


def weight(x):  # [out, in, ...]
    return x.reshape(len(x), -1).T


def grouped(groups):
    """`[..., in, groups * out]`: a matrix for each group."""

    def split(x):
        return np.moveaxis(x.reshape(-1, groups, x.shape[-1] // groups), 1, 0)

    return split


def linen(module, *inputs, matrices, **options):
    params = jax.eval_shape(module.init, KEY, *inputs)["params"]

    def loss_fn(params, inputs):
        return jnp.mean(module.apply({"params": params}, *inputs) ** 2)

    return Case(loss_fn, params, inputs, matrices, **options)


def plain(fn, batch, matrices, **shapes):
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def loss_fn(params, x):
        return jnp.mean(jnp.tanh(fn(params, x)) ** 2)

    return Case(loss_fn, params, batch, matrices, by_names=False)


X, SEQUENCE, IMAGE = jnp.ones((5, 16)), jnp.ones((3, 6, 16)), jnp.ones((2, 8, 8, 8))


def linen_attention(bias):
    names = dict.fromkeys(("query/kernel", "key/kernel", "value/kernel"), heads_out)
    module = nn.MultiHeadDotProductAttention(4, qkv_features=32, use_bias=bias)
    return linen(module, SEQUENCE, SEQUENCE, matrices={**names, "out/kernel": heads_in})


def nnx_attention():
    def make():
        return nnx.MultiHeadAttention(4, 16, 32, decode=False, rngs=nnx.Rngs(0))

    graph, params, _ = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    rest = nnx.split(make(), nnx.Param, ...)[2]

    def loss_fn(params, x):
        return jnp.mean(nnx.merge(graph, params, rest)(x) ** 2)

    names = dict.fromkeys(("query/kernel", "key/kernel", "value/kernel"), heads_out)
    return Case(loss_fn, params, SEQUENCE, {**names, "out/kernel": heads_in})


def equinox_attention():
    params, static = equinox_split(lambda: eqx.nn.MultiheadAttention(4, 16, key=KEY))

    def loss_fn(params, x):
        one = eqx.combine(params, static)
        return jnp.mean(jax.vmap(one)(x, x, x) ** 2)

    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    return Case(loss_fn, params, SEQUENCE, {f"{name}/weight": weight for name in names})


def haiku_attention():
    def forward(x):
        return hk.MultiHeadAttention(
            4, 8, w_init=hk.initializers.VarianceScaling(1.0), model_size=16
        )(x, x, x)

    pure = hk.without_apply_rng(hk.transform(forward))
    params = jax.eval_shape(pure.init, KEY, SEQUENCE)

    def loss_fn(params, x):
        return jnp.mean(pure.apply(params, x) ** 2)

    names = ("query", "key", "value", "linear")
    matrices = {f"multi_head_attention/{name}/w": same for name in names}
    return Case(loss_fn, params, SEQUENCE, matrices)


def scanned_attention():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.MultiHeadDotProductAttention(2)(x, x), None

    scan = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scan()(x, None)[0]

    def query(x):
        return np.moveaxis(x, 1, 0).reshape(3, 16, 16)

    def out(x):
        return np.moveaxis(x, 1, 0).reshape(3, 16, 16)

    home = "ScanBlock_0/MultiHeadDotProductAttention_0"
    matrices = {f"{home}/query/kernel": query, f"{home}/out/kernel": out}
    return linen(Stack(), SEQUENCE, matrices=matrices, by_names=False)


def equinox_split(make):
    module = eqx.filter_eval_shape(make)
    return eqx.partition(module, lambda x: isinstance(x, jax.ShapeDtypeStruct))


def equinox_conv(make, x, matrix):
    params, static = equinox_split(make)

    def loss_fn(params, x):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    return Case(loss_fn, params, x, {"weight": matrix}, by_names=False)


def equinox_grouped():
    def matrix(x):  # [groups * out, in, 3, 3]
        return x.reshape(2, 8, -1).swapaxes(1, 2)

    return equinox_conv(
        lambda: eqx.nn.Conv2d(8, 16, 3, groups=2, key=KEY), IMAGE.swapaxes(1, -1), matrix
    )


def experts_routed():
    """Tokens sorted by expert, as in `jax.lax.ragged_dot`."""
    sizes = jnp.array([2, 3, 1])
    return plain(
        lambda p, x: jax.lax.ragged_dot(x, p["w"], sizes), jnp.ones((6, 16)), {"w": same},
        w=(3, 16, 24),
    )  # fmt: skip


def low_rank():
    return plain(
        lambda p, x: x @ (p["w"] + p["down"] @ p["up"]), X, {"w": same, "down": same, "up": same},
        w=(16, 24), down=(16, 4), up=(4, 24),
    )  # fmt: skip


def fused():
    """Kernels that are reshaped, cast, transposed, normalized and laid together first."""

    def forward(p, x):
        q = p["q"] / jnp.linalg.norm(p["q"], axis=0)
        k = p["k"].T.astype(jnp.bfloat16).astype(jnp.float32)
        qkv = jnp.concatenate([q.reshape(16, -1), k], axis=1).reshape(16, 3, 8)
        return jnp.einsum("bd,dkh->bkh", x, qkv) @ p["o"].reshape(4, 2, 6).reshape(8, 6)

    return plain(
        forward, X, {"q": heads_out, "k": transposed, "o": heads_in},
        q=(16, 2, 4), k=(16, 16), o=(4, 2, 6),
    )  # fmt: skip


def tied():
    """A table looked up by token and used again for the logits."""

    def forward(p, tokens):
        return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["table"].T

    return plain(
        forward, jnp.arange(12) % 20, {"table": same, "w": same}, table=(20, 16), w=(16, 16)
    )


def ensemble():
    def one(p, x):
        return jnp.tanh(x @ p["w"].reshape(16, -1) + p["b"].ravel())

    return plain(
        lambda p, x: jax.vmap(one)(p, x), jnp.ones((3, 5, 16)),
        {"w": lambda x: x.reshape(3, 16, 8)}, w=(3, 16, 2, 4), b=(3, 2, 4),
    )  # fmt: skip


def transposed_equinox():
    return equinox_conv(
        lambda: eqx.nn.ConvTranspose2d(8, 6, 3, stride=2, key=KEY), IMAGE.swapaxes(1, -1), weight
    )


def transposed_kernel():
    def forward(p, x):
        return jax.lax.conv_transpose(
            x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )  # fmt: skip

    def matrix(x):  # [3, 3, out, in]
        return x.swapaxes(2, 3).reshape(-1, x.shape[2])

    return plain(forward, IMAGE, {"w": matrix}, w=(3, 3, 6, 8))


CASES = {
    "linen attention": lambda: linen_attention(bias=True),
    "linen attention without biases": lambda: linen_attention(bias=False),
    "scanned attention": scanned_attention,
    "nnx attention": nnx_attention,
    "equinox attention": equinox_attention,
    "haiku attention": haiku_attention,
    "dense": lambda: linen(nn.Dense(24), X, matrices={"kernel": same}),
    "einsum module": lambda: linen(
        nn.Einsum((16, 4, 8), "bd,dhk->bhk"), X, matrices={"kernel": heads_out}
    ),
    "einsum": lambda: plain(
        lambda p, x: jnp.einsum("bhd,kdh->bk", jnp.einsum("bd,hde->bhe", x, p["a"]), p["b"]), X,
        {"a": lambda x: np.moveaxis(x, 1, 0).reshape(16, -1), "b": lambda x: x.reshape(6, -1).T},
        a=(4, 16, 8), b=(6, 8, 4),
    ),
    "experts": lambda: plain(
        lambda p, x: jnp.einsum("bei,eio->beo", x, p["w"]) + p["b"], jnp.ones((5, 3, 16)),
        {"w": same}, w=(3, 16, 8), b=(3, 8),
    ),
    "experts, axis last": lambda: plain(
        lambda p, x: jnp.einsum("bei,ioe->beo", x, p["w"]), jnp.ones((5, 3, 16)),
        {"w": lambda x: np.moveaxis(x, 2, 0)}, w=(16, 8, 3),
    ),
    "experts routed": experts_routed,
    "low rank": low_rank,
    "laid together": fused,
    "tied table": tied,
    "vmap over networks": ensemble,
    "convolution": lambda: linen(nn.Conv(12, (3, 3)), IMAGE, matrices={"kernel": heads_in}),
    "grouped convolution": lambda: linen(
        nn.Conv(12, (3, 3), feature_group_count=4), IMAGE, matrices={"kernel": grouped(4)},
        by_names=False,
    ),
    "depthwise convolution": lambda: linen(
        nn.Conv(8, (3, 3), feature_group_count=8), IMAGE, matrices={"kernel": grouped(8)},
        by_names=False,
    ),
    "equinox grouped convolution": equinox_grouped,
    "transposed convolution": lambda: linen(
        nn.ConvTranspose(6, (3, 3), strides=(2, 2)), IMAGE, matrices={"kernel": heads_in}
    ),
    "transposed convolution, kernel too": transposed_kernel,
    "equinox transposed convolution": transposed_equinox,
}  # fmt: skip


@functools.cache
def case(name):
    return CASES[name]()


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree)


def values_of(matrices):
    return np.linalg.svd(np.asarray(matrices), compute_uv=False)


@pytest.mark.parametrize("name", CASES)
def test_a_leaf_is_the_matrix_that_multiplies(name):
    loss_fn, params, batch, matrices, by_names = case(name)
    arrays = by_path(random_like(params))
    found = [vj.find_layers(params, loss_fn, batch)]
    for layers in found + ([vj.find_layers(params)] if by_names else []):
        leaves = {leaf.path: leaf for leaf in layers.leaves}
        for path, matrix in matrices.items():
            own, laid_out = leaves[path].matrices(arrays[path])
            expected = matrix(np.asarray(arrays[path]))
            assert own.shape == expected.shape
            np.testing.assert_allclose(values_of(own), values_of(expected), rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(laid_out(own), arrays[path])


STACKED = {
    "experts": {"w": ((0,), (1,), (2,)), "b": ((0,), (), (1,))},
    "experts, axis last": {"w": ((2,), (0,), (1,))},
    "experts routed": {"w": ((0,), (1,), (2,))},
    "vmap over networks": {"w": ((0,), (1,), (2, 3)), "b": ((0,), (), (1, 2))},
    "tied table": {"table": ((), (0,), (1,))},
    "transposed convolution, kernel too": {"w": ((), (0, 1, 3), (2,))},
    "linen attention": {"out/kernel": ((), (0, 1), (2,)), "query/bias": ((), (), (0, 1))},
}


@pytest.mark.parametrize("name", STACKED)
def test_axes(name):
    """Stack axes, inputs and outputs; a bias is no matrix, and is stacked with its kernel."""
    loss_fn, params, batch, *_ = case(name)
    layers = vj.find_layers(params, loss_fn, batch)
    found = {leaf.path: (leaf.axes, leaf.inputs, leaf.outputs) for leaf in layers.leaves}
    assert found == found | STACKED[name]


def test_a_bias_of_heads_is_no_kernel():
    """It has an axis for the heads and one for their width."""
    model = nn.MultiHeadDotProductAttention(2, qkv_features=6)
    params = model.init(KEY, jnp.ones((1, 4, 8)))["params"]
    assert params["key"]["bias"].shape == (2, 3)
    layers = vj.find_layers(params)
    names = [layers.names[place] for place in kernel_places(layers)]
    assert names == [f"{name}/kernel" for name in ("key", "out", "query", "value")]


def test_units_and_widths():
    """What clips, and scales by shape, takes a kernel's inputs and outputs from the layers."""
    for name, path, shape in (
        ("linen attention", "out/kernel", (1, 1, 16)),
        ("experts", "w", (3, 1, 8)),
        ("grouped convolution", "kernel", (1, 1, 1, 12)),
    ):
        loss_fn, params, batch, matrices, _ = case(name)
        layers = vj.find_layers(params, loss_fn, batch)
        weights, gradient = random_like(params), random_like(params, 1)

        def step(tx, weights=weights, gradient=gradient, path=path):
            updates, _ = tx.update(gradient, tx.init(weights), weights)
            return np.asarray(by_path(updates)[path])

        before = np.asarray(by_path(gradient)[path])
        clipped = step(vj.adaptive_clip(1e-3, layers=layers))
        leaf = next(leaf for leaf in layers.leaves if leaf.path == path)
        norms = np.sqrt(np.sum(np.square(by_path(weights)[path]), leaf.inputs, keepdims=True))
        after = np.sqrt(np.sum(np.square(clipped), leaf.inputs, keepdims=True))
        assert after.shape == shape
        np.testing.assert_allclose(after, 1e-3 * norms, rtol=1e-5)
        inputs, outputs = matrices[path](before).shape[-2:]
        scaled = step(vj.scale_by_shape(layers=layers))
        np.testing.assert_allclose(scaled, before * max(1, outputs / inputs) ** 0.5, rtol=1e-6)


def test_lsuv_of_attention_and_experts():
    """Orthogonal as the matrices that multiply, and unit variance of what they put out."""

    def forward(p, x):
        heads = jnp.einsum("bd,dhk->bhk", x, p["q"]["kernel"]) + p["q"]["bias"]
        experts = jnp.einsum("bhk,hko->bho", jnp.tanh(heads), p["e"]["kernel"]) + p["e"]["bias"]
        return heads, experts

    shapes = {"q": ((16, 4, 4), (4, 4)), "e": ((4, 4, 8), (4, 8))}
    params = {
        name: {"kernel": jnp.zeros(kernel), "bias": jnp.zeros(bias)}
        for name, (kernel, bias) in shapes.items()
    }
    params = random_like(params)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((256, 16)), jnp.float32)
    params = vj.initializers.lsuv(lambda p, x: jnp.mean(jnp.cos(forward(p, x)[1])), params, x)
    for values in (
        values_of(params["q"]["kernel"].reshape(16, 16)),
        values_of(params["e"]["kernel"]),
    ):
        np.testing.assert_allclose(values, values.mean(), rtol=1e-3)
    for out in forward(params, x):
        np.testing.assert_allclose(out.mean(0), 0.0, atol=1e-4)
        np.testing.assert_allclose(out.std(), 1.0, rtol=1e-3)


def test_what_the_user_says():
    params = {"a": {"w": jnp.ones((2, 3, 4)), "b": jnp.ones(4)}, "c": jnp.ones((5, 6))}
    given = {"a/w": (1, (0, -1)), "c": MuonDimensionNumbers(1, 0)}
    tree = {"a": {"w": MuonDimensionNumbers(0, 2), "b": None}, "c": None}
    for loss_fn in (None, lambda p, x: jnp.sum(p["c"] * x) + jnp.sum(p["a"]["w"] * x)):
        layers = vj.find_layers(params, loss_fn, jnp.ones(()), matrices=given)
        leaves = {leaf.path: (leaf.axes, leaf.inputs, leaf.outputs) for leaf in layers.leaves}
        assert leaves["a/w"] == ((), (1,), (0, 2))
        assert leaves["c"] == ((), (1,), (0,))
        layers = vj.find_layers(params, loss_fn, jnp.ones(()), matrices=tree)
        leaves = {leaf.path: leaf for leaf in layers.leaves}
        assert (leaves["a/w"].axes, leaves["a/w"].stack) == ((1,), (3,))
        assert not leaves["c"].is_matrix
        assert len(layers) == 5
    with pytest.raises(ValueError, match=r"a/w: inputs \(1,\) and outputs \(1,\)"):
        vj.find_layers(params, matrices={"a/w": (1, 1)})
    with pytest.raises(ValueError, match="there is no parameter 'd'"):
        vj.find_layers(params, matrices={"d": (0, 1)})
    with pytest.raises(ValueError, match=r"a/w: expected \(inputs, outputs\), got 'in'"):
        vj.find_layers(params, matrices={"a": {"w": "in"}})


def test_dimension_numbers_of_optax():
    params = {"q": jnp.ones((16, 2, 4)), "w": jnp.ones((8, 6)), "table": jnp.ones((6, 5))}
    numbers = {"q": MuonDimensionNumbers(0, (1, 2)), "w": MuonDimensionNumbers(), "table": None}
    gradient = random_like(params)

    def steps(muon):
        return jax.jit(muon.update)(gradient, muon.init(params), params)[0]

    given = {"muon_weight_dimension_numbers": numbers}
    ours, theirs = steps(vj.muon(0.1, **given)), steps(optax.contrib.muon(0.1, **given))
    function = steps(vj.muon(0.1, muon_weight_dimension_numbers=lambda params: numbers))
    for name in ("q", "w"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(ours[name], function[name])
    np.testing.assert_allclose(abs(ours["table"]), 0.1475, rtol=2e-2)  # Adam's first step
    with pytest.raises(ValueError, match="not both"):
        vj.muon(0.1, layers=vj.find_layers(params), **given)


@pytest.mark.parametrize("name", ["dion", "polar_express"])
def test_coefficients_by_step(name):
    """Against a loop in float64, and nearer to 1 than with one triple for all steps."""
    x = np.random.default_rng(0).standard_normal((24, 16))
    triples = orthogonalization._NAMED[name]

    def loop(margin):
        y = x.T / np.linalg.norm(x) / margin
        for a, b, c in triples:
            gram = y @ y.T
            y = a * y + (b * gram + c * gram @ gram) @ y
        return y.T

    for coefficients in (name, triples, [list(triple) for triple in triples]):
        step, _ = vj.orthogonalize(ns_coeffs=coefficients).update(jnp.asarray(x), ())
        expected = loop(1.01 if coefficients == "polar_express" else 1.0)
        np.testing.assert_allclose(step, expected, rtol=1e-3, atol=1e-3)
    spread = {
        choice: np.ptp(values_of(vj.orthogonalize(ns_coeffs=choice).update(x, ())[0]))
        for choice in (name, "quintic")
    }
    assert spread[name] < spread["quintic"]
    muon = vj.muon(1.0, ns_coeffs=name)
    params = {"w": jnp.asarray(x), "b": jnp.zeros(3)}
    updates, _ = muon.update(params, muon.init(params), params)
    assert np.all(np.isfinite(updates["w"]))


@pytest.mark.parametrize("bad", ["quantic", (1.0, 2.0), [(1.0, 2.0)], []])
def test_coefficients_that_are_none(bad):
    for make in (vj.muon, vj.scale_by_muon):
        with pytest.raises(ValueError, match="ns_coeffs"):
            make(**({"learning_rate": 0.1} if make is vj.muon else {}), ns_coeffs=bad)


def test_muon_orthogonalizes_the_matrix_that_multiplies():
    """All of them in one tree, and one step."""
    cases = {name: case(name) for name in CASES}
    params = {name: random_like(one.params) for name, one in cases.items()}

    def loss_fn(params, batches):
        return sum(one.loss_fn(params[name], batches[name]) for name, one in cases.items())

    layers = vj.find_layers(params, loss_fn, {name: one.batch for name, one in cases.items()})
    tx = vj.muon(1.0, layers=layers)
    updates, _ = jax.jit(tx.update)(random_like(params, 1), tx.init(params), params)
    for name, one in cases.items():
        steps = by_path(updates[name])
        for path, matrix in one.matrices.items():
            step = matrix(np.asarray(steps[path]))
            width = max(1.0, step.shape[-1] / step.shape[-2]) ** 0.5
            median = np.median(values_of(step)) / width
            assert 0.7 <= median <= 1.2, f"{name}: {path}: {median}"
