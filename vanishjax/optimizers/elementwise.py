"""Optimizers that treat every number by itself."""

from typing import Any

import jax
import optax

from vanishjax import transforms
from vanishjax.layers import Layers
from vanishjax.optimizers.arguments import LearningRate, Mask
from vanishjax.validation import check_floating, check_non_negative


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
      The chain, with `optax.sgd`'s values. Without momentum, complex parameters are taken too;
      their gradients must be conjugated, as optax wants them and `make_train_step` makes them.

    Raises:
      ValueError: At `init`, a leaf that is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1, momentum=0.9, nesterov=True)
      >>> print(tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))[0])
      [-0.19]

    References:
      See `vanishjax.momentum` and `vanishjax.nesterov`.
    """
    if momentum is None:

        def init_fn(params: optax.Params) -> optax.EmptyState:
            check_floating(params, complex_allowed=True)
            return optax.EmptyState()

        direction = optax.GradientTransformation(init_fn, optax.identity().update)
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
    eps_relative: bool = False,
    layers: Layers | None = None,
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
      eps_relative: As in `vanishjax.scale_by_adam`.
      layers: As in `vanishjax.scale_by_adam`.

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
    *,
    eps_relative: bool = False,
    layers: Layers | None = None,
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
    return adam(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nu_dtype,
        nesterov=True,
        eps_relative=eps_relative,
        layers=layers,
    )


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
    *,
    eps_relative: bool = False,
    layers: Layers | None = None,
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
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay,
        mask,
        nu_dtype,
        nesterov=True,
        eps_relative=eps_relative,
        layers=layers,
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
    """RMSProp, optionally centered or with momentum.

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
