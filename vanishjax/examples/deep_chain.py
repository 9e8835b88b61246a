"""Train 1,000 plain sigmoid layers, no skips, no normalization: a shaped start and deep_adam."""

import argparse
import dataclasses

from flax import nnx

import vanishjax as vj
from vanishjax.training.data import load_dataset


class Chain(nnx.Module):
    def __init__(self, depth, width, rngs):
        @nnx.split_rngs(splits=depth - 1)
        @nnx.vmap
        def stack(rngs):
            return nnx.Linear(width, width, rngs=rngs)

        self.first = nnx.Linear(64, width, rngs=rngs)
        self.hidden = stack(rngs)
        self.last = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return nnx.sigmoid(layer(x))

        return self.last(forward(nnx.sigmoid(self.first(x)), self.hidden))


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    return vj.losses.cross_entropy(logits, labels), {"accuracy": vj.losses.accuracy(logits, labels)}


def main(depth=1000, epochs=10):
    dataset = load_dataset("digits")
    train = (dataset.train.inputs, dataset.train.labels)
    test = (dataset.test.inputs, dataset.test.labels)
    total_steps = epochs * -(-len(train[0]) // 64)

    as_usual = vj.Problem.from_nnx(Chain(depth, 64, nnx.Rngs(0)), loss_fn, vj.adam(1e-3))
    layers = vj.find_layers(as_usual, train)
    shaped = dataclasses.replace(
        as_usual,
        params=vj.initializers.shaped(as_usual, train),
        tx=vj.deep_adam(0.1, total_steps, activation="sigmoid", layers=layers),
    )
    for name, problem in {"adam": as_usual, "shaped, deep_adam": shaped}.items():
        state = vj.TrainState.create(problem)
        _, history = vj.fit(problem, state, train, epochs=epochs, batch_size=64, validation=test)
        accuracy = history.last["validation_accuracy"]
        print(f"{depth} layers, {name}: test accuracy {accuracy:.3f} (chance is 0.1)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    main(**vars(parser.parse_args()))
