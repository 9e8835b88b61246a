"""The atlas: a cell is what a plain loop gives, and its numbers are chosen and reported fairly."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vanishjax import atlas, initializers, losses
from vanishjax.atlas import (
    CONTENDERS,
    Grid,
    draw_networks,
    measure,
    predicted_log_chi,
    train_cell,
    trainable_depth,
)
from vanishjax.layers import find_layers
from vanishjax.models import MLP
from vanishjax.optimizers.named import named_optimizer
from vanishjax.training.data import load_dataset


def blobs(examples, seed=0):
    """Two classes, apart in one direction."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, examples).astype(np.int32)
    inputs = rng.normal(size=(examples, 6)) + 4.0 * (labels[:, None] - 0.5)
    return inputs.astype(np.float32), labels


TRAIN, VALIDATION, TEST = blobs(50, 1), blobs(40, 2), blobs(30, 3)


def drawn_by(model, seed):
    return jax.jit(model.init)(jax.random.key(seed), TRAIN[0][:1])["params"]


def train_in_a_loop(model, optimizer, rate, seed, grid):
    """One network, step by step, without vmap or scan."""
    params = drawn_by(model, seed)
    steps = grid.epochs * (len(TRAIN[0]) // grid.batch_size)
    tx = named_optimizer(
        optimizer, (lambda count: rate * (1 - 0.98 * count / steps)) if grid.decay else rate
    )
    opt_state = tx.init(params)
    rng = np.random.default_rng(seed)

    @jax.jit
    def step(params, opt_state, inputs, labels):
        def loss_fn(params):
            return losses.cross_entropy(model.apply({"params": params}, inputs), labels)

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(grid.epochs):
        order = rng.permutation(len(TRAIN[0]))
        for start in range(0, len(order) - grid.batch_size + 1, grid.batch_size):
            rows = order[start : start + grid.batch_size]
            params, opt_state = step(params, opt_state, TRAIN[0][rows], TRAIN[1][rows])
    return params


def margin(outputs, labels):
    """A continuous stand-in for accuracy, which would hide small differences."""
    return jnp.mean(jnp.take_along_axis(outputs, labels[:, None], 1)) - jnp.mean(outputs)


@pytest.mark.parametrize(
    ("optimizer", "depth", "residual", "decay"),
    [
        ("sgd", 2, None, False),
        ("nesterov", 4, "rezero", False),
        ("adam", 3, "scaled", True),
        ("lion", 1, None, False),
    ],
)
def test_a_cell_is_a_plain_loop(monkeypatch, optimizer, depth, residual, decay):
    monkeypatch.setattr(losses, "accuracy", margin)
    grid = Grid(width=8, epochs=3, batch_size=16, seeds=(3, 5), activation="tanh",
                residual=residual, decay=decay, learning_rates=(0.02, 0.1))  # fmt: skip
    start = draw_networks(depth, grid, TRAIN, classes=2)
    cell = train_cell(optimizer, start, grid, TRAIN, VALIDATION, TEST)
    model = MLP((8,) * depth, 2, activation="tanh", residual=residual, scan=depth > 2)
    score = jax.jit(lambda params, data: margin(model.apply({"params": params}, data[0]), data[1]))
    found = {}
    for rate in grid.learning_rates:
        ends = [train_in_a_loop(model, optimizer, rate, seed, grid) for seed in grid.seeds]
        found[rate] = {
            name: [float(score(end, data)) for end in ends]
            for name, data in (("validation_accuracy", VALIDATION), ("test_accuracy", TEST))
        }
    means = {rate: np.mean(scores["validation_accuracy"]) for rate, scores in found.items()}
    assert cell["rates"] == pytest.approx({f"{r:g}": m for r, m in means.items()}, rel=1e-4)
    assert means[0.02] != pytest.approx(means[0.1], rel=1e-2)
    best = max(means, key=means.get)
    assert cell["learning_rate"] == best
    for name, scores in found[best].items():
        assert cell[name] == pytest.approx(scores, rel=1e-4)


def test_the_rate_is_chosen_on_validation_data_alone():
    inverted = (TEST[0], 1 - TEST[1])
    grid = Grid(width=8, epochs=10, batch_size=10, seeds=(0, 1), learning_rates=(1e-9, 0.1, 1e-8))
    start = draw_networks(1, grid, TRAIN, classes=2)
    cell = train_cell("adam", start, grid, TRAIN, VALIDATION, inverted)
    assert cell["learning_rate"] == 0.1
    assert np.mean(cell["validation_accuracy"]) > 0.95
    assert np.mean(cell["test_accuracy"]) < 0.05


def test_a_rate_that_diverges_is_not_chosen_and_not_called_chance():
    common = {"width": 8, "activation": "relu", "epochs": 3, "batch_size": 10, "seeds": (0,)}
    grid = Grid(**common, learning_rates=(1e30, 0.1))
    start = draw_networks(1, grid, TRAIN, classes=2)
    zeros = (VALIDATION[0], np.zeros_like(VALIDATION[1]))
    cell = train_cell("sgd", start, grid, TRAIN, zeros, TEST)
    assert cell["learning_rate"] == 0.1
    assert math.isnan(cell["rates"]["1e+30"])
    only = Grid(**common, learning_rates=(1e30,))
    cell = train_cell("sgd", start, only, TRAIN, zeros, TEST)
    assert np.isnan([*cell["validation_accuracy"], *cell["test_accuracy"]]).all()
    assert trainable_depth([{"optimizer": "sgd", "depth": 1, **cell}], 0.0) == {"sgd": 0}


def test_networks_are_drawn_as_the_model_draws_them():
    grid = Grid(width=8, seeds=(0, 7), batch_size=16)
    start = draw_networks(4, grid, TRAIN, classes=2)
    model = MLP((8,) * 4, 2, scan=True)
    for index, seed in enumerate(grid.seeds):
        params = drawn_by(model, seed)
        drawn = jax.tree.map(lambda leaf, i=index: leaf[i], start.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), drawn, params)

        def loss_fn(params):
            return losses.cross_entropy(
                model.apply({"params": params}, TRAIN[0][:16]), TRAIN[1][:16]
            )

        gradient = jax.jit(jax.grad(loss_fn))(params)
        for layer, found in (
            ("hidden_0", start.first_layer_gradient),
            ("output", start.last_layer_gradient),
        ):
            expected = np.sqrt(np.mean(np.square(gradient[layer]["kernel"])))
            assert float(found[index]) == pytest.approx(float(expected), rel=1e-4)


