"""Tables of `benchmarks.real_networks` and `benchmarks.real_cures`."""

import collections
from typing import Any

from benchmarks.real_networks import HEALTHY
from benchmarks.record import spread

_NAMES = {
    "held_out": "held-out",
    "held_out_again": "held-out, looked at before",
    "fresh": "fresh",
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
    return rows


def cost(results: dict[str, Any]) -> list[str]:
    """What a first verdict costs, by kind."""
    by_kind: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    latest = results.get("held_out_again", results["held_out"])
    rest = [results[name] for name in ("fresh", "tuning") if name in results]
    for part in (latest, *rest):
        for one in part["examined"]:
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
    """Sick networks of a part, what was accepted and how far they got."""
    found = results[part]
    rows = [
        "| network | found | accepted | gap closed, untreated | cured | trials, steps |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["treated"]:
        rule = (one["rules"] or [one["verdict"]])[0].replace("_", " ")
        accepted = ", ".join(f"`{name}`" for name in one["accepted"]) or "nothing"
        closed = [
            "diverges" if x is None else f"{max(x, -9.99):.2f}"
            for x in (one["closed"]["untreated"], one["closed"]["cured"])
        ]
        mark = f"**{closed[1]}**" if one["repaired"] else closed[1]
        rows.append(
            f"| {one['network']} | {rule} | {accepted} | {closed[0]} | {mark} | {one['cost']:.0f} |"
        )
    before = sum((one["closed"]["untreated"] or 0) >= HEALTHY for one in found["treated"])
    seen = part == "held_out" and "first_look" in results
    first = _of(results["first_look"]["repaired"]) if seen else ""
    return [
        *rows,
        "",
        f"Repaired {_of(found['repaired'])}; untreated, with this seed, {before} get as far."
        + (f" At the first look {first} were repaired." if first else ""),
    ]


def _of(pair: list[int]) -> str:
    return "{} of {}".format(*pair)
