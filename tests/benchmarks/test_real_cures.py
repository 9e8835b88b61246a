"""What is cured by other inputs is judged by such."""

import jax.numpy as jnp
import numpy as np

import vanishjax as vj
from benchmarks import long_cures, real_tables
from benchmarks.real_cures import as_taken_in


def loss_fn(w, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2)


def test_test_data_are_standardized_as_the_cured_loss_does():
    x = jnp.arange(64.0).reshape(32, 2) + 1e4
    batch = x, x[:, :1] - 1e4
    standard = vj.treatment.standardize_inputs(loss_fn, jnp.ones((2, 1)), batch)
    inputs, targets = as_taken_in(standard, (x + 1.0, batch[1]))
    np.testing.assert_array_equal(inputs, standard.standardize((x + 1.0, batch[1]))[0])
    np.testing.assert_array_equal(targets, batch[1])
    assert as_taken_in(loss_fn, batch) is batch


def treated(network, untreated, cured, cost):
    closed = {"untreated": untreated, "cured": cured}
    row = {"network": network, "closed": closed, "repaired": cured >= 0.8, "cost": cost}
    control = {"closed": 0.5, "repaired": False}
    return row | {"training_steps": 2000, "control": control, "accepted": ["lsuv"]}


def test_who_trains_by_itself_is_not_counted_as_cured():
    rows = [treated("a", 0.1, 0.9, 200.0), treated("b", 0.9, 1.0, 600.0), treated("c", 0, 0.7, 400)]
    found = long_cures.summary(rows)
    assert found["train_by_themselves"] == ["b"]
    assert found["repaired"] == [1, 2]
    assert found["control_repaired"] == [0, 2]
    assert found["cost"]["samples"] == [0.1, 0.2]
    *_, said = real_tables.long_cures({"treated": rows, **found})
    assert "Of 3, 1 train by themselves" in said
    assert "1 of 2 are repaired" in said
    assert "cost 0.15 (0.12 - 0.18) of the training, at most 0.20" in said


def test_plain_mlps_have_a_benchmark_of_their_own():
    examined = [
        {"network": "a", "label": "sick", "kind": "ResNet of tiles"},
        {"network": "b", "label": "healthy", "kind": "ResNet of tiles"},
        {"network": "c", "label": "sick", "kind": "prices MLP"},
        {"network": "d", "label": "sick", "kind": "LSTM"},
    ]
    assert long_cures.sick_ones(examined) == ["a", "d"]
    assert long_cures.sick_ones(examined, ("d",)) == ["d"]
