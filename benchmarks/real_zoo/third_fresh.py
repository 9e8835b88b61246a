"""Networks of kinds in no set before, written when the rules knew those sets: looked at once."""

import jax

from benchmarks.real_zoo import dynamics, fields, images, sequences, sets, signals, wirings
from benchmarks.real_zoo.network import Network, edited


def third_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    states = signals.state_space("state space 2")
    waves = signals.wavenet("WaveNet 4")
    sines = fields.siren("SIREN 3")
    seen = fields.fourier("Fourier features 3")
    pendulum = fields.hamiltonian("Hamiltonian 2")
    scores = fields.denoiser("denoiser 3")
    points = sets.point_net("point net 3")
    pair = sets.clip("contrast 2")
    critic = fields.wgan_critic("WGAN critic 2")
    graph = sets.graph_attention("GAT 2")
    dense = images.linen_classifier(
        "DenseNet 6",
        wirings.DenseNet(),
        "DenseNet",
    )
    mobile = images.linen_classifier("MobileNet 3", wirings.MobileNet(), "MobileNet", batched=False)
    highway = images.linen_classifier(
        "highway 6",
        wirings.Highway(6),
        "highway",
    )
    largest = wirings.maxout("maxout 4")
    lengths = wirings.weight_norm("weight norm 4")
    lora = wirings.adapters("adapters")
    hyper = wirings.hypernetwork("hypernetwork")
    looks = images.linen_classifier("Perceiver 2", wirings.Perceiver(), "Perceiver", steps=300)
    return [
        states,
        signals.state_space("state space 6", depth=6, twin="state space 2"),
        signals.state_space(
            "state space 12, no skips",
            "vanishing_gradient",
            "mean_collapse",
            depth=12,
            skip=False,
            twin="state space 2",
        ),
        edited(states, "state space 2, head x200", "bad_start", scale={"head": 200.0}),
        waves,
        signals.wavenet("WaveNet 8", depth=8, twin="WaveNet 4"),
        signals.wavenet(
            "WaveNet 16, no skips",
            "mean_collapse",
            "vanishing_gradient",
            "token_collapse",
            depth=16,
            skip=False,
            twin="WaveNet 4",
        ),
        sines,
        fields.siren("SIREN 3, slow waves", frequency=3.0, twin="SIREN 3"),
        edited(
            sines,
            "SIREN 3, kernels x30",
            "exploding_gradient",
            "saturated_units",
            scale={"weight": 30.0},
        ),
        fields.siren(
            "SIREN 8, usual start",
            "exploding_gradient",
            depth=8,
            frequency=30.0,
            usual=True,
            twin="SIREN 3",
        ),
        seen,
        fields.fourier("Fourier features 8", depth=8, twin="Fourier features 3"),
        fields.fourier(
            "Fourier features 16, scale .4",
            "vanishing_gradient",
            depth=16,
            scale=0.4,
            twin="Fourier features 3",
        ),
        pendulum,
        fields.hamiltonian("Hamiltonian 4", depth=4, twin="Hamiltonian 2"),
        fields.hamiltonian(
            "Hamiltonian 12, scale .3",
            "vanishing_gradient",
            "blind_optimizer",
            depth=12,
            scale=0.3,
            twin="Hamiltonian 2",
        ),
        fields.hamiltonian(
            "Hamiltonian 2, kernels x40",
            "saturated_units",
            "exploding_gradient",
            scale=40.0,
            twin="Hamiltonian 2",
        ),
        scores,
        fields.denoiser("denoiser 8", depth=8, twin="denoiser 3"),
        fields.denoiser(
            "denoiser 14, sigmoid, no skips",
            "mean_collapse",
            "vanishing_gradient",
            depth=14,
            activation=jax.nn.sigmoid,
            skip=False,
            twin="denoiser 3",
        ),
        dynamics.scaled_loss(scores, "denoiser 3, loss x 1e-14", 1e-14, "blind_optimizer"),
        points,
        sets.point_net("point net 3, bias -.5", bias=-0.5, twin="point net 3"),
        sets.point_net("point net 3, bias -40", "dead_units", bias=-40.0, twin="point net 3"),
        sets.point_net(
            "point net 14, scale .4", "vanishing_gradient", depth=14, scale=0.4, twin="point net 3"
        ),
        pair,
        sets.clip("contrast 4", depth=4, twin="contrast 2"),
        sets.clip(
            "contrast 2, heat x e^6",
            "bad_start",
            "exploding_gradient",
            log_heat=8.3,
            twin="contrast 2",
        ),
        sets.clip(
            "contrast 14, scale .4",
            "vanishing_gradient",
            "mean_collapse",
            depth=14,
            scale=0.4,
            twin="contrast 2",
        ),
        critic,
        fields.wgan_critic("WGAN critic 4", depth=4, twin="WGAN critic 2"),
        fields.wgan_critic(
            "WGAN critic 10, sigmoid",
            "mean_collapse",
            "vanishing_gradient",
            depth=10,
            scale=1.0,
            activation=jax.nn.sigmoid,
            twin="WGAN critic 2",
        ),
        graph,
        sets.graph_attention("GAT 8, skips", depth=8, skip=True, twin="GAT 2"),
        sets.graph_attention("GAT 24", "token_collapse", depth=24, twin="GAT 2"),
        dense,
        images.linen_classifier("DenseNet 16", wirings.DenseNet(16), "DenseNet", twin="DenseNet 6"),
        images.linen_classifier(
            "DenseNet 6, small", wirings.DenseNet(scale=0.1), "DenseNet", twin="DenseNet 6"
        ),
        edited(dense, "DenseNet 6, head x500", "bad_start", scale={"head": 500.0}, where="head"),
        mobile,
        images.linen_classifier(
            "MobileNet 3, shift -30",
            wirings.MobileNet(shift=-30.0),
            "MobileNet",
            "dead_units",
            batched=False,
            twin="MobileNet 3",
        ),
        highway,
        images.linen_classifier("highway 20", wirings.Highway(20), "highway", twin="highway 6"),
        images.linen_classifier(
            "highway 20, nothing carried",
            wirings.Highway(20, gated=False),
            "highway",
            "vanishing_gradient",
            "mean_collapse",
            twin="highway 6",
        ),
        largest,
        wirings.maxout("maxout 10", depth=10, twin="maxout 4"),
        wirings.maxout(
            "maxout 16, scale .25", "vanishing_gradient", depth=16, scale=0.25, twin="maxout 4"
        ),
        lengths,
        wirings.weight_norm("weight norm 8", depth=8, twin="weight norm 4"),
        wirings.weight_norm(
            "weight norm 14, gain .4",
            "vanishing_gradient",
            depth=14,
            gain=0.4,
            twin="weight norm 4",
        ),
        lora,
        wirings.adapters("adapters, larger", first=4.0, twin="adapters"),
        wirings.adapters("adapters, zeros", "zero_gradient", first=0.0, twin="adapters"),
        hyper,
        wirings.hypernetwork(
            "hypernetwork x60", "bad_start", "exploding_gradient", gain=60.0, twin="hypernetwork"
        ),
        looks,
        images.linen_classifier(
            "Perceiver 4", wirings.Perceiver(4), "Perceiver", steps=300, twin="Perceiver 2"
        ),
        images.linen_classifier(
            "Perceiver 2, looks x100",
            wirings.Perceiver(sharpness=100.0),
            "Perceiver",
            "saturated_attention",
            steps=300,
            twin="Perceiver 2",
        ),
        sequences.language(
            "bfloat16, 2 blocks, rate 5e-6",
            "16-bit transformer",
            "lost_updates",
            twin="bfloat16, 2 blocks",
            dtype=jax.numpy.bfloat16,
            rates=(5e-6,),
        ),
        sequences.language("bfloat16, 2 blocks", "16-bit transformer", dtype=jax.numpy.bfloat16),
    ]
