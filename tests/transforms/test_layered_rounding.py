"""The transforms that see layers, in single precision, against float64 loops."""

import numpy as np
import optax
import pytest

import vanishjax as vj
from tests.trajectory import assert_close, run
from tests.transforms.test_layered_transforms import (
    LOOPS,
    SHAPES,
    STEPS,
    random_problem,
)


@pytest.mark.parametrize("name", LOOPS)
def test_single_precision_is_as_good_as_its_arithmetic(name):
    # A step of Newton-Schulz multiplies the rounding of a small singular value by its slope at
    # zero, a, and rounds anew: (a + ... + a^n) half ulps after n steps. The other transforms have
    # no such sum, but bias corrections 1 - b2^t keep float32's absolute precision only: 1e-7 of
    # 1 - .999 = 1e-3 is 6e-5 of the square, 3e-5 of its root.
    tx, loop = LOOPS[name]
    steps, a = (8, 1.5) if "cubic" in name else (5, 3.4445)
    amplified = sum(a**n for n in range(1, steps + 1)) * np.finfo(np.float32).epsneg
    if any(word in name for word in ("muon", "orthogonalize")):
        tolerance = amplified
    elif any(word in name for word in ("adam", "lamb")):
        tolerance = 3e-5
    else:
        tolerance = 1e-6
    grads, params = random_problem(only={"tall", "convolution", "bias"})
    ours, _ = run(tx, grads, params, move=True)
    for path, w in params.items():
        exact = np.stack(list(loop(grads[path].astype(np.float64), w.astype(np.float64))))
        assert_close(ours[path], exact, tolerance)


def test_adam_mask_sends_matrices_to_adam():
    grads, params = random_problem(only={"kernel", "tall", "bias"})
    masks = [
        {"kernel": True, "tall": False, "bias": False},
        lambda params: {path: path == "kernel" for path in params},
    ]
    adam = optax.chain(
        vj.scale_by_adam(eps_relative=True, nesterov=True), optax.scale_by_learning_rate(0.1)
    )
    expected, _ = run(adam, grads, params)
    plain, _ = run(vj.muon(0.1), grads, params)
    for mask in masks:
        found, _ = run(vj.muon(0.1, adam_mask=mask), grads, params)
        assert_close(found["kernel"], expected["kernel"])
        assert_close(found["tall"], plain["tall"])


def test_orthogonalize_brings_singular_values_near_one():
    grads, params = random_problem()
    updates, _ = run(vj.orthogonalize(), grads, params)
    for path in ("kernel", "tall", "convolution"):
        shape = (STEPS, -1, SHAPES[path][-1])
        values = np.linalg.svd(np.reshape(updates[path], shape), compute_uv=False)
        assert np.all((values > 0.6) & (values < 1.25))
    exact, _ = run(vj.orthogonalize(30, (1.5, -0.5, 0.0)), grads, params)
    values = np.linalg.svd(exact["kernel"], compute_uv=False)
    np.testing.assert_allclose(values, 1.0, rtol=1e-5)
