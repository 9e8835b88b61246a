"""A stack of layers gets the updates of its layers one by one, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import vanishjax as vj
from tests.trajectory import assert_close, in_precision, run
from vanishjax.layers import Leaf
from vanishjax.models import unstack_params

DEPTH, WIDTH, STEPS = 12, 6, 4

TRANSFORMS = {
    "clip_by_layer_norm": lambda layers: vj.clip_by_layer_norm(0.1, layers),
    "adaptive_clip": lambda layers: vj.adaptive_clip(0.1, layers=layers),
    "normalize_by_layer": vj.normalize_by_layer,
    "centralize": vj.centralize,
    "centralize-flax": lambda layers: vj.centralize(layers, output_axis=-1),
    "scale_by_trust_ratio": lambda layers: vj.scale_by_trust_ratio(layers=layers),
    "orthogonalize": lambda layers: vj.orthogonalize(layers=layers),
    "scale_by_muon": lambda layers: vj.scale_by_muon(layers=layers),
    "scale_by_shape": lambda layers: optax.chain(
        vj.scale_by_shape(layers=layers), vj.scale_by_shape(0.2, layers=layers)
    ),
    "scale_by_adam-relative": lambda layers: vj.scale_by_adam(
        eps=0.1, eps_root=0.1, eps_relative=True, layers=layers
    ),
    "lars": lambda layers: vj.lars(1.0, weight_decay=0.1, layers=layers),
    "lamb": lambda layers: vj.lamb(1.0, weight_decay=0.1, layers=layers),
    "muon": lambda layers: vj.muon(1.0, weight_decay=0.1, layers=layers),
}
CHAINS = {"scale_by_muon", "lars", "lamb"}
every_transform = pytest.mark.parametrize("name", TRANSFORMS)
# The others are chains of these.
every_part = in_precision(name for name in TRANSFORMS if name not in CHAINS)


def random_like(tree):
    """Gradients `[steps, ...]` whose layers differ by decades, which one norm for all would mix."""
    rng = np.random.default_rng(0)

    def leaf(p):
        decades = 10.0 ** rng.uniform(-3, 3, (p.shape[0],) + (1,) * (p.ndim - 1))
        return np.asarray(decades * rng.standard_normal((STEPS, *p.shape)), p.dtype)

    return jax.tree.map(leaf, tree)


@functools.cache
def scanned_linen():
    model = vj.MLP(hidden=(WIDTH,) * (DEPTH + 1), classes=WIDTH, activation="tanh", scan=True)
    x = jnp.ones((4, WIDTH))
    params = model.init(jax.random.key(0), x)["params"]
    return params, lambda p, x: jnp.sum(model.apply({"params": p}, x) ** 2), x


@functools.cache
def scanned_nnx():
    hidden = (WIDTH,) * (DEPTH + 1)
    model = vj.NnxMLP(WIDTH, hidden, WIDTH, activation="tanh", scan=True, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    return params, lambda p, x: jnp.sum(nnx.merge(graph, p)(x) ** 2), jnp.ones((4, WIDTH))


def unstack(updates):
    """Updates `[steps, ...]` of a scanned model as those of the unrolled one."""
    updates = jax.tree.map(np.asarray, updates)
    stack = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), updates["hidden_stack"])
    return unstack_params({**updates, "hidden_stack": stack})


MODELS = {"linen": scanned_linen, "nnx": scanned_nnx}
SEPARATE = {name: make(None) for name, make in TRANSFORMS.items()}  # kept: each compiles once


def test_the_stacks_are_found():
    for make in MODELS.values():
        layers = vj.find_layers(*make())
        assert len(layers) == 2 * (DEPTH + 2)
        assert "hidden_stack/kernel[11]" in layers.names


def assert_scanned_equals_unrolled(kind, name, dtype):
    params, loss_fn, batch = MODELS[kind]()
    layers = vj.find_layers(params, loss_fn, batch)
    # Biases start at zero, where trust ratios are switched off.
    params = jax.tree.map(lambda p: np.asarray(p, dtype) + dtype(0.1), params)
    grads = random_like(params)
    with jax.enable_x64(dtype is np.float64):
        stacked, _ = run(TRANSFORMS[name](layers), grads, params)
        if kind == "nnx":
            stacked, grads, params = map(nnx.to_pure_dict, (stacked, grads, params))
        stacked, grads = unstack(stacked), unstack(grads)
        for module, separate in unstack_params(params).items():
            alone, _ = run(SEPARATE[name], dict(grads[module]), dict(separate))
            assert_close(dict(stacked[module]), alone)


@in_precision(TRANSFORMS)
def test_scanned_model_equals_the_unrolled_one(name, dtype):
    assert_scanned_equals_unrolled("linen", name, dtype)


# One that takes any tree, one that asks for the parameters and one that partitions them.
@in_precision(["normalize_by_layer", "lamb", "muon"])
def test_scanned_nnx_model_equals_the_unrolled_one(name, dtype):
    assert_scanned_equals_unrolled("nnx", name, dtype)


# Stacked by hand: where the stack of 3 (by 2) lies, and the shape of one layer.

BY_HAND = {
    "tall": ((0,), (7, 2)),
    "gain": ((0,), ()),
    "convolution": ((0,), (3, 3, 2, 4)),
    "one_wide": ((0,), (1, 5)),
    "last": ((2,), (4, 7)),
    "twice": ((0, 1), (4, 3)),
    "around": ((0, 2), (4, 3)),
}
LENGTHS = (3, 2)


def hand_stacked(chosen, dtype=np.float32):
    """Parameters with stacks along various axes, and their Layers."""
    leaves = []
    for path in sorted(chosen):
        axes, shape = chosen[path]
        shape = list(shape)
        for axis, length in zip(axes, LENGTHS, strict=False):
            shape.insert(axis, length)
        leaves.append(Leaf(path, tuple(shape), axes))
    places = range(sum(int(np.prod(leaf.stack)) for leaf in leaves))
    params = {
        leaf.path: np.linspace(0.5, 1.5, int(np.prod(leaf.shape)), dtype=dtype).reshape(leaf.shape)
        for leaf in leaves
    }
    return params, vj.Layers(tuple(leaves), tuple(places), tuple(places))


def one_of_each_stack(tree, index, leading=0):
    def take(path, x):
        where = [slice(None)] * x.ndim
        for axis, i in zip(BY_HAND[path][0], index, strict=False):
            where[axis + leading] = i
        return x[tuple(where)]

    return {path: take(path, x) for path, x in tree.items()}


@every_part
def test_stacked_by_hand_equals_layer_by_layer(name, dtype):
    with jax.enable_x64(dtype is np.float64):
        params, layers = hand_stacked(BY_HAND, dtype)
        grads = random_like(params)
        stacked, _ = run(TRANSFORMS[name](layers), grads, params)
        stacked = jax.tree.map(np.asarray, stacked)
        for index in np.ndindex(LENGTHS):
            where = (one_of_each_stack(grads, index, 1), one_of_each_stack(params, index))
            alone, _ = run(SEPARATE[name], *where)
            assert_close(one_of_each_stack(stacked, index, 1), alone)


@every_transform
def test_a_stack_is_told_by_its_shapes_and_is_not_one_layer(name):
    # Muon sends kernels and biases to different transforms, of which neither sees the pair.
    params, layers = hand_stacked({"bias": ((0,), (5,)), "kernel": ((0,), (2, 5))})
    grads = random_like(params)
    told, _ = run(TRANSFORMS[name](layers), grads, params)
    untold, _ = run(SEPARATE[name], grads, params)
    jax.tree.map(np.testing.assert_array_equal, untold, told)
    # Else the tests above would prove nothing.
    single = vj.Layers(tuple(Leaf(leaf.path, leaf.shape) for leaf in layers.leaves), (0, 1), (0, 1))
    blind, _ = run(TRANSFORMS[name](single), grads, params)
    assert any(not np.allclose(told[path], blind[path], rtol=1e-3, atol=0) for path in params)


# Sharded over eight devices, the stack axis included.

SPECS = {
    "stack": ("x",),
    "inputs": (None, "x"),
    "outputs": (None, None, "x"),
    "bias": ("x",),
}


@every_part
def test_sharded_equals_unsharded(name, dtype):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    shapes = {path: (8, 16, 8) if path != "bias" else (8, 8) for path in SPECS}
    leaves = tuple(Leaf(path, shape, (0,)) for path, shape in sorted(shapes.items()))
    layers = vj.Layers(leaves, tuple(range(32)), tuple(range(32)))
    tx = TRANSFORMS[name](layers)
    with jax.enable_x64(dtype is np.float64):
        params = {
            path: np.linspace(0.5, 1.5, int(np.prod(shape)), dtype=dtype).reshape(shape)
            for path, shape in shapes.items()
        }
        grads = random_like(params)
        plain, _ = run(tx, grads, params)

        def place(path, x, *leading):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*leading, *SPECS[path])))

        sharded, _ = run(
            tx,
            {path: place(path, g, None) for path, g in grads.items()},
            {path: place(path, p) for path, p in params.items()},
        )
        assert_close(sharded, plain)
