"""Every transform and optimizer that the package exports, made with its defaults."""

import inspect

import optax

import vanishjax as vj

# What a factory without a default for it gets.
REQUIRED = {"learning_rate": 0.01}


def factories() -> dict:
    """Name -> function of no arguments that makes the transform, found by trying."""
    modules = (vj.transforms.__name__, vj.optimizers.__name__)
    found = {}
    for name in vj.__all__:
        factory = getattr(vj, name)
        if not inspect.isfunction(factory) or not factory.__module__.startswith(modules):
            continue
        parameters = inspect.signature(factory).parameters.values()
        arguments = {p.name: REQUIRED[p.name] for p in parameters if p.default is p.empty}
        if isinstance(factory(**arguments), optax.GradientTransformation):
            found[name] = lambda factory=factory, arguments=arguments: factory(**arguments)
    return found
