"""What the published rules of other tools look at, of any network."""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vanishjax as vj
from benchmarks.published_rules import Observation
from vanishjax._jaxpr.examine import Record, examine
from vanishjax._jaxpr.output import PRODUCTS

_PRIMITIVES = {"tanh": "tanh", "logistic": "sigmoid"}


_QUICKLY = {"xla_backend_optimization_level": 0}


def observer(
    gradient_of: Callable[[Any, Any], Any],
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
) -> Callable[[Any], Observation]:
    """What looks at a network at any parameters: its activations, its gradient, the parameters.

    Of loops every iteration counts as a layer, or in a while loop the last one.

    Args:
      gradient_of: `(params, batch) -> (loss, gradient)`.
      loss_fn: The loss.
      params: Parameters, for their shapes.
      batch: What is looked at.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vj.LayerOrderWarning)
        layers = vj.find_layers(params, loss_fn, batch)
    each = [len(leaf.inner_axes) > 1 for leaf in layers.leaves for _ in np.ndindex(leaf.stack)]
    kernels = np.array(each)[np.array(layers.order)]
    passing = _passing(loss_fn, params, batch)

    @functools.partial(jax.jit, compiler_options=_QUICKLY)
    def of_layers(params: Any, gradient: Any) -> tuple[jax.Array, ...]:
        def mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return jnp.mean(x, axis=axes)

        return (
            layers.reduce(mean, gradient),
            layers.reduce(mean, jax.tree.map(jnp.abs, gradient)),
            layers.norms(gradient),
            layers.reduce(mean, params),
        )

    def look(params: Any) -> Observation:
        loss, gradient = gradient_of(params, batch)
        activations, outputs = passing(params)
        means, sizes, norms, weights = (np.asarray(x, float) for x in of_layers(params, gradient))
        leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(gradient)]
        zeros = sum((leaf == 0).sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
        return Observation(
            kernels, means, sizes, norms, zeros, weights, activations, outputs, float(loss)
        )

    return look


def _kind(eqn: Any) -> str | None:
    name = eqn.primitive.name
    if name in PRODUCTS:
        return "product"
    if name in ("jit", "pjit", "custom_jvp_call") and eqn.params.get("name") == "relu":
        return "relu"
    return _PRIMITIVES.get(name)


def _passing(
    loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any
) -> Callable[[Any], tuple[list[tuple[str, np.ndarray, np.ndarray]], np.ndarray]]:
    """What goes in and out of every ReLU, tanh and sigmoid, and what the last product puts out."""
    closed = jax.make_jaxpr(loss_fn)(params, batch)
    kinds: dict[tuple[int, ...], tuple[str, int]] = {}

    def look(path: tuple[int, ...], eqn: Any, operands: Any, results: Any) -> Any:
        kind = None if eqn is None else _kind(eqn)
        if kind is None:
            return None
        kinds[path] = kind, np.ndim(results[0])
        return (operands[0], results[0]) if kind != "product" else (results[0],)

    @functools.partial(jax.jit, compiler_options=_QUICKLY)
    def run(*arguments: Any) -> Any:
        # Of a while loop what its last iteration holds is kept.
        never = lambda _: jnp.zeros((), bool)  # noqa: E731
        return examine(closed.jaxpr, closed.consts, arguments, look, never)[1]

    def see(params: Any) -> Any:
        activations, last = [], np.zeros((1, 1))
        for path, kept in _walk(run(*jax.tree.leaves((params, batch))), ()):
            kind, rank = kinds[path]
            arrays = [
                np.asarray(x, float).reshape(-1, *np.shape(x)[np.ndim(x) - rank :]) for x in kept
            ]
            if kind == "product":
                last = arrays[0][-1]
            elif rank > 1:
                activations += [(kind, *pair) for pair in zip(*arrays, strict=True)]
        return activations, last

    return see


def _walk(record: Record, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    for number, (own, inner) in enumerate(zip(record.equations, record.inner, strict=True)):
        here = (*path, number)
        if own is not None:
            yield here, own
            continue
        for branch, one in enumerate(inner):
            yield from _walk(one, (*here, branch) if len(inner) > 1 else here)
