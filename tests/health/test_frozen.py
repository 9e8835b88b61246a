"""What is stopped on purpose: adapters, gains and biases train beside it, and that is no alarm."""

import jax
import jax.numpy as jnp
import optax
import pytest

import vanishjax as vj

ADAM = optax.adam(1e-3)
STOP = jax.lax.stop_gradient
KEYS = jax.random.split(jax.random.key(0), 6)
X = jax.random.normal(KEYS[0], (32, 16))
Y = jax.random.randint(KEYS[1], (32,), 0, 5)


def normal(key, *shape):
    return jax.random.normal(key, shape) / shape[0] ** 0.5


PARAMS = {
    "base": normal(KEYS[2], 16, 32),
    "down": normal(KEYS[3], 16, 4),
    "up": jnp.zeros((4, 32)),
    "head": normal(KEYS[4], 32, 5),
    "inner": jnp.zeros(32),
    "gain": jnp.ones(32),
    "prompt": normal(KEYS[5], 16),
    "outer": jnp.zeros(5),
}


def hidden(p, x):
    return jnp.tanh(x @ STOP(p["base"]))


TRAINED = {
    "low rank": (
        ("base", "down", "up", "head"),
        lambda p, x: jnp.tanh(x @ (STOP(p["base"]) + p["down"] @ p["up"])) @ STOP(p["head"]),
    ),
    "biases": (
        ("base", "inner", "head"),
        lambda p, x: jnp.tanh(x @ STOP(p["base"]) + p["inner"]) @ STOP(p["head"]),
    ),
    "gains": (("base", "gain", "head"), lambda p, x: hidden(p, x) * p["gain"] @ STOP(p["head"])),
    "prompt": (
        ("base", "prompt", "head"),
        lambda p, x: hidden(p, x + p["prompt"]) @ STOP(p["head"]),
    ),
    "a stopped activation": (
        ("base", "head"),
        lambda p, x: STOP(jnp.tanh(x @ p["base"])) @ p["head"],
    ),
}
STUCK = {
    "nothing": (("base", "head"), lambda p, x: hidden(p, x) @ STOP(p["head"])),
    "an output's bias": (
        ("base", "head", "outer"),
        lambda p, x: hidden(p, x) @ STOP(p["head"]) + p["outer"],
    ),
}


def diagnosed(names, outputs):
    def loss_fn(p, batch):
        logits = outputs(p, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return vj.diagnose(loss_fn, {name: PARAMS[name] for name in names}, (X, Y), ADAM)


@pytest.mark.parametrize("trained", TRAINED)
def test_what_trains_beside_stopped_kernels_is_healthy(trained):
    found = diagnosed(*TRAINED[trained])
    assert found.verdict == "healthy", str(found)
    assert {one.severity for one in found.findings} <= {"note"}


@pytest.mark.parametrize("left", STUCK)
def test_where_all_kernels_are_stopped_and_nothing_trains_beside_them_it_is_sick(left):
    found = diagnosed(*STUCK[left])
    assert [one.rule for one in found.findings if one.severity == "critical"] == ["zero_gradient"]
    assert "stop_gradient" in found.findings[0].cause


@pytest.mark.parametrize("size", [1.0, 60.0])
@pytest.mark.parametrize("behind", [True, False])
def test_what_is_frozen_is_saturated_only_where_a_gradient_must_get_through(behind, size):
    """A critic behind what is trained; not features before it, which a last layer trains on."""
    frozen = [size * normal(KEYS[2], 16, 32), size * normal(KEYS[3], 32, 32)]
    params = {"frozen": frozen, "trained": [normal(KEYS[4], 16, 16), normal(KEYS[5], 32, 5)]}

    def loss(p, batch):
        x, labels = batch
        first, second = STOP(p["frozen"])
        h = jnp.tanh(x @ p["trained"][0]) if behind else x
        logits = jnp.tanh(jnp.tanh(h @ first) @ second) @ p["trained"][1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = vj.diagnose(loss, params, (X, Y), ADAM)
    saturated = [one for one in found.findings if one.rule == "saturated_units"]
    assert bool(saturated) == (behind and size > 1), str(found)
    for one in saturated:
        assert set(one.layers) == {"frozen/0", "frozen/1"}
        assert "are frozen" in one.cause
        assert one.remedy_ids == ("frozen_slope",)
