"""The networks that the rules were fixed on."""

import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks.real_zoo import dynamics, images, sequences
from benchmarks.real_zoo.network import Network, edited
from vanishjax import transforms

LM = "pre-LN language model"


def tuning_networks() -> list[Network]:
    """Half of the zoo."""
    plain = sequences.language("pre-LN 2", LM, depth=2)
    bert = sequences.encoder("BERT 2", depth=2, steps=300)
    convnet = images.hk_convnet("LeNet")
    resnet = images.linen_classifier("ResNet", images.ResNet(), "ResNet", batched=False)
    vit = images.linen_classifier("ViT 2", images.ViT(2), "ViT")
    mixer = images.linen_classifier("Mixer 2", images.Mixer(2), "MLP-Mixer")
    code = images.autoencoder("autoencoder", images.AutoEncoder(), "autoencoder")
    variational = images.vae("VAE", images.VAE())
    lstm = dynamics.recurrent("LSTM", "LSTMCell", steps=300)
    pair = dynamics.actor_critic("actor and critic")
    pinn = dynamics.pinn("PINN", steps=300)
    ode = dynamics.neural_ode("ODE, adaptive", steps=150)
    fixed = dynamics.equilibrium("DEQ")
    gcn = dynamics.graph("GCN 2", depth=2)
    density = dynamics.flow("flow 4", couplings=4)
    narrow = sequences.language(
        "bfloat16", "16-bit transformer", depth=2, dtype=jnp.bfloat16, rates=(4e-3,)
    )
    critic = images.critic((64, 48, 48))
    watched = images.through_frozen("tanh critic", images.features("tanh"), critic, inside=True)
    deep = {"scanned": True, "rates": (1e-3,)}
    return [
        plain,
        edited(
            plain,
            "pre-LN 2, queries and keys x30",
            "saturated_attention",
            scale={"(query|key)/kernel": 30.0},
            where="query|key",
        ),
        edited(plain, "pre-LN 2, logits x100", "bad_start", scale={"head": 100.0}, where="head"),
        edited(
            plain,
            "pre-LN 2, embeddings x1e-6",
            "exploding_gradient",
            scale={"embed|position": 1e-6},
        ),
        sequences.language("pre-LN 24", LM, twin="pre-LN 2", depth=24, width=16, **deep),
        sequences.language("pre-LN 3, dead block", LM, twin="pre-LN 2", depth=3, dead=True),
        sequences.language(
            "no skips 12", LM, "token_collapse", twin="pre-LN 2", depth=12, skip=False, **deep
        ),
        sequences.language(
            "bare attention 6",
            "bare attention",
            "token_collapse",
            twin="pre-LN 2",
            depth=6,
            skip=False,
            norm="none",
            mlp=None,
        ),
        sequences.language("ReZero 6", "ReZero", twin="pre-LN 2", depth=6, norm="none", gain=0.0),
        sequences.language(
            "post-LN 4", "post-LN language model", twin="pre-LN 2", norm="post", depth=4
        ),
        sequences.language(
            "post-LN 40",
            "post-LN language model",
            "token_collapse",
            twin="pre-LN 2",
            depth=40,
            width=16,
            norm="post",
            **deep,
        ),
        sequences.language(
            "experts", "mixture of experts", twin="pre-LN 2", depth=2, mlp="experts"
        ),
        bert,
        edited(
            bert,
            "BERT 2, kernels x30",
            "saturated_attention",
            "exploding_gradient",
            "bad_start",
            scale={"kernel": 30.0},
        ),
        vit,
        mixer,
        images.linen_classifier(
            "Mixer 6, dead, no skips",
            images.Mixer(6, "relu", bias=-50.0, skip=False),
            "MLP-Mixer",
            "dead_units",
            twin="Mixer 2",
        ),
        convnet,
        images.hk_convnet("LeNet, bias -50", "dead_units", twin="LeNet", bias=-50.0, where="conv"),
        images.linen_classifier(
            "tanh convolutions x16, scale .2",
            images.ConvNet(16, 8, "tanh", kernel_init=images.gaussian(0.2)),
            "ConvNet",
            "vanishing_gradient",
            twin="LeNet",
            batched=False,
        ),
        resnet,
        images.linen_classifier(
            "ResNet, last gains 0",
            images.ResNet(last_gain=0.0),
            "ResNet",
            twin="ResNet",
            batched=False,
        ),
        images.linen_classifier(
            "ResNet, BatchNorm's bias -50",
            images.ResNet(stem_bias=-50.0),
            "ResNet",
            "dead_units",
            twin="ResNet",
            where="stem",
            batched=False,
        ),
        code,
        images.autoencoder(
            "autoencoder x8, scale .25",
            images.AutoEncoder(8, "tanh", images.gaussian(0.25), images.gaussian(0.25)),
            "autoencoder",
            "vanishing_gradient",
            twin="autoencoder",
        ),
        variational,
        edited(
            variational,
            "VAE, log variance 200",
            "nonfinite",
            "exploding_gradient",
            fill={"log_variance/bias": 200.0},
        ),
        lstm,
        dynamics.recurrent("GRU, 2 layers", "GRUCell", layers=2, twin="LSTM", steps=300),
        edited(
            lstm,
            "LSTM, output gate -40",
            "vanishing_gradient",
            "saturated_units",
            "zero_gradient",
            fill={"/(ho)/bias": -40.0},
        ),
        pair,
        dynamics.actor_critic(
            "actor, deep critic at .25",
            "vanishing_gradient",
            depth=16,
            scale=0.25,
            twin="actor and critic",
            where="value",
        ),
        pinn,
        dynamics.pinn(
            "PINN, sigmoid x8",
            "vanishing_gradient",
            "mean_collapse",
            depth=8,
            activation=jax.nn.sigmoid,
            twin="PINN",
            steps=300,
        ),
        ode,
        edited(
            ode,
            "ODE, kernels x30",
            "exploding_gradient",
            "unmeasured",
            "bad_start",
            "saturated_units",
            "nonfinite",
            scale={"w": 30.0},
        ),
        fixed,
        dynamics.equilibrium("DEQ, x6", "exploding_gradient", "unmeasured", scale=6.0, twin="DEQ"),
        gcn,
        dynamics.graph("GCN 24", "token_collapse", depth=24, twin="GCN 2"),
        density,
        edited(
            density,
            "flow 4, kernels x8",
            "exploding_gradient",
            "bad_start",
            "nonfinite",
            "saturated_units",
            scale={"w": 8.0},
        ),
        watched,
        images.through_frozen(
            "dead critic",
            images.features("relu"),
            images.critic((64, 48, 48), bias=-50.0),
            "dead_units",
            "zero_gradient",
            inside=True,
            twin="tanh critic",
            where="critic",
        ),
        images.through_frozen(
            "saturated critic, closed over",
            images.features("tanh"),
            images.critic((64, 48, 48), scale=300.0),
            "saturated_units",
            "vanishing_gradient",
            "zero_gradient",
            inside=False,
            twin="tanh critic",
        ),
        narrow,
        edited(narrow, "bfloat16, rate 2e-6", "lost_updates", rates=(2e-6,)),
        edited(
            narrow,
            "bfloat16, stochastic rounding",
            optimizer=lambda rate: optax.chain(optax.adam(rate), transforms.stochastic_round()),
        ),
        dynamics.metric("directions", guarded=True),
        dynamics.metric("directions, 0 / 0", "nonfinite", guarded=False, twin="directions"),
        dynamics.scaled_loss(
            code, "autoencoder, loss x 1e-13", 1e-13, "blind_optimizer", optimizer=optax.adam
        ),
        dynamics.two_towers("two towers"),
        images.linen_classifier(
            "ConvNet, momentum",
            images.ConvNet(),
            "ConvNet",
            twin="LeNet",
            batched=False,
            optimizer=functools.partial(optax.sgd, momentum=0.9),
            rates=(0.03, 0.003),
        ),
        edited(vit, "ViT 2, head x300", "bad_start", scale={"head": 300.0}, where="head"),
    ]
