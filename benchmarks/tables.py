"""README's tables, made from the JSON files: `python -m benchmarks.tables` writes them in place."""

import json
import re
from pathlib import Path

from benchmarks.record import RESULTS

README = Path(__file__).parents[1] / "README.md"


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


def training_speed(results):
    """Epoch time of the others over ours."""
    rows = ["| | times the time of `vanishjax.fit` (quartiles) |", "|---|---|"]
    for key, name in (
        ("bare_loop_over_vanishjax", "bare jitted loop of optax over NumPy batches"),
        ("keras_over_vanishjax", "Keras 3 `fit`, JAX backend"),
    ):
        rows.append(f"| {name} | {_ratio(results[key])} |")
    return rows


def step_time(results):
    """Step time over optax's."""
    trees = ("one leaf", "64 leaves", "stack of 64")
    names = dict.fromkeys(key.rsplit(", ", 1)[0] for key in results)
    rows = [f"| step time over optax's | {' | '.join(trees)} |", "|---|---|---|---|"]
    for name in names:
        cells = [_ratio(results[f"{name}, {tree}"]["ratio"]) for tree in trees]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


TABLES = {"article": article, "training_speed": training_speed, "step_time": step_time}


def render(name: str) -> str:
    """The table of one benchmark, as Markdown."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    return "\n".join(TABLES[name](content["results"]))


def main() -> None:
    """Writes every table between its markers in README."""
    text = README.read_text()
    for name in TABLES:
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, name=name: m[1] + render(name) + m[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"README.md: expected one place for the table {name}, found {count}")
    README.write_text(text)


def _ratio(found) -> str:
    low, high = found["quartiles"]
    return f"{found['median']:.2f} ({low:.2f} - {high:.2f})"


if __name__ == "__main__":
    main()
