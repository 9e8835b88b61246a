"""The coordinate check: how far do a few steps move a plain chain's outputs, at each depth?

Where one learning rate serves all depths, as many steps at that rate change what a network computes
by as much at every depth (Yang et al. 2022, arXiv 2203.03466, appendix D.1, there for widths; Dey
et al. 2025, arXiv 2505.01618, for depths). Networks of width 64 on MNIST; the change is that of the
logits, and of the last hidden layer, over a batch that isn't trained on: root mean square of the
difference over that of what tells inputs apart at the start. Rates are constant, without a warm-up:
`deep_adam`'s .1 from the shaped start, and what optax's Adam takes from critical orthogonal
kernels, 3e-4.

    python -m benchmarks coordinate_check --data-dir FOLDER_OF_mnist_AND_fashion-mnist
"""

import functools
from pathlib import Path

import jax
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record
from benchmarks.deep_chains import FIRST_LOOK, Network
from benchmarks.headline import load
from vanishjax.activations import ACTIVATIONS
from vanishjax.initializers import center_biases, shaped
from vanishjax.training import local_step, scan_steps
from vanishjax.training.batches import rows_of

DEPTHS = (16, 64, 256, 1000, 4000, 10_000)
FUNCTIONS = ("sigmoid", "tanh", "relu")
STEPS = (1, 4, 16)
OURS, PEER = "shaped, deep_adam", "critical orthogonal, optax adam"
RATES = {OURS: 0.1, PEER: 3e-4}


def features(params, inputs, f):
    """The last hidden layer, and the logits."""

    def layer(x, own):
        return f(x @ own["kernel"] + own["bias"])

    x = layer(inputs, params["hidden_0"])
    x, _ = jax.lax.scan(lambda x, own: (layer(x, own), None), x, params["hidden_stack"])
    return {"hidden": x, "logits": x @ params["output"]["kernel"] + params["output"]["bias"]}


def start(network, contender, data, key):
    """The problem, its first parameters and the optimizer."""
    problem = network.problem(data[0].shape[-1], contender == PEER, key)
    first = jax.tree.map(lambda a: a[: network.batch_size], data)
    rate = RATES[contender]
    if contender == PEER:
        return problem, center_biases(problem.params, network.activation), optax.adam(rate)
    layers = vj.find_layers(problem.params, problem.loss_fn, first)
    look = jax.tree.map(lambda a: a[:FIRST_LOOK], data)
    params = shaped(problem.loss_fn, problem.params, look)
    tx = vj.deep_adam(
        lambda _: rate, network.steps, activation=network.activation, layers=layers, start=False
    )
    return problem, params, tx


def changes(network, contender, folder, seed):
    """By number of steps the relative change of the last hidden layer and of the logits."""
    train_data, validation, _ = load("mnist", folder)
    problem, params, tx = start(network, contender, train_data, jax.random.key(seed))
    seen = validation[0][:FIRST_LOOK]
    rows = np.random.default_rng(seed).permutation(len(train_data[1]))
    rows = rows[: max(STEPS) * network.batch_size].reshape(-1, network.batch_size)

    @jax.jit
    def run(params, rows):
        def seen_by(state):
            return features(state.params, seen, ACTIVATIONS[network.activation])

        step, state = local_step(problem.loss_fn, tx), vj.TrainState.create(params, tx)
        batch_of = functools.partial(rows_of, train_data)
        _, (_, after) = scan_steps(step, state, rows, batch_of, observe=seen_by)
        return seen_by(state), after

    before, after = jax.device_get(run(params, rows))

    def size(x):
        return np.sqrt(np.mean(np.square(x, dtype=np.float64)))

    return {
        name: {
            str(count): float(
                size(after[name][count - 1] - value) / size(value - value.mean(axis=0))
            )
            for count in STEPS
        }
        for name, value in before.items()
    }


def main():
    """Measures every depth, and writes coordinate_check.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    options = parser.parse_args()
    depths, functions = ((8, 16), ("tanh",)) if options.quick else (DEPTHS, FUNCTIONS)
    seeds = 1 if options.quick else options.seeds
    settings = {"rates": RATES, "steps": STEPS, "seeds": seeds, "quick": options.quick}
    results = {}
    for depth in depths:
        for activation in functions:
            for contender in RATES:
                found = [
                    changes(Network(depth, activation), contender, options.data_dir, seed)
                    for seed in range(seeds)
                ]
                row = {
                    name: {
                        str(count): record.spread([one[name][str(count)] for one in found])
                        for count in STEPS
                    }
                    for name in ("hidden", "logits")
                }
                results[f"{activation} x{depth}, {contender}"] = row
                logits = {count: one["median"] for count, one in row["logits"].items()}
                print(f"{activation} x{depth}, {contender}: {logits}", flush=True)
                record.write("coordinate_check", options.out, settings, results)


if __name__ == "__main__":
    main()
