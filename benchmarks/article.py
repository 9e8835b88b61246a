"""The article's experiment: an MNIST MLP 784-64-32-10, 5 epochs, batch 64, validation split .2.

Adam, Nadam and SGD with Nesterov momentum: at the rates that the article uses (Keras's defaults),
and at the rate of a small grid that is best on validation data. Scores are the test set's.

    python -m benchmarks article --data-dir FOLDER_OF_mnist
"""

from pathlib import Path

import jax
import numpy as np

from benchmarks import record
from vanishjax import losses, mlp_problem, optimizers
from vanishjax.training import TrainState, fit, make_evaluate
from vanishjax.training.data import load_dataset

HIDDEN, ACTIVATION, BATCH, SPLIT = (64, 32), "relu", 64, 0.2
CONTENDERS = {
    "adam": (optimizers.adam, 0.001, (0.001, 0.003, 0.01)),
    "nadam": (optimizers.nadam, 0.001, (0.001, 0.003, 0.01)),
    "sgd": (optimizers.sgd, 0.01, (0.03, 0.1, 0.3)),
    "nesterov": (lambda rate: optimizers.sgd(rate, 0.9, True), 0.01, (0.01, 0.03, 0.1)),
}


def train(make, rate, seed, epochs, data_dir):
    """One run: validation and test accuracy, and test loss."""
    data = load_dataset("mnist", data_dir=data_dir, validation_split=SPLIT, seed=seed)
    tx = make(rate)
    problem = mlp_problem(784, HIDDEN, 10, activation=ACTIVATION, tx=tx, key=jax.random.key(seed))

    def loss_fn(params, batch):
        logits = problem.predict_fn(params, batch[0])
        return problem.loss_fn(params, batch), {"accuracy": losses.accuracy(logits, batch[1])}

    parts = [(part.inputs, part.labels) for part in (data.train, data.validation, data.test)]
    state = TrainState.create(problem.params, tx, jax.random.key(seed))
    state, history = fit(
        loss_fn,
        tx,
        state,
        parts[0],
        epochs=epochs,
        batch_size=BATCH,
        validation=parts[1],
        has_aux=True,
    )
    test = make_evaluate(loss_fn, has_aux=True)(state.params, parts[2])
    run = {
        "seed": seed,
        "validation_accuracy": history.last["validation_accuracy"],
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
    }
    print(f"  rate {rate:g} {run}", flush=True)
    return run


def main() -> None:
    """Runs every optimizer at every rate and seed, and writes article.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with mnist")
    options = parser.parse_args()
    seeds, epochs = ((0,), 1) if options.quick else ((0, 1, 2), 5)
    results = {}
    for name, (make, article_rate, whole_grid) in CONTENDERS.items():
        grid = whole_grid[:1] if options.quick else whole_grid
        print(name)
        runs = {
            rate: [train(make, rate, seed, epochs, options.data_dir / "mnist") for seed in seeds]
            for rate in sorted({article_rate, *grid})
        }
        best = max(grid, key=lambda rate: mean(runs[rate], "validation_accuracy"))
        results[name] = {
            "article": summary(article_rate, runs[article_rate]),
            "chosen_on_validation": summary(best, runs[best]),
            "runs": {f"{rate:g}": found for rate, found in runs.items()},
        }
        print(name, results[name]["article"], results[name]["chosen_on_validation"])
    settings = {
        "data": "mnist",
        "hidden": HIDDEN,
        "activation": ACTIVATION,
        "epochs": epochs,
        "batch_size": BATCH,
        "validation_split": SPLIT,
        "seeds": seeds,
        "quick": options.quick,
    }
    record.write("article", options.out, settings, results)


def mean(runs, name):
    """Mean of one score over the runs."""
    return float(np.mean([run[name] for run in runs]))


def summary(rate, runs):
    """Mean and standard deviation of the test accuracy at one rate."""
    return {
        "learning_rate": rate,
        "test_accuracy": mean(runs, "test_accuracy"),
        "test_accuracy_sd": float(np.std([run["test_accuracy"] for run in runs])),
        "test_loss": mean(runs, "test_loss"),
    }


if __name__ == "__main__":
    main()
