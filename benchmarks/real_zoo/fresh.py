"""Networks written down after all rules and remedies were fixed: looked at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.real_zoo import dynamics, images, sequences
from benchmarks.real_zoo.network import Network, edited

LM = "pre-LN language model"


def fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    plain = sequences.language("pre-LN 3, narrow", LM, depth=3, width=24)
    in_eqx = sequences.eqx_language("Equinox 3", 3, 24)
    bert = sequences.encoder("BERT 2, pre-LN", depth=2, norm="pre", steps=300)
    vit = images.linen_classifier("ViT 3", images.ViT(3), "ViT")
    mixer = images.linen_classifier("Mixer 3", images.Mixer(3), "MLP-Mixer")
    convnet = images.linen_classifier(
        "ConvNet, GELU", images.ConvNet(3, 12, "gelu"), "ConvNet", batched=False
    )
    resnet = images.linen_classifier("ResNet 6", images.ResNet(3), "ResNet", batched=False)
    code = images.autoencoder(
        "autoencoder, GELU", images.AutoEncoder(2, "gelu"), "autoencoder", steps=300
    )
    gru = dynamics.recurrent("GRU, linen", "GRUCell", steps=300)
    pair = dynamics.actor_critic("actor and critic, wide rates", rates=(1e-3, 3e-3))
    pinn = dynamics.pinn("PINN, 4 layers", depth=4, steps=300)
    towers = dynamics.two_towers("two towers, 3", depth=3)
    density = dynamics.flow("flow 5", couplings=5)
    fixed = dynamics.equilibrium("DEQ, .6", scale=0.6)
    ode = dynamics.neural_ode("ODE, midpoint", solver="midpoint", steps=150)
    gcn = dynamics.graph("GCN 2, again", depth=2)
    narrow = sequences.language(
        "bfloat16, 3", "16-bit transformer", depth=3, dtype=jnp.bfloat16, rates=(4e-3,)
    )
    return [
        plain,
        edited(
            plain,
            "pre-LN 3, queries and keys x60",
            "saturated_attention",
            scale={"(query|key)/kernel": 60.0},
            where="query|key",
        ),
        edited(plain, "pre-LN 3, logits x400", "bad_start", scale={"head": 400.0}, where="head"),
        sequences.language(
            "no skips 8",
            LM,
            "token_collapse",
            twin="pre-LN 3, narrow",
            depth=8,
            width=32,
            skip=False,
            rates=(1e-3,),
        ),
        sequences.language(
            "post-LN 24",
            "post-LN language model",
            "token_collapse",
            twin="pre-LN 3, narrow",
            depth=24,
            width=24,
            norm="post",
            scanned=True,
            rates=(1e-3,),
        ),
        in_eqx,
        edited(
            in_eqx,
            "Equinox 3, all weights x20",
            "saturated_attention",
            "bad_start",
            "exploding_gradient",
            scale={"attentions.*weight|ups.*weight|downs.*weight|head.*weight": 20.0},
        ),
        bert,
        edited(bert, "BERT 2, logits x150", "bad_start", scale={"head": 150.0}, where="head"),
        sequences.encoder(
            "BERT 10, no skips",
            "token_collapse",
            twin="BERT 2, pre-LN",
            depth=10,
            norm="pre",
            skip=False,
            scanned=True,
            rates=(1e-3,),
            steps=300,
        ),
        vit,
        edited(
            vit,
            "ViT 3, kernels x25",
            "saturated_attention",
            "bad_start",
            "exploding_gradient",
            scale={"kernel": 25.0},
        ),
        mixer,
        images.linen_classifier(
            "Mixer 5, dead, no skips",
            images.Mixer(5, "relu", bias=-30.0, skip=False),
            "MLP-Mixer",
            "dead_units",
            "zero_gradient",
            twin="Mixer 3",
        ),
        convnet,
        images.linen_classifier(
            "convolutions x4, bias -20",
            images.ConvNet(4, 12, "relu", bias=-20.0),
            "ConvNet",
            "dead_units",
            twin="ConvNet, GELU",
            where="Conv_0",
            batched=False,
        ),
        images.linen_classifier(
            "tanh convolutions x20, scale .3",
            images.ConvNet(20, 12, "tanh", kernel_init=images.gaussian(0.3)),
            "ConvNet",
            "vanishing_gradient",
            twin="ConvNet, GELU",
            batched=False,
        ),
        images.linen_classifier(
            "sigmoid convolutions x6",
            images.ConvNet(6, 12, "sigmoid"),
            "ConvNet",
            "mean_collapse",
            "vanishing_gradient",
            twin="ConvNet, GELU",
            batched=False,
        ),
        resnet,
        images.linen_classifier(
            "ResNet 6, BatchNorm's bias -30",
            images.ResNet(3, stem_bias=-30.0),
            "ResNet",
            "dead_units",
            twin="ResNet 6",
            where="stem",
            batched=False,
        ),
        code,
        images.autoencoder(
            "autoencoder, sigmoid x8",
            images.AutoEncoder(8, "sigmoid"),
            "autoencoder",
            "mean_collapse",
            "vanishing_gradient",
            twin="autoencoder, GELU",
            steps=300,
        ),
        images.autoencoder(
            "autoencoder, ReLU x24, scale .4",
            images.AutoEncoder(12, "relu", images.gaussian(0.4), images.gaussian(0.4)),
            "autoencoder",
            "vanishing_gradient",
            "mean_collapse",
            twin="autoencoder, GELU",
            steps=300,
        ),
        gru,
        edited(
            gru,
            "GRU, linen, kernels x200",
            "saturated_units",
            "exploding_gradient",
            scale={"kernel": 200.0},
        ),
        pair,
        dynamics.actor_critic(
            "actor, critic x14 at .3",
            "vanishing_gradient",
            depth=14,
            scale=0.3,
            rates=(1e-3, 3e-3),
            twin="actor and critic, wide rates",
            where="value",
        ),
        pinn,
        dynamics.pinn(
            "PINN x12, scale .3",
            "vanishing_gradient",
            depth=12,
            scale=0.3,
            twin="PINN, 4 layers",
            steps=300,
        ),
        dynamics.pinn(
            "PINN, sigmoid x6",
            "vanishing_gradient",
            "mean_collapse",
            depth=6,
            activation=jax.nn.sigmoid,
            twin="PINN, 4 layers",
            steps=300,
        ),
        towers,
        dynamics.two_towers(
            "two towers, one at .3 x14",
            "vanishing_gradient",
            "mean_collapse",
            depth=14,
            scale=0.3,
            twin="two towers, 3",
            where="lower",
        ),
        density,
        edited(
            density,
            "flow 5, kernels x12",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            "saturated_units",
            scale={"w": 12.0},
        ),
        fixed,
        dynamics.equilibrium(
            "DEQ, x8", "exploding_gradient", "unmeasured", scale=8.0, twin="DEQ, .6"
        ),
        ode,
        edited(
            ode,
            "ODE, midpoint, kernels x40",
            "exploding_gradient",
            "saturated_units",
            "bad_start",
            scale={"w": 40.0},
        ),
        gcn,
        dynamics.graph("GCN 20", "token_collapse", depth=20, twin="GCN 2, again"),
        narrow,
        edited(narrow, "bfloat16, 3, rate 4e-6", "lost_updates", rates=(4e-6,)),
        dynamics.scaled_loss(plain, "pre-LN 3, loss x 1e-13", 1e-13, "blind_optimizer"),
        images.linen_classifier(
            "ViT 3, LayerScale", images.ViT(3, nn.FrozenDict(gain=1e-5)), "ViT", twin="ViT 3"
        ),
    ]
