"""MLPs in linen and nnx, their activations and the problem made of them."""

import inspect
import math
from types import SimpleNamespace

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vanishjax import losses
from vanishjax.activations import ACTIVATIONS, resolve_activation
from vanishjax.models import (
    MLP,
    NnxMLP,
    mlp_problem,
    parameter_shapes,
    stack_params,
    unstack_params,
)
from vanishjax.problem import Problem

RESIDUALS = [None, "scaled", "rezero"]
IN, WIDTH, DEPTH, CLASSES = 5, 8, 4, 3
HIDDEN = (WIDTH,) * DEPTH


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), [7, IN])


def redraw(params, seed=2):
    """Replaces every leaf by noise, so that no bias or alpha hides behind its zero."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [jax.random.normal(k, v.shape, v.dtype) / 2 for k, v in zip(keys, leaves, strict=True)]
    return treedef.unflatten(noise)


def nnx_params(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# Linen and nnx through one face: (params, apply(params, x)).
def linen_net(hidden=HIDDEN, **options):
    model = MLP(hidden, CLASSES, **options)
    params = model.init(jax.random.key(0), jnp.zeros([1, IN]))["params"]
    return SimpleNamespace(params=params, apply=lambda p, x: model.apply({"params": p}, x))


def nnx_net(hidden=HIDDEN, **options):
    model = NnxMLP(IN, hidden, CLASSES, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(model)

    def apply(params, x):
        copy = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(copy, params)
        return nnx.merge(graph, copy)(x)

    return SimpleNamespace(params=nnx_params(model), apply=apply)


NETS = [linen_net, nnx_net]


def forward_by_hand(params, x, activation, residual):
    """The formula of the docstring in NumPy float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h = np.asarray(x, np.float64)
    for i in range(len(params) - 1):
        layer = params[f"hidden_{i}"]
        z = h @ layer["kernel"] + layer["bias"]
        branch = np.asarray(activation(jnp.asarray(z, jnp.float32)), np.float64)
        gain = {"scaled": 1 / math.sqrt(DEPTH - 1), "rezero": layer.get("alpha")}.get(residual)
        h = branch if residual is None or i == 0 else h + gain * branch
    return h @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("net", NETS)
def test_forward_is_the_formula(net, residual, x):
    unrolled = net(residual=residual, activation="tanh")
    params = redraw(unrolled.params)
    expected = forward_by_hand(params, x, jnp.tanh, residual)
    np.testing.assert_allclose(unrolled.apply(params, x), expected, rtol=1e-5, atol=1e-5)


