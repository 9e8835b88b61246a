"""Training speed on the article's network: `vanishjax.fit`, a bare jitted loop, Keras on JAX.

784-64-32-10 with ReLU, batch 64, Adam, on 48,000 images of random pixels (the work doesn't depend
on them). One process; after a warm-up the three take turns, epoch by epoch, and ratios are taken
turn by turn.

    pip install keras && python -m benchmarks training_speed
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import numpy as np
import optax

from benchmarks import record, timing
from vanishjax import losses, mlp_problem, optimizers
from vanishjax.training import TrainState, fit

EXAMPLES, BATCH, HIDDEN, RATE = 48_000, 64, (64, 32), 1e-3
WARM_UP = 2


def bare_loop(inputs, labels):
    """A hand-written epoch: shuffled NumPy batches into one donated, jitted step of optax."""
    tx = optax.adam(RATE)
    problem = mlp_problem(784, HIDDEN, 10, activation="relu", tx=tx)

    def step(params, opt_state, batch):
        gradients = jax.grad(problem.loss_fn)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [problem.params, tx.init(problem.params)]
    rng = np.random.default_rng(0)

    def epoch():
        order = rng.permutation(len(inputs))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            state[:] = compiled(*state, (inputs[rows], labels[rows]))
        jax.block_until_ready(state)

    return epoch


def keras_fit(inputs, labels):
    """One epoch of Keras 3's `fit` on its JAX backend."""
    import keras

    model = keras.Sequential(
        [keras.Input((784,))]
        + [keras.layers.Dense(width, "relu") for width in HIDDEN]
        + [keras.layers.Dense(10)]
    )
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return lambda: model.fit(inputs, labels, batch_size=BATCH, epochs=1, verbose=0)


def main() -> None:
    """Times the three in turns and writes training_speed.json."""
    options = record.parser(__doc__).parse_args()
    turns, examples = (3, 6_400) if options.quick else (12, EXAMPLES)
    rng = np.random.default_rng(0)
    inputs = rng.random((examples, 784), np.float32)
    labels = rng.integers(0, 10, examples).astype(np.int32)
    peers = {"bare_loop": bare_loop(inputs, labels), "keras_fit": keras_fit(inputs, labels)}
    seconds: dict[str, list[float]] = {"vanishjax_fit": [], "bare_loop": [], "keras_fit": []}

    def take_turns(progress):
        seconds["vanishjax_fit"].append(progress.record["seconds"])
        for name, epoch in peers.items():
            seconds[name].append(timing.seconds(epoch))

    tx = optimizers.adam(RATE)
    problem = mlp_problem(784, HIDDEN, 10, activation="relu", tx=tx)

    def loss_fn(params, batch):
        logits = problem.predict_fn(params, batch[0])
        loss = losses.cross_entropy(logits, batch[1])
        return loss, {"accuracy": losses.accuracy(logits, batch[1])}

    fit(
        loss_fn,
        tx,
        TrainState.create(problem.params, tx),
        (inputs, labels),
        epochs=turns + WARM_UP,
        batch_size=BATCH,
        has_aux=True,
        on_epoch=take_turns,
    )
    warm = {name: samples[WARM_UP:] for name, samples in seconds.items()}
    ours = warm["vanishjax_fit"]
    results = {
        "seconds_per_epoch": {name: record.spread(found) for name, found in warm.items()},
        "bare_loop_over_vanishjax": timing.ratio(warm["bare_loop"], ours),
        "keras_over_vanishjax": timing.ratio(warm["keras_fit"], ours),
    }
    for name in ("bare_loop_over_vanishjax", "keras_over_vanishjax"):
        print(name, results[name]["median"], results[name]["quartiles"])
    settings = {
        "examples": examples,
        "batch_size": BATCH,
        "layers": [784, *HIDDEN, 10],
        "optimizer": "adam",
        "turns": turns,
        "warm_up_turns": WARM_UP,
        "seed": 0,
        "quick": options.quick,
    }
    record.write("training_speed", options.out, settings, results)


if __name__ == "__main__":
    main()
