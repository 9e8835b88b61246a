"""Training speed: `vanishjax.fit` beside a bare jitted loop, `nnx.jit`, Keras on JAX, and torch.

The article's network (784-64-32-10, batch 64, an epoch of 48,000 images) and a large one (10 layers
of 1,024, batch 128), both ReLU with Adam, on random pixels: the work doesn't depend on them. One
process; after a warm-up all take turns, epoch by epoch, and ratios are taken turn by turn. All
layers are unrolled, as those of other libraries are; a bare loop over the same layers as one stack
shows what that costs where layers are large. The arithmetic floor is the time of the matrix
products of an epoch, at the speed of products of two 2,048 x 2,048 matrices in the same turn. torch
takes part where it is installed.

    pip install keras torch && python -m benchmarks training_speed
"""

import itertools
import os
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import record, timing, torch_peer
from vanishjax import losses, mlp_problem, optimizers
from vanishjax.training import TrainState, fit

FEATURES, CLASSES, RATE = 784, 10, 1e-3
WARM_UP = 2
SIDE, PRODUCTS = 2048, 2


class Model(NamedTuple):
    """A network and how much an epoch is."""

    hidden: tuple[int, ...]
    batch_size: int
    examples: int

    def flops(self):
        """Of all matrix products of an epoch: forward, and the gradients of kernels and inputs."""
        widths = (FEATURES, *self.hidden, CLASSES)
        kernels = [a * b for a, b in itertools.pairwise(widths)]
        # Nobody needs the gradient of the images.
        return 2 * self.examples * (3 * sum(kernels) - kernels[0])


MODELS = {
    "784-64-32-10": Model((64, 32), 64, 48_000),
    "784-10 x 1024-10": Model((1024,) * 10, 128, 2_560),
}
QUICK = {"784-64-32-10": Model((64, 32), 64, 6_400)}


def batches(rng, inputs, labels, batch_size):
    """Shuffled NumPy batches."""
    order = rng.permutation(len(inputs))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield inputs[rows], labels[rows]


def mlp(model, tx, scan=False):
    """The network and its loss."""
    return mlp_problem(FEATURES, model.hidden, CLASSES, activation="relu", tx=tx, scan=scan)


def bare_loop(model, inputs, labels, scan=False):
    """A hand-written epoch: NumPy batches into one donated, jitted step of optax."""
    tx = optax.adam(RATE)
    problem = mlp(model, tx, scan)

    def step(params, opt_state, batch):
        gradients = jax.grad(problem.loss_fn)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [problem.params, tx.init(problem.params)]
    rng = np.random.default_rng(0)

    def epoch():
        for batch in batches(rng, inputs, labels, model.batch_size):
            state[:] = compiled(*state, batch)
        jax.block_until_ready(state)

    return epoch


def nnx_loop(model, inputs, labels):
    """The loop of Flax's own tutorial: `nnx.jit` over a module and an `nnx.Optimizer`."""
    rngs = nnx.Rngs(0)
    widths = (FEATURES, *model.hidden, CLASSES)
    layers = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nnx.Linear(wide, narrow, rngs=rngs), jax.nn.relu]
    net = nnx.Sequential(*layers[:-1])
    optimizer = nnx.Optimizer(net, optax.adam(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, batch):
        gradients = nnx.grad(lambda net: losses.cross_entropy(net(batch[0]), batch[1]))(net)
        optimizer.update(net, gradients)

    rng = np.random.default_rng(0)

    def epoch():
        for batch in batches(rng, inputs, labels, model.batch_size):
            step(net, optimizer, batch)
        jax.block_until_ready(nnx.state(net))

    return epoch


def keras_fit(model, inputs, labels):
    """One epoch of Keras 3's `fit` on its JAX backend."""
    import keras

    net = keras.Sequential(
        [keras.Input((FEATURES,))]
        + [keras.layers.Dense(width, "relu") for width in model.hidden]
        + [keras.layers.Dense(CLASSES)]
    )
    net.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return lambda: net.fit(inputs, labels, batch_size=model.batch_size, epochs=1, verbose=0)


def products():
    """The machine's matrix products: a contender, and how many operations it is."""
    matrix = jnp.ones((SIDE, SIDE))
    multiply = jax.jit(jnp.matmul)
    return (lambda: [multiply(matrix, matrix) for _ in range(PRODUCTS)]), 2 * SIDE**3 * PRODUCTS


def measure(model, turns):
    """All contenders on one network."""
    rng = np.random.default_rng(0)
    inputs = rng.random((model.examples, FEATURES), np.float32)
    labels = rng.integers(0, CLASSES, model.examples).astype(np.int32)
    multiply, operations = products()
    stacked = {}
    if len(set(model.hidden)) == 1:
        stacked["bare loop, stack"] = bare_loop(model, inputs, labels, scan=True)
    peers = {
        "bare loop": bare_loop(model, inputs, labels),
        **stacked,
        "nnx.jit": nnx_loop(model, inputs, labels),
        "keras": keras_fit(model, inputs, labels),
        **torch_peer.epochs(FEATURES, model.hidden, CLASSES, inputs, labels, model.batch_size),
        "products": multiply,
    }
    ours = "vanishjax.fit"
    seconds: dict[str, list[float]] = {name: [] for name in (ours, *peers)}

    def take_turns(progress):
        seconds[ours].append(progress.record["seconds"])
        for name, epoch in peers.items():
            seconds[name].append(timing.seconds(epoch))

    tx = optimizers.adam(RATE)
    problem = mlp(model, tx)

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
        batch_size=model.batch_size,
        has_aux=True,
        on_epoch=take_turns,
    )
    warm = {name: samples[WARM_UP:] for name, samples in seconds.items()}
    floor = [taken * model.flops() / operations for taken in warm.pop("products")]
    return {
        "seconds_per_epoch": {name: record.spread(found) for name, found in warm.items()},
        "examples_per_second": {
            name: record.spread([model.examples / taken for taken in found])
            for name, found in warm.items()
        },
        "over_vanishjax": {
            name: timing.ratio(found, warm[ours]) for name, found in warm.items() if name != ours
        },
        "share_of_arithmetic_floor": {
            name: timing.ratio(floor, found) for name, found in warm.items()
        },
        "flops_per_epoch": model.flops(),
        "turns": turns,
    }


def main() -> None:
    """Times all of them in turns and writes training_speed.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--turns", type=int, help="epochs of each (default: 12)")
    options = parser.parse_args()
    models, turns = (QUICK, 3) if options.quick else (MODELS, 12)
    turns = options.turns or turns
    settings = {
        "models": {name: model._asdict() for name, model in models.items()},
        "activation": "relu",
        "optimizer": "adam",
        "warm_up_turns": WARM_UP,
        "seed": 0,
        "quick": options.quick,
    }
    results = {}
    for name, model in models.items():
        results[name] = measure(model, turns)
        for kind in ("over_vanishjax", "share_of_arithmetic_floor"):
            for contender, found in results[name][kind].items():
                low, high = found["quartiles"]
                shown = f"{found['median']:.3f} [{low:.3f}, {high:.3f}]"
                print(f"{name:18} {kind:26} {contender:16} {shown}", flush=True)
        record.write("training_speed", options.out, settings, results)


if __name__ == "__main__":
    main()
