"""Plain MLPs, and the same too deep, too small, too large, saturated, dead or in small types."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.real_zoo import sixteenth_mlps as mlps
from benchmarks.real_zoo.fourteenth_tables import BLIND, DEAD, FULL, LARGE, SMALL
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import redrawn, stored
from benchmarks.real_zoo.twelfth_tables import beside, normal


def plain_networks() -> list[Network]:
    """Healthy MLPs, and sick ones."""
    return [*_harvests(), *_kilns(), *_currents(), *_trains(), *_violins()]


def _first(part: float, value: float) -> Callable[[Any, Any], Any]:
    """Biases of which the first part has this value; the others are 0."""
    return lambda _, shape: jnp.where(jnp.arange(shape[0]) < part * shape[0], value, 0.0)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws between 0 and 1."""
    return jax.random.uniform(key, shape)


def _harvests() -> list[Network]:
    harvests = mlps.reaped("yields of fields")
    twelve = mlps.reaped("", depth=12, act=jax.nn.gelu)
    return [
        harvests,
        beside(
            mlps.reaped("yields of fields, 12 layers of ReLU, He's", depth=12, draw=mlps.HE),
            harvests,
        ),
        redrawn(
            beside(twelve, harvests),
            "yields of fields, 12 layers of GELU of N(0, .01)",
            *SMALL,
            pattern="kernel",
            draw=normal(0.01),
        ),
        edited(
            harvests,
            "yields of fields, biases of -10 in the second layer",
            *DEAD,
            fill={"hidden_1/bias": -10.0},
            where="hidden_1",
        ),
        redrawn(
            harvests,
            "yields of fields, half of the second layer off",
            pattern="hidden_1/bias",
            draw=_first(0.5, -10.0),
        ),
        edited(harvests, "yields of fields, last layer of zeros", fill={"yield": 0.0}),
        edited(
            harvests,
            "yields of fields, last kernel times 200",
            "bad_start",
            "exploding_gradient",
            scale={"yield/kernel": 200.0},
            where="yield",
        ),
    ]


def _kilns() -> list[Network]:
    kilns = mlps.baked("flaws of bricks")
    normed = beside(mlps.baked("flaws of bricks, with norms", norm=True, act=nnx.relu), kilns)
    slow = mlps.baked("flaws of bricks, slowly", rates=(3e-5, 1e-4), steps=4000)
    return [
        kilns,
        beside(
            mlps.baked("flaws of bricks, 12 layers of sigmoid", depth=12, act=nnx.sigmoid),
            kilns,
            *SMALL,
        ),
        beside(mlps.baked("flaws of bricks, 12 layers of SELU", depth=12, act=nnx.selu), kilns),
        edited(
            kilns,
            "flaws of bricks, biases of 12 in the second layer",
            "saturated_units",
            "mean_collapse",
            "vanishing_gradient",
            "zero_gradient",
            "bad_start",
            fill={"bricks/1/bias": 12.0},
            where="bricks/1",
        ),
        redrawn(
            kilns,
            "flaws of bricks, kernels between 0 and 1",
            "saturated_units",
            "mean_collapse",
            "rank_collapse",
            "bad_start",
            "vanishing_gradient",
            pattern="bricks.*kernel",
            draw=_uniform,
            where="bricks",
        ),
        edited(
            normed,
            "flaws of bricks, with norms, kernels times 20",
            scale={"bricks/./kernel": 20.0},
        ),
        slow,
        stored(slow, "flaws of bricks, slowly in bfloat16", "lost_updates", dtype=jnp.bfloat16),
    ]


def _currents() -> list[Network]:
    currents = mlps.drifted("parts of currents")
    return [
        currents,
        beside(
            mlps.drifted("parts of currents, 14 layers of ReLU", depth=14, act=jax.nn.relu),
            currents,
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            "zero_gradient",
            "bad_start",
        ),
        beside(
            mlps.drifted("parts of currents, 16 layers of softplus", depth=16, act=jax.nn.softplus),
            currents,
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            "bad_start",
        ),
        edited(
            currents,
            "parts of currents, last kernel times 200",
            scale={"layers/3/weight": 200.0},
        ),
        redrawn(
            currents,
            "parts of currents, biases of 6 in a quarter of a layer",
            pattern="layers/1/bias",
            draw=_first(0.25, 6.0),
        ),
    ]


def _trains() -> list[Network]:
    trains = mlps.delayed("late trains")
    eight = mlps.delayed("", depth=8, act=jax.nn.relu)
    return [
        trains,
        redrawn(
            beside(eight, trains),
            "late trains, eight layers of ReLU of N(0, 1)",
            *LARGE,
            pattern="w$",
            draw=normal(1.0),
        ),
        edited(
            beside(mlps.delayed("", act=jax.nn.relu), trains),
            "late trains, kernels that are all .1",
            "rank_collapse",
            "mean_collapse",
            "bad_start",
            fill={"w$": 0.1},
        ),
        edited(
            trains,
            "late trains, Adam's epsilon of 10",
            "blind_optimizer",
            "vanishing_gradient",
            optimizer=lambda rate: optax.adam(rate, eps=10.0),
        ),
    ]


def _violins() -> list[Network]:
    violins = mlps.bowed("loudness of violins")
    tiny = mlps.bowed("", unit=1e-9)
    half = mlps.bowed(
        "loudness of violins, a loss in 1e-5, in float16", unit=1e-5, dtype=jnp.float16
    )
    less = mlps.bowed("", unit=1e-6, dtype=jnp.float16)
    return [
        violins,
        beside(half, violins),
        edited(
            beside(less, violins),
            "loudness of violins, a loss in 1e-6, in float16",
            "underflow",
            "zero_gradient",
            "vanishing_gradient",
            "blind_optimizer",
        ),
        edited(beside(tiny, violins), "loudness of violins, a loss in 1e-9", *BLIND),
        redrawn(
            violins,
            "loudness of violins, hidden kernels of N(0, 5)",
            *FULL,
            pattern="[012]/w",
            draw=normal(5.0),
            where="[012]",
        ),
        edited(
            violins,
            "loudness of violins, third kernel over 10000",
            scale={"2/w": 1e-4},
        ),
    ]
