"""Coordinates in which first kernels take in standardized features: training as on such inputs."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax.treatment import Context, standardize_inside

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 8)
MEANS = np.array([40.0, -300.0, 7.0, 0.0, 0.5, 2e3], np.float32)
DEVIATIONS = np.array([1.0, 20.0, 0.02, 3.0, 1.0, 100.0], np.float32)
TX = optax.adamw(0.02, weight_decay=0.1)


def drawn(key, *shape):
    return jax.random.normal(key, shape) / shape[0] ** 0.5


def dense(w, x):
    return x @ w["first"]["kernel"] + w["first"]["bias"]


def turned(w, x):
    return jax.vmap(lambda one: w["first"]["weight"] @ one + w["first"]["bias"])(x)


def heads(w, x):
    return jnp.einsum("bf,fhd->bhd", x, w["first"]["kernel"]) + w["first"]["bias"]


def convolved(w, x, groups=1):
    kernel = w["first"]["kernel"]
    spec = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NWC", "WIO", "NWC"))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1,), "VALID", dimension_numbers=spec, feature_group_count=groups
    )
    return y + w["first"]["bias"]


def grouped(w, x):
    return convolved(w, x, groups=3)


def each_channel(w, x):
    return convolved(w, x, groups=6)


def channels_first(w, x):
    kernel = w["first"]["weight"]
    y = jax.lax.conv_general_dilated(jnp.moveaxis(x, -1, 1), kernel, (1,), "VALID")
    return jnp.moveaxis(y + w["first"]["bias"], 1, -1)


def each_number(w, x):
    return x[:, :, None] * w["first"]["weights"] + w["first"]["biases"]


def convolved_by_turned(w, x):
    kernel = jnp.transpose(w["first"]["kernel"], (2, 1, 0))
    return convolved({"first": {"kernel": kernel, "bias": w["first"]["bias"]}}, x)


def over_time(w, x):
    def step(h, one):
        new = jnp.tanh(dense(w, one) + h @ w["again"])
        return new, new

    return jax.lax.scan(step, jnp.zeros((len(x), 8)), jnp.moveaxis(x, 1, 0))[0]


def in_turn(w, x):
    h = jnp.zeros((len(x), 8))
    for one in jnp.moveaxis(x, 1, 0):
        h = jnp.tanh(dense(w, one) + h @ w["again"])
    return h


PLAIN = {"kernel": drawn(KEYS[0], 6, 8), "bias": drawn(KEYS[1], 8)}
AGAIN = {"again": drawn(KEYS[2], 8, 8)}
FLAT, SEQUENCE = (256, 6), (64, 12, 6)
FORMS = {
    "dense": (dense, {"first": PLAIN}, FLAT),
    "turned": (turned, {"first": {"weight": PLAIN["kernel"].T, "bias": PLAIN["bias"]}}, FLAT),
    "heads": (
        heads,
        {"first": {"kernel": drawn(KEYS[0], 6, 2, 4), "bias": drawn(KEYS[1], 2, 4)}},
        FLAT,
    ),
    # As many taps as channels: shapes don't tell them apart.
    "convolution": (
        convolved,
        {"first": {"kernel": drawn(KEYS[0], 6, 6, 8) / 3, "bias": drawn(KEYS[1], 8)}},
        SEQUENCE,
    ),
    "grouped": (
        grouped,
        {"first": {"kernel": drawn(KEYS[0], 3, 2, 9), "bias": drawn(KEYS[1], 9)}},
        SEQUENCE,
    ),
    "each channel": (
        each_channel,
        {"first": {"kernel": drawn(KEYS[0], 3, 1, 12), "bias": drawn(KEYS[1], 12)}},
        SEQUENCE,
    ),
    "channels first": (
        channels_first,
        {"first": {"weight": drawn(KEYS[0], 8, 6, 6) / 3, "bias": drawn(KEYS[1], 8, 1)}},
        SEQUENCE,
    ),
    "turned convolution": (
        convolved_by_turned,
        {"first": {"kernel": drawn(KEYS[0], 8, 6, 3) / 2, "bias": drawn(KEYS[1], 8)}},
        SEQUENCE,
    ),
    "each number": (
        each_number,
        {"first": {"weights": drawn(KEYS[0], 6, 4), "biases": drawn(KEYS[1], 6, 4)}},
        FLAT,
    ),
    "over time": (over_time, {"first": PLAIN, **AGAIN}, SEQUENCE),
    "in turn": (in_turn, {"first": PLAIN, **AGAIN}, SEQUENCE),
}


def losses_of(loss_fn, params, tx, batch, steps=20):
    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return np.array(losses), params


def raw(x):
    return MEANS + DEVIATIONS * x


def standard_of(x):
    """The features of x standardized, one by one, where they are as uneven as these."""
    flat = np.asarray(raw(x), np.float64).reshape(-1, 6)
    mean, deviation = flat.mean(0), flat.std(0)
    return lambda x: (raw(x) - mean.astype(np.float32)) / deviation.astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_training_is_that_of_a_network_on_standardized_inputs(form):
    network, params, shape = FORMS[form]
    x = jax.random.normal(KEYS[3], shape)
    targets = jnp.tanh(x.reshape(len(x), -1).sum(1))

    def loss_on(inputs):
        def loss_fn(w, batch):
            out = jnp.tanh(network(w, inputs(batch[0])))
            return jnp.mean((out.reshape(len(batch[1]), -1).mean(1) - batch[1]) ** 2)

        return loss_fn

    batch = x, targets
    coordinates = standardize_inside(loss_on(raw), params, batch)
    expected, end = losses_of(loss_on(standard_of(x)), params, TX, batch)
    start = coordinates.start(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(start, params)
    found, trained = losses_of(loss_on(raw), start, coordinates.transform(TX), batch)
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    others = jax.random.normal(KEYS[6], shape), targets
    there, here = loss_on(standard_of(x))(end, others), loss_on(raw)(trained, others)
    np.testing.assert_allclose(here, there, rtol=2e-3)
    # As they were, nothing is learned of it.
    plain, _ = losses_of(loss_on(raw), params, TX, batch)
    assert plain[-1] > 1.05 * expected[-1]


def test_what_parameters_make_is_left_alone():
    kinds = jax.random.randint(KEYS[4], (256,), 0, 4)
    x = raw(jax.random.normal(KEYS[3], FLAT))
    params = {
        "first": {"kernel": drawn(KEYS[0], 9, 8), "bias": jnp.zeros(8)},
        "second": {"kernel": 1e4 * drawn(KEYS[1], 8, 8), "bias": jnp.zeros(8)},
        "last": {"kernel": drawn(KEYS[2], 8, 1), "bias": jnp.zeros(1)},
        "kinds": 1e4 * drawn(KEYS[5], 4, 3),
    }

    def loss_fn(w, batch):
        h = jnp.concatenate([w["kinds"][batch["kinds"]], batch["x"]], axis=1)
        for name in ("first", "second", "last"):
            h = jnp.tanh(h @ w[name]["kernel"] + w[name]["bias"])
        return jnp.mean(h**2)

    coordinates = standardize_inside(loss_fn, params, {"x": x, "kinds": kinds})
    (number,) = coordinates.kernels
    assert jax.tree.leaves(params)[number] is params["first"]["kernel"]
    one = coordinates.kernels[number]
    np.testing.assert_array_equal(one.means[:3], 0)
    np.testing.assert_array_equal(one.deviations[:3], 1)
    np.testing.assert_allclose(one.means[3:, 0], x.mean(0), rtol=1e-4, atol=1e-3)
    start = coordinates.start(params)
    for name in ("second", "last", "kinds"):
        chex.assert_trees_all_equal(start[name], params[name])


def test_complex_features_are_left_alone():
    x = 1e4 * jax.random.normal(KEY, (64, 6))
    params = {"kernel": drawn(KEYS[0], 6, 8), "bias": jnp.zeros(8), "waves": drawn(KEYS[1], 64, 6)}

    def loss_fn(w, batch):
        waves = jnp.abs(jnp.fft.fft(batch, axis=0) * w["waves"]).mean()
        return jnp.mean(jnp.tanh(batch @ w["kernel"] + w["bias"]) ** 2) + 1e-9 * waves

    (number,) = standardize_inside(loss_fn, params, x).kernels
    assert jax.tree.leaves(params)[number] is params["kernel"]


def test_a_kernel_that_takes_in_features_in_two_ways_is_left_alone():
    x = 1e4 + jax.random.normal(KEY, (64, 3))
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2), "v": jnp.ones((2, 1))}

    def value(w, x):
        return jnp.sum(jnp.tanh(x @ w["w"] + w["b"]) @ w["v"])

    def in_a_derivative(w, x):
        return jnp.mean(jax.vmap(jax.grad(value, 1), (None, 0))(w, x) ** 2) + value(w, x)

    def turned_as_well(w, x):
        return value(w, x) + jnp.mean((w["w"].T @ x.T) ** 2)

    for loss_fn in (in_a_derivative, turned_as_well):
        with pytest.raises(ValueError, match="far from zero mean"):
            standardize_inside(loss_fn, params, x)
    assert standardize_inside(value, params, x).kernels


def test_a_kernel_without_a_bias_divides_by_the_size():
    x = 100.0 + jax.random.normal(KEY, (256, 6))

    def loss_fn(w, batch):
        return jnp.mean(jnp.tanh(batch @ w["kernel"]) ** 2)

    params = {"kernel": drawn(KEYS[0], 6, 8)}
    start = standardize_inside(loss_fn, params, x).start(params)
    np.testing.assert_allclose(start["kernel"] * 100, params["kernel"], rtol=1e-2)


def test_what_a_derivative_is_taken_along_is_no_feature():
    """A string in millimeters: beside positions the first kernel meets their direction, 1."""
    params = {"w": jnp.ones((1, 8)) / 8, "b": jnp.zeros(8), "out": jnp.ones((8, 1)) / 8}

    def forward(p, x):
        return jnp.tanh(x @ p["w"] + p["b"]) @ p["out"]

    def loss_fn(p, x):
        value, slope = jax.jvp(lambda x: forward(p, x), (x,), (jnp.ones_like(x),))
        return jnp.mean((slope - value) ** 2)

    x = 1000 * jax.random.uniform(KEY, (64, 1))
    coordinates = standardize_inside(loss_fn, params, x)
    (one,) = coordinates.kernels.values()
    np.testing.assert_allclose(one.means, x.mean(), rtol=1e-5)
    np.testing.assert_allclose(one.deviations, x.std(), rtol=1e-5)
    standard = (x - x.mean()) / x.std()
    start = coordinates.start(params)
    np.testing.assert_allclose(forward(start, x), forward(params, standard), atol=1e-5)


def test_what_is_near_zero_mean_and_unit_size_is_refused():
    network, params, shape = FORMS["dense"]

    def loss_fn(w, batch):
        return jnp.mean(network(w, batch) ** 2)

    message = "no kernel takes in features far from zero mean and unit size"
    with pytest.raises(ValueError, match=message):
        standardize_inside(loss_fn, params, jax.random.normal(KEY, shape))
    with pytest.raises(ValueError, match=message):
        standardize_inside(loss_fn, params, jnp.full(shape, jnp.nan))


def test_deviations_survive_a_mean_far_away_in_many_examples():
    x = 3e4 + jax.random.normal(KEY, (100_000, 2))
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    coordinates = standardize_inside(
        lambda w, batch: jnp.mean(jnp.tanh(batch @ w["kernel"] + w["bias"]) ** 2), params, x
    )
    (one,) = coordinates.kernels.values()
    np.testing.assert_allclose(one.means, np.asarray(x, np.float64).mean(), rtol=1e-6)
    np.testing.assert_allclose(one.deviations, 1, rtol=0.01)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_and_updates_keep_their_form(dtype):
    network, params, shape = FORMS["dense"]
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    x = (50 * jax.random.normal(KEY, shape)).astype(dtype)
    loss_fn = lambda w, b: jnp.mean(network(w, b) ** 2)  # noqa: E731
    assert_keeps_the_form(standardize_inside(loss_fn, params, x), params)


def assert_keeps_the_form(coordinates, params):
    """State and updates are shaped and typed as they were, and what can't be is refused."""
    tx = coordinates.transform(optax.adam(0.01))
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    with pytest.raises(ValueError, match="coordinates need params"):
        tx.update(params, state)
    with pytest.raises(TypeError, match="inner must be a gradient transform"):
        coordinates.transform(0.1)


