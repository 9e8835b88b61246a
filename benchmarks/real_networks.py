"""Verdicts on the kinds of network that people train, against training.

Every network is trained from three seeds, at each of its rates, and judged by its held-out loss
beside that of a healthy twin:
closed = (chance - loss) / (chance - the twin's loss), where chance is what the best constant output
reaches; of several losses the least counts, of the seeds the median, of the rates that at which the
twin does best (its own best, if its rates are others), which the verdict's optimizer has too. A
network is healthy from .8 on and sick up to .7; what lies between is left out, and so is a twin
that closes less than .15 of the way from chance to 0, and all that are judged beside it.
`diagnose` sees only the initial parameters, one batch of 64 examples and the optimizer. The tuning
half is what the rules were fixed on; the held-out half was written down before any of it was
examined; what later code finds there is kept apart from that first look. Seventeen more sets were
written when rules and remedies had been fixed, each after what the one before had taught, the last
fourteen by someone who had not read the rules, and are looked at once. The cost of a verdict is
the CPU time of the first one over that of compiling and running `jit(value_and_grad(loss))`,
everything cold. The layer is right if at least half of those named are where the network was made
sick.

    python -m benchmarks real_networks
    python -m benchmarks.real_networks --part held_out --trained FILE
"""

import collections
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vanishjax as vj
from benchmarks import record
from benchmarks.published_rules import TOOLS
from benchmarks.real_zoo import (
    Network,
    eighth_fresh_networks,
    eleventh_fresh_networks,
    fifteenth_fresh_networks,
    fifth_fresh_networks,
    fourteenth_fresh_networks,
    fourth_fresh_networks,
    fresh_networks,
    held_out_networks,
    ninth_fresh_networks,
    second_fresh_networks,
    seventeenth_fresh_networks,
    seventh_fresh_networks,
    sixteenth_fresh_networks,
    sixth_fresh_networks,
    tenth_fresh_networks,
    third_fresh_networks,
    thirteenth_fresh_networks,
    tuning_networks,
    twelfth_fresh_networks,
)
from benchmarks.real_zoo.observation import observer
from vanishjax.health import Diagnosis, diagnose
from vanishjax.training import local_step, scan_steps
from vanishjax.training.batches import rows_of

QUICK = ("DEQ", "DEQ, x6")
SEEDS, EXAMINED = 3, 64
HEALTHY, SICK, LEARNED = 0.8, 0.7, 0.15
PARTS = {
    "held_out": held_out_networks,
    "fresh": fresh_networks,
    "second_fresh": second_fresh_networks,
    "third_fresh": third_fresh_networks,
    "fourth_fresh": fourth_fresh_networks,
    "fifth_fresh": fifth_fresh_networks,
    "sixth_fresh": sixth_fresh_networks,
    "seventh_fresh": seventh_fresh_networks,
    "eighth_fresh": eighth_fresh_networks,
    "ninth_fresh": ninth_fresh_networks,
    "tenth_fresh": tenth_fresh_networks,
    "eleventh_fresh": eleventh_fresh_networks,
    "twelfth_fresh": twelfth_fresh_networks,
    "thirteenth_fresh": thirteenth_fresh_networks,
    "fourteenth_fresh": fourteenth_fresh_networks,
    "fifteenth_fresh": fifteenth_fresh_networks,
    "sixteenth_fresh": sixteenth_fresh_networks,
    "seventeenth_fresh": seventeenth_fresh_networks,
    "tuning": tuning_networks,
}


def initial(network: Network) -> Callable[[int], Any]:
    """The initial parameters of a seed."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda seed: network.init(jax.random.key(seed)), compiler_options=options)


def train(network: Network, seeds: int = SEEDS, steps: int | None = None) -> np.ndarray:
    """Held-out losses `[rates, seeds, parts]` after training; NaN where it diverged."""
    task = network.task()
    data = jax.tree.map(jnp.asarray, task.train)
    test = jax.tree.map(jnp.asarray, task.test)
    length = steps or network.steps

    def run(rate: Any, seed: Any, params: Any) -> jax.Array:
        tx = network.optimizer(rate)

        def batch_of(key: jax.Array) -> Any:
            rows = jax.random.randint(key, (network.batch,), 0, len(data[0]))
            return rows_of(data, rows)

        step, start = local_step(network.loss, tx), vj.TrainState.create(params, tx)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), length)
        params = scan_steps(step, start, keys, batch_of)[0].params
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in network.parts(params, test)])

    count = len(network.rates)
    rates, numbers = np.repeat(network.rates, seeds), np.tile(np.arange(seeds), count)
    init = initial(network)
    starts = [init(seed) for seed in range(seeds)] * count
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    every = jax.vmap(run) if network.batched else lambda *a: jax.lax.map(lambda x: run(*x), a)
    losses = np.asarray(jax.jit(every)(jnp.asarray(rates), numbers, params), np.float64)
    return losses.reshape(count, seeds, -1)


def closed_gap(losses: np.ndarray, chance: np.ndarray, twin: np.ndarray) -> float:
    """The part of the gap between chance and the twin's loss that the median seed closes."""
    closed = (chance - losses) / (chance - twin)
    least = np.where(np.isfinite(closed), closed, -np.inf).min(-1)
    return float(np.median(least))


