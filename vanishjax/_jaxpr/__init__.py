"""Losses as jaxprs: the only room that walks them, and that knows how JAX's versions differ."""

from vanishjax._jaxpr.activation import Activation
from vanishjax._jaxpr.adjustment import adjusted_forward
from vanishjax._jaxpr.anatomy import Anatomy, Event, Looping, Passing, Site, dissect
from vanishjax._jaxpr.backward import is_dropped, rule_step
from vanishjax._jaxpr.carried import Response, fed, kept_by, responses, summed
from vanishjax._jaxpr.cells import Cell, Gate, Shape, find_cells, find_gates, shape_of_activation
from vanishjax._jaxpr.chain import Link, links
from vanishjax._jaxpr.contraction import Matrix
from vanishjax._jaxpr.dropout import without_dropout
from vanishjax._jaxpr.entrance import pure_inputs
from vanishjax._jaxpr.examine import Path
from vanishjax._jaxpr.fold import Folded
from vanishjax._jaxpr.identity import identity
from vanishjax._jaxpr.intake import Intake, Moments, feature_moments, find_intakes, kernel_inputs
from vanishjax._jaxpr.made import degrees, made_kernels
from vanishjax._jaxpr.origin import (
    Origin,
    Span,
    Step,
    common_lines,
    custom_function,
    find_origin,
    library_function,
    place_of,
    spans_of,
    steps_of,
    user_place,
)
from vanishjax._jaxpr.paths import Paths
from vanishjax._jaxpr.program import Program, flatten, is_array, split_arrays, trace_loss
from vanishjax._jaxpr.rows import WHOLE, Cut, Update
from vanishjax._jaxpr.tail import Tail, constant_tail, crossing
from vanishjax._jaxpr.taps import copied, dummies_for, log_rms, tapped_loss
from vanishjax._jaxpr.uses import Trace, parameter_uses
from vanishjax._jaxpr.values import Use
from vanishjax._jaxpr.versions import Place
from vanishjax._jaxpr.watched import Watched

__all__ = [
    "WHOLE",
    "Activation",
    "Anatomy",
    "Cell",
    "Cut",
    "Event",
    "Folded",
    "Gate",
    "Intake",
    "Link",
    "Looping",
    "Matrix",
    "Moments",
    "Origin",
    "Passing",
    "Path",
    "Paths",
    "Place",
    "Program",
    "Response",
    "Shape",
    "Site",
    "Span",
    "Step",
    "Tail",
    "Trace",
    "Update",
    "Use",
    "Watched",
    "adjusted_forward",
    "common_lines",
    "constant_tail",
    "copied",
    "crossing",
    "custom_function",
    "degrees",
    "dissect",
    "dummies_for",
    "feature_moments",
    "fed",
    "find_cells",
    "find_gates",
    "find_intakes",
    "find_origin",
    "flatten",
    "identity",
    "is_array",
    "is_dropped",
    "kept_by",
    "kernel_inputs",
    "library_function",
    "links",
    "log_rms",
    "made_kernels",
    "parameter_uses",
    "place_of",
    "pure_inputs",
    "responses",
    "rule_step",
    "shape_of_activation",
    "spans_of",
    "split_arrays",
    "steps_of",
    "summed",
    "tapped_loss",
    "trace_loss",
    "user_place",
    "without_dropout",
]
