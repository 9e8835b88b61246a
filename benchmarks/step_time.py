"""Time of one optimizer step against optax's and against the bandwidth floor, by turns.

A step is `update` and `apply_updates`, jitted as `(params, state, gradients) -> (params, state)`
with params and state donated: outputs in the order of the donated inputs, so that XLA copies no
buffer. The floor is what the formula must move (parameters and state read and written, gradients
read, once more for a norm over all of them) at the speed of a copy: `x + 1` in place on a buffer
that is as large as all of these, timed in the same turns. Where torch is installed, its foreach and
fused forms take turns with ours afterwards.

optimizers: every one, 8M float32 parameters in one leaf, in 64 leaves, and in one stack of 64.
forms: Adam on one leaf of 1,000 to 100M parameters, on 10 to 1,000 leaves, and in bfloat16.

On an accelerator a step is short beside the call that starts it, so that a sample is many steps
that wait in line, and the trees are to be larger than its cache.

    python -m benchmarks step_time
    python -m benchmarks.step_time --parameters 268435456 --out benchmarks/results/gpu
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record, timing, torch_peer

# Ours, optax's, and how often the formula reads a gradient.
OPTIMIZERS = {
    "sgd, momentum": (vj.sgd(1e-3, 0.9), optax.sgd(1e-3, 0.9), 1),
    "adam": (vj.adam(1e-3), optax.adam(1e-3), 1),
    "nadam": (vj.nadam(1e-3), optax.nadam(1e-3), 1),
    "adamw": (vj.adamw(1e-3), optax.adamw(1e-3), 1),
    "clip + adamw": (
        optax.chain(vj.clip_by_global_norm(1.0), vj.adamw(1e-3)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        2,
    ),
    "rmsprop": (vj.rmsprop(1e-3), optax.rmsprop(1e-3), 1),
    "lion": (vj.lion(1e-3), optax.lion(1e-3), 1),
}
BRIEF_MOMENT = (
    vj.adam(1e-3, mu_dtype=jnp.bfloat16),
    optax.adam(1e-3, mu_dtype=jnp.bfloat16),
    1,
)
LEAF = (64, 64)
LARGEST_COPY = 2**29
# A sample is as many steps as move this many parameters, so that the clock's own time is nothing,
# nor that of the first call where later ones wait in line.
PARAMETERS_PER_SAMPLE = {"cpu": 1_000_000, "gpu": 4_000_000_000, "tpu": 4_000_000_000}
MOST_CALLS = 100


def trees(parameters):
    """Name -> shapes, of about `parameters` in all."""
    side = int((parameters // 64) ** 0.5)
    return {
        "one leaf": [(64 * side * side,)],
        "64 leaves": [(side, side)] * 64,
        "stack of 64": [(64, side, side)],
    }


def forms(quick):
    """Name -> optimizers, shapes and type of the parameters."""
    adam = OPTIMIZERS["adam"]
    sizes = (1_000, 100_000) if quick else (1_000, 10_000, 100_000, 10**6, 10**7, 10**8)
    leaves = (10,) if quick else (10, 100, 1000)
    brief = 100_000 if quick else 8_000_000
    return {
        **{f"1 leaf of {size:,}": (adam, [(size,)], jnp.float32) for size in sizes},
        **{f"{n:,} leaves of 64 x 64": (adam, [LEAF] * n, jnp.float32) for n in leaves},
        f"1 leaf of {brief:,}, first moment bfloat16": (BRIEF_MOMENT, [(brief,)], jnp.float32),
        f"1 leaf of {brief:,}, parameters bfloat16": (adam, [(brief,)], jnp.bfloat16),
    }


def nbytes(tree):
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class Step:
    """A compiled optimizer step and what it carries."""

    def __init__(self, tx, params, gradients, calls):
        self.gradients, self.calls = gradients, calls
        self.carry = jax.tree.map(jnp.copy, params), tx.init(params)

        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.compiled = timing.Compiled(step, *self.carry, gradients, donate=(0, 1))

    def __call__(self):
        """One sample."""
        for _ in range(self.calls):
            self.carry = self.compiled(*self.carry, self.gradients)
        return self.carry


class Copy:
    """Reads and writes a buffer in place."""

    def __init__(self, size, calls):
        # A multiple of many numbers: XLA leaves an odd one to a single core, at a third the speed.
        multiple = 2**16 if size > 2**20 else 2**6
        self.calls, self.buffer = calls, jnp.ones(size // multiple * multiple // 4)
        self.compiled = timing.Compiled(lambda x: x + 1, self.buffer, donate=0)

    def __call__(self):
        """One sample."""
        for _ in range(self.calls):
            self.buffer = self.compiled(self.buffer)
        return self.buffer


def over_torch(name, gradients, ours, turns):
    """Ours against torch's, in turns of their own, since its threads spin on into the next one."""
    peers = torch_peer.steps(name, gradients, ours.calls)
    samples = timing.by_turns({"vanishjax": ours, **peers}, turns) if peers else {}
    return {f"over_{peer}": timing.ratio(samples["vanishjax"], samples[peer]) for peer in peers}


