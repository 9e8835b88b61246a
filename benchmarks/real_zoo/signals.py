"""Sequences without attention or recurrent cells: state spaces and dilated convolutions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.network import Network, regression
from benchmarks.real_zoo.sequences import next_token


def state_space(
    name: str, *ails: str, depth: int = 2, skip: bool = True, gain: float = 1.0, **rest: Any
) -> Network:
    """Diagonal linear recurrences by an associative scan, a gated output after each (LRU, S5)."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3 * depth + 2)
        kernel = lambda k, a, b: gain * jax.random.normal(k, (a, b)) / a**0.5  # noqa: E731
        blocks = [
            {
                "decay": jnp.linspace(1.0, 4.0, 24),
                "into": kernel(keys[3 * i], 24, 24),
                "out": kernel(keys[3 * i + 1], 24, 24),
                "gate": kernel(keys[3 * i + 2], 24, 24),
            }
            for i in range(depth)
        ]
        encoder = jax.random.normal(keys[-2], (2, 24)) / 2**0.5
        return {"encoder": encoder, "blocks": blocks, "head": kernel(keys[-1], 24, 1)}

    def block(p: Any, x: Any) -> Any:
        a = jax.nn.sigmoid(p["decay"])
        u = jnp.sqrt(1 - a**2) * (x @ p["into"])
        step = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])  # noqa: E731
        _, h = jax.lax.associative_scan(step, (jnp.broadcast_to(a, u.shape), u), axis=1)
        y = jax.nn.gelu(h) @ p["out"]
        return y * jax.nn.sigmoid(x @ p["gate"])

    def apply(p: Any, x: Any) -> Any:
        x = x @ p["encoder"]
        for one in p["blocks"]:
            x = x + block(one, x) if skip else block(one, x)
        return (x[:, -1] @ p["head"])[:, 0]

    settings = {"kind": "state space", "library": "plain", "task": tasks.running_sum, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | settings | rest)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates."""

    depth: int = 4
    skip: bool = True

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """`[batch, positions]` of integers."""
        x = nn.Embed(tasks.VOCABULARY, 24)(tokens)
        for number in range(self.depth):
            dilation = 2 ** (number % 4)

            def conv(n, d=dilation):
                return nn.Conv(24, (2,), kernel_dilation=d, padding="CAUSAL", name=n)

            y = jnp.tanh(conv(f"filter_{number}")(x)) * nn.sigmoid(conv(f"gate_{number}")(x))
            y = nn.Dense(24, name=f"mix_{number}")(y)
            x = x + y if self.skip else y
        return nn.Dense(tasks.VOCABULARY, name="head")(nn.relu(x))


def wavenet(name: str, *ails: str, depth: int = 4, skip: bool = True, **rest: Any) -> Network:
    """A language model of dilated convolutions."""
    module = WaveNet(depth, skip)
    init = lambda key: module.init(key, jnp.zeros((1, 16), jnp.int32))["params"]  # noqa: E731
    apply = lambda p, tokens: module.apply({"params": p}, tokens)  # noqa: E731
    settings = {"kind": "WaveNet", "library": "linen", "ails": ails}
    return next_token(name, init, apply, **{"batched": False} | settings | rest)
