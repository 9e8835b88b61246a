"""Layers: how trees divide, and what is done to them layer by layer."""

import dataclasses
import warnings
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
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zoo import KEY, ZOO, X, weights
from vanishjax.layers import LayerOrderWarning, Layers, find_layers
from vanishjax.models import NnxMLP, mlp_problem


def random_like(tree: Any, key: jax.Array = KEY) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [jax.random.normal(k, np.shape(x)) for k, x in zip(keys, leaves, strict=True)]
    )


def largest(x, axes):
    return jnp.max(jnp.abs(x), axis=axes)


@pytest.fixture(scope="module")
def nested():
    """Weights stacked twice, a bias stacked once, a head, and the tree's layers."""
    model = ZOO["scan_nested"]()
    return random_like(model.params), find_layers(model.params, model.loss_fn, model.batch)


def test_a_layer_knows_its_array(nested):
    """Its name is the array's path, with an index behind it where the array holds several."""
    _, layers = nested
    assert len(layers.homes) == len(layers)
    assert any(leaf.axes for leaf in layers.homes)
    for name, leaf in zip(layers.names, layers.homes, strict=True):
        assert leaf in layers.leaves
        assert name == leaf.path if not leaf.axes else name.startswith(leaf.path + "[")


# Order without a loss.


def test_numbers_in_paths_sort_as_numbers():
    params = {f"Dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(12)}
    layers = find_layers(params)
    assert layers.names == tuple(f"Dense_{i}/{k}" for i in range(12) for k in ("bias", "kernel"))
    assert layers.depths == tuple(range(24))
    assert layers.tied == layers.unused == layers.stopped == ()


def test_sequences_sort_as_numbers():
    layers = find_layers([jnp.ones(2) for _ in range(11)])
    assert layers.names == tuple(str(i) for i in range(11))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        init = nn.initializers
        kernel_init = nn.with_partitioning(init.lecun_normal(), (None, "mlp"))
        bias_init = nn.with_logical_partitioning(init.zeros, ("mlp",))
        return jnp.tanh(nn.Dense(4, kernel_init=kernel_init, bias_init=bias_init)(x)), None


class Stacks(nn.Module):
    name_of_axis: str

    @nn.compact
    def __call__(self, x):
        for name in ("decoder", "encoder"):
            scan = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
                metadata_params={nn.PARTITION_NAME: self.name_of_axis},
            )
            x, _ = scan(name=name)(x, None)
        return nn.Dense(1)(x)


STACKS = [
    *("params/Dense_0/bias", "params/Dense_0/kernel"),
    *(
        f"params/{stack}/Dense_0/{part}[{i}]"
        for stack in ("decoder", "encoder")
        for i in range(2)
        for part in ("bias", "kernel")
    ),
]


@pytest.mark.parametrize("name", ["layers", "layer", "layers_per_stage", "block", "depth"])
def test_axes_that_linen_names_as_stacks(name):
    params = Stacks(name).init(KEY, X)
    assert list(find_layers(params).names) == STACKS


@pytest.mark.parametrize("name", ["embed", "mlp", "batch", "player"])
def test_other_names_of_axes_are_no_stacks(name):
    layers = find_layers(Stacks(name).init(KEY, X))
    assert all(leaf.axes == () for leaf in layers.leaves)


def test_axes_that_nnx_names_as_stacks():
    def param(names, *shape):
        return nnx.Param(jnp.ones(shape), out_sharding=names, eager_sharding=False)

    class Model(nnx.Module):
        def __init__(self):
            self.blocks = nnx.Dict(
                kernel=param((None, "layers", None), 4, 2, 4), bias=param(("layers", None), 2, 4)
            )
            self.out = param((None, "model"), 4, 1)

    params = nnx.state(Model(), nnx.Param)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers = find_layers(params)
    assert layers.names == (
        *("blocks/bias[0]", "blocks/kernel[0]"),
        *("blocks/bias[1]", "blocks/kernel[1]"),
        "out",
    )
    assert [leaf.axes for leaf in layers.leaves] == [(0,), (1,), ()]


