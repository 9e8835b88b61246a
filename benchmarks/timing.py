"""Fair times on a noisy machine: by turns in one process, warm, awaited, every sample kept.

A machine that slows down for a minute slows all contenders of a turn, so ratios are taken turn by
turn. The order is reversed every turn, so that none always finds the other's cache.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks.record import spread

WARM_UP = 3


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds until what `run` returns is there: JAX returns before it has computed."""
    started = clock()
    jax.block_until_ready(run())
    return clock() - started


def by_turns(
    contenders: Mapping[str, Callable[[], Any]],
    turns: int,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender, one sample a turn; the first turns don't count."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_up, turns):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            taken = seconds(contenders[name], clock)
            if turn >= 0:
                samples[name].append(taken)
    return samples


def ratio(ones: list[float], others: list[float]) -> dict[str, Any]:
    """Spread of one contender's seconds over another's, turn by turn."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


class Compiled:
    """A jitted function compiled ahead of its first call, with what that took.

    Attributes:
      trace_seconds: Seconds of tracing and lowering.
      compile_seconds: Seconds of the compiler.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, donate: Any = ()) -> None:
        started = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        traced = time.perf_counter()
        self._call = lowered.compile()
        self.trace_seconds = traced - started
        self.compile_seconds = time.perf_counter() - traced

    def __call__(self, *arguments: Any) -> Any:
        """Runs the compiled program."""
        return self._call(*arguments)
