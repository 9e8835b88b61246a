"""Cures of transformers, ResNets and their like before trainings as long as people's: at what cost?

The networks of `benchmarks.real_cures` train for 200 or 300 steps, and trials for as many are a
large part of that. Here the sick ones of a set that aren't plain MLPs train ten times as long, and
so do their healthy twins, from three seeds, at whose best rate they are judged. A network that
closes .8 of the gap by itself in so many steps is told, and counts neither as repaired nor as one
to repair. The cost of the trials is in parts of the training that they are for. The control is that
of `benchmarks.real_cures`.

    python -m benchmarks long_cures    # after real_networks
    python -m benchmarks.long_cures --part fifteenth_fresh --jobs 8
"""

import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import jax

from benchmarks import record
from benchmarks.real_cures import beside_chance, repaired
from benchmarks.real_networks import PARTS, medians, train

TIMES = 10
PART = "fifteenth_fresh"
QUICK = ("actor and critic of ferries, kernels of the critic times 7",)


def sick_ones(examined: list[dict[str, Any]], names: tuple[str, ...] = ()) -> list[str]:
    """Names of the sick networks of a part that aren't plain MLPs; of these, if any are given."""
    found = [one for one in examined if one["label"] == "sick" and "MLP" not in one["kind"]]
    return [one["network"] for one in found if not names or one["network"] in names]


def run(part: str, name: str, times: int) -> dict[str, Any]:
    """One network, cured before a training that is so many times as long as it was."""
    networks = {network.name: network for network in PARTS[part]()}
    network = networks[name]
    twin = networks[network.twin or name]
    longer = dataclasses.replace(network, steps=times * network.steps)
    its = medians(train(twin, steps=times * twin.steps))
    own = its if network.rates == twin.rates else medians(train(longer))
    jax.clear_caches()
    rate = network.rates[own.sum(-1).argmin()]
    return beside_chance(longer, rate, 0, its[its.sum(-1).argmin()])


def summary(treated: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of those that don't train by themselves, and what the trials cost of a training."""
    left = [one for one in treated if not repaired(one["closed"]["untreated"])]
    costs = [one["cost"] / one["training_steps"] for one in left]
    return {
        "train_by_themselves": [one["network"] for one in treated if one not in left],
        "repaired": [sum(one["repaired"] for one in left), len(left)],
        "control_repaired": [sum(one["control"]["repaired"] for one in left), len(left)],
        "cost": record.spread(costs) if costs else None,
    }


def main() -> None:
    """Cures and trains them, and writes long_cures.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--part", choices=tuple(PARTS), default=PART)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one network")
    options = parser.parse_args()
    known = json.loads((record.RESULTS / "real_networks.json").read_text())["results"]
    names = sick_ones(known[options.part]["examined"], QUICK if options.quick else ())
    times = 2 if options.quick else TIMES
    settings = {"part": options.part, "times": times, "quick": options.quick}
    done: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        running = {pool.submit(run, options.part, name, times): name for name in names}
        for one in as_completed(running):
            done[running[one]] = one.result()
            rows = [done[name] for name in names if name in done]
            results = {**summary(rows), "treated": rows, **record.machine()}
            record.write("long_cures", options.out, settings, results)


if __name__ == "__main__":
    main()
