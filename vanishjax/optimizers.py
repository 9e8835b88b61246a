"""Optimizers: named chains of transforms that end in the learning rate.

Arguments bear optax's names, in optax's order. A `learning_rate` is a float or an optax schedule.
All keep float32 state at least, so that 16-bit parameters lose no gradient.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

from vanishjax import transforms
from vanishjax.layers import Layers, dense_layers
from vanishjax.transforms.per_layer import on_layers
from vanishjax.validation import check_decay, check_non_negative

LearningRate: TypeAlias = optax.ScalarOrSchedule
Mask: TypeAlias = Any | Callable[[optax.Params], Any] | None


def sgd(
    learning_rate: LearningRate,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent, with heavy-ball or Nesterov momentum.

    Args:
      learning_rate: A float or a schedule.
      momentum: Decay of the momentum; None for none.
      nesterov: Whether the momentum looks one step ahead.
      accumulator_dtype: Type of the momentum; None keeps float32 at least.

    Returns:
      The chain, with `optax.sgd`'s values.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1, momentum=0.9, nesterov=True)
      >>> print(tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))[0])
      [-0.19]

    References:
      See `vanishjax.momentum` and `vanishjax.nesterov`.
    """
    if momentum is None:
        direction = optax.identity()
    elif nesterov:
        direction = transforms.nesterov(momentum, accumulator_dtype)
    else:
        direction = transforms.momentum(momentum, accumulator_dtype)
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    *,
    nesterov: bool = False,
    eps_relative: bool = False,
    layers: Layers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam. Arguments as in `vanishjax.scale_by_adam`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam(1e-3, eps=0.0)
      >>> print(tx.update(jnp.array([1e-30]), tx.init(jnp.zeros(1)))[0].round(6))
      [-0.001]

    References:
      Kingma and Ba, Adam: a method for stochastic optimization, 2015.
    """
    return optax.chain(
        transforms.scale_by_adam(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            nu_dtype,
            nesterov=nesterov,
            eps_relative=eps_relative,
            layers=layers,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: Any = None,
    weight_decay: jax.typing.ArrayLike = 1e-4,
    mask: Mask = None,
    nu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay.

    Args:
      learning_rate: A float or a schedule; it multiplies the decay as well.
      b1: As in `vanishjax.scale_by_adam`.
      b2: As in `vanishjax.scale_by_adam`.
      eps: As in `vanishjax.scale_by_adam`.
      eps_root: As in `vanishjax.scale_by_adam`.
      mu_dtype: As in `vanishjax.scale_by_adam`.
      weight_decay: Share of each parameter that is taken off, times the learning rate.
      mask: Tree of booleans (or a function of the parameters that gives one): what decays.
      nu_dtype: As in `vanishjax.scale_by_adam`.
      nesterov: Whether to look ahead as Nadam does.

    Returns:
      The chain, with `optax.adamw`'s values.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamw(0.1, weight_decay=0.5)
      >>> print(tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))[0])
      [-0.05]

    References:
      Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2.
    """
    check_non_negative("weight_decay", weight_decay)
    return optax.chain(
        transforms.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with Nesterov's look ahead. Arguments as in `vanishjax.scale_by_adam`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nadam(1e-3)
      >>> print(tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))[0].round(6))
      [-0.001474]

    References:
      Dozat, Incorporating Nesterov momentum into Adam, 2016.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=True)


