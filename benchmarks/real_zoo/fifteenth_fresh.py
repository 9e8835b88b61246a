"""Networks that learn, and the same with gradients that vanish, explode or stop."""

import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.real_zoo import fifteenth_courses as courses
from benchmarks.real_zoo import fifteenth_models as models
from benchmarks.real_zoo import fifteenth_pictures as pictures
from benchmarks.real_zoo import fifteenth_tokens as tokens
from benchmarks.real_zoo.fifteenth_tables import plain_networks
from benchmarks.real_zoo.fourteenth_fresh import ALIKE
from benchmarks.real_zoo.fourteenth_tables import DEAD, FULL, LARGE, SMALL
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.twelfth_tables import beside

SHUT = ("saturated_units", "vanishing_gradient", "memory", "zero_gradient", "mean_collapse")


def fifteenth_fresh_networks() -> list[Network]:
    """Healthy networks, and sick ones."""
    return [*plain_networks(), *other_networks()]


def other_networks() -> list[Network]:
    """Those that aren't plain MLPs."""
    return [*_tokens(), *_mosaics(), *_bells(), *_glaciers(), *_equations(), *_models()]


def _tokens() -> list[Network]:
    menus = tokens.ordered("decoder of menus")
    recipes = tokens.cooked("encoder of recipes")
    return [
        menus,
        edited(
            menus,
            "decoder of menus, queries and keys times 60",
            "saturated_attention",
            "saturated_units",
            "bad_start",
            "exploding_gradient",
            "vanishing_gradient",
            scale={"attention_./(query|key)/kernel": 60.0},
            where="attention|query|key",
        ),
        beside(tokens.ordered("decoder of menus, LayerScale of 1e-4", scale=1e-4), menus),
        recipes,
        beside(
            tokens.cooked("encoder of recipes, eight blocks without skips", depth=8, skip=False),
            recipes,
            *ALIKE,
        ),
    ]


def _mosaics() -> list[Network]:
    tiles = pictures.tiled("ViT of mosaics")
    mixer = pictures.laid("mixer of mosaics")
    resnet = pictures.residual("ResNet of mosaics")
    return [
        tiles,
        edited(
            beside(pictures.tiled("", depth=6, norm=False), tiles),
            "ViT of mosaics, six blocks without norms, kernels times 4",
            "exploding_gradient",
            "saturated_attention",
            "bad_start",
            "saturated_units",
            "token_collapse",
            scale={"(attention|up|down).*kernel": 4.0},
        ),
        mixer,
        edited(
            mixer,
            "mixer of mosaics, biases of -30",
            *DEAD,
            fill={"(tokens|channels)/bias": -30.0},
            where="tokens|channels",
        ),
        edited(
            mixer,
            "mixer of mosaics, one dead block",
            fill={"blocks/1/(tokens|channels)/bias": -30.0},
        ),
        resnet,
        edited(
            beside(pictures.residual("", blocks=8, norm=False), resnet),
            "ResNet of mosaics, eight blocks without norms, kernels times 3",
            *LARGE,
            scale={"conv.*kernel": 3.0},
        ),
        edited(
            resnet,
            "ResNet of mosaics, blocks that add nothing yet",
            fill={"norm_._b/scale": 0.0},
        ),
    ]


def _bells() -> list[Network]:
    bells = pictures.rung("convolutions of bells")
    return [
        bells,
        edited(
            beside(pictures.rung("", depth=12, act=jnp.tanh), bells),
            "convolutions of bells, 12 layers of tanh, kernels over 2",
            *SMALL,
            scale={"filters/.*weight": 0.5},
        ),
    ]


def _glaciers() -> list[Network]:
    lstm = courses.frozen("LSTM of glaciers")
    lstm = dataclasses.replace(edited(lstm, lstm.name, fill={"hf/bias": 3.0}), twin=None)
    gru = courses.thawed("GRU of glaciers")
    rnn = courses.rolled("RNN of glaciers")
    return [
        lstm,
        edited(
            lstm,
            "LSTM of glaciers, input gates shut",
            *SHUT,
            fill={"hi/bias": -20.0},
            where="cell",
        ),
        edited(
            lstm,
            "LSTM of glaciers, forget gates shut",
            *SHUT,
            fill={"hf/bias": -12.0},
            where="cell",
        ),
        gru,
        rnn,
        edited(
            rnn,
            "RNN of glaciers, states times 4",
            "exploding_gradient",
            "saturated_units",
            "bad_start",
            "memory",
            "vanishing_gradient",
            scale={"states": 4.0},
            where="states",
        ),
    ]


def _equations() -> list[Network]:
    heat = courses.heated("equation of heat")
    foxes = courses.hunted("neural ODE of foxes")
    looms = courses.wound("equilibrium of looms")
    return [
        heat,
        edited(
            heat,
            "equation of heat, kernels times 8",
            *FULL,
            "nonfinite",
            scale={"w$": 8.0},
        ),
        foxes,
        edited(
            foxes,
            "neural ODE of foxes, dead units",
            *DEAD,
            fill={"field/[01]/b": -12.0},
            where="field",
        ),
        looms,
        edited(
            looms,
            "equilibrium of looms, kernels of inputs times 60",
            *FULL,
            "mean_collapse",
            scale={"inputs/w": 60.0},
            where="inputs",
        ),
        edited(
            looms,
            "equilibrium of looms, states times 12",
            "exploding_gradient",
            "saturated_units",
            "bad_start",
            "vanishing_gradient",
            "rank_collapse",
            scale={"states": 12.0},
            where="states",
        ),
        edited(
            looms,
            "equilibrium of looms, biases of 12",
            "saturated_units",
            "mean_collapse",
            "vanishing_gradient",
            "zero_gradient",
            "rank_collapse",
            "bad_start",
            fill={"inputs/b": 12.0},
            where="inputs",
        ),
    ]


def _models() -> list[Network]:
    shells = models.curled("VAE of shells")
    ferries = models.crossed("actor and critic of ferries")
    villages = models.settled("graph of villages")
    return [
        shells,
        beside(
            models.curled(
                "VAE of shells, 12 layers of sigmoid behind codes",
                decoder=12,
                act=jax.nn.sigmoid,
            ),
            shells,
            *SMALL,
            where="decoder|shell",
        ),
        ferries,
        edited(
            beside(models.crossed("", critic=5), ferries),
            "actor and critic of ferries, kernels of the critic times 7",
            *LARGE,
            scale={"critic/./w": 7.0},
            where="critic",
        ),
        villages,
        beside(
            models.settled("graph of villages, 16 rounds without skips", depth=16, skip=False),
            villages,
            *ALIKE,
        ),
    ]
