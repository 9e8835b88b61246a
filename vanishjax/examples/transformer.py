"""Diagnose a transformer without normalization in Flax nnx, cure it, and train the cured one."""

import argparse

import jax.numpy as jnp
from flax import nnx

import vanishjax as vj
from vanishjax.training.data import load_dataset


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)
        return x + self.down(nnx.gelu(self.up(x)))


class Transformer(nnx.Module):
    """Sees an image of 8 x 8 pixels as eight tokens, its rows."""

    def __init__(self, depth, width, rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs):
            return Block(width, rngs)

        self.rows = nnx.Linear(8, width, rngs=rngs)
        self.place = nnx.Embed(8, width, rngs=rngs)
        self.blocks = stack(rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return block(x)

        x = self.rows(images.reshape(-1, 8, 8)) + self.place(jnp.arange(8))
        return self.head(forward(x, self.blocks).mean(axis=1))


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    return vj.losses.cross_entropy(logits, labels), {"accuracy": vj.losses.accuracy(logits, labels)}


def main(depth=24, epochs=20):
    dataset = load_dataset("digits")
    train = (dataset.train.inputs, dataset.train.labels)
    test = (dataset.test.inputs, dataset.test.labels)
    batches = [tuple(x[i : i + 64] for x in train) for i in range(0, len(train[0]) - 63, 64)]

    model = Transformer(depth, 32, nnx.Rngs(0))
    problem = vj.Problem.from_nnx(model, loss_fn, vj.adam(1e-3))
    print(str(vj.diagnose(problem, batches[0])).splitlines()[0])

    treatment = vj.cure(problem, batches, steps=30)
    print(str(treatment).splitlines()[0])
    print(treatment.recipe)

    cured = treatment.problem
    state = vj.TrainState.create(cured)
    state, history = vj.fit(cured, state, train, epochs=epochs, batch_size=64, validation=test)
    print(f"test accuracy {history.last['validation_accuracy']:.3f}")
    print(f"the trained model: {type(cured.model(state.params)).__name__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=20)
    main(**vars(parser.parse_args()))
