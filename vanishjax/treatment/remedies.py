"""The remedies that `cure` can try: what the table in `vanishjax.health` says, done to a problem.

Each is made for a network on a batch, and its recipe is what it does, to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

from vanishjax import initializers, optimizers, transforms
from vanishjax.health import REMEDIES, Finding, fitting, probe
from vanishjax.health.advice import applicable, traits
from vanishjax.health.step_size import USUAL_STEP
from vanishjax.problem import Problem
from vanishjax.treatment import outputs
from vanishjax.treatment.context import Context
from vanishjax.treatment.coordinates import standardize_inside as inside
from vanishjax.treatment.inputs import Standardized, may_be_far, standardize_inputs
from vanishjax.treatment.remedy import CELLS, KERNELS, OPTIMIZER, ROUNDING, Remedy

# What a slower remedy multiplies the updates by: so much at most, and for deep networks less, as
# (layers / depth) to the power of 3/2. Adam's .003 times 1, .3, .1 and .03 were tried on tanh and
# rectifier networks: .3 went well to the end at depth 32, not at 64.
SLOWER, SLOWER_LAYERS = 0.3, 14.0

# A variance at which even exponentials are nearly linear, and Muon's rate then, as a part of an
# Adam-like one's. Exponentials four and eight deep, the tuning networks, went well to the end with
# Muon at .0003 alone: not with Adam, clipped or not, `adam_atan2` or `deep_muon` at any rate that
# was tried, falling or not. Held-out ones seven deep still didn't.
TINY, TINY_RATE = 0.01, 0.3

# The rate of Muon-like optimizers over that of Adam-like ones.
MUON_RATE = 10

# The gradients of 16-bit networks are computed this many times as large at first.
LOSS_SCALE = 2.0**10

# A rate is fit as it is if it's less than so many times too large or too small.
_FITS = 4.0

# A linear chain of isometries has a ln chi of 0 in every layer.
_LINEAR = 0.1
_LAYERS = "layers = vj.find_layers(params, loss_fn, batch)"
_PCA = "params = vj.initializers.pca(loss_fn, params, batch)"
# New kernels put out unit variance and zero mean, by which other targets are far missed. A last
# layer that can't be matched to them is made small, if that brings the loss below so many times it.
_MISSED = 0.4
_OUTPUT = f"params = vj.treatment.match_targets(loss_fn, params, batch, below={_MISSED})"


def lsuv(context: Context) -> Remedy:
    """Orthogonal kernels, unit variance and zero mean of every layer on a batch.

    The first ones look where the inputs vary. See `vanishjax.initializers.lsuv` and `pca`.
    """
    return _lsuv("lsuv", context, 1.0)


def small_lsuv(context: Context) -> Remedy:
    """As `lsuv`, at a variance of 1 / sqrt(depth), where smooth activations are nearly linear."""
    return _lsuv("small_lsuv", context, float(f"{context.depth**-0.5:.1g}"))


def _lsuv(name: str, context: Context, variance: float) -> Remedy:
    def apply(problem: Problem) -> Problem:
        loss_fn = problem.plain_loss
        params = initializers.pca(loss_fn, problem.params, context.batch)
        params = initializers.lsuv(loss_fn, params, context.batch, variance=variance)
        _check_changed(problem.params, params)
        params = outputs.match_targets(loss_fn, params, context.batch, below=_MISSED)
        return dataclasses.replace(problem, params=params)

    recipe = f"{_PCA}\n{_lsuv_code(variance=variance)}\n{_OUTPUT}"
    return Remedy(name, context.once(name, apply), recipe, part=KERNELS)


def _check_changed(before: Any, after: Any) -> None:
    """Raises ValueError where a remedy has left the parameters as they were."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    if all(bool((a == b).all()) for a, b in pairs):
        raise ValueError(
            "no kernel's output can be adjusted: each stands in a loop, takes in its own work or "
            "puts out nothing but zeros"
        )


def _lsuv_code(**settings: Any) -> str:
    said = "".join(f", {name}={value!r}" for name, value in settings.items() if value != 1)
    return f"params = vj.initializers.lsuv(loss_fn, params, batch{said})"


