"""Parameters kept in bfloat16: what rounding costs, and what stochastic_round and kahan_sum save.

A multilayer perceptron on the digits, trained with Adam at a rate that falls to a hundredth of
itself: plain bfloat16 parameters, the same with each transform last in the chain, bfloat16
parameters beside a float32 master copy, and float32 throughout. Only the parameters are rounded:
activations and gradients are float32 everywhere, so that nothing else differs.

    python -m benchmarks low_precision
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record
from vanishjax.training.data import load_dataset

WIDTH, LAYERS, BATCH, STEPS, RATE, SEEDS = 128, 3, 64, 2000, 1e-3, (0, 1, 2)


def transforms(steps: int) -> dict[str, tuple[Any, optax.GradientTransformation]]:
    """For each way to keep parameters their type and the optimizer."""
    adam = vj.adam(optax.linear_schedule(RATE, RATE / 100, steps))
    return {
        "float32": (jnp.float32, adam),
        "bfloat16": (jnp.bfloat16, adam),
        "bfloat16, stochastic_round": (jnp.bfloat16, optax.chain(adam, vj.stochastic_round())),
        "bfloat16, kahan_sum": (jnp.bfloat16, optax.chain(adam, vj.kahan_sum())),
        "bfloat16, float32 master copy": (jnp.bfloat16, with_master_copy(adam)),
    }


def with_master_copy(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps a float32 copy of the parameters in the state, as mixed-precision training does."""

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Any) -> Any:
        return wide(params), inner.init(wide(params))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        copy, inner_state = state
        steps, inner_state = inner.update(gradients, inner_state, copy)
        copy = optax.apply_updates(copy, steps)
        return jax.tree.map(lambda new, p: new - p.astype(jnp.float32), copy, params), (
            copy,
            inner_state,
        )

    return optax.GradientTransformation(init, update)


def loss_fn(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and accuracy."""
    x, labels = batch
    for i, (w, b) in enumerate(params):
        x = x @ w.astype(jnp.float32) + b.astype(jnp.float32)
        x = jnp.tanh(x) if i < len(params) - 1 else x
    loss = optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()
    return loss, jnp.mean(jnp.argmax(x, -1) == labels)


def start(key: jax.Array, dtype: Any) -> Any:
    """LeCun's initialization."""
    sizes = [64, *(WIDTH,) * LAYERS, 10]
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [
        ((jax.random.normal(k, (n, m)) / n**0.5).astype(dtype), jnp.zeros(m, dtype))
        for k, n, m in shapes
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(tx: Any, dtype: Any, seeds: jax.Array, data: Any, order: jax.Array) -> Any:
    """For each seed what is left after `order`, the examples of each step `[seeds, steps, batch]`.

    Returns:
      `(loss, accuracy)` on the training set, and the same on the test set, `[seeds]` each.
    """
    fit, test = data

    def one(seed: jax.Array, order: jax.Array) -> Any:
        params = start(jax.random.key(seed), dtype)

        def step(carry: Any, chosen: jax.Array) -> Any:
            params, state = carry
            batch = jax.tree.map(lambda x: x[chosen], fit)
            # Gradients of float32, whatever the parameters are.
            wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
            gradients = jax.grad(lambda p: loss_fn(p, batch)[0])(wide)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), order)
        return loss_fn(params, fit), loss_fn(params, test)

    return jax.vmap(one)(seeds, order)


def bytes_a_parameter(tx: optax.GradientTransformation, dtype: Any) -> float:
    """Of the parameters and the optimizer's state together."""
    params = start(jax.random.key(0), dtype)
    held = sum(x.nbytes for x in jax.tree.leaves((params, tx.init(params))))
    return held / sum(x.size for x in jax.tree.leaves(params))


def main() -> None:
    """Trains, prints a table and writes low_precision.json."""
    options = record.parser(__doc__).parse_args()
    steps, seeds = (100, SEEDS[:1]) if options.quick else (STEPS, SEEDS)
    data = load_dataset("digits", validation_split=0.2, seed=0)
    fit, test = ((part.inputs, part.labels) for part in (data.train, data.test))
    order = np.stack(
        [np.random.default_rng(s).integers(len(fit[0]), size=(steps, BATCH)) for s in seeds]
    )
    results = {}
    for name, (dtype, tx) in transforms(steps).items():
        trained = train(tx, dtype, jnp.array(seeds), (fit, test), jnp.array(order))
        (fit_loss, fit_accuracy), (loss, accuracy) = jax.tree.map(np.asarray, trained)
        results[name] = {
            "test_loss": loss.tolist(),
            "test_accuracy": accuracy.tolist(),
            "train_loss": fit_loss.tolist(),
            "train_accuracy": fit_accuracy.tolist(),
            "bytes_a_parameter": round(bytes_a_parameter(tx, dtype), 2),
        }
        print(
            f"{name:30} test loss {loss.mean():.4f}, training loss {fit_loss.mean():.2e}, "
            f"{results[name]['bytes_a_parameter']} bytes a parameter"
        )
    settings = {
        "data": "digits",
        "model": f"64-{LAYERS} x {WIDTH}-10, tanh, LeCun initialization",
        "optimizer": f"adam, rate {RATE:g} falling linearly to {RATE / 100:g}",
        "batch_size": BATCH,
        "steps": steps,
        "seeds": list(seeds),
        "quick": options.quick,
    }
    record.write("low_precision", options.out, settings, results)


if __name__ == "__main__":
    main()
