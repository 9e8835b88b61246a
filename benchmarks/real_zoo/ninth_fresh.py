"""Houses, baskets and loads, pictures, bags and waves, and what is done to their networks."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import commerce, sightings
from benchmarks.real_zoo.network import Network, edited


def ninth_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    return [*_commerce(), *_sightings()]


def _commerce() -> list[Network]:
    prices = commerce.houses("house prices")
    clicked = commerce.ranker("ListNet")
    items = commerce.baskets("item vectors")
    drivers = commerce.steering("cloned driver")
    loads = commerce.beats("N-BEATS 3")
    return [
        prices,
        edited(
            prices,
            "house prices, decay of 1",
            optimizer=lambda rate: optax.adamw(rate, weight_decay=1.0),
        ),
        commerce.houses(
            "house prices, [n, 1] - [n]",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            flat=False,
            twin=prices.name,
        ),
        commerce.houses(
            "house prices, dollars",
            "bad_start",
            "learning_rate",
            "exploding_gradient",
            "does_not_learn",
            unit=(1.8e5, 8e4),
            twin=prices.name,
        ),
        clicked,
        commerce.ranker(
            "ListNet, a sigmoid on scores",
            "does_not_learn",
            "vanishing_gradient",
            "saturated_units",
            last=jax.nn.sigmoid,
            twin=clicked.name,
        ),
        commerce.ranker(
            "ListNet 8, sigmoid, SGD at .1",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            depth=7,
            activation=jax.nn.sigmoid,
            optimizer=optax.sgd,
            rates=(0.1,),
            twin=clicked.name,
        ),
        items,
        commerce.baskets("item vectors, those beside at 0", other=0.0, twin=items.name),
        commerce.baskets(
            "item vectors, all at 0",
            "zero_gradient",
            "mean_collapse",
            "vanishing_gradient",
            spread=0.0,
            other=0.0,
            twin=items.name,
        ),
        commerce.baskets(
            "item vectors, SGD at .025, means of pairs",
            "learning_rate",
            "vanishing_gradient",
            "does_not_learn",
            spread=0.018,
            other=0.0,
            optimizer=optax.sgd,
            rates=(0.025,),
            twin=items.name,
        ),
        drivers,
        commerce.steering(
            "cloned driver, degrees, tanh",
            "bad_start",
            "does_not_learn",
            "saturated_units",
            "exploding_gradient",
            "vanishing_gradient",
            degrees=20.0,
            bound=jnp.tanh,
            twin=drivers.name,
        ),
        commerce.steering(
            "cloned driver, log spread of -6",
            "bad_start",
            "exploding_gradient",
            "does_not_learn",
            "learning_rate",
            spread=-6.0,
            twin=drivers.name,
        ),
        loads,
        commerce.beats(
            "N-BEATS 3, megawatts",
            "bad_start",
            "exploding_gradient",
            "mean_collapse",
            "rank_collapse",
            unit=(5200.0, 60.0),
            twin=loads.name,
        ),
        commerce.beats(
            "N-BEATS 3, float16, megawatts",
            "nonfinite",
            "exploding_gradient",
            "bad_start",
            unit=(5200.0, 900.0),
            dtype=jnp.float16,
            twin=loads.name,
        ),
        edited(
            loads,
            "N-BEATS 3, eps of 1",
            optimizer=lambda rate: optax.adam(rate, eps=1.0),
        ),
    ]


def _sightings() -> list[Network]:
    pictures = sightings.sharper("super-resolution 4")
    clouds = sightings.rain("rain ConvLSTM")
    shapes = sightings.outlines("signed distances")
    bags = sightings.slides("bags of patches")
    waves = sightings.picker("phase picker")
    atoms = sightings.compounds("isomorphism network 2")
    return [
        pictures,
        edited(
            pictures,
            "super-resolution 4, kernels of .001, SGD at 1e-4",
            "vanishing_gradient",
            "mean_collapse",
            "learning_rate",
            "does_not_learn",
            scale={"kernel": 0.01},
            optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
            rates=(1e-4,),
        ),
        edited(pictures, "super-resolution 4, kernels x .05", scale={"kernel": 0.05}),
        clouds,
        sightings.rain(
            "rain ConvLSTM, bytes, a sigmoid",
            "saturated_units",
            "mean_collapse",
            "does_not_learn",
            "bad_start",
            "vanishing_gradient",
            light=255.0,
            last=jax.nn.sigmoid,
            twin=clouds.name,
        ),
        shapes,
        sightings.outlines("signed distances, codes at 0", codes=0.0, twin=shapes.name),
        sightings.outlines(
            "signed distances, last bias 1",
            "zero_gradient",
            "saturated_units",
            "dead_units",
            bias=1.0,
            last=0.1,
            twin=shapes.name,
        ),
        bags,
        sightings.slides(
            "bags of patches, attention over bags",
            "does_not_learn",
            "vanishing_gradient",
            axis=0,
            twin=bags.name,
        ),
        sightings.slides("bags of patches, bytes", raw=True, twin=bags.name),
        waves,
        sightings.picker(
            "phase picker, Dice of masks",
            "zero_gradient",
            "does_not_learn",
            dice="masks",
            twin=waves.name,
        ),
        sightings.picker(
            "phase picker, a ReLU on logits",
            "does_not_learn",
            "dead_units",
            "zero_gradient",
            last=jax.nn.relu,
            twin=waves.name,
        ),
        atoms,
        sightings.compounds(
            "isomorphism network 8, no norms",
            "exploding_gradient",
            "bad_start",
            "rank_collapse",
            depth=8,
            norm=False,
            twin=atoms.name,
        ),
    ]
