"""Problems made from users' own models: the same training as in the framework's own style."""

import dataclasses
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax import initializers

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
    # In training mode but for dropout, whose masks count as their means.
    draws = [problem.evaluate(problem.params, BATCH, key=jax.random.key(i)).loss for i in range(64)]
    assert verdict.probe.loss == pytest.approx(float(np.mean(draws)), rel=0.1)
    assert verdict.probe.loss != pytest.approx(float(draws[0]), rel=1e-3)


def test_what_is_compiled_for_a_loss_is_found_again():
    problem = nnx_problem()
    other = vj.Problem.from_nnx(problem.model(), lambda model, batch: 0.0)
    again = dataclasses.replace(problem, params=jax.tree.map(jnp.zeros_like, problem.params))
    assert again.plain_loss == problem.plain_loss
    assert hash(again.plain_loss) == hash(problem.plain_loss)
    assert other.plain_loss != problem.plain_loss
    stale = dataclasses.replace(
        problem, model_state=jax.tree.map(jnp.zeros_like, problem.model_state)
    )
    assert stale.plain_loss != problem.plain_loss


# Flax linen: what tells training from evaluation, collections, keys.

X = jax.random.normal(jax.random.key(2), (8, 4))


class BySwitch(nn.Module):
    """Takes its mode by a name, in a call or as a field."""

    name_: str
    train: bool | None = None
    deterministic: bool | None = None

    def hidden(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Train(BySwitch):
    @nn.compact
    def __call__(self, x, train=False):
        return self.hidden(x, train)


class Training(BySwitch):
    @nn.compact
    def __call__(self, x, *, training):
        return self.hidden(x, training)


class Deterministic(BySwitch):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return self.hidden(x, not deterministic)


class Running(BySwitch):
    @nn.compact
    def __call__(self, x, use_running_average=True):
        return self.hidden(x, not use_running_average)


class Field(BySwitch):
    @nn.compact
    def __call__(self, x):
        return self.hidden(x, self.train)


class Merged(BySwitch):
    @nn.compact
    def __call__(self, x, deterministic=None):
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return self.hidden(x, not deterministic)


class Method(BySwitch):
    @nn.compact
    def encode(self, x, train):
        return self.hidden(x, train)

    def __call__(self, x):
        raise AssertionError


def mean_square(apply, x):
    return jnp.mean(apply(x) ** 2)


SWITCHES = {
    "train": (Train("a"), {"train": False}, mean_square),
    "positional": (Train("a"), {"train": False}, lambda apply, x: jnp.mean(apply(x, True) ** 2)),
    "by the loss": (
        Train("a"),
        {"train": False},
        lambda apply, x, *, training: jnp.mean(apply(x, train=training) ** 2),
    ),
    "training": (Training("a"), {"training": False}, mean_square),
    "deterministic": (Deterministic("a"), {}, mean_square),
    "use_running_average": (Running("a"), {}, mean_square),
    "field": (Field("a", train=False), {}, mean_square),
    "merged": (Merged("a"), {"deterministic": True}, mean_square),
    "merged field": (Merged("a", deterministic=True), {}, mean_square),
    "function": (
        Method("a"),
        {"method": "encode", "train": False},
        lambda apply, x: jnp.mean(apply(x, True, method=Method.encode) ** 2),
    ),
    "method": (
        Method("a"),
        {"method": "encode", "train": False},
        lambda apply, x: jnp.mean(apply(x, method="encode") ** 2),
    ),
}


@pytest.mark.parametrize(("module", "evaluation", "loss_fn"), SWITCHES.values(), ids=SWITCHES)
def test_a_linen_module_is_told_its_mode(module, evaluation, loss_fn):
    variables = module.init(KEY, X, **evaluation)
    problem = vj.Problem.from_linen(module, variables, loss_fn)
    expected = jnp.mean(module.apply(variables, X, **evaluation) ** 2)
    found = problem.evaluate(problem.params, X, training=False)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    assert found.model_state is problem.model_state
    found = problem.evaluate(problem.params, X, key=KEY)
    assert float(found.loss) != pytest.approx(float(expected), rel=1e-3)
    mean = found.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    hidden = X @ problem.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)


