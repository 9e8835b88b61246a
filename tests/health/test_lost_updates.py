"""Number types too narrow: steps that are rounded away, gradients that underflow on the way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.health.lost import moved_share

X = jax.random.normal(jax.random.key(1), (64, 8))
LABELS = jnp.arange(64) % 4
BATCH = X, LABELS


@functools.cache
def mlp(**settings):
    return vj.mlp_problem(8, (48, 48), 4, activation="tanh", **settings)


def narrow(dtype=jnp.bfloat16):
    return mlp(dtype=dtype, param_dtype=dtype)


def finding(problem, tx, rule="lost_updates"):
    found = vj.diagnose(problem.loss_fn, problem.params, (X, LABELS), tx)
    return next((one for one in found.findings if one.rule == rule), None)


@pytest.mark.parametrize(
    ("rate", "severity"), [(1e-3, None), (3e-4, "warning"), (2e-4, "critical"), (1e-5, "critical")]
)
def test_bfloat16_parameters_lose_small_steps(rate, severity):
    found = finding(narrow(), vj.adam(rate))
    if severity is None:
        assert found is None
        return
    assert found.severity == severity
    assert "hidden_0/kernel" in found.layers
    assert "bias" not in "".join(found.layers)  # zeros move by any step
    assert found.remedy_ids[:3] == ("stochastic_round", "kahan_sum", "float32")


@pytest.mark.parametrize("keep", [vj.stochastic_round, vj.kahan_sum])
def test_what_keeps_the_updates_loses_none(keep):
    nested = optax.chain(vj.adam(1e-5), keep())
    assert finding(narrow(), optax.chain(optax.clip(1.0), optax.chain(nested))) is None


def test_wide_parameters_lose_none():
    assert finding(mlp(), vj.adam(1e-7)) is None  # float32
    assert finding(mlp(dtype=jnp.bfloat16), vj.adam(1e-7)) is None  # master copies


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("step", [3e-6, 1e-4, 1e-2])
def test_the_share_that_moves_is_that_of_the_sums(dtype, step):
    params = {"w": jax.random.normal(jax.random.key(0), (3, 40, 50)).astype(dtype)}
    params |= {"b": jnp.zeros(20, dtype), "wide": jnp.ones(5)}
    layers = vj.find_layers(params)
    share = moved_share(params, layers, np.full(len(layers), step), ())
    sums = {}
    for name, x in params.items():
        wide = np.asarray(x, np.float32)
        # What is added grows the number: below a power of two the next one down is nearer.
        moved = jnp.asarray(wide + np.copysign(np.float32(step), wide), x.dtype) != x
        sums[name] = float(np.mean(moved)) if x.dtype == dtype else np.nan
    expected = [sums[name] for name in layers.names]
    np.testing.assert_allclose(share, expected, atol=2e-3)


def test_the_type_in_which_a_gradient_underflows_is_that_of_the_activations():
    problem = mlp(dtype=jnp.float16)
    assert {x.dtype for x in jax.tree.leaves(problem.params)} == {jnp.dtype(jnp.float32)}

    def small(p, b):
        return 1e-6 * problem.loss_fn(p, b)

    found = vj.diagnose(small, problem.params, (X, LABELS))
    (underflow,) = [one for one in found.findings if one.rule == "underflow"]
    assert "float16" in underflow.cause
    assert "float32 can hold" not in underflow.cause
    assert underflow.remedy_ids[0] == "loss_scale"
    assert set(found.probe.dtypes) == {"float16"}
    assert vj.diagnose(problem.loss_fn, problem.params, (X, LABELS)).healthy


@pytest.mark.parametrize(
    ("make", "dtype", "lost"),
    [
        (optax.adam, jnp.float16, True),
        (lambda rate: optax.adam(rate, eps=1e-4), jnp.float16, False),
        (vj.adam, jnp.float16, False),
        (optax.sgd, jnp.float16, False),
        (optax.adam, jnp.bfloat16, False),
        # Nothing is known to be 0 / 0 in a type in which squares of gradients have numbers.
        (lambda rate: optax.adam(rate, eps=0.0), jnp.float32, False),
    ],
    ids=["optax", "larger eps", "ours", "sgd", "bfloat16", "float32"],
)
def test_squares_that_float16_has_no_numbers_for_are_told(make, dtype, lost):
    problem, tx = narrow(dtype) if dtype != jnp.float32 else mlp(), make(3e-3)
    found = finding(problem, tx, "underflow")
    assert (found is not None) == lost
    params = problem.params
    gradient = jax.tree.map(lambda g: g.at[..., 0].set(0), jax.grad(problem.loss_fn)(params, BATCH))
    steps, _ = tx.update(gradient, tx.init(params), params)
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(steps))
    assert finite == (not lost and dtype != jnp.float32)
    if lost:
        assert found.severity == "critical"
        assert "hidden_0/kernel" in found.layers


@pytest.mark.parametrize(("steps", "verdict"), [(1.6, "sick"), (12.0, "healthy")])
def test_gradients_of_the_smallest_number_are_as_good_as_lost(steps, verdict):
    """Entries of up to half of it are zeros, others that number: what remains is their signs."""
    plain = vj.mlp_problem(
        8,
        (32, 32, 32),
        1,
        activation="tanh",
        loss="squared_error",
        dtype=jnp.float16,
        param_dtype=jnp.float16,
    )
    x = jax.random.normal(jax.random.key(1), (64, 8), jnp.float16)
    batch = x, jnp.tanh(x[:, :1] + x[:, 1:2])
    full = vj.probe(plain.loss_fn, plain.params, batch).log_gradient_rms
    smallest = float(jnp.finfo(jnp.float16).smallest_subnormal)
    factor = steps * smallest / float(np.exp(np.median(full)))

    def loss_fn(params, batch):
        return plain.loss_fn(params, batch) * jnp.float16(factor)

    found = vj.diagnose(loss_fn, plain.params, batch, vj.adam(1e-2, eps=1e-12))
    assert found.verdict == verdict, found
    assert [one.rule for one in found.findings if one.severity == "critical"] == (
        ["underflow"] if verdict == "sick" else []
    )
