"""What a training loop's order of arguments costs, by turns: 8M parameters, Adam, one CPU process.

JAX pairs donated inputs with outputs by their order. A loop that takes (state, params), the order
of `tx.update`, and returns (params, state) gets them crossed, and XLA copies whole buffers to
uncross them. The loss, a mean square of `x @ w` over few examples, costs next to nothing, so that
what is timed is the optimizer.

    python -m benchmarks argument_order
"""

import re

import jax
import jax.numpy as jnp
import optax

import vanishjax as vj
from benchmarks import record, timing

EXAMPLES = 4
ADAM = optax.adam(1e-3)


def loss_fn(w, x):
    """A loss that is cheap beside the optimizer's step."""
    return jnp.mean((x @ w) ** 2)


def ours(w, x):
    """`make_train_step`, with vanishjax's Adam."""
    tx = vj.adam(1e-3)
    return carried(vj.make_train_step(loss_fn, tx), vj.TrainState.create(w, tx), x)


def step(params, state, x):
    """One step of optax's Adam."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, x)
    updates, state = ADAM.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def crossed_step(state, params, x):
    """The same with arguments (state, params) and results (params, state)."""
    return step(params, state, x)


def in_order(w, x):
    """One donated, jitted step of optax's Adam, arguments and results (params, state)."""
    compiled = jax.jit(step, donate_argnums=(0, 1))
    return carried(lambda carry, x: split(compiled(*carry, x)), (w, ADAM.init(w)), x)


def crossed(w, x):
    """The same step with arguments (state, params) and results (params, state)."""
    compiled = jax.jit(crossed_step, donate_argnums=(0, 1))
    return carried(lambda carry, x: split(compiled(*carry[::-1], x)), (w, ADAM.init(w)), x)


def undonated(w, x):
    """The loop of optax's documentation: one jitted step, nothing donated."""
    compiled = jax.jit(step)
    return carried(lambda carry, x: split(compiled(*carry, x)), (w, ADAM.init(w)), x)


def separate(w, x):
    """A jitted gradient, then a jitted update (gradients, state, params) -> (params, state)."""
    gradient = jax.jit(jax.value_and_grad(loss_fn))

    def update(gradients, state, params):
        updates, state = ADAM.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(1, 2))

    def both(carry, x):
        params, state = carry
        loss, gradients = gradient(params, x)
        return compiled(gradients, state, params), loss

    return carried(both, (w, ADAM.init(w)), x)


def split(results):
    """What is carried, and the loss."""
    *carry, loss = results
    return carry, loss


def carried(step, state, x):
    """A function without arguments that takes a step and keeps its state."""
    states = [state]

    def run():
        states[0], metrics = step(states[0], x)
        return states[0], metrics

    return run


LOOPS = {
    "vanishjax": ours,
    "in order": in_order,
    "crossed": crossed,
    "separate": separate,
    "undonated": undonated,
}


def program(function, w, x, swapped):
    """Of a donated step: its copies of whole buffers, and the bytes of its temporary ones."""
    arguments = (w, ADAM.init(w))[:: -1 if swapped else 1]
    compiled = jax.jit(function, donate_argnums=(0, 1)).lower(*arguments, x).compile()
    shape = re.escape(f"f32[{w.shape[0]},{w.shape[1]}]")
    return {
        "copies": len(re.findall(rf"= {shape}\S* copy\(", compiled.as_text())),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def main() -> None:
    """Times the loops and writes argument_order.json."""
    options = record.parser(__doc__).parse_args()
    side, turns = (256, 5) if options.quick else (2828, 40)
    x = jax.random.normal(jax.random.key(0), (EXAMPLES, side))
    loops = {name: make(jnp.full((side, side), 0.01), x) for name, make in LOOPS.items()}
    w = jnp.zeros((side, side))
    programs = {
        "in order": program(step, w, x, False),
        "crossed": program(crossed_step, w, x, True),
    }
    samples = timing.by_turns(loops, turns)
    results = {
        "programs": programs,
        "seconds": {name: record.spread(found) for name, found in samples.items()},
        "over_vanishjax": {
            name: timing.ratio(found, samples["vanishjax"])
            for name, found in samples.items()
            if name != "vanishjax"
        },
    }
    for name, found in results["over_vanishjax"].items():
        print(f"{name:10} {found['median']:.2f} {found['quartiles']}")
    settings = {
        "parameters": side * side,
        "dtype": "float32",
        "optimizer": "adam",
        "examples": EXAMPLES,
        "loops": {name: make.__doc__ for name, make in LOOPS.items()},
        "turns": turns,
        "warm_up_turns": timing.WARM_UP,
        "quick": options.quick,
    }
    record.write("argument_order", options.out, settings, results)


if __name__ == "__main__":
    main()