class Collections(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        h = nn.Dense(4)(x)
        self.sow("losses", "penalty", jnp.mean(h**2))
        count = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            count.value += 1
        return h + 0.1 * train * jax.random.normal(self.make_rng("noise"), h.shape)


def test_linen_collections_and_streams():
    module = Collections()
    variables = module.init(KEY, X, True)
    assert set(variables) == {"params", "losses", "counters"}

    def loss_fn(apply, x):
        out, sown = apply(x, mutable=["losses"])
        (penalty,) = sown["losses"]["penalty"]
        return jnp.mean((out - apply(x)) ** 2) + 0.0 * penalty, {"collections": len(sown)}

    problem = vj.Problem.from_linen(module, variables, loss_fn)
    assert set(problem.model_state) == {"counters"}
    loss, state, metrics = problem.evaluate(problem.params, X, key=KEY)
    assert (int(state["counters"]["calls"]), metrics["collections"]) == (2, 1)
    assert float(loss) > 1e-3  # each call draws anew


class Untold(nn.Module):
    statistics: bool

    @nn.compact
    def __call__(self, x):
        if self.statistics:
            return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))


@pytest.mark.parametrize(
    ("statistics", "message"), [(True, '"batch_stats" is immutable'), (False, "needs PRNG for")]
)
def test_a_linen_module_that_cant_be_told_is_not_evaluated(statistics, message):
    module = Untold(statistics)
    variables = module.init({"params": KEY, "dropout": KEY}, X)
    problem = vj.Problem.from_linen(module, variables, mean_square)
    assert jnp.isfinite(problem.evaluate(problem.params, X, key=KEY).loss)
    with pytest.raises(ValueError, match=message) as caught:
        problem.evaluate(problem.params, X, training=False)
    assert "an argument train or deterministic" in str(caught.value)


def test_boxes_of_linen_are_taken_off():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    module = nn.Dense(4, kernel_init=init)
    problem = vj.Problem.from_linen(module, module.init(KEY, X), mean_square)
    assert vj.find_layers(problem, X).names == ("kernel", "bias")


# Flax nnx: what is a parameter, what is carried.


class Position(nnx.Variable):
    pass


