"""What a finding advises: what applies to the network, and what it doesn't have yet."""

from __future__ import annotations

from collections.abc import Iterable

from vanishjax.health.measurements import Probe
from vanishjax.health.remedies import FITTING, REMEDIES, Trait

_KINDS: tuple[Trait, ...] = ("rectifier", "unit_slope")


def advised(rule: str, probe: Probe) -> tuple[str, ...]:
    """What to advise a network against a cause.

    Args:
      rule: That found the cause.
      probe: What was measured of the network.

    Returns:
      Ids of remedies, the best first.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vanishjax.health.probe import probe
      >>> def loss_fn(w, x):
      ...     return jnp.mean((jax.nn.relu(x @ w) @ w) ** 2)
      >>> advised("rank_collapse", probe(loss_fn, jnp.eye(3), jnp.eye(3)))
      ('slow_looks_linear', 'lsuv', 'rezero', 'muon')
    """
    return applicable(FITTING[rule].advised, probe)


def applicable(ids: Iterable[str], probe: Probe) -> tuple[str, ...]:
    """Of some remedies those that apply to a network and that it doesn't have yet.

    Args:
      ids: Of remedies.
      probe: What was measured of the network.

    Returns:
      Their ids, in the same order.
    """
    had = traits(probe)
    return tuple(
        name
        for name in ids
        if REMEDIES[name].needs in (None, *had) and had.isdisjoint(REMEDIES[name].unless)
    )


def traits(probe: Probe) -> frozenset[Trait]:
    """What a network has, as far as remedies depend on it.

    Args:
      probe: What was measured of it.

    Returns:
      "rectifier" or "unit_slope" if most of its activations are such; "residual" if most layers
      have a path beside them; "recurrent" if kernels are used anew in every step of a loop; "loop"
      if that isn't written out; "derivative" if the loss holds derivatives of what it evaluates.
    """
    kinds = [kind for kind in probe.activations if kind is not None]
    had = {kind for kind in _KINDS if 2 * kinds.count(kind) > len(kinds)}
    hidden = probe.is_chain[:-1]
    if probe.memory:
        had.add("recurrent")
    if probe.memory and (probe.supply is None or probe.supply.paths.returns):
        had.add("loop")  # whose steps lie beside one another too
    elif len(hidden) > 2 and 2 * (~hidden).sum() > len(hidden):
        had.add("residual")
    if probe.in_derivatives.any():
        had.add("derivative")
    return frozenset(had)
