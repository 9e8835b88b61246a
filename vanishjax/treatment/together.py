"""Two faults at once: what took the cause away, beside what mends another that is measured.

Kernels far too small under a rate far too small, inputs and targets in units of their own: to mend
one alone shows nothing, so that either remedy looks useless.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vanishjax.health import Probe
from vanishjax.treatment import starts, steps
from vanishjax.treatment.context import Context
from vanishjax.treatment.progress import Relief
from vanishjax.treatment.remedies import output_standardizing_remedies, standardizing_remedies
from vanishjax.treatment.remedy import OPTIMIZER, Remedy

# So many of those that came furthest are given another last layer or rate, each with a trial.
_FURTHEST = 2


def pairs(
    reliefs: Sequence[Relief], context: Context
) -> tuple[tuple[Remedy, tuple[Remedy, ...]], ...]:
    """What to take as given, and what to try on top of it.

    Where kernels take in features far from standard, those are standardized, and what standardizes
    the targets and each remedy that took the cause away are tried on top, all at once. Else, where
    it left a loss far above that of a constant output, the last layer is matched to the targets; or
    where it left a rate that is far off, that is fit.

    Args:
      reliefs: What took the cause away, the best first.
      context: The sick network.

    Returns:
      Pairs of a remedy and those to try on top of it; none where nothing else is measured, and
      both ends of the data at the most where nothing took the cause away yet.

    Example:
      >>> import dataclasses, jax, jax.numpy as jnp, vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32, 32), 4, tx=vj.sgd(1e-4))
      >>> batch = jax.random.normal(jax.random.key(0), (64, 8)), jnp.arange(64) % 4
      >>> context = Context(problem, batch)
      >>> relief = Relief(starts.lsuv(context), 1.4, vj.diagnose(problem, batch))
      >>> ((given, (rate,)),) = pairs([relief], context)
      >>> given.name, rate.name, rate.rate
      ('lsuv', 'fit_rate', 6000.0)
    """
    relieving = (one.remedy for one in reliefs if one.remedy.wraps >= 0)
    inside = (*output_standardizing_remedies(context), *relieving)
    # Its form that standardizes what the model itself makes as well; it is what comes first, and
    # whether there is a need takes a measurement.
    standard = standardizing_remedies(context)[-1:] if inside else ()
    inside = inside if standard else ()
    others = ((one.remedy, _other(one, context)) for one in reliefs if one.remedy not in inside)
    left = [(remedy, (other,)) for remedy, other in others if other is not None]
    return (*((given, inside) for given in standard if inside), *left[:_FURTHEST])


def _other(relief: Relief, context: Context) -> Remedy | None:
    """What mends another fault of the network that a remedy left."""
    if relief.remedy.name != "match_targets" and _misses(relief.after.probe):
        return starts.match_targets(context)
    seen = dataclasses.replace(context, relative_step=relief.after.relative_step)
    rate = steps.fit_rate(seen)
    return rate if relief.remedy.part != OPTIMIZER and steps.is_far_off(rate.rate) else None


def _misses(after: Probe) -> bool:
    """Whether the outputs miss the targets as far as new kernels' must not."""
    return 0 < after.constant_loss < starts.MISSED * after.loss