def compare(optimizers, shapes, dtype, turns, torch_name=None):
    """Ours against optax's, torch's of that name, and the floor, on one tree."""
    ours, theirs, reads = optimizers
    rng = np.random.default_rng(0)
    gradients = [jnp.asarray(rng.standard_normal(s, np.float32), dtype) for s in shapes]
    params = [jnp.ones(s, dtype) for s in shapes]
    parameters = sum(leaf.size for leaf in params)
    wanted = PARAMETERS_PER_SAMPLE[jax.default_backend()]
    calls = int(np.clip(wanted // parameters, 1, MOST_CALLS))
    pair = {
        "vanishjax": Step(ours, params, gradients, calls),
        "optax": Step(theirs, params, gradients, calls),
    }
    footprint = min(nbytes(step.carry) for step in pair.values()) + nbytes(gradients)
    moved = 2 * footprint + (reads - 2) * nbytes(gradients)
    copy = Copy(min(footprint, LARGEST_COPY), calls)
    del params
    samples = timing.by_turns({**pair, "copy": copy}, turns)
    floor = [taken * moved / (2 * copy.buffer.nbytes) for taken in samples["copy"]]
    return {
        "ratio": timing.ratio(samples["vanishjax"], samples["optax"]),
        **{f"{name}_over_floor": timing.ratio(samples[name], floor) for name in pair},
        **over_torch(torch_name, gradients, pair["vanishjax"], turns),
        "seconds": {
            name: record.spread([taken / calls for taken in found])
            for name, found in samples.items()
        },
        "bytes_moved": moved,
        "bytes_copied": 2 * copy.buffer.nbytes,
        "steps_per_sample": calls,
        "turns": turns,
        **{
            kind: {name: getattr(step.compiled, kind) for name, step in pair.items()}
            for kind in ("trace_seconds", "compile_seconds")
        },
    }


def show(name, found):
    """One line of progress."""
    parts = [
        f"{kind} {found[kind]['median']:.3f} [{low:.3f}, {high:.3f}]"
        for kind in ("ratio", "over_torch foreach", "over_torch fused", "vanishjax_over_floor")
        if kind in found
        for low, high in [found[kind]["quartiles"]]
    ]
    print(f"{name:48} {'  '.join(parts)}", flush=True)


def main() -> None:
    """Times all of it, and writes step_time.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--parameters", type=int, help="of the trees that all optimizers get")
    options = parser.parse_args()
    quick = options.quick
    parameters = options.parameters or (200_000 if quick else 8_000_000)
    turns = 5 if quick else 40
    names = ("adam", "clip + adamw") if quick else tuple(OPTIMIZERS)
    settings = {
        "parameters": parameters,
        "trees": {name: [list(s) for s in shapes] for name, shapes in trees(parameters).items()},
        "dtype": "float32",
        "order": "(params, state, gradients) -> (params, state), params and state donated",
        "warm_up_turns": timing.WARM_UP,
        "seed": 0,
        "quick": quick,
    }
    results: dict[str, dict] = {"optimizers": {}, "forms": {}}
    for tree, shapes in trees(parameters).items():
        for name in names:
            found = compare(OPTIMIZERS[name], shapes, jnp.float32, turns, name)
            results["optimizers"][f"{name}, {tree}"] = found
            show(f"{name}, {tree}", found)
    record.write("step_time", options.out, settings, results)
    for name, (optimizers, shapes, dtype) in forms(quick).items():
        few = sum(map(np.prod, shapes)) >= 10**8
        peer = "adam" if optimizers is OPTIMIZERS["adam"] and dtype == jnp.float32 else None
        found = compare(optimizers, shapes, dtype, turns // 4 if few else turns, peer)
        results["forms"][name] = found
        show(name, found)
    record.write("step_time", options.out, settings, results)


if __name__ == "__main__":
    main()
