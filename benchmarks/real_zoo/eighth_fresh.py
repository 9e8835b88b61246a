"""What instruments and databases give, taken in as it is, and other mistakes that people make."""

import jax
import jax.numpy as jnp

from benchmarks.real_zoo import databases, instruments, machines
from benchmarks.real_zoo.network import Network, edited


def eighth_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    return [*_instruments(), *_databases()]


def _instruments() -> list[Network]:
    sensors = machines.boiler("sensor GRU")
    shadows = instruments.dense_net("DenseNet 6 of radiographs")
    scans = instruments.scan("edge convolutions 2")
    spectra = instruments.spectra_vae("VAE of spectra")
    waves = instruments.eeg_net("EEGNet")
    landers = machines.critics("twin critics 2")
    flames = machines.flame("kinetics 3")
    return [
        sensors,
        machines.boiler(
            "sensor GRU, pascals and kelvins",
            "mean_collapse",
            "saturated_units",
            "vanishing_gradient",
            "rank_collapse",
            "zero_gradient",
            raw=True,
            twin=sensors.name,
            where="gru",
        ),
        machines.boiler(
            "sensor GRU, update gates at -12",
            "saturated_units",
            "vanishing_gradient",
            "mean_collapse",
            "memory",
            update=-12.0,
            twin=sensors.name,
            where="gru",
        ),
        shadows,
        instruments.dense_net(
            "DenseNet 6 of radiographs, 12-bit pixels, no norms",
            "mean_collapse",
            "bad_start",
            "exploding_gradient",
            "rank_collapse",
            norm=False,
            pixels=(1800.0, 450.0),
            twin=shadows.name,
            where="stem",
        ),
        edited(
            shadows,
            "DenseNet 6 of radiographs, Adam at .3",
            "learning_rate",
            "does_not_learn",
            "exploding_gradient",
            "bad_start",
            rates=(0.3,),
        ),
        scans,
        instruments.scan(
            "edge convolutions 2, on the Earth",
            "mean_collapse",
            "bad_start",
            "exploding_gradient",
            "rank_collapse",
            surveyed=True,
            twin=scans.name,
            where="edges",
        ),
        edited(
            scans,
            "edge convolutions 2, kernels x .002",
            "vanishing_gradient",
            "mean_collapse",
            "does_not_learn",
            scale={"weight": 0.002},
        ),
        spectra,
        instruments.spectra_vae(
            "VAE of spectra, counts over a dark level",
            "mean_collapse",
            "bad_start",
            "exploding_gradient",
            "rank_collapse",
            counts=(600.0, 15.0),
            twin=spectra.name,
            where="encoder_0",
        ),
        instruments.spectra_vae(
            "VAE of spectra, mean error, summed divergence",
            "does_not_learn",
            "mean_collapse",
            "vanishing_gradient",
            summed=False,
            twin=spectra.name,
        ),
        waves,
        instruments.eeg_net(
            "EEGNet, in volts, no norms",
            "mean_collapse",
            "vanishing_gradient",
            "does_not_learn",
            unit=2e-5,
            norm=False,
            twin=waves.name,
            where="in_time",
        ),
        instruments.eeg_net(
            "EEGNet, two softmaxes",
            "does_not_learn",
            "vanishing_gradient",
            "saturated_units",
            shares=True,
            twin=waves.name,
        ),
        landers,
        machines.critics(
            "twin critics 2, meters and radians",
            "mean_collapse",
            "saturated_units",
            "vanishing_gradient",
            raw=True,
            twin=landers.name,
        ),
        machines.critics(
            "twin critics 2, raw returns",
            "bad_start",
            "exploding_gradient",
            "learning_rate",
            "does_not_learn",
            returns=(-1600.0, 400.0),
            twin=landers.name,
        ),
        flames,
        machines.flame(
            "kinetics 3, traces",
            "mean_collapse",
            "bad_start",
            "rank_collapse",
            "exploding_gradient",
            traces=True,
            twin=flames.name,
            where="into",
        ),
        machines.flame(
            "kinetics 14, sigmoid, no skips",
            "vanishing_gradient",
            "mean_collapse",
            "rank_collapse",
            "does_not_learn",
            depth=14,
            skip=False,
            activation=jax.nn.sigmoid,
            twin=flames.name,
        ),
    ]


def _databases() -> list[Network]:
    drivers = databases.claims("tabular ResNet 2")
    events = databases.purchases("event transformer 2")
    payers = databases.accounts("GraphSAGE 2")
    shoppers = databases.retrieval("retrieval")
    patients = databases.additive("additive model")
    shops = databases.temporal_fusion("temporal fusion")
    return [
        drivers,
        databases.claims(
            "tabular ResNet 2, dollars and years",
            "mean_collapse",
            "rank_collapse",
            "bad_start",
            raw=True,
            twin=drivers.name,
            where="into",
        ),
        databases.claims(
            "tabular ResNet 2, dollars and years, a norm first",
            raw=True,
            first=True,
            twin=drivers.name,
        ),
        events,
        databases.purchases(
            "event transformer 2, seconds and cents",
            "mean_collapse",
            "token_collapse",
            "rank_collapse",
            "saturated_attention",
            "vanishing_gradient",
            raw=True,
            twin=events.name,
            where="numbers",
        ),
        databases.purchases(
            "event transformer 2, scores times root of width",
            "saturated_attention",
            "exploding_gradient",
            "vanishing_gradient",
            factor=24**0.5,
            twin=events.name,
            where="projections",
        ),
        databases.purchases("event transformer 2, kinds at .001", spread=1e-3, twin=events.name),
        payers,
        databases.accounts(
            "GraphSAGE 2, euros and days",
            "mean_collapse",
            "token_collapse",
            "rank_collapse",
            "vanishing_gradient",
            raw=True,
            twin=payers.name,
        ),
        databases.accounts(
            "GraphSAGE 8, partners only",
            "token_collapse",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            depth=8,
            own=False,
            twin=payers.name,
        ),
        shoppers,
        databases.retrieval(
            "retrieval, dollars and grams",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            raw=True,
            twin=shoppers.name,
        ),
        databases.retrieval(
            "retrieval, a temperature of 20",
            "does_not_learn",
            "vanishing_gradient",
            "blind_optimizer",
            temperature=20.0,
            twin=shoppers.name,
        ),
        patients,
        databases.additive(
            "additive model, a laboratory's values",
            "mean_collapse",
            "zero_gradient",
            "saturated_units",
            "bad_start",
            "exploding_gradient",
            raw=True,
            twin=patients.name,
            where="column_._0",
        ),
        databases.additive("additive model, heads at 0", last=0.0, twin=patients.name),
        shops,
        databases.temporal_fusion(
            "temporal fusion, bfloat16, Adam at 1e-5",
            "lost_updates",
            "learning_rate",
            "blind_optimizer",
            "does_not_learn",
            dtype=jnp.bfloat16,
            rates=(1e-5,),
            twin=shops.name,
        ),
        databases.temporal_fusion("temporal fusion, gates at -4", gate=-4.0, twin=shops.name),
    ]
