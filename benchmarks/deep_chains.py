"""Plain chains of a thousand layers, no skips and no normalization: who trains them at all?

Every contender trains the same networks on the same batches; the rate is chosen on validation data,
and the accuracy on the test data at that rate is shown. `deep_adam` starts from Flax's default
initialization and sees gradients and parameters alone; "shaped, deep_adam" starts from
`initializers.shaped`, whose first kernel looks at a batch. Beside them a network of depth 2 and a
linear classifier, trained for as many steps: what is shaped is nearly linear at the start, so
one that isn't better has gained nothing. optax's own optimizers get the layers apart,
not as a stack, which they would take for one layer. Centering as it was done before, and Muon among
rotations, have a table of their own (`benchmarks.prior_art`, `benchmarks.isometric`).

Every run of a network, a contender, a rate and a seed is a cell of its own, written as soon as it
is done with its commit; what was broken off goes on where it was, part by part:

    python -m benchmarks deep_chains --data-dir FOLDER_OF_mnist_AND_fashion-mnist
    python -m benchmarks.deep_chains --data-dir FOLDER --part 64 --part 256 --seeds 1
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
from benchmarks.headline import accuracy, apart, falling, load
from benchmarks.isometric import isometric_muon
from benchmarks.prior_art import constrain, constrained_start, mean_normalized_loss
from vanishjax.initializers import (
    center_biases,
    critical_orthogonal,
    identity_attention,
    shaped,
)
from vanishjax.training import local_step, scan_steps
from vanishjax.training.batches import rows_of

SPLIT, FIRST_LOOK = 0.2, 1024
LECUN = jax.nn.initializers.lecun_normal()


class Network(NamedTuple):
    """What is trained, and on what; depth 0 is a linear classifier."""

    depth: int
    activation: str = "sigmoid"
    width: int = 64
    batch_size: int = 64
    steps: int = 1200
    data: str = "mnist"

    def problem(self, inputs, critical, key):
        """The network at its start."""
        if not self.depth:
            return Linear({"kernel": LECUN(key, (inputs, 10)), "bias": jnp.zeros(10)})
        return vj.mlp_problem(
            inputs,
            (self.width,) * self.depth,
            10,
            activation=self.activation,
            kernel_init=critical_orthogonal(self.activation) if critical else LECUN,
            scan=self.depth > 2,
            key=key,
        )


# What a table's row or a picture need not say of a network.
USUAL = {field: Network._field_defaults[field] for field in ("width", "batch_size", "steps")}


class Contender(NamedTuple):
    """How a network is started and trained.

    Attributes:
      make: The transform, from a rate, the network and its layers.
      rates: To choose from, the likeliest first.
      start: What looks at a batch before: `(loss_fn, params, batch) -> params`, if any.
      critical: Whether kernels are drawn critical and orthogonal, and biases centered.
      loss: What is descended, from the network, if it isn't the problem's own.
    """

    make: object
    rates: tuple[float, ...]
    start: object = None
    critical: bool = False
    loss: object = None


def deep(rate, network, layers, method="dks"):
    """The flagship of plain chains."""
    return vj.deep_adam(
        rate, network.steps, activation=network.activation, layers=layers, method=method
    )


def adam(rate, network, _):
    """optax's, with the rate falling as headline's."""
    return optax.adam(falling(rate, network.steps))


def momentum(rate, network, _):
    """The same falling rate, with the momentum that both papers' fields use."""
    return optax.sgd(falling(rate, network.steps), momentum=0.9)


