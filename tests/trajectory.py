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
# 3.4445, rounding errors included: single precision leaves room for a fault to hide.
NEWTON_SCHULZ = ("orthogonalize", "scale_by_muon", "muon")


def in_precision(names: Iterable[str]) -> pytest.MarkDecorator:
    """Runs a test for each (name, dtype): in single precision, Newton-Schulz in double."""
    cases = [(name, np.float64 if name in NEWTON_SCHULZ else np.float32) for name in names]
    return pytest.mark.parametrize(("name", "dtype"), cases, ids=[name for name, _ in cases])


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


def side_by_side(txs: dict[str, Any]) -> optax.GradientTransformation:
    """Several transforms of the same gradients: what is the same in them is compiled once."""

    def init_fn(params: Any) -> Any:
        return {name: tx.init(params) for name, tx in txs.items()}

    def update_fn(grads: Any, states: Any, params: Any) -> Any:
        found = {name: tx.update(grads, states[name], params) for name, tx in txs.items()}
        return tuple({name: pair[i] for name, pair in found.items()} for i in (0, 1))

    return optax.GradientTransformation(init_fn, update_fn)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    """Leaf by leaf, relative to the largest entry of its trajectory: sums cancel."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.shape(a) == np.shape(b)
        bound = tolerance * np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=bound)
