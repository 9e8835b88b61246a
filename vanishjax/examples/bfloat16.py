"""Train bfloat16 parameters at a small rate: plainly, with stochastic_round and with kahan_sum.

An update of less than half the distance to the next bfloat16 number, 1/512 of the parameter, is
lost where it is added as it is.
"""

import argparse
import dataclasses

import jax.numpy as jnp
import optax

import vanishjax as vj
from vanishjax.training.data import load_dataset

CASES = {
    "float32": (jnp.float32, optax.identity()),
    "bfloat16": (jnp.bfloat16, optax.identity()),
    "bfloat16, stochastic_round": (jnp.bfloat16, vj.stochastic_round()),
    "bfloat16, kahan_sum": (jnp.bfloat16, vj.kahan_sum()),
}


def main(epochs=20):
    dataset = load_dataset("digits")
    train = (dataset.train.inputs, dataset.train.labels)
    problem = vj.mlp_problem(64, (64, 32), 10, activation="relu")
    for name, (dtype, last) in CASES.items():
        params = optax.tree.cast(problem.params, dtype)
        problem = dataclasses.replace(problem, tx=optax.chain(vj.adam(3e-5), last))
        state = vj.TrainState.create(params, problem.tx)
        _, history = vj.fit(problem, state, train, epochs=epochs, batch_size=64)
        print(f"{name:27} training loss {history.last['loss']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    main(**vars(parser.parse_args()))
