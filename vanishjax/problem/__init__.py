"""A training problem, from its parts or from a model of the user's own."""

from vanishjax.problem.arguments import MISSING, as_problem, network_of
from vanishjax.problem.loss import loss_alone
from vanishjax.problem.problem import Evaluated, Problem

__all__ = ["MISSING", "Evaluated", "Problem", "as_problem", "loss_alone", "network_of"]
