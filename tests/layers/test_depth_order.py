"""The order in which data meets the parameters, over the zoo, and the limits said aloud."""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from tests.zoo import KEY, ZOO, X, scan_model, weights
from vanishjax.layers import LayerOrderWarning, find_layers


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", LayerOrderWarning)
        yield


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name):
    model = ZOO[name]()
    layers = find_layers(model.params, model.loss_fn, model.batch)
    assert list(layers.names) == model.names
    if model.depths is not None:
        assert list(layers.depths) == model.depths
    assert sorted(layers.tied) == sorted(model.tied)
    assert layers.unused == model.unused
    assert layers.stopped == model.stopped


@pytest.mark.parametrize("name", ["linen_scan", "nnx_scan", "equinox_mlp", "tied_transformer"])
def test_abstract_arguments_give_the_same_layers(name):
    model = ZOO[name]()
    abstract = jax.eval_shape(lambda: (model.params, model.batch))
    assert find_layers(abstract[0], model.loss_fn, abstract[1]) == find_layers(
        model.params, model.loss_fn, model.batch
    )


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("late", [0, 5])
def test_scanned_depths_are_those_of_the_unrolled_loop(length, late):
    """Also where data from outside the scan is deeper than the carry for the first iterations."""

    def inputs(params, x):
        side = x
        for i in range(late):
            side = jnp.sin(side @ params["side"][str(i)])
        return x, side

    def step(x, side, kernel, bias):
        return jnp.tanh(x @ kernel) + x, jnp.mean((x + side) * bias)

    def scanned(params, x):
        x, side = inputs(params, x)
        x, costs = lax.scan(lambda x, wb: step(x, side, *wb), x, (params["w"], params["b"]))
        return jnp.mean(x @ params["out"]) + jnp.sum(costs)

    def unrolled(params, x):
        x, side = inputs(params, x)
        cost = 0.0
        for i in range(length):
            x, extra = step(x, side, params["w"][str(i)], params["b"][str(i)])
            cost += extra
        return jnp.mean(x @ params["out"]) + cost

    def each(n, *shape):
        return {str(i): jnp.ones(shape) for i in range(n)}

    rest = {"side": each(late, 4, 4), "out": jnp.ones((4, 1))}
    stacked = {"w": jnp.ones((length, 4, 4)), "b": jnp.ones((length, 4)), **rest}
    single = {"w": each(length, 4, 4), "b": each(length, 4), **rest}
    a = find_layers(stacked, scanned, X)
    b = find_layers(single, unrolled, X)
    expected = dict(zip(b.names, b.depths, strict=True))
    found = {n.replace("[", "/").rstrip("]"): d for n, d in zip(a.names, a.depths, strict=True)}
    assert found == expected


def test_unused_parameters_stand_behind_their_neighbor():
    def loss_fn(params, x):
        return jnp.mean(jnp.tanh(x @ params["b"]) @ params["d"])

    layers = find_layers(weights("a", "b", "c", "d", "e"), loss_fn, X)
    assert layers.names == ("a", "b", "c", "d", "e")
    assert layers.depths == (0, 1, 1, 2, 2)
    assert layers.unused == ("a", "c", "e")


def test_ravelled_parameters_warn():
    def loss_fn(params, x):
        flat, restore = ravel_pytree(params)
        params = restore(flat * 1.0)
        for i in (1, 10, 2):
            x = jnp.tanh(x @ params[f"layer_{i}"])
        return jnp.mean(x)

    params = weights("layer_1", "layer_10", "layer_2")
    with pytest.warns(LayerOrderWarning, match="layer_1, layer_10, layer_2: parts of it are used"):
        layers = find_layers(params, loss_fn, X)
    assert layers.names == ("layer_1", "layer_2", "layer_10")
    assert [leaf.status for leaf in layers.leaves] == ["unknown"] * 3


def test_parameters_ravelled_in_the_body_of_a_scan_warn():
    def body(x, layer):
        flat, restore = ravel_pytree(layer)
        layer = restore(flat)
        return jnp.tanh(x @ layer["w"] + layer["b"]), None

    params = {"w": jnp.ones((3, 4, 4)), "b": jnp.ones((3, 4))}
    with pytest.warns(LayerOrderWarning, match="for b, w: parts"):
        find_layers(params, lambda params, x: jnp.mean(lax.scan(body, x, params)[0]), X)