IDENTITY, IDENTITY_BY_DEPTH = (
    "identity_attention, optax adam",
    "identity_attention, optax adam, scale_by_depth",
)
SGD_RATES = (0.01, 0.003, 0.001, 0.03, 0.0003, 0.1, 0.0001, 0.3, 0.00003, 0.00001)
ISOMETRIC = "shaped, isometric muon"
TAT = "shaped, deep_adam, TAT"  # for smooth activations alone
CONTENDERS = {
    "shaped, deep_adam": Contender(deep, (0.1, 0.2, 0.05), start=shaped),
    "deep_adam": Contender(deep, (0.1, 0.2, 0.05)),
    TAT: Contender(
        functools.partial(deep, method="tat"),
        (0.1, 0.05, 0.2),
        start=functools.partial(shaped, method="tat"),
    ),
    "deep_muon, recondition": Contender(
        lambda rate, network, layers: vj.deep_muon(
            rate, network.steps, layers=layers, recondition=True
        ),
        (0.0025, 0.01, 0.005),
    ),
    "critical orthogonal, optax adam": Contender(
        adam, (0.0003, 0.0001, 0.00003, 0.00001, 0.001), critical=True
    ),
    ISOMETRIC: Contender(isometric_muon, (0.03, 0.1, 0.01, 0.3, 1.0), start=shaped),
    "critical orthogonal, mean-normalized SGD": Contender(
        momentum, SGD_RATES, critical=True, loss=mean_normalized_loss
    ),
    "shaped, mean-normalized SGD": Contender(
        momentum, SGD_RATES, start=shaped, loss=mean_normalized_loss
    ),
    "linearly constrained weights, SGD": Contender(
        lambda *given: optax.chain(constrain(), momentum(*given)),
        SGD_RATES,
        start=constrained_start,
        critical=True,
    ),
    "optax adam": Contender(adam, (0.001, 0.0003, 0.003, 0.01, 0.0001, 0.03)),
    # Of transformers: see `benchmarks.deep_attention`.
    IDENTITY: Contender(adam, (0.001, 0.0003, 0.0001), start=identity_attention),
    IDENTITY_BY_DEPTH: Contender(
        lambda rate, network, layers: optax.chain(
            adam(rate, network, layers), vj.scale_by_depth(layers)
        ),
        (0.01, 0.003, 0.001),
        start=identity_attention,
    ),
    "optax nadam": Contender(
        lambda rate, network, _: optax.nadam(falling(rate, network.steps)),
        (0.001, 0.0003, 0.003, 0.01, 0.0001),
    ),
    "optax lamb": Contender(
        lambda rate, network, _: apart(optax.lamb(falling(rate, network.steps))),
        (0.01, 0.003, 0.03, 0.001, 0.0003),
    ),
    "optax muon": Contender(
        lambda rate, network, _: apart(optax.contrib.muon(falling(rate, network.steps))),
        (0.01, 0.003, 0.03, 0.001, 0.0003),
    ),
}
OURS = tuple(CONTENDERS)[:2]
# Which take another way to the same: a table of their own.
OTHERS = (*(name for name in CONTENDERS if name.endswith("SGD")), ISOMETRIC)
ALL = tuple(name for name in CONTENDERS if name not in (TAT, IDENTITY, IDENTITY_BY_DEPTH))
STACKED = tuple(name for name in ALL if name not in ("optax lamb", "optax muon"))
ACTIVATIONS = ("sigmoid", "tanh", "relu")


def of_depth(depth, contenders, **settings):
    """One network of each activation."""
    return [(Network(depth, f, **settings), contenders) for f in ACTIVATIONS]


