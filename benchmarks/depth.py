"""Compile and step time against depth, 10 to 10,000 layers, in this one process.

A training step of a ReZero MLP of width 32 at batch 64, as one stack, with vanishjax's Adam and
Muon, whose matrices are batched, and with optax's (its Muon takes a stacked kernel for no matrix
and runs Adam on it); beside them the same network unrolled. A round measures every depth, so that
ratios over depth 10 are taken round by round; steps of one depth are timed by turns.

    python -m benchmarks depth
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record, timing

WIDTH, BATCH, FIRST = 32, 64, 10
MAKE = {
    "vanishjax adam": lambda _: vj.adam(1e-3),
    "vanishjax muon": lambda layers: vj.muon(1e-3, layers=layers),
    "optax adam": lambda _: optax.adam(1e-3),
    "optax muon": lambda _: optax.contrib.muon(1e-3),
}
SCANNED, UNROLLED = (10, 100, 1000, 10_000), (10, 100)


class Training:
    """A compiled training step of one depth and its state."""

    def __init__(self, problem, tx, batch):
        def step(params, state):
            loss, gradient = jax.value_and_grad(problem.loss_fn)(params, batch)
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, loss

        # Else the second one finds the network traced already.
        jax.clear_caches()
        self.carry = jax.tree.map(jnp.copy, (problem.params, tx.init(problem.params)))
        self.compiled = timing.Compiled(step, *self.carry, donate=(0, 1))
        self.losses = []

    def __call__(self):
        """One step."""
        *self.carry, loss = self.compiled(*self.carry)
        self.losses.append(loss)
        return loss


def measure(depth, scan, names, turns):
    """Seconds to trace and to compile a step, and seconds of steps, of every optimizer."""
    batch = jnp.ones((BATCH, WIDTH)), jnp.arange(BATCH) % 10
    problem = vj.mlp_problem(
        WIDTH, (WIDTH,) * depth, 10, activation="tanh", residual="rezero", scan=scan
    )
    layers = vj.find_layers(problem.params, problem.loss_fn, batch)
    steps = {name: Training(problem, MAKE[name](layers), batch) for name in names}
    samples = timing.by_turns(steps, turns)
    for name, step in steps.items():
        losses = np.array(step.losses)
        if not (np.isfinite(losses).all() and losses[-1] < losses[0]):
            raise RuntimeError(f"{name} at depth {depth} doesn't learn: losses {losses}")
    return {
        name: {
            "trace_seconds": step.compiled.trace_seconds,
            "compile_seconds": step.compiled.compile_seconds,
            "step_seconds": float(np.median(samples[name])),
        }
        for name, step in steps.items()
    }


def total(found):
    """Seconds before the first step can run."""
    return found["trace_seconds"] + found["compile_seconds"]


def main():
    """Measures all depths round by round, and writes depth.json."""
    options = record.parser(__doc__).parse_args()
    rounds, turns = (1, 2) if options.quick else (3, 5)
    forms = [(depth, True) for depth in ((10, 300) if options.quick else SCANNED)]
    forms += [(depth, False) for depth in ((10, 30) if options.quick else UNROLLED)]
    found = {form: [] for form in forms}
    for turn in range(rounds):
        for depth, scan in forms:
            found[depth, scan].append(
                measure(depth, scan, [*MAKE][:: -1 if turn % 2 else 1], turns)
            )
            print(f"round {turn + 1} of {rounds}, depth {depth}, scanned: {scan}", flush=True)
    results = {}
    for (depth, scan), every in found.items():
        for name in MAKE:
            mine = [one[name] for one in every]
            first = [one[name] for one in found[FIRST, scan]]
            peer = [one[name.replace("vanishjax", "optax")] for one in every]
            results[f"{name}, depth {depth}, {'scanned' if scan else 'unrolled'}"] = {
                **{
                    kind: record.spread([one[kind] for one in mine])
                    for kind in ("trace_seconds", "compile_seconds", "step_seconds")
                },
                "trace_and_compile_over_depth_10": timing.ratio(
                    [total(one) for one in mine], [total(one) for one in first]
                ),
                "trace_and_compile_over_optax": timing.ratio(
                    [total(one) for one in mine], [total(one) for one in peer]
                ),
                "step_over_optax": timing.ratio(
                    [one["step_seconds"] for one in mine], [one["step_seconds"] for one in peer]
                ),
                "step_per_layer_over_depth_10": timing.ratio(
                    [one["step_seconds"] / depth for one in mine],
                    [one["step_seconds"] / FIRST for one in first],
                ),
            }
    for name, row in results.items():
        print(name, {kind: round(one["median"], 3) for kind, one in row.items()}, flush=True)
    settings = {
        "width": WIDTH,
        "batch_size": BATCH,
        "rounds": rounds,
        "turns": turns,
        "quick": options.quick,
    }
    record.write("depth", options.out, settings, results)


if __name__ == "__main__":
    main()
