"""Verdicts on the kinds of network that people train, against training beside a healthy twin.

Every network is trained from three seeds, at each of its rates, and judged by its held-out loss.
closed = (chance - loss) / (chance - the twin's loss), where chance is what the best constant output
reaches; of several losses the least counts, of the seeds the median, of the rates the best. A
network is healthy from .8 on and sick up to .7; what lies between is left out, and so is a twin
that closes less than a quarter of the way from chance to 0 and all that are judged beside it.
`diagnose` sees only the initial parameters, one batch and the optimizer. The tuning half is what
the rules were fixed on; the held-out half was written down before any of it was examined.

    python -m benchmarks real_networks
    python -m benchmarks.real_networks --part held_out --trained FILE
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.real_zoo import Network, held_out_networks, tuning_networks

SEEDS, EXAMINED = 3, 64
HEALTHY, SICK, LEARNED = 0.8, 0.7, 0.25


def initial(network: Network) -> Callable[[int], Any]:
    """The initial parameters of a seed."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda seed: network.init(jax.random.key(seed)), compiler_options=options)


def train(network: Network, seeds: int = SEEDS, steps: int | None = None) -> np.ndarray:
    """Held-out losses `[rates, seeds, parts]` after training; NaN where it diverged."""
    task = network.task()
    data = jax.tree.map(jnp.asarray, task.train)
    test = jax.tree.map(jnp.asarray, task.test)

    def run(rate: Any, seed: Any, params: Any) -> jax.Array:
        tx = network.optimizer(rate)

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            rows = jax.random.randint(key, (network.batch,), 0, len(data[0]))
            batch = jax.tree.map(lambda x: x[rows], data)
            gradient = jax.grad(network.loss)(params, batch)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in network.parts(params, test)])

    steps = steps or network.steps
    rates, numbers = np.repeat(network.rates, seeds), np.tile(np.arange(seeds), len(network.rates))
    init = initial(network)
    starts = [init(seed) for seed in range(seeds)] * len(network.rates)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    every = jax.vmap(run) if network.batched else lambda *a: jax.lax.map(lambda x: run(*x), a)
    losses = np.asarray(jax.jit(every)(jnp.asarray(rates), numbers, params), np.float64)
    return losses.reshape(len(network.rates), seeds, -1)
