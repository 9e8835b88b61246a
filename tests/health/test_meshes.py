"""Looking at networks whose arrays lie on a mesh, or under one: the numbers of one device."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import vanishjax as vj
from vanishjax import initializers

PROBLEM = vj.mlp_problem(8, (8,) * 2, 4, activation="tanh", tx=optax.adam(1e-3))
BATCH = (jax.random.normal(jax.random.key(0), (16, 8)), jnp.arange(16) % 4)
NUMBERS = ("log_chi", "gradient_rms", "preactivation_rms", "effective_rank", "saturated_fraction")


def mesh_of(name):
    if name == "auto":
        return jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    if name == "several":
        return jax.make_mesh((4, 2), ("batch", "model"))
    return jax.make_mesh((int(name),), ("batch",))


def placed(tree, mesh, spec):
    """On the mesh, spread by the spec where that divides the array's axes."""

    def place(x):
        sizes = [mesh.shape.get(axis, 1) for axis in spec]
        fits = x.ndim >= len(sizes) and not any(
            n % size for n, size in zip(x.shape, sizes, strict=False)
        )
        return jax.device_put(x, NamedSharding(mesh, spec if fits else P()))

    return jax.tree.map(place, tree)


def context(mesh, is_set):
    return jax.set_mesh(mesh) if is_set else contextlib.nullcontext()


@pytest.fixture(scope="module")
def expected():
    return vj.probe(PROBLEM, BATCH), vj.find_layers(PROBLEM, BATCH), vj.diagnose(PROBLEM, BATCH)


@pytest.mark.parametrize(
    ("kind", "params_spec", "batch_spec", "is_set"),
    [
        ("4", None, None, True),
        ("4", None, P("batch"), False),
        ("auto", P(), P("batch"), False),
        ("auto", P(), P("batch"), True),
        ("several", P(None, "model"), P("batch"), False),
        ("several", P("model"), P(("batch", "model")), True),
    ],
)
def test_the_numbers_are_those_of_one_device(expected, kind, params_spec, batch_spec, is_set):
    mesh = mesh_of(kind)
    params = PROBLEM.params if params_spec is None else placed(PROBLEM.params, mesh, params_spec)
    batch = BATCH if batch_spec is None else placed(BATCH, mesh, batch_spec)
    assert (len(batch[0].sharding.device_set) > 1) == (batch_spec is not None)
    measured, layers, verdict = expected
    with context(mesh, is_set):
        assert vj.find_layers(params, PROBLEM.loss_fn, batch) == layers
        found = vj.diagnose(PROBLEM.loss_fn, params, batch, PROBLEM.tx)
    for name in NUMBERS:
        own = getattr(found.probe, name)
        np.testing.assert_allclose(own, getattr(measured, name), rtol=1e-5, atol=1e-6)
    assert [one.rule for one in found.findings] == [one.rule for one in verdict.findings]
    np.testing.assert_allclose(found.effectiveness, verdict.effectiveness, rtol=1e-5)


MESH = jax.make_mesh((4, 2), ("batch", "model"))
KERNELS = {
    "a": jax.random.normal(jax.random.key(1), (8, 16)) / 3,
    "b": jax.random.normal(jax.random.key(2), (16, 4)) / 4,
}


def on_one_device(params, x):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"]) ** 2)


def with_resharding(params, x):
    x = jax.sharding.reshard(x, P("batch"))
    h = jnp.tanh(x @ jax.sharding.reshard(params["a"], P(None, "model")))
    return jnp.mean(jnp.einsum("bi,ij->bj", h, params["b"], out_sharding=P("batch")) ** 2)


def with_an_assertion(params, x):
    return on_one_device(params, jax.lax.with_sharding_constraint(x, P("batch")))


@pytest.mark.parametrize("loss_fn", [with_resharding, with_an_assertion])
def test_a_loss_may_lay_down_how_its_arrays_are_spread(loss_fn):
    plain = vj.probe(on_one_device, KERNELS, BATCH[0])
    params, x = placed(KERNELS, MESH, P()), placed(BATCH[0], MESH, P("batch"))
    with jax.set_mesh(MESH):
        found = vj.probe(loss_fn, params, x)
        layers = vj.find_layers(params, loss_fn, x)
    assert found.names == plain.names
    assert layers.names == ("a", "b")
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-6)


def test_a_loss_may_be_a_shard_map():
    @jax.shard_map(mesh=MESH, in_specs=(P(), P("batch")), out_specs=P("batch"))
    def outputs(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    def loss_fn(params, x):
        return jnp.mean(outputs(params, x) ** 2)

    params, x = placed(KERNELS, MESH, P()), placed(BATCH[0], MESH, P("batch"))
    found = vj.probe(loss_fn, params, x)
    assert found.unmeasured == ("a", "b")  # it can't be looked into
    gradient = jax.grad(on_one_device)(KERNELS, BATCH[0])
    expected = [float(jnp.sqrt(jnp.mean(gradient[name] ** 2))) for name in ("a", "b")]
    np.testing.assert_allclose(found.parameters.rms, expected, rtol=1e-5)


@pytest.mark.parametrize("spec", [None, P()])
def test_what_trains_a_copy_needs_no_more_than_training_does(spec):
    """Alone, JAX refuses a gradient that sums over a batch on explicit axes."""
    mesh = mesh_of("4")
    params = PROBLEM.params if spec is None else placed(PROBLEM.params, mesh, spec)
    batch = placed(BATCH, mesh, P("batch"))
    learned, plain = (
        vj.diagnose(PROBLEM.loss_fn, *one, PROBLEM.tx, steps=5, held_out=one[1]).learning
        for one in ((params, batch), (PROBLEM.params, BATCH))
    )
    np.testing.assert_allclose(learned.losses, plain.losses, rtol=1e-5)
    problem = dataclasses.replace(PROBLEM, params=params)
    cured = vj.cure(problem, [batch] * 4, steps=5, key=jax.random.key(0))
    same = vj.cure(PROBLEM, [BATCH] * 4, steps=5, key=jax.random.key(0))
    assert cured.accepted == same.accepted
    assert [one.remedy for one in cured.trials] == [one.remedy for one in same.trials]


def test_the_model_state_comes_along():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(8, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    problem = vj.Problem.from_nnx(Net(nnx.Rngs(0)), lambda model, x: jnp.mean(jnp.tanh(model(x))))
    plain = vj.probe(problem, BATCH[0])
    spread = placed((problem.params, problem.model_state), MESH, P())
    moved = vj.Problem(
        problem.loss_fn, spread[0], model_state=spread[1], has_aux=True, with_state=True
    )
    found = vj.probe(moved, placed(BATCH[0], MESH, P("batch")))
    np.testing.assert_allclose(found.log_gradient_rms, plain.log_gradient_rms, rtol=1e-5)


@pytest.mark.parametrize("initializer", [initializers.lsuv, initializers.pca, initializers.shaped])
def test_new_parameters_lie_where_the_old_ones_did(initializer):
    params = placed(PROBLEM.params, MESH, P(None, "model"))
    new = initializer(PROBLEM.loss_fn, params, placed(BATCH, MESH, P("batch")))
    expected = initializer(PROBLEM, BATCH)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), new, expected)
    assert jax.tree.map(lambda x: x.sharding, new) == jax.tree.map(lambda x: x.sharding, params)
