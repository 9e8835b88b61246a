"""Plain MLPs, and what people said they had done to such networks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo import twelfth_mlps as mlps
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import judged_in, measured, redrawn, stored

# A laboratory's: milligrams to the liter, percents, and so on.
RAW = (
    np.array([750.0, 100.0, 13.0, 2.3, 19.5, 2.3, 2.0, 0.36, 1.6, 5.1, 0.96, 2.6]),
    np.array([315.0, 14.0, 0.8, 1.1, 3.3, 0.63, 1.0, 0.12, 0.57, 2.3, 0.23, 0.71]),
)
# Years, kilometers, dollars, kilograms, horsepowers, years.
COUNTED = (
    np.array([45.0, 9e4, 2.1e4, 1400.0, 110.0, 8.0]),
    np.array([15.0, 5e4, 9e3, 300.0, 40.0, 5.0]),
)


def normal(size: float) -> Callable[[Any, Any], Any]:
    """Draws of this size."""
    return lambda key, shape: size * jax.random.normal(key, shape)


def momentum(rate: Any) -> optax.GradientTransformation:
    """Stochastic gradient descent with the usual momentum."""
    return optax.sgd(rate, momentum=0.9)


def beside(made: Network, twin: Network, *ails: str, where: str = "") -> Network:
    """A network written anew that is judged beside another."""
    return dataclasses.replace(made, twin=twin.name, ails=ails, where=where)


def plain_networks() -> list[Network]:
    """Healthy MLPs, and the same as people said that they didn't learn."""
    return [*_rows(), *_numbers()]


def _rows() -> list[Network]:
    wines = mlps.tasted("growers of wines")
    spirals = mlps.wound("two spirals")
    mail = mlps.filtered("unwanted mail")
    return [
        wines,
        edited(
            wines,
            "growers of wines, a laboratory's numbers",
            "saturated_units",
            "bad_start",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "learning_rate",
            task=measured(mlps.wines, {0: RAW}),
            where="layers",
        ),
        edited(
            wines,
            "growers of wines, AdamW's decay of 20",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            "learning_rate",
            optimizer=lambda rate: optax.adamw(rate, weight_decay=20.0),
        ),
        spirals,
        edited(
            spirals,
            "two spirals, SGD at .03",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=optax.sgd,
            rates=(0.03,),
        ),
        edited(
            spirals,
            "two spirals, biases of -3",
            "dead_units",
            "zero_gradient",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            fill={"hidden.*bias": -3.0},
            where="hidden",
        ),
        edited(
            spirals,
            "two spirals, momentum of .999",
            "learning_rate",
            "does_not_learn",
            "exploding_gradient",
            "dead_units",
            optimizer=lambda rate: optax.sgd(rate, momentum=0.999),
            rates=(0.1,),
        ),
        mail,
        edited(
            mail,
            "unwanted mail, all kernels .1",
            "rank_collapse",
            "mean_collapse",
            "bad_start",
            "exploding_gradient",
            fill={"words.*w$": 0.1},
            where="words",
        ),
        edited(
            mail,
            "unwanted mail, L2 of .01 before Adam",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            "learning_rate",
            optimizer=lambda rate: optax.chain(optax.add_decayed_weights(0.01), optax.adam(rate)),
        ),
    ]


def _numbers() -> list[Network]:
    turbines = mlps.worn("wear of turbines")
    arms = mlps.reached("arms of two bones")
    claims = mlps.claimed("claims of drivers")
    options = mlps.priced("worth of options")
    echoes = mlps.heard("echoes")
    return [
        turbines,
        redrawn(
            turbines,
            "wear of turbines, kernels of .05, momentum",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            "learning_rate",
            pattern="unit.*kernel",
            draw=normal(0.05),
            optimizer=momentum,
            rates=(1e-3, 1e-2),
        ),
        redrawn(
            turbines,
            "wear of turbines, kernels from -1 to 1",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            pattern="kernel",
            draw=lambda key, shape: jax.random.uniform(key, shape, minval=-1.0),
        ),
        stored(
            turbines,
            "wear of turbines, bfloat16, SGD at 1e-3",
            "lost_updates",
            "learning_rate",
            "does_not_learn",
            dtype=jnp.bfloat16,
            optimizer=optax.sgd,
            rates=(1e-3,),
        ),
        arms,
        edited(
            arms,
            "arms of two bones, degrees",
            "bad_start",
            "learning_rate",
            "does_not_learn",
            "mean_collapse",
            task=measured(mlps.arms, {1: (np.array([0.0, 80.0]), 36.0)}),
            parts=judged_in(arms, 36.0),
            rates=(1e-3,),
        ),
        edited(
            arms,
            "arms of two bones, clipped to .01 before SGD",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=lambda rate: optax.chain(
                optax.clip_by_global_norm(0.01), optax.sgd(rate, momentum=0.9)
            ),
            rates=(1e-2, 3e-2),
        ),
        claims,
        edited(
            claims,
            "claims of drivers, years and dollars",
            "nonfinite",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            task=measured(mlps.claims, {0: COUNTED}),
            where="hidden",
        ),
        edited(
            claims,
            "claims of drivers, RMSProp with an epsilon of 1",
            "blind_optimizer",
            "learning_rate",
            "does_not_learn",
            optimizer=lambda rate: optax.rmsprop(rate, eps=1.0),
            rates=(3e-4,),
        ),
        edited(
            claims,
            "claims of drivers, a first rate of e^-8",
            "bad_start",
            "learning_rate",
            "mean_collapse",
            "does_not_learn",
            fill={"log_rate/bias": -8.0},
        ),
        options,
        edited(
            options,
            "worth of options, targets near .001",
            "bad_start",
            "learning_rate",
            "does_not_learn",
            "mean_collapse",
            task=measured(mlps.options, {1: (0.0, 1e-3)}),
            parts=judged_in(options, 1e-3),
        ),
        edited(
            options,
            "worth of options, Lion at .03",
            "learning_rate",
            "exploding_gradient",
            "does_not_learn",
            "dead_units",
            optimizer=optax.lion,
            rates=(3e-2,),
        ),
        edited(
            options,
            "worth of options, last layer at 0",
            "zero_gradient",
            fill={"worth": 0.0},
        ),
        echoes,
        beside(
            mlps.heard("echoes, 24 layers as they come", depth=24),
            echoes,
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
        ),
        edited(
            echoes,
            "echoes over a converter's 2048",
            "bad_start",
            "exploding_gradient",
            "mean_collapse",
            "rank_collapse",
            "learning_rate",
            task=measured(mlps.echoes, {0: (2048.0, 40.0)}),
            where="layers",
        ),
        edited(
            echoes,
            "echoes, a loss of millionths",
            "blind_optimizer",
            "underflow",
            "vanishing_gradient",
            "does_not_learn",
            optimizer=lambda rate: optax.chain(optax.scale(1e-6), optax.adam(rate, eps=1e-4)),
        ),
    ]