class Transformer(nnx.Module):
    def __init__(self, rngs, rate=0.1):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.blocks = nnx.List([TransformerBlock(rngs, rate)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 16, rngs=rngs)
        self.seen = Position(jnp.zeros((), jnp.int32))

    def __call__(self, tokens):
        self.seen.set_value(self.seen.get_value() + 1)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        self.sow(nnx.Intermediate, "last", x)
        return self.head(self.norm(x))


class TransformerBlock(nnx.Module):
    def __init__(self, rngs, rate):
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 8, dropout_rate=rate, decode=False, rngs=rngs)
        self.dense = nnx.List([nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.dropout(self.dense[1](nnx.gelu(self.dense[0](self.norms[1](x)))))


TOKENS = jax.random.randint(jax.random.key(3), (8, 6), 0, 16)


def next_token(model, tokens):
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


# What many models still do: sow without a capture.
sows = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")


@sows
def test_an_nnx_transformer():
    model = Transformer(nnx.Rngs(0))
    problem = vj.Problem.from_nnx(model, next_token)
    assert problem.model_state == {"seen": 0}
    loss, state, metrics = problem.evaluate(problem.params, TOKENS, key=KEY)
    assert (int(state["seen"]), metrics) == (1, {})
    assert int(model.seen.get_value()) == 0  # the user's own is left alone
    model.eval()
    found = problem.evaluate(problem.params, TOKENS, training=False)
    np.testing.assert_allclose(found.loss, next_token(model, TOKENS), rtol=1e-5)
    assert float(loss) != pytest.approx(float(found.loss), rel=1e-4)
    verdict = vj.diagnose(problem, TOKENS)
    assert verdict.verdict == "healthy", str(verdict)
    assert "blocks/0/attention/query/kernel" in verdict.probe.names


@sows
def test_what_sow_left_in_an_nnx_model_is_not_carried():
    model = Transformer(nnx.Rngs(0))
    model.train()
    model(TOKENS)
    problem = vj.Problem.from_nnx(model, next_token)
    assert set(problem.model_state) == {"seen"}
    assert hasattr(model, "last")


def test_keys_of_an_nnx_model_may_be_an_array():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dropouts = self.make(rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(None, 0))
        def make(self, rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return nnx.vmap(lambda dropout, x: dropout(x), in_axes=(0, None))(self.dropouts, x)

    scale = {"w": jnp.ones(())}
    model = Net(nnx.Rngs(0))
    problem = vj.Problem.from_nnx(
        nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(1)), model),
        lambda model, x: jnp.mean(model(x) ** 2) * scale["w"],
    )
    first, second = (
        float(problem.evaluate(problem.params, X, key=jax.random.key(i)).loss) for i in (0, 1)
    )
    assert first != second


# Equinox, Haiku, and losses that ask for more.


def test_equinox_says_what_a_state_wants():
    model, state = eqx.nn.make_with_state(EqxNet)(KEY)
    with pytest.raises(TypeError, match="loss_fn takes state=, so give from_equinox"):
        vj.Problem.from_equinox(model, lambda model, batch, *, state: (0.0, state))
    with pytest.raises(TypeError, match="from_equinox was given a state: loss_fn must take"):
        vj.Problem.from_equinox(model, lambda model, batch: 0.0, state=state)
    problem = vj.Problem.from_equinox(model, lambda model, batch, state: 0.0, state=state)
    with pytest.raises(TypeError, match=r"must return \(loss, new_state\) or .*, got float"):
        problem.evaluate(problem.params, BATCH)


def test_haiku_trains_by_the_flags():
    def network(x, train):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training=train)
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if train else x
        return hk.Linear(4)(jax.nn.relu(x))

    init, apply = hk.transform_with_state(network)
    params, state = init(KEY, X, True)

    def loss_fn(params, batch, *, state, key):
        logits, state = apply(params, state, key, batch[0], True)
        return cross_entropy(logits, batch[1]), state

    flags = {"model_state": state, "with_state": True, "with_key": True}
    verdict = vj.diagnose(loss_fn, params, (X, LABELS), TX, **flags)
    assert verdict.verdict == "healthy", str(verdict)
    layers = vj.find_layers(params, loss_fn, (X, LABELS), **flags)
    problem = vj.Problem(loss_fn, params, TX, **flags)
    assert layers == vj.find_layers(problem, batch=(X, LABELS))
    assert verdict.probe.loss == vj.probe(problem, batch=(X, LABELS)).loss


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox"])
def test_a_loss_may_ask_for_a_key_and_the_mode(kind):
    """As one of a diffusion model does."""
    asked = []

    def loss_fn(model, x, *, key, training):
        asked.append(training)
        return jnp.mean((model(x) - jax.random.normal(key, x.shape)) ** 2)

    if kind == "linen":
        module = nn.Dense(4)
        problem = vj.Problem.from_linen(module, module.init(KEY, X), loss_fn)
    elif kind == "nnx":
        problem = vj.Problem.from_nnx(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), loss_fn)
    else:
        model = eqx.nn.Lambda(jnp.tanh)
        problem = vj.Problem.from_equinox(
            (eqx.nn.Linear(4, 4, key=KEY), model),
            lambda models, x, *, key, training: loss_fn(
                lambda x: models[1](jax.vmap(models[0])(x)), x, key=key, training=training
            ),
        )
    assert problem.with_key
    first, second = (
        float(problem.evaluate(problem.params, X, key=jax.random.key(i)).loss) for i in (1, 2)
    )
    assert first != second
    problem.evaluate(problem.params, X, training=False)
    assert asked == [True, True, False]


