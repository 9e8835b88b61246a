"""A cell of the atlas is divided among devices; a file of its own, whose programs are optimized."""

import jax

from tests.test_atlas import TEST, TRAIN, VALIDATION
from vanishjax.atlas import Grid, draw_networks, train_cell


def test_runs_are_divided_among_devices():
    """Four runs: as many devices as divide them, and the numbers of one."""
    grid = Grid(width=8, epochs=2, batch_size=16, seeds=(3, 5), learning_rates=(0.02, 0.1))
    start, cells = draw_networks(3, grid, TRAIN, classes=2), []
    for devices, used in ((1, 1), (5, 4), (8, 4)):
        seen = []

        def watched(ends, data, seen=seen):
            seen.append(jax.tree.leaves(ends)[0].sharding.device_set)
            return start.accuracy(ends, data)

        cells.append(
            train_cell(
                *("adam", start._replace(accuracy=watched), grid, TRAIN, VALIDATION, TEST),
                devices=jax.devices()[:devices],
            )
        )
        assert {len(found) for found in seen} == {used}
    assert cells[0] == cells[1] == cells[2]
