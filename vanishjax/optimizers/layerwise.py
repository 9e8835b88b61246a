"""Optimizers whose steps depend on the layer: its norms, its matrix."""

from typing import Any

import jax
import optax

from vanishjax import transforms
from vanishjax.layers import Layers
from vanishjax.optimizers.arguments import LearningRate, Mask
from vanishjax.transforms.per_layer import on_layers
from vanishjax.validation import check_non_negative


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
    ns_steps: jax.typing.ArrayLike = 5,
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
    muon_weight_dimension_numbers: Any = None,
    layers: Layers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon: orthogonalized momentum for matrices, Adam for the rest.

    Matrices are what the layers know as such (`Leaf.is_matrix`): kernels and convolutions, stacked
    or not, each as the matrix that multiplies the data. Pass layers found with the loss, see
    `find_layers`, unless all kernels are `[..., in, out]`. Biases and scales go to Adam, as does
    what `adam_mask` names: embeddings and the output layer by custom.

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
      muon_weight_dimension_numbers: Which axes of which matrix are inputs and outputs, in the place
        of `layers`: a tree of `optax.contrib.MuonDimensionNumbers`, with None for what goes to
        Adam, or a function of the parameters that gives one; see `matrices` of `find_layers`.
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
            kinds = layers.map_leaves(lambda leaf, _: "muon" if leaf.is_matrix else "adam", params)
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

    given = muon_weight_dimension_numbers
    if given is not None and layers is not None:
        raise ValueError(
            "muon takes layers or muon_weight_dimension_numbers, not both: pass the latter to "
            "find_layers as matrices"
        )
    return on_layers(build, layers, given)