def test_weights_that_wait_in_the_carry_warn():
    """Each kernel is applied one iteration after the scan brought it."""

    def loss_fn(params, x):
        def body(carry, w):
            x, previous = carry
            return (jnp.tanh(x @ previous), w), None

        (x, last), _ = lax.scan(body, (x, jnp.eye(4)), params["w"])
        return jnp.mean(x @ last)

    with pytest.warns(LayerOrderWarning, match="for w: parts"):
        find_layers({"w": jnp.ones((4, 4, 4))}, loss_fn, X)


def by_index(x, w):
    w = w.reshape(2, 4, 4)
    return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]), None


def by_scan(x, w):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w.reshape(2, 4, 4))


@pytest.mark.parametrize("body", [by_index, by_scan])
def test_the_parts_of_a_scanned_layer_stay_in_it(body):
    params = {"w": jnp.ones((3, 8, 4))}
    layers = find_layers(params, lambda params, x: jnp.mean(lax.scan(body, x, params["w"])[0]), X)
    assert layers.names == ("w[0]", "w[1]", "w[2]")
    assert layers.depths == (1, 3, 5)
    assert layers.tied == ("w",)


def test_an_index_that_meets_only_an_initial_state_stands_with_the_first():
    """The state is a delay line that is empty at first."""

    def loss_fn(params, x):
        def body(state, w):
            newest, oldest = state
            return (x, newest), jnp.tanh(oldest @ w)

        zeros = jnp.zeros((6, 4))
        return jnp.mean(lax.scan(body, (zeros, zeros), params["w"])[1])

    layers = find_layers({"w": jnp.ones((4, 4, 4))}, loss_fn, X)
    assert layers.names == ("w[0]", "w[1]", "w[2]", "w[3]")
    assert layers.depths == (1, 1, 1, 1)


def test_one_ravelled_parameter_of_several_takes_its_place_by_path():
    def loss_fn(params, x):
        x = jnp.tanh(x @ params["c"])
        flat, restore = ravel_pytree({k: params[k] for k in ("a", "d")})
        params = {**params, **restore(flat)}
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params["d"]) @ params["a"]) @ params["b"])

    with pytest.warns(LayerOrderWarning, match="for a, d: parts"):
        layers = find_layers(weights("a", "b", "c", "d"), loss_fn, X)
    assert layers.names == ("a", "c", "d", "b")
    assert layers.depths == (0, 1, 1, 4)


def test_weights_indexed_by_a_loop_counter_warn():
    def loss_fn(params, x):
        x = lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["w"][i]), x)
        return jnp.mean(x @ params["a"])

    params = {"a": jnp.ones((4, 1)), "w": jnp.ones((3, 4, 4))}
    with pytest.warns(LayerOrderWarning, match="for w: parts"):
        layers = find_layers(params, loss_fn, X)
    assert layers.names == ("a", "w")


def test_weights_indexed_in_an_unrolled_loop_warn():
    def loss_fn(params, x):
        for i in range(3):
            x = jnp.tanh(x @ params["w"][i])
        return jnp.mean(x)

    with pytest.warns(LayerOrderWarning, match="for w: parts"):
        find_layers({"w": jnp.ones((3, 4, 4))}, loss_fn, X)


def test_a_list_stacked_inside_the_loss_warns():
    def loss_fn(params, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack(params))
        return jnp.mean(x)

    with pytest.warns(LayerOrderWarning, match="for 0, 1, 2: parts"):
        find_layers([jnp.ones((4, 4))] * 3, loss_fn, X)


@pytest.mark.parametrize("change", [lambda w: w[::-1], lambda w: w[jnp.array([2, 0, 1])]])
def test_a_reordered_stack_warns(change):
    def loss_fn(params, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, change(params["w"]))
        return jnp.mean(x)

    with pytest.warns(LayerOrderWarning, match="for w: parts"):
        find_layers({"w": jnp.ones((3, 4, 4))}, loss_fn, X)


