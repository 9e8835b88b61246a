"""Time of a training step on eight virtual CPU devices, in every way to wrap it, over one device.

The devices share the machine's few cores, so nothing can get faster: what the ratios show is the
cost of cutting a batch in eight, of the collectives and of the calls. A step takes the whole batch
from NumPy, forward, backward and Adam, on a small network (784-64-32-10) and a larger one (10
layers of 512), batch 512. By turns in one process.

    python -m benchmarks parallel_step
"""

import os

import jax
import numpy as np

import vanishjax as vj
from benchmarks import record, timing

DEVICES, BATCH, FEATURES, CLASSES = 8, 512, 784, 10
MODELS = {"784-64-32-10": (64, 32), "784-10 x 512-10": (512,) * 10}
WRAPPERS = {
    "one device": {},
    "one device again (noise)": {},
    "jit": {"parallel": "jit"},
    "jit, zero1": {"parallel": "jit", "shard_state": "zero1"},
    "jit, fsdp": {"parallel": "jit", "shard_state": "fsdp"},
    "shard_map": {"parallel": "shard_map"},
    "pmap": {"parallel": "pmap"},
}
STEPS_PER_SAMPLE = 5


class Training:
    """A compiled training step and its state."""

    def __init__(self, hidden, batch, wrapper):
        tx = vj.adam(1e-3)
        problem = vj.mlp_problem(FEATURES, hidden, CLASSES, activation="relu", tx=tx)
        self.batch = batch
        self.state = vj.TrainState.create(problem.params, tx)
        self.step = vj.make_train_step(problem.loss_fn, tx, **wrapper)

    def __call__(self):
        """One sample."""
        for _ in range(STEPS_PER_SAMPLE):
            self.state, metrics = self.step(self.state, self.batch)
        return self.state, metrics


def main():
    """Times all of it and writes parallel_step.json."""
    options = record.parser(__doc__).parse_args()
    # JAX reads it when it is first used.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    turns = 3 if options.quick else 25
    rng = np.random.default_rng(0)
    batch = rng.random((BATCH, FEATURES), np.float32), np.arange(BATCH, dtype=np.int32) % CLASSES
    results = {}
    for model in list(MODELS)[:1] if options.quick else MODELS:
        steps = {name: Training(MODELS[model], batch, how) for name, how in WRAPPERS.items()}
        samples = timing.by_turns(steps, turns)
        alone = samples["one device"]
        results[model] = {
            "seconds": {
                name: record.spread([taken / STEPS_PER_SAMPLE for taken in found])
                for name, found in samples.items()
            },
            "over_one_device": {
                name: timing.ratio(found, alone)
                for name, found in samples.items()
                if found is not alone
            },
        }
        for name, found in results[model]["over_one_device"].items():
            low, high = found["quartiles"]
            print(f"{model:18} {name:26} {found['median']:.2f} [{low:.2f}, {high:.2f}]", flush=True)
    settings = {
        "devices": jax.device_count(),
        "batch_size": BATCH,
        "optimizer": "adam",
        "steps_per_sample": STEPS_PER_SAMPLE,
        "turns": turns,
        "warm_up_turns": timing.WARM_UP,
        "seed": 0,
        "quick": options.quick,
    }
    record.write("parallel_step", options.out, settings, results)


if __name__ == "__main__":
    main()
