"""More networks that learn, and the same with gradients that vanish, explode or stop."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import sixteenth_courses as courses
from benchmarks.real_zoo import sixteenth_models as models
from benchmarks.real_zoo import sixteenth_pictures as pictures
from benchmarks.real_zoo import sixteenth_tokens as tokens
from benchmarks.real_zoo.fifteenth_fresh import SHUT
from benchmarks.real_zoo.fourteenth_fresh import ALIKE
from benchmarks.real_zoo.fourteenth_tables import BLIND, DEAD, FULL, LARGE, SMALL
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.sixteenth_tables import plain_networks
from benchmarks.real_zoo.twelfth_tables import beside


def sixteenth_fresh_networks() -> list[Network]:
    """Healthy networks, and sick ones."""
    return [*plain_networks(), *other_networks()]


def other_networks() -> list[Network]:
    """Healthy networks that aren't plain MLPs, and sick ones."""
    return [*_tokens(), *_pictures(), *_courses(), *_equations(), *_models()]


def _tokens() -> list[Network]:
    bracelets = tokens.strung("decoder of bracelets")
    auctions = tokens.bid("encoder of auctions")
    return [
        bracelets,
        beside(
            tokens.strung("decoder of bracelets, eight blocks without skips", depth=8, skip=False),
            bracelets,
            *ALIKE,
        ),
        edited(
            bracelets,
            "decoder of bracelets, queries and keys times 50",
            "saturated_attention",
            "bad_start",
            "exploding_gradient",
            "saturated_units",
            "vanishing_gradient",
            scale={"attention_./(query|key)/w": 50.0},
            where="attention|query|key",
        ),
        beside(tokens.strung("decoder of bracelets, ReZero", depth=4, gain=0.0), bracelets),
        auctions,
        beside(
            tokens.bid("encoder of auctions, a loss in units of 1e-10", unit=1e-10),
            auctions,
            *BLIND,
        ),
    ]


def _pictures() -> list[Network]:
    scans = pictures.scanned("convolutions of glyphs")
    stamps = pictures.stamped("ResNet of glyphs")
    stains = pictures.stained("autoencoder of stains")
    return [
        scans,
        beside(
            pictures.scanned(
                "convolutions of glyphs, 14 layers of tanh, small kernels",
                depth=14,
                act=jnp.tanh,
                kernel=0.3,
            ),
            scans,
            *SMALL,
        ),
        stamps,
        edited(
            beside(pictures.stamped("", norm=False), stamps),
            "ResNet of glyphs, no norms, kernels of a block times 20",
            *LARGE,
            scale={"conv_1_.*kernel": 20.0},
            where="conv|stem",
        ),
        edited(
            stamps,
            "ResNet of glyphs, one dead block",
            fill={"norm_1_b/bias": -20.0},
        ),
        stains,
        beside(
            pictures.stained(
                "autoencoder of stains, decoder of nine layers of sigmoid",
                decoder=9,
                act=jax.nn.sigmoid,
            ),
            stains,
            *SMALL,
            where="decoder|stain",
        ),
        beside(
            pictures.stained(
                "autoencoder of stains, float16, a loss in units of 1e-5",
                dtype=jnp.float16,
                unit=1e-5,
            ),
            stains,
            "underflow",
            "zero_gradient",
            "blind_optimizer",
            "vanishing_gradient",
        ),
    ]


def _courses() -> list[Network]:
    lstm = courses.stored("LSTM of granaries")
    lstm = dataclasses.replace(edited(lstm, lstm.name, fill={"hf/bias": 6.0}), twin=None)
    rnn = courses.carted("RNN of granaries")
    return [
        lstm,
        edited(
            lstm,
            "LSTM of granaries, output gates shut",
            *SHUT,
            fill={"ho/bias": -16.0},
            where="cell",
        ),
        rnn,
        edited(
            rnn,
            "RNN of granaries, kernels of states times 3",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            "memory",
            scale={"cell/linear_1/w": 3.0},
            where="cell",
        ),
    ]


def _equations() -> list[Network]:
    membranes = courses.pressed("PINN of membranes")
    swings = courses.swung("neural ODE of swings")
    return [
        membranes,
        edited(
            membranes,
            "PINN of membranes, first kernel times 30",
            *FULL,
            scale={"layer_0/kernel": 30.0},
            where="layer",
        ),
        swings,
        edited(
            swings,
            "neural ODE of swings, kernels times 6",
            "exploding_gradient",
            "saturated_units",
            "bad_start",
            "vanishing_gradient",
            scale={"weight": 6.0},
            where="field",
        ),
    ]


def _models() -> list[Network]:
    lookouts = models.watched("graph of lookouts", unused=True)
    drones = models.flown("actor and critic of drones")
    voices = models.heard("contrast of voices", steps=2000, rates=(1e-4, 2e-4))
    return [
        lookouts,
        beside(
            models.watched("graph of lookouts, 16 rounds of neighbors alone", depth=16, own=False),
            lookouts,
            *ALIKE,
        ),
        drones,
        edited(
            drones,
            "actor and critic of drones, biases of the trunk of -8",
            *DEAD,
            fill={"trunk/bias": -8.0},
            where="trunk|first",
        ),
        edited(
            drones,
            "actor and critic of drones, Adam's epsilon of 1",
            *BLIND,
            optimizer=lambda rate: optax.adam(rate, eps=1.0),
        ),
        beside(models.flown("actor and critic of drones, frozen layer", frozen=True), drones),
        voices,
        beside(
            models.heard(
                "contrast of voices, bfloat16",
                dtype=jnp.bfloat16,
                steps=2000,
                rates=(1e-4, 2e-4),
            ),
            voices,
            "lost_updates",
            "underflow",
        ),
    ]