def standardize(context: Context) -> Remedy:
    """Inputs of zero mean and unit size, where they are far from it. See `standardize_inputs`."""

    @functools.cache
    def standard() -> Standardized:
        problem = context.problem
        return standardize_inputs(problem.plain_loss, problem.params, context.batch)

    # The same object for the same function, so that problems can run side by side.
    @functools.cache
    def wrapped(function: Callable[..., Any]) -> Standardized:
        return dataclasses.replace(standard(), function=function)

    def apply(problem: Problem) -> Problem:
        evaluate, predict = (
            None if function is None else wrapped(function)
            for function in (problem.evaluate_fn, problem.predict_fn)
        )
        return dataclasses.replace(
            problem, loss_fn=wrapped(problem.loss_fn), evaluate_fn=evaluate, predict_fn=predict
        )

    recipe = (
        "loss_fn = vj.treatment.standardize_inputs(loss_fn, params, batch)\n"
        "# To predict, do the same to the inputs: loss_fn.standardize."
    )
    return Remedy("standardize", apply, recipe)


def standardize_inside(context: Context) -> Remedy:
    """Standardized inputs by the first kernels' coordinates, where the model itself makes them.

    See `vanishjax.treatment.standardize_inside`.
    """

    def apply(problem: Problem) -> Problem:
        coordinates = inside(problem.plain_loss, problem.params, context.batch)
        return dataclasses.replace(
            problem,
            params=coordinates.start(problem.params),
            tx=coordinates.transform(problem.transform),
        )

    recipe = (
        "coordinates = vj.treatment.standardize_inside(loss_fn, params, batch)\n"
        "params, tx = coordinates.start(params), coordinates.transform(tx)"
    )
    return Remedy("standardize_inside", context.once("standardize_inside", apply), recipe)


def zero_means(context: Context) -> Remedy:
    """Biases with which every unit's mean is zero on a batch; kernels stay as they are."""

    def apply(problem: Problem) -> Problem:
        params = initializers.lsuv(
            problem.plain_loss, problem.params, context.batch, orthogonal=False, variance=None
        )
        _check_changed(problem.params, params)
        return dataclasses.replace(problem, params=params)

    recipe = _lsuv_code(orthogonal=False, variance=None)
    return Remedy("zero_means", apply, recipe, local=True)


# The small ones are no part: each leaves alone what the others set.
def small_branches(context: Context) -> Remedy:
    """Residual branches that start small: a variance of 1 / branches each."""
    return _started("small_branches", initializers.small_branches, context, local=True)


def small_queries(context: Context) -> Remedy:
    """Queries and keys that start small, so that attention looks at all positions."""
    return _started("small_queries", initializers.small_queries, context, local=True)


def small_output(context: Context) -> Remedy:
    """A last kernel that starts small, so that the first loss is that of a uniform guess."""
    return _started("small_output", initializers.small_output, context, local=True)


def match_targets(context: Context) -> Remedy:
    """A last layer that starts where the targets are. See `vanishjax.treatment.match_targets`."""
    return _started("match_targets", outputs.match_targets, context, "treatment", local=True)


def _started(
    name: str,
    make: Callable[..., Any],
    context: Context,
    room: str = "initializers",
    **settings: Any,
) -> Remedy:
    """What sees the loss, the parameters and a batch, and makes others; settings of the remedy."""

    def apply(problem: Problem) -> Problem:
        params = make(problem.plain_loss, problem.params, context.batch)
        return dataclasses.replace(problem, params=params)

    recipe = f"params = vj.{room}.{name}(loss_fn, params, batch)"
    return Remedy(name, context.once(name, apply), recipe, **settings)


def long_memory(context: Context) -> Remedy:
    """Recurrent cells that remember from the start: see `vanishjax.initializers.long_memory`."""
    return _started("long_memory", initializers.long_memory, context, part=CELLS, local=True)


