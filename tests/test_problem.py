"""Problems made from users' own models: the same training as in the framework's own style."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (8, 6, 6, 3))
LABELS = jnp.arange(8) % 4
BATCH = (IMAGES, LABELS)
TX = optax.adam(1e-2)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits, labels):
    return jnp.mean(jnp.argmax(logits, -1) == labels)


# Residual networks with BatchNorm and dropout.


class LinenResNet(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(2):
            h = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = x + nn.Conv(8, (3, 3))(h)
        x = nn.Dropout(self.rate, deterministic=not train)(jnp.mean(x, (1, 2)))
        return nn.Dense(4)(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv = nnx.Conv(8, 8, (3, 3), rngs=rngs)

    def __call__(self, x):
        return x + self.conv(nnx.relu(self.norm(x)))


class NnxResNet(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(jnp.mean(x, (1, 2))))


class EqxNet(eqx.Module):
    dense: list
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    steps: jax.Array
    activation: object = jax.nn.relu

    def __init__(self, key, rate=0.5):
        keys = jax.random.split(key, 2)
        self.dense = [eqx.nn.Linear(108, 16, key=keys[0]), eqx.nn.Linear(16, 4, key=keys[1])]
        self.norm = eqx.nn.BatchNorm(16, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(rate)
        self.steps = jnp.arange(3)

    def __call__(self, x, state, key):
        x, state = self.norm(self.dense[0](x.reshape(-1)), state)
        return self.dense[1](self.dropout(self.activation(x), key=key)), state


def linen_problem(rate=0.5, tx=TX):
    variables = LinenResNet().init(KEY, IMAGES)

    def loss_fn(apply, batch):
        logits = apply(batch[0])
        return cross_entropy(logits, batch[1]), {"accuracy": accuracy(logits, batch[1])}

    return vj.Problem.from_linen(LinenResNet(rate), variables, loss_fn, tx)


def nnx_problem(rate=0.5, tx=TX):
    def loss_fn(model, batch):
        return cross_entropy(model(batch[0]), batch[1])

    return vj.Problem.from_nnx(NnxResNet(nnx.Rngs(0), rate), loss_fn, tx)


def eqx_apply(model, state, x, key):
    keys = jax.random.split(key, len(x))
    run = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    return run(x, state, keys)


def eqx_problem(rate=0.5, tx=TX):
    model, state = eqx.nn.make_with_state(EqxNet)(KEY, rate)

    def loss_fn(model, batch, *, state, key):
        logits, state = eqx_apply(model, state, batch[0], key)
        return cross_entropy(logits, batch[1]), (state, {"largest": jnp.max(logits)})

    return vj.Problem.from_equinox(model, loss_fn, tx, state=state)


PROBLEMS = {"linen": linen_problem, "nnx": nnx_problem, "equinox": eqx_problem}


def train(problem, steps=3):
    """A loop by hand over `evaluate`: the last parameters and state, and all losses."""
    params, state, losses = problem.params, problem.model_state, []
    opt_state = problem.tx.init(params)

    @jax.jit
    def step(params, state, opt_state, key):
        def loss_fn(params):
            found = problem.evaluate(params, BATCH, model_state=state, key=key)
            return found.loss, found

        gradient, found = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = problem.tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), found, opt_state

    for number in range(steps):
        key = jax.random.fold_in(KEY, number)
        params, found, opt_state = step(params, state, opt_state, key)
        state = found.model_state
        losses.append(float(found.loss))
    return params, state, losses


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_linen_trains_as_by_its_own_apply():
    """Dropout and all: the step's key is the key of the stream "dropout"."""
    module = LinenResNet()
    variables = module.init(KEY, IMAGES)
    params, stats, losses = variables["params"], variables["batch_stats"], []
    opt_state = TX.init(params)

    @jax.jit
    def step(params, stats, opt_state, key):
        def loss_fn(params):
            logits, new = module.apply(
                {"params": params, "batch_stats": stats},
                IMAGES,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, LABELS), new["batch_stats"]

        (loss, stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = TX.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, loss

    for number in range(3):
        key = jax.random.fold_in(KEY, number)
        params, stats, opt_state, loss = step(params, stats, opt_state, key)
        losses.append(float(loss))

    problem = linen_problem()
    own, state, own_losses = train(problem)
    np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
    assert_close(own, params)
    assert_close(state, {"batch_stats": stats})
    expected = module.apply({"params": params, "batch_stats": stats}, IMAGES, train=False)
    found = problem.evaluate(own, BATCH, model_state=state, training=False)
    np.testing.assert_allclose(found.loss, cross_entropy(expected, LABELS), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["accuracy"], accuracy(expected, LABELS))
    assert found.model_state is state
    assert_close(problem.model(own, state), {"params": params, "batch_stats": stats})


def test_nnx_trains_as_by_its_own_optimizer():
    model = NnxResNet(nnx.Rngs(0), rate=0.0)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    losses = []

    @nnx.jit
    def step(model, optimizer):
        def loss_fn(model):
            return cross_entropy(model(IMAGES), LABELS)

        loss, gradient = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, gradient)
        return loss

    for _ in range(3):
        losses.append(float(step(model, optimizer)))

    problem = nnx_problem(rate=0.0)
    own, state, own_losses = train(problem)
    np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
    again = problem.model(own, state)
    assert isinstance(again, NnxResNet)
    for kind in (nnx.Param, nnx.BatchStat):
        assert_close(
            nnx.to_pure_dict(nnx.state(again, kind)), nnx.to_pure_dict(nnx.state(model, kind))
        )
    model.eval()
    found = problem.evaluate(own, BATCH, model_state=state, training=False)
    np.testing.assert_allclose(found.loss, cross_entropy(model(IMAGES), LABELS), rtol=1e-5)
    assert found.model_state is state


