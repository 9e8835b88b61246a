"""The step that every optimizer takes, ours and optax's, for gradients from 1 down to 1e-40.

Every entry of the gradient is plus or minus one size, the same at each of 20 steps, at float32
parameters that stay where they are: three dense layers, of which the middle kernel is looked at.
Shown is the root mean square of the last update over the learning rate, less what a zero gradient
moves, without weight decay. Of a gradient is "seen" what gets at least half of the step that a
gradient of 0.01 gets, in proportion to the gradient where the optimizer's steps are.

    python -m benchmarks response
"""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import record

STEPS, WIDTH = 20, 16
HEALTHY = 1e-2
OPTAX = (
    *("sgd", "sign_sgd", "adagrad", "rmsprop", "rprop", "sm3", "lion", "fromage", "lars"),
    *("adam", "adamw", "nadam", "nadamw", "adamax", "amsgrad", "adabelief", "adan", "radam"),
    *("yogi", "novograd", "lamb", "adafactor"),
)


def plain(factory, *arguments, **settings):
    """An optimizer of rate 1 without weight decay."""
    known = inspect.signature(factory).parameters
    if known["weight_decay"].default if "weight_decay" in known else None:
        settings["weight_decay"] = 0.0
    return functools.partial(factory, 1.0, *arguments, **settings)


def contenders():
    """Library -> name -> factory."""
    ours = {
        name: getattr(vj, name) for name in vj.optimizers.__all__ if not name.startswith("deep")
    }
    return {
        "vanishjax": {
            **{name: plain(factory) for name, factory in ours.items()},
            "adam, eps_relative": plain(vj.adam, eps_relative=True),
            "deep_muon": plain(vj.deep_muon, 10**6),
        },
        "optax": {
            **{name: plain(getattr(optax, name)) for name in OPTAX},
            "adam, eps 1e-30": plain(optax.adam, eps=1e-30),
            "muon": plain(optax.contrib.muon),
        },
    }


def parameters():
    """Three dense layers."""
    keys = jax.random.split(jax.random.key(0), 3)
    scale = WIDTH**-0.5
    return {
        name: {
            "bias": jnp.zeros(WIDTH),
            "kernel": scale * jax.random.normal(key, (WIDTH, WIDTH)),
        }
        for name, key in zip("abc", keys, strict=True)
    }


def measure(make, sizes):
    """`[sizes]`: the last update's root mean square; NaN if it isn't finite."""
    params = parameters()
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]

    @jax.jit
    def last_update(size):
        tx = make()
        gradient = jax.tree.unflatten(structure, [size * sign for sign in signs])
        update = jax.tree.map(jnp.zeros_like, params)
        (_, update), _ = jax.lax.scan(
            lambda carry, _: (tx.update(gradient, carry[0], params)[::-1], None),
            (tx.init(params), update),
            None,
            STEPS,
        )
        return update["b"]["kernel"]

    still = np.asarray(last_update(jnp.float32(0)), np.float64)
    still = np.where(np.isfinite(still), still, 0.0)
    moved = [np.asarray(last_update(jnp.float32(size)), np.float64) - still for size in sizes]
    # In float64, where no square is lost.
    return [float(np.sqrt(np.mean(one**2))) for one in moved]


def least_seen(sizes, update_rms):
    """The least size down to which every gradient gets at least half of its step."""
    healthy = next(i for i, size in enumerate(sizes) if size <= HEALTHY)
    slope = math.log10(update_rms[0] / update_rms[healthy]) / math.log10(sizes[0] / sizes[healthy])
    degree = round(max(slope, 0.0))
    least = sizes[healthy]
    for size, rms in zip(sizes[healthy:], update_rms[healthy:], strict=True):
        whole = update_rms[healthy] * (size / sizes[healthy]) ** degree
        # Far more than the step isn't the step either.
        if not 0.5 * whole <= rms <= 2 * whole:
            return least
        least = size
    return least


def main() -> None:
    """Measures all optimizers and writes response.json."""
    options = record.parser(__doc__).parse_args()
    per_decade = 1 if options.quick else 4
    sizes = [10.0 ** (-i / per_decade) for i in range(40 * per_decade + 1)]
    results = {}
    for library, every in contenders().items():
        results[library] = {}
        for name, make in every.items():
            found = measure(make, sizes)
            seen = least_seen(sizes, found)
            results[library][name] = {
                "update_over_learning_rate": [x if math.isfinite(x) else None for x in found],
                "least_gradient_seen": seen,
            }
            print(f"{library:10} {name:20} sees gradients down to {seen:.0e}", flush=True)
    settings = {
        "gradient": sizes,
        "healthy": HEALTHY,
        "steps": STEPS,
        "layers": [WIDTH] * 4,
        "dtype": "float32",
        "seeds": [0, 1],
        "quick": options.quick,
    }
    record.write("response", options.out, settings, results)


if __name__ == "__main__":
    main()
