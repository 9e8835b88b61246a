"""Losses as jaxprs: the only room that walks them, and that knows how JAX's versions differ."""

from vanishjax._jaxpr.activation import Activation
from vanishjax._jaxpr.adjustment import adjusted_forward
from vanishjax._jaxpr.anatomy import Anatomy, Event, Looping, Passing, Site, dissect
from vanishjax._jaxpr.chain import Link, links
from vanishjax._jaxpr.contraction import Matrix
from vanishjax._jaxpr.intake import kernel_inputs
from vanishjax._jaxpr.paths import Paths
from vanishjax._jaxpr.program import Program, flatten, is_array, split_arrays, trace_loss
from vanishjax._jaxpr.rows import WHOLE, Cut, Update
from vanishjax._jaxpr.tail import constant_tail
from vanishjax._jaxpr.taps import dummies_for, tapped_loss
from vanishjax._jaxpr.uses import Trace, parameter_uses
from vanishjax._jaxpr.values import Use
from vanishjax._jaxpr.watched import Watched

__all__ = [
    "WHOLE",
    "Activation",
    "Anatomy",
    "Cut",
    "Event",
    "Link",
    "Looping",
    "Matrix",
    "Passing",
    "Paths",
    "Program",
    "Site",
    "Trace",
    "Update",
    "Use",
    "Watched",
    "adjusted_forward",
    "constant_tail",
    "dissect",
    "dummies_for",
    "flatten",
    "is_array",
    "kernel_inputs",
    "links",
    "parameter_uses",
    "split_arrays",
    "tapped_loss",
    "trace_loss",
]
