"""Ordinary networks whose code is right: their starts, optimizers, types and units are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo import tenth_mlps, tenth_others
from benchmarks.real_zoo.network import Network, edited
from benchmarks.real_zoo.tenth_mlps import judged_in, measured, redrawn, stored

# Meters, meters a second, degrees, degrees a second, as a lander's encoders count them.
COUNTS = (
    np.array([32768.0, 21000.0, 32768.0, 32768.0, 18000.0, 32768.0]),
    np.array([4000.0, 5000.0, 2500.0, 2500.0, 1800.0, 2000.0]),
)
# Vehicles a day, kilometers an hour, meters of road.
COUNTED = np.array([2.2e4, 55.0, 850.0]), np.array([7e3, 15.0, 300.0])


def tenth_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them without touching their code."""
    return [*_tables(), *_functions(), *_signals(), *_structures()]


def _tables() -> list[Network]:
    strengths = tenth_mlps.concrete("concrete 6", depth=6)
    reader = tenth_mlps.digits("digits, tanh 3")
    pilot = tenth_mlps.pilot("cloned pilot")
    ratings = tenth_mlps.liked("ratings of books")
    return [
        strengths,
        redrawn(
            strengths,
            "concrete 6, kernels from 0 to 1",
            "exploding_gradient",
            "bad_start",
            "rank_collapse",
            pattern="hidden.*kernel",
            draw=jax.random.uniform,
        ),
        edited(
            strengths,
            "concrete 6, kernels of .02, momentum",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            scale={"hidden.*kernel": 0.1},
            optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
            rates=(1e-2, 3e-2),
        ),
        reader,
        edited(
            reader,
            "digits, tanh 3, clipped to 1e-3",
            "learning_rate",
            "blind_optimizer",
            "does_not_learn",
            optimizer=lambda rate: optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(rate)),
            rates=(0.1, 0.3),
        ),
        pilot,
        edited(
            pilot,
            "cloned pilot, encoders' counts",
            "saturated_units",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            task=measured(tenth_mlps.landings, {0: COUNTS}),
            where="layer",
        ),
        edited(
            pilot,
            "cloned pilot, L2 of .3 in SGD",
            "does_not_learn",
            "mean_collapse",
            "learning_rate",
            "vanishing_gradient",
            optimizer=lambda rate: optax.chain(
                optax.add_decayed_weights(0.3), optax.sgd(rate, momentum=0.9)
            ),
            rates=(0.03, 0.1),
        ),
        ratings,
        stored(
            ratings,
            "ratings of books, bfloat16, embeddings of 4",
            "lost_updates",
            "bad_start",
            "learning_rate",
            dtype=jnp.bfloat16,
            scale={"reader|book": 8.0},
            rates=(4e-4,),
        ),
        edited(
            ratings,
            "ratings of books, embeddings of 1e-3, SGD",
            "vanishing_gradient",
            "mean_collapse",
            "learning_rate",
            "does_not_learn",
            scale={"reader|book": 2e-3},
            optimizer=optax.sgd,
            rates=(0.03, 0.1),
        ),
    ]


def _functions() -> list[Network]:
    beats = tenth_mlps.curves("autoencoder of heart beats")
    heat = tenth_mlps.heated("cooling PINN")
    ground = tenth_mlps.ground("map of bells")
    rings = tenth_mlps.ringed("rings 12")
    return [
        beats,
        edited(
            beats,
            "autoencoder of heart beats, in volts",
            "blind_optimizer",
            "vanishing_gradient",
            "mean_collapse",
            "does_not_learn",
            "bad_start",
            task=measured(tenth_mlps.beats, {0: (0.0, 3e-5)}),
            parts=judged_in(beats, 3e-5),
        ),
        stored(
            beats,
            "autoencoder of heart beats, bfloat16, Adam at 3e-5",
            "lost_updates",
            "learning_rate",
            "blind_optimizer",
            "does_not_learn",
            dtype=jnp.bfloat16,
            rates=(3e-5,),
        ),
        heat,
        edited(
            heat,
            "cooling PINN, kernels x12",
            "saturated_units",
            "bad_start",
            "exploding_gradient",
            scale={"kernel": 12.0},
        ),
        edited(
            heat,
            "cooling PINN, Adam at 4e-6",
            "learning_rate",
            "does_not_learn",
            "blind_optimizer",
            rates=(4e-6,),
        ),
        ground,
        edited(
            ground,
            "map of bells, pixels",
            "dead_units",
            "zero_gradient",
            "saturated_units",
            "mean_collapse",
            task=measured(tenth_mlps.relief, {0: (512.0, 512.0)}),
        ),
        edited(
            ground,
            "map of bells, centimeters over the sea",
            "bad_start",
            "learning_rate",
            "exploding_gradient",
            "mean_collapse",
            task=measured(tenth_mlps.relief, {1: (1.4e5, 2.5e4)}),
            parts=judged_in(ground, 2.5e4),
        ),
        rings,
        edited(
            rings,
            "rings 12, kernels at .3",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            scale={"weight": 0.2},
        ),
        edited(
            rings,
            "rings 12, all at 0",
            "zero_gradient",
            "mean_collapse",
            "dead_units",
            "rank_collapse",
            fill={"weight": 0.0},
        ),
    ]