PARTS = {
    "reference": [
        (Network(0), ("optax adam",)),
        (Network(2, "relu"), ("optax adam",)),
        (Network(2, "tanh"), ("optax adam",)),
        (Network(2, "sigmoid"), ("optax adam",)),
        (Network(2, "gelu"), ("optax adam",)),
        (Network(2, "softplus"), ("optax adam",)),
    ],
    "shallow": [one for depth in (4, 8, 16, 32) for one in of_depth(depth, (ALL[0], "optax adam"))],
    "64": of_depth(64, ALL),
    # Of hundreds of arrays apart compilation takes minutes.
    "256": of_depth(256, STACKED),
    "1000": of_depth(1000, STACKED),
    "smooth": [
        (Network(depth, f), (*OURS, TAT)) for depth in (64, 256, 1000) for f in ("gelu", "softplus")
    ],
    "widths": [
        one
        for width in (32, 128)
        for one in (
            (Network(2, "relu", width), ("optax adam",)),
            *of_depth(256, ALL[:1], width=width),
            *of_depth(1000, ALL[:1], width=width),
        )
    ],
    "batch_256": [
        (Network(2, "relu", batch_size=256), ("optax adam",)),
        *of_depth(256, ALL[:1], batch_size=256),
        *of_depth(1000, ALL[:1], batch_size=256),
    ],
    "10000": [
        (Network(10_000, data="fashion_mnist"), OURS),
        (Network(10_000), ALL[:1]),
        (Network(10_000, "relu"), ALL[:1]),
        (Network(10_000, "tanh"), ALL[:1]),
        (Network(10_000, "gelu"), (TAT,)),
    ],
    # Steps of seconds: whether it learns at all.
    "100000": [
        (Network(100_000, width=32, steps=300), ALL[:1]),
        (Network(0, steps=300), ("optax adam",)),
        (Network(2, width=32, steps=300), ("optax adam",)),
    ],
    "fashion": [
        (Network(0, data="fashion_mnist"), ("optax adam",)),
        (Network(2, "relu", data="fashion_mnist"), ("optax adam",)),
        *of_depth(256, OURS, data="fashion_mnist"),
        *(
            one
            for f in ("gelu", "softplus")
            for one in (
                (Network(2, f, data="fashion_mnist"), ("optax adam",)),
                (Network(256, f, data="fashion_mnist"), (TAT,)),
            )
        ),
    ],
}
QUICK = {
    "reference": [(Network(0, steps=20), ("optax adam",))],
    "64": [(Network(16, steps=20), OURS)],
}


class Linear(NamedTuple):
    """A linear classifier as a problem."""

    params: object

    @staticmethod
    def predict_fn(params, inputs):
        """Logits."""
        return inputs @ params["kernel"] + params["bias"]

    def loss_fn(self, params, batch):
        """Cross-entropy of `(inputs, labels)`."""
        return vj.losses.cross_entropy(self.predict_fn(params, batch[0]), batch[1])


def problem_of(network, contender, inputs, seed):
    """The network at the start that this contender gets."""
    return network.problem(inputs, CONTENDERS[contender].critical, jax.random.key(seed))


@functools.cache
def program(network, contender, folder):
    """`(params, rate, rows) -> accuracies, losses`, compiled once for all rates and seeds."""
    train_data, validation, test = load(network.data, folder)
    problem = problem_of(network, contender, train_data[0].shape[-1], 0)
    first = jax.tree.map(lambda a: a[: network.batch_size], train_data)
    layers = vj.find_layers(problem.params, problem.loss_fn, first)
    own_loss = CONTENDERS[contender].loss
    loss_fn = problem.loss_fn if own_loss is None else own_loss(network)

    @jax.jit
    def run(params, rate, rows):
        tx = CONTENDERS[contender].make(rate, network, layers)

        step, start = local_step(loss_fn, tx), vj.TrainState.create(params, tx)
        end, metrics = scan_steps(step, start, rows, functools.partial(rows_of, train_data))
        # Of the training data as much as there is of the test data.
        part = jax.tree.map(lambda a: a[: len(test[1])], train_data)
        scores = [
            accuracy(problem.predict_fn, end.params, data) for data in (part, validation, test)
        ]
        return scores, metrics["loss"]

    return run


