"""Networks of kinds in no set before, written without a look at what any verdict says of them."""

import jax
import jax.numpy as jnp

from benchmarks.real_zoo import codes, dynamics, operators, translation
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.network import Network, edited


def fourth_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    translator = translation.translator("translator 1")
    pair = translation.seq2seq("seq2seq")
    linear = translation.linear_attention("linear attention 2")
    rotary = translation.rotary("rotary 2")
    values = operators.q_learning("Q 2")
    radial = operators.radial("radial")
    kan = operators.kan("KAN 2")
    operator = operators.fourier_operator("Fourier operator 2")
    product = operators.deep_operator("DeepONet")
    mixture = operators.mixture("mixture 2")
    quantized = codes.quantized("VQ-VAE")
    made = codes.masked_autoencoder("MADE 1")
    convnext = codes.convnext("ConvNeXt 2")
    tables = codes.recommender("recommender")
    return [
        translator,
        translation.translator(
            "translator 3, branches closed",
            depth=3,
            closed=True,
            rates=(4e-3,),
            twin="translator 1",
        ),
        translation.translator(
            "translator 1, padding at -inf",
            "nonfinite",
            blocked=-float("inf"),
            rates=(4e-3,),
            twin="translator 1",
        ),
        translation.translator(
            "translator 4, no skips",
            "token_collapse",
            "vanishing_gradient",
            "rank_collapse",
            depth=4,
            skip=False,
            rates=(1e-3,),
            twin="translator 1",
        ),
        pair,
        translation.seq2seq("seq2seq, 2 layers", layers=2, twin="seq2seq"),
        edited(
            pair,
            "seq2seq, gates closed",
            "saturated_units",
            "vanishing_gradient",
            "blind_optimizer",
            fill={"coder_0/b": -25.0},
            where="coder_0",
        ),
        edited(
            pair,
            "seq2seq, GRU kernels x100",
            "saturated_units",
            "exploding_gradient",
            scale={"coder_0/w_": 100.0},
            where="coder_0",
        ),
        linear,
        translation.linear_attention("linear attention 4", depth=4, twin="linear attention 2"),
        translation.linear_attention(
            "linear attention, dead features",
            "dead_units",
            "zero_gradient",
            feature=jax.nn.relu,
            bias=-30.0,
            twin="linear attention 2",
            where="query|key",
        ),
        translation.linear_attention(
            "linear attention 6, no skips",
            "token_collapse",
            "vanishing_gradient",
            "rank_collapse",
            depth=6,
            skip=False,
            twin="linear attention 2",
        ),
        rotary,
        translation.rotary("rotary 4, branches closed", depth=4, gain=0.0, twin="rotary 2"),
        translation.rotary(
            "rotary 2, tied head, embedding x150", "bad_start", size=30.0, twin="rotary 2"
        ),
        edited(
            rotary,
            "rotary 2, qkv x100",
            "saturated_attention",
            scale={"qkv": 100.0},
            where="qkv",
        ),
        values,
        operators.q_learning("Q 2, last layer 0", last=0.0, twin="Q 2"),
        operators.q_learning(
            "Q 2, states x 1e-6",
            "mean_collapse",
            "vanishing_gradient",
            "rank_collapse",
            unit=1e-6,
            twin="Q 2",
        ),
        operators.q_learning(
            "Q 2, bfloat16, rate 3e-6",
            "lost_updates",
            dtype=jnp.bfloat16,
            rates=(3e-6,),
            twin="Q 2",
        ),
        radial,
        operators.radial("radial, wider", width=1.2, twin="radial"),
        operators.radial(
            "radial, width .002",
            "dead_units",
            "zero_gradient",
            "underflow",
            width=0.002,
            twin="radial",
        ),
        kan,
        operators.kan("KAN 4", depth=4, twin="KAN 2"),
        operators.kan(
            "KAN 2, grid off",
            "zero_gradient",
            "dead_units",
            "underflow",
            center=14.0,
            based=False,
            twin="KAN 2",
        ),
        operator,
        operators.fourier_operator("Fourier operator 4", depth=4, twin="Fourier operator 2"),
        operators.fourier_operator(
            "Fourier operator 8, spectral x12",
            "exploding_gradient",
            "bad_start",
            depth=8,
            spectral=12.0,
            twin="Fourier operator 2",
        ),
        dynamics.scaled_loss(
            operator, "Fourier operator 2, loss x 1e-14", 1e-14, "blind_optimizer"
        ),
        product,
        operators.deep_operator("DeepONet, branch ends at 0", ends=(0.0, 1.0), twin="DeepONet"),
        operators.deep_operator(
            "DeepONet, both end at 0", "zero_gradient", ends=(0.0, 0.0), twin="DeepONet"
        ),
        operators.deep_operator(
            "DeepONet, sigmoid branch x10",
            "mean_collapse",
            "vanishing_gradient",
            depths=(11, 2),
            activation=jax.nn.sigmoid,
            twin="DeepONet",
            where="branch",
        ),
        mixture,
        operators.mixture("mixture 2, wide", log_width=1.0, twin="mixture 2"),
        operators.mixture(
            "mixture 2, width e^-10",
            "bad_start",
            "exploding_gradient",
            log_width=-10.0,
            twin="mixture 2",
        ),
        quantized,
        codes.quantized("VQ-VAE, small codebook", spread=0.05, twin="VQ-VAE"),
        codes.quantized(
            "VQ-VAE, dead encoder",
            "dead_units",
            "zero_gradient",
            bias=-40.0,
            twin="VQ-VAE",
            where="encoder",
        ),
        codes.quantized(
            "VQ-VAE, encoder x8 at .3",
            "vanishing_gradient",
            "mean_collapse",
            depth=8,
            encoder_init=gaussian(0.3),
            twin="VQ-VAE",
            where="encoder|code",
        ),
        made,
        codes.masked_autoencoder("MADE 2", depth=2, twin="MADE 1"),
        codes.masked_autoencoder("MADE 1, last x400", "bad_start", last=400.0, twin="MADE 1"),
        codes.masked_autoencoder(
            "MADE 10, tanh at .3",
            "vanishing_gradient",
            depth=10,
            scale=0.3,
            activation=jnp.tanh,
            twin="MADE 1",
        ),
        convnext,
        codes.convnext("ConvNeXt 4, gains 1e-6", depth=4, gain=1e-6, twin="ConvNeXt 2"),
        codes.convnext(
            "ConvNeXt 4, no skips, gains 1e-6",
            "vanishing_gradient",
            "mean_collapse",
            depth=4,
            gain=1e-6,
            skip=False,
            norm=False,
            twin="ConvNeXt 2",
        ),
        tables,
        codes.recommender("recommender, small embeddings", spread=0.02, twin="recommender"),
        codes.recommender(
            "recommender, bias -30", "dead_units", "zero_gradient", bias=-30.0, twin="recommender"
        ),
        codes.recommender(
            "recommender, sigmoid x10",
            "mean_collapse",
            "vanishing_gradient",
            depth=10,
            scale=1.0,
            activation=jax.nn.sigmoid,
            twin="recommender",
        ),
    ]
