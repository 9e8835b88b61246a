"""What `fit` costs beside a bare loop: the same steps on the same data, by turns in one process.

The bare loop calls one jitted step (optax, donated state) for every batch and never looks at a
loss. It gets the same iterable of batches, or slices the same arrays. `fit` shuffles arrays, keeps
every loss and can be interrupted. Small networks, where the loop is what costs, and a larger one.

    python -m benchmarks fit_overhead
"""

import resource
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record, timing

FEATURES, CLASSES, EPOCHS = 64, 10, 2
# Width, batch size, number of batches.
SIZES = {"small": (32, 32, 300), "medium": (256, 128, 150), "large": (1024, 256, 20)}


class Batches:
    """An iterable of NumPy batches, which are cut from arrays as a loader does."""

    def __init__(self, arrays: Any, size: int) -> None:
        self.arrays, self.size = arrays, size

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.arrays[0]), self.size):
            yield jax.tree.map(lambda a, s=start: a[s : s + self.size].copy(), self.arrays)


def problem_of(width: int) -> vj.Problem:
    """A network of three layers."""
    return vj.mlp_problem(FEATURES, (width,) * 3, CLASSES, activation="relu", tx=optax.adam(1e-3))


def bare_loop(problem: vj.Problem, batches: Batches) -> Callable[[], Any]:
    """The loop that everybody writes."""
    tx = problem.transform

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, gradient = jax.value_and_grad(problem.loss_fn)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))

    def run() -> Any:
        params = jax.tree.map(lambda x: x + 0, problem.params)
        state, loss = tx.init(params), None
        for _ in range(EPOCHS):
            for batch in batches:
                params, state, loss = jitted(params, state, batch)
        return params, loss

    return run


def fitted(problem: vj.Problem, train: Any, ratios: list[float], **size: int) -> Callable[[], Any]:
    """`fit`, and the seconds of its epochs without compilation."""

    def run() -> Any:
        state, history = vj.fit(
            problem, vj.TrainState.create(problem), train, epochs=EPOCHS, **size
        )
        ratios.append(sum(history.to_dict()["seconds"]))
        return state

    return run


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(width: int, size: int, count: int, turns: int) -> dict[str, Any]:
    """Seconds of all contenders on one network."""
    rng = np.random.default_rng(0)
    examples = size * count
    arrays = (
        rng.standard_normal((examples, FEATURES)).astype(np.float32),
        rng.integers(0, CLASSES, examples).astype(np.int32),
    )
    problem, batches = problem_of(width), Batches(arrays, size)
    of_batches: list[float] = []
    of_arrays: list[float] = []
    before = peak_megabytes()
    bare = timing.by_turns({"bare": bare_loop(problem, batches)}, 1, warm_up=0)
    after_bare = peak_megabytes()
    samples = timing.by_turns(
        {
            "bare": bare_loop(problem, batches),
            "fit on batches": fitted(problem, batches, of_batches),
            "fit on arrays": fitted(problem, arrays, of_arrays, batch_size=size),
        },
        turns,
        warm_up=1,
    )
    del bare
    seconds = {
        "bare": samples["bare"],
        # The epochs alone: each call of fit compiles anew, which is not the loop.
        "fit on batches": of_batches[-turns:],
        "fit on arrays": of_arrays[-turns:],
    }
    return {
        "width": width,
        "batch_size": size,
        "steps": count * EPOCHS,
        "microseconds_a_step": {
            name: record.spread([1e6 * s / (count * EPOCHS) for s in taken])
            for name, taken in seconds.items()
        },
        "of_bare": {
            name: timing.ratio(taken, seconds["bare"])
            for name, taken in seconds.items()
            if name != "bare"
        },
        "peak_megabytes": {
            "before": before,
            "bare": after_bare,
            "with fit": peak_megabytes(),
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Measures and writes `fit_overhead.json`."""
    options = record.parser(__doc__ or "").parse_args(argv)
    turns = 3 if options.quick else 9
    sizes = {"small": (32, 32, 20)} if options.quick else SIZES
    results = {name: measure(*size, turns) for name, size in sizes.items()}
    for name, result in results.items():
        for contender, ratio in result["of_bare"].items():
            print(f"{name}: {contender} takes {ratio['median']:.2f} of the bare loop")
    record.write("fit_overhead", options.out, {"turns": turns, "epochs": EPOCHS}, results)


if __name__ == "__main__":
    main()
