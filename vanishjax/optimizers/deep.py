"""The optimizer for chains that nothing else trains."""

from typing import Any

import jax
import optax

from vanishjax import transforms
from vanishjax.layers import Layers, dense_layers
from vanishjax.optimizers.arguments import LearningRate
from vanishjax.transforms import NEWTON_SCHULZ, Coefficients
from vanishjax.transforms.per_layer import on_layers
from vanishjax.validation import check_decay


def deep_muon(
    learning_rate: LearningRate,
    total_steps: int,
    *,
    layers: Layers | None = None,
    recondition: bool = False,
    momentum: jax.typing.ArrayLike = 0.95,
    rest_rate: float = 0.1,
    end_rate: float = 0.02,
    ns_coeffs: Coefficients = NEWTON_SCHULZ,
) -> optax.GradientTransformationExtraArgs:
    """Muon for chains of dense layers in which all inputs arrive at nearly the same point.

    Each kernel's gradient loses its mean-activation part and is brought to one size; orthogonalized
    Nesterov momentum makes the steps of all kernels but the last, the sign of the momentum those
    of the last and of the biases; and a step of a kernel moves its bias so that the layer's mean
    output stays (`vanishjax.center`). Trains plain sigmoid networks of 64 layers, where Adam and
    Muon stay at chance, faster and further inside `vanishjax.polar_growth`.

    Args:
      learning_rate: The first rate, a float, or a schedule. A float falls linearly to `end_rate`
        of itself over `total_steps`: at a constant rate deep networks don't settle.
      total_steps: Length of the run.
      layers: Division of the tree into layers; derived from the parameters if None. Pass
        ``find_layers(params, loss_fn, batch)`` unless paths sort in the order of depth.
      recondition: Whether the first step moves the parameters to criticality instead
        (`vanishjax.recondition`).
      momentum: Decay of the momentum.
      rest_rate: The learning rate of the last kernel and of the biases over that of the others.
      end_rate: Share of the learning rate that is left at the end.
      ns_coeffs: Of the orthogonalization, as in `vanishjax.orthogonalize`.

    Returns:
      The transform.

    Raises:
      ValueError: total_steps below 1; at `init`, a kernel without a bias beside it (leave it out
        with `optax.masked`), a leaf that is not floating point, or layers of another tree.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = deep_muon(0.03, total_steps=100)
      >>> params = {name: {"w": jnp.eye(3), "b": jnp.zeros(3)} for name in ("a", "b")}
      >>> gradient = {
      ...     "a": {"w": 1e-30 * jnp.eye(3), "b": 1e-30 * jnp.array([1.0, 0.0, 0.0])},
      ...     "b": {"w": 1e3 * jnp.eye(3), "b": 1e3 * jnp.array([1.0, 0.0, 0.0])},
      ... }
      >>> updates, _ = tx.update(gradient, tx.init(params), params)
      >>> print(-updates["b"]["w"].round(4))
      [[0.    0.    0.   ]
       [0.    0.003 0.   ]
       [0.    0.    0.003]]

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, for the
      orthogonalized momentum; the rest is this package's.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    check_decay("momentum", momentum)
    schedule = learning_rate
    if not callable(learning_rate):
        schedule = optax.linear_schedule(learning_rate, end_rate * learning_rate, total_steps)

    def build(layers: Layers) -> optax.GradientTransformationExtraArgs:
        def label(params: optax.Params) -> Any:
            arrays, rebuild = layers.by_path(params)
            dense = dense_layers(layers, params)
            deepest = max((depth for pair in dense for depth in pair.depths), default=0)
            inner = {pair.kernel.path for pair in dense if max(pair.depths) < deepest}
            return rebuild({path: "inner" if path in inner else "rest" for path in arrays})

        inner = optax.chain(
            transforms.scale_by_muon(beta=momentum, ns_coeffs=ns_coeffs, layers=layers),
            transforms.scale_by_shape(layers=layers),
        )
        rest = optax.chain(
            transforms.nesterov(momentum), transforms.scale_by_sign(), optax.scale(rest_rate)
        )
        steps = optax.chain(
            optax.partition({"inner": inner, "rest": rest}, label),
            optax.scale_by_learning_rate(schedule),
        )
        centered = transforms.center(steps, layers=layers, normalize=True)
        return transforms.recondition(centered, layers=layers) if recondition else centered

    return on_layers(build, layers)
