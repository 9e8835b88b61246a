"""Compare Adam, SGD with Nesterov momentum and Nadam on a 784-64-32-10 network in Flax linen.

`--data mnist` downloads MNIST once. The digits that come with the package have 64 pixels, so that
the network is 64-64-32-10.
"""

import argparse

import flax.linen as nn
import jax

import vanishjax as vj
from vanishjax.training.data import load_dataset

OPTIMIZERS = {
    "adam": vj.adam(1e-3),
    "sgd, nesterov": vj.sgd(1e-2, momentum=0.9, nesterov=True),
    "nadam": vj.nadam(1e-3),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(10)(x)


def loss_fn(apply, batch):
    images, labels = batch
    logits = apply(images)
    return vj.losses.cross_entropy(logits, labels), {"accuracy": vj.losses.accuracy(logits, labels)}


def main(data="digits", epochs=20):
    dataset = load_dataset(data)
    train = (dataset.train.inputs, dataset.train.labels)
    test = (dataset.test.inputs, dataset.test.labels)
    variables = Net().init(jax.random.key(0), train[0][:1])
    for name, tx in OPTIMIZERS.items():
        problem = vj.Problem.from_linen(Net(), variables, loss_fn, tx)
        state = vj.TrainState.create(problem)
        _, history = vj.fit(problem, state, train, epochs=epochs, batch_size=64, validation=test)
        print(f"{name:15} test accuracy {history.last['validation_accuracy']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="digits, mnist or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=20)
    main(**vars(parser.parse_args()))