class ScannedIsUnrolled(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_outputs_and_gradients(self):
        x = jax.random.normal(jax.random.key(1), [7, IN])
        for net in NETS:
            for residual in RESIDUALS:
                unrolled = net(residual=residual)
                scanned = net(residual=residual, scan=True)
                params = redraw(unrolled.params)
                stacked = stack_params(params)
                chex.assert_trees_all_equal_shapes_and_dtypes(stacked, scanned.params)

                def run(apply):
                    return self.variant(jax.value_and_grad(lambda p, x: jnp.sum(apply(p, x) ** 2)))

                expected, gradient = run(unrolled.apply)(params, x)
                value, stacked_gradient = run(scanned.apply)(stacked, x)
                np.testing.assert_allclose(value, expected, rtol=1e-5)
                chex.assert_trees_all_equal_structs(stacked_gradient, scanned.params)
                chex.assert_trees_all_close(
                    stacked_gradient, stack_params(gradient), rtol=1e-4, atol=1e-6
                )


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_linen_and_nnx_agree(residual, scan, x):
    linen, graph = (net(residual=residual, scan=scan) for net in NETS)
    chex.assert_trees_all_equal_shapes_and_dtypes(linen.params, graph.params)
    params = redraw(linen.params)
    np.testing.assert_allclose(linen.apply(params, x), graph.apply(params, x), rtol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_names_and_shapes(net):
    shapes = jax.tree.map(jnp.shape, net(residual="rezero", scan=True).params)
    assert shapes == {
        "hidden_0": {"kernel": (IN, WIDTH), "bias": (WIDTH,)},
        "hidden_stack": {
            "kernel": (DEPTH - 1, WIDTH, WIDTH),
            "bias": (DEPTH - 1, WIDTH),
            "alpha": (DEPTH - 1,),
        },
        "output": {"kernel": (WIDTH, CLASSES), "bias": (CLASSES,)},
    }
    names = list(net().params)
    assert sorted(names) == ["hidden_0", "hidden_1", "hidden_2", "hidden_3", "output"]


@pytest.mark.parametrize("net", NETS)
def test_stack_and_unstack_are_inverse(net):
    params = redraw(net(residual="rezero").params)
    chex.assert_trees_all_equal(unstack_params(stack_params(params)), params)
    shallow = net(hidden=(WIDTH,), scan=True).params
    chex.assert_trees_all_equal(stack_params(shallow), shallow)
    chex.assert_trees_all_equal(unstack_params(shallow), shallow)


def test_layers_of_two_shapes_do_not_stack():
    with pytest.raises(ValueError, match=r"hidden_2 has .*4"):
        stack_params(linen_net(hidden=(8, 8, 4)).params)


@pytest.mark.parametrize("net", NETS)
def test_every_layer_of_a_stack_draws_its_own_weights(net):
    kernel = net(scan=True, kernel_init=nn.initializers.orthogonal()).params["hidden_stack"][
        "kernel"
    ]
    assert not np.allclose(kernel[0], kernel[1])
    products = np.einsum("lij,lkj->lik", kernel, kernel)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(WIDTH), products.shape), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_initializers_and_param_dtype(net, scan):
    def seven(key, shape, dtype):
        return jnp.full(shape, 7, dtype)

    params = net(
        scan=scan, bias_init=seven, kernel_init=seven, param_dtype=jnp.bfloat16, residual="rezero"
    ).params
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == jnp.bfloat16
        assert np.all(leaf == (0 if "alpha" in jax.tree_util.keystr(path) else 7))


@pytest.mark.parametrize("net", NETS)
def test_default_initializer_is_lecun_normal(net):
    params = net(hidden=(256, 256, 256), scan=True).params
    variance = np.var(params["hidden_stack"]["kernel"]) * 256
    assert abs(variance - 1) < 6 * math.sqrt(2 / (2 * 256**2))
    assert not np.any(params["hidden_stack"]["bias"])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_rezero_starts_as_the_identity(net, scan, x):
    deep = net(residual="rezero", scan=scan)
    ends = {name: deep.params[name] for name in ("hidden_0", "output")}
    shallow = net(hidden=(WIDTH,), residual="rezero")
    np.testing.assert_array_equal(deep.apply(deep.params, x), shallow.apply(ends, x))


@pytest.mark.parametrize("net", NETS)
def test_scaled_residual_keeps_the_variance_bounded(net):
    # Identity activation, LeCun weights: the variance grows by 1 + 1/L a layer, e in all.
    depth, width = 51, 256
    keep = {"kernel_init": nn.initializers.lecun_normal(), "activation": "identity", "scan": True}
    deep = net(hidden=(width,) * depth, residual="scaled", **keep)
    identity = jnp.eye(width)
    params = {
        **deep.params,
        "hidden_0": {"kernel": identity[:IN], "bias": jnp.zeros(width)},
        "output": {"kernel": identity[:, :CLASSES], "bias": jnp.zeros(CLASSES)},
    }
    x = jax.random.normal(jax.random.key(3), [64, IN])
    stack = params["hidden_stack"]["kernel"]
    h = x @ identity[:IN]
    q0 = jnp.mean(h**2)
    for kernel in stack:
        h = h + h @ kernel / math.sqrt(depth - 1)
    np.testing.assert_allclose(deep.apply(params, x), h[:, :CLASSES], rtol=1e-3, atol=1e-4)
    assert float(jnp.mean(h**2) / q0) == pytest.approx(
        (1 + 1 / (depth - 1)) ** (depth - 1), rel=0.1
    )


def test_only_square_layers_after_the_first_are_residual(x):
    net = linen_net(hidden=(IN, IN, 4, 4), residual="rezero")
    assert [name for name in net.params if "alpha" in net.params[name]] == ["hidden_1", "hidden_3"]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("net", NETS)
def test_bfloat16(net, residual, scan, x):
    low = net(residual=residual, scan=scan, dtype=jnp.bfloat16)
    full = net(residual=residual, scan=scan)
    params = redraw(full.params)
    output = low.apply(params, x)
    chex.assert_type(output, jnp.bfloat16)
    np.testing.assert_allclose(
        output.astype(jnp.float32), full.apply(params, x), rtol=0.1, atol=0.1
    )
    gradient = jax.grad(lambda p: low.apply(p, x).astype(jnp.float32).sum())(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)


def count_equations(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        total += 1
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns"),
        ):
            inner = getattr(value, "jaxpr", value)
            total += count_equations(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("net", NETS)
def test_program_size_does_not_grow_with_depth(net, residual, x):
    def equations(depth, scan=True):
        model = net(hidden=(WIDTH,) * depth, residual=residual, scan=scan)
        loss = jax.value_and_grad(lambda p: model.apply(p, x).sum())
        return count_equations(jax.make_jaxpr(loss)(model.params).jaxpr)

    assert equations(10) == equations(1000)
    assert equations(3, scan=False) < equations(6, scan=False)


def test_partitioned_initializers_name_the_stacked_axis():
    partitioned = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    params = linen_net(scan=True, kernel_init=partitioned).params
    assert params["hidden_stack"]["kernel"].names == ("layers", None, "model")


def test_nnx_trains_with_its_own_optimizer(x):
    model = NnxMLP(IN, HIDDEN, 1, activation="tanh", scan=True, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    y = x[:, 0]

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: losses.squared_error(m(x), y))(model)
        optimizer.update(model, grads)
        return loss

    first = step(model, optimizer)
    for _ in range(100):
        last = step(model, optimizer)
    assert last < first / 10


@pytest.mark.parametrize(
    ("name", "points"),
    {
        "centered_sigmoid": [-0.2310585786, 0.0, 0.2310585786],
        "elu": [-0.6321205588, 0.0, 1.0],
        "erf": [-0.8427007929, 0.0, 0.8427007929],
        "gelu": [-0.1586552539, 0.0, 0.8413447461],
        "hard_tanh": [-1.0, 0.0, 1.0],
        "identity": [-1.0, 0.0, 1.0],
        "leaky_relu": [-0.01, 0.0, 1.0],
        "relu": [0.0, 0.0, 1.0],
        "selu": [-1.1113307378, 0.0, 1.0507009874],
        "sigmoid": [0.2689414214, 0.5, 0.7310585786],
        "silu": [-0.2689414214, 0.0, 0.7310585786],
        "softplus": [0.3132616875, 0.6931471806, 1.3132616875],
        "softsign": [-0.5, 0.0, 0.5],
        "tanh": [-0.7615941560, 0.0, 0.7615941560],
    }.items(),
)
def test_activations_at_minus_one_zero_and_one(name, points):
    values = resolve_activation(name)(jnp.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(values, points, atol=1e-6)


def test_every_activation_is_tested_above():
    mark = test_activations_at_minus_one_zero_and_one.pytestmark[0]
    assert {name for name, _ in mark.args[1]} == set(ACTIVATIONS)


def test_resolve_activation_passes_functions_and_suggests_names():
    assert resolve_activation(jnp.sin) is jnp.sin
    with pytest.raises(ValueError, match=r"'ReLu': did you mean 'relu'\? Known: centered_sigmoid"):
        resolve_activation("ReLu")
    with pytest.raises(ValueError, match="unknown activation 'zzz': Known: "):
        resolve_activation("zzz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ()}, "at least one layer's width"),
        ({"hidden": 64}, r"such as \(64, 32\), got 64"),
        ({"hidden": (8, 0)}, "every width in hidden must be at least 1, got 0"),
        ({"hidden": (8, 2.5)}, "every width in hidden must be a whole number, got 2.5"),
        ({"hidden": "88"}, "every width in hidden must be a whole number, got '8'"),
        ({"classes": True}, "classes must be a whole number, got True"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"residual": "skip"}, "residual must be None, 'scaled' or 'rezero', got 'skip'"),
        ({"hidden": (8, 4), "scan": True}, r"needs equal widths, got \(8, 4\)"),
        ({"activation": "tan"}, "did you mean 'tanh'"),
    ],
)
def test_impossible_architectures(change, message):
    arguments = {"hidden": (8, 8), "classes": 3, **change}
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)
    with pytest.raises(ValueError, match=message):
        NnxMLP(4, **arguments, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        mlp_problem(4, **arguments, tx=optax.sgd(0.1))


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize(
    ("hidden", "scan"), [((8,), True), ((8,), False), (HIDDEN, True), ((8, 8, 5, 5, 8), False)]
)
def test_the_shapes_of_the_parameters_are_known_without_tracing(hidden, scan, residual):
    model = MLP(hidden, CLASSES, residual=residual, scan=scan)
    traced = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, IN]))["params"]
    leaves = flax.traverse_util.flatten_dict(traced, sep="/")
    shapes = parameter_shapes(IN, hidden, CLASSES, residual=residual, scan=scan)
    assert dict(shapes) == {name: leaf.shape for name, leaf in leaves.items()}


