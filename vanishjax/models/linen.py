"""The multi-layer perceptron in Flax linen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vanishjax.activations import Activation, resolve_activation
from vanishjax.models.architecture import (
    LECUN_NORMAL,
    Initializer,
    Residual,
    add_branch,
    check_architecture,
    square_layers,
)


class _HiddenLayer(nn.Dense):  # type: ignore[misc]
    """f(W h + b), or h + gain f(W h + b); a `nn.Dense` so that its leaves lie side by side."""

    activation: Activation = jax.nn.sigmoid
    residual: Residual | None = None
    residual_layers: int = 1

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps ``[..., in]`` to ``[..., features]``."""
        branch = self.activation(super().__call__(inputs))
        if self.residual is None:
            return branch
        if self.residual == "rezero":
            gain = self.param("alpha", nn.initializers.zeros, (), self.param_dtype)
        else:
            gain = self.residual_layers**-0.5
        return add_branch(inputs, branch, gain)


class MLP(nn.Module):  # type: ignore[misc]
    r"""A multi-layer perceptron for `flax.linen`.

    h_0 = f(W_0 x + b_0), h_l = f(W_l h_{l-1} + b_l), output W h_{D-1} + b. A hidden layer after
    the first that is as wide as the one before it is *square* and may have a skip connection:
    "scaled" gives h_l = h_{l-1} + f(W_l h_{l-1} + b_l) / sqrt(L) for L square layers, "rezero"
    h_l = h_{l-1} + alpha_l f(W_l h_{l-1} + b_l) with a learned scalar alpha_l that starts at 0.

    Attributes:
      hidden: Widths of the D hidden layers.
      classes: Number of outputs; 1 for regression.
      activation: f, a key of `activations.ACTIVATIONS` or a function.
      kernel_init: Initializer of every kernel; Flax's default, LeCun normal.
      bias_init: Initializer of every bias.
      residual: Skip connections of the square layers: None, "scaled" or "rezero".
      scan: Keeps the layers after the first as one stack of weights ``[D-1, width, width]`` and
        scans over it, so that depth costs no compile time; needs equal widths.
      dtype: Type of the computation; inferred from inputs and parameters if None.
      param_dtype: Type of the parameters.

    Raises:
      ValueError: On no layers, a width below 1, unequal widths under `scan` or an unknown name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MLP(hidden=(32,) * 100, classes=10, activation="tanh", scan=True)
      >>> variables = model.init(jax.random.key(0), jnp.ones([1, 64]))
      >>> variables["params"]["hidden_stack"]["kernel"].shape
      (99, 32, 32)
      >>> model.apply(variables, jnp.ones([5, 64])).shape
      (5, 10)

    References:
      Bachlechner et al., ReZero is all you need, 2020, for "rezero".
    """

    hidden: Sequence[int]
    classes: int
    activation: str | Activation = "sigmoid"
    kernel_init: Initializer = LECUN_NORMAL
    bias_init: Initializer = nn.initializers.zeros
    residual: Residual | None = None
    scan: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_architecture(self.hidden, self.classes, self.residual, self.scan)
        resolve_activation(self.activation)
        super().__post_init__()

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps inputs ``[..., in_features]`` to outputs ``[..., classes]``."""
        common = {
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        square = square_layers(self.hidden)

        def layer(index: int, name: str) -> _HiddenLayer:
            return _HiddenLayer(
                self.hidden[index],
                activation=resolve_activation(self.activation),
                residual=self.residual if square[index] else None,
                residual_layers=sum(square),
                name=name,
                **common,
            )

        h = layer(0, "hidden_0")(inputs)
        if self.scan and len(self.hidden) > 1:
            run_stack = nn.scan(
                lambda stack, h: (stack(h), None),
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=len(self.hidden) - 1,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            h, _ = run_stack(layer(1, "hidden_stack"), h)
        else:
            for index in range(1, len(self.hidden)):
                h = layer(index, f"hidden_{index}")(h)
        return nn.Dense(self.classes, name="output", **common)(h)
