"""Solve a differential equation with a tanh network in Equinox (a PINN), by Adam and by Muon.

u'' = -pi^2 sin(pi x) with u(-1) = u(1) = 0 has the solution u = sin(pi x), so that the error is
known.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import vanishjax as vj

X = jnp.linspace(-1.0, 1.0, 128)


def loss_fn(model, x):
    """The mean square of what the equation leaves over, and that of u at both ends."""

    def u(x):
        return model(x[None])[0]

    left_over = jax.vmap(jax.grad(jax.grad(u)))(x) + jnp.pi**2 * jnp.sin(jnp.pi * x)
    return jnp.mean(left_over**2) + 10 * (u(x[0]) ** 2 + u(x[-1]) ** 2)


def main(steps=1000):
    model = eqx.nn.MLP(1, 1, 32, depth=4, activation=jnp.tanh, key=jax.random.key(0))
    problem = vj.Problem.from_equinox(model, loss_fn)
    print(str(vj.diagnose(problem, X)).splitlines()[0])

    layers = vj.find_layers(problem, X)
    optimizers = {
        "adam": vj.adam(optax.cosine_decay_schedule(3e-3, steps)),
        "muon": vj.muon(optax.cosine_decay_schedule(2e-2, steps), layers=layers),
    }
    for name, tx in optimizers.items():
        problem = vj.Problem.from_equinox(model, loss_fn, tx)
        state = vj.TrainState.create(problem)
        state, _ = vj.fit(problem, state, [X] * steps, epochs=1)
        solution = jax.vmap(problem.model(state.params))(X[:, None])[:, 0]
        error = jnp.abs(solution - jnp.sin(jnp.pi * X)).max()
        print(f"{name}: u is wrong by {error:.1e} at most after {steps} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    main(**vars(parser.parse_args()))