def test_a_named_stack_that_runs_in_parallel_stays_a_stack_beside_a_loss():
    params = {"w": nn.Partitioned(jnp.ones((3, 4, 4)), ("layers", None, None)), "a": jnp.ones(4)}

    def loss_fn(params, x):
        experts = jnp.einsum("lio,bi->lbo", params["w"].value, x)
        return jnp.mean(jnp.tanh(experts).sum(0) * params["a"])

    layers = find_layers(params, loss_fn, X)
    assert layers.names == ("w[0]", "w[1]", "w[2]", "a")
    assert layers.depths == (1, 1, 1, 2)


def stacked_axes(*shapes):
    """The stack axes of arrays in one module, given as (name, *shape), of those that have any."""
    # Another module's array of the stack's length is none of its business.
    layers = find_layers(
        {"m": {name: jnp.ones(shape) for name, *shape in shapes}, "n": jnp.ones(5)}
    )
    return {leaf.path.removeprefix("m/"): leaf.axes for leaf in layers.leaves if leaf.axes}


@pytest.mark.parametrize("residual", [None, "rezero"])
def test_a_scanned_mlp_has_its_layers_without_a_loss(residual):
    problem = mlp_problem(8, (16,) * 6, 3, residual=residual)
    told = find_layers(problem.params, problem.loss_fn, (jnp.ones((2, 8)), jnp.zeros(2, int)))
    layers = find_layers(problem.params)
    parts = 2 + (residual == "rezero")
    assert len(layers) == 2 + 5 * parts + 2
    assert sorted(layers.names) == sorted(told.names)
    assert [leaf.axes for leaf in layers.leaves] == [leaf.axes for leaf in told.leaves]
    first = [f"hidden_stack/{part}[0]" for part in ("alpha", "bias", "kernel")[-parts:]]
    assert list(layers.names[2 : 2 + parts]) == first


@pytest.mark.parametrize(
    ("kernel", "bias"), [("kernel", "bias"), ("w", "b"), ("W", "b"), ("weight", "bias")]
)
def test_a_kernel_and_its_bias_tell_a_stack(kernel, bias):
    found = {kernel: (0,), bias: (0,)}
    assert stacked_axes((kernel, 5, 16, 16), (bias, 5, 16)) == found
    outputs_first = kernel == "weight"
    assert stacked_axes((kernel, 5, 8, 4), (bias, 5, 8)) == (found if outputs_first else {})
    assert stacked_axes((kernel, 5, 8, 4), (bias, 5, 4)) == ({} if outputs_first else found)
    assert stacked_axes((kernel, 1, 4, 4), (bias, 1, 4)) == found
    # DenseGeneral's outputs are several axes; Equinox has a 1 for each axis of a convolution.
    several = ((kernel, 5, 2, 3, 8), (bias, 5, 3, 8))
    several = ((kernel, 5, 8, 2, 3), (bias, 5, 8, 1)) if outputs_first else several
    assert stacked_axes(*several) == found


@pytest.mark.parametrize(
    "shapes",
    [
        [("kernel", 4, 2, 8), ("bias", 2, 8)],  # nn.DenseGeneral
        [("kernel", 4, 4, 8), ("bias", 4, 8)],  # the same, or a stack of four
        [("w", 16, 16, 16), ("b", 16, 16)],
        [("weight", 16, 16, 16), ("bias", 16, 16)],
        [("kernel", 5, 16, 16), ("bias", 16)],  # nn.Conv along one axis
        [("weight", 32, 1, 3), ("bias", 32, 1)],  # eqx.nn.Conv1d of one channel
        [("weight", 32, 1, 3, 3), ("bias", 32, 1, 1)],
        [("weight", 4, 8, 8), ("bias", 4, 8, 8)],  # eqx.nn.LayerNorm
        [("kernel", 5, 16), ("bias", 5)],
        [("kernel", 5, 5), ("bias", 5, 5)],
        [("kernel", 5, 16, 16), ("bias", 5, 1)],
        [("kernel", 5, 16, 16), ("bias",)],
        [("kernel", 0, 3, 4), ("bias", 0, 4)],
        [("kernel", 5, 16, 16), ("b", 5, 16)],
        [("scale", 5, 16, 16), ("bias", 5, 16)],
    ],
)
def test_what_may_be_one_layer_stays_one(shapes):
    assert stacked_axes(*shapes) == {}


