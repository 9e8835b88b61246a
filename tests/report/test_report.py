"""Reports: the words of the tables and lines, and the pixels of the figures."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from vanishjax import report


def cell(optimizer, depth, test, first=1e-3, last=1e-2, rate=0.003):
    return {
        "optimizer": optimizer,
        "depth": depth,
        "learning_rate": rate,
        "validation_accuracy": [None if v is None else v + 0.01 for v in test],
        "test_accuracy": test,
        "first_layer_gradient": first,
        "last_layer_gradient": last,
        "steps": 540,
        "seconds": 1.2,
    }


@pytest.fixture
def result():
    return {
        "settings": {
            "data": "digits",
            "activation": "sigmoid",
            "width": 32,
            "epochs": 20,
            "batch_size": 64,
            "seeds": [0, 1],
            "classes": 10,
            "trainable_accuracy": 0.5,
        },
        "cells": [
            cell("adam", 2, [0.92, 0.96]),
            cell("adam", 8, [0.08, 0.12], first=0.0),
            cell("adam", 16, [None, 0.1], first=3e-20, rate=1e-4),
            cell("muon", 2, [0.96, 0.97]),
            cell("muon", 8, [0.9, 0.8], first=2e-9),
            cell("muon", 16, [0.6, 0.2], first=2e-9),
        ],
        "trainable_depth": {"adam": 2, "muon": 8},
    }


def show(table, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(table)
    return console.file.getvalue().splitlines()


def row(lines, *words):
    (line,) = [line for line in lines if all(word in line.split() for word in words)]
    return " ".join(line.split())


def test_compare_table_rows(result):
    lines = show(report.compare_table(result))
    assert lines[0].strip() == "digits, sigmoid, width 32, epochs 20, batch size 64, 2 seeds"
    assert row(lines, "adam", "2") == ("adam 2 0.003 95.0 ± 2.8 94.0 ± 2.8 1e-3/1e-2 1e-1 trains")
    assert row(lines, "adam", "8") == ("adam 8 0.003 11.0 ± 2.8 10.0 ± 2.8 0/1e-2 0 starves")
    assert row(lines, "adam", "16") == (
        "adam 16 0.0001 not finite not finite 3e-20/1e-2 3e-18 diverges"
    )
    assert row(lines, "muon", "16") == (
        "muon 16 0.003 41.0 ± 28 40.0 ± 28 2e-9/1e-2 2e-7 starves 1/2"
    )


def test_compare_table_fits_80_columns_and_colors_its_verdicts(result):
    # As wide as rows get: a small rate, a tiny gradient, a verdict that is split.
    result["cells"].append(cell("rmsprop", 32, [0.81, 0.1], first=3e-20, rate=0.0003))
    lines = show(report.compare_table(result), width=80)
    assert not any("…" in line for line in lines)
    assert len(lines) == len(show(report.compare_table(result), width=200))
    colored = "\n".join(
        show(report.compare_table(result), force_terminal=True, color_system="standard")
    )
    for color, verdict in ((32, "trains"), (31, "starves"), (35, "diverges")):
        assert f"\x1b[{color}m{verdict}\x1b[0m" in colored


def test_compare_table_of_one_seed_has_no_deviation(result):
    result["cells"] = [cell("adam", 2, [0.94])]
    result["settings"]["seeds"] = [0]
    lines = show(report.compare_table(result))
    assert "1 seed" in lines[0].split(", ")[-1]
    assert "±" not in "".join(lines)
    assert row(lines, "adam").split()[3:5] == ["95.0", "94.0"]


def test_compare_table_without_a_gradient_at_all(result):
    result["cells"] = [cell("adam", 2, [0.1], first=0.0, last=0.0)]
    assert row(show(report.compare_table(result)), "adam").endswith("0/0 nan starves")


def test_compare_summary_where_everything_stops(result):
    assert report.compare_summary(result).splitlines() == [
        "Deepest network trained to a mean test accuracy of 50 % (chance is 10 %):",
        "  muon  depth 8",
        "  adam  depth 2",
        "At depth 16 the first layer's gradient starts at 3e-18 of the last layer's: it vanishes.",
        "Next: compare at depth 16 with `--activation relu` or `--residual rezero`, or train at "
        "depth 8 with muon.",
    ]


@pytest.mark.parametrize(
    ("first", "story"),
    [(1e-2, "its size is not the trouble"), (1e4, "it explodes"), (0.0, "it vanishes")],
)
def test_compare_summary_names_the_gradient(result, first, story):
    result["cells"] = [cell("adam", 4, [0.1, 0.1], first=first)]
    result["trainable_depth"] = {"adam": 0}
    lines = report.compare_summary(result).splitlines()
    assert lines[1] == "  adam  none of the depths tried (4)"
    assert lines[2].endswith(f": {story}.")


def test_compare_summary_where_one_trains_all(result):
    result["trainable_depth"]["muon"] = 16
    lines = report.compare_summary(result).splitlines()
    assert lines[1] == "  muon  depth 16, the deepest tried"
    assert lines[-1] == "Next: compare with `--depths 32,64`; muon trained every depth tried."


@pytest.mark.parametrize(
    ("settings", "deepest", "step"),
    [
        ({"activation": "relu"}, 2, "compare at depth 8 with `--residual rezero`, or train at"),
        ({"residual": "scaled"}, 2, "compare at depth 8 with `--activation relu`, or train at"),
        ({"activation": "relu", "residual": "scaled"}, 2, "train at depth 2 with adam."),
        ({"activation": "relu", "residual": "scaled"}, 0, "compare shallower networks."),
    ],
)
def test_compare_summary_advises_what_was_not_tried(result, settings, deepest, step):
    result["settings"] |= settings
    result["cells"] = [cell("adam", depth, [0.1]) for depth in (8, 16)]
    result["trainable_depth"] = {"adam": deepest}
    assert f"Next: {step}" in report.compare_summary(result).splitlines()[-1]


def test_compare_summary_names_all_the_deepest(result):
    result["trainable_depth"] = {"adam": 8, "muon": 8}
    last = report.compare_summary(result).splitlines()[-1]
    assert last.endswith("or train at depth 8 with adam or muon.")


def test_epoch_line():
    metrics = {
        "loss": 0.2213,
        "accuracy": 0.9341,
        "validation_loss": 0.1802,
        "validation_accuracy": 0.9467,
    }
    assert report.epoch_line(2, 5, metrics, 3091.4, 42) == (
        "epoch 2/5  loss 0.2213  accuracy 0.9341  validation loss 0.1802  "
        "validation accuracy 0.9467  3,091 steps/s  left 0:42"
    )
    assert report.epoch_line(3, 12, {"loss": 1.8e-5}, 0.52, 3661.0) == (
        "epoch  3/12  loss 1.80e-05  0.5 steps/s  left 1:01:01"
    )
    assert report.epoch_line(1, 1, {"loss": math.nan}, 10, math.inf) == (
        "epoch 1/1  loss nan  10 steps/s"
    )
    assert report.epoch_line(1, 1, {"loss": 0.0}, 10, 59.7) == (
        "epoch 1/1  loss 0.0000  10 steps/s  left 1:00"
    )


def test_probability_table_of_one_input():
    lines = show(report.probability_table([[0.125, 0.75, 0.125]], ["cat", "dog", "hen"]))
    assert row(lines, "dog") == f"dog 75.0 % {'█' * 18} likeliest"
    assert row(lines, "hen") == "hen 12.5 % ███"


def test_probability_table_of_several_inputs():
    lines = show(report.probability_table(np.array([[0.1, 0.9], [0.75, 0.25]])))
    assert row(lines, "90.0") == f"0 1 90.0 % {'█' * 21}▋ 0 10.0 %"
    assert row(lines, "75.0") == f"1 0 75.0 % {'█' * 18} 1 25.0 %"


def test_probability_table_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"got \[1, 2, 3\]"):
        report.probability_table(np.zeros([1, 2, 3]))
    with pytest.raises(ValueError, match="class_names has 2 names for 3 classes"):
        report.probability_table(np.zeros([4, 3]), ["a", "b"])


def pixels(path, size):
    """The picture as an array, after checking its size, its ground and that nothing is left."""
    image = Image.open(path)
    assert image.format == "PNG"
    assert image.size == size
    array = np.asarray(image.convert("RGB"))
    assert (array[0, 0] == 255).all()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return array


def share(array, color):
    """Fraction of the pixels that have the color."""
    target = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(array.astype(int) - target).max(-1) <= 2).mean()


BLUE, VERMILION = "#0072B2", "#D55E00"


@pytest.fixture
def history():
    epochs = range(1, 9)
    return {
        "epoch": list(epochs),
        "loss": [2.0 * 0.5**e for e in epochs],
        "validation_loss": [0.1 + (e - 5) ** 2 / 10 for e in epochs],
        "accuracy": [1 - 0.5**e for e in epochs],
        "validation_accuracy": [0.9 - (e - 6) ** 2 / 100 for e in epochs],
    }


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_learning_curves(history, tmp_path, figures):
    path = tmp_path / "runs" / "curves.png"
    report.learning_curves(history, path, "Adam learns digits", caption="seed 0")
    array = pixels(path, (1500, 630))
    assert share(array, BLUE) > 1e-3
    assert share(array, VERMILION) > 1e-3
    loss, accuracy = figures[0].axes
    assert loss.get_yscale() == "log"
    assert accuracy.get_yscale() == "linear"
    assert legend(loss) == ["training", "validation", "best epoch 6, by accuracy: 0.2"]
    assert legend(accuracy)[-1] == "best epoch 6: 90.00 %"
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss (log scale)")
    assert figures[0].get_suptitle() == "Adam learns digits"
    assert figures[0].get_supxlabel() == "seed 0"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["loss", "mean_absolute_error"],
            ["best epoch 5, by mean absolute error: ", "best epoch 5: "],
        ),
        (
            ["loss", "validation_loss", "mean_absolute_error"],
            ["best epoch 3: ", "best epoch 3, by loss: "],
        ),
        (
            ["loss", "mean_absolute_error", "validation_mean_absolute_error"],
            ["best epoch 4, by mean absolute error: ", "best epoch 4: "],
        ),
        (["loss"], ["best epoch 2: "]),
    ],
)
def test_best_epoch_of_what_there_is(names, says, tmp_path, figures):
    values = {
        "loss": [2.0, 1.0, 3.0, 4.0, 5.0],
        "validation_loss": [5.0, 4.0, 1.0, 2.0, 3.0],
        "mean_absolute_error": [5.0, 4.0, 3.0, 2.0, 1.0],
        "validation_mean_absolute_error": [math.nan, 4.0, 3.0, 2.0, 3.0],
    }
    report.learning_curves(
        {"epoch": [1, 2, 3, 4, 5], **{name: values[name] for name in names}},
        tmp_path / "a.png",
        "",
    )
    for axis, said in zip(figures[0].axes, says, strict=True):
        assert legend(axis)[-1].startswith(said)
        assert axis.get_yscale() == "linear"


def test_learning_curves_of_a_run_that_diverged(tmp_path, figures):
    history = {"epoch": [1, 2], "loss": [math.nan, math.nan]}
    report.learning_curves(history, tmp_path / "a.png", "Lost")
    assert legend(figures[0].axes[0]) == ["training"]


def test_learning_curves_refuses_a_broken_history(tmp_path):
    with pytest.raises(ValueError, match=r"has no epoch: \['loss'\]"):
        report.learning_curves({"loss": [1.0]}, tmp_path / "a.png", "")
    with pytest.raises(ValueError, match=r"one length, at least 1, got .*'loss': 2"):
        report.learning_curves({"epoch": [1], "loss": [1.0, 2.0]}, tmp_path / "a.png", "")
    with pytest.raises(ValueError, match="at least 1"):
        report.learning_curves({"epoch": [], "loss": []}, tmp_path / "a.png", "")
    assert not any(tmp_path.iterdir())


def test_trainable_depth(result, tmp_path, figures):
    del result["cells"][1]
    path = tmp_path / "depth.png"
    report.trainable_depth(result, path)
    array = pixels(path, (975, 480))
    assert share(array, VERMILION) > 2e-3
    axis, bar = figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["muon", "adam"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "8", "16"]
    texts = {(t.get_position()[0], round(t.get_position()[1])): t for t in axis.texts[::-1]}
    shown = [[texts[column, line].get_text() for column in range(3)] for line in range(2)]
    assert shown == [["96.5", "85.0", "40.0"], ["94.0", "not run", "diverged"]]
    assert texts[0, 0].get_color() == "black"
    assert texts[2, 0].get_color() == "white"
    assert "±0.7" in [text.get_text() for text in axis.texts]
    # muon's row reaches the second column, adam's the first.
    x, y = axis.lines[-1].get_data()
    assert list(zip(x, y, strict=True)) == [(1.5, -0.5), (1.5, 0.5), (0.5, 0.5), (0.5, 1.5)]
    assert axis.lines[-1].get_color() == VERMILION
    assert bar.get_ylabel() == "mean test accuracy (%)"
    assert "Chance is 10 %" in figures[0].get_supxlabel().replace("\n", " ")
    assert "reaches 50 %" in figures[0].get_supxlabel().replace("\n", " ")


def test_trainable_depth_of_nothing(result, tmp_path):
    result["cells"] = []
    with pytest.raises(ValueError, match="no cells to draw"):
        report.trainable_depth(result, tmp_path / "a.png")


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def half(self, file, **options):
        file.write_bytes(b"half a pict")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"), report.png_figure(path, 4, 3):
        pass
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_dark_style_of_the_user_does_not_show(history, tmp_path):
    from matplotlib import rcParams, style

    with style.context("dark_background"):
        report.learning_curves(history, tmp_path / "a.png", "Title")
        assert rcParams["text.color"] == "white"
    array = pixels(tmp_path / "a.png", (1500, 630))
    assert share(array, "#ffffff") > 0.8
    assert share(array, "#1a1a1a") > 1e-3


def test_reports_load_neither_matplotlib_nor_jax():
    code = (
        "import sys, vanishjax.report\n"
        "assert not {'matplotlib', 'jax', 'flax', 'optax'} & set(sys.modules), 'too much loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def atlas():
    """Sigmoid networks that lose 6 nats a layer, and those of another initializer, half as many."""
    cells = [
        {
            "activation": "sigmoid",
            "init": init,
            "optimizer": optimizer,
            "depth": depth,
            "test_accuracy": [None if (optimizer, depth) == ("lion", 8) else 0.96 - 0.1 * depth],
            "sum_log_chi": -loss * depth,
        }
        for init, loss in (("lecun", 6.0), ("he", 3.0))
        for optimizer in ("adam", "lion")
        for depth in (8, 1, 2, 4)
        if (init, optimizer, depth) != ("he", "lion", 4)
    ]
    return {
        "settings": {
            "optimizers": ["lion", "adam"],
            "depths": [8, 1, 2, 4],
            "data": "digits",
            "seeds": [0],
            "decay": True,
            "trainable_accuracy": 0.5,
        },
        "cells": cells,
        "trainable_depth": {"sigmoid": {"lecun": {"lion": 4, "adam": 4}, "he": {"adam": 8}}},
        "predicted_depth": {
            "sigmoid": {"lecun": {"momentum": 1, "Adam": 4}, "he": {"momentum": 2, "Adam": 8}}
        },
        "reaches": {"momentum": 8.4, "Adam": 30.0},
    }


def test_atlas_table(atlas):
    atlas["trainable_depth"]["sigmoid"]["critical_normal"] = {}
    atlas["predicted_depth"]["sigmoid"]["critical_normal"] = {}
    atlas["predicted_depth"]["sigmoid"]["lecun"]["momentum"] = 0
    lines = show(report.atlas_table(atlas), width=80)
    assert [line.split() for line in lines[:3]] == [
        ["sigmoid"],
        ["sigmoid", "sigmoid", "critical"],
        ["optimizer", "lecun", "he", "normal"],
    ]
    assert row(lines, "lion") == "lion 4 not run not run"
    assert row(lines, "adam") == "adam 4 8+ not run"
    assert row(lines, "8.4") == "predicted, 8.4 nats none 2 not run"
    assert row(lines, "30") == "predicted, 30 nats 4 8+ not run"


def test_plot_atlas(atlas, tmp_path, figures):
    path = tmp_path / "atlas.png"
    report.plot_atlas(atlas, path)
    image = Image.open(path)
    assert share(np.asarray(image.convert("RGB")), VERMILION) > 1e-3
    lecun, he, _, legend_axis = figures[0].axes
    assert lecun.get_title(loc="left") == "sigmoid, lecun"
    assert he.get_title(loc="left") == "sigmoid, he"
    assert [label.get_text() for label in lecun.get_yticklabels()] == ["lion", "adam"]
    assert [label.get_text() for label in lecun.get_xticklabels()] == ["1", "2", "4", "8"]
    (strip,) = lecun.child_axes
    assert [label.get_text() for label in strip.get_xticklabels()] == ["-6.0", "-12", "-24", "-48"]
    assert "diverged" in [text.get_text() for text in lecun.texts]
    assert "not run" in [text.get_text() for text in he.texts]

    def contours(axis):
        return {line.get_xdata()[0] for line in axis.lines if line.get_color() == "black"}

    assert contours(lecun) == {0.5, 2.5}
    # Nothing passes Adam's reach where all is within it.
    assert contours(he) == {1.5}
    assert legend(legend_axis) == [
        "measured: 50 % accuracy",
        "predicted: ±8.4 nats (momentum)",
        "predicted: ±30 nats (Adam)",
    ]
    assert "decaying learning rate" in figures[0].get_supxlabel()


def test_plot_atlas_of_nothing(atlas, tmp_path):
    atlas["cells"] = []
    with pytest.raises(ValueError, match="no cells to draw"):
        report.plot_atlas(atlas, tmp_path / "a.png")
