"""Plain MLPs, and the same too deep, too small, too large, saturated, dead or in small types."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.real_zoo import fifteenth_mlps as mlps
from benchmarks.real_zoo.fourteenth_mlps import glorot, lecun
from benchmarks.real_zoo.fourteenth_tables import DEAD, FULL, LARGE, SMALL
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import redrawn, stored
from benchmarks.real_zoo.twelfth_tables import beside, normal


def plain_networks() -> list[Network]:
    """Healthy MLPs, and sick ones."""
    return [*_rowers(), *_cheeses(), *_bridges(), *_glazes(), *_sails()]


def _positive(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws above zero only, of such a size that a layer keeps the mean of its inputs."""
    return jnp.abs(jax.random.normal(key, shape)) * (jnp.pi / 2) ** 0.5 / shape[0]


def _rowers() -> list[Network]:
    rowers = mlps.rowed("speeds of rowers")
    return [
        rowers,
        beside(
            mlps.rowed("speeds of rowers, 28 layers at half", depth=28, draw=lecun(0.5)),
            rowers,
            *SMALL,
        ),
        beside(
            mlps.rowed(
                "speeds of rowers, 18 layers of sigmoid, Glorot's",
                depth=18,
                act=jax.nn.sigmoid,
                draw=glorot,
            ),
            rowers,
            *SMALL,
        ),
        beside(mlps.joined("speeds of rowers, 24 residual layers with gains from 0"), rowers),
        beside(mlps.rowed("speeds of rowers, nearly learned at the start", trained=250), rowers),
    ]


def _cheeses() -> list[Network]:
    cheeses = mlps.ripened("makers of cheeses")
    normed = beside(mlps.ripened("makers of cheeses, with norms", norm=True), cheeses)
    twelve = mlps.ripened("", depth=12, act=jax.nn.silu)
    return [
        cheeses,
        edited(
            cheeses,
            "makers of cheeses, biases of -15 in the third layer",
            *DEAD,
            fill={"hidden_2/bias": -15.0},
            where="hidden_2",
        ),
        redrawn(
            beside(twelve, cheeses),
            "makers of cheeses, 12 layers of SiLU of N(0, .03)",
            *SMALL,
            pattern="kernel",
            draw=normal(0.03),
        ),
        edited(
            normed,
            "makers of cheeses, shifts of -12 in the second norm",
            *DEAD,
            fill={"norm_1/bias": -12.0},
            where="norm_1|hidden_1",
        ),
        edited(
            normed,
            "makers of cheeses, with norms, kernels over 100",
            scale={"hidden_./kernel": 0.01},
        ),
        beside(mlps.ripened("makers of cheeses, in bfloat16", dtype=jnp.bfloat16), cheeses),
        beside(mlps.dropped("makers of cheeses, with dropout"), cheeses),
    ]


def _bridges() -> list[Network]:
    bridges = mlps.loaded("sag of bridges")
    ten = mlps.loaded("", depth=10)
    elu = mlps.loaded("", depth=14, act=nnx.elu)
    return [
        bridges,
        redrawn(
            beside(ten, bridges),
            "sag of bridges, ten layers of ReLU of N(0, 1)",
            *LARGE,
            "rank_collapse",
            "dead_units",
            pattern="kernel",
            draw=normal(1.0),
        ),
        redrawn(
            beside(elu, bridges),
            "sag of bridges, 14 layers of kernels above zero",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            "bad_start",
            pattern="kernel",
            draw=_positive,
        ),
        edited(
            bridges,
            "sag of bridges, last kernel times 300",
            "bad_start",
            "exploding_gradient",
            scale={"sag/kernel": 300.0},
            where="sag",
        ),
        edited(
            bridges,
            "sag of bridges, Adam's epsilon of 30",
            "blind_optimizer",
            "vanishing_gradient",
            optimizer=lambda rate: optax.adam(rate, eps=30.0),
        ),
        beside(mlps.loaded("sag of bridges, first layer frozen", frozen=1), bridges),
    ]


def _glazes() -> list[Network]:
    glazes = mlps.fired("colors of glazes")
    return [
        glazes,
        edited(
            glazes,
            "colors of glazes, first kernel times 60",
            *FULL,
            "mean_collapse",
            scale={"layers/0/weight": 60.0},
            where="layers/0",
        ),
        edited(
            glazes,
            "colors of glazes, logits times 300",
            "bad_start",
            "exploding_gradient",
            "saturated_units",
            scale={"layers/3": 300.0},
            where="layers/3",
        ),
    ]


def _sails() -> list[Network]:
    sails = mlps.hoisted("pull of sails")
    half = mlps.hoisted("pull of sails, computed in float16", dtype=jnp.float16)
    scaled = redrawn(
        beside(mlps.hoisted("", over=True), sails),
        "pull of sails, kernels of N(0, 1) over roots of widths",
        pattern="w$",
        draw=normal(1.0),
        rates=(5e-4, 1e-3),
        steps=600,
    )
    return [
        sails,
        scaled,
        stored(
            scaled,
            "pull of sails, such kernels in bfloat16",
            "lost_updates",
            dtype=jnp.bfloat16,
        ),
        beside(half, sails),
        edited(
            beside(half, sails),
            "pull of sails, float16, kernels over 30",
            "underflow",
            "vanishing_gradient",
            "mean_collapse",
            "zero_gradient",
            "blind_optimizer",
            "bad_start",
            scale={"w$": 1 / 30},
        ),
        redrawn(
            beside(mlps.hoisted("", depth=16, act=jnp.sin), sails),
            "pull of sails, 16 layers of sines of N(0, .6)",
            "exploding_gradient",
            "bad_start",
            "saturated_units",
            "rank_collapse",
            pattern="w$",
            draw=normal(0.6),
        ),
    ]
