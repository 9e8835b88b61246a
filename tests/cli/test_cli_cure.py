"""`vanishjax cure`: of an MLP and of a user's own network, and what it refuses."""

import pytest
from PIL import Image

from tests.commands import check_documented, read_json, vanishjax
from vanishjax.cli import cure

SICK = ("cure", "--activation", "sigmoid", "--depth", "12", "--width", "32", "--steps", "40")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sick_network(here):
    ran = vanishjax(*SICK, "--learning-rate", "0.003", "--out", "report")
    assert ran.status == 0
    first, *rest = ran.out.splitlines()
    assert first == "Cured by slow_lsuv, at the cost of 215 training steps."
    assert rest[-1] == "saved cure.json and cure.png in report"
    assert "  params = vj.initializers.lsuv(loss_fn, params, batch)" in rest
    assert max(map(len, rest)) <= 80
    assert ran.err.splitlines() == [
        "untreated: untreated",
        "lsuv: accepted",
        "small_lsuv: better",
        "slow_lsuv: accepted",
        "slow_small_lsuv: better",
    ]
    result = read_json(here / "report" / "cure.json")
    check_documented(result, cure)
    outcomes = [trial["outcome"] for trial in result["trials"]]
    assert outcomes == ["untreated", "accepted", "better", "accepted", "better"]
    assert len(result["trials"][0]["losses"]) == 40
    assert result["after"]["healthy"]
    assert not result["before"]["healthy"]
    with Image.open(here / "report" / "cure.png") as image:
        assert image.format == "PNG"
    again = vanishjax(*SICK, "--out", "report")
    assert again.status == 2
    assert "already holds cure.json, cure.png" in again.error


def test_a_healthy_network(here):
    ran = vanishjax("cure", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json["trials"] == []
    assert ran.json["accepted"] == []
    assert {path.name for path in (here / "runs" / "cure-001").iterdir()} == {
        "cure.json",
        "cure.png",
    }


OWN = """
import jax, jax.numpy as jnp, optax
import vanishjax as vj

x = jax.random.normal(jax.random.key(0), (512, 8))
data = x, jnp.argmax(x[:, :4], axis=1)
problem = vj.mlp_problem(8, (32,) * 12, 4, activation="sigmoid", tx=vj.adam(3e-3))
batches = [(x[i::8], data[1][i::8]) for i in range(8)]

def with_problem():
    return problem, batches

def with_one_large_batch():
    healthy = problem.rebuild(hidden=(32,))
    return healthy.loss_fn, healthy.params, data, optax.adam(3e-3)

def too_few():
    return problem.loss_fn, problem.params, (x[:2], data[1][:2])

def hopeless():
    return (lambda w, batch: jnp.sum(jax.nn.softmax(batch @ w)) * 0 + 1.0), jnp.ones((8, 1)), x

def raises():
    return (lambda w, batch: w["missing"]), jnp.ones(3), x
"""


@pytest.mark.parametrize(
    ("make", "verdict"),
    [("with_problem", "Cured by slow_lsuv"), ("with_one_large_batch", "Healthy: nothing to cure")],
)
def test_a_network_of_ones_own(here, make, verdict):
    (here / "net.py").write_text(OWN)
    ran = vanishjax("cure", f"net.py:{make}", "--steps", "40")
    assert ran.status == 0, ran.err
    assert ran.out.startswith(verdict)


def test_nothing_helped(here):
    (here / "net.py").write_text(OWN)
    ran = vanishjax("cure", "net.py:hopeless", "--steps", "5")
    assert ran.status == 1
    assert ran.out.startswith("Nothing helped")
    assert "net.py:hopeless: it returns no transform; trained with vanishjax.adam" in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("vanishjax: no remedy helped")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net.py:too_few",), "net.py:too_few: cure needs several batches"),
        (("net.py:raises",), "net.py:raises: its loss_fn raised"),
        (("net.py:nothing",), "net.py: has no function 'nothing'"),
        (("net.py:raises", "--depth", "3"), "--depth: for an MLP of ours"),
        (("--steps", "0"), "--steps: expected a whole number of at least 1"),
        (("--remedy-rate", "-1"), "--remedy-rate: expected a number above 0"),
    ],
)
def test_bad_input(here, arguments, message):
    (here / "net.py").write_text(OWN)
    ran = vanishjax("cure", *arguments)
    assert ran.status == 2
    assert message in ran.error
