"""Networks that learn, and the same with gradients that vanish, explode or stop."""

import jax.numpy as jnp
import optax

from benchmarks.real_zoo import seventeenth_courses as courses
from benchmarks.real_zoo import seventeenth_models as models
from benchmarks.real_zoo import seventeenth_pictures as pictures
from benchmarks.real_zoo import seventeenth_tokens as tokens
from benchmarks.real_zoo.fifteenth_fresh import SHUT
from benchmarks.real_zoo.fourteenth_fresh import ALIKE
from benchmarks.real_zoo.fourteenth_tables import DEAD, FULL, LARGE, SMALL
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.seventeenth_tables import plain_networks
from benchmarks.real_zoo.tenth_mlps import redrawn
from benchmarks.real_zoo.twelfth_tables import beside, normal


def seventeenth_fresh_networks() -> list[Network]:
    """Healthy networks, and sick ones."""
    return [*plain_networks(), *other_networks()]


def other_networks() -> list[Network]:
    """Those that aren't plain MLPs."""
    return [*_tokens(), *_ladybirds(), *_buoys(), *_equations(), *_codes(), *_pairs()]


def _tokens() -> list[Network]:
    knots = tokens.tied("decoder of knots")
    lanterns = tokens.lit("encoder of lanterns")
    return [
        knots,
        beside(
            tokens.tied("decoder of knots, eight blocks without skips", depth=8, skip=False),
            knots,
            *ALIKE,
        ),
        edited(
            beside(tokens.tied("", depth=6), knots),
            "decoder of knots, six blocks, ReZero",
            fill={"gains": 0.0},
        ),
        lanterns,
        edited(
            lanterns,
            "encoder of lanterns, queries and keys times 25",
            "saturated_attention",
            "saturated_units",
            "exploding_gradient",
            "vanishing_gradient",
            scale={"(query|key)": 25.0},
            where="query|key",
        ),
    ]


def _ladybirds() -> list[Network]:
    spots = pictures.spotted("convolutions of ladybirds")
    resnet = pictures.paired("ResNet of ladybirds")
    vision = pictures.patched("ViT of ladybirds")
    return [
        spots,
        redrawn(
            beside(pictures.spotted("", depth=12, act=jnp.tanh), spots),
            "convolutions of ladybirds, 12 layers of tanh of N(0, .01)",
            *SMALL,
            pattern="filters.*kernel",
            draw=normal(0.01),
        ),
        resnet,
        edited(
            beside(pictures.paired("", blocks=6, norm=False), resnet),
            "ResNet of ladybirds, six blocks without norms, kernels times 5",
            *LARGE,
            scale={"blocks/.*weight": 5.0},
        ),
        edited(
            resnet,
            "ResNet of ladybirds, last norms of blocks at 0",
            fill={"norms/1/weight": 0.0},
        ),
        vision,
        beside(
            pictures.patched(
                "ViT of ladybirds, Adam's epsilon of 10",
                optimizer=lambda rate: optax.adam(rate, eps=10.0),
            ),
            vision,
            "blind_optimizer",
            "vanishing_gradient",
        ),
    ]


def _buoys() -> list[Network]:
    gru = courses.drifted("GRU of buoys")
    rnn = courses.swept("RNN of buoys")
    linear = courses.summed("linear recurrence of buoys")
    return [
        gru,
        redrawn(
            gru,
            "GRU of buoys, update gates that keep the first state",
            *SHUT,
            pattern="cell/bias$",
            draw=lambda _, shape: jnp.where(jnp.arange(shape[0]) // 24 == 1, 16.0, 0.0),
            where="cell",
        ),
        rnn,
        edited(
            rnn,
            "RNN of buoys, states times 1.7",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            scale={"states": 1.7},
            where="states|inputs",
        ),
        linear,
        edited(
            linear,
            "linear recurrence of buoys, decays that forget at once",
            "memory",
            "vanishing_gradient",
            "saturated_units",
            fill={"decay": -7.0},
            where="blocks",
        ),
    ]


def _equations() -> list[Network]:
    skates = courses.skated("neural ODE of skates")
    canals = courses.dug("PINN of canals")
    return [
        skates,
        edited(
            skates,
            "neural ODE of skates, speeds times 40",
            *LARGE,
            scale={"speed": 40.0},
            where="speed",
        ),
        edited(skates, "neural ODE of skates, speeds of 0", fill={"speed": 0.0}),
        canals,
        edited(
            canals,
            "PINN of canals, biases of 7",
            "saturated_units",
            "mean_collapse",
            "vanishing_gradient",
            "rank_collapse",
            "zero_gradient",
            fill={"layers/[0-2]/bias": 7.0},
            where="layers",
        ),
    ]


def _codes() -> list[Network]:
    violets = models.pressed("VAE of violets")
    banners = models.waved("autoencoder of banners")
    lenses = models.focused("hypernetwork of lenses")
    return [
        violets,
        edited(
            violets,
            "VAE of violets, biases of -14 in the encoder",
            *DEAD,
            fill={"encoder.*linear_1/b": -14.0},
            where="encoder",
        ),
        banners,
        edited(
            banners,
            "autoencoder of banners, kernels of the critic times 60",
            *FULL,
            scale={"critic/.*weight": 60.0},
            where="critic",
        ),
        lenses,
        edited(
            lenses,
            "hypernetwork of lenses, kernels that make kernels times 60",
            *LARGE,
            "vanishing_gradient",
            scale={"kernels/kernel": 60.0},
            where="kernels",
        ),
    ]


def _pairs() -> list[Network]:
    hives = models.gathered("graph of hives")
    songs = models.matched("contrast of songs")
    stones = models.curled("actor and critic of stones")
    return [
        hives,
        beside(
            models.gathered("graph of hives, nine rounds of sums", rounds=9),
            hives,
            *LARGE,
            "rank_collapse",
        ),
        songs,
        edited(
            songs,
            "contrast of songs, temperature of e^-8",
            "bad_start",
            "exploding_gradient",
            "saturated_units",
            fill={"log_scale": 8.0},
            where="log_scale|song/2|words/2",
        ),
        stones,
        edited(
            stones,
            "actor and critic of stones, biases of -9 in the critic",
            *DEAD,
            fill={"valued/bias": -9.0},
            where="valued|critic",
        ),
    ]
