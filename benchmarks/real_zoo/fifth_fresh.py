"""Networks of kinds in no set before, written without a look at what any verdict says of them."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo import dynamics, estimators, recognizers, streams
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.network import Network


def fifth_fresh_networks() -> list[Network]:
    """Healthy networks, and what people do to them."""
    squeezed = recognizers.efficient("EfficientNet 2")
    pixels = recognizers.pixels("PixelCNN 2")
    capsules = recognizers.capsules("capsules")
    speech = recognizers.speech("CTC")
    llama = streams.llama("grouped queries 2")
    half = streams.llama("grouped queries 2, float16", dtype=jnp.float16, twin=llama.name)
    table = streams.table("table transformer 2")
    pointer = streams.pointer("pointer")
    dit = streams.dit("DiT 2")
    gates = streams.min_gru("minGRU 2")
    process = estimators.neural_process("neural process")
    survival = estimators.survival("survival 2")
    quantiles = estimators.quantiles("quantiles")
    policy = estimators.squashed_policy("squashed policy")
    forces = estimators.equivariant("EGNN 2")
    counts = np.array([1, 1, 1, 3e5, 1, 1, 1, 1, 1, 1], np.float32)
    return [
        squeezed,
        recognizers.efficient(
            "EfficientNet 4, last gains 0", blocks=4, gain=0.0, twin="EfficientNet 2"
        ),
        recognizers.efficient(
            "EfficientNet 2, excitation bias -30",
            "saturated_units",
            "mean_collapse",
            "vanishing_gradient",
            gate=-30.0,
            twin="EfficientNet 2",
            where="excite",
        ),
        recognizers.efficient(
            "EfficientNet 8, neither norm nor skips, kernels at .5",
            "vanishing_gradient",
            "mean_collapse",
            blocks=8,
            norm=False,
            skip=False,
            kernel_init=gaussian(0.5),
            twin="EfficientNet 2",
        ),
        pixels,
        recognizers.pixels("PixelCNN 4, branches end at 0", depth=4, zero=True, twin="PixelCNN 2"),
        recognizers.pixels(
            "PixelCNN 6, sigmoid, no skips",
            "mean_collapse",
            "vanishing_gradient",
            depth=6,
            skip=False,
            activation=jax.nn.sigmoid,
            kernel_init=gaussian(0.3),
            twin="PixelCNN 2",
        ),
        capsules,
        recognizers.capsules("capsules, 4 rounds", rounds=4, twin="capsules"),
        recognizers.capsules(
            "capsules, length 0",
            "nonfinite",
            rectified=True,
            guarded=False,
            twin="capsules",
        ),
        recognizers.capsules(
            "capsules, dead stem",
            "dead_units",
            "zero_gradient",
            bias=-30.0,
            twin="capsules",
            where="stem",
        ),
        speech,
        recognizers.speech("CTC 2, blank bias 3", layers=2, blank=3.0, twin="CTC"),
        recognizers.speech(
            "CTC, too few frames", "bad_start", "exploding_gradient", stride=6, twin="CTC"
        ),
        recognizers.speech(
            "CTC, unsigned samples",
            "saturated_units",
            "mean_collapse",
            unit=1e3,
            shift=32768.0,
            twin="CTC",
            where="there|back",
        ),
        llama,
        half,
        streams.llama(
            "grouped queries 5, branches end at 0", depth=5, closed=True, twin=llama.name
        ),
        streams.llama(
            "grouped queries 2, slopes x 1e4", "saturated_attention", slope=1e4, twin=llama.name
        ),
        dynamics.scaled_loss(
            half,
            "grouped queries 2, float16, loss x 1e-5",
            1e-5,
            "underflow",
            "zero_gradient",
            "blind_optimizer",
        ),
        table,
        streams.table("table transformer 4, small tokens", depth=4, spread=0.02, twin=table.name),
        streams.table("table transformer 2, frozen tokens", frozen=True, twin=table.name),
        streams.table(
            "table transformer 2, numbers + 1e5",
            "mean_collapse",
            "rank_collapse",
            "vanishing_gradient",
            shift=1e5,
            twin=table.name,
        ),
        streams.table(
            "table transformer 2, trunk stopped",
            "zero_gradient",
            stopped=True,
            twin=table.name,
        ),
        pointer,
        streams.pointer("pointer 4", depth=4, twin="pointer"),
        streams.pointer(
            "pointer 14, usual start",
            "token_collapse",
            "mean_collapse",
            "vanishing_gradient",
            "rank_collapse",
            depth=14,
            scale=1.0,
            twin="pointer",
        ),
        streams.pointer(
            "pointer, kernels x8",
            "saturated_units",
            "zero_gradient",
            "bad_start",
            "exploding_gradient",
            scale=16.0,
            twin="pointer",
        ),
        streams.pointer(
            "pointer, bfloat16, rate 3e-6",
            "lost_updates",
            dtype=jnp.bfloat16,
            rates=(3e-6,),
            twin="pointer",
        ),
        dit,
        streams.dit("DiT 5", depth=5, twin="DiT 2"),
        streams.dit(
            "DiT 3, gates closed, no skips",
            "zero_gradient",
            "token_collapse",
            "mean_collapse",
            depth=3,
            skip=False,
            twin="DiT 2",
        ),
        gates,
        streams.min_gru("minGRU 3, long memory", depth=3, bias=-2.0, twin="minGRU 2"),
        streams.min_gru(
            "minGRU 2, gate bias -40",
            "saturated_units",
            "mean_collapse",
            "vanishing_gradient",
            bias=-40.0,
            how="alone",
            twin="minGRU 2",
            where="gates",
        ),
        streams.min_gru(
            "minGRU 2, product of the kept", "nonfinite", bias=8.0, how="divided", twin="minGRU 2"
        ),
        process,
        estimators.neural_process("neural process 4", depth=4, twin="neural process"),
        estimators.neural_process(
            "neural process, mean of nothing", "nonfinite", guarded=False, twin="neural process"
        ),
        estimators.neural_process(
            "neural process, code of 1", "bottleneck", code=1, twin="neural process", where="^code"
        ),
        survival,
        estimators.survival(
            "survival 1, wide, rare", depth=1, width=300, rare=-4.0, twin="survival 2"
        ),
        estimators.survival("survival 2, one score", score=True, twin="survival 2"),
        estimators.survival(
            "survival 2, one raw count, tanh",
            "saturated_units",
            unit=counts,
            activation=jnp.tanh,
            twin="survival 2",
            where="risk/0",
        ),
        estimators.survival(
            "survival 2, log of 0",
            "nonfinite",
            stable=False,
            last=200.0,
            twin="survival 2",
        ),
        quantiles,
        estimators.quantiles(
            "quantiles, in order, a spare head",
            ordered=True,
            spare=True,
            bias=-1.0,
            twin="quantiles",
        ),
        estimators.quantiles(
            "quantiles, rectified",
            "dead_units",
            "zero_gradient",
            positive=True,
            bias=-20.0,
            twin="quantiles",
            where="head",
        ),
        estimators.quantiles(
            "quantiles, in dollars", "bad_start", price=(3e5, 8e4), twin="quantiles"
        ),
        policy,
        estimators.squashed_policy(
            "squashed policy, last x .01", last=0.01, twin="squashed policy"
        ),
        estimators.squashed_policy(
            "squashed policy 14, tanh at .3",
            "vanishing_gradient",
            "mean_collapse",
            depth=14,
            scale=0.3,
            activation=jnp.tanh,
            twin="squashed policy",
        ),
        estimators.squashed_policy(
            "squashed policy, last x100, squares",
            "saturated_units",
            "zero_gradient",
            "vanishing_gradient",
            last=100.0,
            imitated=False,
            twin="squashed policy",
            where="center",
        ),
        forces,
        estimators.equivariant("EGNN 3, directions", depth=3, directed="guarded", twin="EGNN 2"),
        estimators.equivariant(
            "EGNN 2, length 0", "nonfinite", directed="unguarded", twin="EGNN 2"
        ),
        estimators.equivariant(
            "EGNN 2, kernels at 2",
            "exploding_gradient",
            "bad_start",
            scale=2.0,
            last=1.0,
            twin="EGNN 2",
        ),
        estimators.equivariant(
            "EGNN 2, in meters",
            "blind_optimizer",
            "vanishing_gradient",
            "mean_collapse",
            unit=1e-10,
            twin="EGNN 2",
        ),
    ]
