"""Remedies that change what training starts from: inputs, parameters, the architecture.

Each is made for a network on a batch, and its recipe is what it does, to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from vanishjax import initializers
from vanishjax.health import REMEDIES, probe
from vanishjax.problem import Problem
from vanishjax.treatment import outputs
from vanishjax.treatment.context import LAYERS, Context
from vanishjax.treatment.coordinates import ChangeOfCoordinates, checked
from vanishjax.treatment.inputs import Standardized, standardize_inputs
from vanishjax.treatment.remedy import AROUND, CELLS, KERNELS, Remedy
from vanishjax.treatment.steps import muon_at

# A variance at which even exponentials are nearly linear, and Muon's rate then, as a part of an
# Adam-like one's. Exponentials four and eight deep, the tuning networks, went well to the end with
# Muon at .0003 alone: not with Adam, clipped or not, `adam_atan2` or `deep_muon` at any rate that
# was tried, falling or not. Held-out ones seven deep still didn't.
TINY, TINY_RATE = 0.01, 0.3

# A linear chain of isometries has a ln chi of 0 in every layer.
_LINEAR = 0.1
_PCA = "params = vj.initializers.pca(loss_fn, params, batch)"
# New kernels put out unit variance and zero mean, by which other targets are far missed. A last
# layer that can't be matched to them is made small, if that brings the loss below so many times it.
MISSED = 0.4
_OUTPUT = f"params = vj.treatment.match_targets(loss_fn, params, batch, below={MISSED})"


def lsuv(context: Context) -> Remedy:
    """Orthogonal kernels, unit variance and zero mean of every layer on a batch.

    The first ones look where the inputs vary. See `vanishjax.initializers.lsuv` and `pca`.
    """
    return _lsuv("lsuv", context, 1.0)


def small_lsuv(context: Context) -> Remedy:
    """As `lsuv`, at a variance of 1 / sqrt(depth), where smooth activations are nearly linear."""
    return _lsuv("small_lsuv", context, float(f"{context.depth**-0.5:.1g}"))


def _lsuv(name: str, context: Context, variance: float) -> Remedy:
    def apply(problem: Problem) -> Problem:
        loss_fn = context.loss(problem)
        params = initializers.pca(loss_fn, problem.params, context.batch)
        params = initializers.lsuv(loss_fn, params, context.batch, variance=variance)
        _check_changed(problem.params, params)
        params = outputs.match_targets(loss_fn, params, context.batch, below=MISSED)
        return dataclasses.replace(problem, params=params)

    recipe = f"{_PCA}\n{_lsuv_code(variance=variance)}\n{_OUTPUT}"
    return Remedy(name, context.once(name, apply), recipe, part=KERNELS)


def _check_changed(before: Any, after: Any) -> None:
    """Raises ValueError where a remedy has left the parameters as they were."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    if all(bool((a == b).all()) for a, b in pairs):
        raise ValueError(
            "no kernel's output can be adjusted: each stands in a loop, takes in its own work or "
            "puts out nothing but zeros"
        )


def _lsuv_code(**settings: Any) -> str:
    said = "".join(f", {name}={value!r}" for name, value in settings.items() if value != 1)
    return f"params = vj.initializers.lsuv(loss_fn, params, batch{said})"


def standardize(context: Context) -> Remedy:
    """Inputs of zero mean and unit size, where they are far from it. See `standardize_inputs`."""

    @functools.cache
    def standard() -> Standardized:
        problem = context.problem
        return standardize_inputs(context.loss(problem), problem.params, context.batch)

    # The same object for the same function, so that problems can run side by side.
    @functools.cache
    def wrapped(function: Callable[..., Any]) -> Standardized:
        return dataclasses.replace(standard(), function=function)

    def apply(problem: Problem) -> Problem:
        evaluate, predict = (
            None if function is None else wrapped(function)
            for function in (problem.evaluate_fn, problem.predict_fn)
        )
        return dataclasses.replace(
            problem, loss_fn=wrapped(problem.loss_fn), evaluate_fn=evaluate, predict_fn=predict
        )

    recipe = (
        "loss_fn = vj.treatment.standardize_inputs(loss_fn, params, batch)\n"
        "# To predict, do the same to the inputs: loss_fn.standardize."
    )
    return Remedy("standardize", apply, recipe, wraps=-1)


