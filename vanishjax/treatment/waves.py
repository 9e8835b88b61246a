"""Training the members of a wave side by side, and finding out which of them can't be."""

from __future__ import annotations

from vanishjax.treatment.progress import Failure, Member, Raced, Setting
from vanishjax.treatment.trial import form, race


def trained(setting: Setting, members: tuple[Member, ...]) -> Raced:
    """Trains a wave, all at once where that can be.

    Args:
      setting: What the cure goes by.
      members: Remedies, each with the problem that it makes, which run alike.

    Returns:
      What came of it: a run of each, or why there is none.
    """
    if not members:
        return Raced(())
    try:
        problems = [treated for _, treated in members]
        runs = race(problems, setting.batches, setting.held_out, setting.key)
        return Raced(tuple(zip([remedy for remedy, _ in members], runs, strict=True)))
    except Exception as error:
        if len(members) > 1:
            # One of them can't be run, or all at once are too many for the memory.
            parts = [trained(setting, (member,)) for member in members]
            return Raced(
                tuple(run for part in parts for run in part.runs),
                tuple(failure for part in parts for failure in part.failures),
            )
        ((remedy, treated),) = members
        if remedy is None:
            raise
        changed = form(treated.params) != form(setting.problem.params)
        where = "with the parameters it makes, " if changed else ""
        return Raced((), (Failure.of(remedy, error, where),))
