"""Optimizers by the names of `vanishjax.catalog`."""

import importlib
from typing import Any

import optax

from vanishjax.activations import Activation
from vanishjax.catalog import CONTENDERS
from vanishjax.layers import Layers
from vanishjax.optimizers.arguments import LearningRate
from vanishjax.validation import lookup


def named_optimizer(
    name: str,
    learning_rate: LearningRate | None = None,
    *,
    layers: Layers | None = None,
    total_steps: int | None = None,
    activation: str | Activation | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """The optimizer of a name, told what it must know of the network and the run.

    Args:
      name: A key of `vanishjax.catalog.CONTENDERS`.
      learning_rate: A number or a schedule; the catalog's if None.
      layers: Of the network, for those that see layers; derived from the parameters if None.
      total_steps: Length of the run, for those whose rate falls over it.
      activation: Of the hidden layers, for those that shape it.
      **options: More arguments of the optimizer.

    Returns:
      The transform.

    Raises:
      ValueError: An unknown name, or one that must be told what is None here.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = named_optimizer("momentum", 0.5)
      >>> print(tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0])
      [-0.5]
    """
    entry = lookup("optimizer", name, CONTENDERS)
    known = {"layers": layers, "total_steps": total_steps, "activation": activation}
    told = {what: known[what] for what in entry.told}
    missing = [what for what, value in told.items() if value is None and what != "layers"]
    if missing:
        raise ValueError(f"{name} must be told the {' and the '.join(missing)} of the run")
    # Looked up in this package, so that the catalog alone lists them.
    factory = getattr(importlib.import_module(__package__), entry.factory or name)
    rate = entry.learning_rate if learning_rate is None else learning_rate
    transform: optax.GradientTransformation = factory(rate, **entry.arguments, **told, **options)
    return transform