def test_impossible_problems():
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        mlp_problem(0, (8,), 3)
    with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
        mlp_problem(4, (8,), 3, loss="crossentropy")
    with pytest.raises(ValueError, match="classes >= 2, got 1: use loss='squared_error'"):
        mlp_problem(4, (8,), 1)


def train(problem, batch, steps):
    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(problem.loss_fn)(params, batch)
        updates, state = problem.tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state = problem.params, problem.tx.init(problem.params)
    for _ in range(steps):
        params, state, loss = step(params, state)
    return params, loss


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_classification_problem_learns(dtype):
    x = jax.random.normal(jax.random.key(1), [64, IN])
    labels = jnp.argmax(x[:, :CLASSES], axis=1)
    problem = mlp_problem(
        IN, (16, 16), CLASSES, activation="tanh", tx=optax.adam(1e-2), dtype=dtype
    )
    first = problem.loss_fn(problem.params, (x, labels))
    chex.assert_shape(first, ())
    chex.assert_type(first, jnp.float32)
    params, loss = train(problem, (x, labels), 150)
    assert loss < first / 5
    assert losses.accuracy(problem.predict_fn(params, x), labels) > 0.95


@pytest.mark.parametrize("classes", [1, 2])
def test_regression_problem_learns(classes):
    x = jax.random.normal(jax.random.key(1), [64, IN])
    targets = jnp.sin(x[:, 0]) if classes == 1 else jnp.sin(x[:, :2])
    problem = mlp_problem(
        IN, (16, 16), classes, activation="tanh", loss="squared_error", tx=optax.adam(1e-2)
    )
    _, loss = train(problem, (x, targets), 300)
    assert loss < 0.05


