"""Networks with right code, and what people said they had done to such networks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import twelfth_others as others
from benchmarks.real_zoo import twelfth_structures as structures
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import measured, redrawn, stored
from benchmarks.real_zoo.twelfth_tables import beside, momentum, plain_networks


def twelfth_fresh_networks() -> list[Network]:
    """Healthy networks, and the same as people said that they didn't learn."""
    kinds = [*_sounds(), *_pictures(), *_graphs(), *_codes(), *_choices()]
    return [*plain_networks(), *kinds]


def _alike(key: Any, shape: Any) -> Any:
    """Experts that all are as one."""
    return jnp.broadcast_to(jax.random.normal(key, shape[1:]) * (2 / shape[1]) ** 0.5, shape)


def _sounds() -> list[Network]:
    melodies = others.hummed("decoder of melodies")
    spindles = others.slept("U-Net of spindles")
    alarms = others.rung("LSTM of alarms")
    tones = others.toned("state space of tones")
    return [
        melodies,
        edited(
            melodies,
            "decoder of melodies, momentum at .03",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            optimizer=momentum,
            rates=(0.03,),
        ),
        edited(
            melodies,
            "decoder of melodies, AdamW at .04",
            "learning_rate",
            "does_not_learn",
            "exploding_gradient",
            "dead_units",
            optimizer=optax.adamw,
            rates=(0.04,),
        ),
        spindles,
        edited(
            spindles,
            "U-Net of spindles, in volts",
            "bad_start",
            "mean_collapse",
            "vanishing_gradient",
            "rank_collapse",
            "does_not_learn",
            task=measured(others.spindles, {0: (0.0, 2e-5)}),
        ),
        alarms,
        edited(
            alarms,
            "LSTM of alarms, gates of forgetting at -4",
            "memory",
            "vanishing_gradient",
            "mean_collapse",
            "does_not_learn",
            fill={"bias/forget": -4.0},
        ),
        edited(
            alarms,
            "LSTM of alarms, gates of forgetting at 4",
            fill={"bias/forget": 4.0},
        ),
        tones,
        edited(
            tones,
            "state space of tones, steps of e^-12",
            "memory",
            "vanishing_gradient",
            "mean_collapse",
            "bad_start",
            "does_not_learn",
            fill={"log_step": -12.0},
            where="log_step|into|log_real|turn",
        ),
    ]


def _pictures() -> list[Network]:
    clocks = others.pointed("ViT of clocks")
    plates = others.scratched("ResNet of plates")
    growths = structures.grown("cells that grow")
    return [
        clocks,
        edited(
            clocks,
            "ViT of clocks, sizes of 1e-6",
            "zero_gradient",
            "vanishing_gradient",
            fill={"size_": 1e-6},
        ),
        edited(
            clocks,
            "ViT of clocks, sizes of 1e-6, momentum at 1e-3",
            "vanishing_gradient",
            "learning_rate",
            "mean_collapse",
            "zero_gradient",
            "does_not_learn",
            fill={"size_": 1e-6},
            optimizer=momentum,
            rates=(1e-3,),
        ),
        plates,
        beside(
            others.scratched(
                "ResNet of plates, 10 blocks, no norms, momentum",
                blocks=10,
                norms=False,
                optimizer=momentum,
                rates=(0.1,),
            ),
            plates,
            "exploding_gradient",
            "bad_start",
            "learning_rate",
        ),
        edited(
            plates,
            "ResNet of plates, Adam's epsilon of .1",
            "blind_optimizer",
            "learning_rate",
            "does_not_learn",
            optimizer=lambda rate: optax.adam(rate, eps=0.1),
            rates=(1e-3,),
        ),
        growths,
        redrawn(
            growths,
            "cells that grow, He's kernels in both",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            pattern="change.*kernel",
            draw=lambda key, shape: jax.random.normal(key, shape) * (2 / shape[2]) ** 0.5,
            where="change|look",
        ),
    ]


def _graphs() -> list[Network]:
    circles = others.befriended("graph of circles")
    facts = structures.known("facts by products")
    return [
        circles,
        beside(
            others.befriended("graph of circles, 10 layers of means", others.Circles(10, False)),
            circles,
            "token_collapse",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
        ),
        beside(
            others.befriended("graph of circles, 8 layers of sums", others.Circles(8, True)),
            circles,
            "exploding_gradient",
            "token_collapse",
            "bad_start",
            "learning_rate",
        ),
        facts,
        edited(
            facts,
            "facts by products, vectors of 5e-4, Adagrad at .01",
            "vanishing_gradient",
            "zero_gradient",
            "mean_collapse",
            "learning_rate",
            "does_not_learn",
            scale={"things|relations": 1e-3},
            optimizer=optax.adagrad,
            rates=(0.01,),
        ),
        edited(
            facts,
            "facts by products, vectors of .05, SGD",
            "vanishing_gradient",
            "mean_collapse",
            "learning_rate",
            "does_not_learn",
            scale={"things|relations": 0.1},
            optimizer=optax.sgd,
            rates=(0.1, 1.0),
        ),
    ]


def _codes() -> list[Network]:
    strokes = structures.drawn("VAE of strokes")
    captions = structures.captioned("captions of things")
    atoms = structures.coded("shrunken codes")
    chains = structures.linked("yield of chains")
    return [
        strokes,
        stored(
            strokes,
            "VAE of strokes, float16",
            "nonfinite",
            "underflow",
            "blind_optimizer",
            dtype=jnp.float16,
        ),
        beside(
            structures.drawn("VAE of strokes, divergence summed, error meant", weight=1.0),
            strokes,
            "mean_collapse",
            "does_not_learn",
            "vanishing_gradient",
        ),
        captions,
        edited(
            captions,
            "captions of things, bare cosines",
            "bad_start",
            "learning_rate",
            "does_not_learn",
            "mean_collapse",
            fill={"log_scale": 0.0},
            where="log_scale",
        ),
        atoms,
        edited(
            atoms,
            "shrunken codes, all below 5",
            "dead_units",
            "zero_gradient",
            "mean_collapse",
            fill={"least": 5.0},
            where="least|back|into",
        ),
        chains,
        edited(
            chains,
            "yield of chains, all links at 1",
            "exploding_gradient",
            "bad_start",
            "learning_rate",
            fill={"alpha": 1.0},
        ),
        edited(
            chains,
            "yield of chains, all links at .1",
            fill={"alpha": 0.1},
        ),
    ]


def _choices() -> list[Network]:
    rovers = structures.driven("ways of a rover")
    regimes = structures.governed("experts of regimes")
    return [
        rovers,
        beside(
            structures.driven(
                "ways of a rover, returns in hundreds",
                unit=300.0,
                task=measured(structures.rovers, {2: (500.0, 300.0)}),
            ),
            rovers,
            "bad_start",
            "learning_rate",
            "mean_collapse",
            "exploding_gradient",
            "does_not_learn",
            where="value|trunk",
        ),
        regimes,
        edited(
            redrawn(
                regimes,
                "experts of regimes, copies of one",
                pattern="experts_(into|out)",
                draw=_alike,
            ),
            "experts of regimes, copies of one, router at 0",
            "zero_gradient",
            "rank_collapse",
            "mean_collapse",
            "does_not_learn",
            fill={"router": 0.0},
            where="router|experts",
        ),
        edited(
            regimes,
            "experts of regimes, router at 0",
            fill={"router": 0.0},
        ),
    ]