def tiny_lsuv(context: Context) -> Remedy:
    """A variance of .01 and Muon's small even steps: for activations that run away."""
    steps = _muon(context, TINY_RATE * context.learning_rate)

    def apply(problem: Problem) -> Problem:
        params = initializers.lsuv(problem.plain_loss, problem.params, context.batch, variance=TINY)
        _check_changed(problem.params, params)
        return steps.apply(dataclasses.replace(problem, params=params))

    # Exponentials may bear small kernels for the steps of a trial, and no longer.
    return Remedy(
        "tiny_lsuv",
        apply,
        f"{_lsuv_code(variance=TINY)}\n{steps.recipe}",
        part=KERNELS,
        safer_than="slow_small_lsuv",
    )


def slower(remedy: Remedy, depth: int) -> Remedy:
    """A remedy with a part of the learning rate beside it: .3, or (14 / depth)^(3/2) if less.

    The power is that of Jelassi et al., Depth dependence of muP learning rates in ReLU MLPs, 2023.
    """
    rate = float(f"{min(SLOWER, (SLOWER_LAYERS / depth) ** 1.5):.1g}")
    return dataclasses.replace(
        remedy, name=f"slow_{remedy.name}", rate=rate, safer_than=remedy.name
    )


def looks_linear(context: Context) -> Remedy:
    """Mirrored orthogonal kernels: a rectifier network that starts as a linear one."""

    def apply(problem: Problem) -> Problem:
        refusal = (
            "mirrored kernels make no linear network of this one: its activations aren't rectifiers"
        )
        if context.probe is not None and "rectifier" not in context.probe.activations:
            raise ValueError(refusal)
        params = initializers.looks_linear(context.key, problem.params, context.layers)
        loss_fn = problem.plain_loss
        change = probe(loss_fn, params, context.batch).sum_log_chi
        if not abs(change) < _LINEAR * len(context.layers):
            raise ValueError(f"{refusal} (sum of ln chi {change:.3g})")
        params = initializers.pca(loss_fn, params, context.batch)
        return dataclasses.replace(problem, params=params)

    drawn = f"params = vj.initializers.looks_linear(key, params, layers)\n{_PCA}"
    recipe = f"{_LAYERS}\nkey = {context.key_code}\n{drawn}"
    return Remedy("looks_linear", context.once("looks_linear", apply), recipe, part=KERNELS)


def identity_attention(context: Context) -> Remedy:
    """Equal orthogonal queries and keys: attention that starts near the identity."""
    make = initializers.identity_attention
    return _started("identity_attention", make, context, part=KERNELS)


def redraw(context: Context) -> Remedy:
    """Kernels drawn anew, biases zero, then `lsuv`: for what is beyond repair (NaN, all alike)."""

    def apply(problem: Problem) -> Problem:
        loss_fn = problem.plain_loss
        params = initializers.redraw(context.key, problem.params, context.layers)
        params = initializers.pca(loss_fn, params, context.batch)
        params = initializers.lsuv(loss_fn, params, context.batch)
        params = outputs.match_targets(loss_fn, params, context.batch, below=_MISSED)
        return dataclasses.replace(problem, params=params)

    drawn = "params = vj.initializers.redraw(key, params, layers)"
    made = f"{drawn}\n{_PCA}\n{_lsuv_code()}\n{_OUTPUT}"
    recipe = f"{_LAYERS}\nkey = {context.key_code}\n{made}"
    return Remedy("redraw", context.once("redraw", apply), recipe, part=KERNELS)


def rezero(_: Context) -> Remedy:
    """Skip connections with a learned gain that starts at 0, where the problem can be rebuilt."""

    def apply(problem: Problem) -> Problem:
        return problem.rebuild(residual="rezero")

    recipe = (
        "# Another architecture, with parameters of its own, to be written by hand:\n"
        f"# {REMEDIES['rezero'].code} in every hidden layer, alpha a parameter that starts at 0."
    )
    return Remedy("rezero", apply, recipe, alone=True)


def adam_atan2(context: Context) -> Remedy:
    """Adam without an eps: full steps however small the gradient."""
    tx = optimizers.adam_atan2(context.learning_rate, scale=4 / math.pi)
    code = f"tx = vj.adam_atan2({context.learning_rate!r}, scale=4 / jnp.pi)"
    return _optimizer("adam_atan2", context, lambda: tx, code)


