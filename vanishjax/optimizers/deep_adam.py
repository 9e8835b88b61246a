"""Adam for plain chains of any depth: a shaped start, known means, steps of one over the depth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics, transforms
from vanishjax.activations import Activation, resolve_activation
from vanishjax.initializers.shaping import (
    Role,
    count_layers,
    position_axes,
    roles_in_chain,
    shaped_start,
)
from vanishjax.layers import Dense, Layers
from vanishjax.optimizers.arguments import LearningRate
from vanishjax.theory import shape
from vanishjax.theory.shaping import METHODS, Method, mean_activation
from vanishjax.transforms.arguments import check_layers_argument
from vanishjax.transforms.centering import MeanActivations, compensated, dense_of
from vanishjax.transforms.per_layer import check_given, check_layers, layers_of
from vanishjax.validation import check_non_negative, lookup

_LONGEST_WARM_UP = 50
_FAR = 0.02  # of the largest entry: parameters nearer to the shaped start than this are there


class DeepAdamState(NamedTuple):
    """The number of updates, and Adam's state."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    adam: optax.OptState


def deep_adam(
    learning_rate: LearningRate,
    total_steps: int,
    *,
    activation: str | Activation,
    layers: Layers | None = None,
    method: Method = "dks",
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    rest_rate: float = 0.03,
    end_rate: float = 0.02,
    input_mean: jax.typing.ArrayLike | None = None,
    start: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam for plain chains of a thousand layers: kernels, biases and one activation, no skips.

    With (alpha, beta, delta, gamma) = `vanishjax.theory.shape` (activation, L) for L layers that
    have the activation, the first update moves the parameters to the shaped start,

    .. math::
      W_l = \alpha \gamma\, \mathrm{polar}(W_l), \qquad
      b_l = \beta + \delta \textstyle\sum_i W_l[i, :]

    (see `vanishjax.initializers.shaped`; parameters that are there already stay). The activations
    then have a known mean, -delta (nearly that in TAT), and all later updates are made in the
    coordinates h + delta, in which there is none:

    .. math::
      G_W = g_W + \delta\, 1 g_b^T, \qquad
      U_W = -\frac{\eta_0}{L} \frac{|\alpha \gamma|}{\sqrt{n}} s_t \mathrm{Adam}(G_W), \qquad
      U_b = \delta \textstyle\sum_i U_W[i, :] - \frac{\eta_0 r}{L} |\alpha| s_t \mathrm{Adam}(g_b)

    without an epsilon, for kernels of n inputs; so no step moves a layer's mean output. s_t rises
    for up to 50 updates and then falls linearly to `end_rate`. The first kernel and the last have
    the rates r eta_0 alpha and r eta_0 gamma, which don't depend on the depth.

    Args:
      learning_rate: eta_0. A float is multiplied by s_t; .1 serves every depth from some tens of
        layers to thousands, and every activation that we tried, with the `method` that fits it. At
        10,000 layers one run of fourteen blew up by it, and none of those at .05. A schedule
        stands for eta_0 s_t.
      total_steps: Length of the run.
      activation: Of all layers but the last: its name, or an elementwise function.
      layers: Division of the tree into layers; derived from the parameters if None. Pass
        ``find_layers(params, loss_fn, batch)`` unless paths sort in the order of depth.
      method: As in `vanishjax.theory.shape`; "tat" for GELU, SiLU and softplus, which "dks" lets
        blow up now and then in hundreds of layers.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      rest_rate: r, the rate of biases, the first kernel and the last, and anything else, over
        eta_0, in their own units.
      end_rate: Share of the learning rate that is left at the end.
      input_mean: The mean `[inputs]` of what the first kernel takes in, where it isn't zero; its
        gradient and bias are then treated like the others'.
      start: Whether the first update moves the parameters; without it start from
        `vanishjax.initializers.shaped`.

    Returns:
      A transform, which needs the parameters. Where the first update moves them, it knows nothing
      of the data and takes inputs to be standardized: for others, or for a first kernel on the
      principal components, apply `vanishjax.initializers.shaped` before. Kernels of three axes or
      more are taken for convolutions', and keep their matrix in the middle; where zeros are padded,
      means at the border aren't quite those known. On accelerators, which round the factors of a
      product, set ``jax_default_matmul_precision`` to "highest" for hundreds of layers or more.

    Raises:
      ValueError: total_steps below 1, an unknown activation or method; at `init`, an activation
        that has no shape at this depth, a kernel without a bias beside it, a leaf that is not
        floating point, or layers of another tree; `update` without parameters.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,) * 300, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
      >>> tx = deep_adam(0.1, 100, activation="sigmoid")
      >>> updates, _ = tx.update(problem.params, tx.init(problem.params), problem.params)
      >>> params = optax.apply_updates(problem.params, updates)
      >>> sizes = vj.probe(problem.loss_fn, params, batch).gradient_rms[1:-1]
      >>> bool(sizes.max() < 4 * sizes.min())
      True

    References:
      Martens et al., Deep kernel shaping, 2021, arXiv 2110.01765, and Zhang et al., TAT, 2022,
      arXiv 2203.08120, for the start; Wiesler et al., Mean-normalized stochastic gradient for
      large-scale deep learning, 2014, for updates freed of a mean (there a running one); Dey et
      al., CompleteP, 2025, arXiv 2505.01618, for rates of one over the depth. Putting the three
      together for plain chains, by transforms alone, is this package's.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    check_layers_argument(layers)
    check_non_negative("rest_rate", rest_rate)
    lookup("method", method, dict.fromkeys(METHODS))
    f = resolve_activation(activation)
    adam = transforms.scale_by_adam(b1, b2, eps=0.0)
    warm_up = min(_LONGEST_WARM_UP, total_steps // 5)

    def rate(count: jax.Array) -> Any:
        if callable(learning_rate):
            return learning_rate(count)
        passed = count.astype(jnp.float32)
        fallen = (passed - warm_up) / max(1, total_steps - warm_up)
        falling = 1 - (1 - end_rate) * jnp.clip(fallen, 0.0, 1.0)
        return learning_rate * jnp.minimum((passed + 1) / max(1, warm_up), falling)

    def known(dense: Sequence[Dense]) -> tuple[list[Role], tuple[jax.Array, ...]]:
        """The roles of all pairs, and the mean `[layers, inputs]` of what their layers take in."""
        depth = count_layers(dense)
        numbers = [shape(f, depth, method=method)] if depth else []
        roles = roles_in_chain(dense, numbers * depth)
        hidden_mean = mean_activation(f, numbers[0]) if depth else 0.0
        means = []
        for pair, role in zip(dense, roles, strict=True):
            first = jnp.zeros(pair.inputs)
            if input_mean is not None and role.first.any():
                first = numerics.upcast(input_mean)
                if first.shape != (pair.inputs,):
                    raise ValueError(
                        f"input_mean must have shape ({pair.inputs},), one number for each input "
                        f"of {pair.kernel.path}, got {first.shape}"
                    )
            means.append(jnp.where(role.first[:, None], first, hidden_mean))
        return roles, tuple(means)

    def init_fn(params: optax.Params) -> DeepAdamState:
        check_layers(layers, params)
        known(dense_of(layers, params))
        return DeepAdamState(jnp.zeros([], jnp.int32), adam.init(params))

    def update_fn(
        updates: optax.Updates,
        state: DeepAdamState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, DeepAdamState]:
        del extra
        check_given(params)
        found, dense = layers_of(layers, updates), dense_of(layers, updates)
        gradients, rebuild = found.by_path(updates)
        (roles, means), depth = known(dense), count_layers(dense)

        def first() -> tuple[optax.Updates, optax.OptState]:
            values, _ = found.by_path(params)
            moves = {path: jnp.zeros_like(x) for path, x in gradients.items()}
            moves |= _moves(dense, roles, means, values)
            return numerics.cast_like(rebuild(moves), updates), state.adam

        def later() -> tuple[optax.Updates, optax.OptState]:
            freed = rebuild(gradients | _freed(dense, means, gradients))
            directions, adam_state = adam.update(freed, state.adam)
            scaled, _ = found.by_path(directions)
            eta = rate(state.count)
            steps = {path: -eta * rest_rate * x for path, x in scaled.items()}
            for pair, role in zip(dense, roles, strict=True):
                kernel_rates, bias_rates = _rates(role, pair.inputs, depth, rest_rate)
                matrices = pair.matrices(scaled[pair.kernel.path])
                vectors = pair.vectors(scaled[pair.bias.path])
                steps[pair.kernel.path] = pair.kernels(-eta * kernel_rates[..., None] * matrices)
                steps[pair.bias.path] = pair.biases(-eta * bias_rates * vectors)
            steps |= compensated(dense, steps, MeanActivations(means, ()))
            return numerics.cast_like(rebuild(steps), updates), adam_state

        if start and depth:
            steps, adam_state = jax.lax.cond(state.count == 0, first, later)
        else:
            steps, adam_state = later()
        return steps, DeepAdamState(optax.safe_increment(state.count), adam_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _freed(
    dense: Sequence[Dense], means: Sequence[jax.Array], gradients: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The kernels' gradients in coordinates in which what they take in has no mean."""
    freed = {}
    for pair, mean in zip(dense, means, strict=True):
        kernel = numerics.upcast(pair.matrices(gradients[pair.kernel.path]))
        bias = numerics.upcast(pair.vectors(gradients[pair.bias.path]))
        known = mean.astype(kernel.dtype)[:, :, None] * bias[:, None, :]
        freed[pair.kernel.path] = pair.kernels(kernel - known)
    return freed


def _rates(role: Role, inputs: int, depth: int, rest: Any) -> tuple[jax.Array, jax.Array]:
    """What eta_0 is multiplied by for kernels and biases, each `[layers, 1]`."""
    share = 1 / max(1, depth)
    hidden = share * role.gain / inputs**0.5
    kernels = jnp.where(role.hidden, hidden, rest * role.gain)
    biases = rest * jnp.where(role.hidden, share, 1.0) * role.input_scale
    return kernels[:, None], biases[:, None]


def _moves(
    dense: Sequence[Dense],
    roles: Sequence[Role],
    means: Sequence[jax.Array],
    values: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """The way from the parameters to the shaped start; none for what is there already.

    Where all other layers are there, the first one has been scaled to its data, and stays.
    """
    target = shaped_start(dense, roles, values, [position_axes(pair) for pair in dense])
    moves, far = {}, jnp.zeros([], bool)
    for pair, role in zip(dense, roles, strict=True):
        for path, stacked in ((pair.kernel.path, pair.matrices), (pair.bias.path, pair.vectors)):
            goal = target[path]
            moves[path] = goal - numerics.upcast(values[path])
            own = ~role.first.reshape(-1, *[1] * (stacked(goal).ndim - 1))
            distance = jnp.max(jnp.abs(stacked(moves[path])), initial=0.0, where=own)
            far |= distance > _FAR * jnp.max(jnp.abs(stacked(goal)), initial=0.0, where=own)
    [number] = [number for number, role in enumerate(roles) if role.first.any()]
    pair, role = dense[number], roles[number]
    stays = jnp.asarray(role.first)[:, None] & ~far
    kernel = pair.matrices(moves[pair.kernel.path])
    shift = numerics.einsum("li,lio->lo", means[number], pair.matrices(target[pair.kernel.path]))
    bias = pair.vectors(moves[pair.bias.path]) - jnp.where(role.first[:, None], shift, 0.0)
    moves[pair.kernel.path] = pair.kernels(jnp.where(stays[..., None], 0.0, kernel))
    moves[pair.bias.path] = pair.biases(jnp.where(stays, 0.0, bias))
    return moves
