"""The multi-layer perceptron in Flax nnx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vanishjax.activations import Activation, resolve_activation
from vanishjax.models.architecture import (
    LECUN_NORMAL,
    Initializer,
    Residual,
    add_branch,
    check_architecture,
    square_layers,
)


class _HiddenLayer(nnx.Linear):  # type: ignore[misc]
    """The nnx twin of the one in linen."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Activation,
        residual: Residual | None,
        residual_layers: int,
        **linear: Any,
    ) -> None:
        super().__init__(in_features, out_features, **linear)
        self.activation = activation
        self.residual = residual
        self.residual_layers = residual_layers
        if residual == "rezero":
            self.alpha = nnx.Param(jnp.zeros((), self.param_dtype))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        branch = self.activation(super().__call__(inputs))
        if self.residual is None:
            return branch
        gain = self.alpha[...] if self.residual == "rezero" else self.residual_layers**-0.5
        return add_branch(inputs, branch, gain)


class NnxMLP(nnx.Module):  # type: ignore[misc]
    """A multi-layer perceptron for `flax.nnx`: the formulas, names and shapes of `MLP`.

    Args:
      in_features: Number of inputs.
      hidden: Widths of the D hidden layers.
      classes: Number of outputs; 1 for regression.
      activation: A key of `activations.ACTIVATIONS` or a function.
      kernel_init: Initializer of every kernel; Flax's default, LeCun normal.
      bias_init: Initializer of every bias.
      residual: Skip connections of the square layers: None, "scaled" or "rezero".
      scan: One stack of weights ``[D-1, width, width]`` for the layers after the first.
      dtype: Type of the computation; inferred from inputs and parameters if None.
      param_dtype: Type of the parameters.
      rngs: Source of the random keys.

    Raises:
      ValueError: On no layers, a width below 1, unequal widths under `scan` or an unknown name.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = NnxMLP(64, hidden=(32,) * 100, classes=10, scan=True, rngs=nnx.Rngs(0))
      >>> model.hidden_stack.kernel.shape
      (99, 32, 32)
      >>> model(jnp.ones([5, 64])).shape
      (5, 10)
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        classes: int,
        *,
        activation: str | Activation = "sigmoid",
        kernel_init: Initializer = LECUN_NORMAL,
        bias_init: Initializer = nnx.initializers.zeros,
        residual: Residual | None = None,
        scan: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_architecture(hidden, classes, residual, scan, in_features)
        self.depth = len(hidden)
        self.scan = scan
        common = {
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        square = square_layers(hidden)
        widths = (in_features, *hidden)

        def layer(index: int, rngs: nnx.Rngs) -> _HiddenLayer:
            return _HiddenLayer(
                widths[index],
                widths[index + 1],
                activation=resolve_activation(activation),
                residual=residual if square[index] else None,
                residual_layers=sum(square),
                rngs=rngs,
                **common,
            )

        self.hidden_0 = layer(0, rngs)
        if scan and self.depth > 1:
            create = nnx.vmap(lambda rngs: layer(1, rngs), in_axes=0, out_axes=0)
            self.hidden_stack = nnx.split_rngs(splits=self.depth - 1)(create)(rngs)
        else:
            for index in range(1, self.depth):
                setattr(self, f"hidden_{index}", layer(index, rngs))
        self.output = nnx.Linear(hidden[-1], classes, rngs=rngs, **common)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps inputs ``[..., in_features]`` to outputs ``[..., classes]``."""
        h = self.hidden_0(inputs)
        if self.scan and self.depth > 1:
            run_stack = nnx.scan(
                lambda h, stack: stack(h), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            h = run_stack(h, self.hidden_stack)
        else:
            for index in range(1, self.depth):
                h = getattr(self, f"hidden_{index}")(h)
        return self.output(h)
