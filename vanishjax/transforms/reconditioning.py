"""Parameters moved to where gradients keep their size, by transforms that see gradients alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.layers import Dense, Layers
from vanishjax.transforms.arguments import as_transform, check_layers_argument
from vanishjax.transforms.centering import (
    MeanActivations,
    compensated,
    dense_of,
    mean_type,
    no_activations,
    read_activations,
)
from vanishjax.transforms.orthogonalization import polar_factor
from vanishjax.transforms.per_layer import check_given, check_layers, layers_of
from vanishjax.validation import check_non_negative

# Gains that an activation can ask for: 1 / rms f' of a sigmoid at the origin is 4.
LEAST_GAIN, LARGEST_GAIN = 0.5, 8.0


class ReconditionState(NamedTuple):
    """The number of steps, and the state of the transform inside."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    inner_state: optax.OptState


def recondition(
    inner: optax.GradientTransformation | None = None, *, layers: Layers | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the parameters to criticality in the first step; from the second on runs `inner`.

    The hidden kernels become orthogonal, all of one gain, and the biases take the mean activation
    out of every layer but the first:

    .. math:: W_l \leftarrow g\, \mathrm{polar}(W_l), \qquad b_l \leftarrow -c^T W_l

    Gain and mean are read off the first gradient: g is the median over layers of
    :math:`|W_l|_F / \sqrt{out} \cdot |g_b^l| / |g_b^{l-1}|`, about 1 / rms f', within .5 .. 8; c is
    hbar = g_W g_b / |g_b|^2 itself for the second layer, and its median over the layers behind for
    these. Nothing moves if no two layers have a gradient.

    The updates of the first step are the move itself, so this goes around the optimizer, not into a
    chain before it. For plain chains of dense layers with biases; it initializes the network
    anew and wipes out what was learned before.

    Args:
      inner: The transform of all later steps, learning rate included; None passes gradients
        through.
      layers: Division of the tree into layers; derived from the parameters if None, which takes
        the order of paths for the order of layers.

    Returns:
      A transform, which needs the parameters.

    Raises:
      TypeError: inner is not a gradient transform, or layers no `Layers`.
      ValueError: At `init`, a kernel without a bias beside it, a leaf that is not floating point,
        or layers of another tree; `update` without parameters.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(4, (16,) * 8, 3, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (32, 4)), jnp.arange(32) % 3
      >>> layers = vj.find_layers(problem.params, problem.loss_fn, batch)
      >>> tx = recondition(vj.adam(1e-3), layers=layers)
      >>> step = vj.make_train_step(problem.loss_fn, tx)
      >>> state, _ = step(vj.TrainState.create(problem.params, tx), batch)
      >>> w = state.params["hidden_stack"]["kernel"][0]
      >>> gram = w @ w.T
      >>> bool(jnp.allclose(gram, gram[0, 0] * jnp.eye(16), atol=1e-3)), 3 < gram[0, 0] ** 0.5 < 5
      (True, Array(True, dtype=bool))

    References:
      This package; for orthogonal kernels at the critical gain Pennington et al., Resurrecting the
      sigmoid, 2017.
    """
    check_layers_argument(layers)
    within = as_transform(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> ReconditionState:
        check_layers(layers, params)
        dense_of(layers, params)
        return ReconditionState(jnp.zeros([], jnp.int32), within.init(params))

    def update_fn(
        updates: optax.Updates,
        state: ReconditionState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ReconditionState]:
        values, rebuild = _with_params(layers, updates, params)
        gradients, _ = layers_of(layers, updates).by_path(updates)
        dense = dense_of(layers, updates)

        def first() -> tuple[optax.Updates, optax.OptState]:
            gain, known = read_gain(dense, gradients, values)
            activations = read_activations(
                dense, gradients, no_activations(dense, mean_type(updates))
            )
            moved = {path: jnp.zeros_like(x) for path, x in gradients.items()}
            for pair, mean in zip(dense, _common(dense, activations), strict=True):
                kernel = numerics.upcast(pair.matrices(values[pair.kernel.path]))
                bias = numerics.upcast(pair.vectors(values[pair.bias.path]))
                fed, hidden = _roles(dense, pair)
                target = jnp.where(hidden & known, _critical(kernel, gain), kernel)
                shift = -numerics.einsum("li,lio->lo", mean, target) - bias
                moved[pair.kernel.path] = pair.kernels(target - kernel)
                moved[pair.bias.path] = pair.biases(jnp.where(fed[..., 0] & known, shift, 0.0))
            return numerics.cast_like(rebuild(moved), updates), state.inner_state

        def later() -> tuple[optax.Updates, optax.OptState]:
            steps, inner_state = within.update(updates, state.inner_state, params, **extra)
            return _typed(steps, updates), inner_state

        steps, inner_state = jax.lax.cond(state.count == 0, first, later) if dense else later()
        return steps, ReconditionState(optax.safe_increment(state.count), inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class PolarGrowthState(NamedTuple):
    """The number of steps, the gain, the mean activations and the state of the transform inside."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    gain: jax.Array
    activations: MeanActivations
    inner_state: optax.OptState


def polar_growth(
    inner: optax.GradientTransformation | None = None,
    *,
    layers: Layers | None = None,
    steps: int = 100,
    rate: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
    r"""Draws the hidden kernels towards orthogonal ones of the critical gain while training.

    In each of the first steps, beside inner's updates,

    .. math::
      U_W \leftarrow U_W + r (g\, \mathrm{polar}(W) - W), \qquad
      U_b \leftarrow U_b - r\, hbar^T (g\, \mathrm{polar}(W) - W)

    with the gain g read off the first gradient and hbar off every one, as in `recondition`. Gentler
    than that: nothing is wiped out. Like it, this goes around the optimizer.

    Args:
      inner: Makes the updates, learning rate included; None passes gradients through.
      layers: Division of the tree into layers; derived from the parameters if None, which takes
        the order of paths for the order of layers.
      steps: Number of steps with growth.
      rate: r.

    Returns:
      A transform, which needs the parameters.

    Raises:
      ValueError: As in `recondition`, or negative steps or rate.

    Example:
      >>> params = {name: {"w": jnp.eye(2) / 2, "b": jnp.zeros(2)} for name in "abc"}
      >>> gradient = {
      ...     "a": {"w": jnp.eye(2), "b": jnp.ones(2)},
      ...     "b": {"w": jnp.eye(2), "b": 4 * jnp.ones(2)},
      ...     "c": {"w": jnp.eye(2), "b": 16 * jnp.ones(2)},
      ... }
      >>> tx = polar_growth(optax.sgd(0.0), steps=1, rate=1.0)
      >>> update, state = tx.update(gradient, tx.init(params), params)
      >>> print(state.gain.round(3), (params["b"]["w"] + update["b"]["w"]).round(3))
      2.0 [[2. 0.]
       [0. 2.]]

    References:
      This package.
    """
    check_non_negative("steps", steps)
    check_non_negative("rate", rate)
    check_layers_argument(layers)
    within = as_transform(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> PolarGrowthState:
        check_layers(layers, params)
        dtype = mean_type(params)
        seen = no_activations(dense_of(layers, params), dtype)
        return PolarGrowthState(
            jnp.zeros([], jnp.int32), jnp.zeros([], dtype), seen, within.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: PolarGrowthState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, PolarGrowthState]:
        values, _ = _with_params(layers, updates, params)
        found, dense = layers_of(layers, updates), dense_of(layers, updates)
        gradients, _ = found.by_path(updates)
        activations = read_activations(dense, gradients, state.activations)
        fresh, known = read_gain(dense, gradients, values)
        gain = jnp.where((state.gain == 0) & known, fresh, state.gain).astype(state.gain.dtype)
        made, inner_state = within.update(updates, state.inner_state, params, **extra)

        def grown() -> optax.Updates:
            own, rebuild = found.by_path(made)
            growth = {path: jnp.zeros_like(numerics.upcast(x)) for path, x in own.items()}
            for pair in dense:
                kernel = numerics.upcast(pair.matrices(values[pair.kernel.path]))
                _, hidden = _roles(dense, pair)
                move = rate * (_critical(kernel, gain) - kernel)
                growth[pair.kernel.path] = pair.kernels(jnp.where(hidden, move, 0.0))
            growth |= compensated(dense, growth, activations)
            return numerics.cast_like(
                rebuild({path: own[path] + growth[path] for path in own}), updates
            )

        growing = (state.count < steps) & (gain > 0)
        moved = jax.lax.cond(growing, grown, lambda: _typed(made, updates))
        return moved, PolarGrowthState(
            optax.safe_increment(state.count), gain, activations, inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def read_gain(
    dense: Sequence[Dense], gradients: dict[str, jax.Array], params: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The gain at which hidden kernels would hand gradients on unchanged, about 1 / rms f'.

    Args:
      dense: The pairs.
      gradients: Gradients by path.
      params: Parameters by path.

    Returns:
      The gain, and whether any two layers had a gradient to read it off.
    """

    def norms(of: Callable[[Dense], jax.Array]) -> jax.Array:
        found = [numerics.norm(of(pair), axes=(1, 2)) for pair in dense]
        places = [place for pair in dense for place in pair.kernel_places]
        return jnp.concatenate(found)[jnp.array(sorted(range(len(places)), key=places.__getitem__))]

    def kernel(pair: Dense) -> jax.Array:
        matrices = pair.matrices(params[pair.kernel.path])
        return matrices / matrices.shape[-1] ** 0.5

    def bias(pair: Dense) -> jax.Array:
        return pair.vectors(gradients[pair.bias.path])[:, None, :]

    if sum(map(len, dense)) < 2:
        return jnp.zeros([]), jnp.zeros([], bool)
    sizes, cotangents = norms(kernel), norms(bias)
    here, before = cotangents[1:], cotangents[:-1]
    # Neither may be so small that it has lost its last digits.
    alive = (jnp.minimum(here, before) > 1e-36) & jnp.isfinite(here + before)
    ratios = jnp.where(alive, sizes[1:] * (here / jnp.where(alive, before, 1.0)), jnp.nan)
    # The last kernel is no hidden one; where there is no other, it must do.
    ratios = ratios[:-1] if len(ratios) > 1 else ratios
    known = jnp.any(~jnp.isnan(ratios))
    gain = jnp.where(known, jnp.nanmedian(ratios), 1.0)
    return jnp.clip(gain, LEAST_GAIN, LARGEST_GAIN), known


def _typed(steps: optax.Updates, updates: optax.Updates) -> optax.Updates:
    return numerics.cast_like(jax.tree.map(jnp.asarray, steps), updates)


def _critical(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    """Orthogonal kernels `[stack, in, out]` of a gain, as `critical_orthogonal` scales them."""
    inputs, outputs = kernel.shape[1:]
    return gain * max(1.0, outputs / inputs) ** 0.5 * polar_factor(kernel)


def _common(dense: Sequence[Dense], activations: MeanActivations) -> list[jax.Array]:
    """What is taken for each layer's mean activation: the second one's own, behind it the median.

    A single number for all units of all layers behind the second: a collapsed network's estimates
    scatter about it.
    """
    second = _ranked(dense)[1]
    depths = [jnp.array(pair.depths)[:, None] for pair in dense]
    last = _ranked(dense)[-1]
    behind = [
        jnp.where((depth > second) & (depth < last) & seen[:, None], mean, jnp.nan)
        for depth, mean, seen in zip(depths, *activations, strict=True)
    ]
    median = jnp.nanmedian(jnp.concatenate([x.ravel() for x in behind]))
    return [
        jnp.where((depth <= second) | jnp.isnan(median), mean, median)
        for depth, mean in zip(depths, activations.means, strict=True)
    ]


def _roles(dense: Sequence[Dense], pair: Dense) -> tuple[jax.Array, jax.Array]:
    """Which layers of a pair are fed by an activation, and which are hidden: `[stack, 1, 1]`."""
    depths = jnp.array(pair.depths)[:, None, None]
    ranked = _ranked(dense)
    return depths > ranked[0], (depths > ranked[0]) & (depths < ranked[-1])


def _ranked(dense: Sequence[Dense]) -> list[int]:
    """The depths that occur, ascending; two at least."""
    depths = sorted({depth for pair in dense for depth in pair.depths})
    return depths if len(depths) > 1 else (depths or [0]) * 2


def _with_params(
    layers: Layers | None, updates: optax.Updates, params: optax.Params | None
) -> tuple[dict[str, jax.Array], Callable[[dict[str, jax.Array]], Any]]:
    check_given(params)
    found = layers_of(layers, updates)
    return found.by_path(params)[0], found.by_path(updates)[1]