def test_what_lies_beside_a_stack_is_stacked_too():
    pair = [("kernel", 5, 16, 16), ("bias", 5, 16)]
    found = {"kernel": (0,), "bias": (0,)}
    assert stacked_axes(*pair, ("alpha", 5)) == found | {"alpha": (0,)}
    assert stacked_axes(*pair, ("scale", 5, 16)) == found | {"scale": (0,)}
    # Among arrays of other lengths, five inputs of another matrix are as likely as five layers.
    assert stacked_axes(*pair, ("alpha", 5), ("out", 16, 3)) == found | {"alpha": (0,)}
    assert stacked_axes(*pair, ("in", 5, 16), ("out", 16, 3)) == found
    assert stacked_axes(*pair, ("gain",), ("scale", 5, 16)) == found
    # A pair that tells nothing stays what it was.
    assert stacked_axes(*pair, ("w", 5, 3), ("b", 3)) == found
    assert stacked_axes(*pair, ("w", 5, 5, 3), ("b", 5, 3)) == found


def test_stacks_of_every_library_are_told_by_their_shapes():
    keys = jax.random.split(KEY, 5)
    for make in (eqx.nn.Linear, lambda i, o, key: eqx.nn.Conv2d(i, o, 3, key=key)):
        stack = eqx.filter_vmap(lambda key, make=make: make(3, 6, key=key))(keys)
        layers = find_layers(eqx.filter(stack, eqx.is_inexact_array))
        assert {leaf.path: leaf.axes for leaf in layers.leaves} == {"weight": (0,), "bias": (0,)}
    net = hk.transform(lambda x: hk.experimental.layer_stack(3)(hk.Linear(4))(x))
    assert all(leaf.axes == (0,) for leaf in find_layers(net.init(KEY, X)).leaves)
    model = NnxMLP(5, (6,) * 4, classes=3, scan=True, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    for tree in (state, nnx.to_pure_dict(state), jax.eval_shape(lambda: state)):
        stacked = {leaf.path.split("/")[0] for leaf in find_layers(tree).leaves if leaf.axes}
        assert stacked == {"hidden_stack"}


def test_the_loss_decides_whether_a_pair_is_stacked():
    """Weights that a loss uses side by side, in no scan, are no stack, whatever their shapes."""
    params = {"kernel": jnp.ones((5, 4, 4)), "bias": jnp.ones((5, 4))}

    def loss_fn(params, x):
        return jnp.mean(jnp.einsum("bi,lio->blo", x, params["kernel"]) + params["bias"])

    assert {leaf.axes for leaf in find_layers(params).leaves} == {(0,)}
    assert {leaf.axes for leaf in find_layers(params, loss_fn, X).leaves} == {()}


def test_names_of_axes_come_before_shapes():
    def boxed(*names):
        kernel = nn.Partitioned(jnp.ones((5, 4, 4)), names)
        layers = find_layers({"kernel": kernel, "bias": jnp.ones((5, 4))})
        return {leaf.path[:4]: leaf.axes for leaf in layers.leaves}

    assert boxed("experts", None, "mlp") == {"bias": (), "kern": ()}
    assert boxed(None, "layers", None) == {"bias": (), "kern": (1,)}
    assert boxed(None, None, "mlp") == {"bias": (0,), "kern": (0,)}


# What is refused, and what is not.


@pytest.mark.parametrize(
    ("leaf", "got"),
    [
        (jnp.arange(3), r"int32\[3\]"),
        (jnp.ones(2, complex), r"complex64\[2\]"),
        (jax.random.key(0), r"key<fry>\[\]"),
        (jnp.array(True), r"bool\[\]"),
        (3, r"int\d+\[\]"),
        ("relu", "str"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(leaf, got):
    with pytest.raises(ValueError, match=rf"^a/0: expected a real floating-point leaf, got {got}"):
        find_layers({"a": [leaf], "b": jnp.ones(2)})


@pytest.mark.parametrize("tree", [{}, None, [], {"a": None, "b": {}}])
def test_no_parameters_no_layers(tree):
    layers = find_layers(tree, lambda params, batch: jnp.zeros(()), X)
    assert len(layers) == 0
    assert layers.names == ()
    assert layers.norms(tree).shape == (0,)
    assert layers.expand(jnp.zeros(0), tree) == tree


def test_scalars_and_python_floats_are_layers():
    params = {"a": 2.0, "b": jnp.array(-3.0), "c": None}
    layers = find_layers(params)
    assert layers.names == ("a", "b")
    np.testing.assert_allclose(layers.norms(params), [2.0, 3.0])
    assert layers.expand(jnp.arange(2.0), params)["b"].shape == ()


# One number a layer.


def test_norms_follow_depth_order(nested):
    tree, layers = nested
    expected = []
    for i in range(4):
        expected += [np.linalg.norm(tree["w"][i, j]) for j in range(3)]
        expected.append(np.linalg.norm(tree["b"][i]))
    expected.append(np.linalg.norm(tree["a"]))
    found = layers.norms(tree)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["linen_scan_last_axis", "scan_reverse", "scan_last_axis", "scan_nested_crossed"]
)
def test_stacked_and_separate_parameters_have_equal_norms(name):
    model = ZOO[name]()
    layers = find_layers(model.params, model.loss_fn, model.batch)
    tree = random_like(model.params)
    expected = {}
    for leaf, x in zip(layers.leaves, jax.tree.leaves(tree), strict=True):
        for index in np.ndindex(leaf.stack):
            where: list[Any] = [slice(None)] * x.ndim
            for axis, i in zip(leaf.axes, index, strict=True):
                where[axis] = i
            suffix = "[" + ",".join(map(str, index)) + "]" if leaf.axes else ""
            expected[leaf.path + suffix] = np.linalg.norm(x[tuple(where)])
    np.testing.assert_allclose(layers.norms(tree), [expected[n] for n in layers.names], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_keep_the_range_of_floats(scale):
    layers = find_layers({"w": jnp.ones((3, 4))})
    np.testing.assert_allclose(layers.norms({"w": jnp.full((3, 4), scale)}), [scale * 12**0.5])


def test_norms_of_half_precision_are_float32():
    layers = find_layers({"w": jnp.ones(4), "b": jnp.ones(4)})
    tree = {"w": jnp.full(4, 2e4, jnp.float16), "b": jnp.full(4, 3e38, jnp.bfloat16) / 2}
    assert layers.norms(tree).dtype == jnp.float32
    np.testing.assert_allclose(layers.norms(tree), [3e38, 4e4], rtol=1e-2)


def test_reduce_takes_several_trees_and_keeps_the_type(nested):
    tree, layers = nested

    def agree(x, y, axes):
        return jnp.all(x == y, axis=axes)

    other = {**tree, "b": tree["b"].at[2].add(1.0)}
    found = layers.reduce(agree, tree, other)
    assert found.dtype == bool
    assert [n for n, same in zip(layers.names, found, strict=True) if not same] == ["b[2]"]


def test_reduce_refuses_another_shape(nested):
    tree, layers = nested
    with pytest.raises(ValueError, match=r"b: fn must return an array of shape \(4,\).*got .*\(\)"):
        layers.reduce(lambda x, axes: jnp.sum(x), {**tree, "a": jnp.zeros((4, 1))})


# One value a layer, back on the tree.


def test_expand_is_the_inverse_of_reduce(nested):
    tree, layers = nested
    values = jnp.arange(float(len(layers)))
    expanded = layers.expand(values, tree)
    assert {k: v.shape for k, v in expanded.items()} == {
        "a": (1, 1),
        "b": (4, 1),
        "w": (4, 3, 1, 1),
    }
    filled = jax.tree.map(jnp.broadcast_to, expanded, jax.tree.map(jnp.shape, tree))
    np.testing.assert_array_equal(layers.reduce(largest, filled), values)
    by_name = dict(zip(layers.names, values, strict=True))
    assert expanded["w"][2, 1, 0, 0] == by_name["w[2,1]"]
    assert expanded["b"][3, 0] == by_name["b[3]"]


def test_expand_takes_abstract_trees(nested):
    tree, layers = nested
    abstract = jax.eval_shape(lambda: tree)
    assert layers.expand(jnp.zeros(len(layers)), abstract)["w"].shape == (4, 3, 1, 1)


@pytest.mark.parametrize("values", [jnp.zeros(16), jnp.zeros((17, 1)), 1.0])
def test_expand_wants_one_value_a_layer(nested, values):
    tree, layers = nested
    with pytest.raises(ValueError, match=r"expected values of shape \(17,\), got"):
        layers.expand(values, tree)


def test_map_tells_the_axes_of_a_layer(nested):
    tree, layers = nested

    def normalize(x, other, axes):
        return (
            other
            * x
            / jnp.linalg.norm(x.reshape(*x.shape[: -len(axes)], -1), axis=-1).reshape(
                *x.shape[: -len(axes)], *[1] * len(axes)
            )
        )

    ones = jax.tree.map(jnp.ones_like, tree)
    np.testing.assert_allclose(layers.norms(layers.map(normalize, tree, ones)), 1.0, rtol=1e-6)
    assert layers.map(lambda x, axes: axes, tree) == {"a": (0, 1), "b": (1,), "w": (2, 3)}


# Transformations of JAX.


def test_layers_are_static_arguments_and_compile_once(nested):
    tree, layers = nested
    traces = []

    @jax.jit
    def norms(tree):
        traces.append(1)
        return layers.norms(tree)

    static = jax.jit(lambda layers, tree: layers.norms(tree), static_argnums=0)
    expected = layers.norms(tree)
    for _ in range(2):
        np.testing.assert_allclose(norms(tree), expected, rtol=1e-6)
        np.testing.assert_allclose(static(layers, tree), expected, rtol=1e-6)
    assert len(traces) == 1
    model = ZOO["scan_nested"]()
    same = find_layers(model.params, model.loss_fn, model.batch)
    assert same == layers
    assert hash(same) == hash(layers)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers.order = ()


def test_vmap_over_trees(nested):
    tree, layers = nested
    trees = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), tree)
    found = jax.vmap(layers.norms)(trees)
    np.testing.assert_allclose(found, layers.norms(tree) * np.array([[1], [2], [3]]), rtol=1e-6)
    expanded = jax.vmap(layers.expand)(found, trees)
    np.testing.assert_array_equal(
        jax.tree.map(lambda x: x[1], expanded)["w"], layers.expand(found[1], tree)["w"]
    )


def test_no_equation_is_spent_on_single_layers():
    """A stack of a thousand layers costs the program of one of ten."""

    def equations(length):
        model = ZOO["scan_forward"]()
        stack = lambda x: jnp.ones((length, *x.shape[1:]))  # noqa: E731
        params = {k: x if "_" in k else stack(x) for k, x in model.params.items()}
        layers = find_layers(params, model.loss_fn, model.batch)
        assert len(layers) == 3 * length + 2
        closed = jax.make_jaxpr(lambda p: layers.expand(layers.norms(p), p))(params)
        return len(closed.jaxpr.eqns)

    assert equations(1000) == equations(10)


# Trees that lack leaves, or have others.


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()])
def test_holes_are_skipped(nested, hole):
    tree, layers = nested
    partial = {"a": tree["a"], "b": hole, "w": tree["w"]}
    norms = dict(zip(layers.names, layers.norms(partial), strict=True))
    assert all(norms[f"b[{i}]"] == 0 for i in range(4))
    assert norms["w[1,1]"] > 0
    assert layers.expand(jnp.zeros(len(layers)), partial)["b"] == hole
    mapped = layers.map(lambda x, y, axes: x + y, partial, tree)
    assert mapped["b"] == hole
    np.testing.assert_array_equal(mapped["a"], 2 * tree["a"])


