"""Plain networks, Flax's default initialization, trained by transforms alone: how deep?

Every contender trains the same networks on the same batches, with every rate of its grid falling
linearly to 2 %, and every seed; the rate is chosen on validation data, and the accuracy on the
training and the test data at that rate is shown. optax's own optimizers get the layers apart, not
as a stack, which they would take for one layer. A cell is written as soon as it is done, with its
commit, and a run that was broken off goes on where it was.

    python -m benchmarks headline --data-dir FOLDER_OF_mnist_AND_fashion-mnist
"""

import functools
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record
from vanishjax.models import stack_params, unstack_params
from vanishjax.training import local_step, scan_steps
from vanishjax.training.batches import rows_of
from vanishjax.training.data import load_dataset

SPLIT, END = 0.2, 0.02


class Network(NamedTuple):
    """What is trained, and on what."""

    depth: int
    activation: str = "sigmoid"
    width: int = 64
    batch_size: int = 64
    epochs: int = 3
    data: str = "mnist"


def apart(tx):
    """The transform, shown the layers of a stack apart."""

    def update(updates, state, params):
        steps, state = tx.update(unstack_params(updates), state, unstack_params(params))
        return stack_params(steps), state

    return optax.GradientTransformation(lambda params: tx.init(unstack_params(params)), update)


def falling(rate, steps):
    """The schedule of all: linear, to 2 %."""
    return optax.linear_schedule(rate, END * rate, steps)


def deep_muon(rate, steps, layers, **options):
    """Ours."""
    return vj.deep_muon(rate, steps, layers=layers, **options)


# Other ways to orthogonalize in as many steps.
COEFFICIENTS = ("dion", "polar_express")
# Made from a rate, the number of steps and the layers; the rates to choose from.
CONTENDERS = {
    "deep_muon": (deep_muon, (0.01, 0.02, 0.03)),
    "deep_muon, polar growth": (
        lambda rate, steps, layers: vj.polar_growth(deep_muon(rate, steps, layers), layers=layers),
        (0.005, 0.01, 0.02),
    ),
    "deep_muon, recondition": (
        functools.partial(deep_muon, recondition=True),
        (0.005, 0.01, 0.02),
    ),
    **{
        f"deep_muon, {name}": (functools.partial(deep_muon, ns_coeffs=name), (0.01, 0.02, 0.03))
        for name in COEFFICIENTS
    },
    "optax adam": (
        lambda rate, steps, _: optax.adam(falling(rate, steps)),
        (0.001, 0.003, 0.01),
    ),
    "optax nadam": (
        lambda rate, steps, _: optax.nadam(falling(rate, steps)),
        (0.001, 0.003, 0.01),
    ),
    "optax lamb": (
        lambda rate, steps, _: apart(optax.lamb(falling(rate, steps))),
        (0.003, 0.01, 0.03),
    ),
    "optax muon": (
        lambda rate, steps, _: apart(optax.contrib.muon(falling(rate, steps))),
        (0.003, 0.01, 0.03),
    ),
}
ABLATED = tuple(f"deep_muon, {name}" for name in COEFFICIENTS)
OURS = tuple(name for name in CONTENDERS if name.startswith("deep") and name not in ABLATED)
# What a healthy network would be trained with.
USUAL = ("deep_muon", "optax adam", "optax muon")

PARTS = {
    "headline": [
        (Network(depth), tuple(n for n in CONTENDERS if n not in ABLATED))
        for depth in (16, 32, 48, 64)
    ],
    "beyond": [
        (Network(128, epochs=5), ("deep_muon, polar growth", "deep_muon, recondition")),
        (Network(32, data="fashion_mnist"), OURS),
        (Network(32, width=32), OURS),
        (Network(32, width=128), OURS),
        (Network(32, batch_size=256, epochs=12), OURS),
    ],
    "coefficients": [(Network(depth), ("deep_muon", *ABLATED)) for depth in (16, 64)],
    "healthy": [
        (Network(16, "relu"), USUAL),
        (Network(16, "tanh"), USUAL),
    ],
}


QUICK = {"headline": [(Network(4, epochs=1), ("deep_muon", "optax adam"))]}


@functools.cache
def load(name, folder):
    """Training, validation and test data, as arrays."""
    data = load_dataset(
        name, data_dir=folder / name.replace("_", "-"), validation_split=SPLIT, seed=0
    )
    return [
        (jnp.asarray(part.inputs), jnp.asarray(part.labels))
        for part in (data.train, data.validation, data.test)
    ]