def train(network, contender, rate, seed, folder):
    """One cell."""
    started = time.perf_counter()
    train_data, _, _ = load(network.data, folder)
    problem = problem_of(network, contender, train_data[0].shape[-1], seed)
    params = problem.params
    if CONTENDERS[contender].critical:
        params = center_biases(params, network.activation)
    if CONTENDERS[contender].start is not None:
        look = jax.tree.map(lambda a: a[:FIRST_LOOK], train_data)
        params = CONTENDERS[contender].start(problem.loss_fn, params, look)
    rng = np.random.default_rng(seed)
    examples, size = len(train_data[1]), network.batch_size
    orders = [rng.permutation(examples)[: examples // size * size].reshape(-1, size)]
    while sum(map(len, orders)) < network.steps:
        orders.append(rng.permutation(examples)[: examples // size * size].reshape(-1, size))
    rows = np.concatenate(orders)[: network.steps].astype(np.int32)
    scores, losses = jax.device_get(program(network, contender, folder)(params, rate, rows))
    losses = np.asarray(losses, float)
    return {
        **{
            f"{part}_accuracy": float(score)
            for part, score in zip(("train", "validation", "test"), scores, strict=True)
        },
        # Not a number isn't JSON.
        "losses": [x if np.isfinite(x) else None for x in losses[:: max(1, network.steps // 24)]],
        "seconds": time.perf_counter() - started,
    }


def best(cells):
    """The cells of the rate that is the best on validation data, by seed."""
    rates = {cell["learning_rate"] for cell in cells}
    by_rate = {
        rate: [cell for cell in cells if cell["learning_rate"] == rate] for rate in sorted(rates)
    }
    return max(
        by_rate.values(),
        key=lambda own: (len(own), np.mean([cell["validation_accuracy"] for cell in own])),
    )


def measure(name, description, parts, quick):
    """Trains what isn't in `<name>.json` yet, and writes it."""
    parser = record.parser(description)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--part", choices=parts, action="append")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    most = max(len(one.rates) for one in CONTENDERS.values())
    parser.add_argument("--rates", type=int, default=most, help="how many (default: all)")
    parser.add_argument("--rate", type=float, action="append", help="only these of the rates")
    parser.add_argument("--network", action="append", help="only those with field=value")
    parser.add_argument("--contender", choices=CONTENDERS, action="append", help="only these")
    options = parser.parse_args()
    # Accelerators round the factors of a product where nothing else is said: too coarse for a
    # thousand layers.
    jax.config.update("jax_default_matmul_precision", "highest")
    wanted_parts = quick if options.quick else parts
    seeds, rates = (1, 1) if options.quick else (options.seeds, options.rates)
    settings = {"validation_split": SPLIT, "first_look": FIRST_LOOK}
    path = options.out / f"{name}.json"
    results = {part: [] for part in parts}
    if path.exists() and (known := json.loads(path.read_text()))["settings"] == settings:
        results |= known["results"]
    # All networks at the likeliest rate first, so that what is broken off has seen them all.
    wanted = [
        (part, network, contender, rate, seed)
        for part in options.part or wanted_parts
        for number in range(rates)
        for seed in range(seeds)
        for network, contenders in wanted_parts.get(part, ())
        if {f"{field}={value}" for field, value in network._asdict().items()}.issuperset(
            options.network or ()
        )
        for contender in contenders
        if contender in (options.contender or contenders)
        for rate in CONTENDERS[contender].rates[number : number + 1]
        if rate in (options.rate or (rate,))
    ]
    for part, network, contender, rate, seed in wanted:
        cell = {
            "network": network._asdict(),
            "contender": contender,
            "learning_rate": rate,
            "seed": seed,
        }
        if any(cell.items() <= done.items() for done in results[part]):
            continue
        found = cell | train(network, contender, rate, seed, options.data_dir) | record.commit()
        results[part].append(found)
        print(network, contender, rate, seed, f"{100 * found['test_accuracy']:.1f}", flush=True)
        record.write(name, options.out, settings, results)


def main():
    """Trains plain chains."""
    measure("deep_chains", __doc__, PARTS, QUICK)


if __name__ == "__main__":
    main()
