"""Verdicts before the first step against training: which train, and what is wrong with the others.

Every network is trained from five seeds at several rates; it counts as healthy if at the best rate
the median seed closes three quarters of the gap between chance and a perfect training accuracy.
`diagnose` sees only the initial parameters, one batch of 256 examples and the optimizer. Thresholds
were chosen on the tuning networks; the held-out ones are what counts.

    python -m benchmarks diagnosis
    python -m benchmarks.diagnosis --part held_out --trained FILE
"""

import collections
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vanishjax as vj
from benchmarks import record
from benchmarks.networks import CLASSES, DATA, Network, held_out_networks, tuning_networks
from vanishjax.health import diagnose
from vanishjax.training import local_step, scan_steps

# One of each part: a healthy one, and one with dead units.
QUICK = ("tanh x4, scale 1", "relu x3, bias -30")
SEEDS, STEPS, BATCH, EXAMINED, CLOSED = 5, 600, 64, 256, 0.75
CONVERGED_RATE = 0.003


def trainer(network: Network, steps: int) -> Any:
    """A function from (rate, seed) to the training accuracy and the parameters."""
    inputs, labels = (jnp.asarray(x) for x in DATA[network.data]())

    def run(rate: jax.Array, seed: jax.Array) -> tuple[jax.Array, Any]:
        key, tx = jax.random.key(seed), network.optimizer(rate)
        params = network.init(key, inputs)

        def batch_of(key: jax.Array) -> Any:
            rows = jax.random.randint(key, (BATCH,), 0, len(inputs))
            return inputs[rows], labels[rows]

        step, start = local_step(network.loss_fn, tx), vj.TrainState.create(params, tx)
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        params = scan_steps(step, start, keys, batch_of)[0].params
        outputs = network.predict(params, inputs)
        right = jnp.mean(jnp.argmax(outputs, -1) == labels)
        return jnp.where(jnp.isfinite(outputs).all(), right, 0.0), params

    return run


def train(network: Network, seeds: int, steps: int) -> np.ndarray:
    """Training accuracies, `[rates, seeds]`; 0 where training diverged."""
    run = trainer(network, steps)
    rates = jnp.array(network.rates)

    def accuracy(rate: jax.Array, seed: jax.Array) -> jax.Array:
        return run(rate, seed)[0]

    if network.batched:
        every = jax.vmap(jax.vmap(accuracy, (None, 0)), (0, None))
        return np.asarray(jax.jit(every)(rates, jnp.arange(seeds)))
    pairs = jnp.repeat(rates, seeds), jnp.tile(jnp.arange(seeds), len(rates))
    found = jax.jit(lambda pairs: jax.lax.map(lambda pair: accuracy(*pair), pairs))(pairs)
    return np.asarray(found).reshape(len(rates), seeds)


def closed_gap(network: Network, accuracies: np.ndarray) -> float:
    """The part of the gap between chance and 1 that the best rate's median seed closes."""
    chance = 1 / CLASSES[network.data]
    return float((np.median(accuracies, axis=1).max() - chance) / (1 - chance))


def examined(network: Network) -> tuple[Callable[[int], Any], tuple[np.ndarray, np.ndarray]]:
    """What is examined: the parameters of a seed, and a batch."""
    inputs, labels = DATA[network.data]()
    batch = (inputs[:EXAMINED], labels[:EXAMINED])
    if network.pretrain:
        run = jax.jit(trainer(network, network.pretrain))
        return lambda seed: run(CONVERGED_RATE, seed)[1], batch
    return jax.jit(lambda seed: network.init(jax.random.key(seed), jnp.asarray(inputs))), batch


