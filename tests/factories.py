"""Every transform and optimizer that the package exports, made with its defaults."""

import functools
import inspect

import optax

import vanishjax as vj

# What a factory without a default for it gets.
REQUIRED = {
    "activation": "tanh",
    "learning_rate": 0.01,
    "total_steps": 10,
    "inner": optax.sgd(0.01),
}
# What pairs kernels with their biases, and refuses a kernel without one.
PAIRED = {"center", "deep_adam", "deep_muon", "deflate", "polar_growth", "recondition"}
# What gives out float32 updates, which land 16-bit parameters on numbers of their type.
ROUNDING = {"kahan_sum", "stochastic_round"}
_TRANSFORMS = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)


def factories() -> dict:
    """Name -> function of no arguments that makes the transform; found by return type.

    Each makes it once: what is compiled for one test serves the next.
    """
    found = {}
    for name in vj.__all__:
        factory = getattr(vj, name)
        if not inspect.isfunction(factory):
            continue
        signature = inspect.signature(factory)
        if signature.return_annotation not in _TRANSFORMS:
            continue
        parameters = signature.parameters.values()
        arguments = {p.name: REQUIRED[p.name] for p in parameters if p.default is p.empty}
        found[name] = functools.cache(functools.partial(factory, **arguments))
    return found