def test_equinox_trains_as_by_filtered_gradients():
    model, state = eqx.nn.make_with_state(EqxNet)(KEY)
    opt_state = TX.init(eqx.filter(model, eqx.is_inexact_array))
    losses = []

    @eqx.filter_jit
    def step(model, state, opt_state, key):
        def loss_fn(model):
            logits, new = eqx_apply(model, state, IMAGES, key)
            return cross_entropy(logits, LABELS), new

        (loss, new), gradient = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model)
        updates, opt_state = TX.update(gradient, opt_state)
        return eqx.apply_updates(model, updates), new, opt_state, loss

    for number in range(3):
        key = jax.random.fold_in(KEY, number)
        model, state, opt_state, loss = step(model, state, opt_state, key)
        losses.append(float(loss))

    problem = eqx_problem()
    own, own_state, own_losses = train(problem)
    np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
    again, again_state = problem.model(own, own_state)
    assert_close(eqx.filter(again, eqx.is_array), eqx.filter(model, eqx.is_array))
    assert_close(jax.tree.leaves(again_state), jax.tree.leaves(state))
    logits, _ = eqx_apply(eqx.nn.inference_mode(model), state, IMAGES, KEY)
    found = problem.evaluate(own, BATCH, model_state=own_state, training=False)
    np.testing.assert_allclose(found.loss, cross_entropy(logits, LABELS), rtol=1e-5)
    assert float(found.metrics["largest"]) == pytest.approx(float(jnp.max(logits)), rel=1e-5)


@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
def test_parameters_are_plain_trees_of_floating_arrays(make):
    problem = make()
    for path, leaf in jax.tree_util.tree_leaves_with_path(problem.params):
        assert jnp.issubdtype(leaf.dtype, jnp.floating)
        assert not jax.tree_util.keystr(path, simple=True, separator="/").endswith("value")

    def is_plain(tree):
        return all(map(is_plain, tree.values())) if type(tree) is dict else jnp.shape(tree) != ()

    assert is_plain(problem.params)


@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
def test_every_step_draws_anew_and_evaluation_never(make):
    problem = make()
    assert problem.with_key
    keys = [jax.random.fold_in(KEY, number) for number in (0, 0, 1)]
    losses = [float(problem.evaluate(problem.params, BATCH, key=key).loss) for key in keys]
    assert losses[0] == losses[1] != losses[2]
    still = [
        float(problem.evaluate(problem.params, BATCH, key=key, training=False).loss)
        for key in [*keys, None]
    ]
    assert len(set(still)) == 1
    assert still[0] not in losses


@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
def test_networks_are_looked_at(make):
    problem = make()
    layers = vj.find_layers(problem, BATCH)
    assert {leaf.status for leaf in layers.leaves} == {"used"}
    verdict = vj.diagnose(problem, BATCH)
    assert verdict.verdict == "healthy", str(verdict)
    assert verdict.effectiveness is not None  # of the problem's transform
    found = problem.evaluate(problem.params, BATCH, key=jax.random.key(0))
    assert verdict.probe.loss == pytest.approx(float(found.loss), rel=1e-5)
