"""Compile and step time against depth, 10 to 10,000 layers, scanned, in this one process.

A ReZero MLP of width 32 at batch 64, as one stack, with vanishjax's Adam and with Muon, whose
matrices are batched; beside them the same Adam of optax. Unrolled up to depth 100.

    python -m benchmarks.depth
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record

WIDTH, BATCH = 32, 64
MAKE = {
    "vanishjax adam": lambda _: vj.adam(1e-3),
    "vanishjax muon": lambda layers: vj.muon(1e-3, layers=layers),
    "optax adam": lambda _: optax.adam(1e-3),
}


def measure(depth, name, scan, steps):
    """Seconds to trace and compile a training step, and seconds a step."""
    batch = jnp.ones((BATCH, WIDTH)), jnp.arange(BATCH) % 10
    problem = vj.mlp_problem(
        WIDTH, (WIDTH,) * depth, 10, activation="tanh", residual="rezero", scan=scan
    )
    layers = vj.find_layers(problem.params, problem.loss_fn, batch) if "muon" in name else None
    tx = MAKE[name](layers)

    def step(params, state):
        loss, gradient = jax.value_and_grad(problem.loss_fn)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state = problem.params, tx.init(problem.params)
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
    seconds = time.perf_counter() - started
    samples, losses = [], []
    for _ in range(steps):
        started = time.perf_counter()
        params, state, loss = compiled(params, state)
        losses.append(float(loss))
        samples.append(time.perf_counter() - started)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    return seconds, float(np.median(samples))


def main():
    """Measures all depths by turns, and writes depth.json."""
    options = record.parser(__doc__).parse_args()
    depths = (10, 100, 1000) if options.quick else (10, 100, 1000, 10_000)
    rounds, steps = (1, 3) if options.quick else (3, 5)
    forms = [(name, depth, True) for name in MAKE for depth in depths]
    forms += [("vanishjax adam", depth, False) for depth in (10, 100)]
    found = {form: [] for form in forms}
    for _ in range(rounds):
        for name, depth, scan in forms:
            found[name, depth, scan].append(measure(depth, name, scan, steps))
            jax.clear_caches()
    results = {}
    for (name, depth, scan), pairs in found.items():
        first = found[name, 10, scan]
        results[f"{name}, depth {depth}, {'scanned' if scan else 'unrolled'}"] = {
            "compile_seconds": [pair[0] for pair in pairs],
            "step_seconds": [pair[1] for pair in pairs],
            "compile_over_depth_10": record.spread(
                [pair[0] / ten[0] for pair, ten in zip(pairs, first, strict=True)]
            ),
            "step_per_layer_over_depth_10": record.spread(
                [pair[1] / depth / (ten[1] / 10) for pair, ten in zip(pairs, first, strict=True)]
            ),
        }
        print(name, depth, scan, results[[*results][-1]]["compile_over_depth_10"], flush=True)
    settings = {"width": WIDTH, "batch_size": BATCH, "rounds": rounds, "quick": options.quick}
    record.write("depth", options.out, settings, results)


if __name__ == "__main__":
    main()
