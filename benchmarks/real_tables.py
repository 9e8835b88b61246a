"""Tables of `benchmarks.real_networks` and `benchmarks.real_cures`."""

import collections
from typing import Any

from benchmarks.real_networks import HEALTHY
from benchmarks.record import spread

_NAMES = {
    "held_out": "held-out",
    "held_out_again": "held-out, looked at before",
    "fresh": "third set",
    "second_fresh": "fourth set",
    "third_fresh": "fifth set",
    "fourth_fresh": "sixth set",
    "fifth_fresh": "seventh set",
    "sixth_fresh": "eighth set",
    "sixth_fresh_again": "eighth set, looked at before",
    "seventh_fresh": "ninth set",
    "eighth_fresh": "tenth set",
    "ninth_fresh": "eleventh set",
    "tenth_fresh": "twelfth set",
    "eleventh_fresh": "thirteenth set",
    "twelfth_fresh": "fourteenth set",
    "thirteenth_fresh": "fifteenth set",
    "fourteenth_fresh": "sixteenth set",
    "fifteenth_fresh": "seventeenth set",
    "sixteenth_fresh": "eighteenth set",
    "seventeenth_fresh": "nineteenth set",
    "tuning": "tuning",
}


def real_networks(results: dict[str, Any], part: str = "held_out") -> list[str]:
    """What training says of the networks of a part, and what the verdicts say."""
    found = results[part]
    said = sorted({name for row in found["table"].values() for name in row} - {"healthy"})
    columns = ["healthy", *said]
    heads = " | ".join(name.replace("_", " ") for name in columns)
    rows = [f"| truth, by training | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for truth in sorted(found["table"], key=lambda name: (name != "healthy", name)):
        cells = [str(found["table"][truth].get(name, "")) for name in columns]
        rows.append(f"| {truth.replace('_', ' ')} | {' | '.join(cells)} |")
    cases = sum(sum(row.values()) for row in found["table"].values())
    unclear = ", ".join(found["unclear"]) or "none"
    again = " These had been looked at before." if found["looked_at_before"] else ""
    return [
        *rows,
        "",
        f"{found['networks']} networks of {found['kinds']} kinds, {cases} cases: cause right in "
        f"{_of(found['cause_right'])} of those found, layer in {_of(found['layer_right'])} of "
        f"those that have a place. Left out, as training is unclear: {unclear}.{again}",
    ]


def tools(results: dict[str, Any]) -> list[str]:
    """Sick networks found and healthy ones accused, by tool."""
    names = list(results["held_out"]["tools"])
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for part in [name for name in _NAMES if name in results]:
        for label, key in (("sick, found", "caught"), ("healthy, accused", "false_alarms")):
            cells = [_of(results[part]["tools"][name][key]) for name in names]
            rows.append(f"| {_NAMES[part]}: {label} | {' | '.join(cells)} |")
    again = [found["tools"] for name, found in results.items() if name.endswith("_again")]
    for label, key in (("sick, found", "caught"), ("healthy, accused", "false_alarms")):
        pairs = [
            [sum(column) for column in zip(*(t[name][key] for t in again), strict=True)]
            for name in names
        ]
        rows.append(f"| all sets looked at again: {label} | {' | '.join(map(_of, pairs))} |")
    return rows


def cost(results: dict[str, Any]) -> list[str]:
    """What a first verdict costs, by kind, by the latest code that looked at a set."""
    by_kind: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for name in results:
        if f"{name}_again" in results:
            continue
        for one in results[name]["examined"]:
            if one["cost"]:
                by_kind[one["kind"]].append(one["cost"])
    rows = [
        "| kind | networks | gradient, s | verdict, s | ratio, median | ratio, most |",
        "|---|---|---|---|---|---|",
    ]
    for kind, costs in sorted(by_kind.items()):
        each = {key: spread([one[key] for one in costs]) for key in costs[0]}
        ratio = each["ratio"]
        rows.append(
            f"| {kind} | {len(costs)} | {each['gradient_seconds']['median']:.1f} | "
            f"{each['verdict_seconds']['median']:.1f} | {ratio['median']:.1f} | "
            f"{max(ratio['samples']):.1f} |"
        )
    return rows


def cures(results: dict[str, Any], part: str = "held_out") -> list[str]:
    """Sick networks of a part: what was accepted, how far they got, and how far by chance."""
    found = results[part]
    heads = ["network", "found", "accepted", "gap closed, untreated", "cured"]
    controlled = any("control" in one for one in found["treated"])
    heads += ["by chance", "closed"] * controlled
    heads.append("trials, steps")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in found["treated"]:
        rule = (one["rules"] or [one["verdict"]])[0].replace("_", " ")
        accepted = ", ".join(f"`{name}`" for name in one["accepted"]) or "nothing"
        ends = one["closed"]
        cells = [one["network"], rule, accepted, _closed(ends["untreated"])]
        cells.append(_closed(ends["cured"], one["repaired"]))
        if controlled:
            chance = one.get("control")
            if chance is None:
                cells += ["", ""]
            else:
                cells.append(f"`{chance['accepted']}`" if chance["accepted"] else "nothing")
                cells.append(_closed(chance["closed"], chance["repaired"]))
        rows.append(f"| {' | '.join(cells)} | {one['cost']:.0f} |")
    before = sum((one["closed"]["untreated"] or 0) >= HEALTHY for one in found["treated"])
    said = f"Repaired {_of(found['repaired'])}"
    if controlled:
        said += f", by chance {_of(found['control_repaired'])}"
    said += f"; untreated, with this seed, {before} get as far."
    if coded := sum(map(_is_in_code, found["treated"])):
        said += f" Of the others {coded} fail by a line of code, for which nothing was tried."
    if part == "held_out" and "first_look" in results:
        said += f" At the first look {_of(results['first_look']['repaired'])} were repaired."
    if (again := results.get(f"{part}_again")) is not None:
        said += f" Looked at again by later code: {_of(again['repaired'])}, "
        said += f"by chance {_of(again['control_repaired'])}."
    return [*rows, "", said]


def long_cures(results: dict[str, Any]) -> list[str]:
    """Cures before long trainings: how far they got, and what the trials cost of a training."""
    rows = [
        "| network | steps | accepted | gap closed, untreated | cured | by chance | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results["treated"]:
        accepted = ", ".join(f"`{name}`" for name in one["accepted"]) or "nothing"
        ends, chance = one["closed"], one["control"]
        cells = [one["network"], f"{one['training_steps']:,}", accepted]
        cells += [_closed(ends["untreated"]), _closed(ends["cured"], one["repaired"])]
        cells += [_closed(chance["closed"], chance["repaired"])]
        rows.append(f"| {' | '.join(cells)} | {one['cost'] / one['training_steps']:.2f} |")
    cost, alone = results["cost"], results["train_by_themselves"]
    low, high = cost["quartiles"]
    return [
        *rows,
        "",
        f"Of {len(results['treated'])}, {len(alone)} train by themselves in so many steps. Of the "
        f"others {_of(results['repaired'])} are repaired, by chance "
        f"{_of(results['control_repaired'])}. The trials cost {cost['median']:.2f} "
        f"({low:.2f} - {high:.2f}) of the training, at most {max(cost['samples']):.2f}.",
    ]


def _is_in_code(one: dict[str, Any]) -> bool:
    """Whether an operation made NaN, and no remedy was thought to help."""
    tried = [trial for trial in one["trials"] if trial["outcome"] != "untreated"]
    return one["rules"] == ["nonfinite"] and not tried


def _closed(share: float | None, repaired: bool = False) -> str:
    """Part of the gap, in bold where it is enough."""
    text = "diverges" if share is None else f"{max(share, -9.99):.2f}"
    return f"**{text}**" if repaired else text


def _of(pair: list[int]) -> str:
    return "{} of {}".format(*pair)
