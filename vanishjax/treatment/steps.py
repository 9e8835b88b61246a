"""Remedies that change the steps: the optimizer, its rate, and what rounds or scales them.

Each is made for a network on a batch, and its recipe is what it does, to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import optax

from vanishjax import optimizers, transforms
from vanishjax.health.step_size import USUAL_STEP
from vanishjax.problem import Problem
from vanishjax.treatment.context import LAYERS, Context
from vanishjax.treatment.decay import without_decay
from vanishjax.treatment.remedy import (
    CLIPPED,
    DECAY,
    OPTIMIZER,
    RATE,
    RATED,
    ROUNDED,
    ROUNDING,
    SCALED,
    Remedy,
)

# What a slower remedy multiplies the updates by: so much at most, and for deep networks less, as
# (layers / depth) to the power of 3/2. Adam's .003 times 1, .3, .1 and .03 were tried on tanh and
# rectifier networks: .3 went well to the end at depth 32, not at 64.
SLOWER, SLOWERLAYERS = 0.3, 14.0

# The rate of Muon-like optimizers over that of Adam-like ones.
MUON_RATE = 10

# The gradients of 16-bit networks are computed this many times as large at first.
LOSS_SCALE = 2.0**10

# A decay that takes less of the kernels than this by the end of a training does little harm.
_TAKEN = 0.3

# A rate is fit as it is if it's less than so many times too large or too small.
_FITS = 4.0


def slower(remedy: Remedy, depth: int) -> Remedy:
    """A remedy with a part of the learning rate beside it: .3, or (14 / depth)^(3/2) if less.

    The power is that of Jelassi et al., Depth dependence of muP learning rates in ReLU MLPs, 2023.
    """
    rate = float(f"{min(SLOWER, (SLOWERLAYERS / depth) ** 1.5):.1g}")
    return dataclasses.replace(
        remedy, name=f"slow_{remedy.name}", rate=rate, safer_than=remedy.name
    )


def adam_atan2(context: Context) -> Remedy:
    """Adam without an eps: full steps however small the gradient."""
    tx = optimizers.adam_atan2(context.learning_rate, scale=4 / math.pi)
    code = f"tx = vj.adam_atan2({context.learning_rate!r}, scale=4 / jnp.pi)"
    return _optimizer("adam_atan2", context, lambda: tx, code)


def muon(context: Context) -> Remedy:
    """Orthogonalized momentum: steps along directions that have all but vanished."""
    return muon_at(context, MUON_RATE * context.learning_rate)


def muon_at(context: Context, rate: float) -> Remedy:
    """Muon at a rate of its own."""
    code = f"{LAYERS}\ntx = vj.muon({rate!r}, layers=layers)"
    return _optimizer("muon", context, lambda: optimizers.muon(rate, layers=context.layers), code)


def slow_muon(context: Context) -> Remedy:
    """Muon at a part of its rate: new kernels of a deep network bear no more."""
    return slower(muon(context), 1)


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
        f"{LAYERS}\n"
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

    recipe = f"{LAYERS}\ntx = optax.chain(vj.clip_by_layer_norm(1.0, layers), tx)"
    return Remedy("clip", apply, recipe, wraps=CLIPPED)


def loss_scale(_: Context) -> Remedy:
    """Gradients computed 1,024 times as large, and divided again in float32."""

    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(problem, tx=_scaled(problem.transform))

    return Remedy("loss_scale", apply, _scaled_code(LOSS_SCALE), wraps=SCALED)


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

    return Remedy(name, apply, f"tx = optax.chain(tx, vj.{name}())", part=ROUNDING, wraps=ROUNDED)


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
        if not is_far_off(factor):
            raise ValueError(f"a step changes kernels by {part:.1e} of their size already")
        return problem

    return Remedy("fit_rate", apply, part=OPTIMIZER, rate=factor)


def rate_by_30(_: Context) -> Remedy:
    """A thirtieth of the learning rate."""
    return _at("rate_by_30", 0.03)


def rate_by_3(_: Context) -> Remedy:
    """A third of the learning rate."""
    return _at("rate_by_3", 0.3)


def rate_x3(_: Context) -> Remedy:
    """Three times the learning rate."""
    return _at("rate_x3", 3.0)


def rate_x10(_: Context) -> Remedy:
    """Ten times the learning rate."""
    return _at("rate_x10", 10.0)


def _at(name: str, rate: float) -> Remedy:
    return Remedy(name, _same, part=RATE, rate=rate, wraps=RATED)


def _same(problem: Problem) -> Problem:
    return problem


def less_decay(context: Context) -> Remedy:
    """No weight decay, where it takes a good part of every kernel by the end of the training."""

    def apply(problem: Problem) -> Problem:
        if not decays(context):
            raise ValueError("no weight decay is known to take much of the kernels")
        return dataclasses.replace(problem, tx=without_decay(problem.transform))

    recipe = "tx = vj.treatment.without_decay(tx)"
    return Remedy("less_decay", apply, recipe, part=DECAY, wraps=CLIPPED)


def decays(context: Context) -> bool:
    """Whether weight decay takes a good part of every kernel by the end of the training."""
    return context.decay is not None and context.decay * context.total_steps > _TAKEN


def is_far_off(factor: float) -> bool:
    """Whether a rate is fit only once it is multiplied by a factor; not if that isn't known."""
    return factor <= 1 / _FITS or factor >= _FITS
