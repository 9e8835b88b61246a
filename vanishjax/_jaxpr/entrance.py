"""Where a batch enters a network: the arrays that nothing but kernels takes in."""

from __future__ import annotations

from jax.extend.core import JaxprEqn, Literal, Var

from vanishjax._jaxpr.output import PRODUCTS
from vanishjax._jaxpr.program import Program
from vanishjax._jaxpr.versions import inner_jaxprs, open_jaxpr


def pure_inputs(program: Program) -> tuple[int, ...]:
    """The batch's arrays that meet parameters in products alone, so that they can be rescaled.

    What a loss compares with the network's output, or adds to it, isn't among them.

    Args:
      program: The loss, flattened.

    Returns:
      Their numbers among the batch's arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from vanishjax._jaxpr.program import trace_loss
      >>> def loss_fn(w, batch):
      ...     return jnp.mean((jnp.abs(batch["x"]) @ w - batch["y"]) ** 2)
      >>> batch = {"x": jnp.ones((5, 3)), "y": jnp.ones((5, 2))}
      >>> pure_inputs(trace_loss(loss_fn, jnp.ones((3, 2)), batch))
      (0,)
    """
    jaxpr, count = program.closed.jaxpr, len(program.ranks)
    trained = set(jaxpr.invars[:count])
    enters = {variable: {number} for number, variable in enumerate(jaxpr.invars[count:])}
    met: set[int] = set()
    spoiled: set[int] = set()
    for eqn in jaxpr.eqns:
        operands = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
        numbers = set[int]().union(*(enters.get(atom, ()) for atom in operands))
        if trained.isdisjoint(operands):
            enters.update(dict.fromkeys(eqn.outvars, numbers) if numbers else {})
            continue
        trained.update(variable for variable in eqn.outvars if isinstance(variable, Var))
        (met if _multiplies(eqn) else spoiled).update(numbers)
    return tuple(sorted(met - spoiled))


def _multiplies(eqn: JaxprEqn) -> bool:
    """Whether an equation is a product with a kernel, or holds one, as a loop over layers does."""
    return eqn.primitive.name in PRODUCTS or any(
        _multiplies(inner) for jaxpr in inner_jaxprs(eqn) for inner in open_jaxpr(jaxpr).eqns
    )
