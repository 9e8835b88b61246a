"""A loss as a program: traced to a jaxpr, flattened, and evaluated equation by equation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from vanishjax._jaxpr.versions import bind, called, constants, open_jaxpr, scan_split, shape_of

INLINED = frozenset(
    ["jit", "pjit", "closed_call", "core_call", "core_closed_call", "remat", "remat2", "checkpoint"]
)


class Program(NamedTuple):
    """A traced loss: its jaxpr takes the parameters' leaves, then the batch's arrays.

    Attributes:
      closed: The jaxpr; its first output is the loss.
      ranks: Number of dimensions of each parameter.
      arrays: Number of arrays in the batch.
    """

    closed: ClosedJaxpr
    ranks: tuple[int, ...]
    arrays: int


def trace_loss(loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any = None) -> Program:
    """Traces `loss_fn(params, batch)`; nothing is computed.

    Args:
      loss_fn: `(params, batch) -> loss` or `-> (loss, aux)` with a scalar loss.
      params: Parameters: arrays or `jax.ShapeDtypeStruct`s.
      batch: Any pytree; what isn't an array or a `jax.ShapeDtypeStruct` is handed over as it is.

    Returns:
      The program.

    Raises:
      ValueError: The loss is neither.
    """
    leaves, structure = jax.tree_util.tree_flatten(params)
    arrays, rebuild = split_arrays(batch)

    def flat_loss(leaves: list[Any], arrays: list[Any]) -> Any:
        return loss_fn(jax.tree_util.tree_unflatten(structure, leaves), rebuild(arrays))

    closed, out = jax.make_jaxpr(flat_loss, return_shape=True)(leaves, arrays)
    loss = out[0] if isinstance(out, tuple) and len(out) == 2 else out
    if getattr(loss, "shape", None) != ():
        raise ValueError(
            f"loss_fn must return a scalar or (scalar, aux), got {jax.tree.map(shape_of, out)}"
        )
    return Program(closed, tuple(jnp.ndim(x) for x in leaves), len(arrays))


def split_arrays(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """A tree's arrays, and the function that puts others in their place; what is none stays."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    array = [is_array(x) for x in leaves]

    def rebuild(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        filled = [next(rest) if one else x for x, one in zip(leaves, array, strict=True)]
        return jax.tree_util.tree_unflatten(structure, filled)

    return list(itertools.compress(leaves, array)), rebuild


def is_array(x: Any) -> bool:
    """Whether a leaf of a batch is an array (or stands for one) rather than a setting."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def flatten(program: Program) -> Program:
    """The same program with its calls and rematerializations written out.

    Loops, branches and functions with derivatives of their own stay. Every equation of the result
    is an object of its own, and stands for one place of the program.
    """
    return evaluated(program, Evaluator())


def evaluated(program: Program, evaluate: Evaluator) -> Program:
    """The program of the loss as an evaluator computes it."""

    def loss(*arguments: Any) -> Any:
        return evaluate(program.closed.jaxpr, program.closed.consts, arguments)[:1]

    arguments = (
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.closed.jaxpr.invars
    )
    return program._replace(closed=jax.make_jaxpr(loss)(*arguments))


class Evaluator:
    """Evaluates a jaxpr equation by equation, writing out calls.

    Subclasses see every value by overriding `value`, every other equation by overriding `apply`,
    and loops by overriding `scan`.
    """

    def apply(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """The results of an equation that is neither a call nor a scan."""
        return bind(eqn, operands)

    def value(self, variable: Var, x: Any, environment: Mapping[Var, Any]) -> Any:
        """What `variable` should hold, given what it would."""
        del variable, environment
        return x

    def scan(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """The results of a scan."""
        return self.loop(eqn, operands, None, lambda own, _: (self.body(eqn, own), None))[0]

    def body(self, eqn: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
        """The outputs of one iteration of a scan."""
        jaxpr = eqn.params["jaxpr"]
        return self(open_jaxpr(jaxpr), constants(jaxpr), arguments)

    def loop(
        self,
        eqn: JaxprEqn,
        operands: Sequence[Any],
        sequences: Any,
        step: Callable[[Sequence[Any], Any], tuple[list[Any], Any]],
    ) -> tuple[list[Any], Any]:
        """Runs a scan with more to run along and more to hand out.

        Args:
          eqn: The scan.
          operands: Its operands.
          sequences: A tree of arrays with a leading axis of the scan's length.
          step: `step(arguments, element)`, given the body's arguments and one element of the
            sequences, returns the body's outputs and something to stack.

        Returns:
          The scan's results, and what was stacked.
        """
        first, count = scan_split(eqn)

        def iterate(carry: list[Any], elements: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
            own, element = elements
            outputs, handed = step([*operands[:first], *carry, *own], element)
            return outputs[:count], (outputs[count:], handed)

        carry, (stacked, handed) = jax.lax.scan(
            iterate,
            list(operands[first : first + count]),
            (list(operands[first + count :]), sequences),
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        return [*carry, *stacked], handed

    def __call__(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        environment: dict[Var, Any] = {}

        def write(variables: Sequence[Var], values: Sequence[Any]) -> None:
            for variable, x in zip(variables, values, strict=True):
                environment[variable] = self.value(variable, x, environment)

        def read(atom: Any) -> Any:
            return on_device(atom.val) if isinstance(atom, Literal) else environment[atom]

        write(jaxpr.constvars, [on_device(x) for x in consts])
        write(jaxpr.invars, arguments)
        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            inner = called(eqn) if eqn.primitive.name in INLINED else None
            if inner is not None:
                results = self(open_jaxpr(inner), constants(inner), operands)
            elif eqn.primitive.name == "scan":
                results = self.scan(eqn, operands)
            else:
                results = self.apply(eqn, operands)
            write(eqn.outvars, results)
        return [read(atom) for atom in jaxpr.outvars]


def on_device(constant: Any) -> Any:
    """A constant of a program; one that is a NumPy array can't be indexed by a traced number."""
    return jnp.asarray(constant) if isinstance(constant, np.ndarray) else constant
