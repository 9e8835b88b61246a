"""Tables of networks trained without skips and normalization, by depth."""

import collections
import math

from benchmarks.deep_chains import CONTENDERS, OTHERS, OURS, USUAL, best


def percent(shares) -> str:
    """Mean and standard deviation, in percent."""
    mean = math.fsum(shares) / len(shares)
    deviation = (math.fsum((share - mean) ** 2 for share in shares) / len(shares)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def headline(results):
    """Training and test accuracy by depth."""
    cells = {(one["network"]["depth"], one["contender"]): one for one in results["headline"]}
    depths = sorted({depth for depth, _ in cells})
    rows = [
        f"| | {' | '.join(f'depth {depth}' for depth in depths)} |",
        "|---" * (len(depths) + 1) + "|",
    ]
    for name in dict.fromkeys(contender for _, contender in cells):
        shown = []
        for depth in depths:
            one = cells.get((depth, name))
            parts = [] if one is None else [one["train_accuracy"], one["test_accuracy"]]
            shown.append(" / ".join(percent(part) for part in parts))
        rows.append(f"| {name} | {' | '.join(shown)} |")
    return rows


def deep_chains(results):
    """Test accuracy of plain chains by network and contender, and the number of seeds."""
    kept = {
        part: [cell for cell in cells if cell["contender"] not in OTHERS]
        for part, cells in results.items()
    }
    return _by_contender(kept, _chain, _CHAIN_ORDER)


def other_ways(results):
    """Other ways to train them, beside ours, and at which rate."""
    cells = [cell for own in results.values() for cell in own]
    networks = [cell["network"] for cell in cells if cell["contender"] in OTHERS]
    names = OURS[:1] + OTHERS
    kept = [one for one in cells if one["contender"] in names and one["network"] in networks]
    return _by_contender({"": kept}, _chain, _CHAIN_ORDER, rates=True)


_CHAIN_ORDER = ("data", "batch_size", "width", "steps", "activation", "depth")


def _chain(own):
    plain = f"{own['activation']} x{own['depth']}" if own["depth"] else "linear classifier"
    words = {
        "width": f", width {own['width']}",
        "batch_size": f", batch {own['batch_size']}",
        "steps": f", {own['steps']} steps",
    }
    other = [words[size] for size, usual in USUAL.items() if own[size] != usual]
    return "".join([plain, _of_fashion(own), *other])


def deep_convolutions(results):
    """The same of convolutional networks."""

    def name(own):
        around = ", padded from the other side" if own["padding"] == "around" else ""
        head = ", head of means" if own["head"] == "mean" else ""
        return f"{own['activation']} x{own['depth']}{_of_fashion(own)}{around}{head}"

    return _by_contender(results, name, ("data", "head", "padding", "activation", "depth"))


def deep_attention(results):
    """The same of transformers."""

    def name(own):
        skips = ", with skips and LayerNorm" if own["skips"] else ""
        return f"{own['depth']} blocks{skips}{_of_fashion(own)}"

    return _by_contender(results, name, ("data", "skips", "depth"))


def _of_fashion(network):
    return ", Fashion-MNIST" if network["data"] == "fashion_mnist" else ""


def _by_contender(results, name, order, *, rates=False):
    """A row for each network, in the order of these fields, and a column for each contender.

    Mean test accuracy in percent at the best rate, the number of seeds and, if wanted, that rate;
    nothing for none.
    """
    runs = collections.defaultdict(list)
    for cell in (cell for own in results.values() for cell in own):
        runs[tuple(cell["network"].items()), cell["contender"]].append(cell)
    contenders = sorted({contender for _, contender in runs}, key=list(CONTENDERS).index)
    networks = map(dict, dict.fromkeys(network for network, _ in runs))
    rows = [f"| | {' | '.join(contenders)} |", "|---" * (len(contenders) + 1) + "|"]
    for network in sorted(networks, key=lambda own: [own[field] for field in order]):
        shown = [name(network)]
        for contender in contenders:
            cells = runs.get((tuple(network.items()), contender))
            if not cells:
                shown.append("")
                continue
            own = best(cells)
            mean = math.fsum(cell["test_accuracy"] for cell in own) / len(own)
            rate = f" at {own[0]['learning_rate']:g}" if rates else ""
            shown.append(f"{100 * mean:.1f} ({len(own)}){rate}")
        rows.append(f"| {' | '.join(shown)} |")
    return rows


def healthy(results):
    """What optimizers for sick networks make of healthy ones, beside the usual."""
    return _by_network(results["healthy"], lambda own: f"{own['activation']} x{own['depth']}")


def coefficients(results):
    """What other coefficients of the orthogonalization change."""
    return _by_network(results["coefficients"], lambda own: f"depth {own['depth']}")


def beyond(results):
    """The headline's contenders on deeper, other networks, other batches and other data."""
    usual = results["headline"][0]["network"]
    words = {
        "depth": "depth {}",
        "width": "width {}",
        "batch_size": "batch {}",
        "epochs": "{} epochs",
        "data": "{}",
    }

    def name(own):
        new = [
            text.format(own[field]).replace("_mnist", "-MNIST").replace("fashion", "Fashion")
            for field, text in words.items()
            if field == "depth" or own[field] != usual[field]
        ]
        return ", ".join(new)

    return _by_network(results["beyond"], name)


def _by_network(cells, name_of):
    """Training / test accuracy, a row for each network, a column for each contender."""
    rows: dict[str, dict[str, str]] = {}
    for one in cells:
        scores = (percent(one[f"{part}_accuracy"]) for part in ("train", "test"))
        rows.setdefault(name_of(one["network"]), {})[one["contender"]] = " / ".join(scores)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {key} | {' | '.join(row.get(n, '') for n in names)} |" for key, row in rows.items()),
    ]


def coordinate_check(results):
    """By depth, how far the logits moved in one step and in many."""
    by_depth = collections.defaultdict(dict)
    for key, found in results.items():
        network, _, contender = key.partition(", ")
        activation, _, depth = network.partition(" x")
        by_depth[int(depth)][activation, contender] = found["logits"]
    columns = list(next(iter(by_depth.values())))
    heads = [f"{activation}, {contender}" for activation, contender in columns]
    rows = [f"| layers | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for depth, row in sorted(by_depth.items()):
        cells = [
            " / ".join(_change(count["median"]) for count in row[column].values())
            for column in columns
        ]
        rows.append(f"| {depth:,} | {' | '.join(cells)} |")
    return rows


def _change(size):
    if size is None:
        return "no number"
    return f"{size:.2f}" if size < 10 else f"{size:.0f}" if size < 1e4 else f"{size:.0e}"


def long_memory(results):
    """Accuracy by lag, a row for each cell and start."""
    lags = sorted({one["lag"] for one in results})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for one in results:
        accuracies = one["test_accuracy"]["samples"]
        rows.setdefault((one["cell"], one["start"]), {})[one["lag"]] = percent(accuracies)
    order = list(dict.fromkeys(cell for cell, _ in rows))
    return [
        f"| cell | start | {' | '.join(f'lag {lag}' for lag in lags)} |",
        "|---" * (len(lags) + 2) + "|",
        *(
            f"| {cell} | {start} | {' | '.join(row.get(lag, '') for lag in lags)} |"
            for (cell, start), row in sorted(rows.items(), key=lambda one: order.index(one[0][0]))
        ),
    ]
