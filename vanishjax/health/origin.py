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
from vanishjax.health.operations import (
    DOMAINS,
    INSIDE,
    ROOTS,
    STEEP,
    forward_text,
    name_of,
    where_of,
)
from vanishjax.problem import loss_alone


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
    gradient = jax.make_jaxpr(jax.grad(loss))(leaves, arrays)
    origin = _jaxpr.find_origin(gradient, arguments)
    return None if origin is None else _backward_fault(origin, gradient, forward, arguments)


# Forward.


def _forward_fault(origin: Origin) -> Fault:
    step = origin.step
    name, spans = step.equation.primitive.name, step.spans
    first = next((span for span in spans if span is not None), None)
    divisor = spans[1] if name == "div" else first
    cause, remedies = forward_text(origin, name, first, divisor)
    return Fault(where_of(step), cause, remedies, divisor)


# Backward.


_DOUBLE_WHERE = "guard its argument too (a double where): jnp.where(ok, f(jnp.where(ok, x, 1)), y)"


def _backward_fault(origin: Origin, gradient: Any, forward: Any, arguments: Sequence[Any]) -> Fault:
    place = _jaxpr.user_place(origin.step)
    fault = _forward_fault(origin)
    if place is None:
        return fault
    steps = list(_jaxpr.steps_of(forward.jaxpr))
    steep = _steep_step(origin.step, steps)
    if steep is None:
        call = _custom_call(place, steps)
        if call is not None:
            own = _jaxpr.rule_step(origin.step, gradient, call)
            fault = fault if own is None else fault._replace(where=where_of(own))
            return _rule_fault(fault, _jaxpr.custom_function(call))
        if not any(_jaxpr.user_place(one) == place for one, _ in steps):
            # In the rule of a custom_jvp, which no step forward stands in.
            return _rule_fault(fault, place.function.rpartition(".")[2])
        if not origin.makes_nan and _jaxpr.is_dropped(forward, arguments, origin.step):
            return fault._replace(
                cause=f"{name_of(origin.step)} overflows where a where drops its result, "
                "but not its slope: 0 times infinity is NaN.",
                remedies=(_DOUBLE_WHERE, "bound its argument: jnp.minimum(x, 80)"),
            )
        return fault
    step, path = steep
    spans = _jaxpr.spans_of(forward, arguments, path)
    name = step.equation.primitive.name
    number = 1 if name == "div" else 0
    span = spans[number]
    where = where_of(step, "slope of ")
    nan = origin.step if origin.makes_nan else origin.reader
    hidden = nan is not None and _steep_step(nan, steps) == steep
    slope = f"{name_of(step)} has no finite slope at {_edge(name, span)}"
    if name in DOMAINS:
        return Fault(where, f"{slope}.", (INSIDE[DOMAINS[name]],), span)
    if hidden:
        return Fault(
            where,
            f"{slope}, and a where or a mask behind it drops the result but not the slope: 0 times "
            "infinity is NaN.",
            (_DOUBLE_WHERE, "keep its argument away from there: jnp.maximum(x, 1e-6)"),
            span,
        )
    if name in ROOTS:
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
    if name in DOMAINS:
        return "the ends of where it is defined"
    return "0" if span is None or span.zeros or span.least >= 0 else "0 and below"


def _steep_step(
    step: Step, steps: Sequence[tuple[Step, _jaxpr.Path]]
) -> tuple[Step, _jaxpr.Path] | None:
    """The step forward that a step of the gradient belongs to, if that one can be too steep."""
    place = _jaxpr.user_place(step)
    known = [one for one in steps if _jaxpr.user_place(one[0]) == place]
    best = max(known, key=lambda one: _jaxpr.common_lines(one[0], step), default=None)
    if best is None or best[0].equation.primitive.name not in STEEP:
        return None
    return best


def _custom_call(place: Place, steps: Sequence[tuple[Step, _jaxpr.Path]]) -> Step | None:
    """The call on a line of a function of the user's with a derivative rule of its own.

    JAX tells the lines of a `custom_jvp`'s rule; of a `custom_vjp`'s it tells the line of the call.
    """
    here = (step for step, _ in steps if _jaxpr.user_place(step) == place)
    return next((step for step in here if _jaxpr.custom_function(step) is not None), None)


def _rule_fault(fault: Fault, rule: str | None) -> Fault:
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
