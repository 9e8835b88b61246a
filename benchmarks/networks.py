"""Small networks, healthy and sick in every way we know, to try a diagnosis or a cure on.

What is sick isn't decided here but by training (`benchmarks.diagnosis`); what is written here, and
was before any of them was examined, is what would be wrong with a network that doesn't train.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax import initializers, losses, optimizers
from vanishjax.activations import resolve_activation
from vanishjax.models import MLP
from vanishjax.training.data import load_dataset

ADAM_RATES = (0.0003, 0.001, 0.003, 0.01)
SGD_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, 64 pixels, standardized."""
    data = load_dataset("digits", validation_split=0.2, seed=0)
    return data.train.inputs, data.train.labels


def blob(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian clouds in the plane, 1,024 points."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 1024)
    centers = 4 * np.array([[0, 1], [0.87, -0.5], [-0.87, -0.5]])
    points = centers[labels] + rng.standard_normal((1024, 2))
    return (points / points.std()).astype(np.float32), labels.astype(np.int32)


def circle(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A disc inside a ring, 1,024 points in the plane."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 1024)
    radius = np.where(labels == 0, 0.5, 1.5) + 0.1 * rng.standard_normal(1024)
    angle = rng.uniform(0, 2 * np.pi, 1024)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points.astype(np.float32), labels.astype(np.int32)


DATA: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": digits,
    "blob": blob,
    "circle": circle,
}
CLASSES = {"digits": 10, "blob": 3, "circle": 2}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and how it's trained.

    Attributes:
      name: Says what it is.
      init: `init(key, inputs) -> params`.
      predict: `predict(params, inputs) -> logits`.
      ails: The rules that would name its sickness, if it is sick; the first is the best.
      data: A key of `DATA`.
      optimizer: `optimizer(rate)`.
      rates: The best of these counts.
      loss: `loss(logits, labels)`.
      pretrain: Steps of training before it is examined; for a network that has converged.
      batched: Whether to train seeds and rates side by side: convolutions are faster in turn.
    """

    name: str
    init: Callable[[Any, Any], Any]
    predict: Callable[[Any, Any], Any]
    ails: tuple[str, ...] = ()
    data: str = "digits"
    optimizer: Callable[[Any], optax.GradientTransformation] = optimizers.adam
    rates: tuple[float, ...] = ADAM_RATES
    loss: Callable[[Any, Any], Any] = losses.cross_entropy
    pretrain: int = 0
    batched: bool = True

    def loss_fn(self, params: Any, batch: Any) -> jax.Array:
        """The loss of a batch `(inputs, labels)`."""
        return self.loss(self.predict(params, batch[0]), batch[1])


def of_module(module: nn.Module) -> dict[str, Any]:
    """How a linen module is initialized and applied."""

    def init(key: Any, inputs: Any) -> Any:
        return module.init(key, inputs[:1])["params"]

    def predict(params: Any, inputs: Any) -> Any:
        return module.apply({"params": params}, inputs)

    return {"init": init, "predict": predict}


def gain(scale: float) -> Any:
    """Normal kernels of variance scale / fan_in."""
    return nn.initializers.variance_scaling(scale, "fan_in", "normal")


def constant(value: float) -> Any:
    """An initializer."""
    return nn.initializers.constant(value)


def mlp(
    activation: str | Callable[[Any], Any],
    depth: int,
    *ails: str,
    scale: float = 1.0,
    width: int = 48,
    label: str = "",
    data: str = "digits",
    **settings: Any,
) -> Network:
    """A plain MLP; `settings` of `MLP` or of `Network`."""
    known = {field.name for field in dataclasses.fields(Network)}
    own = {key: value for key, value in settings.items() if key in known}
    rest = {key: value for key, value in settings.items() if key not in known}
    name = activation if isinstance(activation, str) else activation.__name__.strip("_")
    rest.setdefault("kernel_init", gain(scale))
    classes = rest.pop("classes", CLASSES[data])
    module = MLP((width,) * depth, classes, activation=activation, scan=depth > 2, **rest)
    what = label or f"scale {scale:g}"
    return Network(
        f"{name} x{depth}, {what}" + (f", {data}" if data != "digits" else ""),
        ails=ails,
        data=data,
        **(of_module(module) | own),
    )


def sgd(*ails: str, activation: str, depth: int, **settings: Any) -> Network:
    """An MLP trained by SGD with momentum."""
    label = settings.pop("label", f"scale {settings.get('scale', 1.0):g}")
    return mlp(
        activation,
        depth,
        *ails,
        label=f"{label}, momentum",
        optimizer=lambda rate: optimizers.sgd(rate, 0.9),
        rates=SGD_RATES,
        **settings,
    )


def exponential(x: jax.Array) -> jax.Array:
    """The activation e^x."""
    return jnp.exp(x)


class LeNet(nn.Module):
    """Two convolutions and two dense layers on 8 x 8 images."""

    activation: str = "relu"
    batch_norm: bool = False
    kernel_init: Any = gain(1.0)
    extra: int = 0

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        """Logits of flat images."""
        f = resolve_activation(self.activation)
        x = inputs.reshape(-1, 8, 8, 1)
        for features in (6, 16):
            x = nn.Conv(features, (3, 3), kernel_init=self.kernel_init)(x)
            if self.batch_norm:
                mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
                x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
            x = nn.avg_pool(f(x), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(1 + self.extra):
            x = f(nn.Dense(48, kernel_init=self.kernel_init)(x))
        return nn.Dense(10, kernel_init=self.kernel_init)(x)


class Attention(nn.Module):
    """Two pre-norm transformer blocks over the eight rows of an image."""

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        """Logits of flat images."""
        x = nn.Dense(32)(inputs.reshape(-1, 8, 8))
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(2)(y, y)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(y)))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def frozen(network: Network, name: str, *ails: str, paths: tuple[str, ...]) -> Network:
    """A network whose parameters under some paths are behind a stop_gradient."""

    def predict(params: Any, inputs: Any) -> Any:
        stopped = {
            key: jax.lax.stop_gradient(value) if key in paths else value
            for key, value in params.items()
        }
        return network.predict(stopped, inputs)

    return dataclasses.replace(network, name=name, predict=predict, ails=ails)


def scaled(network: Network, name: str, factor: float, *ails: str, **changes: Any) -> Network:
    """A network with its loss multiplied by a factor."""

    def loss(logits: Any, labels: Any) -> Any:
        return network.loss(logits, labels) * jnp.asarray(factor, logits.dtype)

    return dataclasses.replace(network, name=name, loss=loss, ails=ails, **changes)


def half_loss(logits: Any, labels: Any) -> Any:
    """Cross-entropy without the widening that `losses.cross_entropy` does."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def one_unit(logits: Any, labels: Any) -> Any:
    """A softmax over a single unit: always 1, whatever the network does."""
    chance = jax.nn.softmax(logits, axis=-1)[:, 0]
    return jnp.mean((chance - (labels % 2)) ** 2)


def standardized_logs(logits: Any, labels: Any) -> Any:
    """A loss that takes the logarithm of numbers that may be negative."""
    return -jnp.mean(jnp.log(jnp.take_along_axis(logits, labels[:, None], 1)))


VANISHING = ("vanishing_gradient", "mean_collapse")
MEAN = ("mean_collapse", "vanishing_gradient")


def narrow(key: Any, shape: Any, dtype: Any = jnp.float32) -> Any:
    """Kernels uniform in +-.05."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


critical = initializers.critical_orthogonal
EPS_RELATIVE = {"optimizer": lambda rate: optimizers.adam(rate, eps_relative=True)}
BFLOAT16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "label": "bfloat16"}
FLOAT16 = {
    "dtype": jnp.float16,
    "param_dtype": jnp.float16,
    "loss": half_loss,
    "label": "float16",
    **EPS_RELATIVE,
}
EVERYTHING = ("hidden_0", "hidden_stack", "output")


def tuning_networks() -> list[Network]:
    """Those whose measurements were looked at when thresholds were chosen."""
    plain_relu, plain_tanh = mlp("relu", 3, scale=2.0), mlp("tanh", 4)
    return [
        # Deep sigmoids: every layer loses the inputs' differences and 19/20 of the gradient.
        mlp("sigmoid", 1),
        mlp("sigmoid", 2),
        mlp("sigmoid", 8, *MEAN),
        mlp("sigmoid", 10, *MEAN),
        mlp("sigmoid", 13, *MEAN),
        mlp("sigmoid", 16, *MEAN),
        mlp("sigmoid", 24, *MEAN),
        mlp("sigmoid", 32, *MEAN),
        mlp("sigmoid", 64, *MEAN),
        mlp("sigmoid", 8, *MEAN, scale=1 / 3),
        mlp("sigmoid", 8, *MEAN, data="blob"),
        mlp("sigmoid", 10, *MEAN, data="circle"),
        mlp("sigmoid", 12, *MEAN, label="uniform .05", kernel_init=narrow),
        mlp("sigmoid", 12, *MEAN, **BFLOAT16),
        mlp("sigmoid", 16, *MEAN, label="critical", kernel_init=critical("centered_sigmoid")),
        mlp("centered_sigmoid", 16, label="critical", kernel_init=critical("centered_sigmoid")),
        # Tanh: critical or nearly so at scale 1, shrinking below.
        mlp("tanh", 2),
        plain_tanh,
        mlp("tanh", 8),
        mlp("tanh", 16),
        mlp("tanh", 24, label="critical", kernel_init=critical("tanh")),
        mlp("tanh", 48, label="critical", kernel_init=critical("tanh")),
        mlp("tanh", 64, *VANISHING, scale=1 / 3),
        mlp("tanh", 96, *VANISHING, scale=1 / 3),
        mlp("tanh", 12, *VANISHING, label="uniform .05", kernel_init=narrow),
        mlp("tanh", 32, *VANISHING, label="uniform .05", kernel_init=narrow),
        mlp("tanh", 96, "exploding_gradient", "saturated_units", scale=16.0),
        mlp("tanh", 4, "saturated_units", "exploding_gradient", scale=4000.0),
        # Rectifiers.
        mlp("relu", 2, scale=2.0, data="circle"),
        mlp("relu", 3, scale=2.0, data="blob"),
        plain_relu,
        mlp("relu", 6),
        mlp("relu", 8, scale=2.0),
        mlp("relu", 16, scale=2.0),
        mlp("leaky_relu", 8, scale=2.0),
        mlp("relu", 64, *VANISHING),
        mlp("relu", 96, *VANISHING),
        mlp("relu", 16, *VANISHING, label="uniform .05", kernel_init=narrow),
        mlp("relu", 32, *VANISHING, label="uniform .05", kernel_init=narrow),
        mlp("relu", 128, "mean_collapse", "dead_units", "vanishing_gradient", scale=2.0),
        mlp("relu", 4, "dead_units", scale=2.0, label="bias -20", bias_init=constant(-20.0)),
        mlp("relu", 6, "dead_units", scale=2.0, label="bias -10", bias_init=constant(-10.0)),
        mlp("relu", 48, "exploding_gradient", "nonfinite", scale=16.0),
        mlp("relu", 80, "exploding_gradient", "nonfinite", scale=64.0),
        # Smooth ones.
        mlp("selu", 8),
        mlp("selu", 16),
        mlp("elu", 6),
        mlp("gelu", 4),
        mlp("silu", 4, scale=2.0),
        mlp("gelu", 48, *VANISHING),
        mlp("softplus", 24, *MEAN),
        mlp(exponential, 8, "exploding_gradient", "nonfinite"),
        mlp(exponential, 4, "exploding_gradient", "nonfinite", scale=4.0),
        # Skips.
        mlp("relu", 24, label="residual", scale=2.0, residual="scaled"),
        mlp("tanh", 64, label="residual", residual="scaled"),
        mlp("relu", 48, label="ReZero", scale=2.0, residual="rezero"),
        mlp("sigmoid", 32, label="ReZero", residual="rezero"),
        # Convolutions and attention.
        Network("LeNet, relu", batched=False, **of_module(LeNet())),
        Network(
            "LeNet, tanh, batch norm", batched=False, **of_module(LeNet("tanh", batch_norm=True))
        ),
        Network(
            "LeNet, sigmoid, 8 more",
            batched=False,
            **of_module(LeNet("sigmoid", extra=8)),
            ails=MEAN,
        ),
        Network(
            "LeNet, relu, uniform .01 x12",
            batched=False,
            **of_module(LeNet(kernel_init=nn.initializers.normal(0.003), extra=12)),
            ails=VANISHING,
        ),
        Network("Attention", **of_module(Attention())),
        # Momentum has no use for a gradient that is small.
        sgd(activation="relu", depth=3, scale=2.0),
        sgd(activation="tanh", depth=8),
        sgd(*VANISHING, activation="relu", depth=32),
        sgd(*VANISHING, activation="tanh", depth=32, scale=1 / 3),
        sgd(*MEAN, activation="sigmoid", depth=8),
        # Zero by construction.
        mlp(
            "relu", 3, "zero_gradient", scale=2.0, label="softmax of one", classes=1, loss=one_unit
        ),
        mlp("tanh", 4, "zero_gradient", label="all zero", kernel_init=nn.initializers.zeros),
        frozen(
            plain_relu,
            "relu x3, all frozen",
            "zero_gradient",
            paths=EVERYTHING,
        ),
        # Types and optimizers.
        mlp("tanh", 4, **BFLOAT16),
        mlp("relu", 3, scale=2.0, **FLOAT16),
        scaled(
            mlp("tanh", 4, **FLOAT16),
            "tanh x4, float16, loss x 1e-6",
            1e-6,
            "underflow",
        ),
        scaled(
            mlp("relu", 6, scale=2.0, **FLOAT16),
            "relu x6, float16, loss x 1e-7",
            1e-7,
            "underflow",
        ),
        scaled(plain_relu, "relu x3, loss x 1e-13", 1e-13, "blind_optimizer"),
        scaled(plain_tanh, "tanh x4, loss x 1e-14", 1e-14, "blind_optimizer"),
        scaled(plain_tanh, "tanh x4, loss x 1e-14, eps relative", 1e-14, **EPS_RELATIVE),
        mlp("tanh", 2, "nonfinite", label="log of negatives", loss=standardized_logs),
        # Converged: small gradients, and nothing wrong.
        dataclasses.replace(plain_relu, name="relu x3, converged", pretrain=2000),
        dataclasses.replace(plain_tanh, name="tanh x4, converged", pretrain=2000),
        mlp("relu", 3, scale=2.0, label="converged", data="blob", pretrain=2000),
    ]


def held_out_networks() -> list[Network]:
    """Those on which nothing was tuned: written down before any of them was examined."""
    tanh, selu = mlp("tanh", 3, width=32), mlp("selu", 4)
    return [
        mlp("sigmoid", 3),
        mlp("sigmoid", 9, *MEAN, width=96),
        mlp("sigmoid", 11, *MEAN, width=32),
        mlp("sigmoid", 20, *MEAN),
        mlp("sigmoid", 48, *MEAN, width=32),
        mlp("sigmoid", 12, *MEAN, scale=2.0),
        mlp("sigmoid", 13, *MEAN, data="blob", width=24),
        mlp("sigmoid", 10, *MEAN, label="uniform .05", kernel_init=narrow),
        mlp("sigmoid", 16, *MEAN, **BFLOAT16),
        mlp("centered_sigmoid", 8, label="critical", kernel_init=critical("centered_sigmoid")),
        mlp("centered_sigmoid", 16, *VANISHING),
        mlp("tanh", 6, width=96),
        mlp("tanh", 12, width=64),
        mlp("tanh", 3, data="circle"),
        mlp("tanh", 32, label="critical", kernel_init=critical("tanh"), width=64),
        mlp("tanh", 80, *VANISHING, scale=0.5, width=32),
        mlp("tanh", 24, *VANISHING, label="uniform .05", kernel_init=narrow, width=32),
        mlp("tanh", 64, "exploding_gradient", "saturated_units", scale=25.0),
        mlp("tanh", 3, "saturated_units", "exploding_gradient", scale=20000.0),
        mlp("erf", 10, scale=1.2),
        mlp("hard_tanh", 8, scale=1.1),
        mlp("softsign", 6, scale=2.0),
        mlp("relu", 5, scale=2.0, width=32),
        mlp("relu", 10, scale=2.0),
        mlp("relu", 80, *VANISHING, width=32),
        mlp("relu", 40, *VANISHING, scale=0.5),
        mlp("relu", 24, *VANISHING, label="uniform .05", kernel_init=narrow),
        mlp("relu", 3, "dead_units", scale=2.0, label="bias -30", bias_init=constant(-30.0)),
        mlp("relu", 60, "exploding_gradient", "nonfinite", scale=12.0, width=32),
        mlp("leaky_relu", 12, scale=2.0),
        mlp("elu", 16, width=64),
        mlp("selu", 24),
        mlp("silu", 40, *VANISHING),
        mlp("gelu", 64, *VANISHING, width=32),
        mlp("gelu", 6, scale=2.0),
        mlp("softplus", 32, *MEAN),
        mlp(exponential, 6, "exploding_gradient", "nonfinite"),
        mlp("tanh", 80, label="ReZero", residual="rezero", width=32),
        mlp("relu", 16, label="residual", residual="scaled"),
        Network("LeNet, gelu", batched=False, **of_module(LeNet("gelu"))),
        Network(
            "LeNet, sigmoid, 12 more",
            batched=False,
            **of_module(LeNet("sigmoid", extra=12)),
            ails=MEAN,
        ),
        sgd(activation="tanh", depth=4),
        sgd(activation="relu", depth=5, scale=2.0),
        sgd(*VANISHING, activation="relu", depth=24),
        sgd(*MEAN, activation="sigmoid", depth=12),
        mlp("tanh", 3, "zero_gradient", label="softmax of one", classes=1, loss=one_unit),
        mlp("relu", 4, "zero_gradient", label="all zero", kernel_init=nn.initializers.zeros),
        frozen(tanh, "tanh x3, all frozen", "zero_gradient", paths=EVERYTHING),
        frozen(tanh, "tanh x3, first frozen", paths=("hidden_0",)),
        mlp("relu", 6, scale=2.0, **BFLOAT16),
        scaled(mlp("tanh", 3, **FLOAT16), "tanh x3, float16, loss x 3e-7", 3e-7, "underflow"),
        scaled(selu, "selu x4, loss x 3e-14", 3e-14, "blind_optimizer"),
        scaled(tanh, "tanh x3, loss x 1e6", 1e6),
        scaled(tanh, "tanh x3, loss x 1e-5", 1e-5),
        mlp("relu", 3, "nonfinite", label="log of negatives", loss=standardized_logs, scale=2.0),
        dataclasses.replace(selu, name="selu x4, converged", pretrain=2000),
        dataclasses.replace(tanh, name="tanh x3, converged", pretrain=2000),
    ]


def fresh_networks() -> list[Network]:
    """A second held-out set, for cures: written down, and not yet examined, when they were done.

    What `cure` missed of the first one had been looked at by then, and had led to changes.
    """
    return [
        mlp("sigmoid", 14, *MEAN, width=40),
        mlp("sigmoid", 28, *MEAN, width=64),
        mlp("sigmoid", 56, *MEAN, width=40),
        mlp("sigmoid", 18, *MEAN, scale=0.5, width=24),
        mlp("sigmoid", 11, *MEAN, data="circle", width=24),
        mlp("tanh", 72, *VANISHING, scale=0.4, width=40),
        mlp("tanh", 28, *VANISHING, label="uniform .05", kernel_init=narrow),
        mlp("tanh", 48, "exploding_gradient", "saturated_units", scale=20.0, width=40),
        mlp("relu", 72, *VANISHING, width=40),
        mlp("relu", 30, *VANISHING, scale=0.5, width=24),
        mlp("relu", 5, "dead_units", scale=2.0, label="bias -25", bias_init=constant(-25.0)),
        mlp("relu", 54, "exploding_gradient", "nonfinite", scale=14.0, width=40),
        mlp("leaky_relu", 88, *VANISHING),
        mlp("silu", 56, *VANISHING, width=40),
        mlp("softplus", 40, *MEAN, width=40),
        mlp(exponential, 5, "exploding_gradient", "nonfinite", width=32),
        mlp(exponential, 7, "exploding_gradient", "nonfinite"),
        Network(
            "LeNet, relu, uniform .01 x16",
            batched=False,
            **of_module(LeNet(kernel_init=nn.initializers.normal(0.003), extra=16)),
            ails=VANISHING,
        ),
        sgd(*VANISHING, activation="relu", depth=40, width=40),
        sgd(*MEAN, activation="sigmoid", depth=10, width=32),
    ]
