"""Where a network starts from: how large its loss is, and how small what it takes in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vanishjax.health.advice import advised, applicable
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, pick
from vanishjax.health.measurements import Vector
from vanishjax.health.step_size import TOO_LARGE, USUAL_STEP
from vanishjax.layers.matrices import bias_places

# The first loss over that of the best constant output. Networks that train start at .4 to 3.05 of
# it; logits 100 times too large at 73, an ODE's kernels 30 times too large at 377.
BAD_START = 10.0
# The last kernel's root mean square over that of one step. Of networks that train the most is 736,
# and 3,036 of a decoder; with logits 80 times too large 3,560, 100 times 14,520.
FAR_STEPS = 3300.0
# Steps to the best constant output, as the gradient tells. Of the networks that train and start at
# 1.5 times its loss or more none is 10 away; an actor and critic with returns of -1,200 are 2,000.
FAR_TARGETS = 500.0
# The first loss over the same, from where nothing gets it down in time, whatever is too large: of a
# loss that grows with what the network puts out, as a cross-entropy, or slower; and with its
# square. A classifier of the digits closes .92, .69 and -.09 of its gap in 200 steps where inputs
# 30, 100 and 300 times too large let it start at 17, 58 and 170, and the last .27 in 1,500 steps.
# A regression with inputs 10 times too large, or targets as much too small, starts at 398 and
# closes -.2, in 1,500 steps and at the usual rate .17; from 4,000 nothing. A PINN trains from 69.
HOPELESS_START, HOPELESS_SQUARES = 100.0, 300.0
# Of the first the part that is enough where steps are no larger than usual: a language model whose
# logits are multiplied by 100 starts at 61 and closes .15 in 300 steps; with steps of .03 of the
# kernels another one closes .9 from 79.
_AT_USUAL_STEPS = 0.5
# The loss of no output over that of the best constant one, beyond which the constant is all there
# is to learn: what it reaches is as good as 0.
_TRIVIAL = 1e6
# The first loss over that of a constant output, from which on it is worth a look how far that is.
_FAR = 1.5
# Powers with which a loss grows: between 1 and 2, and between 0 and 1.
_SQUARE, _NORMALIZED = 1.5, 0.5
_USUAL_STEP = 1e-3  # without an optimizer

# Share of what first kernels take in that tells inputs apart. With a mean of 10 deviations under
# their inputs classifiers of the digits (two layers of ReLU, four of GELU) learn nothing in 4,000
# steps of momentum, plain SGD closes .62 and .28 of the gap, and Adam .9. With one of 30 Adam
# closes .2 at the most in 400 steps and .5 to .8 in 4,000; with one of 100 nothing, and .3 at most.
DROWNED_LINEAR, DROWNED_ADAPTIVE = 1e-2, 1e-3
# Range of the fifth largest (or the middle) feature that first kernels take in over the largest.
# Three layers that regress on six features, one of them in units of its own, or on two, close .45
# to .65 of what they do with even ones in 400 steps of Adam where it is .003, .2 to .3 where it is
# .001 and .1 to .2 where it is .0001; in 4,000 steps of two features .9, .84 and .3. Momentum
# closes .7 of it at .01 and .3 at .003, in 4,000 steps. Five large features may be enough: power
# spectra, of which half are 3e-4 of the largest and the fifth is .07, classify Fashion-MNIST.
UNEVEN_LINEAR, UNEVEN_ADAPTIVE = 3e-3, 1e-3
# Of the way from the best constant output's loss down to what is reached without the squashing, the
# part that outputs of their own for all examples go. Two softmaxes let .55 of it through for two
# classes, .37 for ten; a tanh under targets of unit variance .87.
SQUASHED = 0.6
# What is the same for all inputs, as positions are, has no more than what rounding makes of it.
_CONSTANT = 1e-13


def bad_start(seen: Examination) -> Finding | None:
    """A first loss far above that of a guess, and no way to get down soon."""
    probe = seen.probe
    if not len(probe) or not probe.constant_loss > 0:
        return None
    ratio = probe.loss / probe.constant_loss
    heads = [probe.names.index(name) for name in probe.heads]
    if probe.is_stopped[heads].any():
        return None  # what comes after the last kernel that is trained is no part of the loss alone
    kernels = probe.of_kernels(probe.parameters.parameter_rms)[heads]
    moves = _USUAL_STEP if seen.step_rms is None else probe.of_kernels(seen.step_rms)[heads]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.where(np.greater(moves, 0), kernels / moves, np.inf)
    steps = float(np.max(away))
    remedies = advised("bad_start", probe)
    guess = probe.nothing_loss if np.isfinite(probe.nothing_loss) else probe.loss
    # Where what the last kernel puts out is normalized, its size is nothing to the loss.
    normalized = probe.loss_growth < _NORMALIZED
    far = ratio > BAD_START and steps > FAR_STEPS
    if far:
        why = (
            f"the last kernel is {steps:.0f} steps large: the first steps only undo its "
            "initialization."
        )
    elif normalized and probe.frozen:
        return None  # the best that another network gives to one output is no guess
    elif guess < _TRIVIAL * probe.constant_loss and ratio > _hopeless(seen):
        why = (
            "what the network puts out is far too large: its inputs, its kernels or a temperature "
            "are, or the targets are too small."
        )
        remedies = ("cooler",) if normalized else ("standardize", *remedies)
    else:
        return None
    return Finding(
        "bad_start",
        "critical",
        (probe.heads[int(np.argmax(away))],) if far else probe.heads,
        {"loss_ratio": ratio, "constant_loss": probe.constant_loss, "kernel_in_steps": steps},
        f"The loss starts at {ratio:.0f} times that of the best constant output, and {why}",
        remedies,
    )


def _hopeless(seen: Examination) -> float:
    """How many times the loss of a constant output is too much to start from."""
    if not seen.probe.loss_growth < _SQUARE:
        return HOPELESS_SQUARES
    usual = seen.relative_step is not None and seen.relative_step <= 2 * USUAL_STEP
    return HOPELESS_START * (_AT_USUAL_STEPS if usual else 1.0)


def far_targets(seen: Examination) -> Finding | None:
    """A constant output that is better, and hundreds of steps away.

    As where a regression's targets are counted in cents: no step lowers the loss by more than its
    gradient's absolute sum times the step's size. It grows with the parameters, but slowly.
    """
    probe, parameters = seen.probe, seen.probe.parameters
    if not probe.loss > _FAR * probe.constant_loss > 0:
        return None
    # Rates start small where they are warmed up; steps that shrink with the gradient say little.
    own = None if seen.is_linear else seen.step_rms
    moves = _USUAL_STEP if own is None else np.fmax(np.nan_to_num(own), _USUAL_STEP)
    most = float(np.sum(seen.sizes * parameters.rms * moves))
    steps = (probe.loss - probe.constant_loss) / most if most > 0 else np.nan
    if not steps > FAR_TARGETS:
        return None
    return Finding(
        "bad_start",
        "critical",
        probe.heads,
        {
            "loss_ratio": probe.loss / probe.constant_loss,
            "constant_loss": probe.constant_loss,
            "steps_away": steps,
        },
        f"The best constant output is more than {steps:.0f} steps away: the targets are far too "
        "large for what the network puts out.",
        ("match_targets", "standardize_targets"),
    )


def far_inputs(seen: Examination) -> Finding | None:
    """Inputs with so much in common that a step of the first kernels drowns what tells them apart.

    It moves the outputs of all inputs together by the mean that they take in, and no later step
    finds a direction that doesn't.
    """
    told = np.nan_to_num(seen.probe.intake_energy, nan=1.0)
    told[told < _CONSTANT] = 1.0
    return _not_standard(
        seen,
        "intake_energy",
        told,
        DROWNED_LINEAR if seen.is_linear else DROWNED_ADAPTIVE,
        lambda name, least: (
            f"What all inputs have in common is {least**-0.5:.3g} times what tells them apart "
            f"where {name} takes them in: a step of the kernel moves all its outputs together, and "
            "drowns that. The inputs are far from zero mean."
        ),
    )


def uneven_inputs(seen: Examination) -> Finding | None:
    """Features in units of their own, all but a few of them far smaller than the largest.

    All that the first kernels put out, and all that their gradients see, comes from the large ones;
    what the others tell is learned last.
    """
    return _not_standard(
        seen,
        "feature_evenness",
        np.nan_to_num(seen.probe.feature_evenness, nan=1.0),
        UNEVEN_LINEAR if seen.is_linear else UNEVEN_ADAPTIVE,
        lambda name, least: (
            f"Most features that {name} takes in vary by {least:.1e} of what the largest does, or "
            "less: all inputs look alike but for that, and the others are learned last. They are "
            "in units of their own."
        ),
    )


def _not_standard(
    seen: Examination,
    field: str,
    shares: Vector,
    limit: float,
    says: Callable[[str, float], str],
) -> Finding | None:
    """What first kernels take in that is far from standard: critical where nothing leads past it.

    Args:
      seen: The examination.
      field: What the shares are.
      shares: For each layer; 1 where there is nothing to say.
      limit: Below which one is too small.
      says: Of the first such kernel and the least share what is wrong.
    """
    probe, far = seen.probe, shares < limit
    if not far.any() or probe.supply is None:
        return None
    stops = (probe.supply.blocked(np.inf, far) & far).any()
    least, names = float(shares.min()), pick(probe.names, far)
    return Finding(
        "mean_collapse",
        "critical" if stops else "warning",
        names,
        {field: least, "limit": limit},
        says(names[0], least) + ("" if stops else " The network trains past them."),
        applicable(("standardize", "standardize_inside"), probe),
    )


def high_floor(seen: Examination) -> Finding | None:
    """A loss that no output can bring down: something between squashes them, or mixes examples up.

    As a softmax before a cross-entropy that takes one itself, a tanh under targets of thousands, or
    outputs `[n, 1]` less targets `[n]`, which are compared with all of them.
    """
    probe, floor = seen.probe, seen.probe.floor
    if floor is None or not probe.parameters.rms.any():
        return None  # without any slope, as of a rounded loss, nothing is known of what is lower
    head, constant = ", ".join(probe.heads), probe.constant_loss
    evidence = {"constant_loss": constant, "least_loss": floor.loss}
    if floor.kind == "crossed":
        cause = (
            f"All that {head} puts out meets all targets, not its own: outputs that know every "
            f"target get the loss no lower than {floor.loss:.3g}, where a constant one does "
            f"{constant:.3g}. Arrays of [n, 1] and [n] make one of [n, n]."
        )
        return Finding(
            "does_not_learn",
            "critical",
            probe.heads,
            evidence,
            cause,
            ("same_shapes",),
            floor.where,
        )
    # Where nothing is to be won without it either, as beside losses of 1e10, it squashes nothing.
    if not 0 <= constant - floor.loss < SQUASHED * (constant - floor.without):
        return None
    said = "Something" if floor.where is None else f"The {floor.where.operation}"
    return Finding(
        "does_not_learn",
        "critical",
        probe.heads,
        evidence | {"least_loss_without": floor.without},
        f"Whatever {head} puts out, the loss gets no lower than {floor.loss:.3g}, where a constant "
        f"output does {constant:.3g}. {said} before the loss squashes it: without, the loss could "
        f"get to {floor.without:.3g}.",
        ("raw_output", "standardize_targets") if floor.growth > _SQUARE else ("raw_output",),
        floor.where,
    )


def faint_inputs(seen: Examination) -> Finding | None:
    """Inputs so small that the first step of the biases drowns them in every layer.

    Every kernel would, with entries of 1, put out less than its bias moves in a step. Classifiers
    of the digits with inputs 1e-4 of their size learn nothing in 1,500 steps (ReLU) or a third
    (tanh); with 1e-3 of it, where that holds no longer, a half or more.
    """
    probe, parameters = seen.probe, seen.probe.parameters
    if seen.step_rms is None or not len(probe) or not (probe.preactivation_rms > 0).all():
        return None
    if seen.relative_step is not None and seen.relative_step > TOO_LARGE:
        return None  # such a step drowns inputs of any size
    steps = seen.step_rms[bias_places(parameters.layers)]
    steps = steps[np.isfinite(steps)]
    if not len(steps):
        return None
    step = float(np.median(steps))
    kernels = probe.of_kernels(parameters.parameter_rms)
    with np.errstate(divide="ignore"):
        if not np.max(probe.preactivation_rms / kernels) < step:
            return None
    largest = float(np.max(probe.preactivation_rms))
    return Finding(
        "mean_collapse",
        "critical",
        probe.names,
        {"step": step, "largest_signal": largest},
        f"No layer puts out more than {largest:.1e}, and one step moves the biases by {step:.1e}: "
        "from then on all inputs look alike. The inputs are too small.",
        ("standardize", *advised("mean_collapse", probe)),
    )
