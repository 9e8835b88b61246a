"""Ordinary networks in forms that no set before has, and other mistakes that people make."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.real_zoo import dynamics, histories, relations
from benchmarks.real_zoo.network import Network, edited


def seventh_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    return [*_in_time(), *_together()]


def _clipped(rate: float) -> optax.GradientTransformation:
    """Gradients clipped to a norm far below their own."""
    return optax.chain(optax.clip_by_global_norm(1e-4), optax.sgd(rate))


def _cautious(rate: float) -> optax.GradientTransformation:
    """Adam with an epsilon of 1, as once was advised for one network."""
    return optax.adam(rate, eps=1.0)


def _in_time() -> list[Network]:
    spotted = histories.keywords("keywords 4")
    selective = histories.mamba("Mamba 2")
    remembered = histories.irnn("IRNN")
    demand = histories.patch_forecast("PatchTST 2")
    path = histories.controlled("neural CDE")
    swing = histories.oscillator("oscillator 3")
    return [
        spotted,
        histories.keywords(
            "keywords 14, no norms, uniform kernels",
            "vanishing_gradient",
            "mean_collapse",
            depth=14,
            norm=False,
            kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            twin=spotted.name,
        ),
        histories.keywords(
            "keywords 4, no norms, 16-bit samples",
            "bad_start",
            "exploding_gradient",
            norm=False,
            unit=12000.0,
            twin=spotted.name,
        ),
        selective,
        histories.mamba(
            "Mamba 2, steps' bias -20",
            "saturated_units",
            "vanishing_gradient",
            "mean_collapse",
            "blind_optimizer",
            pace=-20.0,
            twin=selective.name,
        ),
        histories.mamba(
            "Mamba 2, forgets at once",
            "saturated_units",
            "vanishing_gradient",
            "zero_gradient",
            "underflow",
            decay=9.0,
            twin=selective.name,
        ),
        remembered,
        histories.irnn(
            "IRNN, 1.3 x identity",
            "exploding_gradient",
            "bad_start",
            again=lambda *_: 1.3 * jnp.eye(32),
            twin=remembered.name,
            where="again",
        ),
        histories.irnn(
            "IRNN, normal kernel at .01",
            "vanishing_gradient",
            "mean_collapse",
            again=nnx.initializers.normal(0.01),
            twin=remembered.name,
            where="again",
        ),
        demand,
        histories.patch_forecast(
            "PatchTST 2, Unix time",
            "mean_collapse",
            "token_collapse",
            "rank_collapse",
            "bad_start",
            "saturated_attention",
            "vanishing_gradient",
            clock=(1.7e9, 289 * 3600.0),
            twin=demand.name,
        ),
        histories.patch_forecast(
            "PatchTST 18, post-LN",
            "token_collapse",
            "mean_collapse",
            "vanishing_gradient",
            depth=18,
            post=True,
            twin=demand.name,
        ),
        dynamics.scaled_loss(demand, "PatchTST 2, loss x 1e-10", 1e-10, "blind_optimizer"),
        path,
        histories.controlled(
            "neural CDE, in seconds",
            "saturated_units",
            "exploding_gradient",
            "bad_start",
            second=3600.0,
            twin=path.name,
        ),
        edited(path, "neural CDE, zeros", "zero_gradient", scale={"": 0.0}),
        swing,
        histories.oscillator(
            "oscillator 3, in millinewtons, SGD",
            "exploding_gradient",
            "bad_start",
            stiffness=2.6e4,
            optimizer=optax.sgd,
            rates=(1e-3,),
            twin=swing.name,
        ),
        histories.oscillator(
            "oscillator 3, standard normal kernels",
            "saturated_units",
            "exploding_gradient",
            "bad_start",
            scale=32**0.5,
            twin=swing.name,
        ),
    ]


def _together() -> list[Network]:
    views = relations.simclr("SimCLR")
    place = relations.keypoint("keypoint")
    members = relations.set_transformer("set transformer")
    people = relations.links("links")
    clicked = relations.clicks("clicks 2")
    acts = relations.actor("expected policy")
    noise = relations.denoiser("FiLM denoiser 3")
    selfish = relations.snn("SNN 8")
    return [
        views,
        relations.simclr(
            "SimCLR, raw products, kernels at 3",
            "bad_start",
            "exploding_gradient",
            scale=3.0,
            normal=False,
            twin=views.name,
        ),
        relations.simclr(
            "SimCLR, counts on a pedestal",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            counts=(3e4, 50.0),
            twin=views.name,
        ),
        place,
        relations.keypoint(
            "keypoint, map x1000",
            "saturated_attention",
            "vanishing_gradient",
            "zero_gradient",
            last=1000.0,
            twin=place.name,
            where="map",
        ),
        edited(
            place,
            "keypoint, momentum at 3",
            "exploding_gradient",
            "bad_start",
            optimizer=dynamics.momentum,
            rates=(3.0,),
        ),
        members,
        relations.set_transformer(
            "set transformer, scores not divided, kernels at 4",
            "saturated_attention",
            keys=4.0,
            divided=False,
            twin=members.name,
            where="query|key",
        ),
        relations.set_transformer(
            "set transformer, bfloat16, momentum at 1e-5",
            "lost_updates",
            "blind_optimizer",
            "vanishing_gradient",
            dtype=jnp.bfloat16,
            optimizer=dynamics.momentum,
            rates=(1e-5,),
            twin=members.name,
        ),
        people,
        relations.links("links, embeddings at 10", "bad_start", spread=10.0, twin=people.name),
        relations.links(
            "links, embeddings at 1e-3, SGD",
            "vanishing_gradient",
            "blind_optimizer",
            "mean_collapse",
            spread=1e-3,
            optimizer=optax.sgd,
            rates=(0.05,),
            twin=people.name,
            where="people",
        ),
        clicked,
        relations.clicks(
            "clicks 6, embeddings at 4",
            "exploding_gradient",
            "bad_start",
            depth=6,
            spread=4.0,
            twin=clicked.name,
        ),
        edited(
            clicked,
            "clicks 2, Adagrad at 1e-4",
            "blind_optimizer",
            "lost_updates",
            optimizer=optax.adagrad,
            rates=(1e-4,),
        ),
        acts,
        relations.actor(
            "expected policy, last gain 100",
            "saturated_attention",
            "bad_start",
            "saturated_units",
            "vanishing_gradient",
            "zero_gradient",
            last=100.0,
            twin=acts.name,
            where="act",
        ),
        edited(
            acts,
            "expected policy, clipped to 1e-4",
            "blind_optimizer",
            "vanishing_gradient",
            optimizer=_clipped,
            rates=(0.1,),
        ),
        noise,
        relations.denoiser(
            "FiLM denoiser 3, a thousand raw steps",
            "bad_start",
            "exploding_gradient",
            raw=True,
            twin=noise.name,
        ),
        relations.denoiser(
            "FiLM denoiser 20, no norms, branches x2",
            "exploding_gradient",
            "bad_start",
            depth=20,
            norm=False,
            gain=2.0,
            twin=noise.name,
        ),
        edited(
            noise,
            "FiLM denoiser 3, epsilon 1",
            "blind_optimizer",
            "vanishing_gradient",
            optimizer=_cautious,
        ),
        selfish,
        relations.snn(
            "SNN 8, constant kernels",
            "rank_collapse",
            "bottleneck",
            w_init=hk.initializers.Constant(0.025),
            twin=selfish.name,
        ),
        relations.snn(
            "SNN 16, softplus",
            "mean_collapse",
            "vanishing_gradient",
            depth=16,
            activation=jax.nn.softplus,
            twin=selfish.name,
        ),
    ]
