"""Cures on the sick ones of the networks that people train: how many are repaired, at what cost.

The networks, their tasks and their labels are those of `benchmarks.real_networks`: sick is what
training says. `cure` gets 24 batches and short trials; what it returns is trained to the end, at
the rate at which the twin does best, and judged as there: repaired is what closes .8 of the gap
between the best constant output and the healthy twin. Beside it the same training without a cure.
A verdict that isn't "sick" gets no cure, and counts as not repaired. The networks are so small that
trials are a large part of a training; the cost is in training steps.

Beside each cure a control, as in `benchmarks.cure`: as many remedies as the steps of the cure's
trials pay for, drawn at random, for each network anew, from all that don't refuse it, each with a
trial of the usual length, of which the one with the least held-out loss is kept, and trained for as
many steps as the cured network, its trial included.

Every network is written as soon as its cure and its control are done, and what was broken off goes
on where it was. "first_look" is the run before anything was learned from these networks; `--again`
leaves what a part has as it is, and writes what later code makes of it beside that.

    python -m benchmarks real_cures    # after real_networks
    python -m benchmarks.real_cures --part held_out --seeds 1
    python -m benchmarks.real_cures --part fresh --again --jobs 8
"""

import itertools
import json
import multiprocessing
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vanishjax as vj
from benchmarks import record
from benchmarks.cure import TRIAL_STEPS, at_random, by_chance, trained_on
from benchmarks.real_networks import HEALTHY, PARTS, closed_gap, initial, medians
from benchmarks.real_zoo import Network
from vanishjax.treatment import remedies
from vanishjax.treatment.inputs import Standardized

BATCHES = 24
QUICK = ("two towers, one at .2 x12",)
SHOWN = ("rules", "accepted", "closed", "cost", "seconds")


def batches_of(network: Network, seed: int) -> list[Any]:
    """Batches for the trials."""
    data = network.task().train
    rows = np.random.default_rng(seed).integers(0, len(data[0]), (BATCHES, network.batch))
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), data) for i in rows]


def problem_of(network: Network, rate: float, seed: int) -> vj.Problem:
    """The network at its start."""
    return vj.Problem(network.loss, initial(network)(seed), network.optimizer(rate))


def as_taken_in(loss: Any, data: Any) -> Any:
    """Data as a loss takes them in that standardizes its inputs first, as a remedy makes it."""
    while isinstance(loss, Standardized):
        data, loss = loss.standardize(data), loss.function
    return data


def closed_after(
    network: Network, problem: vj.Problem, seed: int, twin: np.ndarray, more: int
) -> float | None:
    """Part of the gap closed after the network's own number of steps and some; None: diverged."""
    task = network.task()
    data, test = (jax.tree.map(jnp.asarray, part) for part in (task.train, task.test))
    steps = network.steps + more
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps)
    params = trained_on(problem, None, data, keys, network.batch)
    test = as_taken_in(problem.loss_fn, test)
    losses = np.asarray([float(x) for x in jax.jit(network.parts)(params, test)])
    closed = closed_gap(losses[None], np.array(task.chance), twin)
    return closed if np.isfinite(closed) else None


def repaired(closed: float | None) -> bool:
    """Whether so much of the gap is enough."""
    return closed is not None and closed >= HEALTHY


def treat(network: Network, rate: float, seed: int, twin: np.ndarray) -> dict[str, Any]:
    """One network and seed: cured, and trained to the end."""
    problem = problem_of(network, rate, seed)
    started = time.perf_counter()
    treatment = vj.cure(
        problem,
        batches_of(network, seed),
        steps=TRIAL_STEPS,
        total_steps=network.steps,
        key=jax.random.key(seed),
    )
    seconds = time.perf_counter() - started
    untreated = cured = closed_after(network, problem, seed, twin, 0)
    if treatment.accepted:
        cured = closed_after(network, treatment.start, seed, twin, TRIAL_STEPS)
    return {
        "network": network.name,
        "kind": network.kind,
        "seed": seed,
        "learning_rate": rate,
        "verdict": treatment.before.verdict,
        "rules": [one.rule for one in treatment.before.findings if one.severity == "critical"],
        "accepted": [one.name for one in treatment.accepted],
        "trials": [
            {
                "remedy": one.remedy,
                "outcome": one.outcome,
                "reason": one.reason,
                "steps": one.steps,
            }
            for one in treatment.trials
        ],
        "closed": {"untreated": untreated, "cured": cured},
        "repaired": repaired(cured),
        "cost": treatment.cost,
        "training_steps": network.steps,
        "seconds": seconds,
    }


def applies(remedy: vj.Remedy, problem: vj.Problem) -> bool:
    """Whether a remedy doesn't refuse a network."""
    try:
        treated = remedy.treat(problem)
        jax.eval_shape(treated.transform.init, treated.params)
    except Exception:
        return False
    return True


