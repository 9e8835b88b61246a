"""A kernel that is nearly 0 holds others back for now, as one at 0 does: training frees them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.health import release

KEYS = jax.random.split(jax.random.key(0), 16)
X = jax.random.normal(KEYS[-1], (64, 16))
Y = jnp.argmax(X[:, :5], axis=1)
OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "sgd": optax.sgd(0.1),
}


def chain(scale, depth=8, place=4):
    widths = [16] + [48] * depth + [5]
    return [
        {
            "w": jax.random.normal(key, (n, m)) * ((scale if i == place else 1) / n**0.5),
            "b": jnp.zeros(m),
        }
        for i, (key, n, m) in enumerate(zip(KEYS, widths[:-1], widths[1:], strict=False))
    ]


def loss_fn(params, batch):
    h = batch[0]
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["w"] + layer["b"])
    logits = h @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@functools.partial(jax.jit, static_argnums=(1, 2))
def trained(params, tx, steps=300):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params, (X, Y)), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return loss_fn(params, (X, Y))


@pytest.mark.parametrize("scale", [1e-2, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_kernel_that_is_nearly_0_is_no_sickness(name, scale):
    tx, params = OPTIMIZERS[name], chain(scale)
    found = vj.diagnose(loss_fn, params, (X, Y), tx)
    assert found.verdict == "healthy", str(found)
    if scale < 1e-6:
        notes = [one for one in found.findings if one.rule == "vanishing_gradient"]
        assert [one.severity for one in notes] == ["note"]
        assert "4/w is nearly 0 and holds them back for now" in notes[0].cause
    # What training says.
    usual, guess = trained(chain(1.0), tx), np.log(5)
    assert guess - trained(params, tx) > 0.8 * (guess - usual) > 0.4


def test_many_that_are_nearly_0_wait_for_one_another():
    params = [{**one, "w": 1e-3 * one["w"]} for one in chain(1.0)]
    found = vj.diagnose(loss_fn, params, (X, Y), optax.adam(1e-3))
    assert found.verdict == "sick"
    usual, guess = trained(chain(1.0), optax.adam(1e-3)), np.log(5)
    assert guess - trained(params, optax.adam(1e-3)) < 0.7 * (guess - usual)


def test_one_that_stands_still_holds_back_for_good():
    size, usual = np.array([1.0, 1e-9, 1.0]), np.ones(3)
    assert release.nearly_zero(size, usual, np.full(3, 1e-3)).tolist() == [False, True, False]
    assert not release.nearly_zero(size, usual, np.array([1e-3, 1e-6, 1e-3])).any()
    assert not release.nearly_zero(size, usual, np.full(3, np.nan)).any()


def test_the_rate_is_told_by_what_moves():
    """Not by kernels that an eps holds until the one that is nearly 0 has grown."""
    usual = vj.diagnose(loss_fn, chain(1.0), (X, Y), optax.adam(1e-3)).relative_step
    held = vj.diagnose(loss_fn, chain(1e-9), (X, Y), optax.adam(1e-3)).relative_step
    assert 0.5 < held / usual < 2