def test_an_opaque_primitive_warns_if_it_takes_several():
    def hidden(params, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name in ("c", "b"):
            x = jax.pure_callback(
                lambda w, x: np.asarray(x) @ np.asarray(w), shape, params[name], x
            )
        w = params["a"], params["d"]
        return jnp.mean(jax.pure_callback(lambda a, d, x: x, shape, *w, x))

    with pytest.warns(LayerOrderWarning, match="for a, d: it meets the data together with others"):
        layers = find_layers(weights("a", "b", "c", "d"), hidden, X)
    assert layers.names == ("a", "c", "d", "b")


def test_scans_along_different_axes_warn():
    def loss_fn(params, x):
        for w in (params["w"], jnp.swapaxes(params["w"], 0, 1)):
            x, _ = lax.scan(lambda x, w: (jnp.tanh(x * w), None), x, w)
        return jnp.mean(x)

    with pytest.warns(LayerOrderWarning, match="for w: scans run along different axes"):
        layers = find_layers({"w": jnp.ones((4, 4))}, loss_fn, X)
    assert layers.names == ("w",)


def test_a_loss_without_data_warns():
    with pytest.warns(LayerOrderWarning, match="the loss depends on no data"):
        layers = find_layers(
            weights("w_2", "w_10"), lambda params, _: jnp.sum(params["w_2"] @ params["w_10"])
        )
    assert layers.names == ("w_2", "w_10")


def test_slices_used_at_one_depth_are_no_reason_to_warn():
    def loss_fn(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"][0]) * (x @ params["w"][1]) @ params["a"])

    params = {"a": jnp.ones((4, 1)), "w": jnp.ones((2, 4, 4))}
    # Two matrices in one array, each a layer.
    assert find_layers(params, loss_fn, X).names == ("w[0]", "w[1]", "a")


def test_what_is_not_an_array_in_the_batch_stays_as_it_is():
    def loss_fn(params, batch):
        assert batch["activation"] == "tanh"
        return jnp.mean(jnp.tanh(batch["x"] @ params["b"]) @ params["a"]) * batch["scale"]

    batch = {"activation": "tanh", "scale": 2.0, "x": X, "none": None}
    assert find_layers(weights("a", "b"), loss_fn, batch).names == ("b", "a")


@pytest.mark.parametrize("result", [lambda x: x, lambda x: {"loss": jnp.mean(x)}, lambda x: None])
def test_a_loss_that_is_no_scalar_is_refused(result):
    with pytest.raises(ValueError, match="must return a scalar or"):
        find_layers(weights("a"), lambda params, x: result(x @ params["a"]), X)


def test_time_is_linear_in_the_equations():
    def seconds(depth):
        names = [f"layer_{i}" for i in range(depth)]
        params = {name: (jnp.ones((4, 4)), jnp.ones(4)) for name in names}

        def loss_fn(params, x):
            for name in names:
                w, b = params[name]
                x = jax.nn.relu(x @ w + b)
            return jnp.mean(x) + sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

        start = time.perf_counter()
        assert len(find_layers(params, loss_fn, X)) == 2 * depth
        return time.perf_counter() - start

    seconds(10)
    short = min(seconds(50) for _ in range(3))
    long = min(seconds(400) for _ in range(3))
    assert long < 8 * 3 * short


def test_the_walk_of_a_scan_does_not_grow_with_its_length():
    short, long = (scan_model(reverse=True, length=length) for length in (3, 3000))
    start = time.perf_counter()
    layers = find_layers(long.params, long.loss_fn, long.batch)
    assert time.perf_counter() - start < 5
    assert layers.names[1] == "w[2999]"
    assert layers.depths[-1] == 9002
    assert find_layers(short.params, short.loss_fn, short.batch).depths[-1] == 11


def test_random_data_from_a_key_in_the_batch():
    def loss_fn(params, key):
        return jnp.mean(jnp.tanh(jax.random.normal(key, (6, 4)) @ params["b"]) @ params["a"])

    assert find_layers(weights("a", "b"), loss_fn, KEY).names == ("b", "a")