def test_a_hole_in_place_of_a_module_covers_it():
    layers = find_layers({"a": {"x": jnp.ones(2), "y": [jnp.ones(2)]}, "ab": jnp.ones(2)})
    tree = {"a": optax.MaskedNode(), "ab": jnp.ones(2)}
    np.testing.assert_allclose(layers.norms(tree), [0, 0, 2**0.5], rtol=1e-6)
    with pytest.raises(ValueError, match=r"^ab: expected an array of shape"):
        layers.norms({"a": None})


def test_transforms_on_layers_run_masked(nested):
    tree, layers = nested
    normalize = optax.stateless(
        lambda updates, _: layers.map(lambda x, axes: x / largest(x, axes).max(), updates)
    )
    for tx in (
        optax.masked(normalize, {"a": True, "b": False, "w": True}),
        optax.multi_transform(
            {"on": normalize, "off": optax.identity()}, {"a": "on", "b": "off", "w": "on"}
        ),
    ):
        updates, _ = tx.update(tree, tx.init(tree), tree)
        np.testing.assert_allclose(jnp.abs(updates["w"]).max(), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(updates["b"], tree["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: {k: tree[k] for k in "ab"}, r"^w: expected an array of shape \(4, 3, 4, 4\)"),
        (lambda tree: {**tree, "c": jnp.ones(2)}, "^c: no such parameter"),
        (lambda tree: {**tree, "b": tree["b"][0]}, r"^b: expected shape \(4, 4\), got \(4,\)"),
        (lambda tree: {**tree, "w": tree["w"][:3]}, r"^w: expected shape .*, got \(3, 3, 4, 4\)"),
        (lambda tree: {**tree, "w": {"0": tree["w"]}}, "^w/0: no such parameter"),
        (lambda tree: None, "expected a tree of the parameters' structure, got None"),
    ],
)
def test_other_trees_are_refused_by_path(nested, change, message):
    tree, layers = nested
    wrong = change(tree)
    for call in (
        layers.norms,
        lambda t: layers.expand(jnp.zeros(len(layers)), t),
        lambda t: layers.map(lambda x, axes: x, t),
        lambda t: layers.map(lambda x, y, axes: x, tree, t),
        jax.jit(layers.norms),
    ):
        with pytest.raises(ValueError, match=message):
            call(wrong)


def test_a_partner_without_a_leaf_is_refused(nested):
    tree, layers = nested
    with pytest.raises(ValueError, match=r"^b: missing in one tree of several"):
        layers.map(lambda x, y, axes: x, tree, {**tree, "b": None})


# Kinds of trees.


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"b": jnp.ones(2), "a": (jnp.ones(3),)}, ("a/0", "b")),
        (FrozenDict({"b": jnp.ones(2), "a": {"c": jnp.ones(3)}}), ("a/c", "b")),
        (Pair(jnp.ones(2), [jnp.ones(3)]), ("left", "right/0")),
        (jnp.ones(2), ("",)),
        (
            eqx.filter(eqx.nn.MLP(2, 2, 2, 1, key=KEY), eqx.is_inexact_array),
            ("layers/0/bias", "layers/0/weight", "layers/1/bias", "layers/1/weight"),
        ),
        (
            nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
            ("bias", "kernel"),
        ),
    ],
)
def test_every_kind_of_tree(tree, names):
    layers = find_layers(tree)
    assert layers.names == names
    norms = layers.norms(tree)
    assert jax.tree.structure(layers.expand(norms, tree)) == jax.tree.structure(tree)
    total = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))
    np.testing.assert_allclose(jnp.linalg.norm(norms), total, rtol=1e-6)
    doubled = layers.map(lambda x, axes: 2 * x, tree)
    np.testing.assert_allclose(layers.norms(doubled), 2 * norms, rtol=1e-6)


