"""What a run looks like: text for a terminal, figures for a page."""

from vanishjax.report.diagnosis_plot import plot_diagnosis
from vanishjax.report.diagnosis_text import diagnosis_text, layer_ranges
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
    "diagnosis_text",
    "epoch_line",
    "layer_ranges",
    "learning_curves",
    "plot_diagnosis",
    "png_figure",
    "probability_table",
    "trainable_depth",
]
