"""Networks with right code, and what people reported to have done to such networks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo import eleventh_mlps as mlps
from benchmarks.real_zoo import eleventh_others as others
from benchmarks.real_zoo import eleventh_structures as structures
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import judged_in, measured, redrawn, stored

# The moment in seconds since 1970, beside what is in standard units.
SECONDS = np.array([1.66e9, *[0.0] * 6]), np.array([9.1e6, *[1.0] * 6])
# Places in pixels, values to 1000, six colors.
COUNTED = np.array([320.0, 240.0, 500.0, 3.0]), np.array([320.0, 240.0, 500.0, 3.0])


def eleventh_fresh_networks() -> list[Network]:
    """Healthy networks, and the same as people reported that they didn't learn."""
    return [*_tables(), *_functions(), *_codes(), *_signals(), *_relations(), *_pairs()]


def _normal(size: float) -> Callable[[Any, Any], Any]:
    return lambda key, shape: size * jax.random.normal(key, shape)


def _momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def _beside(made: Network, twin: Network, *ails: str, where: str = "") -> Network:
    return dataclasses.replace(made, twin=twin.name, ails=ails, where=where)


def _tables() -> list[Network]:
    bikes = mlps.bikes("bikes by the hour")
    shapes = mlps.pictured("shapes, sigmoid 2")
    switches = mlps.switched("sixteen switches")
    return [
        bikes,
        edited(
            bikes,
            "bikes by the hour, seconds since 1970",
            "bad_start",
            "exploding_gradient",
            "mean_collapse",
            "rank_collapse",
            "learning_rate",
            task=measured(mlps.rentals, {0: SECONDS}),
            where="hidden",
        ),
        stored(
            bikes,
            "bikes by the hour, bfloat16, AdamW at 1e-4",
            "lost_updates",
            "learning_rate",
            "does_not_learn",
            dtype=jnp.bfloat16,
            optimizer=optax.adamw,
            rates=(1e-4,),
        ),
        shapes,
        edited(
            shapes,
            "shapes, sigmoid 2, pixels from 0 to 255, momentum",
            "saturated_units",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            task=measured(mlps.shapes, {0: (127.5, 127.5)}),
            where="hidden",
            optimizer=_momentum,
            rates=(0.1, 0.3),
        ),
        redrawn(
            shapes,
            "shapes, sigmoid 2, kernels from 0 to 1 / sqrt(n), SGD",
            "mean_collapse",
            "rank_collapse",
            "saturated_units",
            "vanishing_gradient",
            "learning_rate",
            "does_not_learn",
            pattern="kernel",
            draw=lambda key, shape: jax.random.uniform(key, shape) / shape[0] ** 0.5,
            optimizer=optax.sgd,
            rates=(0.01, 0.1),
        ),
        switches,
        _beside(
            mlps.switched("sixteen switches, sigmoid 10", depth=10, activation=nnx.sigmoid),
            switches,
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
        ),
        redrawn(
            switches,
            "sixteen switches, kernels from -1 to 0",
            "dead_units",
            "zero_gradient",
            "mean_collapse",
            "rank_collapse",
            pattern="hidden.*kernel",
            draw=lambda key, shape: -jax.random.uniform(key, shape),
            where="hidden",
        ),
    ]


def _functions() -> list[Network]:
    curve = mlps.curve("cubic curve")
    beam = mlps.beam("beam PINN in meters", unit=1.0)
    carts = mlps.pushed("values of a cart")
    return [
        curve,
        edited(
            curve,
            "cubic curve, targets near -2700",
            "bad_start",
            "learning_rate",
            "mean_collapse",
            "does_not_learn",
            task=measured(mlps.cubes, {1: (-2700.0, 250.0)}),
            parts=judged_in(curve, 250.0),
        ),
        edited(
            curve,
            "cubic curve, numbers to 4000 and their cubes",
            "bad_start",
            "saturated_units",
            "learning_rate",
            "exploding_gradient",
            "mean_collapse",
            "does_not_learn",
            task=measured(mlps.cubes, {0: (2000.0, 1155.0), 1: (1.6e10, 1.8e10)}),
            parts=judged_in(curve, 1.8e10),
        ),
        beam,
        _beside(
            mlps.beam("beam PINN in millimeters", unit=1000.0),
            beam,
            "saturated_units",
            "vanishing_gradient",
            "zero_gradient",
            "mean_collapse",
            "does_not_learn",
            "bad_start",
        ),
        redrawn(
            beam,
            "beam PINN in meters, kernels of N(0, 1)",
            "bad_start",
            "exploding_gradient",
            "saturated_units",
            pattern="w$",
            draw=_normal(1.0),
        ),
        carts,
        edited(
            carts,
            "values of a cart, Adam at 1",
            "learning_rate",
            "exploding_gradient",
            "dead_units",
            "does_not_learn",
            rates=(1.0,),
        ),
        edited(
            carts,
            "values of a cart, L2 of .5 in SGD",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            "learning_rate",
            optimizer=lambda rate: optax.chain(
                optax.add_decayed_weights(0.5), optax.sgd(rate, momentum=0.9)
            ),
            rates=(1e-2, 3e-2),
        ),
    ]


def _codes() -> list[Network]:
    blobs = mlps.blobbed("autoencoder of blobs")
    names = mlps.named("next letters of names")
    return [
        blobs,
        edited(
            blobs,
            "autoencoder of blobs, Adadelta at 1e-3",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=optax.adadelta,
            rates=(1e-3,),
        ),
        edited(
            blobs,
            "autoencoder of blobs, all at 0",
            "zero_gradient",
            "dead_units",
            "mean_collapse",
            "rank_collapse",
            fill={"layer|pixels": 0.0},
        ),
        names,
        redrawn(
            names,
            "next letters of names, all of N(0, 1), SGD",
            "bad_start",
            "saturated_units",
            "exploding_gradient",
            "learning_rate",
            pattern="layers",
            draw=_normal(1.0),
            optimizer=optax.sgd,
            rates=(0.01, 0.1),
        ),
        stored(
            names,
            "next letters of names, float16",
            "nonfinite",
            "underflow",
            "blind_optimizer",
            dtype=jnp.float16,
        ),
    ]


