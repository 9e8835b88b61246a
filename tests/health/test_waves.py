"""Networks of sines: what goes into a sine has to be of its period's size, behind another sine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vanishjax as vj
from vanishjax.initializers import lsuv
from vanishjax.report.diagnosis_plot import _scales

WIDTH = 48


def sines(omega, scale, wave=jnp.sin, depth=3):
    """A SIREN, its hidden kernels uniform of sqrt(6 / n) / omega, times a scale."""
    keys = jax.random.split(jax.random.key(0), depth + 1)
    first = jax.random.uniform(keys[0], (2, WIDTH), minval=-0.5, maxval=0.5) * min(1.0, 30 / omega)
    bound = scale * (6 / WIDTH) ** 0.5 / omega
    hidden = [
        jax.random.uniform(k, (WIDTH, WIDTH), minval=-bound, maxval=bound) for k in keys[1:-1]
    ]
    last = jax.random.normal(keys[-1], (WIDTH, 1)) * 0.1
    params = [{"w": w, "b": jnp.zeros(w.shape[1])} for w in (first, *hidden, last)]

    def loss_fn(params, batch):
        h, y = batch
        for layer in params[:-1]:
            h = wave(omega * (h @ layer["w"] + layer["b"]))
        return jnp.mean((h @ params[-1]["w"] + params[-1]["b"] - y) ** 2)

    return loss_fn, params


def batch():
    x = jax.random.uniform(jax.random.key(1), (64, 2), minval=-1, maxval=1)
    return x, jnp.sin(5 * x[:, :1]) * x[:, 1:]


@pytest.mark.parametrize(
    "wave", [jnp.sin, jnp.cos, lambda x: jnp.sin(x) ** 2], ids=["sin", "cos", "square"]
)
@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_hidden_sines_that_wrap_around_are_told(omega, wave):
    loss_fn, params = sines(omega, 30.0, wave)
    found = vj.diagnose(loss_fn, params, batch(), vj.adam(1e-3))
    assert [one.rule for one in found.findings if one.severity == "critical"] == [
        "exploding_gradient"
    ]
    loss_fn, params = sines(omega, 1.0, wave)
    assert vj.diagnose(loss_fn, params, batch(), vj.adam(1e-3)).verdict == "healthy"


def test_the_period_is_that_of_the_function():
    loss_fn, params = sines(30.0, 1.0)
    periods = vj.probe(loss_fn, params, batch()).periods
    np.testing.assert_allclose(periods[:3], 2 * np.pi / 30, rtol=0.05)
    assert np.isinf(periods[3])
    loss_fn, params = sines(1.0, 1.0, jnp.tanh)
    assert np.isinf(vj.probe(loss_fn, params, batch()).periods).all()


@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_lsuv_makes_what_goes_into_a_sine_its_size(omega):
    loss_fn, params = sines(omega, 30.0)
    found = vj.probe(loss_fn, lsuv(loss_fn, params, batch()), batch())
    radians = omega * found.preactivation_rms[:3]
    np.testing.assert_allclose(radians, [min(omega, 7.0), 1, 1], rtol=0.05)


def test_features_of_two_inputs_may_wrap_around():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "left": 20 * jax.random.normal(keys[0], (2, WIDTH)),
        "right": 20 * jax.random.normal(keys[1], (2, WIDTH)),
        "out": jax.random.normal(keys[2], (WIDTH, 1)) * 0.1,
    }

    def loss_fn(params, batch):
        x, y = batch
        h = jnp.sin(x @ params["left"]) + jnp.sin(x[:, ::-1] @ params["right"])
        return jnp.mean((h @ params["out"] - y) ** 2)

    found = vj.diagnose(loss_fn, params, batch(), vj.adam(1e-3))
    assert not [one for one in found.findings if one.severity == "critical"]


def test_the_report_and_the_picture_say_what_to_do():
    loss_fn, params = sines(30.0, 30.0)
    found = vj.diagnose(loss_fn, params, batch(), vj.adam(1e-3))
    assert "params = vj.initializers.lsuv(loss_fn, params, batch)" in str(found)
    (one,) = [one for one in found.findings if one.severity == "critical"]
    scales = _scales(found.to_dict()["probe"], {one.rule: one.evidence})
    (said, place) = {name: rest for name, *rest in scales}["sines"]
    assert said == f"{one.evidence['radians']:.3g} radians"
    assert place > 0.5
    mended = vj.diagnose(loss_fn, lsuv(loss_fn, params, batch()), batch(), vj.adam(1e-3))
    assert mended.verdict == "healthy", str(mended)
