"""The networks that nothing was fixed on: written down before any of them was examined."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import dynamics, images, sequences
from benchmarks.real_zoo.network import Network, edited
from vanishjax import transforms

LM = "pre-LN language model"


def held_out_networks() -> list[Network]:
    """The other half of the zoo."""
    in_nnx = sequences.nnx_language("nnx 2", 2, 32)
    swiglu = sequences.language("SwiGLU 2", "SwiGLU transformer", depth=2, mlp="swiglu", width=24)
    bert = sequences.encoder("BERT 3", depth=3, width=24, steps=300)
    convnet = images.eqx_convnet("LeNet, SiLU")
    resnet = images.nnx_resnet("ResNet, nnx", 2)
    vit = images.linen_classifier("ViT 4", images.ViT(4), "ViT")
    mixer = images.linen_classifier("Mixer 4", images.Mixer(4), "MLP-Mixer")
    unet = images.autoencoder("U-Net", images.UNet(), "U-Net", noise=0.2, batched=False)
    variational = images.vae("VAE, tanh", images.VAE(2, "tanh"))
    gru = dynamics.eqx_gru("GRU, Equinox", steps=300)
    towers = dynamics.two_towers("two towers, cooler", cold=0.2)
    pair = dynamics.actor_critic("actor and critic, 3", depth=3)
    pinn = dynamics.pinn("PINN, 3 layers", depth=3, steps=300)
    ode = dynamics.neural_ode("ODE, fixed steps", solver="midpoint")
    fixed = dynamics.equilibrium("DEQ, .8", scale=0.8)
    gcn = dynamics.graph("GCN 3", depth=3)
    density = dynamics.flow("flow 6", couplings=6)
    narrow = sequences.encoder(
        "BERT, bfloat16", depth=2, norm="pre", dtype=jnp.bfloat16, rates=(4e-3,), steps=300
    )
    watched = images.through_frozen(
        "relu critic", images.features("relu"), images.critic((64, 64, 48), 1.4), inside=True
    )
    deep = {"scanned": True, "rates": (1e-3,)}
    return [
        in_nnx,
        edited(
            in_nnx,
            "nnx 2, queries and keys x25",
            "saturated_attention",
            scale={"(query|key)/kernel": 25.0},
            where="query|key",
        ),
        sequences.nnx_language(
            "nnx 10, no skips", 10, 32, "token_collapse", skip=False, twin="nnx 2"
        ),
        sequences.eqx_language("Equinox 2", 2, 32),
        sequences.hk_language("Haiku 2", 2, 32),
        edited(
            sequences.hk_language("Haiku 2", 2, 32),
            "Haiku 2, logits x200",
            "bad_start",
            scale={"^linear": 200.0},
            where="^linear",
        ),
        sequences.hk_language(
            "Haiku, bare attention 8", 8, 32, "token_collapse", bare=True, twin="Haiku 2"
        ),
        sequences.language("pre-LN 32", LM, twin="nnx 2", depth=32, width=16, **deep),
        sequences.language(
            "no skips 20",
            LM,
            "token_collapse",
            twin="nnx 2",
            depth=20,
            width=16,
            skip=False,
            **deep,
        ),
        sequences.language(
            "post-LN 3", "post-LN language model", twin="nnx 2", depth=3, width=24, norm="post"
        ),
        sequences.language(
            "post-LN 32",
            "post-LN language model",
            "token_collapse",
            twin="nnx 2",
            depth=32,
            width=16,
            norm="post",
            **deep,
        ),
        swiglu,
        edited(
            swiglu,
            "SwiGLU 2, embeddings 1e-7",
            "exploding_gradient",
            scale={"embed|position": 1e-7},
        ),
        sequences.language(
            "LayerScale 4", "LayerScale", twin="SwiGLU 2", depth=4, width=24, gain=1e-6
        ),
        sequences.language(
            "experts, biases -50",
            "mixture of experts",
            twin="SwiGLU 2",
            depth=2,
            width=24,
            mlp="experts",
            bias=-50.0,
        ),
        bert,
        edited(
            bert,
            "BERT 3, queries and keys x40",
            "saturated_attention",
            scale={"(query|key)/kernel": 40.0},
            where="query|key",
        ),
        vit,
        edited(
            vit,
            "ViT 4, kernels x40",
            "saturated_attention",
            "bad_start",
            "exploding_gradient",
            scale={"kernel": 40.0},
        ),
        images.linen_classifier(
            "ViT 10, no skips",
            images.ViT(10, nn.FrozenDict(skip=False)),
            "ViT",
            "token_collapse",
            "mean_collapse",
            twin="ViT 4",
            rates=(1e-3,),
        ),
        mixer,
        images.linen_classifier(
            "Mixer 3, dead, skips",
            images.Mixer(3, "relu", bias=-40.0),
            "MLP-Mixer",
            "dead_units",
            twin="Mixer 4",
        ),
        convnet,
        images.linen_classifier(
            "convolutions x6, bias -30",
            images.ConvNet(6, 8, "relu", bias=-30.0),
            "ConvNet",
            "dead_units",
            twin="LeNet, SiLU",
            where="Conv_0",
            batched=False,
        ),
        images.linen_classifier(
            "sigmoid convolutions x10",
            images.ConvNet(10, 8, "sigmoid"),
            "ConvNet",
            "mean_collapse",
            "vanishing_gradient",
            twin="LeNet, SiLU",
            batched=False,
        ),
        resnet,
        images.linen_classifier(
            "ResNet 16, no skips",
            images.ResNet(8, skip=False),
            "ResNet",
            "exploding_gradient",
            "mean_collapse",
            twin="ResNet, nnx",
            batched=False,
        ),
        unet,
        images.autoencoder(
            "U-Net, weak bottleneck",
            images.UNet(bottleneck=images.gaussian(1e-8), deep=4),
            "U-Net",
            twin="U-Net",
            noise=0.2,
            batched=False,
        ),
        images.autoencoder(
            "no U-Net, weak bottleneck",
            images.UNet(bottleneck=images.gaussian(1e-3), deep=4, skip=False),
            "U-Net",
            "vanishing_gradient",
            twin="U-Net",
            noise=0.2,
            batched=False,
            where="down|middle",
        ),
        variational,
        images.vae(
            "VAE, sigmoid x10",
            images.VAE(10, "sigmoid"),
            "mean_collapse",
            "vanishing_gradient",
            twin="VAE, tanh",
        ),
        gru,
        dynamics.hk_lstm("LSTM, Haiku", twin="GRU, Equinox", steps=300),
        edited(
            gru,
            "GRU, Equinox, kernels x300",
            "saturated_units",
            "exploding_gradient",
            scale={"weight_(ih|hh)": 300.0},
        ),
        towers,
        dynamics.two_towers(
            "two towers, one at .2 x12",
            "vanishing_gradient",
            "mean_collapse",
            depth=12,
            scale=0.2,
            twin="two towers, cooler",
            where="lower",
        ),
        pair,
        dynamics.actor_critic(
            "actor, sigmoid critic",
            "mean_collapse",
            "vanishing_gradient",
            depth=12,
            activation=jax.nn.sigmoid,
            twin="actor and critic, 3",
            where="value",
        ),
        pinn,
        dynamics.pinn(
            "PINN x10, scale .2",
            "vanishing_gradient",
            depth=10,
            scale=0.2,
            twin="PINN, 3 layers",
            steps=300,
        ),
        ode,
        edited(
            ode,
            "ODE, fixed steps, kernels x60",
            "exploding_gradient",
            "saturated_units",
            "bad_start",
            scale={"w": 60.0},
        ),
        fixed,
        dynamics.equilibrium(
            "DEQ, x10", "exploding_gradient", "unmeasured", scale=10.0, twin="DEQ, .8"
        ),
        gcn,
        dynamics.graph("GCN 12, skips", depth=12, skip=True, twin="GCN 3"),
        dynamics.graph("GCN 40", "token_collapse", depth=40, twin="GCN 3"),
        density,
        edited(
            density,
            "flow 6, kernels x10",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            "saturated_units",
            scale={"w": 10.0},
        ),
        watched,
        images.through_frozen(
            "sigmoid critic x10",
            images.features("sigmoid"),
            images.critic((64,) + (48,) * 10),
            "vanishing_gradient",
            "mean_collapse",
            inside=True,
            twin="relu critic",
            where="critic",
        ),
        images.through_frozen(
            "dead critic, closed over",
            images.features("relu"),
            images.critic((64, 64, 48), bias=-40.0),
            "dead_units",
            "zero_gradient",
            inside=False,
            twin="relu critic",
        ),
        narrow,
        edited(narrow, "BERT, bfloat16, rate 3e-6", "lost_updates", rates=(3e-6,)),
        edited(
            narrow,
            "BERT, bfloat16, Kahan's sum",
            optimizer=lambda rate: optax.chain(optax.adam(rate), transforms.kahan_sum()),
        ),
        dynamics.scaled_loss(vit, "ViT 4, loss x 1e-14", 1e-14, "blind_optimizer"),
        dynamics.scaled_loss(towers, "two towers, loss x 1e4", 1e4),
    ]