def _signals() -> list[Network]:
    ways = tenth_others.residual("gated ResNet 3", blocks=3, gate=0.2)
    vision = tenth_others.patches("ViT of textures")
    levels = tenth_others.tank("tank LSTM")
    air = tenth_others.weather("weather TCN")
    cells = tenth_others.segmenter("U-Net of cells")
    return [
        ways,
        edited(
            ways,
            "gated ResNet 3, gates and second kernels at 0",
            "zero_gradient",
            "mean_collapse",
            "vanishing_gradient",
            "does_not_learn",
            fill={"gate|second.*kernel": 0.0},
            where="first|second|gate",
        ),
        edited(
            ways,
            "gated ResNet 3, gates of 100",
            "exploding_gradient",
            "bad_start",
            fill={"gate": 100.0},
        ),
        vision,
        edited(
            vision,
            "ViT of textures, eps of 30",
            "blind_optimizer",
            "learning_rate",
            "does_not_learn",
            optimizer=lambda rate: optax.adam(rate, eps=30.0),
        ),
        edited(
            vision,
            "ViT of textures, a detector's counts",
            "token_collapse",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            "bad_start",
            task=measured(tenth_others.textures, {0: (3e4, 150.0)}),
            where="patch",
        ),
        levels,
        edited(
            levels,
            "tank LSTM, liters",
            "bad_start",
            "learning_rate",
            "exploding_gradient",
            "mean_collapse",
            "does_not_learn",
            task=measured(tenth_others.meters, {1: (5e5, 6e4)}),
            parts=judged_in(levels, 6e4),
        ),
        edited(
            levels,
            "tank LSTM, sensors in kilovolts",
            "mean_collapse",
            "vanishing_gradient",
            "rank_collapse",
            "blind_optimizer",
            task=measured(tenth_others.meters, {0: (0.0, 1e-5)}),
            where="cell",
        ),
        air,
        edited(
            air,
            "weather TCN, decay of 200",
            "does_not_learn",
            "learning_rate",
            "mean_collapse",
            "vanishing_gradient",
            optimizer=lambda rate: optax.adamw(rate, weight_decay=200.0),
        ),
        cells,
        edited(
            cells,
            "U-Net of cells, gains at 0",
            "zero_gradient",
            "dead_units",
            "mean_collapse",
            fill={"norm/scale": 0.0},
            where="norm",
        ),
    ]


def _structures() -> list[Network]:
    signs = tenth_others.counter("counting transformer")
    streets = tenth_others.traffic("traffic graph net")
    words = tenth_others.turned("attentive seq2seq")
    angles = tenth_others.reach("mixture of angles")
    codes = tenth_others.coded("VAE of heart beats")
    pairs = tenth_others.paired("contrast of views")
    return [
        signs,
        stored(
            signs,
            "counting transformer, float16",
            "nonfinite",
            "underflow",
            "blind_optimizer",
            dtype=jnp.float16,
        ),
        edited(
            signs,
            "counting transformer, places x1000",
            "bad_start",
            "mean_collapse",
            "saturated_attention",
            "rank_collapse",
            scale={"places": 1000.0},
            where="places",
        ),
        streets,
        edited(
            streets,
            "traffic graph net, vehicles a day",
            "bad_start",
            "mean_collapse",
            "token_collapse",
            "rank_collapse",
            "exploding_gradient",
            task=measured(tenth_others.roads, {0: COUNTED}),
            where="layers/0",
        ),
        words,
        edited(
            words,
            "attentive seq2seq, words of 1e-3, SGD",
            "vanishing_gradient",
            "mean_collapse",
            "learning_rate",
            "does_not_learn",
            scale={"words|told": 1e-3},
            optimizer=optax.sgd,
            rates=(0.03, 0.1),
        ),
        angles,
        edited(
            angles,
            "mixture of angles, degrees",
            "bad_start",
            "learning_rate",
            "exploding_gradient",
            "does_not_learn",
            task=measured(tenth_others.arms, {1: (40.0, 70.0)}),
            parts=lambda p, batch: (angles.loss(p, batch) - jnp.log(70.0),),
        ),
        edited(
            angles,
            "mixture of angles, Adam at 2",
            "learning_rate",
            "exploding_gradient",
            "does_not_learn",
            "nonfinite",
            rates=(2.0,),
        ),
        codes,
        edited(
            codes,
            "VAE of heart beats, kernels x.02, momentum",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            scale={"kernel": 0.02},
            optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
            rates=(3e-3, 1e-2),
        ),
        pairs,
        edited(
            pairs,
            "contrast of views, log heat of -8",
            "vanishing_gradient",
            "blind_optimizer",
            "does_not_learn",
            "learning_rate",
            fill={"log_heat": -8.0},
            where="heat",
        ),
    ]