def test_flax_boxes_may_come_and_go():
    params = Stacks("layers").init(KEY, X)
    layers = find_layers(params)
    np.testing.assert_array_equal(layers.norms(params), layers.norms(nn.unbox(params)))
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    plain = nnx.to_pure_dict(state)
    np.testing.assert_array_equal(find_layers(state).norms(plain), find_layers(plain).norms(state))


def test_inside_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    layers = find_layers(nnx.state(model, nnx.Param))

    def update(updates, params):
        scale = layers.expand(1 / layers.norms(params), updates)
        return jax.tree.map(jnp.multiply, layers.map(lambda x, axes: 0 * x + 1, updates), scale)

    optimizer = nnx.Optimizer(model, optax.stateless(update), wrt=nnx.Param)
    model.bias[...] = jnp.full(3, 2.0)
    grads = nnx.grad(lambda model: jnp.sum(model(X[:, :2]) ** 2))(model)
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.bias[...], 2 + 1 / 12**0.5, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"\A[a-c]{1,2}_?[0-9]{0,2}\Z"),
        st.lists(st.integers(1, 3), max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_any_tree_round_trips(shapes):
    tree = {"inner": {name: jnp.ones(shape) for name, shape in shapes.items()}}
    layers = find_layers(tree)
    assert sorted(layers.names) == sorted(f"inner/{name}" for name in shapes)
    values = jnp.arange(1.0, len(layers) + 1)
    filled = layers.map(lambda x, v, axes: x * v, tree, _spread(layers, values, tree))
    np.testing.assert_array_equal(layers.reduce(largest, filled), values)


def _spread(layers: Layers, values: jax.Array, tree: Any) -> Any:
    return jax.tree.map(
        lambda x, v: jnp.broadcast_to(v, x.shape), tree, layers.expand(values, tree)
    )


def test_the_warning_points_at_the_caller():
    with pytest.warns(LayerOrderWarning) as caught:
        find_layers(weights("a"), lambda params, _: jnp.sum(params["a"]))
    assert caught[0].filename == __file__


class Heads(NamedTuple):
    query: jax.Array
    value: jax.Array


@pytest.mark.parametrize("of", [lambda model: model, nnx.state], ids=["model", "state"])
def test_a_box_is_no_part_of_a_name_and_a_parameter_called_value_is(of):
    params = {"box": of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), "own": Heads(X, X), "value": X}
    layers = find_layers(params, matrices={"box/kernel": ((0,), (1,)), "own/value": None})
    names = ("box/bias", "box/kernel", "own/query", "own/value", "value")
    assert layers.names == names
    assert not layers.leaves[names.index("own/value")].is_matrix
    arrays, rebuild = layers.by_path(params)
    assert tuple(arrays) == names
    assert jax.tree.structure(rebuild(arrays)) == jax.tree.structure(params)
    hole = {**params, "box": optax.MaskedNode(), "own": Heads(X, None)}
    assert layers.norms(hole).shape == (5,)
