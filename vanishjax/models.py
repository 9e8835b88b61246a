"""Multi-layer perceptrons in Flax, linen and nnx, unrolled and scanned.

Both models name their layers alike, in depth order under a natural sort: ``hidden_0`` (input to
width), ``hidden_1`` ... ``hidden_{D-1}`` when unrolled or one ``hidden_stack`` whose leaves have
shape ``[D-1, ...]`` when scanned, and ``output``. Each holds ``kernel [in, out]`` and ``bias
[out]``; a ReZero layer also a scalar ``alpha``.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vanishjax import losses
from vanishjax.activations import Activation, resolve_activation
from vanishjax.foreign import shown
from vanishjax.problem import Problem
from vanishjax.validation import lookup

__all__ = [
    "MLP",
    "Activation",
    "NnxMLP",
    "mlp_problem",
    "parameter_shapes",
    "stack_params",
    "unstack_params",
]

Initializer = Callable[..., jax.Array]
Residual = Literal["scaled", "rezero"]

_LECUN_NORMAL = nn.initializers.lecun_normal()
_LOSSES = {"cross_entropy": losses.cross_entropy, "squared_error": losses.squared_error}


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
        return _add_branch(inputs, branch, gain)


class MLP(nn.Module):  # type: ignore[misc]
    r"""A multi-layer perceptron for `flax.linen`.

    h_0 = f(W_0 x + b_0), h_l = f(W_l h_{l-1} + b_l), output W h_{D-1} + b. A hidden layer after
    the first that is as wide as the one before it is *square* and may have a skip connection:
    "scaled" gives h_l = h_{l-1} + f(W_l h_{l-1} + b_l) / sqrt(L) for L square layers, "rezero"
    h_l = h_{l-1} + alpha_l f(W_l h_{l-1} + b_l) with a learnt scalar alpha_l that starts at 0.

    Attributes:
      hidden: Widths of the D hidden layers.
      classes: Number of outputs; 1 for regression.
      activation: f, a key of `activations.ACTIVATIONS` or a function.
      kernel_init: Initialiser of every kernel; Flax's default, LeCun normal.
      bias_init: Initialiser of every bias.
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
    kernel_init: Initializer = _LECUN_NORMAL
    bias_init: Initializer = nn.initializers.zeros
    residual: Residual | None = None
    scan: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check_architecture(self.hidden, self.classes, self.residual, self.scan)
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
        square = _square_layers(self.hidden)

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


class _NnxHiddenLayer(nnx.Linear):  # type: ignore[misc]
    """The nnx twin of `_HiddenLayer`."""

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
        return _add_branch(inputs, branch, gain)


class NnxMLP(nnx.Module):  # type: ignore[misc]
    """A multi-layer perceptron for `flax.nnx`: the formulas, names and shapes of `MLP`.

    Args:
      in_features: Number of inputs.
      hidden: Widths of the D hidden layers.
      classes: Number of outputs; 1 for regression.
      activation: A key of `activations.ACTIVATIONS` or a function.
      kernel_init: Initialiser of every kernel; Flax's default, LeCun normal.
      bias_init: Initialiser of every bias.
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
        kernel_init: Initializer = _LECUN_NORMAL,
        bias_init: Initializer = nn.initializers.zeros,
        residual: Residual | None = None,
        scan: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        _check_architecture(hidden, classes, residual, scan, in_features)
        self.depth = len(hidden)
        self.scan = scan
        common = {
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        square = _square_layers(hidden)
        widths = (in_features, *hidden)

        def layer(index: int, rngs: nnx.Rngs) -> _NnxHiddenLayer:
            return _NnxHiddenLayer(
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

    square = _square_layers(hidden)
    for index in range(1 if stacked else len(hidden)):
        gain = residual == "rezero" and square[index]
        yield from layer(f"hidden_{index}", widths[index], widths[index + 1], gain)
    if stacked:
        yield from layer(
            "hidden_stack", hidden[1], hidden[1], residual == "rezero", len(hidden) - 1
        )
    yield from layer("output", widths[-1], classes, False)


def stack_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the parameters of an unrolled MLP into those of the scanned one.

    Args:
      params: ``variables["params"]`` of `MLP`, or the pure dictionary of `NnxMLP`'s state.

    Returns:
      ``hidden_1`` ... ``hidden_{D-1}`` as one ``hidden_stack``, the other layers as they were.

    Raises:
      ValueError: If the hidden layers after the first differ in shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = MLP((8, 8, 8), 3).init(jax.random.key(0), jnp.ones([1, 4]))["params"]
      >>> stack_params(params)["hidden_stack"]["kernel"].shape
      (2, 8, 8)
    """
    names = [*itertools.takewhile(params.__contains__, (f"hidden_{i}" for i in range(1, 1 << 30)))]
    rest = {name: layer for name, layer in params.items() if name not in names}
    if not names:
        return rest
    shapes = {name: jax.tree.map(jnp.shape, params[name]) for name in names}
    for name in names:
        if shapes[name] != shapes[names[0]]:
            raise ValueError(
                f"only layers of one shape can be stacked: {name} has {shapes[name]}, "
                f"{names[0]} has {shapes[names[0]]}"
            )
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    return {**rest, "hidden_stack": stack}


def unstack_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the parameters of a scanned MLP into those of the unrolled one.

    Args:
      params: ``variables["params"]`` of `MLP`, or the pure dictionary of `NnxMLP`'s state.

    Returns:
      ``hidden_stack`` as ``hidden_1`` ... ``hidden_{D-1}``, the other layers as they were.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MLP((8, 8, 8), 3, scan=True)
      >>> params = model.init(jax.random.key(0), jnp.ones([1, 4]))["params"]
      >>> sorted(unstack_params(params))
      ['hidden_0', 'hidden_1', 'hidden_2', 'output']
    """
    rest = {name: layer for name, layer in params.items() if name != "hidden_stack"}
    stack = params.get("hidden_stack", {})
    length = len(jax.tree.leaves(stack)[0]) if stack else 0
    for index in range(length):
        rest[f"hidden_{index + 1}"] = jax.tree.map(lambda leaf, i=index: leaf[i], stack)
    return rest


def mlp_problem(
    in_features: int,
    hidden: Sequence[int],
    classes: int,
    *,
    activation: str | Activation = "sigmoid",
    kernel_init: Initializer = _LECUN_NORMAL,
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
      kernel_init: Initialiser of every kernel.
      bias_init: Initialiser of every bias.
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
    _check_architecture(hidden, classes, residual, bool(scan), in_features)
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


def _add_branch(inputs: jax.Array, branch: jax.Array, gain: Any) -> jax.Array:
    """Adds gain * branch in the branch's type, which a scan needs to stay the same."""
    return inputs.astype(branch.dtype) + jnp.asarray(gain, branch.dtype) * branch


def _square_layers(hidden: Sequence[int]) -> list[bool]:
    return [False, *(a == b for a, b in itertools.pairwise(hidden))]


def _check_architecture(
    hidden: Sequence[int],
    classes: int,
    residual: str | None,
    scan: bool,
    in_features: int = 1,
) -> None:
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
