"""Evaluates a jaxpr and looks at every equation of it, those inside loops and branches too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal
from jax.sharding import PartitionSpec

from vanishjax._jaxpr.program import INLINED, Evaluator, on_device
from vanishjax._jaxpr.versions import bind, called, constants, open_jaxpr, varying

_CALLS = INLINED | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}

Path = tuple[int, ...]
"""Where an equation stands: its number, after those of the equations around it."""

Look = Callable[[Path, JaxprEqn | None, Sequence[Any], Sequence[Any]], Any]
"""`look(path, eqn, operands, results)`: what to keep of an equation, or, where `eqn` is None, of a
jaxpr, whose operands are its constants and arguments; arrays."""


class Record(NamedTuple):
    """What was kept of one jaxpr.

    Attributes:
      arguments: Of its constants and arguments.
      equations: Of each equation.
      inner: For each equation the records of the jaxprs that it calls, runs or chooses from. Of a
        scan's body they have a leading axis of its iterations; of a while loop's they are those of
        the first iteration in which `stop` held; of a shard_map's the largest of all devices.
    """

    arguments: Any
    equations: list[Any]
    inner: list[tuple[Any, ...]]


def inner_jaxprs(eqn: JaxprEqn) -> tuple[Any, ...]:
    """The jaxprs inside an equation that `examine` looks into."""
    name = eqn.primitive.name
    if name == "scan":
        return (eqn.params["jaxpr"],)
    if name == "shard_map":
        return (eqn.params["jaxpr"],)
    if name == "while":
        return (eqn.params["body_jaxpr"],)
    if name == "cond":
        return tuple(eqn.params["branches"])
    inner = called(eqn) if name in _CALLS else None
    return () if inner is None else (inner,)


def examine(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    look: Look,
    stop: Callable[[Any], jax.Array],
    path: Path = (),
) -> tuple[list[Any], Record]:
    """Evaluates a jaxpr, its custom derivatives dropped.

    Args:
      jaxpr: The jaxpr, open.
      consts: What it was closed over with.
      arguments: Its arguments.
      look: What to keep: arrays.
      stop: Of the record of one iteration of a while loop, whether to keep that one.
      path: Where the jaxpr stands.

    Returns:
      Its results, and what was kept.
    """
    environment = dict(zip(jaxpr.constvars, map(on_device, consts), strict=True))
    environment |= dict(zip(jaxpr.invars, arguments, strict=True))
    record = Record(look(path, None, [*consts, *arguments], []), [], [])

    def read(atom: Any) -> Any:
        return on_device(atom.val) if isinstance(atom, Literal) else environment[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in eqn.invars]
        here = (*path, number)

        def run(
            inner: Any, values: Sequence[Any], branch: Path = (), here: Path = here
        ) -> tuple[list[Any], Record]:
            place = (*here, *branch)
            return examine(open_jaxpr(inner), constants(inner), values, look, stop, place)

        inners = inner_jaxprs(eqn)
        kept: tuple[Any, ...] = ()
        if not inners:
            results = bind(eqn, operands)
        elif eqn.primitive.name == "scan":
            results, one = Evaluator().loop(
                eqn, operands, None, functools.partial(_iteration, run, inners[0])
            )
            kept = (one,)
        elif eqn.primitive.name == "while":
            results, one = _while(eqn, operands, run, stop)
            kept = (one,)
        elif eqn.primitive.name == "shard_map":
            results, one = _shards(eqn, operands, run)
            kept = (one,)
        elif eqn.primitive.name == "cond":
            results, kept = _branches(inners, operands, run)
        else:
            results, one = run(inners[0], operands)
            kept = (one,)
        record.equations.append(look(here, eqn, operands, results))
        record.inner.append(kept)
        environment |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], record


def _iteration(
    run: Callable[..., Any], body: Any, values: Sequence[Any], _: None
) -> tuple[list[Any], Record]:
    results: tuple[list[Any], Record] = run(body, values)
    return results


def _shards(
    eqn: JaxprEqn, operands: Sequence[Any], run: Callable[..., Any]
) -> tuple[list[Any], Any]:
    params = eqn.params
    axes = tuple(params["newly_manual_axes"])

    def body(*values: Any) -> Any:
        results, one = run(params["jaxpr"], values)
        return tuple(results), jax.tree.map(largest, one)

    def largest(x: jax.Array) -> jax.Array:
        return jax.lax.pmax(varying(x, axes) if params["check_vma"] else x, axes)

    results, kept = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=(tuple(params["out_specs"]), PartitionSpec()),
        axis_names=frozenset(axes),
        check_vma=params["check_vma"],
    )(*operands)
    return list(results), kept


def _branches(
    branches: Sequence[Any], operands: Sequence[Any], run: Callable[..., Any]
) -> tuple[list[Any], tuple[Any, ...]]:
    index, *values = operands
    shapes = [
        jax.eval_shape(lambda v, i=i: run(branches[i], v, (i,))[1], values)
        for i in range(len(branches))
    ]
    nothing = tuple(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one) for one in shapes)

    def take(number: int) -> Callable[..., Any]:
        def branch(values: Sequence[Any]) -> Any:
            results, one = run(branches[number], values, (number,))
            return results, (*nothing[:number], one, *nothing[number + 1 :])

        return branch

    if len(branches) == 1:
        return take(0)(values)
    results, kept = jax.lax.switch(index, [take(i) for i in range(len(branches))], values)
    return results, kept


def _while(
    eqn: JaxprEqn,
    operands: Sequence[Any],
    run: Callable[..., Any],
    stop: Callable[[Any], jax.Array],
) -> tuple[list[Any], Any]:
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    of_condition, of_body = operands[:first], operands[first : first + second]
    start = list(operands[first + second :])
    shape = jax.eval_shape(lambda values: run(body, [*of_body, *values])[1], start)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

    def goes_on(carry: Any) -> Any:
        values, _ = carry
        return Evaluator()(open_jaxpr(condition), constants(condition), [*of_condition, *values])[0]

    def step(carry: Any) -> Any:
        values, kept = carry
        results, one = run(body, [*of_body, *values])
        done = stop(kept)
        return results, jax.tree.map(lambda old, new: jnp.where(done, old, new), kept, one)

    results, kept = jax.lax.while_loop(goes_on, step, (start, nothing))
    return results, kept
