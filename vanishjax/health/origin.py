"""What made a loss or a gradient infinite or NaN: the operation, why, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vanishjax import _jaxpr
from vanishjax._jaxpr import Origin, Place, Span, Step
from vanishjax.health.finding import Where
from vanishjax.health.measurements import Probe
from vanishjax.problem import loss_alone

_NAMES = {
    "convert_element_type": "cast",
    "conv_general_dilated": "convolution",
    "cumsum": "sum",
    "div": "divide",
    "dot_general": "matrix product",
    "exp2": "exp",
    "integer_pow": "power",
    "mul": "multiply",
    "pow": "power",
    "reduce_prod": "product",
    "reduce_sum": "sum",
    "sub": "subtract",
    "add_any": "add",
}
_LOGARITHMS = frozenset({"log", "log1p"})
_ROOTS = frozenset({"sqrt", "rsqrt"})
_POWERS = frozenset({"pow", "integer_pow"})
_EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
_DOMAINS = {
    "acos": "between -1 and 1",
    "asin": "between -1 and 1",
    "atanh": "between -1 and 1",
    "erf_inv": "between -1 and 1",
    "acosh": "of at least 1",
}
_FACTORIZATIONS = frozenset(
    {"cholesky", "eig", "eigh", "geqrf", "householder_product", "lu", "qr", "schur", "svd"}
    | {"triangular_solve", "tridiagonal_solve"}
)
# Their slope is infinite, or divides by their argument, at the edge of where they are defined.
_STEEP = _LOGARITHMS | _ROOTS | _POWERS | _DOMAINS.keys() | {"div", "cbrt"}


class Fault(NamedTuple):
    """What made infinity or NaN.

    Attributes:
      where: The line and the operation.
      cause: A sentence.
      remedies: What mends it.
      span: The numbers that went into it, those that matter; None if unknown.
    """

    where: Where | None
    cause: str
    remedies: tuple[str, ...]
    span: Span | None = None


def fault_of(
    probe: Probe, loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any
) -> Fault | None:
    """Finds the operation that makes a loss, or else its gradient, infinite or NaN.

    Args:
      probe: What was measured of the loss.
      loss_fn: The loss.
      params: Its parameters.
      batch: Its batch.

    Returns:
      What was found; None where all is finite, the parameters themselves aren't, or it can't be
      told.
    """
    parameters = probe.parameters
    finite_loss = bool(np.isfinite(probe.loss))
    if (finite_loss and not parameters.nonfinite.any()) or not np.isfinite(
        parameters.parameter_rms
    ).all():
        return None
    try:
        fault = find_fault(loss_fn, params, batch, backward=finite_loss)
    except (TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        # A primitive that can't be evaluated apart from its surroundings: the verdict stands.
        return None
    if fault is None:
        return None
    place = _between(probe, backward=finite_loss)
    return fault._replace(cause=f"{fault.cause} {place}" if place else fault.cause)


def _between(probe: Probe, *, backward: bool) -> str:
    """Between which layers it is that what was finite no longer is."""
    names = [name or "the kernel" for name in probe.names]
    if not names:
        return ""
    if backward:
        wrong = np.flatnonzero(
            np.isnan(probe.log_backward_rms) | np.isposinf(probe.log_backward_rms)
        )
        if not len(wrong):
            return ""
        last = int(wrong[-1])
        ends = names[last], names[last + 1] if last + 1 < len(names) else "the loss"
        return f"It lies between {ends[0]} and {ends[1]}, on the way back."
    wrong = np.flatnonzero(~np.isfinite(probe.preactivation_rms))
    first = int(wrong[0]) if len(wrong) else len(names)
    ends = names[first - 1] if first else "the batch", [*names, "the loss"][first]
    return f"It lies between {ends[0]} and {ends[1]}."


def find_fault(
    loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any, *, backward: bool
) -> Fault | None:
    """Finds the operation that makes a loss, or else its gradient, infinite or NaN.

    Args:
      loss_fn: As in `probe`.
      params: Finite.
      batch: Finite.
      backward: Whether the loss is finite and its gradient isn't.

    Returns:
      What was found; None where no operation makes it of finite numbers.
    """
    leaves, structure = jax.tree.flatten(params)
    arrays, rebuild = _jaxpr.split_arrays(batch)

    def loss(leaves: list[Any], arrays: list[Any]) -> Any:
        return loss_alone(loss_fn(jax.tree.unflatten(structure, leaves), rebuild(arrays)))

    forward = jax.make_jaxpr(loss)(leaves, arrays)
    arguments = [*leaves, *arrays]
    if not backward:
        origin = _jaxpr.find_origin(forward, arguments)
        return None if origin is None else _forward_fault(origin)
    origin = _jaxpr.find_origin(jax.make_jaxpr(jax.grad(loss))(leaves, arrays), arguments)
    return None if origin is None else _backward_fault(origin, forward, arguments)


# Forward.


def _forward_fault(origin: Origin) -> Fault:
    step = origin.step
    name, spans = step.equation.primitive.name, step.spans
    first = next((span for span in spans if span is not None), None)
    divisor = spans[1] if name == "div" else first
    cause, remedies = _forward_text(origin, name, first, divisor)
    return Fault(_where(step), cause, remedies, divisor)


def _forward_text(
    origin: Origin, name: str, first: Span | None, divisor: Span | None
) -> tuple[str, tuple[str, ...]]:
    least = first.least if first else 0.0
    if origin.from_infinity:
        return (
            "Infinity minus infinity, or 0 times infinity, is NaN: a row whose entries are all "
            "masked with -inf, or a sum that holds both.",
            (
                "mask with a large finite number: jnp.finfo(x.dtype).min",
                "leave at least one entry of every row unmasked",
            ),
        )
    if origin.of_constant:
        return (
            "A constant in the loss holds infinity or NaN.",
            ("look at what this line refers to beside parameters and batch",),
        )
    if name == "div" and divisor is not None and divisor.zeros:
        if origin.makes_nan:
            return (
                "0 / 0 is NaN: what is divided is 0 where its divisor is.",
                (
                    "add a small number to the divisor",
                    "guard both: jnp.where(d == 0, 0, n / jnp.where(d == 0, 1, d))",
                ),
            )
        return (
            "A division by 0: the divisor has zeros.",
            ("add a small number to the divisor", "guard it: n / jnp.where(d == 0, 1, d)"),
        )
    edge = -1.0 if name == "log1p" else 0.0
    if name in _LOGARITHMS and least <= edge:
        number = "a negative number" if least < edge else "0"
        return (
            f"The logarithm of {number if name == 'log' else 'what is not above 0'} isn't finite.",
            (
                "compute the loss from logits: jax.nn.log_softmax, jax.nn.log_sigmoid",
                "keep its argument above 0: jnp.log(jnp.maximum(x, 1e-6))",
            ),
        )
    if name in _ROOTS and least <= 0:
        number = "a negative number" if least < 0 else "0, which is divided by,"
        return (
            f"The square root of {number} isn't finite.",
            (
                "keep its argument above 0: jnp.maximum(x, 1e-6)",
                "add a small number to it: x + 1e-6",
            ),
        )
    if name == "pow" and origin.makes_nan:
        return (
            "A negative number to a fractional power is NaN.",
            ("take the power of jnp.abs(x), or keep the base above 0",),
        )
    if name in _POWERS and first is not None and first.zeros and not origin.makes_nan:
        return ("0 to a negative power is infinite.", ("keep the base away from 0",))
    if name in _DOMAINS and origin.makes_nan:
        return (
            f"{_name(origin.step)} is defined for numbers {_DOMAINS[name]}, and gets others.",
            ("clip its argument to where it is defined, short of the ends",),
        )
    if name in _FACTORIZATIONS:
        return (
            f"{_name(origin.step)} fails: the matrix is singular, or not positive definite.",
            ("add a small multiple of the identity to the matrix",),
        )
    if name in _EXPONENTIALS:
        largest = first.largest if first else np.nan
        return (
            f"The exponential overflows: its argument reaches {largest:.3g}.",
            (
                "subtract the largest argument first: jax.nn.softmax, jax.nn.logsumexp",
                "bound its argument, or take jax.nn.softplus",
                "lsuv",
            ),
        )
    if name == "convert_element_type":
        dtype = origin.step.equation.params["new_dtype"]
        return (
            f"The cast overflows: {dtype} has no numbers as large as {_largest(origin.step):.3g}.",
            ("bfloat16", "lsuv", "layer_norm"),
        )
    if name == "gather":
        return _missed(origin.step)
    return (
        f"{_name(origin.step).capitalize()} overflows: what goes in reaches "
        f"{_largest(origin.step):.3g}.",
        ("lsuv", "layer_norm", "bounded_activation"),
    )


def _missed(step: Step) -> tuple[str, tuple[str, ...]]:
    """What a lookup says that makes NaN: of finite numbers it does so in no other way."""
    table, indices = step.equation.invars[0].aval, step.spans[1]
    axes = step.equation.params["dimension_numbers"].start_index_map
    length = " x ".join(str(getattr(table, "shape", ())[axis]) for axis in axes)
    reach = "" if indices is None else f" ({indices.least:.0f} to {indices.largest:.0f})"
    return (
        f"Some of the lookup's indices{reach} lie outside the array of length {length}, and JAX "
        "fills in NaN.",
        (
            "a longer array: more tokens in the vocabulary, more positions",
            "smaller indices: check the batch's tokens and the sequence's length",
        ),
    )


def _largest(step: Step) -> float:
    return max((max(abs(s.least), abs(s.largest)) for s in step.spans if s), default=np.nan)


# Backward.


def _backward_fault(origin: Origin, forward: Any, arguments: Sequence[Any]) -> Fault:
    place = _jaxpr.user_place(origin.step)
    fault = _forward_fault(origin)
    if place is None:
        return fault
    steps = list(_jaxpr.steps_of(forward.jaxpr))
    steep = _steep_step(origin.step, steps)
    if steep is None:
        rule = _custom_rule(place, steps)
        return fault if rule is None else _rule_fault(fault, rule)
    step, path = steep
    spans = _jaxpr.spans_of(forward, arguments, path)
    name = step.equation.primitive.name
    number = 1 if name == "div" else 0
    span = spans[number]
    where = _where(step, "slope of ")
    nan = origin.step if origin.makes_nan else origin.reader
    hidden = nan is not None and _steep_step(nan, steps) == steep
    slope = f"{_name(step)} has no finite slope at {_edge(name, span)}"
    if hidden:
        return Fault(
            where,
            f"{slope}, and a where or a mask behind it drops the result but not the slope: 0 times "
            "infinity is NaN.",
            (
                "guard its argument too (a double where): jnp.where(ok, f(jnp.where(ok, x, 1)), y)",
                "keep its argument away from there: jnp.maximum(x, 1e-6)",
            ),
            span,
        )
    if name in _ROOTS:
        return Fault(
            where,
            f"{slope}: a norm, a distance or a standard deviation of a row of zeros, or of two "
            "rows that are equal.",
            (
                "add a small number under the root: jnp.sqrt(s + 1e-12)",
                "guard its argument: jnp.sqrt(jnp.where(s > 0, s, 1)), and 0 in its place outside",
            ),
            span,
        )
    return Fault(
        where,
        f"{slope}.",
        ("keep its argument away from there: add a small number, or clip it",),
        span,
    )


def _edge(name: str, span: Span | None) -> str:
    if name in _DOMAINS:
        return "the ends of where it is defined"
    return "0" if span is None or span.zeros or span.least >= 0 else "0 and below"


def _steep_step(
    step: Step, steps: Sequence[tuple[Step, _jaxpr.Path]]
) -> tuple[Step, _jaxpr.Path] | None:
    """The step forward that a step of the gradient belongs to, if that one can be too steep."""
    place = _jaxpr.user_place(step)
    known = [one for one in steps if _jaxpr.user_place(one[0]) == place]
    best = max(known, key=lambda one: _jaxpr.common_lines(one[0], step), default=None)
    if best is None or best[0].equation.primitive.name not in _STEEP:
        return None
    return best


def _custom_rule(place: Place, steps: Sequence[tuple[Step, _jaxpr.Path]]) -> str | None:
    """The function of the user's whose derivative rule a line belongs to; None if it's no rule's.

    JAX tells the lines of a `custom_jvp`'s rule, which no step forward stands in; of a
    `custom_vjp`'s it tells the line of the call.
    """
    here = [step for step, _ in steps if _jaxpr.user_place(step) == place]
    own = (name for step in here if (name := _jaxpr.custom_function(step)) is not None)
    return next(own, None) if here else place.function.rpartition(".")[2]


def _rule_fault(fault: Fault, rule: str) -> Fault:
    return fault._replace(
        where=fault.where and fault.where._replace(operation=f"{fault.where.operation} in {rule}"),
        cause="A derivative rule, of a custom_jvp or custom_vjp, is wrong: "
        + fault.cause[:1].lower()
        + fault.cause[1:],
        remedies=(
            "compare the rule with finite differences: jax.test_util.check_grads",
            *fault.remedies[:1],
        ),
    )


# Words.


def _where(step: Step, before: str = "") -> Where | None:
    place = _jaxpr.user_place(step)
    if place is None:
        return None
    return Where.of(place.file, place.line, before + _name(step))


def _name(step: Step) -> str:
    """What the operation is called, and the library's function that it stands in."""
    name = step.equation.primitive.name
    name = _NAMES.get(name, name)
    function = _jaxpr.library_function(step)
    return name if function in (None, name) else f"{name} in {function}"
