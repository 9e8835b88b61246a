"""The remedies that `cure` can try, by their ids in the table of `vanishjax.health`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from vanishjax.health import REMEDIES, Finding, fitting
from vanishjax.health.advice import applicable, traits
from vanishjax.treatment import starts, steps
from vanishjax.treatment.context import Context
from vanishjax.treatment.inputs import may_be_far
from vanishjax.treatment.remedy import Remedy

_NEW_KERNELS = (
    starts.lsuv,
    starts.small_lsuv,
    starts.looks_linear,
    starts.identity_attention,
    starts.long_memory,
    starts.redraw,
)
_STARTS = (
    starts.standardize,
    starts.standardize_inside,
    starts.standardize_outputs,
    starts.match_targets,
    starts.small_output,
    starts.small_queries,
    starts.small_branches,
    starts.zero_means,
    *_NEW_KERNELS,
    starts.rezero,
    starts.tiny_lsuv,
)
_STEPS = (
    steps.adam_atan2,
    steps.muon,
    steps.slow_muon,
    steps.deep_muon,
    steps.clip,
    steps.stochastic_round,
    steps.kahan_sum,
    steps.loss_scale,
    steps.rate_by_10,
    steps.fit_rate,
    steps.less_decay,
    steps.rate_by_30,
    steps.rate_by_3,
    steps.rate_x3,
    steps.rate_x10,
)


def _slow(make: Callable[[Context], Remedy]) -> Callable[[Context], Remedy]:
    def slow(context: Context) -> Remedy:
        # A cell's kernels are few, and most of a block's stand side by side. At .3 of the rate 10
        # and 12 blocks without skips learn nearly all that they do at their best in 300 steps; at
        # the twentieth for 75 kernels in a row, half. In 3,000 steps eight closed .29 of their gap
        # at .3, .95 at .1.
        beside = make is starts.identity_attention and context.short
        few = beside or make is starts.long_memory
        return steps.slower(make(context), 1 if few else context.depth)

    return slow


KNOWN: Mapping[str, Callable[[Context], Remedy]] = MappingProxyType(
    {make.__name__: make for make in (*_STARTS, *_STEPS)}
    | {f"slow_{make.__name__}": _slow(make) for make in _NEW_KERNELS}
)
"""What makes each remedy that can be tried, by its id in `vanishjax.health.REMEDIES`."""


def _is_mended_in_code(finding: Finding) -> bool:
    """Whether an operation in the user's own code is at fault, whatever the parameters are."""
    return finding.where is not None and KNOWN.keys().isdisjoint(finding.remedy_ids)


def _takes_in_far(context: Context) -> bool:
    """Whether kernels take in features of the data far from zero mean and unit size."""
    try:
        return bool(context.coordinates(context.problem).kernels)
    except Exception as error:
        # What else goes wrong is told of the remedy's trial.
        return not isinstance(error, ValueError)


def fitting_remedies(findings: Iterable[Finding], context: Context) -> tuple[Remedy, ...]:
    """The remedies for what was found, in the order in which to try them.

    Args:
      findings: Of a diagnosis; the critical ones count, and what can't be measured.
      context: The network. Its architecture can change only if it has a factory.

    Returns:
      The remedies, without repetition.

    Example:
      >>> import jax, jax.numpy as jnp, vanishjax as vj
      >>> problem = vj.mlp_problem(8, (64,) * 24, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
      >>> found = vj.diagnose(problem.loss_fn, problem.params, batch)
      >>> fitting = fitting_remedies(found.findings, Context(problem, batch, probe=found.probe))
      >>> print([remedy.name for remedy in fitting])
      ['lsuv', 'small_lsuv', 'rezero', 'slow_lsuv', 'slow_small_lsuv', 'adam_atan2', 'deep_muon']
    """
    grave = [
        one
        for one in findings
        if one.severity == "critical" or one.leaves_unknown or one.rule == "does_not_learn"
    ]
    wanted = fitting({one.rule for one in grave if not _is_mended_in_code(one)})
    if "lsuv" in wanted and context.probe is not None and context.probe.in_derivatives.any():
        # Outputs of unit variance in every layer have derivatives of thousands.
        wanted = tuple(name for name in REMEDIES if name in {*wanted, *_REDRAWN})
    if any(one.rule == "nonfinite" and _is_mended_in_code(one) for one in grave):
        # The operation may be right for inputs of usual size.
        wanted = (*(name for name in INPUTS if name not in wanted), *wanted)
    return _fit(wanted, context)


INPUTS = ("standardize", "standardize_inside")
_REDRAWN = ("redraw", "slow_redraw")
# Each mends something that no rule of a verdict sees; what is alike is tried by one of its forms.
RIVALS = ("small_output", "redraw", "adam_atan2", "muon")


def standardizing_remedies(context: Context) -> tuple[Remedy, ...]:
    """What standardizes inputs, where kernels take in some that are far from standard.

    Args:
      context: The network.

    Returns:
      The remedies; none where there is no need.
    """
    found = _fit(INPUTS, context)
    return found if any(one.name == "standardize_inside" for one in found) else ()


def larger_rates(context: Context) -> tuple[Remedy, ...]:
    """What makes steps as large as usual, where they are far smaller.

    Args:
      context: The network.

    Returns:
      The remedies; none where there is no need.
    """
    fit = steps.fit_rate(context)
    return (fit,) if fit.rate > 1 and steps.is_far_off(fit.rate) else ()


def warned_remedies(findings: Iterable[Finding], context: Context) -> tuple[Remedy, ...]:
    """What is advised where a verdict warns of something, which may hold a part of it back.

    Args:
      findings: Of a diagnosis, in which nothing is critical.
      context: The network.

    Returns:
      The remedies.
    """
    warnings = [one for one in findings if one.severity == "warning"]
    advised = {name for one in warnings for name in one.remedy_ids}
    return _fit((name for name in REMEDIES if name in advised), context)


def rivals(context: Context) -> tuple[Remedy, ...]:
    """What may let a network learn more of which nothing is known: other kernels, other steps.

    Args:
      context: The network.

    Returns:
      The remedies.
    """
    return _fit(RIVALS, context)


def output_standardizing_remedies(context: Context) -> tuple[Remedy, ...]:
    """What brings targets to unit size, where any of the data is far from that.

    Args:
      context: The network.

    Returns:
      The remedies; none where there is no need.
    """
    return _fit(("standardize_outputs",), context)


def _fit(wanted: Iterable[str], context: Context) -> tuple[Remedy, ...]:
    """Those of some remedies that the network has a use for."""
    problem, seen = context.problem, context.probe
    had = frozenset[str]() if seen is None else traits(seen)
    unfit = set()
    if problem.factory is None or problem.config.get("residual", ...) is not None:
        unfit.add("rezero")
    differentiated = seen is not None and not applicable(["standardize"], seen)
    if differentiated or not may_be_far(context.batch):
        unfit |= {"standardize", "standardize_outputs"}
    if not steps.decays(context):
        unfit.add("less_decay")
    names = [name for name in wanted if name in KNOWN and name not in unfit]
    if seen is not None:
        names = [name for name in names if REMEDIES[name].needs in (None, *had)]
    # What takes a measurement is asked last.
    if "standardize_inside" in names and not _takes_in_far(context):
        names = [name for name in names if name != "standardize_inside"]
    return tuple(KNOWN[name](context) for name in names)
