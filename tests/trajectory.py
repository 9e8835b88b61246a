"""Several steps of a transform in one compiled scan, and how trajectories are compared."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
import pytest

# Two programs whose matrix products round differently get different Newton-Schulz steps. Each of
# its five iterations multiplies what lies in a small singular direction by its slope at zero,
# 3.4445, rounding errors included, and rounds anew: (a + ... + a^5) half ulps, of singular values
# near 1, on either side. That is 8e-5, a bound that a fault could hide behind: hence doubles too.
NEWTON_SCHULZ = ("orthogonalize", "scale_by_muon", "muon")
NEWTON_SCHULZ_ROUNDING = sum(3.4445**n for n in range(1, 6)) * float(np.finfo(np.float32).eps)


def in_precisions(names: Iterable[str]) -> pytest.MarkDecorator:
    """Runs a test for each (name, dtype, tolerance): in single precision, Newton-Schulz in both."""
    cases = []
    for name in names:
        amplifies = name in NEWTON_SCHULZ
        tolerance = NEWTON_SCHULZ_ROUNDING if amplifies else 1e-6
        cases.append(pytest.param(name, np.float32, tolerance, id=name))
        if amplifies:
            cases.append(pytest.param(name, np.float64, 1e-6, id=f"{name}-doubles"))
    return pytest.mark.parametrize(("name", "dtype", "tolerance"), cases)


@functools.partial(jax.jit, static_argnums=0, static_argnames="move")
def run(tx: Any, grads: Any, params: Any, move: bool = False) -> tuple[Any, Any]:
    """Updates `[steps, ...]` for gradients `[steps, ...]`, and the last state.

    The parameters stay what they are, unless they are to `move` by the updates.
    """

    def body(carry: Any, g: Any) -> Any:
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates) if move else params, state), updates

    (_, state), updates = jax.lax.scan(body, (params, tx.init(params)), grads)
    return updates, state


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    """Leaf by leaf, relative to the largest entry of its trajectory: sums cancel."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.shape(a) == np.shape(b)
        bound = tolerance * np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=bound)