def test_a_line_search_sees_the_same_coordinates():
    x = jax.random.normal(KEYS[3], FLAT)
    params = FORMS["dense"][1]

    def loss_on(inputs):
        return lambda w, batch: jnp.mean((jnp.tanh(dense(w, inputs(batch))) - batch[:, :1]) ** 2)

    def trained(loss_fn, params, tx):
        step = vj.make_train_step(loss_fn, tx)
        state, losses = vj.TrainState.create(params, tx), []
        for _ in range(5):
            state, metrics = step(state, x)
            losses.append(float(metrics["loss"]))
        return losses

    coordinates = standardize_inside(loss_on(raw), params, x)
    expected = trained(loss_on(standard_of(x)), params, optax.lbfgs())
    start = coordinates.start(params)
    found = trained(loss_on(raw), start, coordinates.transform(optax.lbfgs()))
    assert expected[-1] < 0.5 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.02)


class Spoiled(nnx.Module):
    """A model that spoils what it is given."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 32, rngs=rngs)
        self.last = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(3e4 + 1000 * x)))


def test_inputs_that_the_model_spoils_are_cured():
    def loss_fn(model, batch):
        return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()

    problem = vj.Problem.from_nnx(Spoiled(nnx.Rngs(0)), loss_fn, vj.adam(0.01))
    x = jax.random.normal(KEY, (16, 64, 8))
    batches = [(own, jnp.argmax(own[:, :4], axis=1)) for own in x]
    treatment = vj.cure(problem, batches, steps=40)
    assert treatment.accepted[0].name == "standardize_inside", str(treatment)
    accepted = [trial for trial in treatment.trials if trial.outcome == "accepted"]
    assert accepted[0].loss < 0.9 < 1.3 < treatment.trials[0].loss
    names = {"loss_fn": problem.plain_loss, "params": problem.params, "tx": problem.transform}
    scope = names | {"batch": treatment.batch}
    exec(treatment.recipe, {"jax": jax, "jnp": jnp, "vj": vj}, scope)  # noqa: S102
    chex.assert_trees_all_equal(scope["params"], treatment.start.params)
    updates, expected = (
        tx.update(scope["params"], tx.init(scope["params"]), scope["params"])[0]
        for tx in (scope["tx"], treatment.start.transform)
    )
    chex.assert_trees_all_equal(updates, expected)
    # Its layers take in raw inputs as before.
    assert isinstance(treatment.problem.model(), Spoiled)


class Table(nnx.Module):
    """Dollars, years and shares, behind one kernel and a normalization."""

    def __init__(self, dollars, rngs):
        self.dollars = dollars
        self.into = nnx.Linear(8, 32, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.head = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        units = jnp.array([1.0, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).at[:2].multiply(self.dollars)
        return self.head(nnx.gelu(self.norm(self.into(units * x))))


def cured_table(dollars, on_trial=None):
    def loss_fn(model, batch):
        return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()

    problem = vj.Problem.from_nnx(Table(dollars, nnx.Rngs(0)), loss_fn, vj.adam(0.01))
    x = jax.random.normal(KEY, (16, 64, 8))
    batches = [(own, jnp.argmax(own[:, :4], axis=1)) for own in x]
    return vj.cure(problem, batches, steps=40, on_trial=on_trial)


def test_uneven_inputs_are_cured():
    treatment = cured_table(3e4)
    assert treatment.before.verdict == "sick"
    assert treatment.before.findings[0].rule == "mean_collapse"
    assert [one.name for one in treatment.accepted] == ["standardize_inside"], str(treatment)
    assert treatment.after.healthy


def test_uneven_inputs_of_a_network_that_learns_a_part_are_standardized():
    told = []
    treatment = cured_table(300.0, told.append)
    assert treatment.before.verdict == "healthy", str(treatment.before)
    assert [one.name for one in treatment.accepted] == ["standardize_inside"], str(treatment)
    assert [trial.outcome for trial in told] == ["untreated", "accepted"]
    untreated, accepted = treatment.trials
    assert accepted.loss < 0.5 < untreated.loss < 1.3
    text = str(treatment)
    assert text.startswith("Improved by standardize_inside")
    assert "inputs or targets are far from zero mean" in text
    assert treatment.recipe in text.replace("\n  ", "\n")


def test_a_network_is_measured_once_for_all_its_parameters():
    problem = vj.mlp_problem(6, (8,), 1, loss="squared_error", key=KEY)
    batch = MEANS + DEVIATIONS * drawn(KEY, 32, 6), jnp.ones((32, 1))
    context = Context(problem, batch)
    found = context.coordinates(problem)
    moved = dataclasses.replace(problem, params=jax.tree.map(lambda w: w + 1, problem.params))
    assert context.coordinates(moved) is found
    another = vj.mlp_problem(6, (9,), 1, loss="squared_error", key=KEY)
    assert context.coordinates(another) is not found
