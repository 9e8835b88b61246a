"""The remedies that the package knows, and which of them fit what a diagnosis found."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import initializers, numerics, optimizers, transforms
from vanishjax.health import Finding, probe
from vanishjax.layers import Layers, find_layers
from vanishjax.problem import Problem
from vanishjax.treatment.remedy import Remedy

# What may help a deep chain, whatever is wrong with its size: new kernels.
_DEEP = ("lsuv", "small_lsuv", "looks_linear")
# What may help against each cause (`benchmarks.cure`).
FITTING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "nonfinite": (*_DEEP, "redraw", "tiny_lsuv", "clip"),
        "zero_gradient": ("redraw", "rezero"),
        "mean_collapse": (*_DEEP, "rezero", "deep_muon"),
        "rank_collapse": (*_DEEP, "rezero", "muon"),
        "vanishing_gradient": (*_DEEP, "rezero", "adam_atan2", "deep_muon"),
        "exploding_gradient": (*_DEEP, "rezero", "tiny_lsuv", "clip"),
        "saturated_units": ("lsuv", "redraw"),
        "dead_units": ("lsuv", "redraw"),
        "underflow": ("loss_scale", "lsuv", "adam_atan2"),
        "blind_optimizer": ("adam_atan2", "lsuv"),
    }
)

# What a slower remedy multiplies the updates by: so much at most, and for deep networks less, as
# (layers / depth) to the power of 3/2. Adam's .003 times 1, .3, .1 and .03 were tried on tanh and
# rectifier networks: .3 went well to the end at depth 32, not at 64.
SLOWER, SLOWER_LAYERS = 0.3, 14.0
_SLOWER = ", slower"  # what its name ends with

# A variance at which even exponentials are nearly linear, and Muon's rate then, as a part of an
# Adam-like one's. Exponentials four and eight deep, the tuning networks, went well to the end with
# Muon at .0003 alone: not with Adam, clipped or not, `adam_atan2` or `deep_muon` at any rate that
# was tried, falling or not. Held-out ones seven deep still didn't.
TINY, TINY_RATE = 0.01, 0.3

# The gradients of 16-bit networks are computed this many times as large.
LOSS_SCALE = 2.0**10

# A linear chain of isometries has a ln chi of 0 in every layer.
_LINEAR = 0.1
_KERNELS, _OPTIMIZER = "kernels", "optimizer"
_PCA = "params = vj.initializers.pca(loss_fn, params, batch)"


def lsuv(batch: Any) -> Remedy:
    """Orthogonal kernels, unit variance and zero mean of every layer on a batch.

    The first ones look where the inputs vary. See `vanishjax.initializers.lsuv` and `pca`.
    """
    return _lsuv("lsuv", batch, 1.0)


def small_lsuv(layers: Layers, batch: Any) -> Remedy:
    """As `lsuv`, at a variance of 1 / sqrt(depth), where smooth activations are nearly linear."""
    return _lsuv("small_lsuv", batch, float(f"{depth_of(layers) ** -0.5:.1g}"))


def tiny_lsuv(layers: Layers, batch: Any, learning_rate: float) -> Remedy:
    """A variance of .01 and Muon's small even steps: for activations that run away."""

    def apply(problem: Problem) -> Problem:
        params = initializers.lsuv(problem.loss_fn, problem.params, batch, variance=TINY)
        tx = optimizers.muon(learning_rate, layers=layers)
        return dataclasses.replace(problem, params=params, tx=tx)

    recipe = (
        f"params = vj.initializers.lsuv(loss_fn, params, batch, variance={TINY:g})\n"
        "layers = vj.find_layers(params, loss_fn, batch)\n"
        f"tx = vj.muon({learning_rate:g}, layers=layers)"
    )
    # Exponentials may bear small kernels for the steps of a trial, and no longer.
    return Remedy("tiny_lsuv", apply, recipe, part=_KERNELS, safer_than=f"small_lsuv{_SLOWER}")


def depth_of(layers: Layers) -> int:
    """Number of kernels, one at least."""
    kernels = (leaf for leaf in layers.leaves if len(leaf.inner_axes) >= 2)
    return max(1, sum(math.prod(leaf.stack) for leaf in kernels))


def _lsuv(name: str, batch: Any, variance: float) -> Remedy:
    def apply(problem: Problem) -> Problem:
        params = initializers.pca(problem.loss_fn, problem.params, batch)
        params = initializers.lsuv(problem.loss_fn, params, batch, variance=variance)
        return dataclasses.replace(problem, params=params)

    said = "" if variance == 1 else f", variance={variance:g}"
    recipe = f"{_PCA}\nparams = vj.initializers.lsuv(loss_fn, params, batch{said})"
    return Remedy(name, apply, recipe, part=_KERNELS)


