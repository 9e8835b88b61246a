"""Networks written down after what the first fresh set taught was in the rules: looked at once."""

import jax
import jax.numpy as jnp

from benchmarks.real_zoo import dynamics, images, sequences
from benchmarks.real_zoo.network import Network, edited


def second_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    swiglu = sequences.language("SwiGLU 3", "SwiGLU transformer", depth=3, mlp="swiglu", width=24)
    in_nnx = sequences.nnx_language("nnx 3, narrow", 3, 24)
    bert = sequences.encoder("BERT 2, post-LN", depth=2, width=32, steps=300)
    vit = images.linen_classifier("ViT 5", images.ViT(5), "ViT")
    mixer = images.linen_classifier("Mixer 5", images.Mixer(5), "MLP-Mixer")
    convnet = images.linen_classifier(
        "ConvNet 2", images.ConvNet(2, 16, "relu"), "ConvNet", batched=False
    )
    resnet = images.linen_classifier("ResNet 8", images.ResNet(4), "ResNet", batched=False)
    unet = images.autoencoder("U-Net, less noise", images.UNet(), "U-Net", noise=0.1, batched=False)
    code = images.autoencoder("autoencoder, ReLU", images.AutoEncoder(2, "relu"), "autoencoder")
    variational = images.vae("VAE, ReLU", images.VAE(1, "relu"))
    lstm = dynamics.recurrent("LSTM, linen", "LSTMCell", steps=300)
    pair = dynamics.actor_critic("actor and critic, ReLU", activation=jax.nn.relu)
    towers = dynamics.two_towers("two towers, warm", cold=0.3)
    pinn = dynamics.pinn("PINN, 2 layers, longer", steps=400)
    ode = dynamics.neural_ode("ODE, odeint", steps=150)
    fixed = dynamics.equilibrium("DEQ, .7", scale=0.7)
    density = dynamics.flow("flow 3", couplings=3)
    gcn = dynamics.graph("GCN 4", depth=4)
    narrow = sequences.nnx_language("nnx 2, wide", 2, 48)
    watched = images.through_frozen(
        "relu critic, outside", images.features("relu"), images.critic((64, 48), 1.4), inside=False
    )
    return [
        swiglu,
        edited(
            swiglu,
            "SwiGLU 3, queries x400",
            "saturated_attention",
            scale={"query/kernel": 400.0},
            where="query|key",
        ),
        edited(swiglu, "SwiGLU 3, logits x300", "bad_start", scale={"head": 300.0}, where="head"),
        in_nnx,
        sequences.nnx_language(
            "nnx 6, no skips", 6, 24, "token_collapse", skip=False, twin="nnx 3, narrow"
        ),
        edited(
            in_nnx,
            "nnx 3, all kernels x15",
            "saturated_attention",
            "bad_start",
            "exploding_gradient",
            scale={"kernel": 15.0},
        ),
        bert,
        sequences.encoder(
            "BERT 28, post-LN",
            "token_collapse",
            twin="BERT 2, post-LN",
            depth=28,
            width=24,
            scanned=True,
            rates=(1e-3,),
            steps=300,
        ),
        edited(bert, "BERT 2, logits x80", "bad_start", scale={"head": 80.0}, where="head"),
        vit,
        edited(
            vit,
            "ViT 5, queries and keys x50",
            "saturated_attention",
            scale={"(query|key)/kernel": 50.0},
            where="query|key",
        ),
        images.linen_classifier("ViT 7", images.ViT(7), "ViT", twin="ViT 5", rates=(1e-3,)),
        mixer,
        images.linen_classifier(
            "Mixer 7, dead, no skips",
            images.Mixer(7, "relu", bias=-50.0, skip=False),
            "MLP-Mixer",
            "dead_units",
            "zero_gradient",
            twin="Mixer 5",
        ),
        convnet,
        images.linen_classifier(
            "ReLU convolutions x16, scale .4",
            images.ConvNet(16, 12, "relu", kernel_init=images.gaussian(0.4)),
            "ConvNet",
            "vanishing_gradient",
            twin="ConvNet 2",
            batched=False,
        ),
        images.linen_classifier(
            "convolutions x3, bias -60",
            images.ConvNet(3, 16, "relu", bias=-60.0),
            "ConvNet",
            "dead_units",
            twin="ConvNet 2",
            where="Conv_0",
            batched=False,
        ),
        images.linen_classifier(
            "sigmoid convolutions x14",
            images.ConvNet(14, 12, "sigmoid"),
            "ConvNet",
            "mean_collapse",
            "vanishing_gradient",
            twin="ConvNet 2",
            batched=False,
        ),
        resnet,
        images.linen_classifier(
            "ResNet 8, BatchNorm's bias -20",
            images.ResNet(4, stem_bias=-20.0),
            "ResNet",
            "dead_units",
            twin="ResNet 8",
            where="stem",
            batched=False,
        ),
        images.linen_classifier(
            "ResNet 8, last gains 0",
            images.ResNet(4, last_gain=0.0),
            "ResNet",
            twin="ResNet 8",
            batched=False,
        ),
        unet,
        images.autoencoder(
            "no U-Net, bottleneck 1e-4",
            images.UNet(bottleneck=images.gaussian(1e-4), deep=3, skip=False),
            "U-Net",
            "vanishing_gradient",
            twin="U-Net, less noise",
            noise=0.1,
            batched=False,
            where="down|middle",
        ),
        code,
        images.autoencoder(
            "autoencoder, tanh x20, scale .4",
            images.AutoEncoder(10, "tanh", images.gaussian(0.4), images.gaussian(0.4)),
            "autoencoder",
            "vanishing_gradient",
            twin="autoencoder, ReLU",
        ),
        variational,
        images.vae(
            "VAE, sigmoid x8",
            images.VAE(8, "sigmoid"),
            "mean_collapse",
            "vanishing_gradient",
            twin="VAE, ReLU",
        ),
        lstm,
        edited(
            lstm,
            "LSTM, linen, kernels x250",
            "saturated_units",
            "exploding_gradient",
            scale={"kernel": 250.0},
        ),
        pair,
        dynamics.actor_critic(
            "actor, ReLU critic x16 at .5",
            "vanishing_gradient",
            depth=16,
            scale=0.5,
            activation=jax.nn.relu,
            twin="actor and critic, ReLU",
            where="value",
        ),
        towers,
        dynamics.two_towers(
            "two towers, one at .1 x8",
            "vanishing_gradient",
            "mean_collapse",
            depth=8,
            scale=0.1,
            cold=0.3,
            twin="two towers, warm",
            where="lower",
        ),
        pinn,
        dynamics.pinn(
            "PINN x14, scale .25",
            "vanishing_gradient",
            depth=14,
            scale=0.25,
            twin="PINN, 2 layers, longer",
            steps=400,
        ),
        ode,
        edited(
            ode,
            "ODE, odeint, kernels x30",
            "exploding_gradient",
            "saturated_units",
            "bad_start",
            scale={"w": 30.0},
        ),
        fixed,
        dynamics.equilibrium(
            "DEQ, x15", "exploding_gradient", "unmeasured", scale=15.0, twin="DEQ, .7"
        ),
        density,
        edited(
            density,
            "flow 3, kernels x15",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            "saturated_units",
            scale={"w": 15.0},
        ),
        gcn,
        dynamics.graph("GCN 30", "token_collapse", depth=30, twin="GCN 4"),
        sequences.language(
            "bfloat16, 2, rate 6e-6",
            "16-bit transformer",
            "lost_updates",
            twin="nnx 2, wide",
            depth=2,
            dtype=jnp.bfloat16,
            rates=(6e-6,),
        ),
        narrow,
        dynamics.scaled_loss(narrow, "nnx 2, wide, loss x 1e-14", 1e-14, "blind_optimizer"),
        watched,
        images.through_frozen(
            "dead critic, bias -25",
            images.features("relu"),
            images.critic((64, 48), bias=-25.0),
            "dead_units",
            "zero_gradient",
            inside=False,
            twin="relu critic, outside",
        ),
    ]
