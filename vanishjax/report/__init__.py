"""What a run looks like: text for a terminal, figures for a page."""

from vanishjax.report.atlas_plot import plot_atlas
from vanishjax.report.atlas_text import atlas_legend, atlas_table
from vanishjax.report.depth_map import trainable_depth
from vanishjax.report.diagnosis_plot import plot_diagnosis
from vanishjax.report.diagnosis_text import diagnosis_text, layer_ranges
from vanishjax.report.monitor_plot import plot_monitor
from vanishjax.report.monitor_text import heat_row, monitor_summary, weakest_layer
from vanishjax.report.plots import learning_curves, png_figure
from vanishjax.report.tensorboard import EventFile
from vanishjax.report.text import (
    compare_summary,
    compare_table,
    epoch_line,
    probability_table,
)
from vanishjax.report.treatment_plot import plot_treatment
from vanishjax.report.treatment_text import treatment_text

__all__ = [
    "EventFile",
    "atlas_legend",
    "atlas_table",
    "compare_summary",
    "compare_table",
    "diagnosis_text",
    "epoch_line",
    "heat_row",
    "layer_ranges",
    "learning_curves",
    "monitor_summary",
    "plot_atlas",
    "plot_diagnosis",
    "plot_monitor",
    "plot_treatment",
    "png_figure",
    "probability_table",
    "trainable_depth",
    "treatment_text",
    "weakest_layer",
]
