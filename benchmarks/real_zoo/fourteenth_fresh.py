"""Networks that learn, and the same with gradients that vanish, explode or stop."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import fourteenth_others as others
from benchmarks.real_zoo import fourteenth_relations as relations
from benchmarks.real_zoo import fourteenth_structures as structures
from benchmarks.real_zoo.fourteenth_mlps import lecun, orthogonal
from benchmarks.real_zoo.fourteenth_tables import BLIND, DEAD, FULL, LARGE, SMALL, plain_networks
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.twelfth_tables import beside

ALIKE = ("token_collapse", "rank_collapse", "vanishing_gradient", "mean_collapse", "bad_start")


def fourteenth_fresh_networks() -> list[Network]:
    """Healthy networks, and sick ones."""
    tokens = [*_canons(), *_sentences()]
    pictures = [*_visions(), *_convolutions()]
    models = [*_equations(), *_codes(), *_decisions(), *_relations()]
    return [*plain_networks(), *tokens, *pictures, *_rivers(), *models]


def _canons() -> list[Network]:
    canons = others.sung("decoder of canons")
    return [
        canons,
        edited(
            canons,
            "decoder of canons, queries and keys times 20",
            "saturated_attention",
            "saturated_units",
            "bad_start",
            "exploding_gradient",
            "vanishing_gradient",
            scale={"attention_./(query|key)/kernel": 20.0},
            where="attention|query|key",
        ),
        edited(
            canons,
            "decoder of canons, last kernel times 100",
            "bad_start",
            "exploding_gradient",
            "saturated_units",
            scale={"next/kernel": 100.0},
            where="next",
        ),
        beside(
            others.sung("decoder of canons, eight bare blocks", depth=8, skip=False, norm=False),
            canons,
            *ALIKE,
        ),
        beside(others.sung("decoder of canons, gains from 0", depth=4, gain=True), canons),
        beside(others.sung("decoder of canons, in bfloat16", dtype=jnp.bfloat16), canons),
    ]


def _sentences() -> list[Network]:
    sentences = others.read("encoder of sentences")
    return [
        sentences,
        beside(
            others.read("encoder of sentences, 20 blocks", depth=20),
            sentences,
            "vanishing_gradient",
            "exploding_gradient",
            "token_collapse",
            "rank_collapse",
            "mean_collapse",
        ),
        edited(
            sentences,
            "encoder of sentences, embedding of millionths",
            "vanishing_gradient",
            "bad_start",
            "mean_collapse",
            "token_collapse",
            "exploding_gradient",
            scale={"words/embedding": 1e-6},
        ),
    ]


def _visions() -> list[Network]:
    fabrics = others.woven("ViT of fabrics")
    mixer = others.mixed("mixer of fabrics")
    return [
        fabrics,
        beside(
            others.woven("ViT of fabrics, ten blocks without skips", depth=10, skip=False),
            fabrics,
            *ALIKE,
        ),
        edited(
            fabrics,
            "ViT of fabrics, kernels of blocks times 30",
            "saturated_attention",
            "saturated_units",
            "bad_start",
            "exploding_gradient",
            "vanishing_gradient",
            scale={"blocks/.*weight": 30.0},
            where="blocks|attention|mlp|proj",
        ),
        edited(
            fabrics,
            "ViT of fabrics, one dead MLP",
            fill={"blocks/1/mlp/layers/0/bias": -30.0},
        ),
        edited(
            fabrics,
            "ViT of fabrics, gradients of billionths",
            *BLIND,
            optimizer=lambda rate: optax.chain(optax.scale(1e-9), optax.adam(rate)),
        ),
        mixer,
        beside(
            others.mixed(
                "mixer of fabrics, ten layers without skips or norms",
                depth=10,
                skip=False,
                norm=False,
            ),
            mixer,
            *SMALL,
            "token_collapse",
        ),
    ]


def _convolutions() -> list[Network]:
    resnet = others.resnet("ResNet of fabrics")
    filters = others.filtered("filters of fabrics")
    return [
        resnet,
        edited(
            resnet,
            "ResNet of fabrics, biases of norms of -25",
            *DEAD,
            fill={"norm_.*bias": -25.0},
            where="norm",
        ),
        edited(
            resnet,
            "ResNet of fabrics, blocks that start at nothing",
            fill={"norm_._b/scale": 0.0},
        ),
        filters,
        beside(
            others.filtered(
                "filters of fabrics, 14 layers of sigmoid", depth=14, act=jax.nn.sigmoid
            ),
            filters,
            *SMALL,
        ),
    ]


def _rivers() -> list[Network]:
    rivers = others.flowed("LSTM of rivers")
    gru = others.gated("GRU of rivers")
    rnn = others.rolled("RNN of rivers")
    shut = ("saturated_units", "vanishing_gradient", "zero_gradient", "memory", "mean_collapse")
    return [
        rivers,
        edited(
            rivers,
            "LSTM of rivers, output gates shut",
            *shut,
            fill={"ho/bias": -15.0},
            where="cell",
        ),
        edited(rivers, "LSTM of rivers, forget gates open", fill={"hf/bias": 2.0}),
        gru,
        edited(
            gru,
            "GRU of rivers, update gates shut",
            *shut,
            fill={"update/bias": -20.0},
            where="update|new|reset",
        ),
        rnn,
        edited(
            rnn,
            "RNN of rivers, states times 8",
            "exploding_gradient",
            "nonfinite",
            "bad_start",
            "memory",
            scale={"states": 8.0},
            where="states",
        ),
    ]


def _equations() -> list[Network]:
    beams = structures.bent("equation of a beam")
    pendulums = structures.swung("neural ODE of pendulums")
    markets = structures.balanced("equilibrium of markets")
    return [
        beams,
        beside(
            structures.bent("equation of a beam, 16 layers at .3", depth=16, draw=lecun(0.3)),
            beams,
            *SMALL,
        ),
        pendulums,
        edited(
            pendulums,
            "neural ODE of pendulums, kernels times 15",
            *LARGE,
            scale={"field/./w": 15.0},
            where="field",
        ),
        edited(pendulums, "neural ODE of pendulums, field at rest", fill={"field/2": 0.0}),
        markets,
        edited(
            markets,
            "equilibrium of markets, states times 10",
            *LARGE,
            scale={"layer/states": 10.0},
            where="layer",
        ),
    ]


def _codes() -> list[Network]:
    soils = structures.dug("VAE of soils")
    folded = structures.folded("autoencoder of soils")
    return [
        soils,
        beside(
            structures.dug(
                "VAE of soils, ten layers of sigmoid before codes", encoder=10, act=jax.nn.sigmoid
            ),
            soils,
            *SMALL,
            where="encoder|mean|log_variance",
        ),
        edited(soils, "VAE of soils, small codes", scale={"(mean|log_variance)/kernel": 0.1}),
        folded,
        beside(
            structures.folded("autoencoder of soils, 12 layers twice", depth=12, draw=lecun(0.4)),
            folded,
            *SMALL,
        ),
        beside(
            structures.folded(
                "autoencoder of soils, 12 orthogonal layers twice", depth=12, draw=orthogonal()
            ),
            folded,
        ),
    ]


def _decisions() -> list[Network]:
    elevators = structures.lifted("policy and value of elevators")
    pay = relations.paid("dueling pay of routes")
    return [
        elevators,
        beside(
            structures.lifted(
                "policy and value of elevators, 14 layers of sigmoid",
                depth=14,
                act=jax.nn.sigmoid,
            ),
            elevators,
            *SMALL,
            where="value|worth",
        ),
        edited(
            elevators,
            "policy and value of elevators, last layers of .01",
            scale={"(action|worth)/kernel": 0.01},
        ),
        pay,
        edited(
            pay,
            "dueling pay of routes, biases of -20 in the trunk",
            *DEAD,
            fill={"trunk/./b": -20.0},
            where="trunk",
        ),
        edited(
            pay,
            "dueling pay of routes, kernels times 10",
            *LARGE,
            scale={"w$": 10.0},
        ),
    ]


def _relations() -> list[Network]:
    pipes = relations.piped("graph of pipes")
    notes = relations.forged("judge of banknotes")
    robot = relations.grasped("angles of a robot")
    return [
        pipes,
        beside(relations.piped("graph of pipes, 24 rounds", depth=24), pipes, *ALIKE),
        beside(relations.piped("graph of pipes, six residual rounds", depth=6, skip=True), pipes),
        notes,
        edited(
            notes,
            "judge of banknotes, last layer times 300",
            *FULL,
            scale={"layers/3": 300.0},
            where="layers/3",
        ),
        edited(notes, "judge of banknotes, last layer times 5", scale={"layers/3/weight": 5.0}),
        robot,
        edited(
            robot,
            "angles of a robot, the frozen one dead",
            *DEAD,
            fill={"robot/0/b": -30.0},
            where="robot",
        ),
    ]
