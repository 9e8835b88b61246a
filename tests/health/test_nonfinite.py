"""Infinity and NaN: the line that makes them, the kind of fault, and what mends it."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import vanishjax as vj
from vanishjax.health.origin import find_fault

X = jax.random.normal(jax.random.key(0), (6, 3))
W = jax.random.normal(jax.random.key(1), (3, 4))

# The guilty line of each ends in a comment.

# Forward.


def zero_over_zero(w, x):
    z = jax.nn.relu(x @ w)
    return jnp.mean(z / jnp.sum(0 * z))  # here


def division(w, x):
    z = jnp.abs(x @ w) + 1
    return jnp.mean(
        z / (z - z)  # here
    )


def cosine(w, x):
    z = x.at[0].set(0) @ w
    norm = jnp.linalg.norm(z, axis=1, keepdims=True)
    return jnp.mean(z / norm)  # here


def exponential(w, x):
    z = jnp.exp(1000 * x @ w)  # here
    return jnp.mean(z / (1 + z))


def logarithm_of_zero(w, x):
    p = jax.nn.softmax(1e3 * x @ w)
    return -jnp.mean(jnp.log(p))  # here


def logarithm_of_negative(w, x):
    return jnp.mean(jnp.log(x @ w))  # here


def masked_row(w, x):
    scores = jnp.where(jnp.arange(6)[:, None] > 0, x @ w, -jnp.inf)
    return jnp.mean(jax.nn.softmax(scores) ** 2)  # here


def harmless_mask(w, x):
    """The mask is infinite, and not what makes NaN."""
    scores = jnp.where(jnp.arange(4) > 0, x @ w, -jnp.inf)
    p = jax.nn.softmax(scores)
    return jnp.mean(p) + jnp.mean(jnp.sqrt(-p - 1))  # here


def lookup(w, x):
    tokens = jnp.arange(6) - jnp.argmax(x)
    return jnp.mean(jnp.take(w, jnp.abs(tokens), axis=0))  # here


def square(w, x):
    return jnp.mean((1e25 * x @ w) ** 2)  # here


def cast(w, x):
    z = (1e6 * x @ w).astype(jnp.float16)  # here
    return jnp.mean(z.astype(jnp.float32))


def arc_cosine(w, x):
    return jnp.mean(jnp.arccos(x @ w))  # here


def factorization(w, x):
    return jnp.mean(jnp.linalg.cholesky(-w @ w.T)) + jnp.mean(x)  # here


def singular_system(w, x):
    return jnp.mean(jnp.linalg.solve(jnp.ones((6, 6)), x @ w))  # here


def singular_inverse(w, x):
    a = x.T @ x * jnp.zeros(3)
    return jnp.mean(jnp.linalg.inv(a) @ w)  # here


def singular_determinant(w, x):
    z = jnp.concatenate([w.T @ w, x[:4, :1]], axis=1)[:, :4] * 0
    size = jnp.linalg.slogdet(z)[1]  # here
    return jnp.mean((x @ w * size) @ jnp.ones((4, 2)))


def mask_in_a_function(w, x):
    """A mask is no fault of the function that chooses it."""

    @jax.jit
    def masked(z):
        return jnp.where(jnp.arange(4) < 0, z, -jnp.inf)

    return jnp.mean(jax.nn.softmax(masked(x @ w)))  # here


def inverse_tangent(w, x):
    return jnp.mean(jnp.arctanh(jnp.tanh(50 * x @ w)))  # here


def constant(w, x):
    return jnp.mean(x @ w * np.array([1, np.nan, 1, 1]))  # here


def in_a_scan(w, x):
    def step(h, i):
        h = jnp.tanh(h @ w[:, :3])
        return h / (i - 3.0), None  # here

    return jnp.mean(jax.lax.scan(step, x, jnp.arange(6.0))[0])


def in_a_loop(w, x):
    def step(carry):
        i, h = carry
        return i + 1, jnp.exp(h)  # here

    return jnp.mean(jax.lax.while_loop(lambda carry: carry[0] < 5, step, (0, x))[1] @ w)


def in_a_branch(w, x):
    def branch(z):
        return jnp.log(z - 100)  # here

    return jnp.mean(jax.lax.cond(x.sum() > -1e3, branch, jnp.tanh, x @ w))


def in_shards(w, x):
    def shard(w, x):
        z = jnp.mean(jnp.log(x @ w))  # here
        return jax.lax.pmean(z, "batch")

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    specs = PartitionSpec(), PartitionSpec("batch")
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(w, x)


FORWARD = {
    zero_over_zero: ("divide", "0 / 0", "guard both"),
    division: ("divide", "division by 0", "small number"),
    cosine: ("divide", "0 / 0", "guard both"),
    exponential: ("exp", "exponential overflows", "subtract the largest"),
    logarithm_of_zero: ("log", "logarithm of 0", "from logits"),
    logarithm_of_negative: ("log", "logarithm of a negative", "above 0"),
    masked_row: ("subtract", "all masked", "finfo"),
    harmless_mask: ("sqrt", "negative number", "above 0"),
    lookup: ("gather", "outside the array of length 3", "vocabulary"),
    square: ("power", "overflows", "re-initialize"),
    cast: ("cast", "overflows: float16", "bfloat16"),
    arc_cosine: ("acos", "between -1 and 1", "clip"),
    factorization: ("cholesky", "positive definite", "identity"),
    singular_system: ("solve", "matrix is singular", "identity"),
    singular_inverse: ("inv", "matrix is singular", "identity"),
    singular_determinant: ("slogdet", "matrix is singular", "identity"),
    mask_in_a_function: ("subtract", "all masked", "finfo"),
    inverse_tangent: ("atanh", "infinite at -1 and 1", "clip(x, -1 + 1e-6, 1 - 1e-6)"),
    constant: ("", "A constant", "refers to"),
    in_a_scan: ("divide", "division by 0", "small number"),
    in_a_loop: ("exp", "exponential overflows", "subtract the largest"),
    in_a_branch: ("log", "logarithm of a negative", "above 0"),
    in_shards: ("log", "logarithm of a negative", "above 0"),
}

# Backward: the loss is finite.


def guarded_logarithm(w, x):
    z = jnp.maximum(x @ w, 0)
    return jnp.mean(jnp.where(z > 0, jnp.log(z), z))  # here


def masked_root(w, x):
    z = jnp.maximum(x @ w, 0)
    mask = (z > 0).astype(z.dtype)
    return jnp.mean(mask * jnp.sqrt(z))  # here


def unchosen_exponential(w, x):
    z = jnp.abs(x @ w)
    return jnp.mean(jnp.where(z < 1e3, z, jnp.exp(z + 1e3)))  # here


def overflow_under_a_fraction(w, x):
    return jnp.mean(1 / (1 + jnp.exp(1e3 * x @ w)))  # here


def clipped_arc_sine(w, x):
    return jnp.mean(jnp.arcsin(jnp.clip(9 * x @ w, -1, 1)))  # here


def norm(w, x):
    return jnp.mean(jnp.linalg.norm(x.at[0].set(0) @ w, axis=1))  # here


def deviation(w, x):
    return jnp.mean(jnp.std(x.at[0].set(0) @ w, axis=1))  # here


def distances(w, x):
    z = x @ w
    squares = jnp.sum((z[:, None] - z[None]) ** 2, axis=-1)
    return jnp.mean(jnp.sqrt(squares))  # here


def masked_distances(w, x):
    z = x @ w
    squares = jnp.sum((z[:, None] - z[None]) ** 2, axis=-1)
    return jnp.mean(jnp.where(jnp.eye(6) > 0, 0, jnp.sqrt(squares)))  # here


def fractional_power(w, x):
    return jnp.mean(jnp.abs(x.at[0].set(0) @ w) ** 0.5)  # here


def root_in_a_scan(w, x):
    def step(h, i):
        return jnp.sqrt(jnp.abs(h @ w[:, :3] * (i != 3))), h  # here

    return jnp.mean(jax.lax.scan(step, x, jnp.arange(6))[0])


def root_in_a_function(w, x):
    @jax.checkpoint
    @jax.jit
    def root(z):
        return jnp.sqrt(z)  # here

    return jnp.mean(root(jnp.maximum(x @ w, 0) ** 2))


@jax.custom_jvp
def sine(x):
    return jnp.sin(x)


@sine.defjvp
def sine_rule(primals, tangents):
    (x,) = primals
    return sine(x), tangents[0] / (x - x)


def broken_jvp(w, x):
    return jnp.mean(sine(x @ w))


@jax.custom_vjp
def tangent(x):
    return jnp.tanh(x)


def tangent_rule(x, g):
    g = g * jnp.exp(x)
    return (g * jnp.exp(1000 * x),)


tangent.defvjp(lambda x: (tangent(x), x), tangent_rule)


def broken_vjp(w, x):
    return jnp.mean(tangent(x @ w) + tangent(x @ w / 2))


# The line is in the rule: so many below its name.
RULES = {broken_jvp: (sine_rule, 3), broken_vjp: (tangent_rule, 2)}


BACKWARD = {
    guarded_logarithm: ("slope of log", "where", "double where"),
    masked_root: ("slope of sqrt", "mask", "double where"),
    unchosen_exponential: ("exp", "overflows where a where drops its result", "double where"),
    overflow_under_a_fraction: ("exp", "exponential overflows", "subtract the largest"),
    clipped_arc_sine: ("slope of asin", "at the ends", "clip(x, -1 + 1e-6, 1 - 1e-6)"),
    norm: ("slope of sqrt in norm", "row of zeros", "under the root"),
    deviation: ("slope of sqrt in std", "row of zeros", "under the root"),
    distances: ("slope of sqrt", "equal", "under the root"),
    masked_distances: ("slope of sqrt", "where", "double where"),
    fractional_power: ("slope of power", "no finite slope at 0", "add a small number"),
    root_in_a_scan: ("slope of sqrt", "no finite slope at 0", "under the root"),
    root_in_a_function: ("slope of sqrt", "no finite slope at 0", "under the root"),
    broken_jvp: ("divide in sine_rule", "derivative rule", "finite differences"),
    broken_vjp: ("exp in tangent", "wrong: the exponential overflows", "finite differences"),
}


def guilty_line(function):
    if function in RULES:
        rule, below = RULES[function]
        return inspect.getsourcelines(rule)[1] + below
    lines, first = inspect.getsourcelines(function)
    (line,) = [first + i for i, text in enumerate(lines) if text.rstrip().endswith("# here")]
    return line


@pytest.mark.parametrize("loss", [*FORWARD, *BACKWARD], ids=lambda loss: loss.__name__)
def test_the_line_the_kind_and_the_mend(loss):
    backward = loss in BACKWARD
    operation, cause, remedy = (FORWARD | BACKWARD)[loss]
    assert bool(jnp.isfinite(loss(W, X))) == backward
    fault = find_fault(loss, W, X, backward=backward)
    line = guilty_line(loss)
    assert (fault.where.line, Path(fault.where.file).name) == (line, Path(__file__).name)
    assert operation in fault.where.operation
    assert cause in fault.cause
    finding = vj.Finding("nonfinite", "critical", (), {}, fault.cause, fault.remedies)
    assert remedy in " ".join(finding.remedies)
    others = ("overflow", "0 / 0", "logarithm of", "double where")
    said = f"{fault.cause} {fault.remedies}"
    assert [word for word in others if word in said] == [
        word for word in others if word in f"{cause} {remedy}"
    ]


def test_a_verdict_names_line_numbers_and_layers():
    def loss(p, x):
        h = jnp.tanh(x @ p["a"])
        return jnp.mean(jnp.sqrt(0 * h) @ p["b"])  # here

    params = {"a": W, "b": jnp.ones((4, 1))}
    found = vj.diagnose(loss, params, X)
    (finding,) = [one for one in found.findings if one.rule == "nonfinite"]
    file, line, operation = finding.where
    assert (Path(file).name, line) == (Path(__file__).name, guilty_line(loss))
    assert operation == "slope of sqrt"
    assert not Path(file).is_absolute() or not Path(file).is_relative_to(Path.cwd())
    assert finding.evidence["operand_zeros"] == 24
    assert finding.evidence["operand_largest"] == 0
    assert "between a and b" in finding.cause
    told = f"{file}:{line} slope of sqrt"
    assert str(finding.where) == told
    assert f"at {told}" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["findings"][0]["where"] == told


def test_what_is_finite_has_no_fault_and_costs_nothing(monkeypatch):
    def mended(w, x):
        z = jnp.maximum(x @ w, 0)
        return jnp.mean(jnp.where(z > 0, jnp.log(jnp.where(z > 0, z, 1)), z))

    assert find_fault(mended, W, X, backward=True) is None
    monkeypatch.setattr("vanishjax.health.origin.find_fault", lambda *_, **__: 1 / 0)
    found = vj.diagnose(mended, W, X)
    # Steep at a point alone, and no sigmoid that is driven to its ends.
    assert found.healthy, str(found)
    assert all(one.where is None for one in found.findings)


def test_in_the_model_of_a_library_the_users_line_is_told():
    problem = vj.mlp_problem(3, (8, 8), 2, activation="relu")

    def loss(p, x):
        return jnp.mean(jnp.log(problem.predict_fn(p, x) - 1e3))  # here

    fault = find_fault(loss, problem.params, X, backward=False)
    assert fault.where.line == guilty_line(loss)

    def inside(p, x):
        return jnp.mean(problem.predict_fn(p, 1e38 * x))  # here

    kernels = jax.tree.map(lambda x: 100 * x, problem.params)
    fault = find_fault(inside, kernels, X, backward=False)
    assert fault.where.line == guilty_line(inside)
    assert "overflows" in fault.cause