def slower(remedy: Remedy, depth: int) -> Remedy:
    """A remedy with a part of the learning rate beside it: .3, or (14 / depth)^(3/2) if less.

    The power is that of Jelassi et al., Depth dependence of muP learning rates in ReLU MLPs, 2023.
    """
    rate = float(f"{min(SLOWER, (SLOWER_LAYERS / depth) ** 1.5):.1g}")

    def apply(problem: Problem) -> Problem:
        treated = remedy.apply(problem)
        return dataclasses.replace(treated, tx=_slowed(treated.tx, rate))

    return dataclasses.replace(
        remedy,
        name=f"{remedy.name}{_SLOWER}",
        apply=apply,
        recipe=f"{remedy.recipe}\ntx = optax.chain(tx, optax.scale({rate:g}))",
        safer_than=remedy.name,
    )


# The same object for the same transform, so that problems slowed down can run side by side.
@functools.lru_cache(maxsize=8)
def _slowed(tx: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    return optax.chain(tx, optax.scale(rate))


def looks_linear(layers: Layers, batch: Any, key: jax.Array) -> Remedy:
    """Mirrored orthogonal kernels: a rectifier network that starts as a linear one."""

    def apply(problem: Problem) -> Problem:
        params = initializers.looks_linear(key, problem.params, layers)
        change = probe(problem.loss_fn, params, batch).sum_log_chi
        if not abs(change) < _LINEAR * len(layers):
            raise ValueError(
                "mirrored kernels make no linear network of this one: its activations aren't "
                f"rectifiers (sum of ln chi {change:.3g})"
            )
        params = initializers.pca(problem.loss_fn, params, batch)
        return dataclasses.replace(problem, params=params)

    recipe = (
        "layers = vj.find_layers(params, loss_fn, batch)\n"
        f"params = vj.initializers.looks_linear(jax.random.key(1), params, layers)\n{_PCA}"
    )
    return Remedy("looks_linear", apply, recipe, part=_KERNELS)


def redraw(batch: Any, key: jax.Array) -> Remedy:
    """Kernels drawn anew, biases zero, then `lsuv`: for what is beyond repair (NaN, all alike)."""

    def apply(problem: Problem) -> Problem:
        layers = find_layers(problem.params, problem.loss_fn, batch)
        arrays, rebuild = layers.by_path(problem.params)
        drawn = {}
        for leaf, own in zip(layers.leaves, jax.random.split(key, len(layers.leaves)), strict=True):
            x = arrays[leaf.path]
            if leaf.is_matrix:
                fan_in = max(1, math.prod(leaf.shape[axis] for axis in leaf.inputs))
                x = (jax.random.normal(own, x.shape) / fan_in**0.5).astype(x.dtype)
            elif leaf.path.rpartition("/")[-1] in ("bias", "b"):
                x = jnp.zeros_like(x)
            drawn[leaf.path] = x
        params = initializers.pca(problem.loss_fn, rebuild(drawn), batch)
        params = initializers.lsuv(problem.loss_fn, params, batch)
        return dataclasses.replace(problem, params=params)

    recipe = (
        'params = model.init(jax.random.key(1), inputs)["params"]    # drawn anew\n'
        f"{_PCA}\n"
        "params = vj.initializers.lsuv(loss_fn, params, batch)"
    )
    return Remedy("redraw", apply, recipe, part=_KERNELS)


def rezero() -> Remedy:
    """Skip connections with a learnt gain that starts at 0, where the problem can be rebuilt."""

    def apply(problem: Problem) -> Problem:
        return problem.rebuild(residual="rezero")

    recipe = (
        "h = h + alpha * layer(h)    # in every hidden layer; alpha a parameter that starts at 0"
    )
    return Remedy("rezero", apply, recipe, alone=True)


def adam_atan2(learning_rate: float) -> Remedy:
    """Adam without an eps: full steps however small the gradient."""

    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(
            problem, tx=optimizers.adam_atan2(learning_rate, scale=4 / math.pi)
        )

    recipe = f"tx = vj.adam_atan2({learning_rate:g}, scale=4 / jnp.pi)"
    return Remedy("adam_atan2", apply, recipe, part=_OPTIMIZER)


def muon(layers: Layers, learning_rate: float) -> Remedy:
    """Orthogonalised momentum: steps along directions that have all but vanished."""

    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(problem, tx=optimizers.muon(learning_rate, layers=layers))

    recipe = (
        "layers = vj.find_layers(params, loss_fn, batch)\n"
        f"tx = vj.muon({learning_rate:g}, layers=layers)"
    )
    return Remedy("muon", apply, recipe, part=_OPTIMIZER)


def deep_muon(layers: Layers, learning_rate: float, total_steps: int) -> Remedy:
    """Centred, normalised, orthogonalised steps after a first one to criticality.

    See `vanishjax.deep_muon`.
    """

    def apply(problem: Problem) -> Problem:
        tx = optimizers.deep_muon(learning_rate, total_steps, layers=layers, recondition=True)
        return dataclasses.replace(problem, tx=tx)

    recipe = (
        "layers = vj.find_layers(params, loss_fn, batch)\n"
        f"tx = vj.deep_muon({learning_rate:g}, total_steps={total_steps}, layers=layers,\n"
        "                  recondition=True)"
    )
    return Remedy("deep_muon", apply, recipe, part=_OPTIMIZER)


def clip(layers: Layers, max_norm: float = 1.0) -> Remedy:
    """Every layer's gradient brought to a norm of at most 1 before the optimizer."""

    def apply(problem: Problem) -> Problem:
        tx = optax.chain(transforms.clip_by_layer_norm(max_norm, layers), problem.tx)
        return dataclasses.replace(problem, tx=tx)

    recipe = (
        "layers = vj.find_layers(params, loss_fn, batch)\n"
        f"tx = optax.chain(vj.clip_by_layer_norm({max_norm:g}, layers), tx)"
    )
    return Remedy("clip", apply, recipe)


def loss_scale() -> Remedy:
    """Gradients computed 1,024 times as large, and divided again in float32."""

    def apply(problem: Problem) -> Problem:
        def loss_fn(params: Any, batch: Any) -> Any:
            return jax.tree.map(_amplified, problem.loss_fn(params, batch))

        unscale = optax.stateless(
            lambda updates, _: jax.tree.map(lambda g: numerics.upcast(g) / LOSS_SCALE, updates)
        )
        return dataclasses.replace(problem, loss_fn=loss_fn, tx=optax.chain(unscale, problem.tx))

    recipe = (
        "tx = vj.dynamic_loss_scale(tx)\n# and differentiate vj.read_loss_scale(opt_state) * loss"
    )
    return Remedy("loss_scale", apply, recipe)


def _amplified(x: jax.Array) -> jax.Array:
    """The identity, through which gradients come back `LOSS_SCALE` times as large."""
    return x + (LOSS_SCALE - 1) * (x - jax.lax.stop_gradient(x))


def fitting_remedies(
    findings: Iterable[Finding],
    problem: Problem,
    batch: Any,
    *,
    learning_rate: float,
    total_steps: int,
    key: jax.Array,
) -> tuple[Remedy, ...]:
    """The remedies for what was found, in the order in which to try them.

    Args:
      findings: Of a diagnosis; the critical ones count.
      problem: The network. Its architecture can change only if it has a factory.
      batch: What data-dependent remedies look at.
      learning_rate: Of Adam-like optimizers; Muon-like ones take ten times as much.
      total_steps: Length of the training that follows.
      key: Draws parameters.

    Returns:
      The remedies, without repetition.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 24, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
      >>> findings = vj.diagnose(problem.loss_fn, problem.params, batch).findings
      >>> found = fitting_remedies(findings, problem, batch, learning_rate=1e-3, total_steps=100,
      ...                          key=jax.random.key(0))
      >>> print([remedy.name for remedy in found])
      ['lsuv', 'small_lsuv', 'looks_linear', 'rezero', 'lsuv, slower', 'small_lsuv, slower',
       'looks_linear, slower', 'adam_atan2', 'deep_muon']
    """
    layers = find_layers(problem.params, problem.loss_fn, batch)
    kernels: dict[str, Callable[[], Remedy]] = {
        "lsuv": lambda: lsuv(batch),
        "small_lsuv": lambda: small_lsuv(layers, batch),
        "looks_linear": lambda: looks_linear(layers, batch, key),
        "redraw": lambda: redraw(batch, key),
    }

    def slowed(make: Callable[[], Remedy]) -> Remedy:
        return slower(make(), depth_of(layers))

    # In the order in which to try them, the cheapest and most certain first: what makes up for the
    # type, parameters, the architecture where it can be rebuilt, and the optimizer.
    known: dict[str, Callable[[], Remedy]] = {
        "loss_scale": loss_scale,
        **kernels,
        "rezero": rezero,
        **{f"{name}{_SLOWER}": functools.partial(slowed, make) for name, make in kernels.items()},
        "tiny_lsuv": lambda: tiny_lsuv(layers, batch, TINY_RATE * learning_rate),
        "adam_atan2": lambda: adam_atan2(learning_rate),
        "muon": lambda: muon(layers, 10 * learning_rate),
        "deep_muon": lambda: deep_muon(layers, 10 * learning_rate, total_steps),
        "clip": lambda: clip(layers),
    }
    if problem.factory is None or problem.config.get("residual", ...) is not None:
        del known["rezero"]
    wanted = {
        name
        for finding in findings
        if finding.severity == "critical"
        for name in FITTING.get(finding.rule, ())
    }
    # What fits does so at a slower rate too: the deeper a network, the smaller a step it bears.
    return tuple(make() for name, make in known.items() if name.removesuffix(_SLOWER) in wanted)
