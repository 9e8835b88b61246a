"""Checks of arguments and trees, shared by all: clear and early, with the name or the path."""

import difflib
import functools
import numbers
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.foreign import shown
from vanishjax.naming import named_leaves

_T = TypeVar("_T")


def check_floating(params: Any, *, complex_allowed: bool = False) -> None:
    """Raises ValueError naming the first leaf that is not a real floating-point array.

    Types of 8 bits and fewer are for storage: nothing is computed in them.

    Example:
      >>> check_floating({"w": jnp.arange(3)})
      Traceback (most recent call last):
      ...
      ValueError: w: expected a real floating-point leaf, got int32[3]; keep it out of params: ...
    """
    _check_model(params)
    kind = jnp.inexact if complex_allowed else jnp.floating
    for name, leaf in named_leaves(params)[0]:
        dtype = _dtype_of(leaf)
        right = dtype is not None and jnp.issubdtype(dtype, kind)
        if not right or jnp.finfo(dtype).bits < 16:
            wanted = "a real floating-point leaf" + " of 16 bits or more" * right
            shape = ",".join(str(n) for n in np.shape(leaf))
            got = type(leaf).__name__ if dtype is None else f"{dtype}[{shape}]"
            raise ValueError(
                f"{name or 'params'}: expected {wanted}, got {got}; "
                + (_model_hint(params) or _mend(dtype))
            )


def _dtype_of(leaf: Any) -> Any:
    """The type of an array's or a number's entries; None for what is neither."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return leaf.dtype
    return np.asarray(leaf).dtype if isinstance(leaf, numbers.Number) else None


def _mend(dtype: Any) -> str:
    """What to do with a leaf that can't be trained."""
    if dtype is None:
        return "params are a tree of arrays"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "hold its real and its imaginary part as two leaves"
    if jnp.issubdtype(dtype, jnp.floating):
        return "cast it to bfloat16 or wider"
    return (
        "keep it out of params: let the loss close over it, or make it the model_state of a "
        "vanishjax.Problem (a transform alone leaves it out under optax.masked)"
    )


def _check_model(params: Any) -> None:
    """Raises ValueError for a Flax nnx model whose statistics would be trained.

    A model of a framework can only be here if the framework is loaded.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(params, nnx.Module | nnx.State):
        return
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    kinds = {type(leaf) for leaf in leaves if isinstance(leaf, nnx.Variable)}
    others = sorted(kind.__name__ for kind in kinds if not issubclass(kind, nnx.Param))
    if others and len(others) < len(kinds):
        raise ValueError(
            f"params: {type(params).__name__} holds {others[0]} beside its parameters; "
            + _make_a_problem("from_nnx")
        )


def _model_hint(params: Any) -> str:
    """What to do with a model of Flax or Equinox that came as parameters; "" for others."""
    for maker, (framework, names, _, _) in _FRAMEWORKS.items():
        module = sys.modules.get(framework)
        kinds = tuple(getattr(module, name) for name in names if hasattr(module, name))
        is_model = functools.partial(_is_one_of, kinds)
        for node in jax.tree.leaves(params, is_leaf=is_model):
            if is_model(node):
                return f"{type(node).__name__} is a whole model: " + _make_a_problem(maker)
    return ""


def _is_one_of(kinds: tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kinds)


# The module, its models, what makes a problem of one, and where its parameters are.
_FRAMEWORKS = {
    "from_linen": (
        "flax.linen",
        ("Module",),
        "model, variables, loss_fn",
        'model.init(key, x)["params"]',
    ),
    "from_nnx": ("flax.nnx", ("Module", "State"), "model, loss_fn", "nnx.state(model, nnx.Param)"),
    "from_equinox": (
        "equinox",
        ("Module",),
        "model, loss_fn",
        "eqx.filter(model, eqx.is_inexact_array)",
    ),
}


def _make_a_problem(maker: str) -> str:
    *_, given, parameters = _FRAMEWORKS[maker]
    return (
        f"pass vanishjax.Problem.{maker}({given}) instead, or to a transform its "
        f"parameters alone, {parameters}"
    )


def check_decay(name: str, value: Any, *, one_allowed: bool = False) -> None:
    """Raises ValueError unless a concrete decay rate lies in [0, 1); traced values pass.

    A plain sum may decay not at all (`one_allowed`); a mean that never decays learns nothing. An
    array of 16 bits may have been rounded to 1, and passes: see `vanishjax.numerics`.
    """
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        one_allowed |= value.dtype.itemsize == 2
        value = value.item() if value.ndim == 0 and value.is_fully_addressable else None
    if not isinstance(value, numbers.Real):
        return
    rate = float(value)
    if not (0 <= rate < 1 or (one_allowed and rate == 1)):
        raise ValueError(f"{name} must lie in [0, 1{']' if one_allowed else ')'}, got {value}")


def check_non_negative(name: str, value: Any) -> None:
    """Raises ValueError for a concrete negative (or NaN) number; traced values pass."""
    if isinstance(value, numbers.Real) and not float(value) >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def check_count(name: str, value: Any) -> None:
    """Raises ValueError if a value is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def lookup(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    """The value of a name; raises ValueError for an unknown one, suggesting the nearest.

    Example:
      >>> lookup("color", "reed", {"green": 1, "red": 2})
      Traceback (most recent call last):
      ...
      ValueError: unknown color 'reed': did you mean 'red'? Known: green, red
    """
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(shown(name).lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {shown(repr(name))}: {hint}Known: {', '.join(known)}")
