"""Networks that learn, and what people said they had done to such networks when none did."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import thirteenth_others as others
from benchmarks.real_zoo import thirteenth_structures as structures
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import judged_in, measured, redrawn, stored
from benchmarks.real_zoo.thirteenth_tables import plain_networks
from benchmarks.real_zoo.twelfth_tables import beside, momentum, normal


def thirteenth_fresh_networks() -> list[Network]:
    """Healthy networks, and the same as people said that they didn't learn."""
    signals = [*_paintings(), *_tokens(), *_pictures(), *_tanks()]
    models = [*_matters(), *_motions(), *_likenesses(), *_densities()]
    return [*plain_networks(), *signals, *models]


def _paintings() -> list[Network]:
    paintings = others.painted("sines of paintings")
    return [
        paintings,
        edited(
            paintings,
            "sines of paintings, places in pixels",
            "bad_start",
            "learning_rate",
            "does_not_learn",
            "exploding_gradient",
            task=measured(others.paintings, {0: (31.5, 31.5)}),
            where="sine_0",
        ),
        edited(
            paintings,
            "sines of paintings, kernels not over omega",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            "does_not_learn",
            scale={"sine_[12]/w": others.OMEGA},
            where="sine_[12]",
        ),
    ]


def _tokens() -> list[Network]:
    lookups = others.looked_up("encoder of look-ups")
    stairs = others.walked("decoder of walks")
    return [
        lookups,
        edited(
            lookups,
            "encoder of look-ups, queries and keys times 6",
            "saturated_units",
            "bad_start",
            "exploding_gradient",
            "vanishing_gradient",
            "does_not_learn",
            "learning_rate",
            scale={"attention/(query|key)": 6.0},
            where="query|key|attention",
        ),
        edited(
            lookups,
            "encoder of look-ups, Adam at .03",
            "learning_rate",
            "does_not_learn",
            "exploding_gradient",
            "dead_units",
            rates=(0.03,),
        ),
        stairs,
        edited(stairs, "decoder of walks, embedding of 1", scale={"tokens": 10.0}),
        stored(
            stairs,
            "decoder of walks, float16",
            "nonfinite",
            "underflow",
            "blind_optimizer",
            dtype=jnp.float16,
        ),
    ]


def _pictures() -> list[Network]:
    boxes = others.boxed("places of boxes")
    spectra = others.measured_lines("ResNet of spectra")
    return [
        boxes,
        edited(boxes, "places of boxes, Adam at .02", rates=(0.02,)),
        beside(
            others.boxed("places of boxes, all sigmoid", rates=(1e-3,), act=jax.nn.sigmoid),
            boxes,
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
        ),
        spectra,
        edited(
            spectra,
            "ResNet of spectra, all gains at 0",
            "zero_gradient",
            "vanishing_gradient",
            "rank_collapse",
            "mean_collapse",
            "does_not_learn",
            fill={"norm_.*scale": 0.0},
            where="norm",
        ),
        edited(
            spectra,
            "ResNet of spectra, last gains of blocks at 0",
            fill={"norm_._b/scale": 0.0},
        ),
        edited(
            spectra,
            "ResNet of spectra, SGD at 3e-4",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=optax.sgd,
            rates=(3e-4,),
        ),
    ]


def _tanks() -> list[Network]:
    tanks = others.filled("RNN of tanks")
    return [
        tanks,
        redrawn(
            tanks,
            "RNN of tanks, states of .05",
            "memory",
            "vanishing_gradient",
            "mean_collapse",
            "does_not_learn",
            pattern="states",
            draw=normal(0.05),
            where="states",
        ),
        beside(
            others.filled("RNN of tanks, sigmoid", act=jax.nn.sigmoid),
            tanks,
            "memory",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
        ),
    ]


