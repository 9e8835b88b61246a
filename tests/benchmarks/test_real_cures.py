"""What is cured by other inputs is judged by such."""

import jax.numpy as jnp
import numpy as np

import vanishjax as vj
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