def _signals() -> list[Network]:
    prices = others.priced("LSTM of prices")
    steps = others.walked("VGG of steps")
    stars = structures.told("bottlenecks of galaxies")
    cues = structures.cued("linear units of cues")
    return [
        prices,
        edited(
            prices,
            "LSTM of prices, in dollars",
            "saturated_units",
            "bad_start",
            "mean_collapse",
            "learning_rate",
            "vanishing_gradient",
            "does_not_learn",
            task=measured(others.prices, {0: (2400.0, 200.0), 1: (2400.0, 200.0)}),
            parts=judged_in(prices, 200.0),
        ),
        steps,
        redrawn(
            steps,
            "VGG of steps, kernels of .01, momentum",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            pattern="kernel",
            draw=_normal(0.01),
            optimizer=_momentum,
            rates=(1e-3, 1e-2),
        ),
        edited(
            steps,
            "VGG of steps, Adam at .1",
            "learning_rate",
            "dead_units",
            "exploding_gradient",
            "does_not_learn",
            rates=(0.1,),
        ),
        stars,
        edited(
            stars,
            "bottlenecks of galaxies, eps of 1",
            "blind_optimizer",
            "learning_rate",
            "does_not_learn",
            optimizer=lambda rate: optax.adam(rate, eps=1.0),
            rates=(1e-4, 1e-3),
        ),
        cues,
        redrawn(
            cues,
            "linear units of cues, sizes from 0 to .5",
            "memory",
            "vanishing_gradient",
            "mean_collapse",
            "does_not_learn",
            pattern="log_decay",
            draw=lambda key, shape: jnp.log(-jnp.log(jax.random.uniform(key, shape, maxval=0.5))),
            where="log_decay|into|before",
        ),
    ]


def _relations() -> list[Network]:
    rhythms = others.drummed("masked rhythms")
    dots = others.mixed("mixer of dots")
    scenes = others.seen("gated graphs of scenes")
    return [
        rhythms,
        redrawn(
            rhythms,
            "masked rhythms, norms' scales and offsets of .02, momentum",
            "vanishing_gradient",
            "mean_collapse",
            "token_collapse",
            "rank_collapse",
            pattern="norm.*(scale|offset)",
            draw=_normal(0.02),
            where="norm",
            optimizer=_momentum,
            rates=(1e-2, 3e-2),
        ),
        redrawn(
            rhythms,
            "masked rhythms, queries and keys of N(0, 1)",
            "saturated_attention",
            "bad_start",
            "learning_rate",
            pattern="(query|key).*w$",
            draw=_normal(1.0),
            where="attention",
        ),
        edited(
            rhythms,
            "masked rhythms, Adagrad at 1e-3",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=optax.adagrad,
            rates=(1e-3,),
        ),
        dots,
        edited(
            dots,
            "mixer of dots, norms' scales 0 and offsets 1, momentum",
            "token_collapse",
            "mean_collapse",
            "zero_gradient",
            "rank_collapse",
            "vanishing_gradient",
            fill={"norm.*scale": 0.0, "norm.*bias": 1.0},
            where="norm",
            optimizer=_momentum,
            rates=(1e-2, 5e-2),
        ),
        edited(
            dots,
            "mixer of dots, SGD at 1e-3",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=optax.sgd,
            rates=(1e-3,),
        ),
        scenes,
        edited(
            scenes,
            "gated graphs of scenes, pixels and values to 1000",
            "saturated_units",
            "bad_start",
            "token_collapse",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            task=measured(others.scenes, {0: COUNTED}),
            where="into",
        ),
        stored(
            scenes,
            "gated graphs of scenes, bfloat16, Adam at 1e-4",
            "lost_updates",
            "learning_rate",
            "does_not_learn",
            dtype=jnp.bfloat16,
            rates=(1e-4,),
        ),
    ]


def _pairs() -> list[Network]:
    herds = others.herded("neural ODE of herds")
    jets = others.coupled("RealNVP of jets")
    faces = structures.faced("codes of faces")
    swings = structures.swung("actor and critic of a pendulum")
    adapters = structures.adapted("adapters of rank 4")
    return [
        herds,
        edited(
            herds,
            "neural ODE of herds, time in days",
            "bad_start",
            "exploding_gradient",
            "learning_rate",
            "nonfinite",
            task=measured(others.herds, {1: (0.0, 365.0)}),
        ),
        jets,
        redrawn(
            jets,
            "RealNVP of jets, all kernels as Kaiming's",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            "learning_rate",
            pattern="kernel",
            draw=lambda key, shape: jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5,
            where="last",
        ),
        faces,
        edited(
            faces,
            "codes of faces, Adam at .3",
            "learning_rate",
            "mean_collapse",
            "dead_units",
            "does_not_learn",
            rates=(0.3,),
        ),
        swings,
        _beside(
            structures.swung(
                "actor and critic of a pendulum, returns near -1200",
                unit=350.0,
                task=measured(structures.swings, {2: (-1200.0, 350.0)}),
            ),
            swings,
            "bad_start",
            "learning_rate",
            "mean_collapse",
            "does_not_learn",
            where="critic",
        ),
        adapters,
        edited(
            adapters,
            "adapters of rank 4, both at 0",
            "zero_gradient",
            "does_not_learn",
            fill={"lora": 0.0},
        ),
    ]