def _matters() -> list[Network]:
    molecules = structures.bound("graph of molecules")
    gestures = structures.gestured("codes of gestures")
    return [
        molecules,
        edited(
            molecules,
            "graph of molecules, picometers",
            "zero_gradient",
            "bad_start",
            "vanishing_gradient",
            "mean_collapse",
            "dead_units",
            "does_not_learn",
            task=measured(structures.molecules, {1: (0.0, 100.0)}),
            where="filter|sent",
        ),
        edited(
            molecules,
            "graph of molecules, total energies",
            "bad_start",
            "learning_rate",
            "mean_collapse",
            "exploding_gradient",
            "does_not_learn",
            task=measured(structures.molecules, {2: (-4e3, 10.0)}),
            parts=judged_in(molecules, 10.0),
        ),
        gestures,
        edited(
            gestures,
            "codes of gestures, codes times 10",
            "bad_start",
            "mean_collapse",
            "rank_collapse",
            "learning_rate",
            "does_not_learn",
            scale={"codes": 10.0},
            where="codes",
        ),
        edited(
            gestures,
            "codes of gestures, AdamW's decay of 5",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            "learning_rate",
            optimizer=lambda rate: optax.adamw(rate, weight_decay=5.0),
        ),
    ]


def _motions() -> list[Network]:
    springs = structures.swung("equation of a spring")
    orbits = structures.orbited("neural ODE of orbits")
    grips = structures.gripped("policy of grips")
    return [
        springs,
        edited(
            springs,
            "equation of a spring, momentum at 1e-3",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=momentum,
            rates=(1e-3,),
        ),
        beside(structures.swung("equation of a spring, loss times 1e4", unit=1e4), springs),
        orbits,
        edited(
            orbits,
            "neural ODE of orbits, clipped to .01 before SGD",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=lambda rate: optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(rate)),
            rates=(0.1,),
        ),
        grips,
        edited(
            grips,
            "policy of grips, spreads of e^-5, momentum",
            "exploding_gradient",
            "learning_rate",
            "bad_start",
            "nonfinite",
            "saturated_units",
            fill={"log_spread": -5.0},
            optimizer=momentum,
            rates=(1e-3,),
        ),
        edited(grips, "policy of grips, spreads of e^-3", fill={"log_spread": -3.0}),
        edited(
            grips,
            "policy of grips, last layer times 30",
            "saturated_units",
            "vanishing_gradient",
            "bad_start",
            "learning_rate",
            scale={"motors/kernel": 30.0},
            where="motors",
        ),
    ]


def _likenesses() -> list[Network]:
    faces = structures.likened("triplets of faces")
    return [
        faces,
        edited(
            faces,
            "triplets of faces, Adam at .1",
            "learning_rate",
            "dead_units",
            "rank_collapse",
            "does_not_learn",
            "exploding_gradient",
            rates=(0.1,),
        ),
        edited(
            faces,
            "triplets of faces, kernels times .1, momentum",
            "vanishing_gradient",
            "rank_collapse",
            "mean_collapse",
            "does_not_learn",
            "learning_rate",
            scale={"w$": 0.1},
            optimizer=momentum,
            rates=(0.01,),
        ),
    ]


def _densities() -> list[Network]:
    waves = structures.denoised("diffusion of waves")
    ribbons = structures.flowed("flow of a ribbon")
    return [
        waves,
        edited(
            waves,
            "diffusion of waves, samples from 0 to 255",
            "bad_start",
            "learning_rate",
            "mean_collapse",
            "does_not_learn",
            "rank_collapse",
            task=measured(structures.noises, {0: (128.0, 50.0)}),
            where="into",
        ),
        edited(
            waves,
            "diffusion of waves, Adam's epsilon of .1",
            "blind_optimizer",
            "learning_rate",
            "does_not_learn",
            optimizer=lambda rate: optax.adam(rate, eps=0.1),
            rates=(1e-3,),
        ),
        ribbons,
        stored(
            ribbons,
            "flow of a ribbon, float16",
            "nonfinite",
            "underflow",
            "blind_optimizer",
            dtype=jnp.float16,
        ),
    ]
