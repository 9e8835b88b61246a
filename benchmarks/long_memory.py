"""Recurrent networks that have to remember: how far back do they learn from?

The first of many symbols of eight is to be told after the last one; a guess is right in 12.5 % of
cases. One cell of width 32 over a learned embedding (Flax linen), batch 64, fresh sequences in each
step, Adam behind a clip to a global norm of 1, at the rate of three that is the best on validation
data. Starts: Flax's own; the usual open gates, biases of 1 (Gers et al. 2000; Jozefowicz et al.
2015); chrono initialization as published (Tallec and Ollivier 2018, equation 16), input gates
included; for rectifiers the identity (Le et al. 2015); and `vanishjax.initializers.long_memory`.

    python -m benchmarks long_memory
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import record
from vanishjax.initializers import long_memory

SYMBOLS, WIDTH, BATCH = 8, 32, 64
LAGS = (25, 50, 100)
RATES = (1e-2, 3e-3, 1e-3)
STEPS = 800
OURS, LIBRARY = "long_memory", "as Flax starts it"
CELLS = {
    "LSTM": functools.partial(nn.LSTMCell, WIDTH),
    "GRU": functools.partial(nn.GRUCell, WIDTH),
    "simple cell, tanh": functools.partial(nn.SimpleCell, WIDTH),
    "simple cell, ReLU": functools.partial(nn.SimpleCell, WIDTH, activation_fn=nn.relu),
}


class Net(nn.Module):
    """A recurrent cell over embedded symbols; the last output tells the first symbol."""

    cell: str

    @nn.compact
    def __call__(self, x):
        """Logits of the first symbol."""
        x = nn.Embed(SYMBOLS, 16, embedding_init=nn.initializers.normal(0.5))(x)
        return nn.Dense(SYMBOLS, name="head")(nn.RNN(CELLS[self.cell](name="cell"))(x)[:, -1])


def batch_of(key, count, lag):
    """Symbols, and the first of each sequence."""
    symbols = jax.random.randint(key, (count, lag), 0, SYMBOLS)
    return symbols, symbols[:, 0]


def _as_it_is(params, key, lag):
    del key, lag
    return params


def _with(params, name, values):
    """The parameters with other values of that name by gate, as wide as what was there."""
    cell = params["params"]["cell"]
    made = {
        gate: cell[gate] | {name: jnp.broadcast_to(own, cell[gate][name].shape)}
        for gate, own in values.items()
    }
    return {"params": params["params"] | {"cell": cell | made}}


def _open(gate):
    def made(params, key, lag):
        del key, lag
        return _with(params, "bias", {gate: 1.0})

    return made


def _chrono(params, key, lag):
    times = jnp.log(jax.random.uniform(key, (WIDTH,), minval=1.0, maxval=lag - 1.0))
    return _with(params, "bias", {"hf": times, "hi": -times})


def _identity(params, key, lag):
    del key, lag
    return _with(params, "kernel", {"h": jnp.eye(WIDTH)})


STARTS = {
    "LSTM": {LIBRARY: _as_it_is, "biases of 1": _open("hf"), "chrono": _chrono},
    "GRU": {LIBRARY: _as_it_is, "biases of 1": _open("iz")},
    "simple cell, tanh": {LIBRARY: _as_it_is},
    "simple cell, ReLU": {LIBRARY: _as_it_is, "identity": _identity},
}


def train(cell, start, lag, rate, seeds, steps):
    """Accuracies of some seeds: on validation data, and on test data."""
    net = Net(cell)

    def loss_fn(params, batch):
        logits = net.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def begin(seed):
        key = jax.random.key(seed)
        look = batch_of(jax.random.fold_in(key, 1), BATCH, lag)
        params = net.init(key, look[0])
        if start == OURS:
            return long_memory(loss_fn, params, look)
        return STARTS[cell][start](params, jax.random.fold_in(key, 2), lag)

    first = jax.tree.map(lambda *x: jnp.stack(x), *map(begin, range(seeds)))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def run(params, seed):
        def step(carry, number):
            params, state = carry
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), seed), number)
            gradient = jax.grad(loss_fn)(params, batch_of(key, BATCH, lag))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))

        def accuracy(key):
            symbols, labels = batch_of(jax.random.key(key), 1024, lag)
            return jnp.mean(jnp.argmax(net.apply(params, symbols), axis=-1) == labels)

        return accuracy(1001), accuracy(1002)

    validation, test = jax.jit(jax.vmap(run))(first, jnp.arange(seeds))
    return np.asarray(validation).tolist(), np.asarray(test).tolist()


def measure(cell, start, lag, seeds, steps):
    """The accuracies at the rate that is the best on validation data."""
    runs = {rate: train(cell, start, lag, rate, seeds, steps) for rate in RATES}
    rate = max(runs, key=lambda rate: np.mean(runs[rate][0]))
    return {
        "cell": cell,
        "start": start,
        "lag": lag,
        "rate": rate,
        "test_accuracy": record.spread(runs[rate][1]),
        "validation_accuracy": {str(rate): own for rate, (own, _) in runs.items()},
    }


def main():
    """Measures every cell, start and lag, and writes long_memory.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    options = parser.parse_args()
    lags, seeds, steps = ((10,), 1, 50) if options.quick else (LAGS, options.seeds, STEPS)
    settings = {"rates": RATES, "steps": steps, "seeds": seeds, "batch": BATCH, "width": WIDTH}
    settings |= {"quick": options.quick}
    results = []
    for lag in lags:
        for cell in CELLS:
            for start in (*STARTS[cell], OURS):
                found = measure(cell, start, lag, seeds, steps)
                results.append(found)
                accuracy = found["test_accuracy"]["median"]
                print(f"{cell}, lag {lag}, {start}: {accuracy:.3f} at {found['rate']}", flush=True)
                record.write("long_memory", options.out, settings, results)


if __name__ == "__main__":
    main()
