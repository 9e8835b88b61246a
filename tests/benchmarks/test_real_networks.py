"""The zoo of real networks: how labels are read off training, and what other tools' rules see."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from benchmarks import real_cures, real_tables
from benchmarks import real_networks as real
from benchmarks.cure import at_random
from benchmarks.real_zoo.network import Task, edited, network
from benchmarks.real_zoo.observation import observer

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)


def line(name="line", **settings):
    def loss(p, batch):
        return jnp.mean((batch[0] @ p["w"] - 1.0) ** 2)

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    rest = {"kind": "line", "library": "plain", "task": lambda: Task((X,), (X,), (1.0,))}
    return network(name, loss, init, **rest | settings)


def test_names_are_unique_and_every_twin_is_there():
    parts = [make() for make in real.PARTS.values()]
    names = [one.name for part in parts for one in part]
    assert len(names) == len(set(names)) >= 60
    assert len({one.kind for part in parts for one in part}) >= 12
    for part in parts:
        own = {one.name: one for one in part}
        for one in part:
            assert one.twin is None or own[one.twin].twin is None
            assert one.twin is not None or not one.ails


@pytest.mark.parametrize(
    ("ends", "label"),
    [([0.1, 0.1, 0.9], "healthy"), ([0.4, 0.4, 0.1], "sick"), ([0.3, 0.3, 0.3], "unclear")],
)
def test_the_median_seed_at_the_twins_best_rate_decides(ends, label):
    networks = [line(rates=(0.1, 0.2)), line("other", twin="line", rates=(0.1, 0.2))]
    losses = {"line": np.array([[0.9] * 3, [0.1] * 3])[..., None]}
    losses["other"] = np.array([[0.0, 0.0, 0.1], ends])[..., None]
    found = real.labels(networks, losses)["other"]
    assert (found["label"], found["rate"]) == (label, 0.2)
    losses["line"][1] = 0.9  # no better than chance itself
    assert real.labels(networks, losses)["other"]["label"] == "unclear"


def test_of_several_losses_the_one_that_learns_least_decides():
    gap = real.closed_gap(np.array([[0.1, 0.9]]), np.array([1.0, 1.0]), np.array([0.1, 0.1]))
    assert gap == pytest.approx(1 / 9)
    assert real.closed_gap(np.full((1, 2), np.nan), np.ones(2), np.zeros(2)) == -np.inf


def test_an_edited_network_differs_where_its_paths_say():
    base = line()
    other = edited(base, "larger", "bad_start", scale={"^w$": 3.0})
    key = jax.random.key(0)
    np.testing.assert_array_equal(other.init(key)["w"], 3 * base.init(key)["w"])
    assert (other.twin, other.ails) == ("line", ("bad_start",))
    losses = real.train(line(rates=(0.1, 0.2), steps=50), seeds=2)
    assert losses.shape == (2, 2, 1)
    assert (losses[1] < losses[0].max()).all()


def case(label, said, layers=("a",), *, expected=("dead_units",), pattern="a"):
    verdict = {"verdict": "sick" if said else "healthy", "rules": said, "layers": list(layers)}
    return {
        "network": "n",
        "kind": "k",
        "label": label,
        "expected": list(expected),
        "pattern": pattern,
        "verdicts": [verdict | {"tools": {"other": ["x"]}}],
        "cost": {"ratio": 2.0},
    }


def test_what_is_counted():
    found = real.summary(
        [
            case("healthy", []),
            case("healthy", ["bad_start"]),
            case("sick", ["dead_units"], ("a", "b")),
            case("sick", ["dead_units"], ("b", "b", "a")),
            case("sick", ["bad_start"]),
            case("sick", []),
            case("unclear", ["bad_start"]),
        ]
    )
    assert found["networks"] == 6
    assert found["unclear"] == ["n"]
    assert found["tools"]["vanishjax"] == {"caught": [3, 4], "false_alarms": [1, 2]}
    assert found["tools"]["other"] == {"caught": [4, 4], "false_alarms": [2, 2]}
    assert (found["cause_right"], found["layer_right"]) == ([2, 3], [1, 2])
    assert found["table"]["dead_units"] == {"dead_units": 2, "bad_start": 1, "healthy": 1}
    assert len(found["wrong"]) == 3


def test_other_tools_see_every_activation_and_every_iteration():
    def loss(p, x):
        def layer(h, w):
            return jnp.tanh(h @ w), None

        h, _ = jax.lax.scan(layer, jax.nn.relu(x @ p["in"]), p["stack"])
        return jnp.mean(jax.nn.sigmoid(h @ p["out"] + p["bias"]))

    key = jax.random.key(0)
    params = {
        "in": jax.random.normal(key, (3, 4)),
        "stack": jax.random.normal(key, (5, 4, 4)),
        "out": jax.random.normal(key, (4, 2)),
        "bias": jnp.zeros(2),
    }
    seen = observer(jax.value_and_grad(loss), loss, params, X)(params)
    assert [kind for kind, _, _ in seen.activations] == ["relu"] + ["tanh"] * 5 + ["sigmoid"]
    first = seen.activations[0]
    np.testing.assert_allclose(first[1], X @ params["in"], rtol=1e-5)
    np.testing.assert_allclose(first[2], np.maximum(first[1], 0))
    np.testing.assert_allclose(
        seen.activations[1][1], first[2] @ params["stack"][0], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(seen.outputs, seen.activations[-1][1] - 0.0, rtol=1e-5)
    assert seen.kernels.sum() == 7
    assert seen.gradient_norm.shape == (8,)


def test_cures_and_controls_that_are_there_are_not_done_again(monkeypatch):
    done = []

    def treat(network, rate, seed, twin):
        done.append(("cure", network.name))
        return {"network": network.name, "seed": seed, "trials": []} | dict.fromkeys(
            real_cures.SHOWN
        )

    def control(network, rate, seed, twin, trials):
        done.append(("control", network.name))
        return {}

    monkeypatch.setattr(real_cures, "treat", treat)
    monkeypatch.setattr(real_cures, "control", control)
    names = ("both", "cured", "neither")
    monkeypatch.setitem(real_cures.PARTS, "part", lambda: [line(name) for name in names])
    whole = [real_cures.Case("part", name, 1e-3, 0, np.zeros(1)) for name in names]
    row = {"seed": 0, "trials": []} | dict.fromkeys(real_cures.SHOWN)
    rows = [{"network": "both", "control": {}} | row, {"network": "cured"} | row]
    with ThreadPoolExecutor(1) as pool:
        *_, rows = real_cures.filled(rows, whole, pool)
        assert done == [("control", "cured"), ("cure", "neither"), ("control", "neither")]
        assert [one["network"] for one in rows] == list(names)
        assert all("control" in one for one in rows)
        assert not list(real_cures.filled(rows, whole, pool))


def test_a_control_draws_what_does_not_refuse():
    problem = vj.Problem(line().loss, {"w": jnp.ones(3)}, optax.sgd(0.1))
    plain = vj.Remedy("plain", lambda problem: problem)

    def refuse(problem):
        raise ValueError

    assert real_cures.applies(plain, problem)
    assert not real_cures.applies(vj.Remedy("refuses", refuse), problem)
    known = list(range(20))
    assert at_random(known, 1) == at_random(known, 1) != at_random(known, 2)
    assert sorted(at_random(known, 1)) == known


@pytest.mark.parametrize("controlled", [False, True])
def test_the_table_of_cures_shows_controls_where_they_are(controlled):
    row = {"network": "line", "seed": 0, "rules": ["bad_start"], "verdict": "sick", "cost": 86.0}
    row |= {"accepted": ["lsuv"], "closed": {"untreated": None, "cured": 0.9}, "repaired": True}
    row["trials"] = [{"outcome": "untreated"}, {"outcome": "accepted"}]
    if controlled:
        row["control"] = {"accepted": None, "closed": 0.2, "repaired": False}
    table = real_tables.cures({"part": real_cures.summary([row]) | {"treated": [row]}}, "part")
    chance = " nothing | 0.20 |" if controlled else ""
    assert table[2] == f"| line | bad start | `lsuv` | diverges | **0.90** |{chance} 86 |"
    assert ("by chance 0 of 1" in table[-1]) == controlled
    assert "line of code" not in table[-1]
    coded = row | {"rules": ["nonfinite"], "trials": row["trials"][:1], "repaired": False}
    table = real_tables.cures({"part": real_cures.summary([coded]) | {"treated": [coded]}}, "part")
    assert table[-1].endswith("1 fail by a line of code, for which nothing was tried.")