def muon(context: Context) -> Remedy:
    """Orthogonalized momentum: steps along directions that have all but vanished."""
    return _muon(context, MUON_RATE * context.learning_rate)


def _muon(context: Context, rate: float) -> Remedy:
    code = f"{_LAYERS}\ntx = vj.muon({rate!r}, layers=layers)"
    return _optimizer("muon", context, lambda: optimizers.muon(rate, layers=context.layers), code)


def deep_muon(context: Context) -> Remedy:
    """Centered, normalized, orthogonalized steps after a first one to criticality.

    See `vanishjax.deep_muon`.
    """
    rate = MUON_RATE * context.learning_rate

    def make() -> optax.GradientTransformation:
        return optimizers.deep_muon(
            rate, context.total_steps, layers=context.layers, recondition=True
        )

    code = (
        f"{_LAYERS}\n"
        f"tx = vj.deep_muon({rate!r}, total_steps={context.total_steps}, layers=layers,\n"
        "                  recondition=True)"
    )
    return _optimizer("deep_muon", context, make, code)


def _optimizer(
    name: str, context: Context, make: Callable[[], optax.GradientTransformation], code: str
) -> Remedy:
    scale = context.loss_scale

    def apply(problem: Problem) -> Problem:
        tx = make()
        if scale is not None:
            tx = transforms.dynamic_loss_scale(tx, initial_scale=scale)
        return dataclasses.replace(problem, tx=tx)

    kept = "" if scale is None else f"\n{_scaled_code(scale)}"
    return Remedy(name, apply, code + kept, part=OPTIMIZER)


def clip(context: Context) -> Remedy:
    """Every layer's gradient brought to a norm of at most 1 before the optimizer."""

    def apply(problem: Problem) -> Problem:
        clipping = transforms.clip_by_layer_norm(1.0, context.layers)
        return dataclasses.replace(problem, tx=optax.chain(clipping, problem.transform))

    recipe = f"{_LAYERS}\ntx = optax.chain(vj.clip_by_layer_norm(1.0, layers), tx)"
    return Remedy("clip", apply, recipe, wraps=1)


def loss_scale(_: Context) -> Remedy:
    """Gradients computed 1,024 times as large, and divided again in float32."""

    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(problem, tx=_scaled(problem.transform))

    return Remedy("loss_scale", apply, _scaled_code(LOSS_SCALE), wraps=2)