def medians(losses: np.ndarray) -> np.ndarray:
    """`[rates, parts]`, the median seed's losses."""
    return np.asarray(np.median(np.nan_to_num(losses, nan=np.inf), axis=1))


def labels(networks: list[Network], losses: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """By name what training says: "healthy", "sick" or, to be left out, "unclear"; and the rate."""
    known = {network.name: network for network in networks}
    found = {}
    for network in networks:
        chance = np.array(network.task().chance)
        twin = known[network.twin or network.name]
        own, its = (medians(losses[one.name]) for one in (network, twin))
        end = its[its.sum(-1).argmin()]
        place = int((its if network.rates == twin.rates else own).sum(-1).argmin())
        closed = closed_gap(losses[network.name][place], chance, end)
        label = "healthy" if closed >= HEALTHY else "sick" if closed <= SICK else "unclear"
        if (1 - end / chance < LEARNED).any():
            label = "unclear"
        found[network.name] = {
            "label": label,
            "closed": closed if np.isfinite(closed) else None,
            "rate": network.rates[place],
        }
    return found


class Examiner:
    """Examines networks that share a loss and the types of parameters, compiling it once."""

    def __init__(self, loss: Callable[[Any, Any], Any]) -> None:
        self.loss = loss
        self.cost: dict[str, float] | None = None
        self._gradient_of: Any = None
        self._observe: Any = None

    def __call__(self, network: Network, rate: float, seeds: int) -> list[dict[str, Any]]:
        """What `diagnose` and the other tools say of every seed."""
        batch = jax.tree.map(lambda x: jnp.asarray(x[:EXAMINED]), network.task().train)
        tx = network.optimizer(rate)
        init = initial(network)
        starts = [init(seed) for seed in range(seeds)]
        if self.cost is None:
            jax.clear_caches()
            times = [time.process_time()]
            gradient_of = jax.jit(jax.value_and_grad(self.loss))
            self._gradient_of = gradient_of.lower(starts[0], batch).compile()
            jax.block_until_ready(self._gradient_of(starts[0], batch))
            times.append(time.process_time())
            jax.clear_caches()
            times.append(time.process_time())
            judged = [diagnose(self.loss, starts[0], batch, tx)]
            times.append(time.process_time())
            gradient, verdict = times[1] - times[0], times[3] - times[2]
            self.cost = {
                "gradient_seconds": gradient,
                "verdict_seconds": verdict,
                "ratio": verdict / gradient,
            }
            self._observe = observer(self._gradient_of, self.loss, starts[0], batch)
        else:
            judged = [diagnose(self.loss, starts[0], batch, tx)]
        judged += [diagnose(self.loss, params, batch, tx) for params in starts[1:]]
        found = []
        for seed, (params, one) in enumerate(zip(starts, judged, strict=True)):
            seen = self._observe(params)
            fired = {
                tool: [name for name, rule in rules.items() if rule(seen)]
                for tool, rules in TOOLS.items()
            }
            found.append({**_summary(one), "seed": seed, "tools": fired})
        return found


def _summary(verdict: Diagnosis) -> dict[str, Any]:
    critical = [one for one in verdict.findings if one.severity == "critical"]
    return {
        "verdict": verdict.verdict,
        "rules": [one.rule for one in critical],
        "layers": list(critical[0].layers) if critical else [],
        "where": str(critical[0].where) if critical and critical[0].where else None,
    }


def examine(
    networks: list[Network],
    known: dict[str, dict[str, Any]],
    losses: dict[str, np.ndarray],
    seeds: int,
) -> Iterator[dict[str, Any]]:
    """Label, verdicts and cost of each network; the cost of those with a program of their own."""
    order: dict[Any, list[Network]] = collections.defaultdict(list)
    for network in networks:
        params = jax.eval_shape(initial(network), 0)
        order[network.loss, tuple(x.dtype for x in jax.tree.leaves(params))].append(network)
    for (loss, _), members in order.items():
        examiner = Examiner(loss)
        for number, network in enumerate(members):
            label, own = known[network.name], losses[network.name]
            found = examiner(network, label["rate"], seeds)
            said = collections.Counter(_said(verdict) for verdict in found)
            print(f"{network.name:40s} {label['label']:8s} {dict(said)}", flush=True)
            yield {
                "network": network.name,
                "kind": network.kind,
                "library": network.library,
                **label,
                "losses": np.where(np.isfinite(own), own, None).tolist(),
                "expected": list(network.ails),
                "pattern": network.where,
                "verdicts": found,
                "cost": None if number else examiner.cost,
            }
        jax.clear_caches()


def _said(verdict: dict[str, Any]) -> str:
    rules: list[str] = verdict["rules"]
    return rules[0] if rules else str(verdict["verdict"])


def summary(examined: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over networks and seeds: what training says, and what the verdicts say."""
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    layers: list[bool] = []
    causes: list[bool] = []
    alarms: dict[str, dict[str, list[bool]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    wrong = []
    for one in examined:
        if one["label"] == "unclear":
            continue
        sick = one["label"] == "sick"
        truth = one["expected"][0] if sick and one["expected"] else one["label"]
        for verdict in one["verdicts"]:
            said = _said(verdict)
            table[truth][truth if sick and said in one["expected"] else said] += 1
            alarms["vanishjax"][one["label"]].append(bool(verdict["rules"]))
            for tool, fired in verdict["tools"].items():
                alarms[tool][one["label"]].append(bool(fired))
            caught = sick and bool(verdict["rules"])
            causes += [said in one["expected"]] if caught else []
            if caught and one["pattern"] and said in one["expected"]:
                hits = [bool(re.search(one["pattern"], name)) for name in verdict["layers"]]
                layers.append(bool(hits) and sum(hits) * 2 >= len(hits))
            if bool(verdict["rules"]) != sick or (caught and said not in one["expected"]):
                wrong.append({"network": one["network"], "truth": truth, "said": said})
    ratios = [one["cost"]["ratio"] for one in examined if one["cost"]]
    return {
        "networks": sum(one["label"] != "unclear" for one in examined),
        "kinds": len({one["kind"] for one in examined if one["label"] != "unclear"}),
        "unclear": [one["network"] for one in examined if one["label"] == "unclear"],
        "tools": {
            tool: {
                "caught": [sum(own["sick"]), len(own["sick"])],
                "false_alarms": [sum(own["healthy"]), len(own["healthy"])],
            }
            for tool, own in alarms.items()
        },
        "cause_right": [sum(causes), len(causes)],
        "layer_right": [sum(layers), len(layers)],
        "cost": record.spread(ratios) if ratios else None,
        "table": {truth: dict(row) for truth, row in sorted(table.items())},
        "wrong": wrong,
    }


def _losses(earlier: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The losses of an earlier run, by network."""
    for part in earlier.values():
        for one in part["examined"]:
            yield one["network"], np.array(one["losses"], float)


def main() -> None:
    """Trains and examines all networks, and writes real_networks.json."""
    parser = record.parser(__doc__)
    parser.add_argument(
        "--trained", type=Path, help="an earlier real_networks.json: only diagnose anew"
    )
    parser.add_argument("--part", choices=tuple(PARTS), help="only this one")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    earlier = json.loads(options.trained.read_text())["results"] if options.trained else {}
    losses = dict(_losses(earlier))
    seeds = 1 if options.quick else SEEDS
    settings = {
        "seeds": seeds,
        "examined_batch": EXAMINED,
        "healthy": HEALTHY,
        "sick": SICK,
        "learned": LEARNED,
        "quick": options.quick,
    }
    # The first look at what nothing was fixed on stays what it was.
    results: dict[str, Any] = {
        key: earlier[key] for key in earlier if options.part not in (None, key) or key != "tuning"
    }
    for part in [options.part] if options.part else PARTS:
        name = f"{part}_again" if part in results else part
        chosen = [one for one in PARTS[part]() if one.name in QUICK or not options.quick]
        if not chosen:
            continue
        for network in chosen:
            if network.name not in losses:
                losses[network.name] = train(network, seeds)
                print(f"{network.name:40s} {medians(losses[network.name])}", flush=True)
                jax.clear_caches()
        known = labels(chosen, losses)
        examined = []
        for one in examine(chosen, known, losses, seeds):
            examined.append(one)
            results[name] = {
                **summary(examined),
                **record.commit(),
                "looked_at_before": name == "tuning" or name.endswith("_again"),
                "examined": examined,
            }
            if len(examined) in (len(chosen), *range(8, len(chosen), 8)):
                record.write("real_networks", options.out, settings, results)
        shown = ("networks", "tools", "cause_right", "layer_right")
        print({key: results[name][key] for key in shown})
        print(*results[name]["wrong"], sep="\n")


if __name__ == "__main__":
    main()
