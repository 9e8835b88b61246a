"""What the benchmarks compute from what they measure, on cases that are worked out by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import argument_order, response, step_time

SIZES = [10.0**-i for i in range(41)]


@pytest.mark.parametrize(
    ("name", "bytes_a_parameter"), [("sgd, momentum", 20), ("adam", 28), ("clip + adamw", 32)]
)
def test_bytes_that_a_step_must_move(name, bytes_a_parameter):
    n = 2**16
    found = step_time.compare(step_time.OPTIMIZERS[name], [(n,)], jnp.float32, turns=1)
    counters = found["bytes_moved"] - bytes_a_parameter * n
    assert 0 <= counters < 100
    floor = found["seconds"]["copy"]["median"] * found["bytes_moved"] / found["bytes_copied"]
    expected = found["seconds"]["vanishjax"]["median"] / floor
    assert found["vanishjax_over_floor"]["median"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("curve", "least"),
    [
        (lambda g: g, 1e-40),
        (lambda g: 1.0, 1e-40),
        (lambda g: g / (g + 0.9e-8), 1e-8),
        (lambda g: g if g > 1e-15 else 0.0, 1e-14),
        (lambda g: 1.0 if g > 1e-15 else 1e9, 1e-14),
        (lambda g: 1.0 if g > 1e-15 else float("nan"), 1e-14),
    ],
)
def test_the_least_gradient_that_is_seen(curve, least):
    # Halfway between sizes, so that rounding decides nothing.
    assert response.least_seen(SIZES, [curve(g * 1.001) for g in SIZES]) == pytest.approx(least)


def test_response_of_known_optimizers():
    sizes = [1.0, 1e-2, 1e-8, 1e-30]
    np.testing.assert_allclose(response.measure(response.plain(optax.sgd), sizes), sizes, rtol=1e-5)
    found = response.measure(response.plain(optax.adamw), sizes)
    np.testing.assert_allclose(found, [1, 1, 0.5, 1e-22], rtol=1e-3)


def test_crossed_arguments_copy_whole_buffers():
    w, x = jnp.zeros((256, 256)), jnp.ones((4, 256))
    ordered = argument_order.program(argument_order.step, w, x, swapped=False)
    crossed = argument_order.program(argument_order.crossed_step, w, x, swapped=True)
    assert ordered["copies"] == 0
    assert crossed["copies"] >= 2
    assert crossed["temporary_bytes"] > ordered["temporary_bytes"]
