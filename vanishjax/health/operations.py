"""An operation that makes infinity or NaN of numbers, in words: why it does, and what mends it."""

from __future__ import annotations

import numpy as np

from vanishjax import _jaxpr
from vanishjax._jaxpr import Origin, Span, Step
from vanishjax.health.finding import Where

_NAMES = {
    "convert_element_type": "cast",
    "conv_general_dilated": "convolution",
    "cumsum": "sum",
    "custom_linear_solve": "solution of a linear system",
    "div": "divide",
    "dot_general": "matrix product",
    "exp2": "exp",
    "integer_pow": "power",
    "mul": "multiply",
    "pow": "power",
    "reduce_prod": "product",
    "reduce_sum": "sum",
    "select_n": "choice",
    "sub": "subtract",
    "add_any": "add",
}
_LOGARITHMS = frozenset({"log", "log1p"})
ROOTS = frozenset({"sqrt", "rsqrt"})
_POWERS = frozenset({"pow", "integer_pow"})
_EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
_WITHIN_ONE = "between -1 and 1"
DOMAINS = {
    "acos": _WITHIN_ONE,
    "asin": _WITHIN_ONE,
    "atanh": _WITHIN_ONE,
    "erf_inv": _WITHIN_ONE,
    "acosh": "of at least 1",
}
INSIDE = {
    _WITHIN_ONE: "clip its argument short of the ends: jnp.clip(x, -1 + 1e-6, 1 - 1e-6)",
    "of at least 1": "keep its argument above 1: jnp.maximum(x, 1 + 1e-6)",
}
_OF_REGULAR_MATRICES = frozenset({"slogdet"})
_RIDGE = "add a small multiple of the identity to the matrix: a + 1e-6 * jnp.eye(len(a))"
_FACTORIZATIONS = frozenset(
    {"cholesky", "custom_linear_solve", "eig", "eigh", "geqrf", "householder_product", "lu", "qr"}
    | {"schur", "svd", "triangular_solve", "tridiagonal_solve"}
)
# Their slope is infinite, or divides by their argument, at the edge of where they are defined.
STEEP = _LOGARITHMS | ROOTS | _POWERS | DOMAINS.keys() | {"div", "cbrt"}


def forward_text(
    origin: Origin, name: str, first: Span | None, divisor: Span | None
) -> tuple[str, tuple[str, ...]]:
    """Why an operation makes infinity or NaN, and what mends it.

    Args:
      origin: What is known of it.
      name: Of its primitive.
      first: The numbers of its first operand that has any.
      divisor: Those of what is divided by, or else the same.

    Returns:
      A sentence, and the mends.
    """
    least = first.least if first else 0.0
    if origin.is_given:
        function = _jaxpr.library_function(origin.step) or name_of(origin.step)
        if function in _OF_REGULAR_MATRICES:
            return (f"{function} is infinite: the matrix is singular.", (_RIDGE,))
        return (
            f"{function} is infinite of such numbers.",
            ("keep its arguments where it is finite",),
        )
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
    if name in ROOTS and least <= 0:
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
    if name in DOMAINS and origin.makes_nan:
        return (
            f"{name_of(origin.step)} is defined for numbers {DOMAINS[name]}, and gets others.",
            (INSIDE[DOMAINS[name]],),
        )
    if DOMAINS.get(name) == _WITHIN_ONE:
        return (
            f"{name_of(origin.step)} takes numbers {_WITHIN_ONE}, and is infinite at -1 and 1 "
            "themselves.",
            (INSIDE[_WITHIN_ONE],),
        )
    if name in _FACTORIZATIONS:
        return (
            f"{name_of(origin.step).capitalize()} fails: the matrix is singular, or not positive "
            "definite.",
            (_RIDGE,),
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
        f"{name_of(origin.step).capitalize()} overflows: what goes in reaches "
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


def where_of(step: Step, before: str = "") -> Where | None:
    """The line of an operation, and its name, behind `before`."""
    place = _jaxpr.user_place(step)
    if place is None:
        return None
    return Where.of(place.file, place.line, before + name_of(step))


def name_of(step: Step) -> str:
    """What the operation is called, and the library's function that it stands in."""
    name = step.equation.primitive.name
    name = _NAMES.get(name, name)
    function = _jaxpr.library_function(step)
    return name if function in (None, name) else f"{name} in {function}"