# Mistakes.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vj.Problem.from_nnx(nn.Dense(4), mean_square), "must be a flax.nnx.Module, got D"),
        (
            lambda: vj.Problem.from_nnx(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), mean_square),
            r"got State, which has no code: pass the model itself, or nnx.merge\(graphdef, state\)",
        ),
        (
            lambda: vj.Problem(
                mean_square,
                {},
                nnx.Optimizer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), wrt=nnx.Param),
            ),
            "got Optimizer: pass the transform in it, optimizer.tx",
        ),
        (lambda: vj.Problem.from_nnx(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), 3), "must be a function"),
        (lambda: vj.Problem.from_equinox(jnp.tanh, mean_square), "must be an equinox.Module with"),
        (lambda: vj.Problem.from_linen(nn.Dense, {}, mean_square), "must be a flax.linen.Module"),
        (lambda: vj.Problem.from_linen(nn.Dense(4), {"kernel": X}, mean_square), "'params' in it"),
    ],
)
def test_what_makes_no_problem(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_metrics_are_a_dictionary():
    problem = vj.Problem.from_nnx(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)), lambda model, x: (jnp.mean(model(x)), 3)
    )
    with pytest.raises(TypeError, match=r"must return a scalar or \(scalar, metrics dict\), got"):
        vj.probe(problem, X)


@pytest.mark.parametrize("look", [vj.probe, vj.diagnose, initializers.lsuv])
def test_a_problem_or_its_parts(look):
    problem = vj.Problem(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones((4, 2)), TX)
    with pytest.raises(TypeError, match=r"pass \(problem, batch\)"):
        look(problem, problem.params, X)
    with pytest.raises(TypeError, match=r"pass \(problem, batch\)"):
        look(problem)
    with pytest.raises(TypeError, match=r"expected \(loss_fn, params, batch\) or"):
        look(problem.loss_fn, problem.params)


@pytest.mark.parametrize("look", [vj.probe, vj.diagnose, vj.find_layers])
def test_a_problem_has_flags_of_its_own(look):
    problem = vj.Problem(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones((4, 2)))
    with pytest.raises(TypeError, match="flags and a model state of its own"):
        look(problem, X, has_aux=True)


def test_diagnose_takes_another_transform_by_name():
    problem = vj.Problem(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones((4, 2)), optax.adam(1e-3))
    scaled = dataclasses.replace(problem, loss_fn=lambda w, x: 1e-14 * problem.loss_fn(w, x))
    assert vj.diagnose(scaled, X).verdict == "sick"  # below Adam's eps
    assert vj.diagnose(scaled, X, tx=vj.adam(1e-3, eps=1e-30)).verdict == "healthy"


MODELS = {
    "nnx": NnxResNet(nnx.Rngs(0)),
    "nnx.state": nnx.state(NnxResNet(nnx.Rngs(0))),
    "only statistics": NnxBlock(nnx.Rngs(0)),
    "equinox": eqx.nn.MLP(4, 4, 4, 1, key=KEY),
    "inside": {"net": eqx.nn.MLP(4, 4, 4, 1, key=KEY)},
}


@pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)
def test_a_model_as_parameters_is_told_how_to_become_a_problem(params):
    maker = "from_equinox" if "MLP" in str(params) else "from_nnx"
    looks = (
        lambda: vj.probe(lambda model, x: 0.0, params, X),
        lambda: vj.diagnose(lambda model, x: 0.0, params, X),
        lambda: vj.find_layers(params),
        lambda: vj.adam(1e-3).init(params),
    )
    for look in looks:
        with pytest.raises(ValueError, match=rf"vanishjax\.Problem\.{maker}\(model, loss_fn\)"):
            look()


def test_equinox_is_missed_in_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "vanishjax.problem.equinox", raising=False)
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ImportError, match="needs Equinox: pip install equinox"):
        vj.Problem.from_equinox(None, mean_square)
