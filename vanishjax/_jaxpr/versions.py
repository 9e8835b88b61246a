"""Equations and the jaxprs inside them: all that differs between versions of JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src import linear_util, source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Compilation, which lies below, needs these two as well.
from vanishjax.compilation import inner_jaxprs as inner_jaxprs
from vanishjax.compilation import open_jaxpr as open_jaxpr


def constants(jaxpr: Any) -> Sequence[Any]:
    """The constants that a jaxpr inside an equation was closed over with."""
    return getattr(jaxpr, "consts", ())


def scan_split(eqn: JaxprEqn) -> tuple[int, int]:
    """Number of constants and of carried values of a scan.

    Read off the ranks, as the parameter that says so was renamed: a sequence has one dimension more
    outside than inside.
    """
    body = open_jaxpr(eqn.params["jaxpr"])

    def carried(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))

    count = carried(eqn.outvars, body.outvars)
    return carried(eqn.invars, body.invars) - count, count


def called(eqn: JaxprEqn) -> Any:
    """The jaxpr that an equation applies to its operands one to one, if there is one."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = open_jaxpr(eqn.params.get(key))
        if (
            isinstance(inner, Jaxpr)
            and len(inner.invars) == len(eqn.invars)
            and len(inner.outvars) == len(eqn.outvars)
            and (
                eqn.primitive.name == "shard_map"
                or all(
                    shape_of(a.aval) == shape_of(b.aval)
                    for a, b in zip(inner.invars, eqn.invars, strict=True)
                )
            )
        ):
            return eqn.params[key]
    return None


def has_jaxpr(eqn: JaxprEqn) -> bool:
    """Whether an equation holds a jaxpr in some parameter."""
    return any(isinstance(value, Jaxpr | ClosedJaxpr) for value in eqn.params.values())


def bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Applies an equation's primitive to other operands, its custom derivatives and lines kept."""
    with source_info_util.user_context(eqn.source_info.traceback), eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]


def called_back(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The rule of a call of a `custom_vjp`, traced alone: of residuals and cotangents."""
    rule = eqn.params.get("bwd")
    if not isinstance(rule, linear_util.WrappedFun):
        return None
    seen: list[tuple[Callable[..., Any], list[Any]]] = []

    def noted(rule: Callable[..., Any], *arguments: Any) -> Any:
        kinds: list[Any] = list(map(jax.typeof, arguments))
        seen.append((rule, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kinds]))
        return rule(*arguments)

    noting = eqn.replace(params={**eqn.params, "bwd": linear_util.transformation2(noted)(rule)})
    operands, results = (
        [jax.ShapeDtypeStruct(shape_of(v.aval), dtype_of(v)) for v in variables]
        for variables in (eqn.invars, eqn.outvars)
    )
    jax.eval_shape(lambda x, y: jax.vjp(lambda *x: bind(noting, x), *x)[1](y), operands, results)
    if not seen:
        return None
    alone, arguments = seen[-1]
    return jax.make_jaxpr(alone)(*arguments)


def varying(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """An array, marked as differing along axes of a mesh, inside a shard_map that checks that."""
    kind = jax.typeof(x)
    known = kind.vma if hasattr(kind, "vma") else kind.mat.varying
    missing = tuple(axis for axis in axes if axis not in known)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def shape_of(x: Any) -> Any:
    """A value's shape; what has none is returned as it is."""
    return getattr(x, "shape", x)


def dtype_of(variable: Any) -> Any:
    """The number type of a variable."""
    return variable.aval.dtype


def is_key(aval: Any) -> bool:
    """Whether a variable holds random keys."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


class Place(NamedTuple):
    """A line of Python, and the function that it is in."""

    file: str
    line: int
    column: int
    function: str


def places(eqn: JaxprEqn) -> list[Place]:
    """The lines that made an equation, the innermost first; none where JAX doesn't tell.

    Inside a jitted function JAX tells of the lines up to that function alone.
    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return []
    frames = (
        source_info_util.raw_frame_to_frame(code, instruction)
        for code, instruction in zip(*traceback.raw_frames(), strict=True)
    )
    return [Place(f.file_name, f.start_line, f.start_column, f.function_name) for f in frames]


def is_jax(place: Place) -> bool:
    """Whether a line is JAX's own, or Python's."""
    return not source_info_util.is_user_filename(place.file)