def test_critical_networks_are_centered_unless_a_stream_feeds_them():
    for residual in (None, "scaled"):
        grid = Grid(width=8, seeds=(4,), kernel_init="critical_orthogonal", residual=residual)
        start = draw_networks(4, grid, TRAIN, classes=2)
        inits = {"kernel_init": initializers.critical_orthogonal("sigmoid"),
                 "bias_init": initializers.critical_bias("sigmoid")}  # fmt: skip
        model = MLP((8,) * 4, 2, residual=residual, scan=True, **inits)
        params = drawn_by(model, 4)
        for name in ("hidden_0", "hidden_stack", "output"):
            fed = residual is None and name != "hidden_0"
            bias = params[name]["bias"] - fed * 0.5 * params[name]["kernel"].sum(-2)
            np.testing.assert_allclose(start.params[name]["bias"][0], bias, atol=1e-6)


def test_a_deeper_sigmoid_is_predicted_to_lose_more_unless_it_is_critical():
    grid = Grid(width=8, seeds=(0, 1))
    shallow, deep = (
        predicted_log_chi(draw_networks(depth, grid, TRAIN, 2), grid, TRAIN) for depth in (2, 12)
    )
    assert -10 < shallow < -3
    assert -45 < deep < -25
    grid = dataclasses.replace(grid, kernel_init="critical_orthogonal", seeds=(0,))
    assert abs(predicted_log_chi(draw_networks(12, grid, TRAIN, 2), grid, TRAIN)) < 8


# A number given to deep_adam rises before it falls.
@pytest.mark.parametrize("name", sorted({*CONTENDERS} - {"deep_adam"}))
def test_every_contender_takes_a_schedule_of_a_traced_rate(name):
    params = {"kernel": jnp.eye(3), "bias": jnp.ones(3)}
    layers = find_layers(params)

    def first_updates(rate, falls):
        falling = optax.linear_schedule(rate, 0.02 * rate, 10)
        tx = named_optimizer(
            name, falling if falls else rate, layers=layers, total_steps=10, activation="tanh"
        )
        return tx.update(params, tx.init(params), params)[0]

    rates = jnp.array([0.1, 0.2])
    fixed, falling = (
        jax.vmap(functools.partial(first_updates, falls=falls))(rates) for falls in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), fixed, falling)


def test_who_sees_the_horizon_is_told_the_steps(monkeypatch):
    told = []

    def make(name, rate, total_steps, **_):
        told.append(total_steps)
        return optax.sgd(rate)

    monkeypatch.setattr(atlas, "named_optimizer", make)
    grid = Grid(width=4, epochs=3, batch_size=20, seeds=(0,))
    train_cell("deep_muon", draw_networks(1, grid, TRAIN, 2), grid, TRAIN, VALIDATION, TEST)
    assert set(told) == {6}
    assert type(told[0]) is int


def test_cells_that_are_done_are_left_out(monkeypatch):
    drawn = []
    draw = draw_networks
    monkeypatch.setattr(atlas, "train_cell", lambda *arguments: {})
    monkeypatch.setattr(
        atlas, "draw_networks", lambda depth, *rest: (drawn.append(depth), draw(depth, *rest))[1]
    )
    grid = Grid(("sgd", "adam"), (1, 2), width=4, batch_size=20, seeds=(0,))
    done = {("sgd", 1), ("adam", 1), ("sgd", 2), ("lion", 2)}
    cells = measure(grid, TRAIN, VALIDATION, TEST, 2, done=done, predicts=True)
    assert [(cell["optimizer"], cell["depth"]) for cell in cells] == [("adam", 2)]
    assert drawn == [2]


