"""What an MLP may look like, and which parameters it then has."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vanishjax.foreign import shown

Initializer = Callable[..., jax.Array]
Residual = Literal["scaled", "rezero"]

LECUN_NORMAL: Initializer = jax.nn.initializers.lecun_normal()
"""Flax's own initializer of kernels."""


def parameter_shapes(
    in_features: int,
    hidden: Sequence[int],
    classes: int,
    *,
    residual: Residual | None = None,
    scan: bool = False,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Says which parameters an MLP has, from its inputs on, without tracing it.

    Args:
      in_features: Number of inputs.
      hidden: Widths of the hidden layers.
      classes: Number of outputs.
      residual: As for `MLP`.
      scan: As for `MLP`.

    Yields:
      The path of every parameter, such as "hidden_0/kernel", and its shape.

    Example:
      >>> shapes = parameter_shapes(4, (8, 8, 8), 3, residual="rezero", scan=True)
      >>> for path, shape in shapes:
      ...     print(path, shape)
      hidden_0/kernel (4, 8)
      hidden_0/bias (8,)
      hidden_stack/kernel (2, 8, 8)
      hidden_stack/bias (2, 8)
      hidden_stack/alpha (2,)
      output/kernel (8, 3)
      output/bias (3,)
    """
    widths = [in_features, *hidden]
    stacked = scan and len(hidden) > 1

    def layer(
        name: str, into: int, out: int, gain: bool, *stack: int
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}/kernel", (*stack, into, out)
        yield f"{name}/bias", (*stack, out)
        if gain:
            yield f"{name}/alpha", stack

    square = square_layers(hidden)
    for index in range(1 if stacked else len(hidden)):
        gain = residual == "rezero" and square[index]
        yield from layer(f"hidden_{index}", widths[index], widths[index + 1], gain)
    if stacked:
        yield from layer(
            "hidden_stack", hidden[1], hidden[1], residual == "rezero", len(hidden) - 1
        )
    yield from layer("output", widths[-1], classes, False)


def add_branch(inputs: jax.Array, branch: jax.Array, gain: Any) -> jax.Array:
    """Adds gain * branch in the branch's type, which a scan needs to stay the same."""
    return inputs.astype(branch.dtype) + jnp.asarray(gain, branch.dtype) * branch


def square_layers(hidden: Sequence[int]) -> list[bool]:
    """Which hidden layers are as wide as what they take in, and so may have a skip connection."""
    return [False, *(a == b for a, b in itertools.pairwise(hidden))]


def check_architecture(
    hidden: Sequence[int],
    classes: int,
    residual: str | None,
    scan: bool,
    in_features: int = 1,
) -> None:
    """Raises ValueError for no layers, widths that are none, or unequal ones under `scan`."""
    if not isinstance(hidden, Sequence) or len(hidden) == 0:
        raise ValueError(
            f"hidden must list at least one layer's width, such as (64, 32), "
            f"got {shown(repr(hidden))}"
        )
    sizes = (("every width in hidden", width) for width in hidden)
    for what, size in itertools.chain(sizes, [("classes", classes), ("in_features", in_features)]):
        if isinstance(size, bool) or not isinstance(size, numbers.Integral):
            raise ValueError(f"{what} must be a whole number, got {shown(repr(size))}")
        if size < 1:
            raise ValueError(f"{what} must be at least 1, got {shown(size)}")
    if residual not in (None, "scaled", "rezero"):
        raise ValueError(
            f"residual must be None, 'scaled' or 'rezero', got {shown(repr(residual))}"
        )
    if scan and len(set(hidden)) > 1:
        raise ValueError(
            f"scan=True stacks the hidden layers and needs equal widths, got "
            f"{shown(tuple(hidden))}: "
            "make the widths equal or pass scan=False"
        )
