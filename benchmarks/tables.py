"""The tables of benchmarks/README.md, made from the JSON files and the package's table of remedies.

`python -m benchmarks.tables` writes them in place.
"""

import collections
import functools
import json
import math
import re
from pathlib import Path

from benchmarks import chain_tables, real_tables, speed_tables
from benchmarks.chain_tables import percent
from benchmarks.deep_chains import OTHERS, USUAL, best
from benchmarks.real_networks import PARTS
from benchmarks.record import RESULTS
from benchmarks.speed_tables import ratio
from vanishjax.health import FITTING, REMEDIES
from vanishjax.treatment.remedies import KNOWN

# Where the tables stand: those of the front page, and all the others.
EVIDENCE = Path(__file__).parent / "README.md"
FRONT = EVIDENCE.parents[1] / "README.md"


def article(results):
    """Test accuracy of the article's experiment."""
    names = {
        "adam": "Adam",
        "nadam": "Nadam",
        "nesterov": "SGD, Nesterov momentum .9",
        "sgd": "SGD",
    }
    rows = [
        "| optimizer | article's rate | test % | best rate on validation | test % |",
        "|---|---|---|---|---|",
    ]
    for key, name in names.items():
        cells = [name]
        for kind in ("article", "chosen_on_validation"):
            found = results[key][kind]
            mean, sd = 100 * found["test_accuracy"], 100 * found["test_accuracy_sd"]
            cells += [f"{found['learning_rate']:g}", f"{mean:.1f} ± {sd:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def response(results):
    """The least gradient that still gets at least half of its step."""
    ours, theirs = results["vanishjax"], results["optax"]
    names = [name for name in ours if name in theirs]
    rows = ["| | vanishjax | optax |", "|---|---|---|"]
    pairs = [(name, name, name) for name in names]
    pairs.append(
        (
            "adam, `eps_relative=True`; optax's with eps 1e-30",
            "adam, eps_relative",
            "adam, eps 1e-30",
        )
    )
    pairs += [(f"{name}", name, None) for name in ours if name not in theirs and "," not in name]
    for label, mine, other in pairs:
        cells = [f"{ours[mine]['least_gradient_seen']:.0e}"]
        cells.append(f"{theirs[other]['least_gradient_seen']:.0e}" if other else "")
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


def diagnosis(results):
    """What training says of the held-out networks, and what the diagnosis says."""
    found = results["held_out"]
    said = sorted({name for row in found["table"].values() for name in row} - {"healthy"})
    columns = ["healthy", *said]
    rows = [
        f"| truth, by training | {' | '.join(name.replace('_', ' ') for name in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for truth in sorted(found["table"], key=lambda name: (name != "healthy", name)):
        cells = [str(found["table"][truth].get(name, "")) for name in columns]
        rows.append(f"| {truth.replace('_', ' ')} | {' | '.join(cells)} |")
    rows.append("")
    rows.append(
        f"{found['networks']} networks, 5 seeds each: recall {found['recall']:.1%} of "
        f"{found['sick_cases']} sick cases, false alarms {found['false_alarms']:.1%} of "
        f"{found['healthy_cases']} healthy ones, cause right in {found['cause_right']:.1%}."
    )
    return rows


def published_rules(results):
    """Alarms of other tools' rules beside the diagnosis, by what is wrong with the network."""
    tools = results["tools"]
    truths = sorted(
        tools["vanishjax"]["alarms_by_truth"], key=lambda name: (name != "healthy", name)
    )
    rows = [
        f"| alarms, by truth | {' | '.join(tools)} |",
        "|---" * (len(tools) + 1) + "|",
    ]
    for truth in truths:
        cells = ["{} of {}".format(*found["alarms_by_truth"][truth]) for found in tools.values()]
        rows.append(f"| {truth.replace('_', ' ')} | {' | '.join(cells)} |")
    for label, kind in (("recall", "recall"), ("false alarms", "false_alarms")):
        cells = [f"{found[kind]:.1%}" for found in tools.values()]
        rows.append(f"| **{label}** | {' | '.join(cells)} |")
    return rows


def cure(results, part="zoo"):
    """What became of the sick networks, by cause."""
    found = results[part]
    rows = [
        "| cause | runs | repaired | by chance | accepted |",
        "|---|---|---|---|---|",
    ]
    curable = [one for one in found["networks"] if not one["beyond"]]
    for cause in dict.fromkeys(one["ails"] for one in curable):
        runs = [run for one in curable if one["ails"] == cause for run in one["runs"]]
        cells = [
            cause.replace("_", " "),
            str(len(runs)),
            str(sum(run["repaired"] for run in runs)),
            str(sum(run["control_repaired"] for run in runs)),
            _accepted(runs),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    total = found["summary"]
    rows.append("")
    rows.append(
        f"{total['repaired']:.1%} of {total['runs']} runs repaired, "
        f"{total['control_repaired']:.1%} by chance; the cure cost {ratio(total['cost'], 3)} of "
        f"the full training, at most {max(total['cost']['samples']):.3f}."
    )
    if total["beyond_runs"]:
        rows[-1] += (
            f" Of {total['beyond_runs']} runs of networks whose loss itself is at fault, "
            f"{total['beyond_left_alone']} came back as they were."
        )
    missed = [
        f"{one['network']} ({100 * run['train_accuracy']:.1f} / {100 * run['test_accuracy']:.1f})"
        for one in curable
        for run in one["runs"]
        if not run["repaired"]
    ]
    if missed:
        rows += ["", f"Not repaired, at training / test accuracy in percent: {'; '.join(missed)}."]
    return rows


def cure_matrix(results):
    """Test accuracy with every remedy, in percent, by the network that it was tried on."""
    networks = results["matrix"]
    names = dict.fromkeys(name for found in networks.values() for name in found)
    del names["diagnosis"]
    heads = [f"{name} ({found['diagnosis']})" for name, found in networks.items()]
    rows = [f"| | {' | '.join(heads).replace('_', ' ')} |", "|---" * (len(heads) + 1) + "|"]
    for remedy in names:
        reached = [found.get(remedy) for found in networks.values()]
        cells = ["refused" if share is None else f"{100 * share:.0f}" for share in reached]
        rows.append(f"| {remedy_id(remedy)} | {' | '.join(cells)} |")
    return rows


def remedy_id(name: str) -> str:
    """A remedy's id; older results write `slow_lsuv` as "lsuv, slower"."""
    return f"slow_{name.removesuffix(', slower')}" if name.endswith(", slower") else name


def remedies_by_cause():
    """What `cure` tries against each cause."""
    rows = ["| cause | what is tried, in this order |", "|---|---|"]
    for rule, fit in FITTING.items():
        names = [f"`{name}`" for name in fit.ids if name in KNOWN and not name.startswith("slow_")]
        if names:
            rows.append(f"| {rule.replace('_', ' ')} | {', '.join(names)} |")
    return rows


def remedies():
    """What each remedy does that `cure` can try."""
    rows = ["| remedy | what it does | in Python |", "|---|---|---|"]
    for name, advice in REMEDIES.items():
        if name in KNOWN and not name.startswith("slow_"):
            rows.append(f"| `{name}` | {advice.text} | `{advice.code}` |")
    return rows


def cure_deep(results):
    """What became of networks far beyond the reach of optimizers."""
    rows = [
        "| network | training % | test % | accepted | cost |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results["deep"].items():
        cells = [
            name,
            *(percent([run[f"{part}_accuracy"] for run in runs]) for part in ("train", "test")),
            _accepted(runs),
            f"{max(run['cost'] for run in runs):.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def resume(results):
    """What became of killed runs."""
    return [
        f"{results['same_bits']} of {results['trials']} runs that were killed by SIGKILL at random "
        f"moments, {results['in_mid_save']} of them in the middle of a save, went on with "
        "`--resume` and ended with the same bits as one that nobody touched."
    ]


def signals(results):
    """What became of runs that got signals."""
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(results["signals"].items()))
    fine = results["ended"].get("as it should", 0)
    return [
        f"{fine} of {sum(results['signals'].values())} signals at random moments ({kinds}) ended "
        f"the run as they should, without a traceback; {results['same_bits']} of "
        f"{results['runs']} runs that went on with `--resume` after one or more of them ended with "
        "the same bits as one that nobody touched."
    ]


def lost_peers(results):
    """How runs of several processes end when one of them is lost."""
    rows = [
        "| one process is | looked after by | runs | the others end after, s | status | name it |"
        " goes on from there |",
        "|---|---|---|---|---|---|---|",
    ]
    for blow in results["summary"]["trials"]:
        for kind, name in (("trials", "vanishjax"), ("heartbeat", "JAX's heartbeat")):
            found = results["summary"][kind][blow]
            count = found["trials"]
            times = [one["seconds"] for one in results[kind] if one["blow"] == blow]
            known = [one for one in times if one is not None]
            seconds = f"{min(known):.1f} - {max(known):.1f}" if known else ""
            if known != times:
                seconds = f"{seconds}, {count - len(known)} not within 30".removeprefix(", ")
            cells = [
                blow,
                name,
                str(count),
                seconds,
                ", ".join(map(str, found["statuses"])),
                f"{found['named']} of {count}",
                f"{found['goes_on']} of {count}" if kind == "trials" else "",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def scaling(results):
    """What each of 1,000 devices sends in a step, over the parameters' bytes; collectives."""
    layouts = list(dict.fromkeys(key.rsplit(", ", 1)[1] for key in results))
    rows = [f"| | {' | '.join(layouts)} |", "|---" * (len(layouts) + 1) + "|"]
    for name in dict.fromkeys(key.rsplit(", ", 1)[0] for key in results):
        cells = [name]
        for layout in layouts:
            found = results[f"{name}, {layout}"]
            count = sum(found["collectives"].values())
            cells.append(f"{found['sent_over_parameters_1000']:.1f} ({count})")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def front():
    """The three answers of the front page."""
    chains, verdicts, cures = (_results(name) for name in ("deep_chains", "diagnosis", "cure"))
    known, treated = _results("real_networks"), _results("real_cures")
    *earlier, latest = (known[part] for part in PARTS if part != "tuning" and part in known)
    fresh = (treated[part] for part in PARTS if part.endswith("fresh") and part in treated)
    *before, last = (part for part in fresh if "control_repaired" in part)
    cells = [cell for own in chains.values() for cell in own if cell["contender"] not in OTHERS]

    def accuracy(depth, activation, data="mnist"):
        wanted = USUAL | {"depth": depth, "activation": activation, "data": data}
        own = [cell for cell in cells if wanted.items() <= cell["network"].items()]
        by = max({cell["contender"] for cell in own}, key=lambda name: _mean(_best(own, name)))
        scores = _best(own, by)
        seeds = f"{len(scores)} seed" + "s" * (len(scores) > 1)
        return f"{100 * _mean(scores):.1f} % ({seeds})"

    def repaired(*parts):
        kinds = ("repaired", "control_repaired")
        sums = (map(sum, zip(*(part[kind] for part in parts), strict=True)) for kind in kinds)
        (ours, count), (chance, _) = sums
        return f"{ours} of {count}, {chance} by chance"

    seen, cured = verdicts["held_out"], cures["fresh"]["summary"]
    done = len(last["treated"])
    tried = done if done == last["sick"] else f"first {done} of the {last['sick']}"
    sick, sound = seen["sick_cases"], seen["healthy_cases"]

    def seen_of(*parts):
        own = [part["tools"]["vanishjax"] for part in parts]
        kinds = ("caught", "false_alarms")
        sums = (map(sum, zip(*(one[kind] for one in own), strict=True)) for kind in kinds)
        return " and ".join("{} of {}".format(*pair) for pair in sums)

    return [
        "| question | answer | evidence |",
        "|---|---|---|",
        f"| Does it train? | a plain sigmoid network of 1,000 layers on MNIST: "
        f"{accuracy(1000, 'sigmoid')}, the best of depth 2 in as many steps: "
        f"{accuracy(2, 'sigmoid')}; one of 10,000 on Fashion-MNIST: "
        f"{accuracy(10_000, 'sigmoid', 'fashion_mnist')}, depth 2: "
        f"{accuracy(2, 'relu', 'fashion_mnist')} | [chains](benchmarks/README.md#does-it-train) |",
        f"| Does it see? | {seen['networks']} held-out MLPs: {round(seen['recall'] * sick)} of "
        f"{sick} sick cases found, {round(seen['false_alarms'] * sound)} of {sound} healthy ones "
        f"accused; {sum(x['networks'] for x in earlier)} networks that people train, in "
        f"{len(earlier)} sets, each written before it was looked at: {seen_of(*earlier)}; the "
        f"latest, {latest['networks']} with gradients that may vanish, explode or stop: "
        f"{seen_of(latest)} | [verdicts](benchmarks/README.md#does-it-see) |",
        f"| Does it cure? | of the {tried} sick ones of the last set cured {repaired(last)}; of "
        f"{len(before)} earlier sets with such a control, mistakes in code included, "
        f"{repaired(*before)}; "
        f"{cured['repaired']:.0%} of a fresh set of {cured['runs']} runs of MLPs, "
        f"{cured['control_repaired']:.0%} by chance, for {cured['cost']['median']:.2f} of a "
        "training run | [cures](benchmarks/README.md#does-it-cure) |",
    ]


def _best(cells, contender):
    own = [cell for cell in cells if cell["contender"] == contender]
    return [cell["test_accuracy"] for cell in best(own)]


def _mean(numbers):
    return math.fsum(numbers) / len(numbers)


def _results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def damage(results):
    """How damaged files of every kind ended."""
    ends = ("refused", "right", "other")
    rows = [
        "| kind of file | tried | refused in one line | read right | other |",
        "|---|---|---|---|---|",
    ]
    for kind, counts in results.items():
        # A checkpoint's counts tell the damage as well: "flip refused".
        found = {
            end: sum(n for name, n in counts.items() if name.split()[-1] == end) for end in ends
        }
        cells = [kind.replace("_", ", "), counts["tried"], *(found[end] for end in ends)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def photographs(results):
    """Digits known in photographs, as they are and framed."""
    rows = ["| photograph | as it is | framed |", "|---|---|---|"]
    for kind, found in results.items():
        means = (math.fsum(counts) / len(counts) for counts in found["right"].values())
        of = found["digits"]
        rows.append(f"| {kind} | {' | '.join(f'{mean:.0f} of {of}' for mean in means)} |")
    return rows


def low_precision(results):
    """Training with 16-bit parameters."""
    rows = [
        "| parameters | training loss | test accuracy % | bytes a parameter |",
        "|---|---|---|---|",
    ]
    for name, found in results.items():
        loss = math.fsum(found["train_loss"]) / len(found["train_loss"])
        accuracy = percent(found["test_accuracy"])
        rows.append(f"| {name} | {loss:.4f} | {accuracy} | {found['bytes_a_parameter']:g} |")
    return rows


TABLES = {
    "argument_order": speed_tables.argument_order,
    "article": article,
    "coordinate_check": chain_tables.coordinate_check,
    "cure": cure,
    "cure, deep": cure_deep,
    "cure, fresh": functools.partial(cure, part="fresh"),
    "cure, matrix": cure_matrix,
    "damage": damage,
    "deep_attention": chain_tables.deep_attention,
    "deep_chains": chain_tables.deep_chains,
    "deep_chains, other ways": chain_tables.other_ways,
    "deep_convolutions": chain_tables.deep_convolutions,
    "depth": speed_tables.depth,
    "diagnosis": diagnosis,
    "front": front,
    "headline": chain_tables.headline,
    "headline, beyond": chain_tables.beyond,
    "headline, coefficients": chain_tables.coefficients,
    "headline, healthy": chain_tables.healthy,
    "long_memory": chain_tables.long_memory,
    "lost_peers": lost_peers,
    "low_precision": low_precision,
    "monitoring": speed_tables.monitoring,
    "parallel_step": speed_tables.parallel_step,
    "photographs": photographs,
    "published_rules": published_rules,
    "real_networks": real_tables.real_networks,
    "real_networks, cost": real_tables.cost,
    "real_networks, tools": real_tables.tools,
    "long_cures": real_tables.long_cures,
    "real_cures": real_tables.cures,
    "remedies": remedies,
    "remedies, by cause": remedies_by_cause,
    "response": response,
    "resume": resume,
    "scaling": scaling,
    "signals": signals,
    "step_time": speed_tables.step_time,
    "step_time, forms": speed_tables.step_forms,
    "step_time, torch": speed_tables.step_torch,
    "training_speed": speed_tables.training_speed,
    "fit_overhead": speed_tables.fit_overhead,
    "gpu/monitoring": speed_tables.monitoring,
    "gpu/deep_chains": chain_tables.deep_chains,
    "gpu/step_time": speed_tables.step_time,
    "gpu/step_time, torch": speed_tables.step_torch,
    "gpu/training_speed": speed_tables.training_speed,
    "verdict_cost": speed_tables.verdict_cost,
} | {
    f"{name}, {part.replace('_', ' ')}": functools.partial(table, part=part)
    for name, table in (
        ("real_networks", real_tables.real_networks),
        ("real_cures", real_tables.cures),
    )
    for part in PARTS
    if part.endswith("fresh") and part in _results(name)
}


def render(name: str) -> str:
    """A table as Markdown; before a comma stands the benchmark, where one has two tables."""
    if TABLES[name] in (front, remedies, remedies_by_cause):
        return "\n".join(TABLES[name]())
    return "\n".join(TABLES[name](_results(name.partition(",")[0])))


def page_of(name: str) -> Path:
    """The page that a table stands on."""
    return FRONT if name == "front" else EVIDENCE


def main() -> None:
    """Writes every table between its markers."""
    for name in TABLES:
        page = page_of(name)
        text = page.read_text()
        # The line break before the end belongs to the table: an empty place has none to spare.
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, name=name: f"{m[1]}{render(name)}\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{page}: expected one place for the table {name}, found {count}")
        page.write_text(text)


def _accepted(runs) -> str:
    taken = collections.Counter(
        " + ".join(map(remedy_id, run["accepted"])) or "nothing" for run in runs
    )
    return ", ".join(f"{name} {count}" for name, count in taken.most_common())


if __name__ == "__main__":
    main()
