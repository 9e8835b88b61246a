"""Damaged journals: the right map, or one line that names what is wrong with them."""

import contextlib
import itertools
import os
import tempfile
from pathlib import Path
from unittest import mock

from tests.commands import Ran, read_json, vanishjax
from tests.fuzzing import Tally, check_command, mutations
from vanishjax import atlas
from vanishjax.report import atlas_plot

COUNT = 100 * int(os.environ.get("VANISHJAX_FUZZ", "1"))
ATLAS = "atlas --optimizers sgd,adam --depths 1,4 --activations sigmoid,tanh --inits lecun --out"


def _measure(grid, *data, done, **options):
    """Cells without training, the same whenever they are measured."""
    for depth, optimizer in itertools.product(grid.depths, grid.optimizers):
        if (optimizer, depth) not in done:
            share = len(optimizer + grid.activation) / 100 / depth
            yield {
                "optimizer": optimizer,
                "depth": depth,
                "learning_rate": share / 10,
                "validation_accuracy": [share] * len(grid.seeds),
                "test_accuracy": [share, None, share / 3],
                "rates": {"0.1": share, "0.3": None},
                "first_layer_gradient": share**9,
                "last_layer_gradient": share,
                "sum_log_chi": -share * 1e3,
                "steps": 10 * depth,
                "seconds": 1.0,
            }


@contextlib.contextmanager
def _cheap():
    """Neither the training nor the figure is what a journal's damage may change."""
    with mock.patch.object(atlas, "measure", _measure), mock.patch.object(atlas_plot, "plot_atlas"):
        yield


def damage_journals(count: int, seed: int) -> Tally:
    """Goes on with damaged journals; an AssertionError where the end is neither right nor clear."""
    tally = Tally()
    with _cheap(), tempfile.TemporaryDirectory() as folder:
        journal, result = Path(folder, "atlas.jsonl"), Path(folder, "atlas.json")
        assert vanishjax(*ATLAS.split(), folder).status == 0
        whole, content = read_json(result)["cells"], journal.read_bytes()
        for kind, damaged in mutations(content, seed=seed, count=count):
            journal.write_bytes(damaged)
            ran = vanishjax(*ATLAS.split(), folder)
            # A run that goes on says where, and what it measures.
            checked = ran if ran.status else Ran(ran.status, ran.out, "")
            end = check_command(checked)
            if end == "right":
                assert read_json(result)["cells"] == whole, (kind, damaged)
            else:
                assert f"{journal}: " in ran.error, ran.error
                assert "--overwrite" in ran.error
                assert journal.read_bytes() == damaged
            tally[f"{kind}: {end}"] += 1
    return tally


def test_damaged_journals():
    tally = damage_journals(COUNT, seed=0)
    print(tally)
    assert tally.total() == COUNT
    assert tally["truncation: right"] > 0
    assert tally["flip: refused"] > 0