# The same object for the same transform, so that problems can run side by side.
@functools.lru_cache(maxsize=8)
def _scaled(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return transforms.dynamic_loss_scale(tx, initial_scale=LOSS_SCALE)


def _scaled_code(scale: float) -> str:
    return (
        "# Differentiate vj.read_loss_scale(opt_state) * loss, as vj.make_train_step does.\n"
        f"tx = vj.dynamic_loss_scale(tx, initial_scale={scale!r})"
    )


def stochastic_round(_: Context) -> Remedy:
    """Steps that are rounded up or down at random, so that 16-bit parameters move on average."""
    return _last("stochastic_round", transforms.stochastic_round)


def kahan_sum(_: Context) -> Remedy:
    """Steps whose rounding is kept and added to the next."""
    return _last("kahan_sum", transforms.kahan_sum)


def _last(name: str, make: Callable[[], optax.GradientTransformation]) -> Remedy:
    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(problem, tx=optax.chain(problem.transform, make()))

    return Remedy(name, apply, f"tx = optax.chain(tx, vj.{name}())", part=ROUNDING, wraps=1)


def rate_by_10(context: Context) -> Remedy:
    """A tenth of the learning rate."""
    part = context.relative_step

    def apply(problem: Problem) -> Problem:
        if part is not None and part * _FITS < USUAL_STEP:
            raise ValueError(f"a step changes kernels by {part:.1e} of their size alone")
        return problem

    return Remedy("rate_by_10", apply, part=OPTIMIZER, rate=0.1)


def fit_rate(context: Context) -> Remedy:
    """A learning rate at which a step changes kernels by a hundredth of their usual size."""
    part = math.nan if context.relative_step is None else context.relative_step
    factor = float(f"{USUAL_STEP / part:.1g}") if math.isfinite(part) else math.nan

    def apply(problem: Problem) -> Problem:
        if not math.isfinite(part):
            raise ValueError("no kernel is known to move")
        if 1 / _FITS < factor < _FITS:
            raise ValueError(f"a step changes kernels by {part:.1e} of their size already")
        return problem

    return Remedy("fit_rate", apply, part=OPTIMIZER, rate=factor)


def _slow(make: Callable[[Context], Remedy]) -> Callable[[Context], Remedy]:
    # Most of a block's kernels stand side by side. At .3 of the rate 10 and 12 blocks without skips
    # learn nearly all that they do at their best; at the twentieth for 75 kernels in a row, half.
    # A cell's kernels are few.
    beside = make in (identity_attention, long_memory)
    return lambda context: slower(make(context), 1 if beside else context.depth)


_NEW_KERNELS = (lsuv, small_lsuv, looks_linear, identity_attention, long_memory, redraw)
_STANDARD = (standardize, standardize_inside)
_SMALL = (match_targets, small_output, small_queries, small_branches, zero_means)
KNOWN: Mapping[str, Callable[[Context], Remedy]] = MappingProxyType(
    {make.__name__: make for make in (*_STANDARD, *_SMALL, *_NEW_KERNELS, rezero, tiny_lsuv)}
    | {make.__name__: make for make in (adam_atan2, muon, deep_muon, clip)}
    | {make.__name__: make for make in (stochastic_round, kahan_sum, loss_scale)}
    | {make.__name__: make for make in (rate_by_10, fit_rate)}
    | {f"slow_{make.__name__}": _slow(make) for make in _NEW_KERNELS}
)
"""What makes each remedy that can be tried, by its id in `vanishjax.health.REMEDIES`."""


def _is_mended_in_code(finding: Finding) -> bool:
    """Whether an operation in the user's own code is at fault, whatever the parameters are."""
    at_fault = finding.rule == "nonfinite" and finding.where is not None
    return at_fault and KNOWN.keys().isdisjoint(finding.remedy_ids)


def fitting_remedies(findings: Iterable[Finding], context: Context) -> tuple[Remedy, ...]:
    """The remedies for what was found, in the order in which to try them.

    Args:
      findings: Of a diagnosis; the critical ones count, and what can't be measured.
      context: The network. Its architecture can change only if it has a factory.

    Returns:
      The remedies, without repetition.

    Example:
      >>> import jax.numpy as jnp, vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 24, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
      >>> found = vj.diagnose(problem.loss_fn, problem.params, batch)
      >>> fitting = fitting_remedies(found.findings, Context(problem, batch, probe=found.probe))
      >>> print([remedy.name for remedy in fitting])
      ['lsuv', 'small_lsuv', 'rezero', 'slow_lsuv', 'slow_small_lsuv', 'adam_atan2', 'deep_muon']
    """
    rules = {
        one.rule
        for one in findings
        if one.severity == "critical" or one.leaves_unknown or one.rule == "does_not_learn"
        if not _is_mended_in_code(one)
    }
    problem, seen = context.problem, context.probe
    had = frozenset[str]() if seen is None else traits(seen)
    unfit = set()
    if problem.factory is None or problem.config.get("residual", ...) is not None:
        unfit.add("rezero")
    if seen is not None and not applicable(["standardize"], seen):
        unfit |= {"standardize", "standardize_inside"}
    elif not may_be_far(context.batch):
        unfit.add("standardize")
    names = [name for name in fitting(rules) if name in KNOWN and name not in unfit]
    if seen is not None:
        names = [name for name in names if REMEDIES[name].needs in (None, *had)]
    # What takes a measurement is asked last.
    if "standardize_inside" in names and not context.takes_in_far:
        names = [name for name in names if name != "standardize_inside"]
    return tuple(KNOWN[name](context) for name in names)