def standardize_inside(context: Context) -> Remedy:
    """Standardized inputs by the first kernels' coordinates, where the model itself makes them.

    See `vanishjax.treatment.standardize_inside`.
    """

    def start(problem: Problem) -> Problem:
        coordinates = checked(context.coordinates(problem))
        return dataclasses.replace(problem, params=coordinates.start(problem.params))

    recipe = (
        "coordinates = vj.treatment.standardize_inside(loss_fn, params, batch)\n"
        "params = coordinates.start(params)"
    )
    around = _around("coordinates", context.coordinates)
    made = context.once("standardize_inside", start)
    return Remedy("standardize_inside", made, recipe, wraps=-1, around=around)


def _around(name: str, find: Callable[[Problem], ChangeOfCoordinates]) -> Remedy:
    """What puts coordinates around the optimizer."""

    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(problem, tx=_inside(find(problem), problem.transform))

    return Remedy(name, apply, f"tx = {name}.transform(tx)", wraps=AROUND)


# The same object for the same coordinates and transform, so that problems can run side by side.
@functools.lru_cache(maxsize=8)
def _inside(
    coordinates: ChangeOfCoordinates, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    return coordinates.transform(tx)


def standardize_outputs(context: Context) -> Remedy:
    """Targets of unit size, by the last layer's coordinates.

    See `vanishjax.treatment.standardize_outputs`; it starts as `match_targets` does.
    """

    def start(problem: Problem) -> Problem:
        context.output_units(problem)  # refuses what needs none
        params = outputs.match_targets(context.loss(problem), problem.params, context.batch)
        return dataclasses.replace(problem, params=params)

    recipe = (
        "units = vj.treatment.standardize_outputs(loss_fn, params, batch)\n"
        "params = vj.treatment.match_targets(loss_fn, params, batch)"
    )
    made = context.once("standardize_outputs", start)
    around = _around("units", context.output_units)
    return Remedy("standardize_outputs", made, recipe, local=True, wraps=-1, around=around)


def zero_means(context: Context) -> Remedy:
    """Biases with which every unit's mean is zero on a batch; kernels stay as they are."""

    def apply(problem: Problem) -> Problem:
        params = initializers.lsuv(
            context.loss(problem), problem.params, context.batch, orthogonal=False, variance=None
        )
        _check_changed(problem.params, params)
        return dataclasses.replace(problem, params=params)

    recipe = _lsuv_code(orthogonal=False, variance=None)
    return Remedy("zero_means", apply, recipe, local=True)


# The small ones are no part: each leaves alone what the others set.
def small_branches(context: Context) -> Remedy:
    """Residual branches that start small: a variance of 1 / branches each."""
    return _started("small_branches", initializers.small_branches, context, local=True)


def small_queries(context: Context) -> Remedy:
    """Queries and keys that start small, so that attention looks at all positions."""
    return _started("small_queries", initializers.small_queries, context, local=True)


def small_output(context: Context) -> Remedy:
    """A last kernel that starts small, so that the first loss is that of a uniform guess."""
    return _started("small_output", initializers.small_output, context, local=True)


def match_targets(context: Context) -> Remedy:
    """A last layer that starts where the targets are. See `vanishjax.treatment.match_targets`."""
    return _started("match_targets", outputs.match_targets, context, "treatment", local=True)


def _started(
    name: str,
    make: Callable[..., Any],
    context: Context,
    room: str = "initializers",
    **settings: Any,
) -> Remedy:
    """What sees the loss, the parameters and a batch, and makes others; settings of the remedy."""

    def apply(problem: Problem) -> Problem:
        params = make(context.loss(problem), problem.params, context.batch)
        return dataclasses.replace(problem, params=params)

    recipe = f"params = vj.{room}.{name}(loss_fn, params, batch)"
    return Remedy(name, context.once(name, apply), recipe, **settings)


def long_memory(context: Context) -> Remedy:
    """Recurrent cells that remember from the start: see `vanishjax.initializers.long_memory`."""
    return _started("long_memory", initializers.long_memory, context, part=CELLS, local=True)


def tiny_lsuv(context: Context) -> Remedy:
    """A variance of .01 and Muon's small even steps: for activations that run away."""
    steps = muon_at(context, TINY_RATE * context.learning_rate)

    def apply(problem: Problem) -> Problem:
        params = initializers.lsuv(
            context.loss(problem), problem.params, context.batch, variance=TINY
        )
        _check_changed(problem.params, params)
        return steps.apply(dataclasses.replace(problem, params=params))

    # Exponentials may bear small kernels for the steps of a trial, and no longer.
    return Remedy(
        "tiny_lsuv",
        apply,
        f"{_lsuv_code(variance=TINY)}\n{steps.recipe}",
        part=KERNELS,
        safer_than="slow_small_lsuv",
    )


def looks_linear(context: Context) -> Remedy:
    """Mirrored orthogonal kernels: a rectifier network that starts as a linear one."""

    def apply(problem: Problem) -> Problem:
        refusal = (
            "mirrored kernels make no linear network of this one: its activations aren't rectifiers"
        )
        if context.probe is not None and "rectifier" not in context.probe.activations:
            raise ValueError(refusal)
        params = initializers.looks_linear(context.key, problem.params, context.layers)
        change = probe(problem.plain_loss, params, context.batch).sum_log_chi
        if not abs(change) < _LINEAR * len(context.layers):
            raise ValueError(f"{refusal} (sum of ln chi {change:.3g})")
        params = initializers.pca(context.loss(problem), params, context.batch)
        return dataclasses.replace(problem, params=params)

    drawn = f"params = vj.initializers.looks_linear(key, params, layers)\n{_PCA}"
    recipe = f"{LAYERS}\nkey = {context.key_code}\n{drawn}"
    return Remedy("looks_linear", context.once("looks_linear", apply), recipe, part=KERNELS)


def identity_attention(context: Context) -> Remedy:
    """Equal orthogonal queries and keys: attention that starts near the identity."""
    make = initializers.identity_attention
    return _started("identity_attention", make, context, part=KERNELS)


def redraw(context: Context) -> Remedy:
    """Kernels drawn anew, biases zero, then `lsuv`: for what is beyond repair (NaN, all alike)."""

    def apply(problem: Problem) -> Problem:
        loss_fn = context.loss(problem)
        params = initializers.redraw(context.key, problem.params, context.layers)
        params = initializers.pca(loss_fn, params, context.batch)
        params = initializers.lsuv(loss_fn, params, context.batch)
        params = outputs.match_targets(loss_fn, params, context.batch, below=MISSED)
        return dataclasses.replace(problem, params=params)

    drawn = "params = vj.initializers.redraw(key, params, layers)"
    made = f"{drawn}\n{_PCA}\n{_lsuv_code()}\n{_OUTPUT}"
    recipe = f"{LAYERS}\nkey = {context.key_code}\n{made}"
    return Remedy("redraw", context.once("redraw", apply), recipe, part=KERNELS)


def rezero(_: Context) -> Remedy:
    """Skip connections with a learned gain that starts at 0, where the problem can be rebuilt."""

    def apply(problem: Problem) -> Problem:
        return problem.rebuild(residual="rezero")

    recipe = (
        "# Another architecture, with parameters of its own, to be written by hand:\n"
        f"# {REMEDIES['rezero'].code} in every hidden layer, alpha a parameter that starts at 0."
    )
    return Remedy("rezero", apply, recipe, alone=True)
