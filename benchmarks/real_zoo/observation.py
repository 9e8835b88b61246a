"""What the published rules of other tools look at, of any network."""

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


def observe(loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any) -> Observation:
    """One look at a network: its activations, its gradient and its parameters.

    Of loops every iteration counts as a layer, or in a while loop the last one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vj.LayerOrderWarning)
        layers = vj.find_layers(params, loss_fn, batch)
    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params, batch)
    activations, outputs = _passing(loss_fn, params, batch)

    def over(fn: Callable[..., Any], tree: Any) -> np.ndarray:
        return np.asarray(layers.reduce(lambda x, axes: fn(x, axis=axes), tree), float)

    each = [len(leaf.inner_axes) > 1 for leaf in layers.leaves for _ in np.ndindex(leaf.stack)]
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(gradient)]
    return Observation(
        np.array(each)[np.array(layers.order)],
        over(jnp.mean, gradient),
        over(lambda x, axis: jnp.mean(jnp.abs(x), axis=axis), gradient),
        np.asarray(layers.norms(gradient), float),
        sum((leaf == 0).sum() for leaf in leaves) / sum(leaf.size for leaf in leaves),
        over(jnp.mean, params),
        activations,
        outputs,
        float(loss),
    )


def _kind(eqn: Any) -> str | None:
    name = eqn.primitive.name
    if name in PRODUCTS:
        return "product"
    if name in ("jit", "pjit", "custom_jvp_call") and eqn.params.get("name") == "relu":
        return "relu"
    return _PRIMITIVES.get(name)


def _passing(
    loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any
) -> tuple[list[tuple[str, np.ndarray, np.ndarray]], np.ndarray]:
    """Of every ReLU, tanh and sigmoid what goes in and what comes out; the last product's output."""
    closed = jax.make_jaxpr(loss_fn)(params, batch)
    kinds: dict[tuple[int, ...], tuple[str, int]] = {}

    def look(path: tuple[int, ...], eqn: Any, operands: Any, results: Any) -> Any:
        kind = None if eqn is None else _kind(eqn)
        if kind is None:
            return None
        kinds[path] = kind, np.ndim(results[0])
        return (operands[0], results[0]) if kind != "product" else (results[0],)

    def run(*arguments: Any) -> Any:
        # Of a while loop what its last iteration holds is kept.
        never = lambda _: jnp.zeros((), bool)  # noqa: E731
        return examine(closed.jaxpr, closed.consts, arguments, look, never)[1]

    record = jax.jit(run)(*jax.tree.leaves((params, batch)))
    activations, last = [], np.zeros((1, 1))
    for path, kept in _walk(record, ()):
        kind, rank = kinds[path]
        arrays = [np.asarray(x, float).reshape(-1, *np.shape(x)[np.ndim(x) - rank :]) for x in kept]
        if kind == "product":
            last = arrays[0][-1]
        elif rank > 1:
            activations += [(kind, *pair) for pair in zip(*arrays, strict=True)]
    return activations, last


def _walk(record: Record, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    for number, (own, inner) in enumerate(zip(record.equations, record.inner, strict=True)):
        here = (*path, number)
        if own is not None:
            yield here, own
            continue
        for branch, one in enumerate(inner):
            yield from _walk(one, (*here, branch) if len(inner) > 1 else here)