def cells_of(grid):
    return [
        {name: value for name, value in cell.items() if name != "seconds"}
        for cell in measure(grid, TRAIN, VALIDATION, TEST, classes=2)
    ]


def test_seeds_decide_the_results(monkeypatch):
    monkeypatch.setattr(losses, "accuracy", margin)
    small = {"optimizers": ("adam",), "depths": (1,), "width": 8, "epochs": 2, "batch_size": 25}
    first, same, other = (cells_of(Grid(**small, seeds=seeds)) for seeds in ((1,), (1,), (2,)))
    assert first == same
    assert first[0]["test_accuracy"] != other[0]["test_accuracy"]
    # What another seed does beside it changes nothing.
    pair = Grid(**small, seeds=(1, 2), learning_rates=(first[0]["learning_rate"],))
    expected = pytest.approx(first[0]["test_accuracy"][0], rel=1e-4)
    assert cells_of(pair)[0]["test_accuracy"][0] == expected


def test_measure_goes_through_the_grid_depth_by_depth():
    grid = Grid(("sgd", "adam"), (1, 3), width=8, epochs=2, batch_size=20, seeds=(0, 1))
    cells = list(measure(grid, TRAIN, VALIDATION, TEST, classes=2))
    assert [(cell["optimizer"], cell["depth"]) for cell in cells] == [
        ("sgd", 1),
        ("adam", 1),
        ("sgd", 3),
        ("adam", 3),
    ]
    assert json.loads(json.dumps(cells)) == cells
    for cell in cells:
        assert cell["steps"] == 4
        assert cell["seconds"] > 0
        assert len(cell["test_accuracy"]) == 2
        assert [float(rate) for rate in cell["rates"]] == list(CONTENDERS[cell["optimizer"]].rates)
    # Both optimizers start from the same networks.
    assert cells[0]["first_layer_gradient"] == cells[1]["first_layer_gradient"]


@pytest.mark.parametrize(
    ("grid", "classes", "message"),
    [
        (Grid(optimizers=("adam", "adan")), 2, "unknown optimizer 'adan'; known: sgd, adam"),
        (Grid(batch_size=51), 2, "batch_size must be at most the 50 training examples, got 51"),
        (Grid(), 1, "classes must be at least 2, got 1"),
        (Grid(batch_size=9, depths=(0,)), 2, "hidden must list at least one layer's width"),
        (Grid(batch_size=9, activation="sigmiod"), 2, "did you mean 'sigmoid'"),
        (Grid(batch_size=9, kernel_init="lecum"), 2, "did you mean 'lecun'"),
        (
            Grid(batch_size=9, activation="softplus", kernel_init="critical_normal"),
            2,
            "softplus .*has no critical point",
        ),
    ],
)
def test_measure_refuses_before_it_trains(monkeypatch, grid, classes, message):
    monkeypatch.setattr(atlas, "train_cell", None)
    with pytest.raises(ValueError, match=message):
        next(measure(grid, TRAIN, VALIDATION, TEST, classes))


def test_trainable_depth_is_the_deepest_that_reaches_the_accuracy():
    accuracies = {
        ("a", 2): [0.9, 0.9],
        ("a", 4): [0.1, 0.2],
        ("a", 8): [0.4, 0.6],
        ("b", 2): [0.6, 0.5],
        ("b", 4): [math.nan, 1.0],
    }
    cells = [
        {"optimizer": optimizer, "depth": depth, "test_accuracy": found}
        for (optimizer, depth), found in accuracies.items()
    ]
    assert trainable_depth(cells, 0.5) == {"a": 8, "b": 2}
    assert trainable_depth([], 0.5) == {}


def test_adam_trains_two_sigmoid_layers_of_digits_and_sgd_starves_at_eight():
    data = load_dataset("digits")
    parts = [(part.inputs, part.labels) for part in (data.train, data.validation, data.test)]
    common = {"seeds": (0,), "epochs": 15}
    grid = Grid(("adam",), (2,), learning_rates=(0.01, 0.03), **common)
    (learns,) = measure(grid, *parts, classes=10)
    grid = Grid(("sgd",), (8,), learning_rates=(0.1, 1.0), **common)
    (starves,) = measure(grid, *parts, classes=10)
    assert learns["test_accuracy"][0] > 0.9
    assert starves["test_accuracy"][0] < 0.2
    assert starves["first_layer_gradient"] < 1e-4 * starves["last_layer_gradient"]
    assert learns["first_layer_gradient"] > 1e-2 * learns["last_layer_gradient"]