def nadamw(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: Any = None,
    weight_decay: jax.typing.ArrayLike = 1e-4,
    mask: Mask = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Nadam with decoupled weight decay. Arguments as in `adamw`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nadamw(0.1, weight_decay=0.5)
      >>> print(tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))[0])
      [-0.05]

    References:
      Dozat, Incorporating Nesterov momentum into Adam, 2016; Loshchilov and Hutter, Decoupled
      weight decay regularization, 2019.
    """
    return adamw(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nu_dtype, nesterov=True
    )


def rmsprop(
    learning_rate: LearningRate,
    decay: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    initial_scale: jax.typing.ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp, optionally centred or with momentum.

    Args:
      learning_rate: A float or a schedule.
      decay: As in `vanishjax.scale_by_rms`.
      eps: As in `vanishjax.scale_by_rms`.
      initial_scale: As in `vanishjax.scale_by_rms`.
      eps_in_sqrt: As in `vanishjax.scale_by_rms`.
      centered: Whether to divide by the standard deviation instead of the root mean square.
      momentum: Decay of a momentum behind the rescaling; None for none.
      nesterov: Whether that momentum looks one step ahead.
      bias_correction: As in `vanishjax.scale_by_rms`.

    Returns:
      The chain, with `optax.rmsprop`'s values.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = rmsprop(0.1, decay=0.75, eps=0.0)
      >>> print(tx.update(jnp.array([1e-30]), tx.init(jnp.zeros(1)))[0])
      [-0.2]

    References:
      Hinton, Neural networks for machine learning, lecture 6e, 2012.
    """
    rescale = transforms.scale_by_stddev if centered else transforms.scale_by_rms
    stages = [
        rescale(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if momentum is None:
        stages.append(optax.identity())
    else:
        stages.append((transforms.nesterov if nesterov else transforms.momentum)(momentum))
    return optax.chain(*stages)


def lion(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    mu_dtype: Any = None,
    weight_decay: jax.typing.ArrayLike = 1e-3,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion: the sign of a momentum, with decoupled weight decay.

    Args:
      learning_rate: A float or a schedule; about a tenth of Adam's.
      b1: As in `vanishjax.scale_by_lion`.
      b2: As in `vanishjax.scale_by_lion`.
      mu_dtype: As in `vanishjax.scale_by_lion`.
      weight_decay: As in `adamw`.
      mask: As in `adamw`.

    Returns:
      The chain, with `optax.lion`'s values.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lion(0.1, weight_decay=0.0)
      >>> print(tx.update(jnp.array([1e-30]), tx.init(jnp.zeros(1)), jnp.zeros(1))[0])
      [-0.1]

    References:
      Chen et al., Symbolic discovery of optimization algorithms, 2023.
    """
    check_non_negative("weight_decay", weight_decay)
    return optax.chain(
        transforms.scale_by_lion(b1, b2, mu_dtype),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam_atan2(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Mask = None,
    *,
    scale: jax.typing.ArrayLike = 1.0,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam without an epsilon: the same at every scale of the gradient.

    Args:
      learning_rate: A float or a schedule.
      b1: As in `vanishjax.scale_by_adam_atan2`.
      b2: As in `vanishjax.scale_by_adam_atan2`.
      mu_dtype: As in `vanishjax.scale_by_adam_atan2`.
      nu_dtype: As in `vanishjax.scale_by_adam_atan2`.
      weight_decay: As in `adamw`.
      mask: As in `adamw`.
      scale: As in `vanishjax.scale_by_adam_atan2`.
      nesterov: Whether to look ahead as Nadam does.

    Returns:
      The chain.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam_atan2(1e-3, scale=4 / jnp.pi)
      >>> gradient, params = jnp.array([1e-30]), jnp.zeros(1)
      >>> print(tx.update(gradient, tx.init(params), params)[0].round(6))
      [-0.001]

    References:
      Everett et al., Scaling exponents across parameterizations and optimizers, 2024.
    """
    check_non_negative("weight_decay", weight_decay)
    return optax.chain(
        transforms.scale_by_adam_atan2(b1, b2, mu_dtype, nu_dtype, scale=scale, nesterov=nesterov),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: LearningRate,
    weight_decay: jax.typing.ArrayLike = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: jax.typing.ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    layers: Layers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LARS: momentum on updates that have the size of their layer's parameters.

    Args:
      learning_rate: A float or a schedule.
      weight_decay: Share of the parameters added to the gradient.
      weight_decay_mask: What decays.
      trust_coefficient: As in `vanishjax.scale_by_trust_ratio`.
      eps: As in `vanishjax.scale_by_trust_ratio`.
      trust_ratio_mask: What is rescaled.
      momentum: Decay of the momentum.
      nesterov: Whether the momentum looks one step ahead.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      The chain, with `optax.lars`'s values on single layers.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, params = lars(1.0), jnp.array([3.0, 4.0])
      >>> print(tx.update(1e-30 * params, tx.init(params), params)[0].round(6))
      [-0.003 -0.004]

    References:
      You et al., Large batch training of convolutional networks, 2017.
    """
    check_non_negative("weight_decay", weight_decay)
    trace = transforms.nesterov if nesterov else transforms.momentum
    ratio = transforms.scale_by_trust_ratio(
        trust_coefficient=trust_coefficient, eps=eps, layers=layers
    )
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
        optax.masked(ratio, mask=trust_ratio_mask),
        optax.scale_by_learning_rate(learning_rate),
        trace(momentum),
    )


def lamb(
    learning_rate: LearningRate,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    eps_root: jax.typing.ArrayLike = 0.0,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Mask = None,
    *,
    eps_relative: bool = False,
    layers: Layers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB: Adam's updates at the size of their layer's parameters.

    Args:
      learning_rate: A float or a schedule.
      b1: As in `vanishjax.scale_by_adam`.
      b2: As in `vanishjax.scale_by_adam`.
      eps: As in `vanishjax.scale_by_adam`.
      eps_root: As in `vanishjax.scale_by_adam`.
      weight_decay: As in `adamw`.
      mask: As in `adamw`.
      eps_relative: As in `vanishjax.scale_by_adam`. Without it a gradient far below eps still moves
        its layer by a full step, but along the plain momentum.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      The chain, with `optax.lamb`'s values on single layers.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, params = lamb(1.0), jnp.array([3.0, 4.0])
      >>> update, _ = tx.update(jnp.full(2, 1e-30), tx.init(params), params)
      >>> bool(jnp.allclose(update, -5 / 2**0.5))
      True

    References:
      You et al., Large batch optimization for deep learning: training BERT in 76 minutes, 2020.
    """
    check_non_negative("weight_decay", weight_decay)
    return optax.chain(
        transforms.scale_by_adam(b1, b2, eps, eps_root, eps_relative=eps_relative, layers=layers),
        optax.add_decayed_weights(weight_decay, mask),
        transforms.scale_by_trust_ratio(layers=layers),
        optax.scale_by_learning_rate(learning_rate),
    )


def muon(
    learning_rate: LearningRate,
    ns_coeffs: transforms.Coefficients = transforms.NEWTON_SCHULZ,
    ns_steps: int = 5,
    beta: jax.typing.ArrayLike = 0.95,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: jax.typing.ArrayLike = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.999,
    adam_eps_root: jax.typing.ArrayLike = 0.0,
    adam_weight_decay: jax.typing.ArrayLike = 0.0,
    adam_learning_rate: LearningRate | None = None,
    adam_mask: Mask = None,
    consistent_rms: float | None = None,
    layers: Layers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon: orthogonalised momentum for matrices, Adam for the rest.

    Matrices are arrays with at least two axes beside the stack's: kernels, convolutions, stacked or
    not. Biases and scales go to Adam, as does what `adam_mask` names: embeddings and the output
    layer by custom.

    Args:
      learning_rate: A float or a schedule.
      ns_coeffs: As in `vanishjax.scale_by_muon`.
      ns_steps: As in `vanishjax.scale_by_muon`.
      beta: As in `vanishjax.scale_by_muon`.
      eps: Of the Adam part, in units of the layer's own gradient scale.
      weight_decay: Decoupled weight decay of the matrices.
      weight_decay_mask: Which matrices decay.
      mu_dtype: Type of the momentum; None keeps float32 at least.
      nesterov: Whether both parts look one step ahead.
      adam_b1: Of the Adam part.
      adam_b2: Of the Adam part.
      adam_eps_root: Of the Adam part, its root in units of the layer's own gradient scale.
      adam_weight_decay: Of the Adam part.
      adam_learning_rate: Of the Adam part; `learning_rate` if None.
      adam_mask: Tree of booleans (or a function of the parameters that gives one): matrices that go
        to Adam.
      consistent_rms: As in `vanishjax.scale_by_shape`.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      The partitioned transform, with `optax.contrib.muon`'s values on single layers.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, params = muon(0.1), {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> gradient = {"kernel": 1e-30 * jnp.eye(2), "bias": jnp.full(2, 1e-30)}
      >>> update, _ = tx.update(gradient, tx.init(params), params)
      >>> print(update["bias"].round(3))
      [-0.147 -0.147]

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
    """
    check_non_negative("weight_decay", weight_decay)
    check_non_negative("adam_weight_decay", adam_weight_decay)

    def build(layers: Layers) -> optax.GradientTransformationExtraArgs:
        def label(params: optax.Params) -> Any:
            kinds = layers.map(lambda _, axes: "muon" if len(axes) >= 2 else "adam", params)
            if adam_mask is None:
                return kinds
            masked = adam_mask(params) if callable(adam_mask) else adam_mask
            return jax.tree.map(
                lambda chosen, below: jax.tree.map(lambda kind: "adam" if chosen else kind, below),
                masked,
                kinds,
            )

        matrices = optax.chain(
            transforms.scale_by_muon(
                ns_coeffs, ns_steps, beta, mu_dtype, nesterov=nesterov, layers=layers
            ),
            transforms.scale_by_shape(consistent_rms, layers),
            optax.add_decayed_weights(weight_decay, weight_decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )
        rest = optax.chain(
            transforms.scale_by_adam(
                adam_b1,
                adam_b2,
                eps,
                adam_eps_root,
                mu_dtype,
                nesterov=nesterov,
                eps_relative=True,
                layers=layers,
            ),
            optax.add_decayed_weights(adam_weight_decay),
            optax.scale_by_learning_rate(
                learning_rate if adam_learning_rate is None else adam_learning_rate
            ),
        )
        return optax.partition({"muon": matrices, "adam": rest}, label)

    return on_layers(build, layers)


def deep_muon(
    learning_rate: LearningRate,
    total_steps: int,
    *,
    layers: Layers | None = None,
    recondition: bool = False,
    momentum: jax.typing.ArrayLike = 0.95,
    rest_rate: float = 0.1,
    end_rate: float = 0.02,
) -> optax.GradientTransformationExtraArgs:
    """Muon for chains of dense layers in which all inputs arrive at nearly the same point.

    Each kernel's gradient loses its mean-activation part and is brought to one size; orthogonalised
    Nesterov momentum makes the steps of all kernels but the last, the sign of the momentum those
    of the last and of the biases; and a step of a kernel moves its bias so that the layer's mean
    output stays (`vanishjax.center`). Trains plain sigmoid networks of 64 layers, where Adam and
    Muon stay at chance; costs healthy ones a little.

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

    Returns:
      The transform.

    Raises:
      ValueError: total_steps below 1; at `init`, a kernel without a bias beside it (leave it out
        with `optax.masked`), a leaf that is not floating point, or layers of another tree.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = deep_muon(0.03, total_steps=100)
      >>> params = {name: {"w": jnp.eye(2), "b": jnp.zeros(2)} for name in ("a", "b")}
      >>> gradient = jax.tree.map(lambda x: jnp.full_like(x, 1e-30), params)
      >>> updates, _ = tx.update(gradient, tx.init(params), params)
      >>> print(updates["b"]["b"])
      [-0.003 -0.003]

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, for the
      orthogonalised momentum; the rest is this package's.
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
            transforms.scale_by_muon(beta=momentum, layers=layers),
            transforms.scale_by_shape(layers=layers),
        )
        rest = optax.chain(
            transforms.nesterov(momentum), transforms.scale_by_sign(), optax.scale(rest_rate)
        )
        steps = optax.chain(
            optax.partition({"inner": inner, "rest": rest}, label),
            optax.scale_by_learning_rate(schedule),
        )
        centered = transforms.center(steps, layers, normalize=True)
        return transforms.recondition(layers, inner=centered) if recondition else centered

    return on_layers(build, layers)
