"""What looking costs: `monitor` beside a bare training step, and `probe` and `diagnose` in steps.

A training step is forward, backward and optax's adam on a 10 x 512 MLP at batch 256, compiled by
`make_train_step`. By turns in one process; "itself" is the bare step against a second copy of the
bare step, which shows the noise.

    python -m benchmarks.monitoring
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record

WIDTH, DEPTH, BATCH, FEATURES, CLASSES = 512, 10, 256, 784, 10
VERDICT_DEPTH, VERDICT_WIDTH = 100, 128


def batch_of(size: int, features: int) -> tuple[jax.Array, jax.Array]:
    """Random inputs and labels."""
    inputs = jax.random.normal(jax.random.key(1), (size, features))
    return inputs, jnp.arange(size) % CLASSES


class Training:
    """A compiled training step and its state; calling it takes one step and returns its seconds."""

    def __init__(self, problem: vj.Problem, tx: optax.GradientTransformation) -> None:
        self.batch = batch_of(BATCH, FEATURES)
        self.state = vj.TrainState.create(problem.params, tx)
        self.step = vj.make_train_step(problem.loss_fn, tx)

    def __call__(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - started


def ratios(first: Callable[[], float], second: Callable[[], float], turns: int) -> dict[str, Any]:
    """Seconds of the first over those of the second, each turn's order the other way round."""
    samples = []
    for turn in range(turns + 3):
        if turn % 2:
            one = first()
            other = second()
        else:
            other = second()
            one = first()
        samples.append(one / other)
    return record.spread(samples[3:])


def timed(fn: Callable[[], Any]) -> Callable[[], float]:
    """A function that runs another and returns its seconds."""

    def run() -> float:
        started = time.perf_counter()
        jax.block_until_ready(fn())
        return time.perf_counter() - started

    return run


def verdict_seconds(turns: int) -> dict[str, Any]:
    """Seconds of a verdict on a network of depth 100, the first (compilation) apart."""
    problem = vj.mlp_problem(64, (VERDICT_WIDTH,) * VERDICT_DEPTH, CLASSES, activation="sigmoid")
    batch, tx = batch_of(BATCH, 64), optax.adam(1e-3)
    seconds = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        vj.diagnose(problem.loss_fn, problem.params, batch, tx)
        seconds.append(time.perf_counter() - started)
    return {"first": seconds[0], "later": record.spread(seconds[1:])}


def main() -> None:
    """Measures all of it, and writes monitoring.json."""
    options = record.parser(__doc__).parse_args()
    turns = 10 if options.quick else 120
    results: dict[str, Any] = {}
    for form, scan in (("stacked", True), ("unrolled", False)):
        problem = vj.mlp_problem(FEATURES, (WIDTH,) * DEPTH, CLASSES, activation="relu", scan=scan)
        adam = optax.adam(1e-3)
        bare = Training(problem, adam)
        others = {
            "itself": adam,
            "every=1": vj.monitor(adam, every=1),
            "every=16": vj.monitor(adam, every=16),
            "every=1, exact": vj.monitor(adam, every=1, sample=None),
        }
        for name, tx in others.items():
            # What counts is the mean over the steps between two observations.
            results[f"monitor {name}, {form}"] = ratios(
                _sixteen(Training(problem, tx)), _sixteen(bare), turns // 4
            )
            _show(f"monitor {name}, {form}", results)
        look = timed(lambda p=problem, b=bare.batch: vj.probe(p.loss_fn, p.params, b).log_chi)
        results[f"probe, {form}"] = ratios(look, bare, max(3, turns // 4))
        _show(f"probe, {form}", results)
    results["verdict at depth 100"] = verdict_seconds(3 if options.quick else 10)
    print(results["verdict at depth 100"])
    settings = {
        "model": f"MLP {FEATURES}-{DEPTH}x{WIDTH}-{CLASSES}, relu",
        "batch_size": BATCH,
        "optimizer": "optax.adam",
        "verdict": f"sigmoid MLP 64-{VERDICT_DEPTH}x{VERDICT_WIDTH}-{CLASSES}, batch {BATCH}",
        "steps_per_sample": 16,
        "turns": turns // 4,
        "seed": 1,
        "quick": options.quick,
    }
    record.write("monitoring", options.out, settings, results)


def _sixteen(step: Callable[[], float]) -> Callable[[], float]:
    return lambda: float(np.sum([step() for _ in range(16)]))


def _show(name: str, results: dict[str, Any]) -> None:
    low, high = results[name]["quartiles"]
    print(f"{name:32s} {results[name]['median']:.3f}  [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
