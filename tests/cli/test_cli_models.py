"""`vanishjax diagnose MODULE:FUNCTION` for functions that return a framework's model."""

from pathlib import Path

import pytest

from tests.commands import vanishjax

MODELS = """
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import vanishjax as vj

x = jax.random.normal(jax.random.key(0), (32, 8))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


def loss_fn(model, x):
    return jnp.mean(model(x) ** 2)


def of_nnx():
    return Nnx(), loss_fn, x


def of_nnx_with_tx():
    return Nnx(), loss_fn, x, optax.adam(1e-3)


def of_equinox():
    model = eqx.nn.Linear(8, 4, key=jax.random.key(0))
    return model, lambda model, x: loss_fn(jax.vmap(model), x), x


def of_linen():
    module = nn.Dense(4)
    return module, module.init(jax.random.key(0), x), loss_fn, x


def of_problem():
    return vj.Problem.from_nnx(Nnx(), loss_fn, optax.adam(1e-3)), x


class Loss(eqx.Module):
    scale: float = 2.0

    def __call__(self, params, x):
        return self.scale * jnp.mean((x @ params["w"]) ** 2)


def of_loss_module():
    return Loss(), {"w": jnp.ones((8, 4))}, x


def wrong_tx():
    return Nnx(), loss_fn, x, 0.001


def wrong_shape():
    return Nnx(), loss_fn, x[:, :4]


def wrong_return():
    return Nnx(), lambda model, x: (jnp.mean(model(x)), 0), x


def model_as_params():
    return lambda model, x: loss_fn(model, x), Nnx(), x


def no_variables():
    return nn.Dense(4), {}, loss_fn, x
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(MODELS)


@pytest.mark.parametrize(
    ("function", "kernel", "has_tx"),
    [
        ("of_nnx", "dense/kernel", False),
        ("of_nnx_with_tx", "dense/kernel", True),
        ("of_equinox", "weight", False),
        ("of_linen", "kernel", False),
        ("of_problem", "dense/kernel", True),
        ("of_loss_module", "w", False),
    ],
)
def test_a_target_may_be_a_model(models, function, kernel, has_tx):
    ran = vanishjax("diagnose", f"models.py:{function}", "--json", "--strict")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json["probe"]["names"] == [kernel]
    assert (ran.json["effectiveness"] is not None) == has_tx


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_tx", "must return a gradient transform with init and update fourth, such as"),
        ("wrong_shape", "its loss_fn raised"),
        ("wrong_return", "its loss_fn raised TypeError: loss_fn must return a scalar or (scalar,"),
        ("model_as_params", "params: Nnx holds"),
        ("no_variables", "what it returned raised TypeError: variables must be what module.init"),
    ],
)
def test_what_is_wrong_with_a_model(models, function, message):
    ran = vanishjax("diagnose", f"models.py:{function}")
    assert (ran.status, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert line.startswith(f"vanishjax: error: models.py:{function}: {message}")