def accuracy(predict_fn, params, data):
    """Accuracy, in chunks."""

    def right(chunk):
        x, y = chunk
        return jnp.mean(jnp.argmax(predict_fn(params, x), axis=-1) == y)

    n = len(data[1]) // 1000 * 1000
    chunks = jax.tree.map(lambda a: a[:n].reshape(-1, 1000, *a.shape[1:]), data)
    return jnp.mean(jax.lax.map(right, chunks))


def train(network, contender, seeds, folder):
    """All rates and seeds of a contender, as one compiled program."""
    make, rates = CONTENDERS[contender]
    train_data, validation, test = load(network.data, folder)
    hidden = (network.width,) * network.depth
    examples = len(train_data[0])
    per_epoch = examples // network.batch_size
    steps = network.epochs * per_epoch
    problems = [
        vj.mlp_problem(
            train_data[0].shape[-1],
            hidden,
            10,
            activation=network.activation,
            scan=True,
            key=jax.random.key(seed),
        )
        for seed in seeds
    ]
    problem = problems[0]
    first = jax.tree.map(lambda a: a[: network.batch_size], train_data)
    layers = vj.find_layers(problem.params, problem.loss_fn, first)
    generators = [np.random.default_rng(seed) for seed in seeds]
    orders = np.stack(
        [
            np.concatenate(
                [
                    rng.permutation(examples)[: per_epoch * network.batch_size].reshape(
                        per_epoch, -1
                    )
                    for _ in range(network.epochs)
                ]
            )
            for rng in generators
        ]
    ).astype(np.int32)

    def run(rate, params, order):
        tx = make(rate, steps, layers)

        step, start = local_step(problem.loss_fn, tx), vj.TrainState.create(params, tx)
        end, _ = scan_steps(step, start, order, functools.partial(rows_of, train_data))
        scored = (train_data, validation, test)
        return [accuracy(problem.predict_fn, end.params, data) for data in scored]

    params = jax.tree.map(lambda *x: jnp.stack(x), *(p.params for p in problems))

    def every(rates, params, orders):
        # One after the other: under vmap both sides of a cond would be computed at every step.
        over_seeds = lambda rate: jax.lax.map(lambda own: run(rate, *own), (params, orders))  # noqa: E731
        return jax.lax.map(over_seeds, rates)

    started = time.perf_counter()
    found = jax.device_get(jax.jit(every)(jnp.array(rates), params, jnp.asarray(orders)))
    found = np.asarray(found, float)
    best = int(np.argmax(found[1].mean(axis=1)))
    return {
        "network": network._asdict(),
        "contender": contender,
        "steps": steps,
        "learning_rate": rates[best],
        **{
            f"{part}_accuracy": found[i, best].tolist()
            for i, part in enumerate(("train", "validation", "test"))
        },
        "rates": {
            f"{rate:g}": {"train": found[0, i].tolist(), "validation": found[1, i].tolist()}
            for i, rate in enumerate(rates)
        },
        "seconds": time.perf_counter() - started,
    }


def main():
    """Trains what isn't in the JSON yet, and writes it."""
    parser = record.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, action="append")
    options = parser.parse_args()
    seeds = (0,) if options.quick else (0, 1, 2)
    settings = {"seeds": list(seeds), "validation_split": SPLIT, "end_of_rate": END}
    path = options.out / "headline.json"
    results = {part: [] for part in PARTS}
    if path.exists() and (known := json.loads(path.read_text()))["settings"] == settings:
        results |= known["results"]
    parts = QUICK if options.quick else PARTS
    for part in options.part or parts:
        for network, contenders in parts.get(part, ()):
            for contender in contenders:
                cell = {"network": network._asdict(), "contender": contender}
                if any(cell.items() <= done.items() for done in results[part]):
                    continue
                found = train(network, contender, seeds, options.data_dir) | record.commit()
                results[part].append(found)
                shown = [
                    f"{100 * np.mean(found[k]):.1f}" for k in ("train_accuracy", "test_accuracy")
                ]
                print(network, contender, found["learning_rate"], *shown, flush=True)
                record.write("headline", options.out, settings, results)


if __name__ == "__main__":
    main()
