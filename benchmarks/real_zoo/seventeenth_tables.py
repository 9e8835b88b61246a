"""Plain MLPs, and the same too deep, too small, too large, saturated, dead or in small types."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.real_zoo import seventeenth_mlps as mlps
from benchmarks.real_zoo.fourteenth_mlps import glorot
from benchmarks.real_zoo.fourteenth_tables import DEAD, FULL, LARGE, SMALL
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import redrawn, stored
from benchmarks.real_zoo.twelfth_tables import beside, normal


def plain_networks() -> list[Network]:
    """Healthy MLPs, and sick ones."""
    return [*_kites(), *_teas(), *_pumps(), *_moths(), *_ropes()]


def _kites() -> list[Network]:
    kites = mlps.flown("pull of kites")
    slow = {"rates": (4e-4, 8e-4), "steps": 700}
    normed = beside(
        mlps.flown("pull of kites, weights normalized", draw=normal(1.0), normed=True, **slow),
        kites,
    )
    pairs = mlps.flown("", depth=21, residual=True)
    return [
        kites,
        normed,
        stored(
            normed,
            "pull of kites, weights normalized, in bfloat16",
            "lost_updates",
            dtype=jnp.bfloat16,
        ),
        beside(mlps.flown("pull of kites, 18 layers as they come", depth=18), kites),
        beside(mlps.flown("pull of kites, 32 layers as they come", depth=32), kites, *SMALL),
        edited(
            beside(pairs, kites),
            "pull of kites, ten residual pairs whose second layers start at 0",
            fill={"^([2468]|1[02468]|20)/w": 0.0},
        ),
        beside(
            mlps.flown(
                "pull of kites, loss in units of 1e-4, Adam's epsilon of .1",
                unit=1e-4,
                optimizer=lambda rate: optax.adam(rate, eps=0.1),
            ),
            kites,
            "blind_optimizer",
            "underflow",
            "vanishing_gradient",
        ),
    ]


def _teas() -> list[Network]:
    teas = mlps.poured("estates of teas")
    normed = beside(mlps.poured("estates of teas, with batch norms", norm=True), teas)
    return [
        teas,
        normed,
        edited(
            normed,
            "estates of teas, with batch norms, kernels times 4",
            scale={"hidden_./kernel": 4.0},
        ),
        edited(
            teas,
            "estates of teas, biases of -12 in the first layer",
            *DEAD,
            fill={"hidden_0/bias": -12.0},
            where="hidden_0",
        ),
        redrawn(
            teas,
            "estates of teas, half of the first layer off",
            pattern="hidden_0/bias",
            draw=lambda _, shape: jnp.where(jnp.arange(shape[0]) % 2, -12.0, 0.0),
        ),
        redrawn(
            beside(mlps.poured("", depth=5), teas),
            "estates of teas, five layers of kernels between 0 and 1",
            "exploding_gradient",
            "bad_start",
            "rank_collapse",
            "mean_collapse",
            pattern="kernel",
            draw=jax.random.uniform,
        ),
        beside(
            mlps.poured("estates of teas, nine layers of sigmoid", depth=9, act=jax.nn.sigmoid),
            teas,
            *SMALL,
        ),
    ]


def _pumps() -> list[Network]:
    pumps = mlps.pumped("flow of pumps")
    relu = mlps.pumped("", depth=7, act=nnx.relu)
    return [
        pumps,
        redrawn(
            beside(mlps.pumped("", depth=6), pumps),
            "flow of pumps, six layers of N(0, .001)",
            *SMALL,
            pattern="kernel",
            draw=normal(0.001),
        ),
        redrawn(
            beside(relu, pumps),
            "flow of pumps, seven layers of ReLU of N(0, 1)",
            *LARGE,
            "rank_collapse",
            "dead_units",
            pattern="kernel",
            draw=normal(1.0),
        ),
        beside(
            mlps.pumped("flow of pumps, 18 layers of softplus", depth=18, act=nnx.softplus),
            pumps,
            *SMALL,
        ),
        beside(mlps.pumped("flow of pumps, with outputs that nothing uses", spare=True), pumps),
        edited(
            pumps,
            "flow of pumps, second biases of 8",
            fill={"stages/1/bias": 8.0},
        ),
    ]


def _moths() -> list[Network]:
    moths = mlps.lured("kinds of moths")
    tanh = mlps.lured("", depth=3, act=jnp.tanh)
    return [
        moths,
        edited(
            beside(tanh, moths),
            "kinds of moths, three layers of tanh, second kernel times 150",
            *FULL,
            scale={"layers/1/weight": 150.0},
            where="layers/1",
        ),
        edited(
            moths,
            "kinds of moths, scale of the logits of 3000",
            "bad_start",
            "exploding_gradient",
            "saturated_units",
            fill={"scale": 3000.0},
            where="scale|layers/3",
        ),
        edited(moths, "kinds of moths, scale of the logits of .02", fill={"scale": 0.02}),
        beside(
            mlps.lured("kinds of moths, 24 layers of ReLU, PyTorch's", depth=24, act=jax.nn.relu),
            moths,
            *SMALL,
        ),
    ]


def _ropes() -> list[Network]:
    ropes = mlps.hauled("loads of ropes")
    half = {"dtype": jnp.float16, "act": jax.nn.relu}
    return [
        ropes,
        redrawn(
            beside(mlps.hauled("", depth=12), ropes),
            "loads of ropes, 12 layers of N(0, 1)",
            *FULL,
            pattern="w$",
            draw=normal(1.0),
        ),
        redrawn(
            beside(mlps.hauled("", depth=10, act=jax.nn.sigmoid), ropes),
            "loads of ropes, ten layers of sigmoid, Glorot's",
            *SMALL,
            pattern="w$",
            draw=glorot,
        ),
        edited(
            beside(mlps.hauled("", **half), ropes),
            "loads of ropes, float16, kernels times 40",
            "nonfinite",
            "exploding_gradient",
            "bad_start",
            scale={"w$": 40.0},
        ),
        beside(mlps.hauled("loads of ropes, computed in float16", **half), ropes),
        edited(
            ropes,
            "loads of ropes, RMSProp's epsilon of 1000",
            "blind_optimizer",
            "vanishing_gradient",
            optimizer=lambda rate: optax.rmsprop(rate, eps=1000.0),
        ),
    ]
