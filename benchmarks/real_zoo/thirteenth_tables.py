"""Plain MLPs, and what people said they had done to such networks when none learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo import thirteenth_mlps as mlps
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import judged_in, measured, redrawn, stored
from benchmarks.real_zoo.twelfth_tables import beside, momentum, normal

# A bank's: years, dollars, months and counts.
COUNTED = (
    np.array([42.0, 6.1e4, 1.4e4, 36.0, 650.0, 9.0, 2.0, 0.3, 1.8e5, 60.0]),
    np.array([13.0, 2.9e4, 8e3, 14.0, 75.0, 5.0, 1.4, 0.2, 9e4, 30.0]),
)
# Dollars.
PRICES = (2.1e5, 8e4)


def plain_networks() -> list[Network]:
    """Healthy MLPs, and the same as people said that they didn't learn."""
    return [*_houses(), *_displays(), *_loans(), *_torques()]


def _houses() -> list[Network]:
    houses = mlps.sold("prices of houses")
    return [
        houses,
        edited(
            houses,
            "prices of houses, dollars",
            "bad_start",
            "learning_rate",
            "does_not_learn",
            "mean_collapse",
            "exploding_gradient",
            task=measured(mlps.houses, {1: PRICES}),
            parts=judged_in(houses, PRICES[1]),
            rates=(1e-3,),
        ),
        edited(houses, "prices of houses, last layer times 6", scale={"price/kernel": 6.0}),
    ]


def _displays() -> list[Network]:
    displays = mlps.shown("digits of displays")
    return [
        displays,
        beside(
            mlps.shown(
                "digits of displays, six layers of sigmoid",
                sizes=(54, *[64] * 6),
                act=jax.nn.sigmoid,
            ),
            displays,
            "vanishing_gradient",
            "rank_collapse",
            "mean_collapse",
            "does_not_learn",
            where="hidden",
        ),
        beside(
            mlps.shown(
                "digits of displays, temperature of 50, SGD",
                temperature=50.0,
                optimizer=optax.sgd,
                rates=(0.1,),
            ),
            displays,
            "learning_rate",
            "vanishing_gradient",
            "does_not_learn",
            "bad_start",
        ),
        redrawn(
            displays,
            "digits of displays, kernels from N(0, 1), SGD",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            "dead_units",
            pattern="kernel",
            draw=normal(1.0),
            optimizer=optax.sgd,
            rates=(0.1,),
        ),
    ]


def _loans() -> list[Network]:
    loans = mlps.lent("late loans")
    return [
        loans,
        edited(
            loans,
            "late loans, a bank's numbers",
            "saturated_units",
            "bad_start",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "learning_rate",
            task=measured(mlps.loans, {0: COUNTED}),
            where="layers",
        ),
        edited(
            loans,
            "late loans, all at 0",
            "zero_gradient",
            "rank_collapse",
            "mean_collapse",
            "vanishing_gradient",
            "does_not_learn",
            fill={"weight|bias": 0.0},
        ),
        edited(
            loans,
            "late loans, L2 of .1 with momentum",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            "learning_rate",
            optimizer=lambda rate: optax.chain(
                optax.add_decayed_weights(0.1), optax.sgd(rate, momentum=0.9)
            ),
            rates=(0.03,),
        ),
    ]


def _torques() -> list[Network]:
    torques = mlps.turned("torques of joints")
    return [
        torques,
        redrawn(
            torques,
            "torques of joints, kernels of .01, momentum",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            "learning_rate",
            pattern="joint.*w$",
            draw=normal(0.01),
            optimizer=momentum,
            rates=(0.01, 0.03),
            where="joint",
        ),
        redrawn(
            torques,
            "torques of joints, kernels from 0 to 1",
            "exploding_gradient",
            "bad_start",
            "rank_collapse",
            "mean_collapse",
            "learning_rate",
            pattern="w$",
            draw=jax.random.uniform,
        ),
        stored(
            torques,
            "torques of joints, bfloat16, Adam at 1e-4",
            "lost_updates",
            "learning_rate",
            "does_not_learn",
            dtype=jnp.bfloat16,
            rates=(1e-4,),
            steps=2000,
        ),
    ]