@pytest.mark.parametrize(
    ("hidden", "scan", "stacked"),
    [
        ((8, 8, 8), None, True),
        ((8, 8), None, False),
        ((8, 8, 4), None, False),
        ((8, 8, 8), False, False),
        ((8, 8), True, True),
    ],
)
def test_three_equal_layers_are_scanned_by_default(hidden, scan, stacked):
    problem = mlp_problem(4, hidden, 3, scan=scan, tx=optax.sgd(0.1))
    assert ("hidden_stack" in problem.params) == stacked


def test_problem_draws_from_its_key():
    def kernel(**options):
        return mlp_problem(4, (8,), 3, tx=optax.sgd(0.1), **options).params["hidden_0"]["kernel"]

    np.testing.assert_array_equal(kernel(), kernel(key=jax.random.key(0)))
    assert not np.allclose(kernel(), kernel(key=jax.random.key(1)))


def test_default_transform_is_adam():
    problem = mlp_problem(4, (8,), 3)
    gradient = jax.tree.map(jnp.ones_like, problem.params)
    updates, _ = problem.tx.update(gradient, problem.tx.init(problem.params), problem.params)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -1e-3, rtol=1e-4)


def test_rebuild_keeps_the_rest():
    tx = optax.sgd(0.5)
    problem = mlp_problem(4, (8, 8, 8), 3, activation="tanh", dtype=jnp.bfloat16, tx=tx)
    changed = problem.rebuild(residual="rezero")
    assert changed.tx is tx
    assert changed.config == {**problem.config, "residual": "rezero"}
    assert "alpha" in changed.params["hidden_stack"]
    assert "alpha" not in problem.params["hidden_stack"]
    other = optax.sgd(0.1)
    assert problem.rebuild(tx=other).tx is other
    chex.assert_trees_all_equal(problem.rebuild().params, problem.params)
    with pytest.raises(TypeError, match=r"unknown residuals; it can change activation, .*tx"):
        problem.rebuild(residuals="rezero")


def test_config_holds_every_argument():
    arguments = {
        "in_features": 4,
        "hidden": (8, 8, 8),
        "classes": 2,
        "activation": "tanh",
        "kernel_init": nn.initializers.he_normal(),
        "bias_init": nn.initializers.ones,
        "residual": "scaled",
        "scan": False,
        "loss": "squared_error",
        "key": jax.random.key(3),
        "dtype": jnp.float16,
        "param_dtype": jnp.bfloat16,
    }
    assert mlp_problem(**arguments, tx=optax.sgd(0.1)).config == arguments
    assert set(inspect.signature(mlp_problem).parameters) == {*arguments, "tx"}


def test_problem_refuses_what_cannot_be_trained_or_rebuilt():
    with pytest.raises(ValueError, match="has no factory"):
        Problem(lambda p, b: p, 1.0, optax.sgd(0.1)).rebuild(residual="rezero")
    with pytest.raises(TypeError, match=r"loss_fn must be a function.*got int"):
        Problem(3, 1.0, optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"tx must be a gradient transform.*got float"):
        Problem(lambda p, b: p, 1.0, 0.1)
