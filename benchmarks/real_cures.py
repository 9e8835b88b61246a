"""Cures on the sick ones of the networks that people train: how many are repaired, at what cost.

The networks, their tasks and their labels are those of `benchmarks.real_networks`: sick is what
training says. `cure` gets 24 batches and short trials; what it returns is trained to the end, at
the rate at which the twin does best, and judged as there: repaired is what closes .8 of the gap
between the best constant output and the healthy twin. Beside it the same training without a cure.
A verdict that isn't "sick" gets no cure, and counts as not repaired. The networks are so small that
trials are a large part of a training; the cost is in training steps.

Every network is written as soon as it is done, and what was broken off goes on where it was.
"first_look" is the run before anything was learned from these networks.

    python -m benchmarks real_cures    # after real_networks
    python -m benchmarks.real_cures --part held_out --seeds 1
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vanishjax as vj
from benchmarks import record
from benchmarks.cure import trained_on
from benchmarks.real_networks import HEALTHY, PARTS, closed_gap, initial, medians
from benchmarks.real_zoo import Network

BATCHES, TRIAL_STEPS = 24, 40
QUICK = ("two towers, one at .2 x12",)
SHOWN = ("rules", "accepted", "closed", "cost", "seconds")


def batches_of(network: Network, seed: int) -> list[Any]:
    """Batches for the trials."""
    data = network.task().train
    rows = np.random.default_rng(seed).integers(0, len(data[0]), (BATCHES, network.batch))
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), data) for i in rows]


def trained(network: Network, problem: vj.Problem, opt_state: Any, seed: int) -> np.ndarray:
    """Held-out losses `[parts]` after the network's own number of steps."""
    task = network.task()
    data, test = (jax.tree.map(jnp.asarray, part) for part in (task.train, task.test))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), network.steps)
    params = trained_on(problem, opt_state, data, keys, network.batch)
    return np.asarray([float(x) for x in jax.jit(network.parts)(params, test)])


def treat(network: Network, rate: float, seed: int, twin: np.ndarray) -> dict[str, Any]:
    """One network and seed: cured, and trained to the end."""
    chance = np.array(network.task().chance)
    problem = vj.Problem(network.loss, initial(network)(seed), network.optimizer(rate))
    started = time.perf_counter()
    treatment = vj.cure(
        problem,
        batches_of(network, seed),
        steps=TRIAL_STEPS,
        total_steps=network.steps,
        learning_rate=rate,
        key=jax.random.key(seed),
    )
    seconds = time.perf_counter() - started
    ends = {}
    for name, (one, state) in {
        "untreated": (problem, None),
        "cured": (treatment.problem, treatment.opt_state),
    }.items():
        if name == "untreated" or treatment.accepted:
            losses = trained(network, one, state, seed)
            closed = closed_gap(losses[None], chance, twin)
            ends[name] = closed if np.isfinite(closed) else None
    ends.setdefault("cured", ends["untreated"])
    return {
        "network": network.name,
        "kind": network.kind,
        "seed": seed,
        "learning_rate": rate,
        "verdict": treatment.before.verdict,
        "rules": [one.rule for one in treatment.before.findings if one.severity == "critical"],
        "accepted": [one.name for one in treatment.accepted],
        "trials": [
            {"remedy": one.remedy, "outcome": one.outcome, "reason": one.reason}
            for one in treatment.trials
        ],
        "closed": ends,
        "repaired": ends["cured"] is not None and ends["cured"] >= HEALTHY,
        "cost": treatment.cost,
        "training_steps": network.steps,
        "seconds": seconds,
    }


def summary(treated: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by cause and in all."""
    causes: dict[str, list[bool]] = {}
    for one in treated:
        causes.setdefault((one["rules"] or [one["verdict"]])[0], []).append(one["repaired"])
    return {
        "repaired": [sum(one["repaired"] for one in treated), len(treated)],
        "by_cause": {cause: [sum(own), len(own)] for cause, own in sorted(causes.items())},
        "cost": record.spread([one["cost"] for one in treated]),
    }


def main() -> None:
    """Cures the sick networks of real_networks.json, and writes real_cures.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--part", choices=tuple(PARTS), action="append")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    known = json.loads((record.RESULTS / "real_networks.json").read_text())["results"]
    settings = {
        "seeds": 1 if options.quick else options.seeds,
        "trial_steps": TRIAL_STEPS,
        "batches": BATCHES,
        "healthy": HEALTHY,
        "quick": options.quick,
    }
    path = options.out / "real_cures.json"
    results: dict[str, Any] = {}
    if path.exists() and (earlier := json.loads(path.read_text()))["settings"] == settings:
        results = earlier["results"]
    for part in options.part or PARTS:
        ends, sick = {}, {}
        for one in known[part]["examined"]:
            ends[one["network"]] = medians(np.array(one["losses"], float))
            if one["label"] == "sick" and (not options.quick or one["network"] in QUICK):
                sick[one["network"]] = one["rate"]
        treated = results.get(part, {}).get("treated", [])
        done = {(one["network"], one["seed"]) for one in treated}
        for network in PARTS[part]():
            if network.name not in sick:
                continue
            its = ends[network.twin or network.name]
            twin = its[its.sum(-1).argmin()]
            for seed in range(settings["seeds"]):
                if (network.name, seed) in done:
                    continue
                treated.append(treat(network, sick[network.name], seed, twin) | record.commit())
                print(network.name, {key: treated[-1][key] for key in SHOWN}, flush=True)
                results[part] = {
                    **summary(treated),
                    "sick": len(sick) * settings["seeds"],
                    "treated": treated,
                }
                record.write("real_cures", options.out, settings, results)
            jax.clear_caches()


if __name__ == "__main__":
    main()
