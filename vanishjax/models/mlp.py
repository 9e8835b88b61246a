"""A problem to learn, with an MLP that learns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vanishjax import losses
from vanishjax.activations import Activation
from vanishjax.models.architecture import LECUN_NORMAL, Initializer, Residual, check_architecture
from vanishjax.models.linen import MLP
from vanishjax.problem import Problem
from vanishjax.validation import lookup

_LOSSES = {"cross_entropy": losses.cross_entropy, "squared_error": losses.squared_error}


def mlp_problem(
    in_features: int,
    hidden: Sequence[int],
    classes: int,
    *,
    activation: str | Activation = "sigmoid",
    kernel_init: Initializer = LECUN_NORMAL,
    bias_init: Initializer = nn.initializers.zeros,
    residual: Residual | None = None,
    scan: bool | None = None,
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
    tx: optax.GradientTransformation | None = None,
    key: jax.Array | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Problem:
    """Makes the problem of training an `MLP` on batches ``(inputs, labels)``.

    The inputs are ``[batch, in_features]``; the labels integers ``[batch]`` for "cross_entropy",
    floats ``[batch]`` or ``[batch, classes]`` for "squared_error".

    Args:
      in_features: Number of inputs.
      hidden: Widths of the hidden layers.
      classes: Number of outputs; 1 for regression.
      activation: A key of `activations.ACTIVATIONS` or a function.
      kernel_init: Initializer of every kernel.
      bias_init: Initializer of every bias.
      residual: Skip connections of the square layers: None, "scaled" or "rezero", see `MLP`.
      scan: Whether the hidden layers are one stack; None stacks three or more of equal width.
      loss: "cross_entropy" or "squared_error", computed in float32 or wider.
      tx: The gradient transform; ``vanishjax.adam(1e-3)`` if None.
      key: Draws the parameters; ``jax.random.key(0)`` if None.
      dtype: Type of the computation; inferred from inputs and parameters if None.
      param_dtype: Type of the parameters.

    Returns:
      A problem with `predict_fn`, which `Problem.rebuild` can make anew with other arguments.

    Raises:
      ValueError: On an impossible architecture or an unknown name.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> problem = mlp_problem(4, (16,) * 8, 3, activation="tanh", tx=optax.sgd(0.1))
      >>> batch = (jnp.ones([5, 4]), jnp.array([0, 1, 2, 0, 1]))
      >>> problem.loss_fn(problem.params, batch).shape
      ()
      >>> problem.predict_fn(problem.params, batch[0]).shape
      (5, 3)
    """
    loss_of_outputs = lookup("loss", loss, _LOSSES)
    check_architecture(hidden, classes, residual, bool(scan), in_features)
    hidden = tuple(hidden)
    if loss == "cross_entropy" and classes < 2:
        raise ValueError(
            f"cross_entropy needs classes >= 2, got {classes}: use loss='squared_error' to regress"
        )
    if tx is None:
        from vanishjax import optimizers

        tx = optimizers.adam(1e-3)
    architecture = {
        "hidden": hidden,
        "classes": classes,
        "activation": activation,
        "kernel_init": kernel_init,
        "bias_init": bias_init,
        "residual": residual,
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    stacked = len(hidden) >= 3 and len(set(hidden)) == 1 if scan is None else scan
    model = MLP(**architecture, scan=stacked)
    key = jax.random.key(0) if key is None else key
    # Compiled by a function of its own: op by op, JAX would keep every network's loop for ever.
    init = jax.jit(lambda key: model.init(key, jnp.zeros([1, in_features])))
    params = init(key)["params"]

    def predict_fn(params: Any, inputs: jax.Array) -> jax.Array:
        return model.apply({"params": params}, inputs)

    def loss_fn(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, labels = batch
        return loss_of_outputs(predict_fn(params, inputs), labels)

    config = {"in_features": in_features, **architecture, "scan": scan, "loss": loss, "key": key}
    return Problem(loss_fn, params, tx, predict_fn=predict_fn, factory=mlp_problem, config=config)