def control(
    network: Network, rate: float, seed: int, twin: np.ndarray, trials: list[dict[str, Any]]
) -> dict[str, Any]:
    """What chance makes of a network and seed, with as many trials as the cure had."""
    problem, key = problem_of(network, rate, seed), jax.random.key(seed)
    batches = batches_of(network, seed)
    context = remedies.Context(problem, batches[0], total_steps=network.steps, key=key)
    # Another architecture takes a factory.
    known = [make(context) for name, make in remedies.KNOWN.items() if name != "rezero"]
    spent = sum(one["steps"] for one in trials if one["outcome"] not in ("untreated", "failed"))
    count = spent // TRIAL_STEPS
    order = at_random(known, [seed, zlib.crc32(network.name.encode())])
    fitting = (one for one in order if applies(one, problem))
    drawn = list(itertools.islice(fitting, count))
    chosen = by_chance(problem, batches, drawn, key)
    treated = problem if chosen is None else chosen.treat(problem)
    closed = closed_after(network, treated, seed, twin, TRIAL_STEPS)
    return {
        "drawn": [one.name for one in drawn],
        "accepted": None if chosen is None else chosen.name,
        "closed": closed,
        "repaired": repaired(closed),
    }


def beside_chance(
    network: Network,
    rate: float,
    seed: int,
    twin: np.ndarray,
    row: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One network and seed: its cure, if there is none yet, and its control."""
    row = treat(network, rate, seed, twin) | record.commit() if row is None else row
    print(network.name, {key: row[key] for key in SHOWN}, flush=True)
    chance = control(network, rate, seed, twin, row["trials"]) | record.commit()
    print(network.name, chance, flush=True)
    jax.clear_caches()
    return {**row, "control": chance}


def summary(treated: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by cause and in all."""
    causes: dict[str, list[bool]] = {}
    for one in treated:
        causes.setdefault((one["rules"] or [one["verdict"]])[0], []).append(one["repaired"])
    controls = [one["control"]["repaired"] for one in treated if "control" in one]
    return {
        "repaired": [sum(one["repaired"] for one in treated), len(treated)],
        "control_repaired": [sum(controls), len(controls)],
        "by_cause": {cause: [sum(own), len(own)] for cause, own in sorted(causes.items())},
        "cost": record.spread([one["cost"] for one in treated]),
    }


class Case(NamedTuple):
    """A sick network, by what another process can find it with."""

    part: str
    name: str
    rate: float
    seed: int
    twin: np.ndarray  # the losses of its twin's best run

    def run(self, row: dict[str, Any] | None) -> dict[str, Any]:
        """Its cure where none is there, and its control."""
        network = next(one for one in PARTS[self.part]() if one.name == self.name)
        return beside_chance(network, self.rate, self.seed, self.twin, row)


def cases(part: str, examined: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Case]:
    """The sick networks of a part, each with its rate, a seed and the twin's losses."""
    ends = {one["network"]: medians(np.array(one["losses"], float)) for one in examined}
    rates = {one["network"]: one["rate"] for one in examined if one["label"] == "sick"}
    for network in PARTS[part]():
        if network.name in rates and (not settings["quick"] or network.name in QUICK):
            its = ends[network.twin or network.name]
            for seed in range(settings["seeds"]):
                rate, twin = rates[network.name], its[its.sum(-1).argmin()]
                yield Case(part, network.name, rate, seed, twin)


def filled(
    treated: list[dict[str, Any]], whole: list[Case], pool: Executor
) -> Iterator[list[dict[str, Any]]]:
    """All rows in the order of the cases, whenever a cure or control that was missing is done."""
    done = {(row["network"], row["seed"]): row for row in treated}
    places = [(case.name, case.seed) for case in whole]
    missing = {
        pool.submit(case.run, done.get(place)): place
        for place, case in zip(places, whole, strict=True)
        if "control" not in done.get(place, {})
    }
    for one in as_completed(missing):
        done[missing[one]] = one.result()
        yield [done[place] for place in places if place in done]


def main() -> None:
    """Cures the sick networks of real_networks.json, and writes real_cures.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--part", choices=tuple(PARTS), action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one network")
    parser.add_argument("--again", action="store_true", help="beside what was found before")
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
    pool = ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"))
    for part in options.part or PARTS:
        name = f"{part}_again" if options.again else part
        whole = list(cases(part, known[part]["examined"], settings))
        for rows in filled(results.get(name, {}).get("treated", []), whole, pool):
            results[name] = {
                **summary(rows),
                "sick": len(whole),
                "treated": rows,
                **record.machine(),
            }
            record.write("real_cures", options.out, settings, results)


if __name__ == "__main__":
    main()
