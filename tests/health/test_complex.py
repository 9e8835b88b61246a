"""Networks that compute in complex numbers: no part of them is left out, and none is guessed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj

KEYS = jax.random.split(jax.random.key(0), 5)
X = jax.random.normal(KEYS[0], (32, 10, 8))
BATCH = X, jnp.arange(32) % 3
ADAM = optax.adam(1e-3)
PARAMS = {
    "first": jax.random.normal(KEYS[1], (2, 8, 8)) / 3,
    "second": jax.random.normal(KEYS[2], (2, 8, 8)) / 3,
    "out": jax.random.normal(KEYS[3], (16, 3)) / 4,
    "decay": jnp.full(8, -2.0),
    "angle": jnp.linspace(0.1, 3.0, 8),
}


def complex_of(parts):
    return parts[0] + 1j * parts[1]


def real_of(parts):
    """The same map of real and imaginary parts, side by side."""
    return jnp.block([[parts[0], parts[1]], [-parts[1], parts[0]]])


def read_out(params, h, labels):
    logits = h.mean(1) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def both_parts(z):
    return jnp.concatenate([z.real, z.imag], -1)


def split_relu(z):
    return jax.nn.relu(z.real) + 1j * jax.nn.relu(z.imag)


def modulus_relu(z):
    return jax.nn.relu(jnp.abs(z) - 0.1) * z / (jnp.abs(z) + 1e-5)


def feedforward(activation):
    def loss_fn(params, batch):
        h = activation(batch[0] @ complex_of(params["first"]))
        h = activation(h @ complex_of(params["second"]))
        return read_out(params, both_parts(h), batch[1])

    return loss_fn


def recurrent(params, batch):
    """A linear recurrent unit."""
    decay = jnp.exp(-jnp.exp(params["decay"]) + 1j * params["angle"])

    def step(h, u):
        h = decay * h + u
        return h, h

    inputs = (batch[0] @ complex_of(params["first"])).swapaxes(0, 1)
    _, states = jax.lax.scan(step, jnp.zeros(inputs.shape[1:], inputs.dtype), inputs)
    h = states.swapaxes(0, 1) @ complex_of(params["second"])
    return read_out(params, both_parts(h), batch[1])


def mixed_by_fourier(params, batch):
    h = jax.nn.gelu(batch[0] @ params["first"][0])
    h = jnp.fft.fft2(h).real @ params["second"][0]
    return read_out(params, jnp.concatenate([h, h], -1), batch[1])


NETWORKS = {
    "tanh": feedforward(jnp.tanh),
    "sigmoid": feedforward(jax.nn.sigmoid),
    "split relu": feedforward(split_relu),
    "modulus relu": feedforward(modulus_relu),
    "recurrent": recurrent,
    "Fourier": mixed_by_fourier,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_verdict_and_start(name):
    loss_fn = NETWORKS[name]
    found = vj.diagnose(loss_fn, PARAMS, BATCH, ADAM)
    assert found.verdict == "healthy"
    assert np.isfinite(found.probe.preactivation_rms).all()
    started = vj.initializers.lsuv(loss_fn, PARAMS, BATCH)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(started))
    sizes = vj.probe(loss_fn, started, BATCH).preactivation_rms
    # Of one part alone where an activation takes it apart.
    assert np.allclose(sizes, 1, rtol=1e-4) or (name == "split relu" and (sizes > 0.6).all())


def test_numbers_are_those_of_real_and_imaginary_parts():
    def without_complex(params, batch):
        h = jnp.concatenate([batch[0], jnp.zeros_like(batch[0])], -1)
        h = h @ real_of(params["first"]) @ real_of(params["second"])
        return read_out(params, h, batch[1])

    mine = vj.probe(feedforward(lambda z: z), PARAMS, BATCH)
    real = vj.probe(without_complex, PARAMS, BATCH)
    assert mine.loss == pytest.approx(real.loss, rel=1e-5)
    # A complex number is as large as both of its parts together.
    for field in ("preactivation_rms", "backward_rms"):
        np.testing.assert_allclose(
            getattr(mine, field)[:2], 2**0.5 * getattr(real, field)[:2], rtol=1e-4
        )
    for field in ("centered_energy", "effective_rank", "token_energy", "token_detail", "log_chi"):
        found, known = (np.ravel(getattr(probe, field))[0] for probe in (mine, real))
        assert found == pytest.approx(known, rel=1e-4), field
