"""Isometric Muon: what `deep_chains` measures, and the library doesn't have.

Kernels of a plain chain stay a number times an orthogonal matrix, as the shaped start leaves them,
and each step turns them: the Muon step among rotations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import vanishjax as vj
from vanishjax.theory import shape
from vanishjax.transforms.orthogonalization import newton_schulz

STACK, DECAY = "hidden_stack", 0.95


class IsometricState(NamedTuple):
    """The state of `deep_adam`, and the momentum of the stacked kernels `[layers, in, out]`."""

    rest: Any
    momentum: jax.Array


def isometric_muon(rate, network, layers, rest_rate=0.1):
    """`deep_adam` for all but the stack's kernels W = g Q, which are turned.

    With the momentum M of their gradients, freed of the known mean's term as in `deep_adam`, and
    eta the rate over the depth,

        Omega = msign(M Q^T - Q M^T), Q <- (Q - eta Omega Q) / sqrt(1 + eta^2),

    followed by one cubic step of Newton and Schulz (Bernstein, Modular manifolds, 2025; SPEL, arXiv
    2601.21487). Biases are compensated for it.
    """
    rest = vj.deep_adam(rest_rate, network.steps, activation=network.activation, layers=layers)
    alpha, _, delta, gamma = shape(network.activation, network.depth)
    gain, warm_up = abs(alpha * gamma), min(50, network.steps // 5)

    def transposed(x):
        return jnp.swapaxes(x, -1, -2)

    def init(params):
        return IsometricState(rest.init(params), jnp.zeros_like(params[STACK]["kernel"]))

    def update(updates, state, params=None):
        own, count = updates[STACK], state.rest.count
        # What a layer takes in has the mean -delta: the gradient where inputs have none.
        freed = own["kernel"] + delta * own["bias"][:, None, :]
        momentum = DECAY * state.momentum + freed
        ahead = freed + DECAY * momentum
        q = params[STACK]["kernel"] / gain
        skew = ahead @ transposed(q)
        turn = newton_schulz(skew - transposed(skew))
        falling = 1 - 0.98 * jnp.clip((count - warm_up) / (network.steps - warm_up), 0, 1)
        eta = rate / network.depth * jnp.minimum((count + 1) / warm_up, falling)
        turned = (q - eta * turn @ q) / jnp.sqrt(1 + eta**2)
        turned = 1.5 * turned - 0.5 * turned @ transposed(turned) @ turned
        steps, rest_state = rest.update(updates, state.rest, params)
        kernels = jnp.where(count > 0, gain * (turned - q), steps[STACK]["kernel"])
        # The biases hold the mean outputs against the steps that were taken, not those left out.
        other = kernels - steps[STACK]["kernel"]
        biases = steps[STACK]["bias"] + delta * other.sum(axis=-2)
        steps = steps | {STACK: {"kernel": kernels, "bias": biases}}
        return steps, IsometricState(rest_state, jnp.where(count > 0, momentum, state.momentum))

    return optax.GradientTransformation(init, update)
