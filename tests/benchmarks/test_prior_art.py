"""The methods that came before ours, against their papers' formulas."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks.deep_chains import Network
from benchmarks.isometric import isometric_muon
from benchmarks.prior_art import constrain, constrained_start, mean_normalized_loss
from vanishjax.theory import shape

NETWORK = Network(4, width=6)
BATCH = (jax.random.uniform(jax.random.key(1), [9, 5]), jnp.arange(9) % 10)
PROBLEM = vj.mlp_problem(5, (6,) * 4, 10, activation="sigmoid", scan=True, key=jax.random.key(0))


def layers_of(params):
    stack = params["hidden_stack"]
    inner = [(stack["kernel"][i], stack["bias"][i]) for i in range(3)]
    return [
        (params["hidden_0"]["kernel"], params["hidden_0"]["bias"]),
        *inner,
        (params["output"]["kernel"], params["output"]["bias"]),
    ]


def test_mean_normalized_gradients():
    """They are those of layers whose inputs have a mean taken off, of which the bias is told."""
    loss_fn = mean_normalized_loss(NETWORK)
    found = layers_of(jax.grad(loss_fn)(PROBLEM.params, BATCH))
    np.testing.assert_allclose(
        loss_fn(PROBLEM.params, BATCH), PROBLEM.loss_fn(PROBLEM.params, BATCH), rtol=1e-6
    )
    layers, means, hidden = layers_of(PROBLEM.params), [], BATCH[0]
    for kernel, bias in layers:
        means.append(hidden.mean(0))
        hidden = jax.nn.sigmoid(hidden @ kernel + bias)

    def centered_loss(layers):
        hidden = BATCH[0]
        for (kernel, bias), mean in zip(layers, means, strict=True):
            outputs = (hidden - mean) @ kernel + bias
            hidden = jax.nn.sigmoid(outputs)
        return vj.losses.cross_entropy(outputs, BATCH[1])

    told = [(w, b + m @ w) for (w, b), m in zip(layers, means, strict=True)]
    wanted = [
        (g, gb - m @ g) for (g, gb), m in zip(jax.grad(centered_loss)(told), means, strict=True)
    ]
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-8)


def test_constrained_weights_are_free_weights_times_a_basis():
    """A step of gradient descent on the paper's free weights is the projected one."""
    start = constrained_start(PROBLEM.loss_fn, PROBLEM.params, BATCH)
    tx = optax.chain(constrain(), optax.sgd(0.5))
    grads = jax.grad(PROBLEM.loss_fn)(start, BATCH)
    updates, _ = tx.update(grads, tx.init(start), start)
    found = optax.apply_updates(start, updates)
    # The last right singular vectors of a row of ones span what is left.
    basis = np.linalg.svd(np.ones([1, 6]))[2][1:].astype(np.float32)
    kernel = start["output"]["kernel"]
    np.testing.assert_allclose(kernel.sum(0), 0, atol=1e-6)

    def loss_of(free):
        output = start["output"] | {"kernel": basis.T @ free}
        return PROBLEM.loss_fn(start | {"output": output}, BATCH)

    free = basis @ kernel
    wanted = basis.T @ (free - 0.5 * jax.grad(loss_of)(free))
    np.testing.assert_allclose(found["output"]["kernel"], wanted, rtol=1e-5, atol=1e-6)
    # The first kernel is free: pixels have no mean in common.
    wanted = start["hidden_0"]["kernel"] - 0.5 * grads["hidden_0"]["kernel"]
    np.testing.assert_allclose(found["hidden_0"]["kernel"], wanted, rtol=1e-6)
    np.testing.assert_allclose(found["hidden_stack"]["kernel"].sum(-2), 0, atol=1e-6)


def test_isometric_steps_turn_kernels_and_keep_means():
    """A few steps along random gradients: kernels stay a number times orthogonal matrices."""
    layers = vj.find_layers(PROBLEM.params, PROBLEM.loss_fn, BATCH)
    tx = isometric_muon(0.3, NETWORK._replace(steps=20), layers)
    rest = vj.deep_adam(0.1, 20, activation="sigmoid", layers=layers)
    alpha, _, delta, gamma = shape("sigmoid", 4)
    params = PROBLEM.params
    state, other = tx.init(params), rest.init(params)
    for number in range(4):
        gradient = jax.grad(PROBLEM.loss_fn)(params, BATCH)
        updates, state = tx.update(gradient, state, params)
        usual, other = rest.update(gradient, other, params)
        moved, left = (own["hidden_stack"] for own in (updates, usual))
        if number:
            assert jnp.abs(moved["kernel"] - left["kernel"]).max() > 1e-4
        # The mean input is -delta for every unit: what both do to the mean output is the same.
        means = [own["bias"] - delta * own["kernel"].sum(-2) for own in (moved, left)]
        np.testing.assert_allclose(*means, rtol=1e-3, atol=1e-5)
        params = optax.apply_updates(params, updates)
    q = params["hidden_stack"]["kernel"] / abs(alpha * gamma)
    gram = q @ jnp.swapaxes(q, -1, -2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(6), gram.shape), atol=1e-4)
