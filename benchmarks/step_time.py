"""Time of one optimizer step against optax's, both donated and in order, by turns in one process.

Trees: 8M float32 parameters in one leaf, in 64 leaves, and in one stack of 64. A step is `update`
and `apply_updates`, jitted as `(params, state, gradients) -> (params, state)` with params and state
donated: outputs in the order of the donated inputs, so that XLA copies no buffer.

    python -m benchmarks.step_time
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record

PAIRS = {
    "sgd, momentum": (vj.sgd(1e-3, 0.9), optax.sgd(1e-3, 0.9)),
    "adam": (vj.adam(1e-3), optax.adam(1e-3)),
    "nadam": (vj.nadam(1e-3), optax.nadam(1e-3)),
    "adamw": (vj.adamw(1e-3), optax.adamw(1e-3)),
    "clip + adamw": (
        optax.chain(vj.clip_by_global_norm(1.0), vj.adamw(1e-3)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    ),
    "rmsprop": (vj.rmsprop(1e-3), optax.rmsprop(1e-3)),
    "lion": (vj.lion(1e-3), optax.lion(1e-3)),
}


def trees(parameters):
    """Name -> shapes, of about `parameters` in all."""
    side = int((parameters // 64) ** 0.5)
    return {
        "one leaf": [(64 * side * side,)],
        "64 leaves": [(side, side)] * 64,
        "stack of 64": [(64, side, side)],
    }


class Runner:
    """A compiled step and the state it carries."""

    def __init__(self, tx, shapes):
        rng = np.random.default_rng(0)
        self.gradients = [jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes]
        self.params = [jnp.ones(s) for s in shapes]
        self.state = tx.init(self.params)

        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        arguments = (self.params, self.state, self.gradients)
        started = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started

    def __call__(self):
        """Seconds of one step."""
        started = time.perf_counter()
        self.params, self.state = self.compiled(self.params, self.state, self.gradients)
        jax.block_until_ready((self.params, self.state))
        return time.perf_counter() - started


def main() -> None:
    """Times every pair on every tree and writes step_time.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--parameters", type=int, default=8_000_000)
    options = parser.parse_args()
    turns, warm_up = (5, 1) if options.quick else (40, 4)
    results = {}
    for tree, shapes in trees(options.parameters).items():
        for name, (ours, theirs) in PAIRS.items():
            pair = Runner(ours, shapes), Runner(theirs, shapes)
            # Who goes first alternates, so that neither always finds the other's cache.
            times = np.array(
                [
                    [pair[0](), pair[1]()] if turn % 2 else [pair[1](), pair[0]()][::-1]
                    for turn in range(turns + warm_up)
                ]
            )[warm_up:]
            results[f"{name}, {tree}"] = {
                "ratio": record.spread((times[:, 0] / times[:, 1]).tolist()),
                "vanishjax_seconds": record.spread(times[:, 0].tolist()),
                "optax_seconds": record.spread(times[:, 1].tolist()),
                "compile_seconds": [runner.compile_seconds for runner in pair],
            }
            ratio = results[f"{name}, {tree}"]["ratio"]
            low, high = ratio["quartiles"]
            print(
                f"{name:>14} {tree:<12} {ratio['median']:.3f}  [{low:.3f}, {high:.3f}]", flush=True
            )
    settings = {
        "parameters": options.parameters,
        "trees": {
            name: [list(s) for s in shapes] for name, shapes in trees(options.parameters).items()
        },
        "dtype": "float32",
        "order": "(params, state, gradients) -> (params, state), params and state donated",
        "turns": turns,
        "warm_up_turns": warm_up,
        "seed": 0,
        "quick": options.quick,
    }
    record.write("step_time", options.out, settings, results)


if __name__ == "__main__":
    main()
