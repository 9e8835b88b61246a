"""Losses and scores of a batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vanishjax import losses

CLASSES = 3


class Losses(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_against_numpy(self):
        logits = jax.random.normal(jax.random.key(0), [6, CLASSES]) * 3
        labels = jnp.array([0, 2, 1, 1, 0, 2])
        z = np.asarray(logits, np.float64)
        probabilities = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        expected = -np.log(probabilities[np.arange(6), labels]).mean()
        value = self.variant(losses.cross_entropy)(logits, labels)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        value = self.variant(losses.accuracy)(logits, labels)
        np.testing.assert_allclose(value, (z.argmax(1) == np.asarray(labels)).mean(), rtol=1e-6)
        targets = jax.random.normal(jax.random.key(1), [6, CLASSES])
        difference = z - np.asarray(targets, np.float64)
        value = self.variant(losses.squared_error)(logits, targets)
        np.testing.assert_allclose(value, (difference**2).mean(), rtol=1e-6)
        value = self.variant(losses.mean_absolute_error)(logits, targets)
        np.testing.assert_allclose(value, np.abs(difference).mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.squared_error, losses.mean_absolute_error])
def test_a_trailing_axis_of_one_does_not_broadcast(loss):
    outputs, targets = jnp.arange(4.0)[:, None], jnp.arange(4.0)
    assert loss(outputs, targets) == 0
    with pytest.raises(ValueError, match=r"outputs \[4, 2\] and targets \[4\]"):
        loss(jnp.zeros([4, 2]), targets)
    with pytest.raises(ValueError, match=r"outputs \[4\] and targets \[4, 1\]"):
        loss(targets, outputs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_widened(dtype):
    logits = jnp.array([[300.0, 0.0]], dtype)
    for value in (
        losses.cross_entropy(logits, jnp.array([1])),
        losses.squared_error(logits, jnp.zeros([1, 2], dtype)),
        losses.mean_absolute_error(logits, jnp.zeros([1, 2], dtype)),
    ):
        chex.assert_type(value, jnp.float32)
        assert np.isfinite(value)
    assert losses.squared_error(logits, jnp.zeros([1, 2], dtype)) == 45000


@pytest.mark.parametrize("score", [losses.cross_entropy, losses.accuracy])
def test_labels_are_integers_of_the_batch_shape(score):
    with pytest.raises(ValueError, match="integer class labels, got dtype float32"):
        score(jnp.zeros([4, 3]), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"logits \[4, 3\] and labels \[4, 1\]"):
        score(jnp.zeros([4, 3]), jnp.zeros([4, 1], int))
