"""What a verdict before the first step costs, beside the gradient that every training compiles.

Seconds of CPU time, everything cold: `jax.jit(jax.value_and_grad(loss))` traced, compiled and run
once, then `vanishjax.diagnose` with Adam, and both once more, in a fresh process each time without
a cache of programs. Memory is XLA's own account of the largest program of either: arguments,
results and temporary buffers.

transformer: 12 blocks of width 128, 4 heads, pre-LayerNorm, causal, 8 x 64 tokens (linen).
resnet: ResNet-50 with BatchNorm, 8 images of 64 x 64 (linen).
mlp: 24 layers of 512, tanh, unrolled, batch 512; and 64 layers of ReLU, scanned.

    python -m benchmarks verdict_cost
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import vanishjax as vj
from benchmarks import record
from vanishjax.health import measuring

REPEATS = 3


class Block(nn.Module):
    """A transformer's block."""

    width: int
    heads: int = 4

    @nn.compact
    def __call__(self, x):
        """`[batch, positions, width]`."""
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y, y, mask=mask)
        y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y)


class Transformer(nn.Module):
    """A language model."""

    depth: int
    width: int
    tokens: int = 64

    @nn.compact
    def __call__(self, tokens):
        """Logits of tokens `[batch, positions]`."""
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (tokens.shape[1], self.width)
        )
        x = nn.Embed(self.tokens, self.width)(tokens) + positions
        for _ in range(self.depth):
            x = Block(self.width)(x)
        return nn.Dense(self.tokens)(nn.LayerNorm()(x))


class Bottleneck(nn.Module):
    """A residual block of three convolutions."""

    filters: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        """`[batch, height, width, channels]`."""
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        stride = (self.stride, self.stride)
        y = nn.relu(norm()(nn.Conv(self.filters, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(self.filters, (3, 3), stride, use_bias=False)(y)))
        y = norm(scale_init=nn.initializers.zeros)(nn.Conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(4 * self.filters, (1, 1), stride, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-50."""

    sizes: tuple[int, ...] = (3, 4, 6, 3)
    filters: int = 64

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        x = nn.Conv(self.filters, (7, 7), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, size in enumerate(self.sizes):
            for block in range(size):
                x = Bottleneck(self.filters * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def language_model(depth: int) -> tuple[Any, Any, Any]:
    """Loss, parameters and batch of a transformer."""
    model = Transformer(depth, 128)
    tokens = jax.random.randint(jax.random.key(0), (8, 64), 0, 64)
    params = model.init(jax.random.key(1), tokens)

    def loss(params: Any, tokens: Any) -> jax.Array:
        logits = model.apply(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return loss, params, tokens


def image_model(**sizes: Any) -> tuple[Any, Any, Any]:
    """The same of a ResNet."""
    model = ResNet(**sizes)
    images = jax.random.normal(jax.random.key(0), (8, 64, 64, 3))
    variables = model.init(jax.random.key(1), images)
    statistics = variables["batch_stats"]

    def loss(params: Any, batch: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(variables, batch[0], mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return loss, variables["params"], (images, jnp.arange(8) % 10)


def perceptron(depth: int, activation: str, *, scan: bool) -> tuple[Any, Any, Any]:
    """The same of a multilayer perceptron."""
    problem = vj.mlp_problem(784, (512,) * depth, 10, activation=activation, scan=scan)
    batch = jax.random.normal(jax.random.key(0), (512, 784)), jnp.arange(512) % 10
    return problem.loss_fn, problem.params, batch


CASES = {
    "transformer": functools.partial(language_model, 12),
    "resnet": image_model,
    "mlp, unrolled": functools.partial(perceptron, 24, "tanh", scan=False),
    "mlp, scanned": functools.partial(perceptron, 64, "relu", scan=True),
}
QUICK = {
    "transformer": functools.partial(language_model, 1),
    "resnet": functools.partial(image_model, sizes=(1, 1), filters=8),
}


def cpu_seconds(run: Any) -> float:
    """Of CPU time, all threads."""
    started = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - started


def megabytes(compiled: Any) -> float:
    """Of a program's arguments, results and temporary buffers."""
    found = compiled.memory_analysis()
    parts = ("argument", "output", "temp")
    return sum(getattr(found, f"{part}_size_in_bytes") for part in parts) / 1e6


def measure(case: str, quick: bool) -> dict[str, float]:
    """Everything about one network, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    loss, params, batch = (QUICK if quick else CASES)[case]()
    adam = optax.adam(1e-3)
    gradient = jax.jit(jax.value_and_grad(loss))

    def verdict(tx: optax.GradientTransformation = adam) -> None:
        vj.diagnose(loss, params, batch, tx)

    first = {
        "gradient": cpu_seconds(lambda: gradient(params, batch)),
        "verdict": cpu_seconds(verdict),
    }
    leaves, structure = jax.tree.flatten(params)
    arrays, batch_structure = jax.tree.flatten(batch)
    known = measuring.Loss(loss, structure, batch_structure, (None,) * len(arrays))
    look = jax.jit(measuring._run.__wrapped__, static_argnums=0)
    return {
        **{f"{name}_seconds": seconds for name, seconds in first.items()},
        "second_gradient_seconds": cpu_seconds(lambda: gradient(params, batch)),
        "second_verdict_seconds": cpu_seconds(verdict),
        "other_optimizer_seconds": cpu_seconds(lambda: verdict(optax.adam(1e-3))),
        "gradient_megabytes": megabytes(gradient.lower(params, batch).compile()),
        "verdict_megabytes": megabytes(look.lower(known, leaves, arrays).compile()),
    }


def main() -> None:
    """Measures every network in fresh processes, and writes verdict_cost.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.quick)))
        return
    results = {}
    for case in QUICK if options.quick else CASES:
        words = [sys.executable, "-m", "benchmarks.verdict_cost", "--case", case]
        words += ["--quick"] * options.quick
        found = [
            json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
            for _ in range(1 if options.quick else REPEATS)
        ]
        columns = {name: [one[name] for one in found] for name in found[0]}
        results[case] = {
            **{name: record.spread(column) for name, column in columns.items()},
            "over_gradient": record.spread(
                [one["verdict_seconds"] / one["gradient_seconds"] for one in found]
            ),
            "memory_over_gradient": found[0]["verdict_megabytes"] / found[0]["gradient_megabytes"],
        }
        print(
            f"{case:14} {results[case]['over_gradient']['median']:.2f} times the gradient, "
            f"{results[case]['memory_over_gradient']:.2f} times its memory",
            flush=True,
        )
        settings = {"repeats": len(found), "optimizer": "optax.adam", "quick": options.quick}
        record.write("verdict_cost", options.out, settings, results)


if __name__ == "__main__":
    main()
