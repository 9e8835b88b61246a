"""What looking costs: `monitor` beside a bare training step, and `probe` and `diagnose` in steps.

A training step is forward, backward and optax's adam on a 10 x 512 MLP at batch 256, compiled by
`make_train_step`. By turns in one process; "itself" is the bare step against a second copy of the
bare step, which shows the noise. Beside `monitor` stand two usual ways to see as much at every
step: norms that `jax.debug.callback` hands to the host, and a loop that pulls all gradients there.

    python -m benchmarks monitoring
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record, timing

BATCH, FEATURES, CLASSES = 256, 784, 10
VERDICT_WIDTH, COMPILED_WIDTH = 128, 64


def batch_of(size: int, features: int) -> tuple[jax.Array, jax.Array]:
    """Random inputs and labels."""
    inputs = jax.random.normal(jax.random.key(1), (size, features))
    return inputs, jnp.arange(size) % CLASSES


class Training:
    """A compiled training step and its state."""

    def __init__(self, problem: vj.Problem, tx: optax.GradientTransformation) -> None:
        self.batch = batch_of(BATCH, FEATURES)
        self.state = vj.TrainState.create(problem.params, tx)
        self.step = vj.make_train_step(problem.loss_fn, tx)

    def __call__(self) -> Any:
        """One step."""
        self.state, metrics = jax.block_until_ready(self.step(self.state, self.batch))
        return metrics


def calling_back(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transform, with the norms of gradients and updates handed to the host at every step."""
    log: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        steps, state = tx.update(updates, state, params)
        norms = jax.tree.map(jnp.linalg.vector_norm, (updates, steps))
        jax.debug.callback(log.append, norms)
        return steps, state

    return optax.GradientTransformation(tx.init, update)


class Pulling(Training):
    """A loop that pulls every gradient to the host and takes its norm there."""

    def __init__(self, problem: vj.Problem, tx: optax.GradientTransformation) -> None:
        super().__init__(problem, tx)

        def step(state: vj.TrainState, batch: Any) -> Any:
            loss, gradients = jax.value_and_grad(problem.loss_fn)(state.params, batch)
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return state._replace(params=params, opt_state=opt_state), (loss, gradients)

        self.step = jax.jit(step, donate_argnums=0)

    def __call__(self) -> Any:
        """One step."""
        loss, gradients = super().__call__()
        return loss, [np.linalg.norm(leaf) for leaf in jax.tree.leaves(jax.device_get(gradients))]


def over(one: Callable[[], Any], other: Callable[[], Any], turns: int) -> dict[str, Any]:
    """Seconds of the one over those of the other, and the medians of both."""
    samples = timing.by_turns({"one": one, "other": other}, turns)
    medians = {f"seconds_of_{name}": float(np.median(taken)) for name, taken in samples.items()}
    return timing.ratio(samples["one"], samples["other"]) | medians


def verdict_seconds(depth: int, turns: int) -> dict[str, Any]:
    """Seconds of a verdict on a deep network, the first (compilation) apart."""
    problem = vj.mlp_problem(64, (VERDICT_WIDTH,) * depth, CLASSES, activation="sigmoid")
    batch, tx = batch_of(BATCH, 64), optax.adam(1e-3)

    def verdict() -> None:
        vj.diagnose(problem.loss_fn, problem.params, batch, tx)

    first = timing.seconds(verdict)
    later = timing.by_turns({"later": verdict}, turns, warm_up=0)["later"]
    return {"first": first, "later": record.spread(later)}


def main() -> None:
    """Measures all of it, and writes monitoring.json."""
    options = record.parser(__doc__).parse_args()
    turns, width, depth = (8, 64, 3) if options.quick else (120, 512, 10)
    verdict_depth = 20 if options.quick else 100
    results: dict[str, Any] = {}
    forms = {"stacked": True} if options.quick else {"stacked": True, "unrolled": False}
    for form, scan in forms.items():
        problem = vj.mlp_problem(FEATURES, (width,) * depth, CLASSES, activation="relu", scan=scan)
        adam = optax.adam(1e-3)
        bare = Training(problem, adam)
        others = {
            "itself": Training(problem, adam),
            "monitor every=1": Training(problem, vj.monitor(adam, every=1)),
            "monitor every=16": Training(problem, vj.monitor(adam, every=16)),
            "monitor every=256": Training(problem, vj.monitor(adam, every=256)),
            "monitor every=1, exact": Training(problem, vj.monitor(adam, every=1, sample=None)),
            "monitor every=16, exact": Training(problem, vj.monitor(adam, every=16, sample=None)),
            "debug.callback": Training(problem, calling_back(adam)),
            "gradients to the host": Pulling(problem, adam),
        }
        for name, other in others.items():
            # What counts is the mean over the steps between two observations.
            results[f"{name}, {form}"] = over(_sixteen(other), _sixteen(bare), turns // 4)
            _show(f"{name}, {form}", results)

        def look(p: vj.Problem = problem, batch: Any = bare.batch) -> jax.Array:
            return vj.probe(p.loss_fn, p.params, batch).log_chi

        results[f"probe, {form}"] = over(look, bare, max(3, turns // 4))
        _show(f"probe, {form}", results)
    settings = {
        "model": f"MLP {FEATURES}-{depth}x{width}-{CLASSES}, relu",
        "batch_size": BATCH,
        "optimizer": "optax.adam",
        "verdict": f"sigmoid MLP 64-{verdict_depth}x{VERDICT_WIDTH}-{CLASSES}, batch {BATCH}",
        "steps_per_sample": 16,
        "turns": turns // 4,
        "seed": 1,
        "quick": options.quick,
    }
    leaves, turns = (20, 1) if options.quick else (300, 5)
    many = f"compiling {leaves} arrays of {COMPILED_WIDTH} x {COMPILED_WIDTH}"
    results[many] = compile_seconds(leaves, COMPILED_WIDTH, turns)
    _show(many, results)
    record.write("monitoring", options.out, settings, results)
    verdict = f"verdict at depth {verdict_depth}"
    results[verdict] = verdict_seconds(verdict_depth, 3 if options.quick else 10)
    print(results[verdict])
    record.write("monitoring", options.out, settings, results)


def compile_seconds(leaves: int, size: int, turns: int) -> dict[str, Any]:
    """Tracing and compiling the update of many arrays: monitored over bare, and the medians."""
    params = {str(i): jax.ShapeDtypeStruct((size, size), jnp.float32) for i in range(leaves)}
    adam = optax.adam(1e-3)

    def compiling(tx: optax.GradientTransformation) -> Callable[[], None]:
        state = jax.eval_shape(tx.init, params)

        def run() -> None:
            # A function of its own each time, since what was traced before is found again.
            timing.Compiled(lambda *arguments: tx.update(*arguments), params, state, params)

        return run

    return over(compiling(vj.monitor(adam, every=16)), compiling(adam), turns)


def _sixteen(step: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: [step() for _ in range(16)]


def _show(name: str, results: dict[str, Any]) -> None:
    low, high = results[name]["quartiles"]
    print(f"{name:32s} {results[name]['median']:.3f}  [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