def verdicts(network: Network, seeds: int) -> list[dict[str, Any]]:
    """What `diagnose` says of every seed."""
    init, batch = examined(network)
    tx = network.optimizer(network.rates[len(network.rates) // 2])
    found = []
    for seed in range(seeds):
        params = init(seed)
        started = time.perf_counter()
        verdict = diagnose(network.loss_fn, params, batch, tx)
        found.append(
            {
                "healthy": verdict.healthy,
                "rules": [one.rule for one in verdict.findings if one.severity == "critical"],
                "seconds": time.perf_counter() - started,
            }
        )
    return found


def examine(network: Network, seeds: int, steps: int, trained: Any) -> dict[str, Any]:
    """Trains one network, unless that was done before, and diagnoses it."""
    known = trained.get(network.name)
    accuracies = train(network, seeds, steps) if known is None else np.array(known)
    medians = np.median(accuracies, axis=1)
    closed = closed_gap(network, accuracies)
    one = {
        "network": network.name,
        "closed": closed,
        "trains": closed >= CLOSED,
        "rate": network.rates[int(np.argmax(medians))],
        "accuracies": accuracies.tolist(),
        "expected": list(network.ails),
        "verdicts": verdicts(network, seeds),
    }
    said = collections.Counter(v["rules"][0] if v["rules"] else "healthy" for v in one["verdicts"])
    print(f"{network.name:40s} {closed:6.2f}  {dict(said)}", flush=True)
    return one


def labels() -> dict[str, dict[str, Any]]:
    """What training and the diagnosis said of each held-out network, as measured last."""
    results = json.loads((record.RESULTS / "diagnosis.json").read_text())["results"]
    return {one["network"]: one for one in results["held_out"]["examined"]}


def truth_of(one: dict[str, Any]) -> str:
    """What training says of an examined network: healthy, or what was written down as its cause."""
    return "healthy" if one["trains"] else one["expected"][0] if one["expected"] else "unknown"


def confusion(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over networks and seeds: what training says, and what the diagnosis says."""
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong = []
    for one in networks:
        truth = truth_of(one)
        for verdict in one["verdicts"]:
            said = verdict["rules"][0] if verdict["rules"] else "healthy"
            right = said == "healthy" if one["trains"] else said in one["expected"]
            # One name for what has several right ones.
            table[truth][truth if right else said] += 1
            if not right:
                wrong.append({"network": one["network"], "truth": truth, "said": said})
    sick = {truth: row for truth, row in table.items() if truth != "healthy"}
    cases = sum(row.total() for row in sick.values())
    caught = cases - sum(row["healthy"] for row in sick.values())
    named = sum(row[truth] for truth, row in sick.items())
    healthy = table["healthy"]
    return {
        "networks": len(networks),
        "sick_cases": cases,
        "healthy_cases": healthy.total(),
        "recall": caught / max(1, cases),
        "false_alarms": 1 - healthy["healthy"] / max(1, healthy.total()),
        "cause_right": named / max(1, caught),
        "table": {truth: dict(row) for truth, row in sorted(table.items())},
        "wrong": wrong,
    }


def main() -> None:
    """Examines all networks, and writes diagnosis.json."""
    parser = record.parser(__doc__)
    parser.add_argument(
        "--trained", type=Path, help="an earlier diagnosis.json: only diagnose anew"
    )
    parser.add_argument("--part", choices=("held_out", "tuning"), help="one of the two")
    options = parser.parse_args()
    earlier = json.loads(options.trained.read_text())["results"] if options.trained else {}
    trained = {
        one["network"]: one["accuracies"] for part in earlier.values() for one in part["examined"]
    }
    seeds, steps = (2, 200) if options.quick else (SEEDS, STEPS)
    results: dict[str, Any] = {}
    settings = {
        "seeds": seeds,
        "steps": steps,
        "batch_size": BATCH,
        "examined_batch": EXAMINED,
        "closed": CLOSED,
    }
    parts = {"held_out": held_out_networks, "tuning": tuning_networks}
    for part in [options.part] if options.part else parts:
        chosen = [one for one in parts[part]() if one.name in QUICK or not options.quick]
        found = [examine(one, seeds, steps, trained) for one in chosen]
        results[part] = confusion(found) | {"examined": found}
        print({key: results[part][key] for key in ("recall", "false_alarms", "cause_right")})
        print(*results[part]["wrong"], sep="\n")
        record.write("diagnosis", options.out, settings, results)


if __name__ == "__main__":
    main()
