"""README's pictures, drawn from the JSON files: `python -m benchmarks.plots` writes them anew.

White ground and Okabe and Ito's colors, so that they read the same in print, in dark mode and to
people of every color vision. Each PNG carries the digest of the JSON it was drawn from.
"""

import collections
import hashlib
import json
from pathlib import Path

from PIL import Image, PngImagePlugin

from benchmarks.deep_chains import USUAL, best
from benchmarks.record import RESULTS
from vanishjax.report import png_figure
from vanishjax.report.atlas_plot import plot_atlas
from vanishjax.report.diagnosis_plot import plot_diagnosis
from vanishjax.report.plots import MUTED, OKABE_ITO
from vanishjax.report.treatment_plot import plot_treatment

SMALLEST_FLOAT32 = 1.2e-38
# Colors are enough of; more only cost bytes.
PALETTE = 256


def response(results, settings, path):
    """Step size against gradient size, optax's optimizers beside ours."""
    sizes = settings["gradient"]
    looks = {
        "sgd": ("black", "-"),
        "rmsprop": ("sky_blue", "-"),
        "adam": ("blue", "-"),
        "adam, eps 1e-30": ("blue", ":"),
        "adam, eps_relative": ("blue", "--"),
        "adam_atan2": ("yellow", "-"),
        "lion": ("orange", "-"),
        "lars": ("green", "-"),
        "lamb": ("purple", "-"),
        "muon": ("vermilion", "-"),
        "deep_muon": ("vermilion", "--"),
    }
    caption = (
        f"Root mean square of the update of a dense kernel at step {settings['steps']}, every "
        "gradient entry plus or minus one size, float32, no weight decay, default settings unless "
        "a label says otherwise. A line ends where nothing moves any more."
    )
    title = "How large a step is left of a small gradient"
    with png_figure(path, 11, 5, title, caption) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        lines = {}
        for axes, library in zip(panels, ("optax", "vanishjax"), strict=True):
            for name, found in results[library].items():
                steps = found["update_over_learning_rate"]
                heights = [float("nan") if not y or y <= 0 else y for y in steps]
                if name in looks:
                    color, style = looks[name]
                    (lines[name],) = axes.plot(
                        sizes, heights, style, color=OKABE_ITO[color], linewidth=2, zorder=3
                    )
                else:
                    (lines["others"],) = axes.plot(sizes, heights, color="#bbbbbb", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlim(1, 1e-40)
            axes.set_ylim(1e-40, 1e20)
            axes.set_xticks([10.0**-i for i in range(0, 41, 10)])
            axes.set_yticks([10.0**i for i in range(-40, 21, 10)])
            axes.axvline(SMALLEST_FLOAT32, color=MUTED, linewidth=0.8, linestyle="--")
            axes.set_title(library, loc="left")
            axes.set_xlabel("size of the gradient's entries")
            axes.grid(linewidth=0.5)
            axes.annotate(
                "least  \nfloat32  ",
                (SMALLEST_FLOAT32, 1e19),
                ha="right",
                va="top",
                fontsize=8,
                color=MUTED,
            )
        panels[0].set_ylabel("update / learning rate")
        panels[1].annotate(
            "one on the other: adam (eps_relative), adam_atan2,\nlion, lamb, muon, deep_muon",
            (3e-3, 1e2),
            fontsize=8,
        )
        order = [name for name in (*looks, "others") if name in lines]
        figure.legend(
            [lines[name] for name in order], order, loc="outside right center", frameon=False
        )


def headline(results, settings, path):
    """Test accuracy against depth."""
    looks = {
        "deep_muon": ("vermilion", "o", 5, "-"),
        "deep_muon, polar growth": ("orange", "s", 10, "-"),
        "deep_muon, recondition": ("purple", "^", 5, "-"),
        "optax adam": ("blue", "o", 11, "--"),
        "optax nadam": ("sky_blue", "s", 7, "--"),
        "optax lamb": ("green", "^", 6, "--"),
        "optax muon": ("black", "D", 4, "--"),
    }
    caption = (
        "MNIST, width 64, LeCun initialization, 3 epochs at batch 64; mean of "
        f"{len(settings['seeds'])} seeds, bars from the least to the greatest; rate chosen on "
        "validation data."
    )
    title = "Plain sigmoid networks, trained by transforms alone"
    with png_figure(path, 7.5, 4.4, title, caption) as figure:
        axes = figure.subplots()
        for name, (color, marker, size, style) in looks.items():
            cells = [one for one in results["headline"] if one["contender"] == name]
            cells.sort(key=lambda one: one["network"]["depth"])
            depths = [one["network"]["depth"] for one in cells]
            scores = [[100 * x for x in one["test_accuracy"]] for one in cells]
            means = [sum(x) / len(x) for x in scores]
            axes.errorbar(
                depths,
                means,
                yerr=ranges(means, scores),
                color=OKABE_ITO[color],
                marker=marker,
                markersize=size,
                linestyle=style,
                capsize=3,
                label=name,
            )
        axes.set_xticks(depths)
        axes.set_ylim(0, 100)
        axes.set_xlabel("hidden layers")
        axes.set_ylabel("test accuracy, %")
        axes.grid(axis="y", linewidth=0.5)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def step_time(results, settings, path):
    """Step time over optax's."""
    trees = {"one leaf": "blue", "64 leaves": "orange", "stack of 64": "green"}
    found = results["optimizers"]
    names = list(dict.fromkeys(key.rsplit(", ", 1)[0] for key in found))
    caption = (
        f"{settings['parameters'] / 1e6:.0f}M float32 parameters, donated and in order, by turns "
        "in one process: medians and quartiles of the ratio turn by turn."
    )
    title = "Time of vanishjax's optimizer step over optax's"
    with png_figure(path, 8, 4, title, caption) as figure:
        axes = figure.subplots()
        for offset, (tree, color) in enumerate(trees.items()):
            rows = [found[f"{name}, {tree}"]["ratio"] for name in names]
            medians = [row["median"] for row in rows]
            axes.bar(
                [place + 0.26 * (offset - 1) for place in range(len(names))],
                medians,
                width=0.24,
                yerr=[
                    [row["median"] - row["quartiles"][0] for row in rows],
                    [row["quartiles"][1] - row["median"] for row in rows],
                ],
                color=OKABE_ITO[color],
                error_kw={"linewidth": 1, "ecolor": OKABE_ITO["black"]},
                label=tree,
            )
        axes.axhline(1, color=OKABE_ITO["black"], linewidth=1)
        labels = [name.replace(", ", ",\n").replace(" + ", " +\n") for name in names]
        axes.set_xticks(range(len(names)), labels)
        axes.set_ylabel("ours / optax's (1 = as fast)")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def depth(results, settings, path):
    """Seconds to trace and compile a training step, and of a step, against depth."""
    colors = {
        "vanishjax adam": "blue",
        "optax adam": "sky_blue",
        "vanishjax muon": "vermilion",
        "optax muon": "orange",
    }
    caption = (
        f"A training step of a ReZero MLP, width {settings['width']}, batch "
        f"{settings['batch_size']}; median of {settings['rounds']} rounds, bars over all of them. "
        "On a stack optax's Muon runs Adam."
    )
    with png_figure(path, 9, 4.2, "Scanned, 10,000 layers compile like ten", caption) as figure:
        panels = figure.subplots(1, 2, sharex=True)
        for name, color in colors.items():
            for form, style in (("scanned", "-"), ("unrolled", ":")):
                rows = {
                    int(key.split(", ")[1].split()[1]): row
                    for key, row in results.items()
                    if key.startswith(f"{name}, ") and key.endswith(form)
                }
                for axes, kinds in (
                    (panels[0], ("trace_seconds", "compile_seconds")),
                    (panels[1], ("step_seconds",)),
                ):
                    samples = [
                        [sum(x) for x in zip(*(row[k]["samples"] for k in kinds), strict=True)]
                        for row in rows.values()
                    ]
                    middles = [sorted(x)[len(x) // 2] for x in samples]
                    axes.errorbar(
                        list(rows),
                        middles,
                        yerr=ranges(middles, samples),
                        color=OKABE_ITO[color],
                        linestyle=style,
                        marker="o" if form == "scanned" else "s",
                        markersize=4,
                        label=f"{name}, {form}",
                    )
        for axes, label in zip(panels, ("tracing and compiling", "one step"), strict=True):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("layers")
            axes.set_ylabel(f"{label}, seconds")
            axes.grid(linewidth=0.5)
        panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def deep_chains(results, _, path):
    """Test accuracy against depth, for each activation, beside depth 2 and a linear classifier."""
    looks = {
        "shaped, deep_adam": ("vermilion", "o", 5, "-"),
        "deep_adam": ("orange", "s", 8, "-"),
        "deep_muon, recondition": ("purple", "^", 5, "-"),
        "critical orthogonal, optax adam": ("green", "v", 6, "--"),
        "optax adam": ("blue", "o", 9, "--"),
        "optax nadam": ("sky_blue", "x", 6, "--"),
        "optax lamb": ("yellow", "P", 5, "--"),
        "optax muon": ("black", "D", 4, "--"),
    }
    cells = [cell for own in results.values() for cell in own]
    shared = USUAL | {"data": "mnist"}
    cells = [cell for cell in cells if shared.items() <= cell["network"].items()]
    runs = collections.defaultdict(list)
    for cell in cells:
        runs[cell["network"]["activation"], cell["contender"], cell["network"]["depth"]] += [cell]

    def score(activation, contender, depth):
        own = best(runs[activation, contender, depth])
        return 100 * sum(cell["test_accuracy"] for cell in own) / len(own)

    shown = [f for f in ("sigmoid", "tanh", "relu") if any(key[0] == f for key in runs)]
    counts = {len(best(own)) for own in runs.values()}
    least, most = min(counts), max(counts)
    seeds = f"{least} to {most}" if least < most else f"{most}"
    caption = (
        f"MNIST, width 64, 1,200 steps at batch 64, {seeds} seed{'s' * (most > 1)} a point; where "
        "several rates were run, the best on validation data."
    )
    title = "Plain chains: no skips, no normalization"
    with png_figure(path, 9.0, 4.0, title, caption) as figure:
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, activation in zip(panels, shown, strict=True):
            for name, (color, marker, size, style) in looks.items():
                depths = sorted(
                    key[2] for key in runs if key[:2] == (activation, name) and key[2] > 2
                )
                if depths:
                    axes.plot(
                        depths,
                        [score(activation, name, depth) for depth in depths],
                        color=OKABE_ITO[color],
                        marker=marker,
                        markersize=size,
                        linestyle=style,
                        label=name,
                    )
            for depth, where, label, style in (
                (2, activation, "depth 2", "--"),
                (0, "sigmoid", "linear classifier", ":"),
            ):
                if (where, "optax adam", depth) in runs:
                    axes.axhline(
                        score(where, "optax adam", depth),
                        color="gray",
                        linestyle=style,
                        label=label,
                    )
            axes.set_xscale("log")
            ticks = sorted({key[2] for key in runs if key[2] > 2})
            # There is no room for the numbers of all.
            names = [f"{n:,}" if n in (4, 16, 64, 1_000, 10_000) else "" for n in ticks]
            axes.set_xticks(ticks, names, fontsize="small")
            axes.minorticks_off()
            axes.set_ylim(0, 100)
            axes.set_xlabel(f"layers, {activation}")
        panels[0].set_ylabel("test accuracy, %")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False
        )


def ranges(middles, samples):
    """How far the samples at each point reach below and above its middle."""
    pairs = list(zip(middles, samples, strict=True))
    return [[middle - min(x) for middle, x in pairs], [max(x) - middle for middle, x in pairs]]


def waterfall(results, _, path):
    """What is left of one network's gradient, layer by layer."""
    plot_diagnosis(results["diagnosis"], path)


def race(results, _, path):
    """The trials of one network's cure."""
    plot_treatment(results["treatment"], path)


def trainability(results, settings, path):
    """Test accuracy by optimizer and depth, over what theory predicts."""
    plot_atlas(results | {"settings": settings}, path)


# By the picture's name; before a comma stands the benchmark, where one has two pictures.
PLOTS = {
    "response": response,
    "one_network, waterfall": waterfall,
    "one_network, race": race,
    "trainability": trainability,
    "headline": headline,
    "deep_chains": deep_chains,
    "step_time": step_time,
    "depth": depth,
}


def files(name: str, folder: Path = RESULTS) -> tuple[Path, Path]:
    """The JSON that a picture is drawn from, and the picture."""
    source = folder / f"{name.partition(',')[0]}.json"
    return source, folder / f"{name.replace(', ', '_')}.png"


def digest(path: Path) -> str:
    """What a picture bears of the JSON that it was drawn from."""
    content = json.loads(path.read_text())
    drawn = json.dumps([content["settings"], content["results"]], sort_keys=True)
    return hashlib.sha256(drawn.encode()).hexdigest()


def draw(name: str, folder: Path = RESULTS) -> Path:
    """Draws a picture from its JSON; returns where it lies."""
    source, path = files(name, folder)
    content = json.loads(source.read_text())
    PLOTS[name](content["results"], content["settings"], path)
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Source", digest(source))
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    few.save(path, pnginfo=marks, optimize=True)
    return path


def main() -> None:
    """Draws them all."""
    for name in PLOTS:
        path = draw(name)
        print(f"wrote {path}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
