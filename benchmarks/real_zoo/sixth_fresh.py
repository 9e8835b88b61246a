"""Ordinary networks with the mistakes that people ask about, none of them seen by any verdict."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import dynamics, images, operators, tables, text, vision
from benchmarks.real_zoo.network import Network, edited


def sixth_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    return [*_images(), *_texts(), *_rows()]


def _images() -> list[Network]:
    stacked = vision.vgg("VGG 4")
    patches = vision.eqx_vit("ViT 3, patches")
    masks = vision.segmenter("U-Net of discs")
    codes = vision.triplet("triplet 2")
    heads = vision.two_heads("two heads 2")
    squeezed = vision.conv_autoencoder("convolutional autoencoder")
    variational = images.vae("VAE 1, GELU", images.VAE(1, "gelu"), steps=400)
    return [
        stacked,
        vision.vgg(
            "VGG 12, small kernels",
            "vanishing_gradient",
            "mean_collapse",
            depth=12,
            scale=0.5,
            twin=stacked.name,
        ),
        vision.vgg(
            "VGG 8, sigmoid",
            "mean_collapse",
            "vanishing_gradient",
            depth=8,
            scale=1.0,
            activation=jax.nn.sigmoid,
            twin=stacked.name,
        ),
        vision.vgg(
            "VGG 4, biases -10",
            "dead_units",
            "zero_gradient",
            bias=-10.0,
            twin=stacked.name,
            where="convolutions",
        ),
        edited(stacked, "VGG 4, Adam at .3", "exploding_gradient", "bad_start", rates=(0.3,)),
        patches,
        vision.eqx_vit(
            "ViT 8, no skips",
            "token_collapse",
            "mean_collapse",
            "vanishing_gradient",
            depth=8,
            skip=False,
            twin=patches.name,
        ),
        vision.eqx_vit(
            "ViT 3, bfloat16, rate 1e-5",
            "lost_updates",
            dtype=jnp.bfloat16,
            rates=(1e-5,),
            twin=patches.name,
        ),
        masks,
        edited(
            masks,
            "U-Net of discs, SGD at 1e-4",
            "blind_optimizer",
            "vanishing_gradient",
            optimizer=optax.sgd,
            rates=(1e-4,),
        ),
        codes,
        dynamics.scaled_loss(codes, "triplet 2, loss x 1e-12", 1e-12, "blind_optimizer"),
        heads,
        vision.two_heads(
            "two heads 2, number in pascals",
            "bad_start",
            unit=(1e5, 4e3),
            twin=heads.name,
        ),
        edited(heads, "two heads 2, kernels 0", "zero_gradient", scale={"kernel": 0.0}),
        squeezed,
        vision.conv_autoencoder(
            "convolutional autoencoder, dead code",
            "dead_units",
            bias=-30.0,
            twin=squeezed.name,
            where="code",
        ),
        variational,
        images.vae(
            "VAE 1, log variance 14",
            images.VAE(1, "gelu", log_variance=14.0),
            "bad_start",
            "exploding_gradient",
            steps=400,
            twin=variational.name,
        ),
    ]


def _texts() -> list[Network]:
    small = text.gpt("GPT 3")
    words = text.tagger("LSTM tagger")
    remembered = text.recall("simple RNN")
    phrases = text.text_cnn("text CNN")
    half = text.text_cnn("text CNN, float16", dtype=jnp.float16, twin=phrases.name)
    rows = text.row_lstm("row LSTM")
    load = text.tcn("TCN 4")
    return [
        small,
        text.gpt("GPT 12", depth=12, width=24, twin=small.name),
        text.gpt(
            "GPT 20, post-LN",
            "token_collapse",
            "mean_collapse",
            "vanishing_gradient",
            depth=20,
            width=24,
            norm="post",
            last=1.0,
            twin=small.name,
        ),
        text.gpt(
            "GPT 3, tied embedding at 20",
            "bad_start",
            spread=20.0,
            twin=small.name,
            where="embed|^norm",
        ),
        text.gpt(
            "GPT 3, queries and keys x40",
            "saturated_attention",
            keys=40.0,
            twin=small.name,
            where="queries_keys",
        ),
        text.gpt(
            "GPT 10, no norm, branches x3",
            "exploding_gradient",
            "bad_start",
            "saturated_attention",
            depth=10,
            norm="none",
            scale=3.0,
            last=1.0,
            twin=small.name,
        ),
        words,
        edited(
            words,
            "LSTM tagger, kernels x60",
            "saturated_units",
            "exploding_gradient",
            scale={"(there|back).*kernel": 60.0},
        ),
        edited(
            words,
            "LSTM tagger, SGD at 1e-3",
            "vanishing_gradient",
            "blind_optimizer",
            optimizer=optax.sgd,
            rates=(1e-3,),
        ),
        remembered,
        text.recall(
            "simple RNN, sigmoid",
            "vanishing_gradient",
            "mean_collapse",
            activation=jax.nn.sigmoid,
            twin=remembered.name,
            where="again",
        ),
        text.recall(
            "simple RNN, kernel at 4",
            "saturated_units",
            "exploding_gradient",
            scale=4.0,
            twin=remembered.name,
            where="again",
        ),
        phrases,
        text.text_cnn(
            "text CNN, biases -8",
            "dead_units",
            "zero_gradient",
            bias=-8.0,
            twin=phrases.name,
            where="phrases",
        ),
        half,
        dynamics.scaled_loss(
            half,
            "text CNN, float16, loss x 1e-6",
            1e-6,
            "underflow",
            "zero_gradient",
            "blind_optimizer",
        ),
        rows,
        text.row_lstm("row LSTM, pixels to 16", unit=16.0, twin=rows.name),
        edited(
            rows,
            "row LSTM, kernels x100",
            "saturated_units",
            "exploding_gradient",
            scale={"gates/w": 100.0},
            where="gates",
        ),
        load,
        text.tcn("TCN 4, in watts", "bad_start", watts=(5e10, 1e10), twin=load.name),
        text.tcn(
            "TCN 12, sigmoid, no skips",
            "mean_collapse",
            "vanishing_gradient",
            depth=12,
            skip=False,
            activation="sigmoid",
            scale=0.5,
            twin=load.name,
        ),
    ]


def _rows() -> list[Network]:
    houses = tables.tabular("tabular 3")
    sets = tables.deep_sets("deep sets 2")
    bound = tables.molecule("molecule 2")
    experts = tables.routed("six experts")
    heat = tables.plate("plate 3")
    values = operators.q_learning("DQN 3", depth=3)
    return [
        houses,
        tables.tabular("tabular 6, GELU", depth=6, activation="gelu", twin=houses.name),
        tables.tabular(
            "tabular 3, raw columns, tanh",
            "saturated_units",
            "mean_collapse",
            "vanishing_gradient",
            raw=True,
            activation="tanh",
            twin=houses.name,
            where="hidden_0",
        ),
        tables.tabular("tabular 3, in rupiah", "bad_start", price=(2e9, 1e9), twin=houses.name),
        edited(
            houses,
            "tabular 3, SGD at 3",
            "exploding_gradient",
            optimizer=optax.sgd,
            rates=(3.0,),
        ),
        sets,
        tables.deep_sets(
            "deep sets 2, sums, in millimeters",
            "bad_start",
            "exploding_gradient",
            total=True,
            unit=1e3,
            twin=sets.name,
        ),
        bound,
        tables.molecule(
            "molecule 12, no skips, sums",
            "exploding_gradient",
            "bad_start",
            "token_collapse",
            depth=12,
            skip=False,
            mean=False,
            twin=bound.name,
        ),
        edited(
            bound,
            "molecule 2, Adam at 1e-6",
            "lost_updates",
            "blind_optimizer",
            rates=(1e-6,),
        ),
        experts,
        tables.routed(
            "six experts, biases -20",
            "dead_units",
            "zero_gradient",
            bias=-20.0,
            twin=experts.name,
            where="experts",
        ),
        heat,
        tables.plate(
            "plate 3, 200 centimeters",
            "saturated_units",
            "exploding_gradient",
            "bad_start",
            side=200.0,
            twin=heat.name,
        ),
        values,
        operators.q_learning(
            "DQN 3, last x 300", "bad_start", depth=3, last=300.0, twin=values.name
        ),
    ]
