"""What a run looks like: text for a terminal, figures for a page."""

from vanishjax.report.plots import learning_curves, png_figure, trainable_depth
from vanishjax.report.text import (
    compare_summary,
    compare_table,
    epoch_line,
    probability_table,
)

__all__ = [
    "compare_summary",
    "compare_table",
    "epoch_line",
    "learning_curves",
    "png_figure",
    "probability_table",
    "trainable_depth",
]
