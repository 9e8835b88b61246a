"""Plain MLPs, and the same too deep, too small, too large, saturated, dead or in small types."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.real_zoo import fourteenth_mlps as mlps
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import redrawn, stored
from benchmarks.real_zoo.twelfth_tables import beside, momentum, normal

SMALL = ("vanishing_gradient", "mean_collapse", "rank_collapse", "zero_gradient", "bad_start")
LARGE = ("exploding_gradient", "bad_start", "saturated_units", "nonfinite")
FULL = ("saturated_units", "bad_start", "vanishing_gradient", "zero_gradient", "exploding_gradient")
DEAD = ("dead_units", "zero_gradient", "mean_collapse", "rank_collapse", "vanishing_gradient")
BLIND = ("blind_optimizer", "underflow", "vanishing_gradient")


def plain_networks() -> list[Network]:
    """Healthy MLPs, and sick ones."""
    return [*_tides(), *_leaves(), *_fuel(), *_clouds(), *_bearings()]


def _tides() -> list[Network]:
    tides = mlps.tidal("heights of tides")
    eight = mlps.tidal("heights of tides, eight layers of ReLU", depth=8, act=jax.nn.relu)
    over = mlps.tidal(
        "heights of tides, kernels of N(0, 1) over roots of widths",
        draw=normal(1.0),
        over=True,
        steps=500,
        rates=(3e-4, 1e-3),
    )
    return [
        tides,
        over,
        stored(
            over,
            "heights of tides, such kernels in bfloat16",
            "lost_updates",
            "learning_rate",
            dtype=jnp.bfloat16,
        ),
        beside(
            mlps.tidal(
                "heights of tides, 20 layers of sigmoid, Glorot's",
                depth=20,
                act=jax.nn.sigmoid,
                draw=mlps.glorot,
            ),
            tides,
            *SMALL,
        ),
        beside(
            mlps.tidal("heights of tides, 30 layers at half", depth=30, draw=mlps.lecun(0.5)),
            tides,
            *SMALL,
        ),
        beside(
            mlps.tidal(
                "heights of tides, 24 orthogonal layers",
                depth=24,
                draw=mlps.orthogonal(),
                rates=(1e-3, 2e-3),
            ),
            tides,
        ),
        beside(
            mlps.tidal(
                "heights of tides, 16 layers of sines of N(0, 1)",
                depth=16,
                act=jnp.sin,
                draw=normal(1.0),
            ),
            tides,
            "exploding_gradient",
            "bad_start",
            "saturated_units",
            "rank_collapse",
        ),
        beside(eight, tides),
        beside(
            mlps.tidal(
                "heights of tides, eight layers of ReLU of N(0, .01)",
                depth=8,
                act=jax.nn.relu,
                draw=normal(0.01),
            ),
            tides,
            *SMALL,
        ),
        beside(
            mlps.tidal("heights of tides, loss times 1e-3", unit=1e-3),
            tides,
        ),
        beside(
            mlps.tidal("heights of tides, loss times 1e-9", unit=1e-9),
            tides,
            *BLIND,
        ),
    ]


def _leaves() -> list[Network]:
    leaves = mlps.fallen("trees of leaves")
    tanh = mlps.fallen("trees of leaves, five layers of tanh", depth=5, act=jnp.tanh)
    forty = mlps.fallen("trees of leaves, 40 layers as they come", depth=40)
    soft = mlps.fallen("trees of leaves, 12 layers of softplus", depth=12, act=jax.nn.softplus)
    hard = mlps.fallen("trees of leaves, 20 layers of hard tanh", depth=20, act=jax.nn.hard_tanh)
    return [
        leaves,
        edited(
            leaves,
            "trees of leaves, biases of -20 in the second layer",
            *DEAD,
            fill={"hidden_1/bias": -20.0},
            where="hidden_1",
        ),
        edited(leaves, "trees of leaves, biases of -.5", fill={"hidden_./bias": -0.5}),
        edited(leaves, "trees of leaves, last layer at 0", fill={"tree": 0.0}),
        beside(forty, leaves, *SMALL, where="hidden"),
        redrawn(
            beside(soft, leaves),
            "trees of leaves, 12 layers of softplus of N(0, .05)",
            *SMALL,
            pattern="kernel",
            draw=normal(0.05),
        ),
        beside(tanh, leaves),
        edited(
            beside(tanh, leaves),
            "trees of leaves, five layers of tanh times 25",
            *FULL,
            scale={"hidden_./kernel": 25.0},
            where="hidden",
        ),
        redrawn(
            beside(hard, leaves),
            "trees of leaves, 20 layers of hard tanh of N(0, 1)",
            *FULL,
            pattern="kernel",
            draw=normal(1.0),
        ),
        beside(
            mlps.fallen("trees of leaves, computed in bfloat16", dtype=jnp.bfloat16),
            leaves,
        ),
        redrawn(
            beside(
                mlps.fallen("trees of leaves, 16 layers as He's", depth=16),
                leaves,
            ),
            "trees of leaves, 16 layers of He's",
            pattern="kernel",
            draw=mlps.lecun(2**0.5),
            rates=(5e-4, 2e-3),
        ),
    ]


def _fuel() -> list[Network]:
    fuel = mlps.burned("fuel of trips")
    elu = mlps.burned("fuel of trips, ten layers of ELU", depth=10, act=jax.nn.elu)
    return [
        fuel,
        beside(mlps.burned("fuel of trips, first layer frozen", frozen=True), fuel),
        beside(
            mlps.burned("fuel of trips, 32 layers of GELU as they come", depth=32), fuel, *SMALL
        ),
        edited(
            beside(elu, fuel),
            "fuel of trips, ten layers of ELU times 4",
            *LARGE,
            scale={"layers/./kernel": 4.0},
        ),
        beside(
            mlps.burned(
                "fuel of trips, loss of millionths, Adam's epsilon of 1e-3",
                unit=1e-6,
                optimizer=lambda rate: optax.adam(rate, eps=1e-3),
            ),
            fuel,
            *BLIND,
        ),
        edited(
            beside(
                mlps.burned("fuel of trips, with momentum", optimizer=momentum, rates=(0.01, 0.03)),
                fuel,
            ),
            "fuel of trips, second and third kernel over 300, momentum",
            *SMALL,
            scale={"layers/[12]/kernel": 1 / 300},
            where="layers",
        ),
    ]


def _clouds() -> list[Network]:
    clouds = mlps.seen("kinds of clouds")
    return [
        clouds,
        beside(mlps.seen("kinds of clouds, 18 layers of PyTorch's", depth=18), clouds, *SMALL),
        beside(
            mlps.seen("kinds of clouds, ten layers of sigmoid", depth=10, act=jax.nn.sigmoid),
            clouds,
            *SMALL,
        ),
        redrawn(
            clouds,
            "kinds of clouds, kernels of N(0, 1), momentum",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            "dead_units",
            pattern="weight",
            draw=normal(1.0),
            optimizer=momentum,
            rates=(0.01, 0.03),
        ),
        edited(
            clouds,
            "kinds of clouds, biases of -10 everywhere",
            *DEAD,
            fill={"layers/[0-2]/bias": -10.0},
            where="layers",
        ),
        edited(clouds, "kinds of clouds, kernels over 2", scale={"weight": 0.5}),
    ]


def _bearings() -> list[Network]:
    sigmoid = mlps.worn_down("wear of bearings", depth=2)
    relu = mlps.worn_down("wear of bearings, ReLU", act=nnx.relu, draw=mlps.lecun(2**0.5))
    half = {"act": nnx.relu, "draw": mlps.lecun(2**0.5), "dtype": jnp.float16}
    return [
        sigmoid,
        beside(relu, sigmoid),
        beside(mlps.worn_down("wear of bearings, 14 layers of sigmoid", depth=14), sigmoid, *SMALL),
        edited(
            sigmoid,
            "wear of bearings, biases of 12",
            "saturated_units",
            "mean_collapse",
            "bad_start",
            "vanishing_gradient",
            "rank_collapse",
            "zero_gradient",
            fill={"part/./b": 12.0},
            where="part",
        ),
        edited(
            beside(mlps.worn_down("", **half), sigmoid),
            "wear of bearings, float16, kernels times 30",
            "nonfinite",
            "exploding_gradient",
            "bad_start",
            scale={"w$": 30.0},
        ),
        beside(mlps.worn_down("wear of bearings, computed in float16", **half), sigmoid),
        edited(
            beside(mlps.worn_down("", **half), sigmoid),
            "wear of bearings, float16, kernels over 20",
            "underflow",
            "vanishing_gradient",
            "mean_collapse",
            "zero_gradient",
            "blind_optimizer",
            scale={"w$": 0.05},
        ),
    ]
